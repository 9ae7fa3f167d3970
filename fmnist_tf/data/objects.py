"""Find the one object of a picture, whatever lies around it.

A picture is looked at in several ways, each right for other surroundings. The first object without
a doubt is taken, else the one with the fewest doubts.

- From the border: a quadratic surface in x and y, fitted to the border pixels without outliers, so
  uneven light counts as background. Right for a product photo or a scan.
- Holes: what cannot be left towards the border without crossing brighter pixels (or darker ones).
  A shadow, a desk and a frame reach the border, so they are none (Soille 2003, Morphological Image
  Analysis, section 6.3.7).
- Inside a rectangle: a sheet of paper, a frame, the axes of a figure are looked at alone.

Shape letters: H, W height and width of the picture.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from scipy import ndimage
from scipy.spatial import ConvexHull, QhullError

from fmnist_tf.data.compose import Grey, border, compose
from fmnist_tf.data.convention import (
    TOLERANCE,
    Convention,
    measure_contrast,
    measure_thickness,
)

Mask = NDArray[np.bool_]

_LOOSE = 0.25 * 255  # grey levels from the border's median: the first estimate of the background
_LEVELS = range(4, 256, 4)  # thresholds of the hole filling; finer than TOLERANCE
_WEAK = 0.35  # of the strongest contrast: a pen's stroke has more, a watermark less
_NEAR = 0.15  # of the main piece's longer side: pieces within this distance belong to it
_FAR_INK = 0.3  # of the object's ink: as much elsewhere is a doubt
_SMALL = 0.08  # of the picture's longer side
_RECTANGLE = 0.92  # of the smallest rectangle around the convex hull; an ellipse has 0.79
_SOLID = 0.6  # of its convex hull: a sheet of paper with something on it, not a frame
_MAX_DEPTH = 3  # rectangles inside of each other
_CONNECTED = np.ones((3, 3), bool)


@dataclass(frozen=True)
class Found:
    """An object.

    Attributes:
        contrast: (H, W) 0..255 above the background, 0 outside the object; cropped to it.
        is_brighter: than the background.
        background: grey level, 0..255.
        width: part of the picture's width that the object covers, 0..1.
        height: of the picture's height.
        doubts: why it may not be the object that was meant, a phrase each.
        in_rectangle: whether all around a rectangle was ignored.
    """

    contrast: Grey
    is_brighter: bool
    background: float
    width: float
    height: float
    doubts: tuple[str, ...]
    in_rectangle: bool = False


@dataclass(frozen=True)
class _Scene:
    """What stands out of a picture in one way of looking, (H, W) each."""

    contrast: Grey  # 0..255 above the ground, in the direction of is_brighter
    stands_out: Mask
    ground: Grey
    is_brighter: bool


def find_object(grey: Grey, convention: Convention) -> Found | None:
    """Return the object of a picture (H, W) 0..255.

    None if nothing stands out, or if everything does and no other way of looking finds an object
    without a doubt.
    """
    doubtful = []
    for found in _look(grey, convention, 0):
        if not found.doubts:
            return found
        doubtful.append(found)
    if fit_background(grey) is None:
        return None
    return min(doubtful, key=lambda found: len(found.doubts), default=None)


def fit_background(grey: Grey) -> Grey | None:
    """Return the level of the background everywhere, (H, W).

    None if less than half of the border is background.
    """
    height, width = grey.shape
    y, x = np.mgrid[-1 : 1 : height * 1j, -1 : 1 : width * 1j].astype(np.float32)
    terms = np.stack([np.ones_like(x), x, y, x * x, x * y, y * y], axis=-1)
    at_border = border(grey.shape)
    levels, border_terms = _smooth(grey)[at_border], terms[at_border]
    is_background = np.abs(levels - np.median(levels)) <= _LOOSE
    for _ in range(3):  # each fit drops outliers and takes back what the last one dropped wrongly
        surface = np.linalg.lstsq(border_terms[is_background], levels[is_background])[0]
        is_background = np.abs(levels - border_terms @ surface) <= TOLERANCE
    if 2 * is_background.sum() <= len(levels):
        return None
    return np.clip(terms @ surface, 0, 255)


def _look(grey: Grey, convention: Convention, depth: int) -> Iterator[Found]:
    """Yield objects, the most plausible way of looking first."""
    area = 0.25 * grey.size
    for k, scene in enumerate(_scenes(grey)):
        strong = scene.contrast * scene.stands_out
        if convention.has_strokes and strong.any():
            strong = strong > _WEAK * np.percentile(strong[scene.stands_out], 95)
            reach = 1 + max(grey.shape) // 100
            stands_out = scene.stands_out & ndimage.binary_dilation(strong, iterations=reach)
        else:
            stands_out = scene.stands_out
        pieces, n_pieces = ndimage.label(stands_out, _CONNECTED)
        if not n_pieces:
            continue
        boxes = ndimage.find_objects(pieces)
        widest = max(range(n_pieces), key=lambda i: np.prod([s.stop - s.start for s in boxes[i]]))
        cut = _cut_inside(grey, pieces == widest + 1, convention.has_strokes)
        if cut is not None and depth < _MAX_DEPTH:
            inner, doubts = cut
            n_found = 0
            for found in _look(inner, convention, depth + 1):
                n_found += 1
                height, width = np.divide(inner.shape, grey.shape)
                yield replace(
                    found,
                    width=found.width * width,
                    height=found.height * height,
                    in_rectangle=True,
                    doubts=(*found.doubts, *doubts),
                )
            if n_found and not convention.has_strokes:
                continue
        if k == 0:
            area = 0.25 * stands_out.sum()
        touching = np.unique(pieces[border(grey.shape)])
        for dropped in ([], touching) if touching.any() else ([],):
            kept = np.where(np.isin(pieces, dropped), 0, pieces)
            if kept.any():
                found = _gather(scene, kept, convention)
                if not convention.has_strokes and (found.contrast > 0).sum() < area:
                    found = replace(found, doubts=(*found.doubts, "it is a small part"))
                yield found


def _scenes(grey: Grey) -> Iterator[_Scene]:
    smooth = _smooth(grey)
    surface = fit_background(grey)
    if surface is not None:
        # The blurred picture has little noise, the picture itself has sharp edges.
        difference = np.minimum(np.abs(smooth - surface), np.abs(grey - surface))
        stands_out = difference > TOLERANCE
        is_brighter = float((smooth - surface)[stands_out].sum()) > 0
        yield _Scene(_contrast(grey, surface, is_brighter), stands_out, surface, is_brighter)
    holes = {
        is_brighter: _find_holes(255 - smooth if is_brighter else smooth)
        for is_brighter in (False, True)
    }
    for is_brighter, stands_out in sorted(
        holes.items(), key=lambda item: -ndimage.binary_fill_holes(item[1]).sum()
    ):
        edge = ndimage.binary_dilation(stands_out, iterations=1 + max(grey.shape) // 100)
        if stands_out.any() and not edge.all():
            nearest = ndimage.distance_transform_edt(edge, return_indices=True)[1]
            ground = smooth[tuple(nearest)]
            yield _Scene(_contrast(grey, ground, is_brighter), stands_out, ground, is_brighter)


def _contrast(grey: Grey, ground: Grey, is_brighter: bool) -> Grey:
    """Return 0 on the ground, 255 at the end of the grey scale on the object's side."""
    # If the ground is close to that end, stretching what is left would amplify noise.
    room = np.maximum(255 - ground if is_brighter else ground, 128)
    return np.clip((grey - ground if is_brighter else ground - grey) * 255 / room, 0, 255)


