"""Counts: exact (sum, sum of squares) of each item, unsigned integers of 1 or 2 bytes, as uint64. No rounding: any split and order of the
values gives the same.

Lanes are 32 bits wide and go to 64 after FULL values each: 65536 * 255 * 255 and 65536 * 65535 fit. Squares of uint16 fit 32 bits only one
at a time, and are summed in 64. An item has less than 2^32 values (65535 * 65535 * 2^32 < 2^64), and so have the caller's sums.
"""

# ruff: noqa: ANN001, ANN201, D205  (typed by the signatures in `cpunorm.jit.backend`)

from __future__ import annotations

import numpy as np

from cpunorm.jit.lowlevel import as_float64, as_uint8, as_uint16, as_uint32, as_uint64, inline, offset, record, stack, view
from cpunorm.jit.tile import SCRATCH, STRIP, X

FULL = 65536  # integers of 8 or 16 bits whose sum, and squares of 8 bits, fit 32 bits

one = np.uint32  # the width that lanes are computed in, or Numba takes 64 bits


@inline
def byte_sums(v):
    """Of no more than FULL values."""
    total = one(0)
    square = one(0)
    for q in range(v.size):
        total = one(total + v[q])
        square = one(square + one(v[q]) * one(v[q]))
    return total, square


@inline
def short_sums(v):
    """Of no more than FULL values."""
    total = one(0)
    square = np.uint64(0)
    for q in range(v.size):
        total = one(total + v[q])
        square += np.uint64(one(one(v[q]) * one(v[q])))
    return total, square


def counts_runs(step, buffers, lo, hi):
    """Item = (unit, piece), as in moments_runs: a piece is `length` values of a unit's `repeat` runs of `last`, `x_repeat` apart."""
    s = record(step)
    n = s.last
    table = as_uint64(offset(as_float64(buffers[SCRATCH]), s.moments))
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
            k = min(n - j, left, FULL)
            at = base + run * s.x_repeat + j
            if s.item_size == 1:
                part, part_squares = byte_sums(view(as_uint8(buffers[X]), at, k))
                total += np.uint64(part)
                squares += np.uint64(part_squares)
            else:
                part, wide_squares = short_sums(view(as_uint16(buffers[X]), at, k))
                total += np.uint64(part)
                squares += wide_squares
            left -= k
            j += k
            if j == n:
                j = 0
                run += 1
        entry = view(table, (outer * s.pieces + piece) * s.middle + channel, s.entries + 1)
        entry[0] = total
        entry[s.entries] = squares


@inline
def add_byte_rows(x, start, stride, rows, totals, lanes, total, squares):
    """Columns of `rows` rows, `stride` values apart: 32-bit lanes, four rows at a time so that fewer sums pass through memory."""
    n = total.size
    r = 0
    while r < rows:
        end = min(rows, r + FULL)
        for q in range(n):
            totals[q] = 0
            lanes[q] = 0
        while r + 4 <= end:
            a = view(x, start + r * stride, n)
            b = view(x, start + (r + 1) * stride, n)
            c = view(x, start + (r + 2) * stride, n)
            d = view(x, start + (r + 3) * stride, n)
            for q in range(n):
                i, j, k, m = one(a[q]), one(b[q]), one(c[q]), one(d[q])
                totals[q] = one(totals[q] + i + j + k + m)
                lanes[q] = one(lanes[q] + i * i + j * j + k * k + m * m)
            r += 4
        while r < end:
            a = view(x, start + r * stride, n)
            for q in range(n):
                i = one(a[q])
                totals[q] = one(totals[q] + i)
                lanes[q] = one(lanes[q] + i * i)
            r += 1
        for q in range(n):
            total[q] += np.uint64(totals[q])
            squares[q] += np.uint64(lanes[q])


@inline
def add_short_rows(x, start, stride, rows, totals, total, squares):
    """The same, squares in 64-bit lanes."""
    n = total.size
    r = 0
    while r < rows:
        end = min(rows, r + FULL)
        for q in range(n):
            totals[q] = 0
        while r + 4 <= end:
            a = view(x, start + r * stride, n)
            b = view(x, start + (r + 1) * stride, n)
            c = view(x, start + (r + 2) * stride, n)
            d = view(x, start + (r + 3) * stride, n)
            for q in range(n):
                i, j, k, m = one(a[q]), one(b[q]), one(c[q]), one(d[q])
                totals[q] = one(totals[q] + i + j + k + m)
                squares[q] += np.uint64(one(i * i)) + np.uint64(one(j * j)) + np.uint64(one(k * k)) + np.uint64(one(m * m))
            r += 4
        while r < end:
            a = view(x, start + r * stride, n)
            for q in range(n):
                i = one(a[q])
                totals[q] = one(totals[q] + i)
                squares[q] += np.uint64(one(i * i))
            r += 1
        for q in range(n):
            total[q] += np.uint64(totals[q])


def counts_columns(step, buffers, lo, hi):
    """Item = (outer index, piece), as in moments_columns: a piece is `length` values in rows of `last`, the last one cut short."""
    s = record(step)
    p = s.last
    table = as_uint64(offset(as_float64(buffers[SCRATCH]), s.moments))
    totals = view(stack(STRIP, as_uint32(buffers[X])), 0, STRIP)
    lanes = view(stack(STRIP, as_uint32(buffers[X])), 0, STRIP)
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
                add_byte_rows(x, at, s.x_middle, rows, totals, lanes, total, squares)
                add_byte_rows(x, last, s.x_middle, 1, totals, lanes, total[:rest], squares[:rest])
            else:
                y = as_uint16(buffers[X])
                add_short_rows(y, at, s.x_middle, rows, totals, total, squares)
                add_short_rows(y, last, s.x_middle, 1, totals, total[:rest], squares[:rest])
            column += w
