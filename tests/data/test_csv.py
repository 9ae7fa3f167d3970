"""One CSV in, arrays or the exact complaint out: layouts, the 44 bad inputs, the store."""

from __future__ import annotations

import gzip
import hashlib
import os
import resource
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from fmnist_tf.data import files, tables
from fmnist_tf.data.csv import reader
from fmnist_tf.data.images import Table
from fmnist_tf.data.locate import check_paths, expand_path
from fmnist_tf.data.tables import read_table as read_csv
from fmnist_tf.errors import DataError

N = 6
PIXELS = np.random.default_rng(0).integers(0, 256, (N, 784)).astype(np.uint8)
LABELS = ["3", "1", "0", "2", "1", "3"]
NAMES = [f"pixel{i}" for i in range(1, 785)]
HEADER = ["label", *NAMES]

Cells = list[list[str]]
Read = Callable[..., Table]


def rows(label: str = "first", labels: list[str] = LABELS) -> Cells:
    """The cells of the file, header not included."""
    pixels = [[str(value) for value in row] for row in PIXELS.tolist()]
    if label == "none":
        return pixels
    pairs = zip(labels, pixels, strict=True)
    return [[one, *row] if label == "first" else [*row, one] for one, row in pairs]


def text(cells: Cells, end: str = "\n") -> bytes:
    return "".join(",".join(row) + end for row in cells).encode()


def kaggle() -> Cells:
    return [HEADER, *rows()]


@pytest.fixture
def read(tmp_path: Path) -> Read:
    def read(content: bytes | Cells, name: str = "train.csv", **options: object) -> Table:
        return read_csv(saved(content, name)(tmp_path), tmp_path / "store", **options)

    return read


def assert_read(table: Table, labels: list[str] | None = LABELS) -> None:
    np.testing.assert_array_equal(table.pixels, PIXELS)
    assert table.pixels.dtype == np.uint8
    assert not table.pixels.flags.writeable
    if labels is None:
        assert table.label_index is None
        assert table.label_values == ()
    else:
        assert table.label_index.dtype == np.int32
        assert [table.label_values[i] for i in table.label_index] == labels


def complaint(action: Callable[[], object]) -> DataError:
    with pytest.raises(DataError) as caught:
        action()
    return caught.value


# ------------------------------------------------------------------------------- what is accepted


def test_kaggle(read: Read) -> None:
    table = read(kaggle())
    assert_read(table)
    assert table.sha256 == hashlib.sha256(WHOLE).hexdigest()
    assert table.digest == hashlib.sha256(PIXELS.tobytes()).hexdigest()
    index = np.array([3, 1, 0, 2, 1, 3], "<i4")
    assert table.label_digest == hashlib.sha256(index.tobytes()).hexdigest()
    assert table.label_values == ("0", "1", "2", "3")
    assert table.first_line == 2
    assert table.label_field == 1
    assert table.decisions == ("line 1 is the header", "the label is column 1, label")


def with_column(cells: Cells, at: int, name: str, value: Callable[[int], str]) -> Cells:
    return [[*row[:at], name if i == 0 else value(i), *row[at:]] for i, row in enumerate(cells)]


def renamed(*names: str) -> Cells:
    return [list(names), *rows()]


