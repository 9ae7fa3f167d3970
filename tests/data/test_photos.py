"""Pictures of any size, colour and background are converted to what the training data hold."""

from __future__ import annotations

import gzip
import io
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from fmnist_tf.data import photos
from fmnist_tf.data.convention import Convention
from fmnist_tf.data.photos import read_picture
from fmnist_tf.errors import UsageError

COLOURS = {  # background, object
    "black on white": ((255, 255, 255), (0, 0, 0)),
    "white on black": ((0, 0, 0), (255, 255, 255)),
    "navy on sky": ((190, 215, 245), (20, 20, 70)),
    "yellow on maroon": ((90, 10, 30), (255, 240, 120)),
}
BOX = (slice(40, 160), slice(120, 180))  # of the object: 60 wide, 120 high
SHAPE = np.zeros((200, 300), np.float32)
SHAPE[BOX] = 1
SHAPE[100:160, 120:180] = 0.6


def paint(
    shape: np.ndarray, kind: str, *, noise: float = 0, vignette: float = 0, seed: int = 0
) -> Image.Image:
    """Return a colour picture of the shape (H, W) 0..1; a vignette darkens to the corners."""
    background, thing = (np.array(colour, np.float32) for colour in COLOURS[kind])
    levels = background + (thing - background) * shape[..., None]
    y, x = (np.linspace(-1, 1, side) for side in shape.shape)
    levels *= 1 - vignette * (np.add.outer(y**2, x**2) / 2)[..., None]
    levels += np.random.default_rng(seed).normal(0, noise, levels.shape) if noise else 0
    return Image.fromarray(np.clip(levels, 0, 255).astype(np.uint8))


@pytest.fixture
def convert(tmp_path: Path) -> Callable[..., np.ndarray]:
    """Save a picture and read it back for a run as an image (28, 28) int64."""

    def convert(
        image: Image.Image, name: str = "a.png", background: int = 0, side: int = 28, **words
    ) -> np.ndarray:
        image.save(tmp_path / name, **words)
        pixels, _, _ = read_picture(tmp_path / name, Convention(background, side))
        assert (pixels.shape, pixels.dtype) == ((784,), np.uint8)
        return pixels.reshape(28, 28).astype(np.int64)

    return convert


@pytest.mark.parametrize("kind", COLOURS)
@pytest.mark.parametrize(
    ("name", "noise", "vignette"), [("a.png", 0, 0), ("a.jpg", 8, 0), ("a.jpg", 4, 0.25)]
)
def test_the_object_is_bright_on_zero(convert, kind: str, name: str, noise, vignette) -> None:
    words = {"quality": 70} if name == "a.jpg" else {}
    image = convert(paint(SHAPE, kind, noise=noise, vignette=vignette), name, **words)
    occupied = np.flatnonzero(image.any(axis=0))
    assert 7 <= occupied[0] <= 8
    assert 20 <= occupied[-1] <= 21
    assert image.any(axis=1).all()
    upper, lower = image[3:11, 10:18], image[17:25, 10:18]
    assert np.median(upper) > 170
    assert 0.4 < np.median(lower) / np.median(upper) < 0.75


def test_the_run_decides_polarity_and_size(convert) -> None:
    picture = paint(SHAPE, "white on black")
    image = convert(picture, background=255, side=20)
    assert image[0].min() == image[:, 0].min() == 255
    assert np.median(image[8:12, 12:16]) < 40
    assert np.flatnonzero((image < 250).any(axis=1)).tolist() == list(range(4, 24))
    assert np.median(convert(picture, background=30)[:, 0]) == 30


def test_without_a_clear_background_the_whole_picture_is_used(convert) -> None:
    image = convert(paint(SHAPE, "white on black"), background=127)
    assert set(image[0]) == {127}  # 28 x 19 pixels, extended
    assert image[14, 14] > 200
    halves = np.repeat([0, 255], 50).astype(np.uint8)[None].repeat(60, axis=0)
    image = convert(Image.fromarray(halves))
    assert image[10, :10].max() == 0
    assert image[10, 18:].min() == 255


