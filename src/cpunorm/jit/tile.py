"""What the kernels share: sizes, slots, and a tile of values as they come from memory."""

# ruff: noqa: ANN001, ANN201

from __future__ import annotations

import numpy as np

from cpunorm.jit.lowlevel import as_computed, as_float64, as_type_of, at_byte, call_stage, finite, inline, offset, view
from cpunorm.program import SLOTS

BLOCK = 4096  # values read twice in a row by a reduction of runs: 16 KB of float32, half of the smallest L1
BRIEF = 1024  # values of a unit that is summed with others, a lane each: totals and divisions take as long as 30 vectors
TILE = 256  # values between load and store of the affine: streaming wants them fine (benchmarks/tile.py)
STRIP = 512  # columns that a reduction of columns accumulates at once, on the stack
WIDE = 2 * STRIP  # widened rows: one, and one to compare it with
ROWS = 32  # rows summed in T before they go to float64
FEW = 3072  # values of rows that stay in L1 while they are summed group by group: 12 KB of float32
LINE = 64  # bytes
# A sum of squares in float32 below this may have lost some: 2^-150 a square below the normal numbers, so of 4096 no more than 1e-7 of it.
TINY = 1e-34

(
    X,
    SECOND,
    Y,
    SUM,
    WEIGHT,
    BIAS,
    RUNNING_MEAN,
    RUNNING_VAR,
    MEAN,
    RSTD,
    GRAD_WEIGHT,
    GRAD_BIAS,
    SCRATCH,
) = range(len(SLOTS))


@inline
def in_range(squares):
    """Whether no sum of squares in float32 was lost: to infinity or NaN, or below the normal numbers."""
    return squares >= TINY and squares < np.inf


@inline
def merged(mu, other, share):
    """Chan's mean: mu + (other - mu) * share, exact for equal means; an infinite one stays infinite instead of inf - inf."""
    d = other - mu
    return mu + d * share if finite(d) else mu + other


@inline
def fetch(s, data, start, count, buffer):
    """data[start : start + count] in T: where it is, or widened into `buffer`."""
    if s.load:
        call_stage(s.load, buffer, at_byte(data, start * s.item_size), count)
        return view(buffer, 0, count)
    return view(data, start, count)


@inline
def rows_in_l1(n):
    """How many rows of `n` columns are summed together: a power of two, so that they make up ROWS."""
    rows = ROWS
    while rows > 1 and rows * n > FEW:
        rows //= 2
    return rows


@inline
def coefficients(s, buffers):
    """The table of coefficients."""
    return as_type_of(offset(as_float64(buffers[SCRATCH]), s.coefficients), as_computed(buffers[X]))
