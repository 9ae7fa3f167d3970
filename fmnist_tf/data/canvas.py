"""Soft shapes for drawing many small grey pictures at once with numpy alone.

In: random streams, one per picture. Out: B pictures as (B, 28, 28) greys from 0 (black) to 1.
This module must not know what is drawn: the garments are in `sample`.

A number per picture is (B, 1, 1). Lengths are in pixels: x runs from 0 (left) to 28, y from 0 (top)
to 28, and `side` is the distance from the middle column, so that what is drawn at a `side` is drawn
left and right. A mask is 1 inside a shape and 0 outside; an edge one pixel wide between them stands
in for supersampling.
"""

from __future__ import annotations

import itertools

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.floating]
Length = Floats | float
Pair = tuple[Length, Length]

SIDE = 28
_NUMBERS = 96  # random numbers set aside for one picture; no drawing throws more


class Dice:
    """The random numbers of B pictures: each picture throws its own, so none depends on another.

    Attributes:
        noise: (B, 28, 28) standard normal, for textures.
    """

    def __init__(self, streams: list[np.random.Generator]) -> None:
        shape = (SIDE, SIDE)
        self._numbers = np.stack([stream.random(_NUMBERS, np.float32) for stream in streams])
        self.noise = np.stack([stream.standard_normal(shape, np.float32) for stream in streams])
        self._thrown = 0

    def __call__(self, low: float, high: float) -> Floats:
        """(B, 1, 1) uniform in [low, high)."""
        numbers = self._numbers[:, self._thrown, None, None]
        self._thrown += 1
        return np.float32(low) + np.float32(high - low) * numbers

    def often(self, share: float) -> Floats:
        """(B, 1, 1): 1 with probability `share`, else 0."""
        return (self(0, 1) < share).astype(np.float32)

    def kinds(self, *shares: float) -> list[Floats]:
        """One (B, 1, 1) switch per share; at most one is 1, none for what is left of 1."""
        number, ends = self(0, 1), np.cumsum(shares)
        starts = [0, *ends[:-1]]
        return [
            ((low <= number) & (number < high)).astype(np.float32)
            for low, high in zip(starts, ends, strict=True)
        ]


def soft(inside: Floats) -> Floats:
    """Coverage of pixels whose centres lie `inside` pixels within an edge: 0 outside, 1 inside."""
    coverage: Floats = np.clip(inside + 0.5, 0, 1)
    return coverage


def line(distance: Floats, width: Length = 1.0) -> Floats:
    """Coverage of a line `width` wide at `distance` from its middle."""
    return soft(width / 2 - np.abs(distance))


def along(at: Floats, *knots: Pair) -> Floats:
    """Piecewise-linear profile through `knots` (position, value), constant beyond the ends."""
    value = knots[0][1] + np.zeros_like(at)
    for (start, low), (end, high) in itertools.pairwise(knots):
        value += (high - low) * np.clip((at - start) / np.maximum(end - start, 1e-3), 0, 1)
    return value


def depth(x: Floats, y: Floats, centre: Pair, radii: Pair) -> Floats:
    """Roughly how far a point lies inside an ellipse."""
    radius = np.hypot((x - centre[0]) / radii[0], (y - centre[1]) / radii[1])
    inside: Floats = (1 - radius) * np.minimum(*radii)
    return inside


def limb(x: Floats, y: Floats, start: Pair, end: Pair, widths: Pair) -> Floats:
    """Straight band from `start` to `end`, tapering between two widths."""
    run_x, run_y = end[0] - start[0], end[1] - start[1]
    length = np.hypot(run_x, run_y)
    forward = ((x - start[0]) * run_x + (y - start[1]) * run_y) / length
    aside = ((x - start[0]) * run_y - (y - start[1]) * run_x) / length
    width = along(forward, (0, widths[0]), (length, widths[1]))
    return line(aside, width) * soft(forward) * soft(length - forward)


def waves(angle: Floats) -> Floats:
    """Bands between 0 and 1 with steep edges."""
    bands: Floats = np.clip(2 * np.sin(angle), 0, 1)
    return bands


def blurred(picture: Floats) -> Floats:
    """(B, 28, 28) smoothed by a 1-2-1 kernel each way; beyond the frame lies 0."""
    padded = np.pad(picture, ((0, 0), (1, 1), (1, 1)))
    rows = padded[:, :-2] + 2 * padded[:, 1:-1] + padded[:, 2:]
    return (rows[:, :, :-2] + 2 * rows[:, :, 1:-1] + rows[:, :, 2:]) / 16


class Canvas:
    """B pictures being drawn, on coordinates moved and bent a little for each of them.

    Attributes:
        x: columns of the pixel centres, bent.
        y: rows of the pixel centres, bent.
        side: distance from the middle column, bent.
        grey: the pictures so far.
    """

    def __init__(self, dice: Dice) -> None:
        centres = np.arange(SIDE, dtype=np.float32) + 0.5
        x, y = centres[None, None, :], centres[None, :, None]
        wave = np.sin(y / dice(3, 8) + dice(0, 7)) * dice(0, 0.5)
        self.x = x + dice(-0.6, 0.6) + dice(-0.03, 0.03) * (y - 14) + wave
        self.y = y + dice(-0.03, 0.03) * (x - 14)
        self.side = np.abs(self.x - 14)
        self.grey = np.zeros_like(self.x)

    def paint(self, mask: Floats, grey: Length) -> None:
        """Lay `grey` over the pictures where `mask` is 1."""
        self.grey += mask * (grey - self.grey)

    def shade(self, mask: Floats, factor: Length) -> None:
        """Darken (a factor below 1) or brighten what is drawn where `mask` is 1."""
        self.grey *= 1 + mask * (factor - 1)

    def weave(self, dice: Dice, stripes: float, checks: float, blots: float, folds: float) -> None:
        """Give what is drawn a texture: grain, folds up to depth `folds`, shading, a pattern.

        `stripes`, `checks` and `blots` (flowers, camouflage) are the shares of pictures with each.
        """
        striped, checked, blotted = dice.kinds(stripes, checks, blots)
        density, phase = dice(0.6, 2.2), dice(0, 7)
        across, down = waves(self.y * density + phase), waves(self.x * density + phase)
        spots = np.clip(blurred(dice.noise) * 2 + 0.5, 0, 1)
        pattern = striped * across + checked * (across + down) / 2 + blotted * spots
        self.grey *= 1 - dice(0.15, 0.75) * pattern
        fold = np.sin(self.x * dice(0.8, 2) + self.y * dice(-0.2, 0.2) + dice(0, 7))
        self.grey *= 1 + dice(0, folds) * fold * along(self.y, (4, 0), (24, 1))
        self.grey *= 1 + dice(-0.25, 0.25) * (self.y / 14 - 1)
        self.grey *= 1 + dice(-0.12, 0.12) * (self.x / 14 - 1)
        self.grey *= 1 + (dice(0, 0.4) ** 3 + 0.02) * dice.noise