ORDER = np.random.default_rng(1).permutation(785)
ACCEPTED: dict[str, tuple[bytes | Cells, str]] = {
    "no header": (rows(), "the label is column 1"),
    "from pixel0": (renamed("label", *(f"pixel{i}" for i in range(784))), "column 1, label"),
    "grid names": (
        renamed("label", *(f"{r}x{c}" for r in range(1, 29) for c in range(1, 29))),
        "column 1, label",
    ),
    "numbers as names": (renamed("label", *(str(i) for i in range(784))), "column 1, label"),
    "capitals and spaces": (
        renamed(" Label", *(f" Pixel_{i} " for i in range(1, 785))),
        "column 1, Label",
    ),
    "class last": ([[*NAMES, "class"], *rows("last")], "column 785, class"),
    "one strange name": (renamed("garment", *NAMES), "column 1, garment"),
    "unnamed index": (with_column(kaggle(), 0, "", str), "column 1, '', was dropped"),
    "pandas index": (with_column(kaggle(), 0, "Unnamed: 0", str), "Unnamed: 0, was dropped"),
    "id in the middle": (with_column(kaggle(), 400, "id", lambda i: f"x{i}"), "id, was dropped"),
    "id last": (with_column(kaggle(), 785, "id", lambda i: "9" * 30), "id, was dropped"),
    "permuted (E024)": ([[row[i] for i in ORDER] for row in kaggle()], "(E024)"),
    "CR LF": (text(kaggle(), "\r\n"), "line 1 is the header"),
    "CR LF and LF": (text(kaggle()[:3], "\r\n") + text(kaggle()[3:]), "line 1 is the header"),
    "label last, CR LF": (text([[*NAMES, "y"], *rows("last")], "\r\n"), "column 785, y"),
    "byte-order mark (E013)": (b"\xef\xbb\xbf" + text(kaggle()), "(E013)"),
    "byte-order mark, no header": (b"\xef\xbb\xbf" + text(rows()), "(E013)"),
    "no line end at the end (E015)": (text(kaggle())[:-1], "(E015)"),
    "gzip": (gzip.compress(text(kaggle())), "gzip"),
    "gzip in members": (
        gzip.compress(text(kaggle()[:2])) + gzip.compress(text(kaggle()[2:])),
        "gzip",
    ),
    "floats": (
        text([HEADER, *([f"{row[0]}.0", *(f"{v}.0" for v in row[1:])] for row in rows())]),
        "column 1, label",
    ),
    "quotes": (text([[f'"{cell}"' for cell in row] for row in kaggle()]), "column 1, label"),
    "spaces and signs": (
        text([[f" {cell}\t" for cell in HEADER], *([f" +0{c} " for c in row] for row in rows())]),
        "column 1, label",
    ),
}


@pytest.mark.parametrize("case", ACCEPTED)
def test_accepted(case: str, read: Read) -> None:
    content, decision = ACCEPTED[case]
    table = read(content)
    assert_read(table)
    assert decision in "; ".join(table.decisions)


@pytest.mark.parametrize("labels", [["bag", "coat", "bag"] * 2, ["300", "301", "-1"] * 2])
def test_what_no_pixel_can_be_is_the_label(labels: list[str], read: Read) -> None:
    table = read(rows("last", labels))
    assert_read(table, labels)
    assert "the label is column 785" in table.decisions[-1]


@pytest.mark.parametrize("header", [[NAMES], []])
def test_unlabelled(header: Cells, read: Read) -> None:
    assert_read(read([*header, *rows("none")]), None)


def test_label_column_chosen_by_name(read: Read) -> None:
    cells = with_column(kaggle(), 785, "class", lambda i: "shoe" if i % 2 else "bag")
    table = read(cells, label_column="class")
    assert_read(table, ["shoe", "bag"] * 3)
    assert table.decisions[-1] == "column 1, label, was dropped"
    # The store of one choice must not answer for the other.
    assert_read(read(cells, label_column="label"))


@pytest.mark.parametrize(
    ("written", "values"),
    [
        (["10", "9", "-1", "024", "+24", "24.0"], ("-1", "9", "10", "24")),
        (["T-shirt/top", "Bag", " Bag", "Bag ", "été", "Bag"], ("Bag", "T-shirt/top", "été")),
        (["5", '"5"', "7", "7", '" 7"', '"5"'], ("5", "7")),
        (['"a,b"', '"say ""hi"""', "c", "c", "c", "c"], ("a,b", "c", 'say "hi"')),
    ],
)  # fmt: skip
def test_label_values(written: list[str], values: tuple[str, ...], read: Read) -> None:
    table = read([HEADER, *rows(labels=written)])
    assert table.label_values == values


# ------------------------------------------------------------------------------ the 44 bad inputs

Build = Callable[[Path], Path]


def saved(content: bytes | Cells, name: str = "train.csv") -> Build:
    def build(folder: Path) -> Path:
        path = folder / name
        path.write_bytes(content if isinstance(content, bytes) else text(content))
        return path

    return build


