"""An object comes out of its surroundings as it does out of a plain picture, or a warning says so.

The digits are scikit-learn's, drawn with a pen; the garment is a shirt with a print.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from conftest import SHARED
from PIL import Image, ImageDraw, ImageFont
from scipy import ndimage
from sklearn.datasets import load_digits

from fmnist_tf.data.convention import Convention
from fmnist_tf.data.photos import Picture, read_picture

MNIST = Convention(0, 20, "mass", 7, (0.05, 0.23))
FASHION = Convention(0, 28, "box", 19, (0.06, 0.57))
PICTURES = SHARED / "cases/pictures"

Draw = Callable[[np.ndarray], np.ndarray]


def digit(number: int) -> np.ndarray:
    """Return a digit (256, 256) 0..1."""
    levels = Image.fromarray(load_digits().images[number].astype(np.float32) * 16)
    large = np.asarray(levels.resize((192, 192), Image.Resampling.BICUBIC))
    return np.pad(np.clip((large - 80) / 60, 0, 1), 32)


def shirt() -> np.ndarray:
    """Return a shirt (256, 256) 0..1, with a dark print, whose sleeves and hem touch the border."""
    image = Image.new("L", (256, 256))
    draw = ImageDraw.Draw(image)
    outline = (80, 10, 110, 25, 146, 25, 176, 10, 255, 60, 255, 110, 190, 90)
    draw.polygon([*outline, 190, 255, 66, 255, 66, 90, 0, 110, 0, 60], 170)
    draw.rectangle((100, 90, 156, 130), 255)
    draw.rectangle((115, 100, 140, 120), 60)
    return np.asarray(image, np.float32) / 255


def plain(shape: np.ndarray, ground: float = 240, ink: float = 40, margin: int = 20) -> np.ndarray:
    return ground + (ink - ground) * np.pad(shape, margin)


def on_a_desk(shape: np.ndarray) -> np.ndarray:
    picture = np.random.default_rng(0).normal(70, 4, (460, 420))
    picture[60:356, 50:346] = plain(shape)
    return picture


def on_a_tilted_sheet(shape: np.ndarray) -> np.ndarray:
    sheet = (
        Image.fromarray(plain(shape).astype(np.uint8))
        .convert("LA")
        .rotate(6, Image.Resampling.BICUBIC, expand=True)
    )
    desk = Image.new("L", (430, 440), 80)
    desk.paste(sheet.getchannel(0), (40, 50), sheet.getchannel(1))
    return np.asarray(desk, np.float32)


def framed(shape: np.ndarray, distance: int = 0, width: int = 3) -> np.ndarray:
    picture = plain(shape, margin=30)
    mask = np.zeros(picture.shape, bool)
    mask[distance : len(mask) - distance, distance : len(mask) - distance] = True
    picture[mask & ~ndimage.binary_erosion(mask, iterations=width)] = 0
    return picture


def with_a_strip(shape: np.ndarray) -> np.ndarray:
    picture = plain(shape)
    picture[:, :14] = 90
    return picture


def with_a_shadow(shape: np.ndarray) -> np.ndarray:
    picture = plain(shape, margin=40)
    y, x = np.mgrid[: len(picture), : len(picture)]
    shadow = np.hypot(y - len(picture), x - len(picture)) < 0.38 * len(picture)
    return picture * (1 - 0.45 * ndimage.gaussian_filter(shadow.astype(float), 2))


def in_axes(shape: np.ndarray) -> np.ndarray:
    """Return what matplotlib's imshow(shape, cmap="gray") makes: ticks and their labels."""
    picture = np.full((420, 420), 255.0)
    picture[70:330, 80:340] = 0
    picture[72:328, 82:338] = 255 * shape
    image = Image.fromarray(picture.astype(np.uint8))
    draw = ImageDraw.Draw(image)
    for k in range(0, 256, 50):
        draw.line((82 + k, 330, 82 + k, 334), 0)
        draw.line((76, 72 + k, 80, 72 + k), 0)
        draw.text((76 + k, 338), str(k), 0)
        draw.text((52, 66 + k), str(k), 0)
    return np.asarray(image, np.float32)


def dated(shape: np.ndarray) -> np.ndarray:
    image = Image.fromarray(plain(shape, margin=40).astype(np.uint8))
    ImageDraw.Draw(image).text((236, 308), "2026-11-27", 110, ImageFont.load_default(16))
    return np.asarray(image, np.float32)


def watermarked(shape: np.ndarray) -> np.ndarray:
    mark = Image.new("L", (296, 296))
    ImageDraw.Draw(mark).text((10, 120), "SAMPLE", 40, ImageFont.load_default(70))
    return plain(shape) - np.asarray(mark.rotate(20), np.float32)


SURROUNDINGS: dict[str, Draw] = {
    "black border": framed,
    "frame": lambda shape: framed(shape, 8),
    "white on black": lambda shape: plain(shape, 10, 240),
    **{
        draw.__name__: draw
        for draw in (on_a_desk, on_a_tilted_sheet, with_a_strip, with_a_shadow, in_axes, dated)
    },
}


def read(folder: Path, levels: np.ndarray, convention: Convention) -> Picture:
    path = folder / "a.png"
    Image.fromarray(np.clip(levels, 0, 255).astype(np.uint8)).save(path)
    return read_picture(path, convention)


def distance(a: Picture, b: Picture) -> float:
    """Return 1 minus the correlation of the pixels, at best after a shift by one pixel."""
    image = a.pixels.reshape(28, 28)
    shifted = [np.roll(image, (y, x), (0, 1)).ravel() for y in (-1, 0, 1) for x in (-1, 0, 1)]
    return 1 - max(float(np.corrcoef(each, b.pixels)[0, 1]) for each in shifted)


