"""Moments: (count, mean, M2) of each item, M2 the sum of squared differences from the mean; not `centred`, the mean is 0 (RMS).

One pass over memory. A block that fits L1 is read twice there: its sum, then Chan's corrected two-pass sum of squares, both in T. Blocks
are merged in float64 by Chan, Golub and LeVeque's formula (1983): as accurate as two passes in float64, at the rate of reading.
"""

# ruff: noqa: ANN001, ANN201  (typed by the signatures in `cpunorm.jit.backend`)

from __future__ import annotations

import numpy as np

from cpunorm.jit.lowlevel import as_float64, difference, finite, inline, offset, record, stack, summing, view
from cpunorm.jit.tile import BLOCK, ROWS, SCRATCH, STRIP, WIDE, X, fetch, fetch_sum

# A sum of squares in float32 below this may have lost some: 2^-150 a square below the normal numbers, so of 4096 no more than 1e-7 of it.
TINY = 1e-34


@summing
def block_moments(v):
    """Mean and M2 of a block in L1: a shifted sum, then the squares of differences, corrected for the rounding of m to T.

    The first value is the shift: the mean of a constant block is that constant exactly, and the sum of a block far from zero loses nothing.
    """
    zero = v.dtype.type(0)
    first = v[0]
    total = zero
    for q in range(v.size):
        total += difference(v[q], first)
    m = first + total / v.dtype.type(v.size)
    total = zero
    squares = zero
    for q in range(v.size):
        d = difference(v[q], m)
        total += d
        squares += d * d
    error = np.float64(total) / v.size
    return np.float64(m) + error, max(np.float64(squares) - error * np.float64(total), 0.0)


@summing
def block_squares(v):
    """The sum of squares."""
    squares = v.dtype.type(0)
    for q in range(v.size):
        squares += v[q] * v[q]
    return np.float64(squares)


@summing
def wide_block_moments(v, centred):
    """The same in float64: for blocks whose sums leave the range of float32, or that hold NaN or infinity."""
    m = 0.0
    if centred:
        for q in range(v.size):
            m += np.float64(v[q])
        m /= v.size
    squares = 0.0
    for q in range(v.size):
        d = np.float64(v[q]) - m
        squares += d * d
    return m, squares


@summing
def all_equal(v):
    """Whether a block is constant: its M2 is 0 then, and no square was lost."""
    other = 0
    for q in range(v.size):
        other += v[q] != v[0]
    return other == 0


@inline
def merged(mu, other, share):
    """Chan's mean: mu + (other - mu) * share, exact for equal means; an infinite one stays infinite instead of inf - inf."""
    d = other - mu
    return mu + d * share if finite(d) else mu + other


def moments_runs(step, buffers, lo, hi):
    """Item = (unit, piece). A unit is `repeat` runs of `last` values, `x_repeat` apart; a piece is `length` of these values.

    A second operand is added first (the residual of layer and RMS norm).
    """
    s = record(step)
    n = s.last
    table = as_float64(buffers[SCRATCH])
    gathered = stack(BLOCK, buffers[X])
    other = stack(BLOCK, buffers[X])
    in_place = s.load == 0 and s.has_second == 0
    for item in range(lo, hi):
        unit = item // s.pieces
        piece = item - unit * s.pieces
        outer = unit // s.middle
        channel = unit - outer * s.middle
        base = outer * s.x_outer + channel * s.x_middle
        second = outer * s.second_outer + channel * s.second_middle
        start = piece * s.length
        left = min(s.length, s.total - start)
        run = start // n
        j = start - run * n
        count = 0.0
        mean = 0.0
        m2 = 0.0
        while left > 0:
            k = min(BLOCK, left)
            if in_place and j + k <= n:  # inside one run: read where it is
                v = view(buffers[s.source], base + run * s.x_repeat + j, k)
                j += k
                if j == n:
                    j = 0
                    run += 1
            else:  # across runs: gathered first, so that a short run costs no merge of its own
                v = view(gathered, 0, k)
                f = 0
                while f < k:
                    w = min(n - j, k - f)
                    at = second + run * s.second_repeat + j
                    part = fetch_sum(s, buffers, base + run * s.x_repeat + j, at, w, offset(gathered, f), other)
                    if in_place:
                        to = view(gathered, f, w)
                        for q in range(w):
                            to[q] = part[q]
                    f += w
                    j += w
                    if j == n:
                        j = 0
                        run += 1
            size = np.float64(k)
            if s.centred:
                block_mean, block_m2 = block_moments(v)
            else:
                block_mean, block_m2 = 0.0, block_squares(v)
            if not block_m2 < np.inf or (block_m2 < TINY and not ((s.centred or v[0] == 0) and all_equal(v))):
                block_mean, block_m2 = wide_block_moments(v, s.centred)
            both = count + size
            d = block_mean - mean
            m2 += block_m2 + d * d * (count * size / both)
            mean = merged(mean, block_mean, size / both)
            count = both
            left -= k
        entry = s.moments + (outer * s.pieces + piece) * s.middle + channel
        table[entry] = count
        table[entry + s.entries] = mean
        table[entry + 2 * s.entries] = m2


