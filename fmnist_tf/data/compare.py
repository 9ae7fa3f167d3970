"""Compare images with those a model was trained on; name what is different and what mends it.

A warning begins with its code:

    W050  negated: dark and bright are exchanged
    W051  another range of grey levels, such as 0..1 or 0..15
    W052  turned or mirrored; rows and columns exchanged, as in EMNIST's files
    W053  other things, or another mean image, for no reason above

Shape letters: N images, P prototypes, 784 pixels.
"""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fmnist_tf.data import IMAGE_SIZE
from fmnist_tf.data.images import PixelRows, read_blocks
from fmnist_tf.data.locate import PATTERN_END
from fmnist_tf.data.summary import DataSummary

RANGE_ENDS = (1, 15, 16, 31, 63, 100, 127, 255)
"""Largest grey levels that files are scaled to; scikit-learn's digits have 0..16."""
BRIGHT = 191
"""A median edge pixel from here on is a bright background."""
DRIFT_LEVELS = 16
"""Mean absolute difference of two mean images, in grey levels; Fashion-MNIST's parts have 0.5."""
DRIFT_IMAGES = 100
"""Fewer images than this have a mean image too noisy to compare."""

_SAMPLE = 500  # images compared
_MOST_PROTOTYPES = 2000
# The negation of other pictures fits no worse than they do: up to 0.15 better for photographs.
_CLEARLY_NEGATED = 0.25
# Turned images that fit the training images less than half as well as these do are others, whose
# orientation is unknown: photographs 0.3 of 0.8, MNIST beside scikit-learn's digits 0.52 of 0.89.
_RELATED = 0.5
# Images that fit so much worse show other things. Of 200 draws of 20 to 100 test images, half of
# one class only, none was below 0.745; MNIST is 0.59 beside garments, garments 0.66 beside digits.
_ALIKE = 0.7
_ALIKE_IMAGES = 20
_TURNS: tuple[tuple[str, str], ...] = (  # flags of `convert` that undo it; what it is
    ("", "as they are"),
    ("--transpose", "with rows and columns exchanged, as EMNIST's files need"),
    ("--flip-rows --flip-columns", "turned by 180 degrees"),
    ("--flip-rows", "with top and bottom exchanged"),
    ("--flip-columns", "with left and right exchanged"),
    ("--transpose --flip-rows", "turned by 90 degrees anticlockwise"),
    ("--transpose --flip-columns", "turned by 90 degrees clockwise"),
    ("--transpose --flip-rows --flip-columns", "mirrored at the other diagonal"),
)


def margin(n: int, n_train: int) -> float:
    """Return by how much the mean correlation of n images must rise before a fault is claimed.

    Of thousands of subsets of unaltered images the largest rise was 0.43 for 1 image, 0.09 for 5,
    0.035 for 20, below 0 from 100 on; exchanged rows and columns cost 0.15 to 0.6 (runs/LOG.md).
    """
    return float(0.02 + 0.45 / n**0.75 + 0.4 / max(n_train, 1) ** 0.5)


def transform(
    pixels: NDArray[np.uint8],
    *,
    scale: float = 1,
    negate: bool = False,
    transpose: bool = False,
    flip_rows: bool = False,
    flip_columns: bool = False,
) -> NDArray[np.uint8]:
    """Return images (N, 784) multiplied (and clipped to 255), negated, transposed, flipped.

    To negate is to subtract from the end of the range of grey levels, see `RANGE_ENDS`.
    """
    images = pixels.reshape(-1, IMAGE_SIZE, IMAGE_SIZE)
    if scale != 1:
        images = np.rint(np.clip(images * np.float32(scale), 0, 255)).astype(np.uint8)
    if negate:
        images = _range_end(int(images.max(initial=0))) - images
    images = images.swapaxes(1, 2) if transpose else images
    images = images[:, ::-1] if flip_rows else images
    images = images[:, :, ::-1] if flip_columns else images
    return np.ascontiguousarray(images).reshape(-1, IMAGE_SIZE**2)


def check_training(
    summary: DataSummary, background: int, path: str, label_column: str | None = None
) -> list[str]:
    """Return warnings if training images are negatives, or use a part of the grey range only.

    See `compare`; `background` is their median grey level at the edges.
    """
    problems, flags = [], ""
    peak = _peak(summary)
    end = _range_end(peak)
    if end < 255:
        text = f"no training pixel passes {peak}, as if scaled to 0..{end}; expected 0..255"
        problems.append(("W051", text))
        flags += f" --scale {255 / end:.6g}"
    if background * 255 / end >= BRIGHT:
        text = f"the training images have a bright background, {background}; expected a dark one"
        problems.append(("W050", text))
        flags += " --negate"
    return _format(problems, flags, path, label_column)