def test_what_was_done_is_described(tmp_path: Path) -> None:
    paint(SHAPE, "navy on sky").save(tmp_path / "a.png")
    decisions = read_picture(tmp_path / "a.png", Convention(0, 28)).notes
    assert decisions[:2] == ("300x200 pixels", "colour converted to grey")
    for fact in ("20% of its width and 60% of its height", "211 of 255", ", negated"):
        assert fact in decisions[2]


def test_a_grey_28x28_picture_is_used_unchanged_or_negated(convert) -> None:
    expected = np.zeros((28, 28), np.uint8)
    expected[1:9, 3:20] = np.random.default_rng(0).integers(0, 255, (8, 17))
    for image in (Image.fromarray(expected), Image.fromarray(expected).convert("RGB")):
        np.testing.assert_array_equal(convert(image), expected)
        np.testing.assert_array_equal(convert(image, background=255), 255 - expected)
    np.testing.assert_array_equal(convert(Image.fromarray(255 - expected)), expected)


def test_colour_becomes_grey_by_itu_r_601(convert) -> None:
    levels = np.zeros((56, 56, 3), np.uint8)
    levels[14:28, 14:42], levels[28:42, 14:42] = (255, 0, 0), (0, 255, 0)
    image = convert(Image.fromarray(levels))
    assert np.median(image[3:12, 3:25]) == pytest.approx(0.299 * 255, abs=2)
    assert np.median(image[17:25, 3:25]) == pytest.approx(0.587 * 255, abs=2)


def test_transparent_parts_become_background(convert) -> None:
    rgba = np.zeros((*SHAPE.shape, 4), np.uint8)
    rgba[..., 3] = 255 * (SHAPE > 0)
    dark = convert(Image.fromarray(rgba))
    rgba[..., :3] = 250
    bright = convert(Image.fromarray(rgba))
    for image in (dark, bright):
        assert np.median(image[4:24, 9:19]) > 240
    rgba[..., :3] = (10, 60, 10)
    rgba[BOX] = 255
    rgba[60:80, 140:160] = (255, 0, 0, 0)  # a hole in the object shows the background
    rgba[..., 3][SHAPE == 0] = 255
    assert convert(Image.fromarray(rgba))[7, 14] <= 13
    palette = paint(SHAPE, "black on white").convert("P")
    expected = convert(palette)
    np.testing.assert_allclose(convert(palette, transparency=palette.getpixel((0, 0))), expected)


def test_other_modes_frames_and_orientations(convert) -> None:
    expected = convert(Image.fromarray((255 * SHAPE).astype(np.uint8)))
    deep = convert(Image.fromarray((65535 * SHAPE).astype(np.uint16)))
    np.testing.assert_allclose(deep, expected, atol=1)
    one = convert(Image.fromarray(SHAPE > 0.5).convert("1"))
    assert one[4:24, 9:19].min() > 250
    first = paint(SHAPE, "black on white")
    ink = convert(first.convert("CMYK"), "a.jpg", quality=95)
    np.testing.assert_allclose(ink, expected, atol=8)
    further = [paint(SHAPE[::-1], "white on black")]
    np.testing.assert_allclose(
        convert(first, save_all=True, append_images=further), expected, atol=1
    )
    exif = Image.Exif()
    exif[0x0112] = 8  # to be shown turned to the left
    turned = convert(first.rotate(-90, expand=True), "a.jpg", quality=95, exif=exif)
    np.testing.assert_allclose(turned, convert(first, "a.jpg", quality=95), atol=12)


def test_edges_are_sharpened_and_faint_pixels_outside_cleared(convert) -> None:
    image = convert(paint(SHAPE, "white on black"))
    lower = np.median(image[17:25, 12:16])
    assert lower - 30 < image[14, 13] < lower - 5
    shape = SHAPE.copy()
    shape[60:80, 140:160] = 0.03
    assert 0 < convert(paint(shape, "white on black"))[7, 14] <= 13  # inside the object
    shape[40:100, 120:150] = 0
    assert convert(paint(shape, "navy on sky", noise=8), "a.jpg")[1:13, :13].max() == 0


def test_a_bright_object_on_a_light_background_stays_faint(convert) -> None:
    levels = np.where(SHAPE > 0, 250, 225).astype(np.uint8)  # stretched to 255 it would be noise
    assert 40 <= np.median(convert(Image.fromarray(levels))[4:24, 9:19]) <= 60


