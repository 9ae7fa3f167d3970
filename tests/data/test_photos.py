"""Pictures of any size, colour and ground become what the training data hold."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from fmnist_tf.data import official, photos
from fmnist_tf.data.photos import find_polarity, is_picture, read_picture
from fmnist_tf.errors import UsageError

GROUNDS = {
    "black on white": ((255, 255, 255), (0, 0, 0)),
    "white on black": ((0, 0, 0), (255, 255, 255)),
    "navy on sky": ((190, 215, 245), (20, 20, 70)),
    "yellow on maroon": ((90, 10, 30), (255, 240, 120)),
}
BOX = (slice(40, 160), slice(120, 180))  # of the thing: 60 wide, 120 high


def draw_thing() -> np.ndarray:
    """Return (200, 300) of 0 with a thing of 1 and, in its lower half, 0.6."""
    shape = np.zeros((200, 300), np.float32)
    shape[BOX] = 1
    shape[100:160, 120:180] = 0.6
    return shape


def paint(
    shape: np.ndarray, kind: str, *, noise: float = 0, vignette: float = 0, seed: int = 0
) -> Image.Image:
    """Return a colour picture of the shape (H, W) 0..1; a vignette darkens to the corners."""
    ground, thing = (np.array(colour, np.float32) for colour in GROUNDS[kind])
    levels = ground + (thing - ground) * shape[..., None]
    y, x = (np.linspace(-1, 1, side) for side in shape.shape)
    levels *= 1 - vignette * (np.add.outer(y**2, x**2) / 2)[..., None]
    levels += np.random.default_rng(seed).normal(0, noise, levels.shape) if noise else 0
    return Image.fromarray(np.clip(levels, 0, 255).astype(np.uint8))


@pytest.fixture
def convert(tmp_path: Path) -> Callable[..., np.ndarray]:
    """Save a picture, read it back as a run's image (28, 28) int64."""

    def convert(image: Image.Image, name: str = "a.png", **words) -> np.ndarray:
        looks = {key: words.pop(key) for key in ("background", "content_side") if key in words}
        image.save(tmp_path / name, **words)
        found = read_picture(tmp_path / name, **{"background": 0, "content_side": 28, **looks})
        assert found.pixels.shape == (784,)
        assert found.pixels.dtype == np.uint8
        convert.decisions = found.decisions  # type: ignore[attr-defined]
        return found.pixels.reshape(28, 28).astype(np.int64)

    return convert


@pytest.mark.parametrize("kind", GROUNDS)
@pytest.mark.parametrize(
    ("name", "noise", "vignette"), [("a.png", 0, 0), ("a.jpg", 8, 0), ("a.jpg", 4, 0.25)]
)
def test_thing_is_bright_on_zero(convert, kind: str, name: str, noise, vignette) -> None:
    words = {"quality": 70} if name == "a.jpg" else {}
    image = convert(paint(draw_thing(), kind, noise=noise, vignette=vignette), name, **words)
    occupied = np.flatnonzero(image.any(axis=0))
    assert 7 <= occupied[0] <= 8
    assert 20 <= occupied[-1] <= 21
    assert image.any(axis=1).all()
    assert image[:, :6].max() == image[:, 23:].max() == 0
    upper, lower = image[3:11, 10:18], image[17:25, 10:18]
    assert np.median(upper) > 170
    assert 0.4 < np.median(lower) / np.median(upper) < 0.75
    expected = "negated" if kind in ("black on white", "navy on sky") else "not negated"
    assert convert.decisions[-1].endswith(f", {expected}")
    assert "colour made grey" in convert.decisions or kind in ("black on white", "white on black")


def test_the_run_decides_polarity_and_size(convert) -> None:
    picture = paint(draw_thing(), "white on black")
    image = convert(picture, background=255, content_side=20)
    assert image[0].min() == image[:, 0].min() == 255
    assert np.median(image[8:12, 12:16]) < 40
    assert np.flatnonzero((image < 250).any(axis=1)).tolist() == list(range(4, 24))
    assert convert.decisions[-1].endswith(", negated")
    assert np.median(convert(picture, background=30)[:, 0]) == 30


def test_without_a_clear_background_it_is_fitted_whole(convert) -> None:
    image = convert(paint(draw_thing(), "white on black"), background=127)
    assert "the run's own images have no clear background" in convert.decisions[-1]
    assert set(image[0]) == {127}  # 28 x 19 pixels, extended
    assert image[14, 14] > 200
    texture = np.random.default_rng(0).integers(0, 255, (10, 10)).astype(np.uint8)
    halves = np.repeat([0, 255], 50).astype(np.uint8)[None].repeat(60, axis=0)
    for levels in (texture.repeat(20, axis=0).repeat(20, axis=1), halves):
        convert(Image.fromarray(levels))
        assert "no clear background at its border" in convert.decisions[-1]


