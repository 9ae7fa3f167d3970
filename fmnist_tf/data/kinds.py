"""What a file is, by its first bytes, and what to do with one that is no table of images."""

from __future__ import annotations

import json
import os
import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

from fmnist_tf.errors import DataError, file_error

HEAD_BYTES = 512
"""`recognise` needs this many, or the whole file."""


@dataclass(frozen=True)
class Kind:
    """A format of files.

    Attributes:
        form: "text", or what reads it: "gzip", "bzip2", "xz", "zip", "idx", "idx labels", "npy",
            "npz", "parquet", "picture"; "other" if nothing here does.
        name: with its article, for messages.
        hint: what to do where it is not wanted. What follows "python: " are statements of Python,
            with PATH for the file, CSV and PNG for what they write.
    """

    form: str
    name: str
    hint: str

    def refuse(self, path: str | os.PathLike[str], expected: str = "a CSV of images") -> DataError:
        """Return the error E009 of a file that is of this kind and should be `expected`."""
        path = os.fspath(path)
        hint, _, code = self.hint.partition("python: ")
        hint = hint.replace("PATH", shlex.quote(path))
        if code:
            files = {"PATH": path, "CSV": f"{path}.csv", "PNG": f"{path}.png"}
            quoted = {name: json.dumps(file, ensure_ascii=False) for name, file in files.items()}
            code = re.sub("PATH|CSV|PNG", lambda word: quoted[word[0]], code)
            hint += f"python -c {shlex.quote(code)}"
        return file_error("E009", path, self.name, expected, hint)


TEXT = Kind("text", "text", "")
_other = partial(Kind, "other")

_PANDAS = "pip install {}; python: import pandas; pandas.read_{}(PATH{}).to_csv(CSV, index=False{})"
_EXCEL = "excel", ", header=None", ", header=False"
_UNPACK = "unpack it, and name the file or folder inside"
_SAVE = "write its labels (N,) and its pixels (N, 784) with numpy.savetxt('my.csv', " + (
    "numpy.column_stack([labels, pixels]), fmt='%d', delimiter=',')"
)
_HDF5 = f"open it with h5py, and {_SAVE}"
_PICTURE = "put pictures into one folder for each class and name the folder above them"
_HEIC = (
    "pip install pillow-heif; python: import PIL.Image, pillow_heif; "
    'pillow_heif.register_heif_opener(); PIL.Image.open(PATH).convert("RGB").save(PNG)'
)

ZIP = Kind("zip", "a zip archive", _UNPACK)
_KINDS = {
    rb"\x1f\x8b": Kind("gzip", "a gzip file", _UNPACK),
    rb"BZh[1-9]": Kind("bzip2", "a bzip2 file", _UNPACK),
    rb"\xfd7zXZ\0": Kind("xz", "an xz file", _UNPACK),
    rb"PK\x03\x04|PK\x05\x06": ZIP,
    rb"\0\0[\x08-\x0e][\x03\x04]": Kind("idx", "an IDX image file", "name it with --data"),
    rb"\0\0[\x08-\x0e][\x01\x02]": Kind("idx labels", "an IDX label file",
        "name the image file, and this one with --labels if its name does not tell"),
    rb"\0{64}": _other("a file of NUL bytes alone", "a broken copy: fetch it again"),
    rb"PAR1": Kind("parquet", "a Parquet file", _PANDAS.format("pyarrow", "parquet", "", "")),
    rb"\x93NUMPY": Kind("npy", "a NumPy array", "python: import numpy; a = numpy.load(PATH); "
        "numpy.savetxt(CSV, a.reshape(len(a), -1), fmt=\"%d\", delimiter=\",\")"),
    rb"\xd0\xcf\x11\xe0": _other("an Excel workbook (xls)", _PANDAS.format("xlrd", *_EXCEL)),
    rb"MATLAB 5\.0": _other("a MATLAB file (MAT version 5)",
        f"open it with scipy.io.loadmat, and {_SAVE}"),
    rb"MATLAB 7\.3": _other("a MATLAB file (MAT version 7.3, which is HDF5)", _HDF5),
    rb"\x89HDF": _other("an HDF5 file", _HDF5),
    rb"\x80[\x02-\x05]": _other("a Python pickle", "a pickle can run any code when it is "
        f"opened; if you trust it, open it with pickle.load, and {_SAVE}"),
    rb"ARROW1": _other("an Arrow file (Feather)", _PANDAS.format("pyarrow", "feather", "", "")),
    rb"RD[AX][23]\n": _other("an R data file", "in R, write.csv(x, 'my.csv', row.names = FALSE)"),
    rb".{257}ustar": _other("a tar archive", f"{_UNPACK}: tar -xf PATH"),
    rb"Rar!\x1a\x07": _other("a RAR archive", _UNPACK),
    rb"7z\xbc\xaf\x27\x1c": _other("a 7z archive", _UNPACK),
    rb"\x28\xb5\x2f\xfd": _other("a Zstandard file", _UNPACK),
    rb"SQLite format 3": _other("an SQLite database", "export the table as CSV"),
    rb"%PDF": _other("a PDF", "export its table as CSV"),
    rb"version https://git-lfs": _other("a Git LFS pointer, not the file it points to",
        "fetch the file with: git lfs pull"),
    rb"\x89PNG": Kind("picture", "a PNG image", _PICTURE),
    rb"\xff\xd8\xff": Kind("picture", "a JPEG image", _PICTURE),
    rb"GIF8": Kind("picture", "a GIF image", _PICTURE),
    rb"II\*\0|MM\0\*": Kind("picture", "a TIFF image", _PICTURE),
    rb"RIFF.{4}WEBP": Kind("picture", "a WebP image", _PICTURE),
    rb"BM.{4}\0{4}": Kind("picture", "a BMP image", _PICTURE),
    rb".{4}ftyp": _other("a HEIC or AVIF image, or a video", _HEIC),
    rb"(?i)\s*(?:<\?xml[^>]*>)?\s*(?:<!--.*?-->|<!doctype svg[^>]*>|\s)*<svg": _other(
        "an SVG drawing", "open it in a browser, and save a picture of the screen as PNG"),
    rb"(?i)\s*(?:<!doctype|<html|<\?xml|<head|<body)": _other("looks like HTML",
        "an error page was saved in place of the file: fetch it again"),
}  # fmt: skip
_PATTERNS = [(re.compile(pattern, re.DOTALL), kind) for pattern, kind in _KINDS.items()]

_EXCEL_ZIP = _other("an Excel workbook (xlsx)", _PANDAS.format("openpyxl", *_EXCEL))
_OFFICE_ZIP = _other("an office document", "export the table as CSV")
_NPZ = Kind("npz", "a file of NumPy arrays (npz)", f"open it with numpy.load, and {_SAVE}")


def recognise(head: bytes) -> Kind:
    """Return the kind of a file with these first bytes; `TEXT` if they are of no known format."""
    unknown = TEXT if head else Kind("text", "an empty file (0 bytes)", "")
    return next((kind for pattern, kind in _PATTERNS if pattern.match(head)), unknown)


def recognise_zip(names: Sequence[str]) -> Kind:
    """Return the kind of a zip archive with these members: `ZIP`, "npz", or an office document."""
    if any(name.startswith("xl/") for name in names):
        return _EXCEL_ZIP
    if any(name in ("[Content_Types].xml", "content.xml") for name in names):
        return _OFFICE_ZIP
    return _NPZ if names and all(name.endswith(".npy") for name in names) else ZIP
