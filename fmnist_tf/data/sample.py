"""The built-in sample: ten garment classes drawn by code, for when no real data can be had.

In: how many images and a seed. Out: 28x28 grey garments on black and their labels, in
Fashion-MNIST's class order and format. No image is stored anywhere: every garment is a few shapes
of `canvas` whose measures are thrown at random, in ranges judged by eye. This module must not know
files, TensorFlow, or who uses the pixels.

Shapes: the B images of one class that are drawn at once share a canvas; a number per image is
(B, 1, 1). Coordinates, units and greys are those of `canvas`.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from fmnist_tf.data.canvas import (
    SIDE,
    Canvas,
    Dice,
    Floats,
    Length,
    Pair,
    along,
    blurred,
    depth,
    limb,
    line,
    soft,
    waves,
)
from fmnist_tf.errors import UsageError

Pixels8 = npt.NDArray[np.uint8]
Labels = npt.NDArray[np.int64]

GARMENTS = (
    "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat",
    "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
)  # fmt: skip

_BATCH = 500  # images of one class drawn at once: bounds memory, never changes a pixel


def _cloth(dice: Dice, dark_share: float = 0.2) -> Floats:
    """(B, 1, 1) grey of a fabric, mostly light: the originals are negatives of product photos."""
    dark = dice.often(dark_share)
    return dark * dice(0.25, 0.6) + (1 - dark) * dice(0.55, 1)


def _top(
    canvas: Canvas,
    dice: Dice,
    grey: Floats,
    *,
    widths: tuple[Length, Length, Length, Length, Length],
    neck_y: Length,
    scoop: Length,
    hem_y: Length,
    sleeved: Length,
    sleeve: Pair,
    elbow: Pair,
    cuff: Pair,
    waist_y: Length = 15.0,
) -> None:
    """A garment for the upper body: two sleeves falling from the shoulders, the body over them.

    `widths` are the body's half widths at neck, shoulder, chest, waist and hem. A collar or hood
    stands `neck_y` above the shoulders; `scoop` is the depth of the neckline. Where `sleeved` is 1
    a sleeve runs over `elbow` to `cuff` (side, y) and is as wide at its ends as `sleeve` tells.
    """
    side, y = canvas.side, canvas.y
    neck, shoulder, chest, waist, hem = widths
    slope_y = neck_y + dice(0.8, 2.4)
    profile = along(
        y, (0, neck), (neck_y, neck + 0.4), (slope_y, shoulder), (9, chest), (waist_y, waist),
        (hem_y, hem),
    )  # fmt: skip
    body = soft(profile - side) * soft(hem_y - y) * soft(y)
    upper, lower = sleeve
    middle = (upper + lower) / 2
    start = (shoulder - upper / 2 + 0.3, slope_y - 0.4)
    arm = limb(side, y, start, elbow, (upper, middle)) + limb(side, y, elbow, cuff, (middle, lower))
    arm += soft(depth(side, y, (start[0], start[1] + 1.5), (upper / 2, 2.0)))  # round shoulder
    arm += soft(depth(side, y, elbow, (middle / 2, middle / 2)))
    arm = np.minimum(arm, 1) * sleeved
    canvas.paint(arm, grey * dice(0.9, 1.3))
    canvas.paint(body, grey)
    # the gap, or the bright edge, between body and sleeve
    canvas.shade(line(profile - side) * soft(y - slope_y - 2) * arm, dice(0.2, 1.1))
    glint = line(profile + 0.4 - side) * soft(y - 8) * arm * dice.often(0.35)
    canvas.paint(glint, dice(0.5, 1))
    # the back of the neck shows in the neckline; then the hems of neck and body
    neckline = depth(side, y, (0, -0.3), (neck, scoop))
    canvas.shade(soft(neckline), dice(0.6, 1.3))
    canvas.shade(soft(neckline) * dice.often(0.2), dice(0, 0.6))
    canvas.shade(line(neckline + 0.6) * body, dice(0.8, 1.3))
    canvas.shade(line(y - hem_y + 1.4) * body, dice(0.75, 1.2))


def _front(canvas: Canvas, dice: Dice, hem_y: Length, buttoned: Length, zipped: Length) -> None:
    """An opening down the middle: a row of buttons, or the dark or light line of a zip."""
    x, y = canvas.x - 14 - dice(-0.6, 0.6), canvas.y
    opening = line(x, dice(0.2, 1.2)) * soft(hem_y - y) * soft(y - 2)
    canvas.shade(opening * zipped, dice(0.3, 1.3))
    canvas.shade(opening * buttoned, dice(0.75, 1.1))
    canvas.shade(opening * waves(y * dice(1.4, 2.2)) * buttoned, dice(0.3, 1.4))


def _collar(canvas: Canvas, dice: Dice, tip_y: Length, present: Length) -> None:
    """Two flaps meeting in a V under the neck, edged with shadow."""
    edge = tip_y - canvas.y - canvas.side * dice(0.3, 0.9)
    reach = soft(4.5 - canvas.side) * present
    canvas.shade(soft(edge) * reach, dice(0.95, 1.3))
    canvas.shade(line(edge, 1.4) * reach, dice(0.4, 0.8))


def _print(canvas: Canvas, dice: Dice, share: float) -> None:
    """A blot of ink on the chest of a `share` of the images."""
    inside = depth(canvas.side, canvas.y, (0, dice(8, 15)), (dice(2, 5), dice(1, 5)))
    ink = np.clip(blurred(dice.noise[:, ::-1]) * 6 - 0.4, -1.4, 0.6)
    canvas.shade(soft(inside) * dice.often(share), 1 + dice(0.3, 0.7) * ink)


def _t_shirt(canvas: Canvas, dice: Dice) -> None:
    """Short sleeves standing out, or a tank top on straps; a print, stripes, a polo's collar."""
    tank = dice.often(0.17)
    chest = dice(6.2, 8)
    waist = chest + dice(-1, 0.3)
    sleeve_x = chest + dice(1.2, 2.8)
    cuff_y = dice(7.5, 12) + dice.often(0.12) * dice(2, 7)
    _top(
        canvas, dice, _cloth(dice, 0.35),
        widths=(dice(2.5, 4.5), chest - 0.2 - tank * 1.6, chest, waist, waist + dice(-0.2, 1.2)),
        neck_y=dice(0, 0.8), scoop=dice(1, 2.6) + tank * dice(1, 4), hem_y=dice(26.8, 28.4),
        sleeved=1 - tank, sleeve=(dice(4, 5.5), dice(4, 5.5)),
        elbow=(sleeve_x - 1, cuff_y - 3.5), cuff=(sleeve_x + dice(0, 0.6), cuff_y),
    )  # fmt: skip
    _print(canvas, dice, 0.45)
    _collar(canvas, dice, dice(2, 3.5), dice.often(0.1) * (1 - tank))
    canvas.weave(dice, stripes=0.08, checks=0, blots=0.1, folds=0.15)