def _find_holes(smooth: Grey) -> Mask:
    """Return where a picture is darker than all ways from there to the border."""
    filled = np.zeros(smooth.shape, np.int16)  # in steps of the levels
    own = np.zeros(smooth.shape, np.int16)
    for level in _LEVELS:
        below = smooth < level
        pieces, _ = ndimage.label(below)
        open_pieces = np.unique(pieces[border(smooth.shape)])
        filled += ~(below & np.isin(pieces, open_pieces))
        own += ~below
    step = _LEVELS.step
    return (filled - own) * step > TOLERANCE


def _cut_inside(
    grey: Grey, piece: Mask, has_strokes: bool
) -> tuple[Grey, tuple[str, ...]] | None:
    """Return what lies inside a piece that is a rectangle, cut out; None if it is none.

    What is outside of a tilted rectangle gets the level of the nearest pixel inside.
    """
    margin = 2 + max(grey.shape) // 100
    filled = ndimage.binary_fill_holes(piece)
    filled = ndimage.binary_opening(filled, iterations=margin)  # without the ticks of axes
    if filled.sum() < 0.05 * grey.size:
        return None
    hull = _fill_hull(filled, _RECTANGLE if has_strokes else 0.97)
    if hull is None or filled.sum() < (_SOLID if has_strokes else 0.95) * hull.sum():
        return None
    doubts: tuple[str, ...] = ()
    if not has_strokes and piece.sum() > _SOLID / 2 * hull.sum():
        doubts = ("it lies in a rectangle, which was taken for paper or a figure",)
    inside = ndimage.binary_erosion(hull, iterations=margin)
    if not inside.any():
        return None
    box = ndimage.find_objects(inside.astype(np.uint8))[0]
    nearest = ndimage.distance_transform_edt(~inside[box], return_indices=True)[1]
    inner = grey[box][tuple(nearest)]
    return None if fit_background(inner) is None else (inner, doubts)


