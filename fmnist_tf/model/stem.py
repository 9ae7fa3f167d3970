"""Resizing, value range and a first convolution -> one small convolution of the grey image.

In: the kernel of a convolution over colour images, resized (bilinear) from grey ones by a whole
factor. Out: the kernels, over the grey images themselves, that give the same numbers. All three
steps are linear: a source pixel becomes `factor` pixels and, after a convolution of some stride,
`factor / stride` outputs along an axis. Where these read that pixel and the two beside it alone,
each of them does so with weights of its own. This module must not know layers or networks.

Zeros that the convolution pads with are the one thing that does not follow the grey image: they lie
around the resized colours. So the source is continued by one pixel on each side, as resizing
continues it, and the kernel also reads channels that are the image on that rim and zero elsewhere;
through them it takes away again what lies beyond the edge. The constant part of the value range has
channels of its own, the same of an image of ones.

Shape letters: H W source, K kernel, C colours, F filters, P and Q outputs of a pixel in rows and
columns.
"""

from __future__ import annotations

import math

import numpy as np

# The image and its three rims (rows, columns, both), each of grey and of ones.
N_CHANNELS = 8


def axis_weights(factor: int, stride: int, size: int, padding: int) -> np.ndarray | None:
    """Return the weights of a source pixel and its two neighbours, along one axis.

    The convolution must have `factor / stride` outputs for each source pixel, padded with zeros at
    the end as far as they reach.

    Args:
        factor: pixels that resizing makes of one, a multiple of `stride`.
        stride: of the convolution.
        size: K, of its kernel.
        padding: zeros before the first resized pixel.

    Returns:
        (2, P, K, 3) float64: of each output of a pixel and each place in the kernel. First of the
        continued image (bilinear, with half-pixel centres: `tf.image.resize`), then of its rim.
        None if an output reads further than the neighbours.
    """
    n_outputs = factor // stride
    weights = np.zeros((2, n_outputs, size, 3))
    for output in range(n_outputs):
        for place in range(size):
            resized = stride * output - padding + place
            source = (resized + 0.5) / factor - 0.5
            if not -1 <= source <= 1:
                return None
            lower = min(math.floor(source), 0)
            share = source - lower
            weights[0, output, place, [lower + 1, lower + 2]] = 1 - share, share
            # Only an outermost pixel's outputs reach beyond the edge, where the rim is the
            # outermost pixel again; within, the rim is zero.
            if resized < 0:
                weights[1, output, place, 0] = -1
            if resized >= factor:
                weights[1, output, place, 2] = -1
    return weights


def compose_kernel(
    kernel: np.ndarray,
    scale: np.ndarray,
    offset: np.ndarray,
    rows: np.ndarray,
    columns: np.ndarray,
) -> np.ndarray:
    """Return the kernels over `channel_masks`' channels.

    Args:
        kernel: (K, K, C, F), of the convolution, or of unlike sides.
        scale: (C,), each colour's factor on grey.
        offset: (C,), what each colour adds.
        rows: `axis_weights` from top to bottom.
        columns: and from left to right.

    Returns:
        (P, 3, 3, 8, Q * F) float64: for each of a source pixel's rows of outputs, a kernel whose
        filters are the outputs in that row.
    """
    of_grey_and_ones = np.einsum("ijcf,vc->ijvf", kernel, np.stack([scale, offset]))
    composed = np.einsum("rpiy,sqjx,ijvf->pyxrsvqf", rows, columns, of_grey_and_ones, optimize=True)
    return composed.reshape(len(composed), 3, 3, N_CHANNELS, -1)


def channel_masks(height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Return what makes the channels of a continued image: `image * first + second`.

    Returns:
        Two of (H + 2, W + 2, 8) float64, of zeros and ones.
    """

    def with_rim(size: int) -> np.ndarray:
        rim = np.zeros(size + 2)
        rim[[0, -1]] = 1
        return np.stack([np.ones(size + 2), rim])

    places = np.einsum("ry,sx->yxrs", with_rim(height), with_rim(width))
    nothing = np.zeros_like(places)
    shape = (height + 2, width + 2, N_CHANNELS)
    of_grey = np.stack([places, nothing], axis=-1).reshape(shape)
    return of_grey, np.stack([nothing, places], axis=-1).reshape(shape)
