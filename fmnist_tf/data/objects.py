"""Find the one object of a picture, whatever lies around it.

A picture is looked at in several ways, each right for other surroundings. The first object without
a doubt is taken, else the one with the fewest doubts.

- From the border: a quadratic surface, fitted to the border pixels without outliers, is background,
  so uneven light is too. Right for a product photo or a scan.
- Holes: what cannot be left towards the border without crossing brighter pixels (or darker ones);
  a shadow, a desk and a frame can (Soille 2003, Morphological Image Analysis, section 6.3.7).
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
from fmnist_tf.data.convention import TOLERANCE, Convention, measure_thickness

Mask = NDArray[np.bool_]

_LOOSE = 0.25 * 255  # grey levels from the border's median: the first estimate of the background
_LEVELS = range(4, 256, 4)  # thresholds of the hole filling; finer than TOLERANCE
_WEAK = 0.35  # of the strongest contrast: a pen's stroke has more, a watermark less
_NEAR = 0.15  # of the longer side: pieces within this distance belong to the object
_SPECK = 0.005  # of the main piece: a smaller piece, as a letter, belongs to it only in its box
_MAX_DEPTH = 3  # rectangles inside of each other

# Rectangles. Of the smallest rectangle around its convex hull a sheet of paper covers nearly all,
# also in perspective, an ellipse 0.79, a bag often 0.95.
_RECTANGLE = {"strokes": 0.92, "areas": 0.97}
_SOLID = {"strokes": 0.6, "areas": 0.95}  # of the hull; a stroke that touches a frame divides it
_OWN_GROUND = {"strokes": 0.5, "areas": 0.7}  # of the border inside; a garment may have two colours
_PRINT = 0.1  # of the rectangle: less is a bag's print or handle
_SHEET = 0.3  # of the hull: thinner rings are frames, which no garment looks like

# Doubts.
_FAR_INK = 0.3  # of the object's ink: as much elsewhere
_SHADED = 0.05  # of the border outside the object
_SMALL = 0.08  # of the picture's longer side
_SMALL_PART = 0.25  # of what stands out from the border: perhaps the print on a shirt
_CONNECTED = np.ones((3, 3), bool)


@dataclass(frozen=True)
class Found:
    """An object.

    Attributes:
        contrast: (H, W) 0..255 above the background, 0 outside the object; cropped to it.
        is_brighter: than the background.
        background: grey level, 0..255.
        width, height: parts of the picture's that the object covers, 0..1.
        doubts: why it may not be the object that was meant, a phrase each.
        corner: the crop's top left corner, (y, x) pixels from the middle of what was looked at.
        in_rectangle: whether all around a rectangle was ignored.
    """

    contrast: Grey
    is_brighter: bool
    background: float
    width: float
    height: float
    doubts: tuple[str, ...]
    corner: tuple[float, ...]
    in_rectangle: bool = False


@dataclass(frozen=True)
class _Scene:
    """What stands out of a picture in one way of looking, (H, W) each."""

    contrast: Grey  # 0..255 above the ground, in the direction of is_brighter
    stands_out: Mask
    ground: Grey
    is_brighter: bool
    from_border: bool = False


def find_object(grey: Grey, convention: Convention) -> Found | None:
    """Return the object of a picture (H, W) 0..255; None if nothing, or only all, stands out."""
    surface = fit_background(grey)
    doubtful = []
    for found in _look(grey, convention):
        if found.doubts:
            doubtful.append(found)
        elif found.in_rectangle or convention.has_strokes or not _is_shaded(grey, surface, found):
            return found
        else:
            shade = "something dark or bright at the border, perhaps a shadow, was left out"
            return replace(found, doubts=(shade,))
    if surface is None:
        return None
    return min(doubtful, key=lambda found: len(found.doubts), default=None)


def _is_shaded(grey: Grey, surface: Grey | None, found: Found) -> bool:
    """Return whether much of the border outside the object is not background."""
    if surface is None:
        return True
    outside = border(grey.shape)
    top, left = (round(c + side / 2) for c, side in zip(found.corner, grey.shape, strict=True))
    height, width = found.contrast.shape
    outside[top : top + height, left : left + width] = False
    uneven = np.abs(_smooth(grey) - surface)[outside] > TOLERANCE
    return bool(uneven.mean() > _SHADED) if uneven.size else False


def fit_background(grey: Grey, part: float = 0.5) -> Grey | None:
    """Return the background's level (H, W); None if no more than this part of the border is it."""
    height, width = grey.shape
    y, x = np.mgrid[-1 : 1 : height * 1j, -1 : 1 : width * 1j].astype(np.float32)
    terms = np.stack([np.ones_like(x), x, y, x * x, x * y, y * y], axis=-1)
    at_border = border(grey.shape)
    levels, border_terms = _smooth(grey)[at_border], terms[at_border]
    is_background = np.abs(levels - np.median(levels)) <= _LOOSE
    for _ in range(3):  # each fit drops outliers and takes back what the last one dropped wrongly
        surface = np.linalg.lstsq(border_terms[is_background], levels[is_background])[0]
        is_background = np.abs(levels - border_terms @ surface) <= TOLERANCE
    if is_background.mean() <= part:
        return None
    return np.clip(terms @ surface, 0, 255)


