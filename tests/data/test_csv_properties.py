"""What holds of every CSV: round trips, no other error, the fast and the exact reader agree."""

from __future__ import annotations

import csv
import gzip
import io
import itertools
import tempfile
from dataclasses import replace
from pathlib import Path

import hypothesis.extra.numpy as hnp
import numpy as np
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from fmnist_tf.data.csv.cells import label_text, split_line
from fmnist_tf.data.images import Table
from fmnist_tf.data.tables import read_table as read_csv
from fmnist_tf.errors import DataError

# Examples read and write files, so a busy disk must not fail one.
few = settings(deadline=None, max_examples=15)
many = settings(deadline=None, max_examples=50)

NAMES = [f"pixel{i}" for i in range(1, 785)]


def read_bytes(content: bytes, label_column: str | None = None) -> Table:
    """Read from a fresh folder; the arrays are copied out of the store."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "x.csv")
        path.write_bytes(content)
        table = read_csv(path, Path(folder, "store"), label_column=label_column)
        index = None if table.label_index is None else np.array(table.label_index)
        return replace(table, pixels=np.array(table.pixels), label_index=index)


def outcome(content: bytes) -> object:
    """What reading shows, without the decisions: the table, or the problems."""
    try:
        table = read_bytes(content)
    except DataError as error:
        return [(p.code, p.line, p.column, p.found, p.hint) for p in error.problems], error.totals
    labels = None if table.label_index is None else table.label_index.tolist()
    return table.pixels.tobytes(), labels, table.label_values, table.first_line


matrices = hnp.arrays(
    np.uint8, st.tuples(st.integers(3, 5), st.just(784)), elements=st.integers(0, 255)
)
numbers = st.integers(-(2**63) + 1, 2**63 - 1).map(str)
names = st.text(min_size=1, max_size=12).filter(
    lambda name: (
        label_text(name.encode("utf-8", "replace").decode()) == name
        and not name.startswith("#")
        and not name.lstrip("+-").isdecimal()
    )
)


@st.composite
def tables(draw: st.DrawFn) -> tuple[np.ndarray, list[str] | None, bytes, int, bool]:
    """Pixels, labels, the CSV, the line of row 0, and whether the label is the first column."""
    pixels = draw(matrices)
    kind = draw(st.sampled_from(["numbers", "names", "none"]))
    has_header = draw(st.booleans())
    # Without a header a number in the last column is taken for a pixel, as it should.
    is_last = draw(st.booleans()) and (has_header or kind == "names")
    labels = None
    if kind != "none":
        one = numbers if kind == "numbers" else names
        labels = draw(st.lists(one, min_size=len(pixels), max_size=len(pixels)))
    text = io.StringIO(newline="")
    end = draw(st.sampled_from(["\n", "\r\n"]))
    writer = csv.writer(text, lineterminator=end, quoting=draw(st.sampled_from([0, 1])))
    if has_header:
        label = [] if labels is None else ["label"]
        writer.writerow([*NAMES, *label] if is_last else [*label, *NAMES])
    for i, row in enumerate(pixels.tolist()):
        label = [] if labels is None else [labels[i]]
        writer.writerow([*row, *label] if is_last else [*label, *row])
    content = text.getvalue()
    if draw(st.booleans()):
        content = content.removesuffix(end)
    data = draw(st.sampled_from([b"", b"\xef\xbb\xbf"])) + content.encode()
    if draw(st.booleans()):
        data = gzip.compress(data, 1)
    return pixels, labels, data, 1 + has_header, labels is not None and not is_last


@few
@given(tables())
def test_round_trip(case: tuple[np.ndarray, list[str] | None, bytes, int, bool]) -> None:
    pixels, labels, content, first_line, is_first = case
    # Three rows of noise tell nobody which column is the label.
    table = read_bytes(content, "first" if first_line == 1 and is_first else None)
    np.testing.assert_array_equal(table.pixels, pixels)
    assert table.first_line == first_line
    if labels is None:
        assert table.label_index is None
        return
    assert [table.label_values[i] for i in table.label_index] == labels
    by_value = [str(n) for n in sorted({int(x) for x in labels})] if labels[0].lstrip(
        "-").isdecimal() else sorted(set(labels))  # fmt: skip
    assert list(table.label_values) == by_value


VALID = "".join(
    ",".join(line) + "\n"
    for line in [["label", *NAMES], *([str(i), *["7"] * 392, *["255"] * 392] for i in range(3))]
).encode()
pieces = st.one_of(
    st.binary(max_size=300),
    st.sampled_from([b"\n", b"\r\n", b"\r", b",", b'"', b"\0", b"1,", b"\x1f\x8b\x08", b";", b"#"]),
    st.text(max_size=50).map(str.encode),
)


@st.composite
def wild_bytes(draw: st.DrawFn) -> bytes:
    """Up to 64 kB: noise, repeated noise, or a valid file cut and patched."""
    if draw(st.booleans()):
        content = draw(st.sampled_from([VALID, VALID[VALID.index(b"\n") + 1 :]]))
        for _ in range(draw(st.integers(1, 3))):
            start = draw(st.integers(0, len(content)))
            length = draw(st.sampled_from([0, 1, 2, 100, 3000]))
            content = content[:start] + draw(pieces) + content[start + length :]
    else:
        content = b"".join(draw(st.lists(pieces, max_size=8)))
        content *= draw(st.sampled_from([1, 1, 2, 785, 3000]))
    content = content[:65536]
    if draw(st.integers(0, 3)) == 0:
        packed = gzip.compress(content, 1)
        content = packed[: draw(st.integers(len(packed) - 12, len(packed)))]
    return content


@many
@given(wild_bytes())
def test_any_bytes_give_arrays_or_the_one_error(content: bytes) -> None:
    try:
        table = read_bytes(content)
    except DataError as error:
        problems, total, message = error.problems, error.totals.total(), str(error)
    else:
        assert table.pixels.dtype == np.uint8
        assert table.pixels.shape[1:] == (784,)
        assert len(table.pixels) >= 1
        if table.label_index is not None:
            assert set(table.label_index.tolist()) == set(range(len(table.label_values)))
        return
    assert 1 <= len(problems) <= total
    assert message.count("error[E") == len(problems)


CELLS = st.sampled_from(
    ["0", "7", "42", "255", "007", "0000", "0255", "+7", " 7", "7 ", "\t7", '"7"', "12.0", "12.",
     "256", "-0", "1_0", "٧", "", '"', "1 ", "2\r", "\r7", "1e1"]
)  # fmt: skip
LABEL_CELLS = st.sampled_from(["0", "5", "05", "-3", " 5", '"5"', "5.0", "Bag", '"a,b"', "#", ""])


@st.composite
def tolerant_files(draw: st.DrawFn) -> bytes:
    """Files near the border of the grammar, in which most cells are plain."""
    n = draw(st.integers(1, 4))
    lines = []
    for _ in range(n):
        cells = ["3", *["17"] * 784]
        for _ in range(draw(st.integers(0, 2))):
            cells[draw(st.integers(1, 784))] = draw(CELLS)
        if draw(st.integers(0, 2)) == 0:
            cells[0] = draw(LABEL_CELLS)
        lines.append(",".join(cells))
    end = draw(st.sampled_from(["\n", "\r\n"]))
    header = [",".join(["label", *NAMES])] * draw(st.booleans())
    return (end.join([*header, *lines]) + end * draw(st.booleans())).encode()


@few
@given(tolerant_files())
def test_plain_and_exact_reader_agree(content: bytes) -> None:
    """A quote makes the reader scan the file cell by cell; it changes nothing else."""
    assume(b'"' not in content)
    assert outcome(content) == outcome(content.replace(b",17,", b',"17",', 1))


def test_every_short_line_is_split_as_by_the_csv_module() -> None:
    for length in range(1, 8):
        for letters in itertools.product('a",', repeat=length):
            line = "".join(letters)
            try:
                expected = next(csv.reader([line], strict=True))
            except csv.Error:
                expected = None
            cells = split_line(line.encode())
            if isinstance(cells, list):
                assert cells == expected, line
            elif cells.code == "E038":
                assert expected is None, line
            else:
                assert (cells.code, set(line)) == ("E039", {","})