def with_cell(line: int, column: int, cell: str, cells: Cells | None = None) -> Build:
    """The Kaggle file with one cell replaced; line and column count from 1."""
    cells = [list(row) for row in (cells or kaggle())]
    cells[line - 1][column - 1] = cell
    return saved(cells)


def with_line(line: int, content: str) -> Build:
    lines = text(kaggle()).decode().split("\n")
    lines.insert(line - 1, content)
    return saved("\n".join(lines).encode())


def in_index_column(line: int, cell: bytes, start: bytes = b"") -> Build:
    """A file whose last column, an index, is dropped; one of its cells, or a line's start, bad."""
    lines = text(with_column(kaggle(), 785, "id", str)).split(b"\n")
    lines[line - 1] = start + lines[line - 1][: lines[line - 1].rindex(b",") + 1] + cell
    return saved(b"\n".join(lines))


def made(make: Callable[[Path], object]) -> Build:
    def build(folder: Path) -> Path:
        make(folder / "train.csv")
        return folder / "train.csv"

    return build


def loop(path: Path) -> None:
    path.symlink_to(path.with_name("other"))
    path.with_name("other").symlink_to(path)


def bind(path: Path) -> None:
    here = Path.cwd()
    os.chdir(path.parent)  # a socket's path may not be long
    try:
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(path.name)
    finally:
        os.chdir(here)


WHOLE = text(kaggle())
ZIPPED = gzip.compress(WHOLE)
SCALED = [HEADER, *([row[0], *(str(int(v) / 255) for v in row[1:])] for row in rows())]
SEMICOLONS = WHOLE.replace(b",", b";")
GERMAN = text(SCALED).replace(b",", b";").replace(b".", b",")
FIRST_ROW_AS_HEADER = ["5", *(f"0.{i}" for i in range(1, 785))]
HEADER_2 = [*HEADER[:3], "pixel1", *HEADER[4:]]