def _trouser(canvas: Canvas, dice: Dice) -> None:
    """A waistband and two legs with a gap between them; some legs bend or flare."""
    y = canvas.y
    hip, crotch_y = dice(4.2, 6), dice(6, 11)
    bend, flare = dice.often(0.25) * dice(0, 1.8), dice.often(0.12) * dice(1, 4)
    side = np.abs(canvas.x - 14 - bend * np.sin(y / 28 * np.pi))
    knee, ankle = hip + dice(-0.7, 0.3) + flare / 2, hip + dice(-1.2, 0.5) + flare
    outer = along(y, (0, hip - dice(0.3, 1.2)), (7, hip), (18, knee), (28, ankle))
    gap_end = dice(0.1, 2.4) + bend * 0.6 + flare * 0.2
    gap = along(y, (crotch_y, -1), (crotch_y + 2, 0.1), (28, gap_end))
    canvas.paint(soft(outer - side) * soft(side - gap), _cloth(dice, 0.12))
    canvas.shade(soft(1.8 - y), dice(0.6, 1.3))
    canvas.shade(line(side) * soft(crotch_y - y), dice(0.6, 1.1))
    crease = line(side - (outer + np.maximum(gap, 0)) / 2, 2.4) * soft(y - crotch_y)
    canvas.shade(crease, dice(0.8, 1.5))
    canvas.weave(dice, stripes=0.02, checks=0, blots=0.08, folds=0.05)