@summing
def strip_moments(s, x, start, stride, rows, shift, sums, squares, wide, count, mean, m2):
    """Columns of `rows` rows, `stride` apart: sums of d = x - shift and of d * d, ROWS rows in T, then in float64.

    The shift is the mean of the first rows, so that M2 = sum(d * d) - sum(d)^2 / n cancels little; a constant column is exact again.
    """
    n = count.size
    zero = shift.dtype.type(0)
    for q in range(n):
        sums[q] = zero
        shift[q] = zero
        mean[q] = 0.0
        m2[q] = 0.0
    if s.centred:
        top = fetch(s, x, start, n, wide)
        k = min(rows, 8)
        for r in range(1, k):
            v = fetch(s, x, start + r * stride, n, offset(wide, STRIP))
            for q in range(n):
                sums[q] += difference(v[q], top[q])
        part = shift.dtype.type(1) / shift.dtype.type(k)
        for q in range(n):
            shift[q] = top[q] + sums[q] * part
    r = 0
    while r < rows:
        end = min(rows, r + ROWS)
        for q in range(n):
            sums[q] = zero
            squares[q] = zero
        while r < end:  # a row at a time, as they lie in memory: four at once read 40% slower (benchmarks/rows.c)
            v = fetch(s, x, start + r * stride, n, wide)
            for q in range(n):
                d = difference(v[q], shift[q])
                sums[q] += d
                squares[q] += d * d
            r += 1
        for q in range(n):
            mean[q] += np.float64(sums[q])
            m2[q] += np.float64(squares[q])
    size = np.float64(rows)
    lost = 0
    for q in range(n):
        if s.centred:
            m2[q] -= mean[q] * mean[q] / size
            mean[q] = np.float64(shift[q]) + mean[q] / size
        else:
            mean[q] = 0.0
        count[q] = size
        lost += not (m2[q] >= TINY and m2[q] < np.inf)
    if lost:
        mend_strip(s, x, start, stride, rows, wide, mean, m2)


@inline
def mend_strip(s, x, start, stride, rows, buffer, mean, m2):
    """Columns whose sums left the range, and only these (the others keep their bits), again in float64; a constant one is right."""
    n = mean.size
    wide_mean = view(stack(STRIP, as_float64(buffer)), 0, n)
    wide_m2 = view(stack(STRIP, as_float64(buffer)), 0, n)
    top = offset(buffer, STRIP)
    first = view(top, 0, n)
    v = fetch(s, x, start, n, buffer)
    for q in range(n):
        first[q] = v[q]
        wide_m2[q] = 0.0
    for r in range(1, rows):
        v = fetch(s, x, start + r * stride, n, buffer)
        for q in range(n):
            wide_m2[q] += 0.0 if v[q] == first[q] else 1.0
    lost = 0
    for q in range(n):
        constant = s.centred and wide_m2[q] == 0.0 and m2[q] < np.inf
        if not (m2[q] >= TINY and m2[q] < np.inf) and not constant:
            lost += 1
            m2[q] = -1.0
        elif m2[q] < 0.0:
            m2[q] = 0.0
    if lost:
        wide_strip_moments(s, x, start, stride, rows, buffer, wide_mean, wide_m2)
        for q in range(n):
            if m2[q] == -1.0:
                mean[q] = wide_mean[q]
                m2[q] = wide_m2[q]


@inline
def wide_strip_moments(s, x, start, stride, rows, buffer, mean, m2):
    """Two passes in float64."""
    n = mean.size
    for q in range(n):
        mean[q] = 0.0
        m2[q] = 0.0
    if s.centred:
        for r in range(rows):
            v = fetch(s, x, start + r * stride, n, buffer)
            for q in range(n):
                mean[q] += np.float64(v[q])
        for q in range(n):
            mean[q] /= np.float64(rows)
    for r in range(rows):
        v = fetch(s, x, start + r * stride, n, buffer)
        for q in range(n):
            d = np.float64(v[q]) - mean[q]
            m2[q] += d * d


def moments_columns(step, buffers, lo, hi):
    """Item = (outer index, piece). A piece is `length` values in rows of `last`, `x_middle` apart; the last row may be cut short."""
    s = record(step)
    p = s.last
    x = buffers[s.source]
    table = as_float64(buffers[SCRATCH])
    shift = view(stack(STRIP, x), 0, STRIP)
    sums = view(stack(STRIP, x), 0, STRIP)
    squares = view(stack(STRIP, x), 0, STRIP)
    wide = stack(WIDE, x)
    for item in range(lo, hi):
        outer = item // s.pieces
        start = (item - outer * s.pieces) * s.length
        left = min(s.length, s.total - start)
        base = outer * s.x_outer + start // p * s.x_middle
        rows = left // p
        rest = left - rows * p
        entry = s.moments + item * p
        if rows == 0:
            for i in range(3):
                row = view(table, entry + i * s.entries, p)
                for q in range(p):
                    row[q] = 0.0
        column = 0 if rows else p
        while column < p:
            w = min(STRIP, p - column)
            at = base + column
            count = view(table, entry + column, w)
            mean = view(table, entry + column + s.entries, w)
            m2 = view(table, entry + column + 2 * s.entries, w)
            strip_moments(s, x, at, s.x_middle, rows, shift, sums, squares, wide, count, mean, m2)
            column += w
        if rest:  # one value more for the first columns
            count = view(table, entry, rest)
            mean = view(table, entry + s.entries, rest)
            m2 = view(table, entry + 2 * s.entries, rest)
            v = fetch(s, x, base + rows * s.x_middle, rest, wide)
            for q in range(rest):
                both = count[q] + 1.0
                d = np.float64(v[q]) - mean[q]
                if s.centred:
                    m2[q] += d * d * (count[q] / both)
                    mean[q] = merged(mean[q], np.float64(v[q]), 1.0 / both)
                else:
                    m2[q] += d * d
                count[q] = both