BAD: list[tuple[str, str, int | None, int | None, Build]] = [
    ("E001 missing", "E001", None, None, made(lambda path: None)),
    ("E001 not a folder", "E001", None, None, lambda d: saved(b"x")(d) / "train.csv"),
    ("E001 name with NUL", "E001", None, None, lambda d: d / "a\0b"),
    ("E001 name too long", "E001", None, None, lambda d: d / ("a" * 300)),
    ("E005 empty directory", "E005", None, None, made(Path.mkdir)),
    ("E002 pipe", "E002", None, None, made(os.mkfifo)),
    ("E002 socket", "E002", None, None, made(bind)),
    ("E002 device", "E002", None, None, lambda d: Path("/dev/zero")),
    ("E004 empty", "E004", None, None, saved(b"")),
    ("E004 empty in gzip", "E004", None, None, saved(gzip.compress(b""))),
    ("E004 byte-order mark only", "E004", None, None, saved(b"\xef\xbb\xbf")),
    ("E004 blank lines only", "E004", None, None, saved(b"\n \r\n")),
    ("E005 header only", "E005", 1, None, saved([HEADER])),
    ("E005 header without line end", "E005", 1, None, saved(text([HEADER])[:-1])),
    ("E008 truncated", "E008", None, None, saved(ZIPPED[:-20])),
    ("E008 without trailer", "E008", None, None, saved(ZIPPED[:-8])),
    ("E008 wrong CRC", "E008", None, None, saved(ZIPPED[:-5] + b"\0" + ZIPPED[-4:])),
    ("E008 trailing garbage", "E008", None, None, saved(ZIPPED + b"more")),
    ("E008 .gz without gzip", "E008", None, None, saved(WHOLE, "train.csv.gz")),
    ("E009 zip or xlsx", "E009", None, None, saved(b"PK\x03\x04" + WHOLE)),
    ("E009 xls", "E009", None, None, saved(b"\xd0\xcf\x11\xe0" + WHOLE)),
    ("E009 PNG", "E009", None, None, saved(b"\x89PNG\r\n\x1a\n")),
    ("E009 HTML", "E009", None, None, saved(b"\n<!DOCTYPE html><html>")),
    ("E009 Git LFS", "E009", None, None, saved(b"version https://git-lfs.example/spec/v1\n")),
    ("E009 zip in gzip", "E009", None, None, saved(gzip.compress(b"PK\x03\x04" + WHOLE))),
    ("E010 UTF-16", "E010", None, None, saved(WHOLE.decode().encode("utf-16"))),
    ("E010 UTF-32", "E010", None, None, saved(WHOLE.decode().encode("utf-32"))),
    ("E011 label", "E011", 3, 1, saved(WHOLE.replace(b"\n1,", b"\n\xe9,", 1))),
    ("E012 NUL", "E012", 3, 1, saved(WHOLE.replace(b"\n1,", b"\n\0,", 1))),
    ("E012 UTF-16 without mark", "E012", 1, 1, saved(WHOLE.decode().encode("utf-16-le"))),
    ("E014 CR only", "E014", 1, 785, saved(WHOLE.replace(b"\n", b"\r"))),
    ("E014 CR only, long", "E014", 1, 785, saved(text([HEADER, *rows() * 8], "\r"))),
    ("E014 lone CR", "E014", 3, 785, saved(text(kaggle()[:3], "\r\n")[:-1] + text(kaggle()[3:]))),
    ("E014 CR before a digit", "E014", 3, 9, with_cell(3, 9, "\r7")),
    ("E011 in a dropped column", "E011", 3, 786, in_index_column(3, b"\xff")),
    ("E012 in a dropped column", "E012", 3, 786, in_index_column(3, b"\0")),
    ("E038 quote in a dropped column", "E038", 3, 786, in_index_column(3, b'"a')),
    ("E038 long dropped cell", "E038", 3, None, in_index_column(3, b"1" * 70_000)),
    ("E039 dropped comment", "E039", 3, None, in_index_column(3, b"1", start=b"#")),
    ("E015 breaks off", "E015", 7, None, saved(WHOLE[: WHOLE.rindex(b",")])),
    ("E016 bar", "E016", 1, 1, saved(WHOLE.replace(b",", b"|"))),
    ("E016 space", "E016", 1, 1, saved(WHOLE.replace(b",", b" "))),
    ("E017 semicolon", "E017", 1, 1, saved(GERMAN)),
    ("E017 no header", "E017", 1, 1, saved(GERMAN[GERMAN.index(b"\n") + 1 :])),
    ("E017 quoted", "E017", 4, 9, with_cell(4, 9, '"0,5"')),
    ("E018 dropped cell missing", "E018", 3, None,
     saved([row[: 786 - (k == 2)] for k, row in enumerate(with_column(kaggle(), 785, "id", str))])),
    ("E018 short", "E018", 4, None, saved([*kaggle()[:3], kaggle()[3][:-1], *kaggle()[4:]])),
    ("E018 first line, no header", "E018", 1, None, saved([rows()[0][:-1], *rows()[1:]])),
    ("E018 all", "E018", 1, None, saved([row[:100] for row in rows()])),
    ("E018 a cell on the next line", "E018", 4, None,
     saved([*kaggle()[:3], kaggle()[3][:-1], ["7", *kaggle()[4]], *kaggle()[5:]])),
    ("E019 long", "E019", 4, None, saved([*kaggle()[:3], [*kaggle()[3], "7"], *kaggle()[4:]])),
    ("E019 comma at each end", "E019", 2, None, saved([HEADER, *([*row, ""] for row in rows())])),
    ("E019 comma at each end, other labels", "E019", 2, None,
     saved([HEADER, *([*row, ""] for row in rows(labels=list("012345")))])),
    ("E019 comma, no header", "E019", 1, None, saved(text(rows(), ",\n"))),
    ("E020 few", "E020", 1, None, saved([row[:11] for row in kaggle()])),
    ("E020 words", "E020", 1, None, saved(b"hello world\n1\n")),
    ("E020 comma at each end", "E020", 1, 786, saved(text(kaggle(), ",\n"))),
    ("E021 column numbers", "E021", 1, 1, saved([[str(i) for i in range(785)], *rows()])),
    ("E021 names and numbers", "E021", 1, 700, with_cell(1, 700, "pixel699", rows())),
    ("E021 row as header", "E021", 1, 1, saved([FIRST_ROW_AS_HEADER, *rows()])),
    ("E022 twice", "E022", 1, 4, saved([HEADER_2, *rows()])),
    ("E023 missing", "E023", 1, None, saved([row[:-1] for row in kaggle()])),
    ("E025 strange", "E025", 1, 786, saved(with_column(kaggle(), 785, "weight", str))),
    ("E025 two labels", "E025", 1, 786, saved(with_column(kaggle(), 785, "class", str))),
    ("E025 pixel785", "E025", 1, 786, saved(with_column(kaggle(), 785, "pixel785", str))),
    ("E027 long", "E027", 4, 1, with_cell(4, 1, "x" * 201)),
    ("E028 too many", "E028", 1001, 1,
     saved([[str(i), *["0"] * 784] for i in range(1002)])),
    ("E031 last line", "E031", 7, 785, saved(WHOLE[: WHOLE.rindex(b",") + 1] + b"x")),
    ("E033 last, no header", "E033", 2, 785, with_cell(2, 785, "300", rows())),
    ("E037 huge", "E037", 4, 317, with_cell(4, 317, "9" * 5000)),
    ("E037 huge label", "E037", 4, 1, with_cell(4, 1, "9" * 5000)),
    ("E038 quoted line break", "E038", 4, 1, with_cell(4, 1, '"a\nb"')),
    ("E038 long line", "E038", 4, None, with_cell(4, 1, "x" * 70_000)),
    ("E038 endless line", "E038", 1, None, saved(b"7" * 300_000)),
    ("E039 header again", "E039", 4, None, with_line(4, ",".join(HEADER))),
    ("E039 blank line", "E039", 4, None, with_line(4, "")),
    ("E039 empty cells", "E039", 4, None, with_line(4, "," * 784)),
    ("E039 comment", "E039", 4, None, with_line(4, "# the second half")),
    ("E039 comment first", "E039", 1, None, with_line(1, "# made by hand")),
    ("E043 loop", "E043", None, None, made(loop)),
]  # fmt: skip