def _pullover(canvas: Canvas, dice: Dice) -> None:
    """Long sleeves hanging by the sides, a closed front, sometimes a print, a hood, a roll neck."""
    chest = dice(5.6, 7.4)
    waist = chest + dice(-1.2, 0.2)
    elbow_x = chest + dice(0.7, 2)
    _top(
        canvas, dice, _cloth(dice, 0.35),
        widths=(dice(2.4, 4.2), chest, chest, waist, waist + dice(-0.4, 0.6)),
        neck_y=dice(0, 0.8) + dice.often(0.3) * dice(1, 3.5), scoop=dice(0.8, 2.8),
        hem_y=dice(23.5, 28.4), sleeved=1, sleeve=(dice(4, 5), dice(2.8, 3.6)),
        elbow=(elbow_x, dice(11, 14)), cuff=(elbow_x + dice(-0.3, 1.8), 28.6 - dice(0, 2.9) ** 2),
    )  # fmt: skip
    _print(canvas, dice, 0.3)
    canvas.weave(dice, stripes=0.14, checks=0, blots=0.08, folds=0.12)


def _dress(canvas: Canvas, dice: Dice) -> None:
    """Long and narrow, straight or flaring below a waist; bare arms or sleeves; a belt."""
    bare, short = dice.kinds(0.42, 0.3)
    long = 1 - bare - short
    chest, flare, reach, waist_y = dice(3, 6.4), dice(-0.6, 3.5), dice(0.8, 2.6), dice(10, 15)
    _top(
        canvas, dice, _cloth(dice, 0.3),
        widths=(
            chest * dice(0.45, 0.7), chest - bare * dice(0.3, 1.2), chest - dice(0, 0.6),
            chest - dice(-0.2, 0.8), chest + flare,
        ),
        neck_y=dice(0, 0.5), scoop=dice(1, 3) + bare * dice(0, 3), waist_y=waist_y,
        hem_y=dice(26.8, 28.6), sleeved=1 - bare, sleeve=(dice(2.6, 3.6), dice(1.8, 2.8)),
        elbow=(chest + reach / 2, 4.5 + long * 4.5),
        cuff=(chest + reach, dice(7, 10) + long * dice(5, 11)),
    )  # fmt: skip
    canvas.shade(line(canvas.y - waist_y + 1, 1.4) * dice.often(0.4), dice(0.5, 1.2))
    canvas.weave(dice, stripes=0.08, checks=0.04, blots=0.18, folds=0.25)


def _coat(canvas: Canvas, dice: Dice) -> None:
    """Long sleeves close to the body, a zip or buttons, a collar or hood, slanted pockets."""
    long, cropped = dice.kinds(0.2, 0.2)
    zipped, buttoned = dice.kinds(0.5, 0.3)
    chest = dice(5.4, 7.2) - long * dice(0.5, 2)
    elbow_x = chest + dice(0.7, 1.9)
    hem_y = dice(24, 28.4) - cropped * dice(1, 4) + long * 2
    _top(
        canvas, dice, _cloth(dice, 0.18),
        widths=(dice(2.2, 3.8), chest, chest, chest + dice(-0.9, 0.3), chest + dice(-0.6, 1.2)),
        neck_y=dice(0.8, 3.5), scoop=dice(0.3, 1.6), hem_y=hem_y,
        sleeved=1, sleeve=(dice(4, 5), dice(3, 4)), elbow=(elbow_x, dice(10, 14)),
        cuff=(elbow_x + dice(-0.4, 1.6), dice(25, 28.6) - long * dice(4, 9)),
    )  # fmt: skip
    _front(canvas, dice, hem_y, buttoned, zipped)
    _collar(canvas, dice, dice(3, 7), dice.often(0.7))
    pocket_y = dice(15, 20)
    ends = (dice(2, 3), pocket_y), (dice(3.5, 5), pocket_y + 2)
    canvas.shade(limb(canvas.side, canvas.y, *ends, (1, 1)) * dice.often(0.5), dice(0.5, 0.9))
    canvas.weave(dice, stripes=0.08, checks=0.06, blots=0.18, folds=0.1)