def test_a_large_jpeg_is_decoded_small(convert, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(photos, "MAX_PIXELS", 1_000_000)
    picture = paint(SHAPE, "black on white").resize((1800, 1200))
    expected = convert(paint(SHAPE, "black on white"))
    assert np.abs(convert(picture, "a.jpg") - expected).mean() < 3
    with pytest.raises(UsageError, match="1800x1200 pixels"):
        convert(picture)


@pytest.mark.parametrize("size", [(1, 40), (40, 1), (3, 900), (2, 2)])
def test_any_shape(convert, size: tuple[int, int]) -> None:
    levels = np.zeros(size, np.uint8)
    levels[size[0] // 3 : size[0] // 3 + size[0] // 3 + 1, size[1] // 2 :] = 255
    assert convert(Image.fromarray(levels)).any()


def saved(image: Image.Image, form: str, **words) -> bytes:
    file = io.BytesIO()
    image.save(file, form, **words)
    return file.getvalue()


PNG, JPEG = (saved(paint(SHAPE, "navy on sky"), form) for form in ("PNG", "JPEG"))
BAD = {
    "empty": (b"", r"an empty file \(0 bytes\)"),
    "cut PNG": (PNG[:400], "a damaged picture"),
    "cut JPEG": (JPEG[:1000], "a damaged picture"),
    "PNG's first bytes": (PNG[:8], "a damaged picture"),
    "flipped": (PNG[:300] + b"\0\1\2\3" + PNG[304:], "a damaged picture"),
    "text": (b"label,pixel1\n", "text; expected a table"),
    "bomb": (saved(Image.new("1", (20000, 20000)), "PNG"), "at most 64,000,000 pixels"),
    "one colour": (saved(Image.new("RGB", (50, 40), "red"), "PNG"), "nothing stands out"),
    "one grey": (saved(Image.new("L", (28, 28), 9), "PNG"), "nothing stands out"),
    "transparent": (saved(Image.new("RGBA", (50, 40)), "PNG"), "nothing stands out"),
    "HEIC": (b"\0\0\0\x18ftypheic", "a HEIC or AVIF image"),
}


@pytest.mark.parametrize(("content", "message"), BAD.values(), ids=BAD.keys())
def test_bad_files_are_refused(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(content)
    with pytest.raises(UsageError, match=message):
        read_picture(path, Convention(0, 28))


def test_what_is_not_a_file_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for name, found in ((".", "a directory"), ("x", "no such file"), ("pipe", "a pipe")):
        with pytest.raises(UsageError, match=found):
            read_picture(tmp_path / name, Convention(0, 28))


@settings(max_examples=60, deadline=None)
@given(st.sampled_from([PNG, JPEG]), st.integers(0, 2000), st.binary(min_size=1, max_size=20))
def test_damage_is_refused_or_read_but_never_a_crash(
    tmp_path_factory: pytest.TempPathFactory, content: bytes, place: int, junk: bytes
) -> None:
    path = tmp_path_factory.getbasetemp() / "damaged"
    path.write_bytes(content[:place] + junk + content[place + len(junk) :])
    try:
        pixels, _, _ = read_picture(path, Convention(0, 28))
    except UsageError:
        return
    assert pixels.shape == (784,)


@pytest.mark.real
@pytest.mark.parametrize(
    ("kind", "margin", "noise", "vignette", "bound"),
    [
        *((kind, 16, 3, 0, 12) for kind in COLOURS),
        ("black on white", 0, 0, 0.5, 7.5),  # the garments touch the border
    ],
)
def test_real_garments_come_back(
    keras_home_with_data: Path, convert, kind: str, margin: int, noise, vignette, bound
) -> None:
    path = keras_home_with_data / "datasets/fashion-mnist/t10k-images-idx3-ubyte.gz"
    images = np.frombuffer(gzip.decompress(path.read_bytes())[16:], np.uint8).reshape(-1, 28, 28)
    differences = []
    for seed, expected in enumerate(images[: 60 * 166 : 166].astype(np.int64)):
        shape = np.pad(expected.repeat(6, axis=0).repeat(6, axis=1) / 255, margin)
        picture = paint(shape, kind, noise=noise, vignette=vignette, seed=seed)
        image = convert(picture, "a.jpg", quality=80)
        differences.append(np.abs(image - expected).mean())
    assert np.mean(differences) < bound