@pytest.fixture(scope="module")
def plain_digits(tmp_path_factory: pytest.TempPathFactory) -> list[Picture]:
    folder = tmp_path_factory.mktemp("digits")
    return [read(folder, plain(digit(number)), MNIST) for number in range(10)]


@pytest.mark.parametrize("draw", [*SURROUNDINGS.values(), watermarked], ids=[*SURROUNDINGS, "mark"])
def test_digits_come_out_of_their_surroundings(
    tmp_path: Path, plain_digits: list[Picture], draw: Draw
) -> None:
    silent = 0
    for number, expected in enumerate(plain_digits):
        assert not expected.warnings
        found = read(tmp_path, draw(digit(number)), MNIST)
        bound = 0.15 if draw is on_a_tilted_sheet else 0.06
        assert found.warnings or distance(found, expected) < bound
        silent += not found.warnings
    assert silent >= 9


@pytest.mark.parametrize("draw", SURROUNDINGS.values(), ids=SURROUNDINGS)
def test_a_shirt_comes_out_of_its_surroundings(tmp_path: Path, draw: Draw) -> None:
    expected = read(tmp_path, plain(shirt(), margin=0), FASHION)
    assert not expected.warnings
    found = read(tmp_path, draw(shirt()), FASHION)
    assert found.warnings or distance(found, expected) < 0.06


@pytest.mark.parametrize("centring", ["box", "mass"])
def test_what_lies_in_the_middle_is_the_conventions(tmp_path: Path, centring: str) -> None:
    shape = np.zeros((256, 256))
    shape[20:236, 40:60] = shape[200:236, 40:200] = 1  # an L
    image = read(tmp_path, plain(shape), Convention(0, 20, centring, 7, (0.0, 1.0))).pixels
    y, x = np.nonzero(image.reshape(28, 28) > 12)
    assert max(np.ptp(y), np.ptp(x)) == pytest.approx(19, abs=1)
    middle = {"box": (np.min(y) + np.max(y)) / 2, "mass": np.mean(y)}
    assert middle[centring] == pytest.approx(14, abs=0.6)
    assert abs(middle["mass"] - middle["box"]) > 1.5


@pytest.mark.parametrize(("drift", "column"), [(0.4, 9), (3.0, 11), (1.5, 9)])
def test_an_object_keeps_its_place_where_training_objects_drift(
    tmp_path: Path, drift: float, column: int
) -> None:
    shape = np.zeros((280, 280))
    shape[:, 110:210] = 1  # 28 x 10 pixels, 2 to the right of the middle
    convention = Convention(0, 28, "box", 28, (0.0, 1.0), drift)
    image = read(tmp_path, plain(shape, margin=0), convention).pixels.reshape(28, 28)
    assert np.flatnonzero(image[14])[0] == column


def test_a_garment_beside_a_shadow_is_doubtful(tmp_path: Path) -> None:
    assert "shadow" in read(tmp_path, with_a_shadow(shirt()), FASHION).warnings[0]
    assert not read(tmp_path, with_a_shadow(digit(3)), MNIST).warnings


def test_pieces_near_the_object_are_kept_and_far_ones_dropped(tmp_path: Path) -> None:
    shape = np.zeros((256, 256))
    shape[120:220, 60:160] = 1
    whole = read(tmp_path, plain(shape), FASHION)
    shape[108:114, 80:140] = 1  # a strap
    near = read(tmp_path, plain(shape), FASHION)
    assert near.pixels.reshape(28, 28)[0].any()
    assert not near.pixels.reshape(28, 28)[2, 14]
    assert not near.warnings
    shape[:120] = 0
    shape[5:9, 5:15] = 1
    assert distance(read(tmp_path, plain(shape), FASHION), whole) < 0.01
    shape[3:70, 195:256] = 1
    assert "far from it" in read(tmp_path, plain(shape), FASHION).warnings[0]


@pytest.mark.parametrize(
    ("name", "doubt"),
    [("a sheet", "thick"), ("a corner", "corner"), ("noise", "background"), ("a dot", "small")],
)
def test_a_doubt_becomes_a_warning(tmp_path: Path, name: str, doubt: str) -> None:
    picture = np.full((300, 300), 240.0)
    if name == "a sheet":
        picture[50:250, 60:240] = 30
    elif name == "a corner":
        picture[250:, 220:] = 30
    elif name == "a dot":
        picture[140:148, 140:147] = 30
    else:
        picture = np.random.default_rng(0).uniform(0, 255, (12, 12)).repeat(25, 0).repeat(25, 1)
    assert doubt in read(tmp_path, picture, FASHION if name == "noise" else MNIST).warnings[0]


@functools.cache
def read_shared(kind: str, number: int) -> Picture:
    return read_picture(next((PICTURES / kind).glob(f"{number}.*")), MNIST)


@pytest.mark.slow
@pytest.mark.real
@pytest.mark.skipif(not PICTURES.is_dir(), reason=f"no {PICTURES}")
@pytest.mark.parametrize("kind", sorted(path.name for path in PICTURES.glob("*")) or ["none"])
def test_shared_pictures_come_out_as_the_plain_ones(kind: str) -> None:
    good = 0
    for number in range(10):
        expected, found = read_shared("plain", number), read_shared(kind, number)
        good += bool(found.warnings) or distance(expected, found) < 0.08
    assert good >= 9