@contextmanager
def at_most(seconds: int) -> Iterator[None]:
    """Interrupt what hangs; a pipe without writer would wait for ever."""
    before = signal.signal(signal.SIGALRM, lambda *_: pytest.fail("hangs"))
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


@pytest.mark.parametrize(("code", "line", "column", "build"), [b[1:] for b in BAD],
                         ids=[b[0] for b in BAD])  # fmt: skip
def test_bad_input(
    code: str, line: int | None, column: int | None, build: Build, tmp_path: Path
) -> None:
    path = build(tmp_path)
    with at_most(10):
        error = complaint(lambda: read_csv(path, tmp_path / "store"))
    first = error.problems[0]
    assert (first.code, first.line, first.column) == (code, line, column)
    assert first.path == str(path)
    assert first.found
    assert first.expected
    assert error.exit_code == 2
    assert str(error).startswith(f"error[{code}] ")
    assert list((tmp_path / "store").glob("*")) == []
    if column is not None and column < 786 and code >= "E027" and first.column_name is not None:
        assert first.column_name == HEADER[column - 1]


BAD_PIXELS = {
    "": "E035", "nan": "E035", "-Inf": "E035", "NA": "E035", "null": "E035",
    "256": "E033", "300": "E033", "1000": "E033", "0256": "E033", "300.0": "E033",
    "-1": "E032", "-300": "E032", "0.5": "E034", "12.5": "E034", "-.5": "E034",
    "1.5e0": "E034", "0xff": "E036", "1_0": "E036", '"1,000"': "E036", "१": "E036",
    "9223372036854775808": "E037", "-" + "9" * 20: "E037", '"1,5"': "E017",
    "x": "E031", "True": "E031", "²": "E031", "1 2": "E031", "--1": "E031", ".": "E031",
    "7\x0b": "E031", '"7': "E038", '"7"7': "E038", "\0": "E012", "1\r2": "E014", "\r7": "E014",
}  # fmt: skip
BAD_LABELS = {
    "": "E027", " ": "E027", "nan": "E027", "1.5": "E027", "1e-5": "E027", "0x1": "E036",
    "9223372036854775808": "E037", "a\tb": "E027", "\x1b[2J": "E027", "\u202eabc": "E027",
    "Bag": "E027", '"': "E038", "\0": "E012",
}  # fmt: skip