def compare(
    summary: DataSummary,
    pixels: PixelRows,
    path: str,
    labels: NDArray[np.int64] | None = None,
    label_column: str | None = None,
) -> list[str]:
    """Return warnings if images look unlike the training images, with what mends their file.

    Orientation and polarity are judged by each image's best correlation with the mean images and
    examples of the classes, which works for any mix of classes and from one image on.

    Args:
        summary: of the training images.
        pixels: (N, 784), the images to compare, N >= 1.
        path: their file.
        labels: (N,) indices of the training images' classes, -1 for others; None if not known.
        label_column: how the user named the file's label column, or None.
    """
    problems: list[tuple[str, str]] = []
    flags = ""
    peak, trained = max(int(block.max()) for block in read_blocks(pixels)), _peak(summary)
    # Less than half as bright as 999 of 1,000 draws of N training images, or twice as any.
    peaks = _examples(summary).max(axis=1, initial=0)
    usual = np.quantile(peaks, 0.001 ** (1 / len(pixels))) if len(peaks) else 0
    if peak and (2 * peak < usual or peak > 2 * trained > 0):
        text = f"no pixel passes {peak}, training images reach {trained}"
        problems.append(("W051", f"{text}, as if scaled to 0..{_range_end(peak)}"))
        flags += f" --scale {_range_end(trained) / _range_end(peak):.6g}"
    n = min(len(pixels), _SAMPLE)
    rows = np.sort(np.random.default_rng(0).choice(len(pixels), n, replace=False))
    fits, own = _fit(summary, pixels[rows])
    rise = margin(n, int(summary.train_counts.sum()))
    negated = int(fits[1].max() > fits[0].max() + max(rise, _CLEARLY_NEGATED))
    turn = int(fits[negated].argmax())
    gain = f"mean correlation {fits[negated, turn]:.2f} instead of {fits[0, 0]:.2f}"
    if negated:
        problems.append(("W050", f"they fit the training images better negated ({gain})"))
        flags += " --negate"
    if fits[negated, turn] > max(fits[negated, 0] + rise, _RELATED * own):
        flag, how = _TURNS[turn]
        problems.append(("W052", f"they fit the training images better {how} ({gain})"))
        flags += f" {flag}"
    if not problems and n >= _ALIKE_IMAGES and fits[0, 0] < _ALIKE * own:
        text = "they look unlike the training images, whatever is done with them"
        found = f"mean correlation {fits[0, 0]:.2f}, training images {own:.2f}"
        problems.append(("W053", f"{text} ({found})"))
    if not problems and labels is not None:
        known = rows[np.isin(labels[rows], np.flatnonzero(summary.train_counts))]
        if min(len(known), summary.train_counts.sum()) >= DRIFT_IMAGES:
            expected = summary.mean_images[labels[known]].mean(axis=0)
            levels = np.abs(pixels[known].mean(axis=0) - expected).mean()
            if levels > DRIFT_LEVELS:
                text = f"the mean image is {levels:.0f} grey levels away from the training images'"
                problems.append(("W053", text))
    return _format(problems, flags, path, label_column)


def _format(
    problems: list[tuple[str, str]], flags: str, path: str, label_column: str | None
) -> list[str]:
    lines = [f"{code} {path}: {text}" for code, text in problems]
    if flags:
        end = rf"{PATTERN_END.pattern}|(\.\w{{1,7}}){{1,2}}$"
        mended = re.sub(end, "", Path(path).name) + "-mended.csv"
        named = ["--label-column", label_column] if label_column else []
        command = f"python -m fmnist_tf.convert {shlex.join([path, mended, *named])}{flags}"
        lines[-1] += f". The file is used as it is; to mend it: {command}"
    return lines


def _range_end(peak: int) -> int:
    return next(end for end in RANGE_ENDS if end >= peak)


def _peak(summary: DataSummary) -> int:
    return int(np.flatnonzero(summary.histogram).max(initial=0))


def _examples(summary: DataSummary) -> NDArray[np.uint8]:
    """Return the training examples (P, 784), without places that a small class leaves empty."""
    places = np.arange(summary.examples.shape[1])
    return np.asarray(summary.examples[places < summary.train_counts[:, np.newaxis]])


def _fit(summary: DataSummary, pixels: NDArray[np.uint8]) -> tuple[NDArray[np.float64], float]:
    """Return the images' mean best correlation with a prototype, and the training images' own.

    The first is (2, 8): as they are and negated, for each of `_TURNS`.
    """
    means = _normalize(summary.mean_images)
    examples = _normalize(_examples(summary))
    prototypes = np.concatenate([means, examples])[:_MOST_PROTOTYPES]
    fits = np.zeros((2, len(_TURNS)))
    for number, (flags, _) in enumerate(_TURNS):
        options = {flag[2:].replace("-", "_"): True for flag in flags.split()}
        correlations = _normalize(transform(pixels, **options)) @ prototypes.T
        if correlations.size:
            fits[:, number] = correlations.max(axis=1).mean(), -correlations.min(axis=1).mean()
    return fits, float((examples @ means.T).max(axis=1).mean()) if len(examples) else 0


def _normalize(images: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Return images less their mean, at unit length; constant images are left out."""
    images = images.astype(np.float32)
    images = images - images.mean(axis=1, keepdims=True)
    lengths = np.linalg.norm(images, axis=1, keepdims=True)
    varies = lengths[:, 0] > 1e-3
    return images[varies] / lengths[varies]