def test_28x28_grey_is_taken_as_it_is(convert) -> None:
    rng = np.random.default_rng(0)
    expected = np.zeros((28, 28), np.uint8)
    expected[1:9, 3:20] = rng.integers(0, 255, (8, 17))
    for image in (Image.fromarray(expected), Image.fromarray(expected).convert("RGB")):
        np.testing.assert_array_equal(convert(image), expected)
        assert convert.decisions[-1] == "taken as it is"
    np.testing.assert_array_equal(convert(Image.fromarray(255 - expected)), expected)
    assert "negated" in convert.decisions[-1]
    found = convert(Image.fromarray(expected), background=255)
    np.testing.assert_array_equal(found, 255 - expected)


def test_colour_becomes_grey_by_itu_r_601(convert) -> None:
    levels = np.zeros((56, 56, 3), np.uint8)
    levels[14:28, 14:42], levels[28:42, 14:42] = (255, 0, 0), (0, 255, 0)
    image = convert(Image.fromarray(levels))
    assert np.median(image[3:12, 3:25]) == pytest.approx(0.299 * 255, abs=2)
    assert np.median(image[17:25, 3:25]) == pytest.approx(0.587 * 255, abs=2)


def test_transparent_parts(convert) -> None:
    shape = draw_thing()
    rgba = np.zeros((*shape.shape, 4), np.uint8)
    rgba[..., 3] = 255 * (shape > 0)
    dark = convert(Image.fromarray(rgba))
    assert "transparent parts made white" in convert.decisions
    rgba[..., :3] = 250
    bright = convert(Image.fromarray(rgba))
    assert "transparent parts made black" in convert.decisions
    for image in (dark, bright):
        assert np.median(image[4:24, 9:19]) > 240
    rgba[..., :3] = (10, 60, 10)
    rgba[BOX] = 255
    rgba[60:80, 140:160] = (255, 0, 0, 0)  # a hole in the thing, through which the ground is seen
    rgba[..., 3][shape == 0] = 255
    image = convert(Image.fromarray(rgba))
    assert "transparent parts made as the border" in convert.decisions
    assert image[7, 14] <= 13
    palette = paint(shape, "black on white").convert("P")
    expected = convert(palette)
    np.testing.assert_allclose(convert(palette, transparency=palette.getpixel((0, 0))), expected)


def test_16_bits_and_1_bit_and_cmyk(convert) -> None:
    shape = draw_thing()
    expected = convert(Image.fromarray((255 * shape).astype(np.uint8)))
    deep = convert(Image.fromarray((65535 * shape).astype(np.uint16)))
    assert "16-bit grey" in convert.decisions
    np.testing.assert_allclose(deep, expected, atol=1)
    one = convert(Image.fromarray(shape > 0.5).convert("1"))
    assert one[4:24, 9:19].min() > 250
    ink = convert(paint(shape, "black on white").convert("CMYK"), "a.jpg", quality=95)
    np.testing.assert_allclose(ink, expected, atol=8)


def test_exif_orientation_is_applied(convert) -> None:
    picture = paint(draw_thing(), "black on white")
    expected = convert(picture, "a.jpg", quality=95)
    exif = Image.Exif()
    exif[0x0112] = 8  # to be shown turned to the left
    turned = convert(picture.rotate(-90, expand=True), "a.jpg", quality=95, exif=exif)
    np.testing.assert_allclose(turned, expected, atol=12)


def test_the_first_of_several_frames(convert) -> None:
    first = paint(draw_thing(), "black on white")
    expected = convert(first)
    further = [paint(draw_thing()[::-1], "white on black")]
    found = convert(first, save_all=True, append_images=further)
    assert "the first of 2 frames" in convert.decisions
    np.testing.assert_array_equal(found, expected)


def test_it_is_sharpened_as_fashion_mnist_was(convert) -> None:
    image = convert(paint(draw_thing(), "white on black"))
    lower = np.median(image[17:25, 12:16])
    assert lower - 30 < image[14, 13] < lower - 5


def test_ground_beside_the_thing_is_nothing_but_zero(convert) -> None:
    shape = draw_thing()
    shape[40:100, 120:150] = 0
    image = convert(paint(shape, "navy on sky", noise=8), "a.jpg")
    assert image[1:13, :13].max() == 0


def test_faint_parts_stay_inside_and_go_outside(convert) -> None:
    shape = draw_thing()
    shape[60:80, 140:160] = 0.03
    image = convert(paint(shape, "white on black"))
    assert 0 < image[7, 14] <= 13
    assert image[:, :6].max() == 0