@pytest.mark.parametrize("has_header", [True, False])
@pytest.mark.parametrize(
    ("column", "cell", "code"),
    [
        *((1, cell, code) for cell, code in BAD_LABELS.items()),
        *((317, cell, code) for cell, code in BAD_PIXELS.items()),
        (785, "300", "E033"),
    ],
)
def test_bad_cell(column: int, cell: str, code: str, has_header: bool, read: Read) -> None:
    cells = [HEADER] * has_header + rows()
    cells[3][column - 1] = cell
    error = complaint(lambda: read(cells))
    (problem,) = error.problems
    assert (problem.code, problem.line, problem.column) == (code, 4, column)
    assert error.totals == {code: 1}
    assert problem.column_name == (HEADER[column - 1] if has_header else None)


def test_e003_no_permission(tmp_path: Path) -> None:
    path = saved(kaggle())(tmp_path)
    path.chmod(0)
    user = os.geteuid()
    if user == 0:
        os.seteuid(65534)
    try:
        error = complaint(lambda: read_csv(path, tmp_path / "store"))
    finally:
        os.seteuid(user)
    assert error.problems[0].code == "E003"


def test_e006_too_large(read: Read, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "MAX_BYTES", len(WHOLE) - 1)
    assert complaint(lambda: read(kaggle())).problems[0].code == "E006"
    monkeypatch.setattr(files, "MAX_BYTES", len(WHOLE))
    assert_read(read(kaggle()))


def test_e007_gzip_bomb(read: Read, monkeypatch: pytest.MonkeyPatch) -> None:
    bomb = gzip.compress(text([HEADER]) + text([["0"] * 785]) * 1300)
    with monkeypatch.context() as patch:
        patch.setattr(files, "MAX_BYTES", 1 << 20)
        assert complaint(lambda: read(bomb)).problems[0].code == "E007"
    monkeypatch.setattr(files, "EXPANSION_FLOOR_BYTES", 1 << 20)
    error = complaint(lambda: read(bomb))
    assert error.problems[0].code == "E007"
    assert "times" in error.problems[0].found


@pytest.mark.parametrize(
    ("cells", "name", "code"),
    [(kaggle(), "nothing", "E026"), (kaggle(), "pixel3", "E026"), (rows(), "label", "E021")],
)
def test_named_label_absent(cells: Cells, name: str, code: str, read: Read) -> None:
    problem = complaint(lambda: read(cells, label_column=name)).problems[0]
    assert (problem.code, problem.line, problem.column) == (code, 1, None)


def before_the_end(monkeypatch: pytest.MonkeyPatch, action: Callable[[], object]) -> None:
    """Let something happen after a file was read and before its store appears."""
    whole = tables.read_csv

    def read(*args: object) -> object:
        content = whole(*args)
        action()
        return content

    monkeypatch.setattr(tables, "read_csv", read)