def _shirt(canvas: Canvas, dice: Dice) -> None:
    """A collar and a row of buttons, or a blouse without; any sleeves; checks and flowers."""
    bare, short = dice.kinds(0.07, 0.25)
    long = 1 - bare - short
    plain = 1 - dice.often(0.4) * (1 - short)
    chest, hem_y = dice(5.8, 7.8), dice(25.8, 28.4)
    waist = chest + dice(-1, 0.4)
    elbow_x = chest + dice(0.6, 1.6) + short * 0.4
    _top(
        canvas, dice, _cloth(dice, 0.4),
        widths=(dice(2.2, 4), chest, chest, waist, waist + dice(0, 1.2)),
        neck_y=dice(0.2, 1.6), scoop=dice(0.4, 1.6) + (1 - plain) * dice(0, 2.5), hem_y=hem_y,
        sleeved=1 - bare, sleeve=(dice(3.6, 5), dice(2.6, 4)),
        elbow=(elbow_x, 5 + long * dice(5, 9)),
        cuff=(elbow_x + dice(0, 1.6), dice(8, 12) + long * dice(12, 17)),
    )  # fmt: skip
    _front(canvas, dice, hem_y, plain * dice.often(0.85), 0)
    _collar(canvas, dice, dice(2.5, 4.5), plain)
    canvas.weave(dice, stripes=0.06, checks=0.17, blots=0.25, folds=0.2)


def _heeled_sole(
    canvas: Canvas, dice: Dice, ground_y: Length, rise: Length, thick: Length
) -> Floats:
    """Mask of a sole climbing by `rise` from ball to heel, and of the heel or wedge under it."""
    x, y = canvas.x, canvas.y
    under = ground_y - rise * along(x, (dice(7, 11), 0), (dice(20, 23), 1))
    wedge = dice.often(0.3)
    width = wedge * dice(14, 20) + (1 - wedge) * dice(1.2, 6)
    heel_x = 28 - width * along(y, (ground_y - rise, 1), (ground_y, dice(0.5, 1)))
    heel = soft(x - heel_x) * soft(y - under) * soft(ground_y - y)
    plate = soft(y - under + thick) * soft(under - y)
    return np.maximum(plate, heel) * soft(x - 0.2) * soft(27.8 - x)


def _sandal(canvas: Canvas, dice: Dice) -> None:
    """A sole, flat or on a heel, and straps with the foot's place left black between them."""
    x, y = canvas.x, canvas.y
    high = dice.often(0.5)
    rise = high * dice(3, 12) + (1 - high) * dice(0, 1.5)
    ground_y = np.minimum(18 + rise * 0.7 + dice(-1, 2), 28)
    thick, grey = dice(0.8, 3), _cloth(dice)
    toe_y = ground_y - thick
    heel_y = toe_y - rise
    vamp_y, top_y = toe_y - dice(3, 6), np.maximum(heel_y - dice(4, 10), 0.5)
    cap = depth(x, y, (dice(2, 7), toe_y), (dice(1.5, 4.5), dice(2, 5)))
    straps = soft(cap) * dice.often(0.55)
    for _ in range(4):  # over the toes and the instep
        foot_x, width = dice(1, 15), dice(0.8, 3)
        strap = limb(x, y, (foot_x, toe_y), (foot_x + dice(-4, 5), vamp_y), (width, width))
        straps = np.maximum(straps, strap * dice.often(0.6))
    width, back_x, tie_x = dice(0.8, 2.6), dice(24, 27), dice(15, 21)
    for share, start, end in (  # behind the heel and round the ankle
        (0.75, (26.0, heel_y + 1), (back_x, top_y)),
        (0.5, (dice(7, 14), vamp_y + 1), (back_x, top_y + 1)),
        (0.45, (tie_x, top_y + dice(-1, 2)), (27.0, top_y + 1)),
        (0.3, (tie_x, top_y), (26.5, heel_y)),
    ):
        straps = np.maximum(straps, limb(x, y, start, end, (width, width)) * dice.often(share))
    upper_y = along(x, (0, ground_y - 3), (16, vamp_y - 1), (18, heel_y - 3), (28, top_y))
    cage = np.sin((x + y * dice(-0.8, 0.8)) * dice(0.7, 1.7)) > dice(-0.9, 0)
    straps = np.maximum(straps, soft(y - upper_y) * cage * dice.often(0.35))
    bed_y = toe_y - rise * along(x, (9, 0), (21.5, 1))
    canvas.paint(straps * soft(bed_y + 0.5 - y) * soft(27.6 - x), grey)
    canvas.weave(dice, stripes=0, checks=0.05, blots=0.2, folds=0.1)
    canvas.paint(_heeled_sole(canvas, dice, ground_y, rise, thick), grey * dice(0.4, 1.1))


