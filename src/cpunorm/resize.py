"""Weights of a resize: bilinear with antialias, as Pillow's ``Image.resize(size, BILINEAR)``.

One axis at a time, columns first. With ``ratio = before / after`` and ``support = max(ratio, 1)``, the value written at i is centred at
``c = (i + 0.5) * ratio`` and takes the values x with ``int(c - support + 0.5) <= x < int(c + support + 0.5)`` that exist, each with the
weight ``1 - abs(x + 0.5 - c) / support`` (0 if negative), divided by their sum. (Pillow, Resample.c, `precompute_coeffs`.)

Bytes are rounded after each axis, so that the order shows. Columns come first, as in Pillow; from version 13 on it takes rows first where
that is less work (heights that shrink much more than widths), which may differ by 1.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np

Array = np.ndarray[Any, Any]

BITS = 22  # of the fraction of a weight of bytes: 32 less 8 of a byte and 2 for sums beyond it (Pillow's PRECISION_BITS)
LANES = 8  # weights that the kernels multiply at once: rows of `table` are filled up with zeros (DOT_LANES in the backends)


class Weights(NamedTuple):
    """Of each place written: the first place read, how many, and their weights (rows filled up with zeros)."""

    first: Array
    counts: Array
    weights: Array


def triangle(before: int, after: int, start: int = 0, count: int | None = None) -> Weights:
    """The weights in float64 of `count` places from `start` on, when an axis of `before` values becomes one of `after`."""
    ratio = before / after
    support = max(ratio, 1.0)
    center = (np.arange(start, after if count is None else start + count) + 0.5) * ratio
    first = np.maximum(np.trunc(center - support + 0.5).astype(np.int64), 0)
    stop = np.minimum(np.trunc(center + support + 0.5).astype(np.int64), before)
    x = first[:, None] + np.arange(int((stop - first).max()))
    weights = np.maximum(1 - np.abs((x - center[:, None] + 0.5) * (1 / support)), 0)
    weights[x >= stop[:, None]] = 0
    weights /= weights.sum(axis=1, keepdims=True)
    counts = weights.shape[1] - (weights > 0)[:, ::-1].argmax(axis=1)  # one at the end may be 0: it must not spread a NaN
    return Weights(first, counts, weights[:, : counts.max()])


def in_bits(weights: Array) -> Array:
    """As whole multiples of 2**-BITS, halves away from zero (there are no negative ones)."""
    return np.floor(weights * (1 << BITS) + 0.5).astype(np.int32)


def table(found: Weights, start: int, *, whole: bool) -> tuple[Array, int]:
    """What a kernel reads: rows of first place less `start`, count and weights (`whole`: in bits, else float32's); and weights a row."""
    taps = -(-found.weights.shape[1] // LANES) * LANES
    rows = np.zeros((len(found.first), 2 + taps), np.int32)
    rows[:, 0] = found.first - start
    rows[:, 1] = found.counts
    values = in_bits(found.weights) if whole else found.weights.astype(np.float32).view(np.int32)
    rows[:, 2 : 2 + found.weights.shape[1]] = values
    return rows, taps


def target(size: Any, height: int, width: int) -> tuple[int, int]:
    """Height and width of a picture after ``size=(height, width)`` or ``("short", n)``.

    The shorter side becomes n, the longer ``int(n * longer / shorter)``, as in torchvision's ``Resize(n)``, and at least 1.
    """
    if size[0] != "short":
        return size[0], size[1]
    n = size[1]
    if height <= width:
        return n, max(1, math.floor(n * width / height))
    return max(1, math.floor(n * height / width)), n