@pytest.mark.parametrize("how", ["append", "replace", "touch", "remove"])
def test_e041_changed_while_read(
    how: str, read: Read, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "train.csv"

    def change() -> None:
        if how == "append":
            with path.open("ab") as file:
                file.write(b"x")
        elif how == "replace":
            status = path.stat()
            other = tmp_path / "other"
            other.write_bytes(WHOLE)
            os.utime(other, ns=(status.st_atime_ns, status.st_mtime_ns))
            other.replace(path)
        elif how == "touch":
            os.utime(path, ns=(0, 0))
        else:
            path.unlink(missing_ok=True)

    before_the_end(monkeypatch, change)
    assert complaint(lambda: read(kaggle())).problems[0].code == "E041"
    assert list((tmp_path / "store").iterdir()) == []


def test_e041_rather_than_the_faults_of_a_half_written_file(
    read: Read, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = files.File.read_blocks

    def read_blocks(file: files.File, *size: int) -> object:
        with (tmp_path / "train.csv").open("ab") as stream:
            stream.write(b"7\n")
        return whole(file, *size)

    monkeypatch.setattr(files.File, "read_blocks", read_blocks)
    assert complaint(lambda: read(WHOLE[:-5])).problems[0].code == "E041"


def test_e044_no_room(read: Read, monkeypatch: pytest.MonkeyPatch) -> None:
    class Usage:
        free = 6 * 784

    monkeypatch.setattr(reader.shutil, "disk_usage", lambda folder: Usage)
    problem = complaint(lambda: read(kaggle())).problems[0]
    assert problem.code == "E044"
    assert problem.found.startswith("about 6 images")
    Usage.free = 6 * 792
    assert_read(read(kaggle()))


# -------------------------------------------------------------------- all faults of a file at once


def test_all_faults_in_file_order(read: Read) -> None:
    cells = kaggle()
    cells[5][9], cells[2][3], cells[2][1], cells[3] = "300", "nan", "-4", cells[3][:7]
    cells[1][0] = "Bag"  # known for a fault only at the end of the file
    error = complaint(lambda: read(cells))
    assert [(p.code, p.line, p.column, p.column_name) for p in error.problems] == [
        ("E027", 2, 1, "label"),
        ("E032", 3, 2, "pixel1"),
        ("E035", 3, 4, "pixel3"),
        ("E018", 4, None, None),
        ("E033", 6, 10, "pixel9"),
    ]
    assert error.totals.total() == 5


def test_the_first_faults_of_a_kind_then_the_count(read: Read) -> None:
    cells = [HEADER, *([row[0], *["256"] * 784] for row in rows())]
    cells[-1][-1] = "x"
    error = complaint(lambda: read(cells))
    assert [p.column for p in error.problems] == [2, 3, 4, 5, 6, 785]
    assert error.totals == {"E033": N * 784 - 1, "E031": 1}
    assert str(error).endswith(f"... and {N * 784 - 6:,} more E033")


def test_faults_before_a_broken_end(read: Read) -> None:
    big = text([HEADER, *rows() * 30])
    bad = big.replace(b"\n3,", b"\nnan,", 1)
    error = complaint(lambda: read(gzip.compress(bad, 0)[:-8]))
    assert [p.code for p in error.problems] == ["E027", "E008"]


def test_lines_count_across_blocks(read: Read) -> None:
    cells = [HEADER, *(list(row) for row in rows() * 60)]  # more than ten blocks
    cells[333][783] = "3OO"
    cells[300][5] = "12.0"  # accepted by the exact reader in the middle of plain blocks
    error = complaint(lambda: read(cells))
    assert [(p.code, p.line, p.column) for p in error.problems] == [("E031", 334, 784)]
    cells[333][783] = "30"
    table = read(cells)
    assert len(table.pixels) == 360
    assert table.pixels[299, 4] == 12
    assert table.pixels[332, 782] == 30


@pytest.mark.parametrize(("other", "is_scaled"), [("0.5", True), ("2", False), ("x", False)])
def test_scaled_pixels_are_named_only_if_all_are(other: str, is_scaled: bool, read: Read) -> None:
    cells = [list(row) for row in SCALED]
    cells[-1][5] = other
    problem = complaint(lambda: read(cells)).problems[0]
    assert (problem.code, "already scaled" in problem.hint) == ("E034", is_scaled)


def test_column_is_named_by_the_headers_own_spelling(read: Read) -> None:
    cells = with_column([[" Label", *NAMES], *rows()], 785, "ID", str)
    cells[2][784], cells[2][0] = "x", ""
    problems = complaint(lambda: read(cells)).problems
    assert [problem.column_name for problem in problems] == ["Label", "pixel784"]


def test_message_is_safe_to_print(tmp_path: Path, read: Read) -> None:
    cells = kaggle()
    cells[3][316] = "\x1b[31m" + "x" * 500
    message = str(complaint(lambda: read(cells)))
    assert "\x1b" not in message
    assert len(message) < 400 + len(str(tmp_path))


# ------------------------------------------------------------------------------------------ paths


def test_e042_same_file(tmp_path: Path) -> None:
    path = saved(WHOLE)(tmp_path)
    link = tmp_path / "link.csv"
    link.symlink_to(path)
    hard = tmp_path / "hard.csv"
    hard.hardlink_to(path)
    for other in (path, link, hard, tmp_path / "." / "train.csv"):
        assert complaint(lambda other=other: check_paths(path, other)).problems[0].code == "E042"
    copy = tmp_path / "copy.csv"
    copy.write_bytes(WHOLE)
    check_paths(path, copy)
    check_paths(path, tmp_path / "absent")


def test_e043_patterns(tmp_path: Path) -> None:
    for name in ("a_train.csv", "b[1].csv"):
        (tmp_path / name).touch()
    assert expand_path(tmp_path / "*_train.csv") == tmp_path / "a_train.csv"
    assert expand_path(tmp_path / "b[1].csv") == tmp_path / "b[1].csv"
    assert expand_path(tmp_path / "absent.csv") == tmp_path / "absent.csv"
    for bad in (tmp_path / "x*.csv", tmp_path / "*.csv", "\0*"):
        assert complaint(lambda bad=bad: expand_path(bad)).problems[0].code == "E043"


# --------------------------------------------------------------------------------------- the store


def store_of(folder: Path) -> Path:
    stores = list((folder / "store").iterdir())
    assert len(stores) == 1, stores
    return stores[0]


def test_store_is_reused(read: Read, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = read(kaggle())
    assert store_of(tmp_path).name.startswith(first.sha256)
    assert sorted(p.name for p in store_of(tmp_path).iterdir()) == [
        "DONE.json",
        "facts.json",
        "labels.bin",
        "pixels.bin",
    ]
    monkeypatch.setattr(files.File, "read_blocks", None)
    second = read(kaggle(), "renamed.csv")
    assert_read(second)
    assert second.path.endswith("renamed.csv")
    assert replace(second, path=first.path, pixels=0, label_index=0) == replace(
        first, pixels=0, label_index=0
    )
    with pytest.raises(TypeError):  # other bytes: the parser is asked
        read([HEADER, *rows()[:3]])


DAMAGES: dict[str, Callable[[bytes], bytes | None]] = {  # None: the file is gone
    "flipped": lambda content: content[:-1] + bytes([content[-1] ^ 1]),
    "cut": lambda content: content[:-2],
    "edited": lambda content: content.replace(b"0", b"1"),
    "empty": lambda content: b"",
    "a list": lambda content: b"[1]",
    "binary": lambda content: b"\xff\xfe",
    "gone": lambda content: None,
}


@pytest.mark.parametrize("name", ["pixels.bin", "labels.bin", "facts.json", "DONE.json", ""])
def test_damaged_store_is_made_again(
    name: str, read: Read, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read(kaggle())
    for damage in DAMAGES.values() if name else [lambda content: b"a file in its place"]:
        path = store_of(tmp_path) / name
        content = damage(path.read_bytes() if name else b"")
        shutil.rmtree(path) if path.is_dir() else path.unlink()
        if content is not None:
            path.write_bytes(content)
        assert_read(read(kaggle()))
        with monkeypatch.context() as patch:
            patch.setattr(files.File, "read_blocks", None)
            assert_read(read(kaggle()))


def test_other_process_publishes_first(
    read: Read, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inner: list[Table] = []

    def read_too() -> None:
        monkeypatch.undo()
        inner.append(read_csv(tmp_path / "train.csv", tmp_path / "store"))

    before_the_end(monkeypatch, read_too)
    outer = read(kaggle())
    assert_read(outer)
    assert_read(inner[0])
    store_of(tmp_path)


def test_disk_full_leaves_nothing(tmp_path: Path) -> None:
    path = saved([HEADER, *rows() * 40])(tmp_path)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        with pytest.raises(OSError, match="File too large"):
            read_csv(path, tmp_path / "store")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert list((tmp_path / "store").iterdir()) == []
    assert len(read_csv(path, tmp_path / "store").pixels) == 240


def test_leftovers_of_killed_processes(read: Read, tmp_path: Path) -> None:
    script = (
        "import os, sys\nfrom pathlib import Path\nfrom fmnist_tf.system.files import replacing\n"
        "with replacing(Path(sys.argv[1])) as folder:\n    folder.mkdir()\n    os._exit(1)\n"
    )
    subprocess.run([sys.executable, "-c", script, tmp_path / "store" / "old"])
    assert len(list((tmp_path / "store").iterdir())) == 1
    read(kaggle())
    store_of(tmp_path)