def _sneaker(canvas: Canvas, dice: Dice) -> None:
    """A low shoe pointing left: flat sole of another grey, laces, stripes on the side."""
    x, high = canvas.x, dice.often(0.2) * dice(2, 8)
    y = canvas.y - dice(18.6, 21) - high / 2  # 0 on the ground
    thick, toe, tongue, heel = dice(1.2, 3), dice(2, 4), dice(6, 9) + high, dice(5, 8) + high
    tongue_x = dice(15, 19)
    under = along(x, (0, -dice(0.4, 1.6)), (6, 0), (22, 0), (28, -dice(0, 1)))
    above = along(
        x, (0, -toe * 0.7), (2.5, -toe), (9, -toe - 1.5), (tongue_x, -tongue),
        (tongue_x + 4, -dice(4.5, 6) - high), (26, -heel), (28, 0.6 - heel),
    )  # fmt: skip
    above -= thick
    frame = soft(x - 0.2) * soft(27.8 - x)
    canvas.paint(soft(y - above) * soft(under - y) * frame, _cloth(dice))
    laces = waves(x * dice(2, 3)) * soft(x - 8) * soft(tongue_x - x)
    canvas.shade(laces * line(y - above - 1.3, 2.6), dice(0.4, 1.2))
    stripe_x = x - dice(8, 16) + dice(-0.8, 0.8) * y
    stripes = waves(stripe_x * dice(0.9, 2)) * line(stripe_x - 2, 7) * soft(y + tongue)
    canvas.shade(stripes * dice.often(0.6), dice(0.2, 1.2))
    canvas.weave(dice, stripes=0, checks=0, blots=0.12, folds=0.05)
    canvas.shade(line(y - under + thick), dice(0.3, 1))
    canvas.paint(soft(y - under + thick) * soft(under - y) * frame, dice(0.05, 0.9))


def _bag(canvas: Canvas, dice: Dice) -> None:
    """A box, trapezium or round body; an arched handle, two straps or none; a flap, a clasp."""
    side, y = canvas.side, canvas.y
    clutch, pouch, tote = dice.kinds(0.3, 0.12, 0.22)
    handle = (1 - clutch - pouch) * (dice(4, 10) + tote * 4)
    half = dice(11, 14) - tote * dice(1, 7)
    height = dice(12, 19) + clutch * dice(-3, 2) + pouch * dice(8, 12)
    height = np.minimum(height, 28 - handle)
    top_y = 14 - (height - handle) / 2
    bottom_y = top_y + height
    grey, width, reach = _cloth(dice), dice(0.9, 2), half * dice(0.3, 0.9)
    arch = line(depth(side, y, (0, top_y), (reach, handle + 0.1)), width) * soft(top_y - y)
    strap = limb(
        side, y, (reach, top_y), (reach * dice(0.3, 1), top_y - handle - 0.1), (width,) * 2
    )
    arched = dice.often(0.6)
    canvas.paint((arched * arch + (1 - arched) * strap) * soft(handle - 1), grey * dice(0.6, 1.1))
    taper, corner = dice(-1.5, 2.5), dice(0.3, 5)
    inset = np.maximum(corner - np.minimum(y - top_y, bottom_y - y), 0)
    rounding = corner - np.sqrt(np.maximum(corner**2 - inset**2, 0))
    ends = (top_y, half - np.maximum(taper, 0)), (bottom_y, half + np.minimum(taper, 0))
    profile = along(y, *ends) - rounding
    canvas.paint(soft(profile - side) * soft(y - top_y) * soft(bottom_y - y), grey)
    flap_y = top_y + height * dice(0.15, 0.6)
    canvas.shade(line(y - flap_y), dice(0.5, 1))
    clasp = soft(depth(side, y, (0, flap_y), (dice(0.6, 2), dice(0.6, 1.8))))
    canvas.shade(clasp * dice.often(0.5), dice(0.2, 1.2))
    canvas.weave(dice, stripes=0.05, checks=0.06, blots=0.2, folds=0.05)