def _fill_hull(mask: Mask, least: float) -> Mask | None:
    """Return the convex hull, filled, if it is a rectangle, perhaps tilted; else None."""
    y, x = np.nonzero(mask & ~ndimage.binary_erosion(mask))
    points = np.stack([x, y], axis=1).astype(float)
    try:
        hull = ConvexHull(points)
    except (QhullError, ValueError):  # all on one line
        return None
    corners = points[hull.vertices]
    edges = np.roll(corners, -1, axis=0) - corners
    angles = np.arctan2(edges[:, 1], edges[:, 0])
    turned = np.stack([
        corners @ np.stack([np.cos(angles), np.sin(angles)]),
        corners @ np.stack([-np.sin(angles), np.cos(angles)]),
    ])
    smallest = np.prod(np.ptp(turned, axis=1) , axis=0).min()
    if hull.volume < least * smallest:
        return None
    image = Image.new("1", mask.shape[::-1])
    ImageDraw.Draw(image).polygon([tuple(corner) for corner in corners], fill=1, outline=1)
    return np.asarray(image)


def _gather(scene: _Scene, pieces: NDArray[np.int32], convention: Convention) -> Found:
    """Return the piece with the most ink and those near it as the object."""
    ink = ndimage.sum_labels(scene.contrast, pieces, np.arange(pieces.max() + 1))
    ink[0] = 0
    mask = pieces == ink.argmax()
    box = ndimage.find_objects(mask.astype(np.uint8))[0]
    reach = _NEAR * max(side.stop - side.start for side in box)
    while True:
        is_near = ndimage.distance_transform_edt(~mask) <= reach
        near = np.setdiff1d(pieces[is_near], [0])
        inside = np.zeros_like(mask); inside[ndimage.find_objects(mask.astype(np.uint8))[0]] = True
        near = [k for k in near if ink[k] >= 0.02 * ink.max() or (inside & (pieces == k)).any()]
        grown = np.isin(pieces, near)
        if grown.sum() == mask.sum():
            break
        mask = grown
    box = ndimage.find_objects(mask.astype(np.uint8))[0]
    contrast = np.where(mask, scene.contrast, 0)[box]
    height, width = np.divide(contrast.shape, mask.shape)
    doubts = list(_find_doubts(mask, contrast, convention))
    at_border = np.unique(pieces[border(mask.shape)])
    far = ink.sum() - ink[np.union1d(np.unique(pieces[mask]), at_border)].sum()
    if far > _FAR_INK * contrast.sum():
        doubts.append("other pieces, far from it, were dropped")
    level = float(np.median(scene.ground[border(mask.shape)]))
    return Found(contrast, scene.is_brighter, level, width, height, tuple(doubts))


def _find_doubts(mask: Mask, contrast: Grey, convention: Convention) -> Iterator[str]:
    at_border = border(mask.shape)
    if mask[[0, 0, -1, -1], [0, -1, 0, -1]].any():
        yield "it covers a corner of the picture"
    elif convention.has_strokes and mask[at_border].mean() > 0.25:
        yield "it touches much of the border"
    if max(np.divide(contrast.shape, max(mask.shape))) < _SMALL:
        yield "it is small"
    image = compose(contrast, convention)
    image = np.where(image > TOLERANCE, image, 0)
    low, high = convention.ink
    if not 0.6 * low <= (share := image.mean() / 255) <= 1.4 * high:
        yield f"it covers {share:.0%} of the 28x28 pixels, training images {low:.0%} to {high:.0%}"
    thickness = int(measure_thickness(image[np.newaxis] > 0)[0])
    if thickness > 1.5 * convention.thickness + 1:
        yield f"it is {thickness} pixels thick, training images up to {convention.thickness}"


def _smooth(grey: Grey) -> Grey:
    return ndimage.gaussian_filter(grey, max(grey.shape) / 200, mode="nearest")