def _look(grey: Grey, convention: Convention, depth: int = 0) -> Iterator[Found]:
    """Yield objects, the most plausible way of looking first."""
    least_area = 0.0 if convention.has_strokes else _SMALL_PART * grey.size
    for scene in _scenes(grey):
        stands_out = _drop_weak(scene) if convention.has_strokes else scene.stands_out
        pieces, _ = ndimage.label(stands_out, _CONNECTED)
        boxes = ndimage.find_objects(pieces)
        if not boxes:
            continue
        sizes = [(y.stop - y.start) * (x.stop - x.start) for y, x in boxes]
        cut = _cut_inside(grey, pieces == 1 + np.argmax(sizes), convention.has_strokes)
        if cut is not None and depth < _MAX_DEPTH:
            inner, doubts = cut
            height, width = np.divide(inner.shape, grey.shape)
            least_part = 0 if convention.has_strokes else _PRINT
            objects = list(_look(inner, convention, depth + 1))
            objects = [found for found in objects if found.width * found.height > least_part]
            for found in objects:
                part = {"width": found.width * width, "height": found.height * height}
                yield replace(found, **part, doubts=(*found.doubts, *doubts), in_rectangle=True)
            if objects and not convention.has_strokes:
                return  # the other ways of looking would take the paper for a garment
        if scene.from_border and not convention.has_strokes:
            least_area = _SMALL_PART * stands_out.sum()
        yield from _gather(scene, pieces, convention, least_area)
        if (touching := np.unique(pieces[border(grey.shape)])).any():
            pieces[np.isin(pieces, touching)] = 0
            yield from _gather(scene, pieces, convention, least_area)


def _drop_weak(scene: _Scene) -> Mask:
    """Return what stands out clearly, with its soft edges."""
    typical = np.percentile(scene.contrast[scene.stands_out], 95) if scene.stands_out.any() else 0
    strong = scene.stands_out & (scene.contrast > _WEAK * typical)
    reach = 1 + max(strong.shape) // 20
    return scene.stands_out & ndimage.binary_dilation(strong, iterations=reach)


