"""Counts: exact (sum, sum of squares) of each item, unsigned integers of 1 or 2 bytes, as uint64. No rounding: any split and order of the
values gives the same.

Lanes are twice as wide as the values, and a square is added by halves, each no larger than a value: 256 rows of uint8 fit 16 bits, 65536
rows of uint16 fit 32. Then they go to 64 bits. An item has no more than 2^32 values (65535^2 * 2^32 < 2^64).
"""

# ruff: noqa: ANN001, ANN201  (typed by the signatures in `cpunorm.jit.backend`)

from __future__ import annotations

import numpy as np

from cpunorm.jit.lowlevel import as_float64, as_uint8, as_uint16, as_uint32, as_uint64, inline, offset, record, stack, view
from cpunorm.jit.tile import SCRATCH, STRIP, X

LONG = 1024  # integers in a run that are worth adding up as columns
PART = LONG // 4
LANES = 3 * STRIP

wide = np.uint64


@inline
def add_rows(x, start, stride, rows, full, half, lanes, sums, squares):
    """Columns of `rows` rows, `stride` values apart.

    `lanes` points to room of twice the width of a value: 3 * STRIP; after `full` rows they are full. `half` has the bits of a value.
    (The callers say both: a function passed as an argument would be an address, and the kernel not kept on disk.)
    """
    n = sums.size
    total = view(lanes, 0, n)
    low = view(lanes, STRIP, n)
    high = view(lanes, 2 * STRIP, n)
    lane = total.dtype.type  # the width to compute in, or Numba takes 64 bits
    mask = lane((1 << half) - 1)
    r = 0
    while r < rows:
        end = min(rows, r + full)
        for q in range(n):
            total[q] = 0
            low[q] = 0
            high[q] = 0
        while r < end:
            a = view(x, start + r * stride, n)
            for q in range(n):
                i = lane(a[q])
                total[q] = lane(total[q] + i)
                i = lane(i * i)
                low[q] = lane(low[q] + (i & mask))
                high[q] = lane(high[q] + (i >> half))
            r += 1
        for q in range(n):
            sums[q] += wide(total[q])
            squares[q] += wide(low[q]) + (wide(high[q]) << wide(half))


@inline
def run_sums(x, start, n, full, half, lanes, sums, squares):
    """Of `n` values in a row: as rows of PART columns, and the rest one by one."""
    total = wide(0)
    square = wide(0)
    done = 0
    if n >= LONG:
        done = n // PART * PART
        for q in range(PART):
            sums[q] = 0
            squares[q] = 0
        add_rows(x, start, PART, n // PART, full, half, lanes, sums, squares)
        for q in range(PART):
            total += sums[q]
            square += squares[q]
    rest = view(x, start + done, n - done)
    for q in range(rest.size):
        v = np.uint32(rest[q])
        total += wide(v)
        square += wide(np.uint32(v * v))
    return total, square


def counts_runs(step, buffers, lo, hi):
    """Item = (unit, piece), as in moments_runs: a piece is `length` values of a unit's `repeat` runs of `last`, `x_repeat` apart."""
    s = record(step)
    n = s.last
    table = as_uint64(offset(as_float64(buffers[SCRATCH]), s.moments))
    lanes = stack(LANES, as_uint32(buffers[X]))
    sums = view(stack(PART, table), 0, PART)
    more = view(stack(PART, table), 0, PART)
    for item in range(lo, hi):
        unit = item // s.pieces
        piece = item - unit * s.pieces
        outer = unit // s.middle
        channel = unit - outer * s.middle
        base = outer * s.x_outer + channel * s.x_middle
        start = piece * s.length
        left = min(s.length, s.total - start)
        run = start // n
        j = start - run * n
        total = np.uint64(0)
        squares = np.uint64(0)
        while left > 0:
            k = min(n - j, left)
            at = base + run * s.x_repeat + j
            if s.item_size == 1:
                part, part_squares = run_sums(as_uint8(buffers[X]), at, k, 256, 8, as_uint16(lanes), sums, more)
            else:
                part, part_squares = run_sums(as_uint16(buffers[X]), at, k, 65536, 16, lanes, sums, more)
            total += part
            squares += part_squares
            left -= k
            j = 0
            run += 1
        entry = view(table, (outer * s.pieces + piece) * s.middle + channel, s.entries + 1)
        entry[0] = total
        entry[s.entries] = squares


def counts_columns(step, buffers, lo, hi):
    """Item = (outer index, piece), as in moments_columns: a piece is `length` values in rows of `last`, the last one cut short."""
    s = record(step)
    p = s.last
    table = as_uint64(offset(as_float64(buffers[SCRATCH]), s.moments))
    lanes = stack(LANES, as_uint32(buffers[X]))
    for item in range(lo, hi):
        outer = item // s.pieces
        start = (item - outer * s.pieces) * s.length
        left = min(s.length, s.total - start)
        base = outer * s.x_outer + start // p * s.x_middle
        rows = left // p
        column = 0
        while column < p:
            w = min(STRIP, p - column)
            rest = max(0, min(w, left - rows * p - column))  # one value more for the first columns
            total = view(table, item * p + column, w)
            squares = view(table, item * p + column + s.entries, w)
            for q in range(w):
                total[q] = 0
                squares[q] = 0
            at = base + column
            last = at + rows * s.x_middle
            if s.item_size == 1:
                x = as_uint8(buffers[X])
                add_rows(x, at, s.x_middle, rows, 256, 8, as_uint16(lanes), total, squares)
                add_rows(x, last, s.x_middle, 1, 256, 8, as_uint16(lanes), total[:rest], squares[:rest])
            else:
                y = as_uint16(buffers[X])
                add_rows(y, at, s.x_middle, rows, 65536, 16, lanes, total, squares)
                add_rows(y, last, s.x_middle, 1, 65536, 16, lanes, total[:rest], squares[:rest])
            column += w