def test_a_large_jpeg_is_decoded_small(convert, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(photos, "MAX_PIXELS", 2_000_000)
    picture = paint(draw_thing(), "black on white").resize((3000, 2000))
    expected = convert(paint(draw_thing(), "black on white"))
    assert np.abs(convert(picture, "a.jpg") - expected).mean() < 3
    with pytest.raises(UsageError, match=r"3000x2000 pixels\. hint: at most"):
        convert(picture)


def test_any_shape(convert) -> None:
    for width, height in ((1, 40), (40, 1), (3, 900), (2, 2)):
        levels = np.zeros((height, width), np.uint8)
        levels[height // 3 : height // 3 + height // 3 + 1, width // 2 :] = 255
        assert convert(Image.fromarray(levels)).any()


def saved(image: Image.Image, form: str, **words) -> bytes:
    file = io.BytesIO()
    image.save(file, form, **words)
    return file.getvalue()


PNG, JPEG = (saved(paint(draw_thing(), "navy on sky"), form) for form in ("PNG", "JPEG"))
BAD = {
    "empty": (b"", r"an empty file \(0 bytes\)"),
    "cut PNG": (PNG[:400], "a damaged picture"),
    "cut JPEG": (JPEG[:1000], "a damaged picture"),
    "PNG's first bytes": (PNG[:8], "a damaged picture"),
    "flipped": (PNG[:300] + b"\0\1\2\3" + PNG[304:], "a damaged picture"),
    "text": (b"label,pixel1\n", "neither a PNG nor a JPEG"),
    "bomb": (saved(Image.new("1", (20000, 20000)), "PNG"), "at most 64,000,000 pixels"),
    "one colour": (saved(Image.new("RGB", (50, 40), "red"), "PNG"), "nothing stands out"),
    "one grey": (saved(Image.new("L", (28, 28), 9), "PNG"), "nothing stands out"),
    "transparent": (saved(Image.new("RGBA", (50, 40)), "PNG"), "nothing stands out"),
    **{
        form: (saved(Image.new("L", (28, 28)), form), f"found: a {form} image. hint: convert it")
        for form in ("GIF", "TIFF", "BMP")
    },
    "WebP": (b"RIFF\1\2\3\4WEBP", "found: a WebP image"),
    "HEIC": (b"\0\0\0\x18ftypheic", "found: a HEIC or AVIF image"),
}


@pytest.mark.parametrize(("content", "message"), BAD.values(), ids=BAD.keys())
def test_bad_files_are_refused(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "a\x1b.png"
    path.write_bytes(content)
    with pytest.raises(UsageError, match=message) as caught:
        read_picture(path, background=0, content_side=28)
    assert r"a\x1b.png: expected a " in str(caught.value)


def test_what_is_no_file_is_refused(tmp_path: Path) -> None:
    import os

    os.mkfifo(tmp_path / "pipe")
    for name, found in ((".", "a directory"), ("x", "No such file"), ("pipe", "a pipe")):
        with pytest.raises(UsageError, match=found):
            is_picture(tmp_path / name)


@settings(max_examples=60, deadline=None)
@given(st.sampled_from([PNG, JPEG]), st.integers(0, 2000), st.binary(min_size=1, max_size=20))
def test_damage_is_refused_or_read_but_never_a_crash(
    tmp_path_factory: pytest.TempPathFactory, content: bytes, place: int, junk: bytes
) -> None:
    path = tmp_path_factory.getbasetemp() / "damaged"
    path.write_bytes(content[:place] + junk + content[place + len(junk) :])
    try:
        found = read_picture(path, background=0, content_side=28).pixels
    except UsageError:
        return
    assert found.shape == (784,)


def test_polarity_of_rows() -> None:
    rows = np.zeros((5, 784), np.uint8)
    assert find_polarity(rows, 0) is None
    assert find_polarity(255 - rows, 127) is None
    assert "its background is 255 of 255, that of the training images 0" in str(
        find_polarity(255 - rows, 0)
    )


@pytest.fixture
def garments(keras_home_with_data: Path) -> np.ndarray:
    """60 images of the official test set, (60, 28, 28) int64."""
    path = keras_home_with_data / "datasets/fashion-mnist" / official.TEST_IMAGES
    images = official.read_idx(path, n_dimensions=3)
    return images[: 60 * 166 : 166].astype(np.int64)


@pytest.mark.real
@pytest.mark.parametrize("kind", GROUNDS)
def test_real_garments_come_back(garments: np.ndarray, convert, kind: str) -> None:
    differences = []
    for number, expected in enumerate(garments):
        shape = np.zeros((200, 300), np.float32)
        shape[16:184, 66:234] = expected.repeat(6, axis=0).repeat(6, axis=1) / 255
        image = convert(paint(shape, kind, noise=3, seed=number), "a.jpg", quality=80)
        differences.append(np.abs(image - expected).mean())
        assert differences[-1] < np.abs(255 - image - expected).mean()
    assert np.mean(differences) < 12


@pytest.mark.real
def test_real_garments_that_touch_the_border_come_back(garments: np.ndarray, convert) -> None:
    differences = []
    for expected in garments:
        shape = expected.repeat(6, axis=0).repeat(6, axis=1).astype(np.float32) / 255
        image = convert(paint(shape, "black on white", vignette=0.5), "a.jpg", quality=85)
        differences.append(np.abs(image - expected).mean())
    assert np.mean(differences) < 7.5