def _ankle_boot(canvas: Canvas, dice: Dice) -> None:
    """A shaft over the ankle, the toe to the left, flat or on a heel; laces, an elastic panel."""
    x, y = canvas.x, canvas.y
    rise = dice.often(0.45) * dice(1, 9)
    tall = dice(12, 20) + rise
    ground_y = np.minimum(14 + tall / 2, 28)
    top_y = ground_y - tall
    thick, shaft_x, toe, grey = dice(0.8, 2.5), dice(12, 17), dice(3.5, 6), _cloth(dice)
    above = along(
        x, (0, ground_y - toe * 0.6), (2.5, ground_y - toe),
        (shaft_x - 3, ground_y - toe - dice(2, 4.5) - rise * 0.4),
        (shaft_x + dice(0.5, 2), top_y + dice(0, 1)), (27, top_y + dice(-1, 1.5)),
    )  # fmt: skip
    under = ground_y - rise * along(x, (9, 0), (21.5, 1))
    back = 27.8 - along(y, (top_y, dice(0, 2.5)), (top_y + 8, 0))
    canvas.paint(soft(y - above) * soft(under - y) * soft(x - 0.2) * soft(back - x), grey)
    panel = line(x - dice(19, 22), 5) * soft(y - top_y - 1) * soft(ground_y - 8 - rise - y)
    canvas.shade(panel * dice.often(0.35), dice(0.6, 1.35))
    laces = waves((x + y) * dice(1, 2)) * line(y - above - 2, 5) * line(x - shaft_x, 8)
    canvas.shade(laces * dice.often(0.4), dice(0.3, 1.2))
    canvas.weave(dice, stripes=0, checks=0, blots=0.15, folds=0.08)
    canvas.shade(line(y - under + thick), dice(0.4, 1))
    canvas.paint(_heeled_sole(canvas, dice, ground_y, rise, thick), grey * dice(0.3, 1.1))


_DRAWN: tuple[Callable[[Canvas, Dice], None], ...] = (
    _t_shirt, _trouser, _pullover, _dress, _coat, _sandal, _shirt, _sneaker, _bag, _ankle_boot,
)  # fmt: skip


def _draw(label: int, streams: list[np.random.Generator]) -> Pixels8:
    """(B, 784) uint8: one garment of class `label` per stream, sharpened as the originals were."""
    dice = Dice(streams)
    canvas = Canvas(dice)
    _DRAWN[label](canvas, dice)
    grey = np.clip(canvas.grey, 0, 1)
    grey += dice(0.2, 1) * (grey - blurred(grey)) * (grey > 0.02)
    return np.rint(np.clip(grey, 0, 1) * 255).astype(np.uint8).reshape(len(streams), -1)


def _draw_split(count: int, seed: int, split: int) -> tuple[Pixels8, Labels]:
    """`count` garments in an order where every ten in a row hold each class once."""

    def stream(purpose: int, index: int) -> np.random.Generator:
        key = np.random.SeedSequence(seed, spawn_key=(split, purpose, index))
        return np.random.default_rng(key)

    classes = len(GARMENTS)
    blocks = [stream(0, block).permutation(classes) for block in range(-(-count // classes))]
    labels = np.array(blocks, np.int64).reshape(-1)[:count]
    pixels = np.empty((count, SIDE * SIDE), np.uint8)
    for label in range(classes):
        positions = np.flatnonzero(labels == label)
        for start in range(0, len(positions), _BATCH):
            part = positions[start : start + _BATCH]
            pixels[part] = _draw(label, [stream(1, int(position)) for position in part])
    return pixels, labels


def draw_sample(
    n_train: int = 6000, n_test: int = 1000, seed: int = 0
) -> tuple[Pixels8, Labels, Pixels8, Labels]:
    """Draw the built-in sample.

    Every image is a function of the seed, its split and its position alone: the same call gives the
    same arrays, and a larger sample begins with the smaller one. Every ten images in a row hold
    each class once, in random order.

    Args:
        n_train: training images, at least 0.
        n_test: test images, at least 0; none of them is a training image.
        seed: 0 or more.

    Returns:
        Train pixels (n_train, 784) uint8 with 0 the background, train labels (n_train,) int64 in
        0..9 indexing `GARMENTS`, then the same for test.

    Raises:
        UsageError: a count or the seed is negative.
    """
    for name, number in (("n_train", n_train), ("n_test", n_test), ("seed", seed)):
        if number < 0:
            raise UsageError(f"draw_sample: expected {name} of 0 or more, found {number}; raise it")
    return (*_draw_split(n_train, seed, 0), *_draw_split(n_test, seed, 1))