def _scenes(grey: Grey) -> Iterator[_Scene]:
    """Yield the ways of looking, that from the border first if it shows a background."""
    smooth = _smooth(grey)
    surface = fit_background(grey)
    if surface is not None:
        # The blurred picture has little noise, the picture itself has sharp edges.
        distance = np.minimum(np.abs(smooth - surface), np.abs(grey - surface))
        stands_out = distance > TOLERANCE
        is_brighter = float((smooth - surface)[stands_out].sum()) > 0
        yield _Scene(_contrast(grey, surface, is_brighter), stands_out, surface, is_brighter, True)
    dark, bright = ((_find_holes(image), side) for image, side in ((smooth, 0), (255 - smooth, 1)))
    # A ring and its hole are both found: the ring comes first.
    for holes, side in sorted((dark, bright), key=lambda way: -_fill(way[0]).sum()):
        near = ndimage.binary_dilation(holes, iterations=1 + max(grey.shape) // 100)
        if holes.any() and not near.all():
            ground = _extend(smooth, ~near)
            yield _Scene(_contrast(grey, ground, bool(side)), holes, ground, bool(side))


def _contrast(grey: Grey, ground: Grey, is_brighter: bool) -> Grey:
    """Return 0 on the ground, 255 at the end of the grey scale on the object's side."""
    # If the ground is close to that end, stretching what is left would amplify noise.
    room = np.maximum(255 - ground if is_brighter else ground, 128)
    return np.clip((grey - ground if is_brighter else ground - grey) * 255 / room, 0, 255)


def _find_holes(smooth: Grey) -> Mask:
    """Return where a picture is darker than all ways from there to the border."""
    depth = np.zeros(smooth.shape, np.int16)  # in steps of the levels
    for level in _LEVELS:
        below = smooth < level
        pieces, _ = ndimage.label(below)
        depth += below & ~np.isin(pieces, np.unique(pieces[border(smooth.shape)]))
    return depth * _LEVELS.step > TOLERANCE


def _cut_inside(grey: Grey, piece: Mask, has_strokes: bool) -> tuple[Grey, tuple[str, ...]] | None:
    """Return what lies inside a piece that is a rectangle, perhaps tilted, cut out; else None."""
    content = "strokes" if has_strokes else "areas"
    margin = 2 + max(grey.shape) // 100
    filled = ndimage.binary_opening(_fill(piece), iterations=margin)  # without the ticks of axes
    if filled.sum() < 0.05 * grey.size:
        return None
    hull = _fill_hull(filled, _RECTANGLE[content])
    if hull is None or filled.sum() < _SOLID[content] * hull.sum():
        return None
    doubts: tuple[str, ...] = ()
    if not has_strokes and piece.sum() > _SHEET * hull.sum():
        doubts = ("it lies in a rectangle, which was taken for paper or a figure",)
    inside = ndimage.binary_erosion(hull, iterations=margin)
    if not inside.any():
        return None
    (box,) = ndimage.find_objects(inside, 1)
    inner = _extend(grey[box], inside[box])
    part = _OWN_GROUND[content]
    return None if fit_background(inner, part) is None else (inner, doubts)


def _fill_hull(mask: Mask, rectangle: float) -> Mask | None:
    """Return the convex hull, filled, if it is a rectangle, perhaps tilted; else None."""
    edge = np.argwhere(mask & ~ndimage.binary_erosion(mask))
    points = edge[:, ::-1].astype(float)  # x, y
    try:
        hull = ConvexHull(points)
    except (QhullError, ValueError):  # all on one line
        return None
    corners = points[hull.vertices]
    edges = np.roll(corners, -1, axis=0) - corners
    x, y = (edges / np.linalg.norm(edges, axis=1, keepdims=True)).T
    along, across = (np.ptp(corners @ np.stack(axis), axis=0) for axis in ((x, y), (-y, x)))
    if hull.volume < rectangle * (along * across).min():  # of the smallest one around it
        return None
    image = Image.new("1", mask.shape[::-1])
    ImageDraw.Draw(image).polygon([tuple(corner) for corner in corners], fill=1, outline=1)
    return np.asarray(image)


def _gather(
    scene: _Scene, pieces: NDArray[np.int32], convention: Convention, least_area: float
) -> Iterator[Found]:
    """Yield the piece with the most ink, and those that belong to it; nothing without ink."""
    ink = ndimage.sum_labels(scene.contrast, pieces, np.arange(pieces.max() + 1))
    ink[0] = 0
    sizes = np.bincount(pieces.ravel())
    if ink.max() == 0:
        return
    mask = np.zeros(pieces.shape, bool)
    grown = pieces == ink.argmax()
    while grown.sum() > mask.sum():
        mask = grown
        (box,) = ndimage.find_objects(mask, 1)
        reach = _NEAR * max(side.stop - side.start for side in box)
        near = np.unique(pieces[ndimage.distance_transform_edt(~mask) <= reach])
        near = near[(sizes[near] >= _SPECK * sizes[ink.argmax()]) | np.isin(near, pieces[box])]
        grown = np.isin(pieces, near[near > 0])
    contrast = np.where(mask, scene.contrast, 0)[box]
    height, width = np.divide(contrast.shape, mask.shape)
    at_border = border(mask.shape)
    doubts = list(_find_doubts(mask, contrast, convention))
    known = np.union1d(np.unique(pieces[mask]), np.unique(pieces[at_border]))
    if ink.sum() - ink[known].sum() > _FAR_INK * contrast.sum():
        doubts.append("other pieces, far from it, were dropped")
    if mask.sum() < least_area:
        doubts.append("it is a small part of what stands out")
    level = float(np.median(scene.ground[at_border]))
    corner = tuple(side.start - len(axis) / 2 for side, axis in ((box[0], mask), (box[1], mask.T)))
    yield Found(contrast, scene.is_brighter, level, width, height, tuple(doubts), corner)


def _find_doubts(mask: Mask, contrast: Grey, convention: Convention) -> Iterator[str]:
    if mask[[0, 0, -1, -1], [0, -1, 0, -1]].any():
        yield "it covers a corner of the picture"
    if max(contrast.shape) < _SMALL * max(mask.shape):
        yield "it is small"
    image = compose(contrast, convention)
    image = np.where(image > TOLERANCE, image, 0)
    low, high = convention.ink
    if not 0.6 * low <= (ink := image.mean() / 255) <= 1.4 * high:
        yield f"it has {ink:.0%} ink, training images {low:.0%} to {high:.0%}"
    thickness = int(measure_thickness(image[np.newaxis] > 0)[0])
    if thickness > 1.5 * convention.thickness + 1:
        yield f"it is {thickness} pixels thick, training images up to {convention.thickness}"


def _extend(grey: Grey, known: Mask) -> Grey:
    """Return the picture with the level of the nearest known pixel everywhere."""
    nearest = ndimage.distance_transform_edt(~known, return_distances=False, return_indices=True)
    return np.asarray(grey[tuple(nearest)])


def _fill(mask: Mask) -> Mask:
    return np.asarray(ndimage.binary_fill_holes(mask))


def _smooth(grey: Grey) -> Grey:
    return ndimage.gaussian_filter(grey, max(grey.shape) / 200, mode="nearest")
