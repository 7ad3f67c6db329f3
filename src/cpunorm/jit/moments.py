"""Moments: (count, mean, M2) of each item, M2 the sum of squared differences from the mean; not `centred`, the mean is 0 (RMS).

One pass over memory. A block of values in L1 is summed as d = x - shift and d * d in T, where the shift is the mean so far: then
M2 = sum(d * d) - sum(d)^2 / n cancels little; where it would cancel half or more, the block is read again with its own mean as the
shift. Blocks are merged in float64 by Chan, Golub and LeVeque's formula (1983): as accurate as two passes in float64,
but for runs shorter than a vector, all in one lane of it: 1300 squares of them cost 3e-6 of a variance in float32.
"""

# ruff: noqa: ANN001, ANN201  (typed by the signatures in `cpunorm.jit.backend`)

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from cpunorm.jit.lowlevel import as_computed, as_float64, finite, inline, inlined, offset, record, size_of, stack, summing, view
from cpunorm.jit.tile import BLOCK, ROWS, SCRATCH, SECOND, STRIP, WIDE, rows_in_l1
from cpunorm.jit.vectors import (
    GROUP,
    add_to,
    lanes,
    last_lanes,
    load,
    load_group,
    load_some,
    prefetch_group,
    splat_group,
    store,
    store_some,
)
from cpunorm.jit.vectors import total as total_of

# A sum of squares in float32 below this may have lost some: 2^-150 a square below the normal numbers, so of 4096 no more than 1e-7 of it.
TINY = 1e-34
LAST = GROUP - 1


@inline
def in_range(squares):
    """Whether no sum of squares in float32 was lost: to infinity or NaN, or below the normal numbers."""
    return squares >= TINY and squares < np.inf


class Unit(NamedTuple):
    """Where the values of a unit are: runs of `last` values, `stride` apart; with `has_second` the residual is added to them."""

    x: Any
    second: Any
    last: Any
    stride: Any
    second_stride: Any
    ahead: Any  # what is fetched meanwhile,
    passed: Any  # and the bit of an index where it is not


@inlined
def values(x, r, q, has_second):
    """A vector of x, or of x + residual."""
    return load(x, q) + load(r, q) if has_second else load(x, q)


@inlined
def group_of_values(x, r, q, has_second):
    """The same of a group."""
    return load_group(x, q) + load_group(r, q) if has_second else load_group(x, q)


@inlined
def sum_block(u, start, count, shift, has_second):
    """The sums of d = x - shift and of d * d over `count` values of a unit from value `start` on. A constant's d are 0."""
    width = lanes(u.x)
    sums = splat_group(u.x, 0)
    squares = splat_group(u.x, 0)
    run = 0 if start < u.last else start // u.last  # a division takes as long as 20 vectors
    j = start - run * u.last
    left = count
    while left > 0:
        x = offset(u.x, run * u.stride + j)
        r = offset(u.second, run * u.second_stride + j)
        n = min(u.last - j, left)
        q = 0
        while q + GROUP * width <= n:
            if not q & u.passed:
                prefetch_group(x, q, u.ahead)
            d = group_of_values(x, r, q, has_second) - shift
            sums += d
            squares += d * d
            q += GROUP * width
        if q + width <= n:
            e = values(x, r, q, has_second) - shift
            sums = add_to(sums, 0, e)
            squares = add_to(squares, 0, e * e)
            q += width
        if q + width <= n:
            e = values(x, r, q, has_second) - shift
            sums = add_to(sums, 1, e)
            squares = add_to(squares, 1, e * e)
            q += width
        if q + width <= n:
            e = values(x, r, q, has_second) - shift
            sums = add_to(sums, 2, e)
            squares = add_to(squares, 2, e * e)
            q += width
        if q < n:  # the last lanes of a vector that ends with the run
            if n >= width:
                e = last_lanes(values(x, r, n - width, has_second) - shift, n - q)
            else:
                e = load_some(x, 0, n, shift)
                if has_second:
                    e += load_some(r, 0, n, 0)
                e -= shift
            sums = add_to(sums, LAST, e)
            squares = add_to(squares, LAST, e * e)
        left -= n
        j = 0
        run += 1
    return total_of(sums), total_of(squares)


@summing
def wide_block_moments(v, centred):
    """Mean and M2 in float64: for blocks whose sums leave the range of float32, or that hold NaN or infinity."""
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


@inline
def all_equal(v):
    """Whether a block is constant: its M2 is 0 then, and no square was lost. (Not `centred`, only that of zeros.)"""
    first = v[0]
    other = 0
    for q in range(v.size):
        other += v[q] != first
    return other == 0


@inline
def gather(u, start, count, has_second, to):
    """The values of a block one after another, in T."""
    run = start // u.last
    j = start - run * u.last
    at = 0
    while at < count:
        k = min(min(lanes(u.x), u.last - j), count - at)
        v = load_some(u.x, run * u.stride + j, k, 0)
        if has_second:
            v += load_some(u.second, run * u.second_stride + j, k, 0)
        store_some(to, at, v, k)
        at += k
        j += k
        if j == u.last:
            j = 0
            run += 1


@inlined
def block_moments(u, start, count, shift, centred, has_second, gathered):
    """Mean and M2 of a block; `shift` is near its mean, or unknown (NaN)."""
    n = np.float64(count)
    v = view(gathered, 0, count)
    again = centred
    while True:  # once or twice: written out, sum_block would be compiled for each
        total, square = sum_block(u, start, count, shift, has_second)
        off = np.float64(total) / n  # how far the mean is from the shift
        lost = np.float64(total) * off
        if not (again and lost + lost > np.float64(square) and np.float64(square) < np.inf):
            break
        shift += v.dtype.type(off)
        again = 0
    mean = np.float64(shift) + off if centred else 0.0
    m2 = np.float64(square) - lost if centred else np.float64(square)
    if m2 < 0.0:
        m2 = 0.0  # NaN stays
    if not in_range(m2):
        gather(u, start, count, has_second, gathered)
        if not (m2 < TINY and (centred or v[0] == 0) and all_equal(v)):
            mean, m2 = wide_block_moments(v, centred)
    return mean, m2


@inline
def merged(mu, other, share):
    """Chan's mean: mu + (other - mu) * share, exact for equal means; an infinite one stays infinite instead of inf - inf."""
    d = other - mu
    return mu + d * share if finite(d) else mu + other


@inlined
def first_shift(u, start, end, has_second):
    """The first shift, near the mean: that of a vector of values, exact if they are equal."""
    run = 0 if start < u.last else start // u.last
    j = start - run * u.last
    x = offset(u.x, run * u.stride + j)
    r = offset(u.second, run * u.second_stride + j)
    first = total_of(load_some(x, 0, 1, 0))
    if has_second:
        first += total_of(load_some(r, 0, 1, 0))
    if j + lanes(x) <= u.last and start + lanes(x) <= end:
        first += total_of(values(x, r, 0, has_second) - first) / lanes(x)
    return first


def moments_runs(step, buffers, lo, hi):
    """Item = (unit, piece). A unit is `repeat` runs of `last` values, `x_repeat` apart; a piece is `length` of these values.

    A second operand is added first (the residual of layer and RMS norm).
    """
    s = record(step)
    last = s.last
    middle = s.middle
    pieces = s.pieces
    has_second = s.has_second
    centred = s.centred
    table = as_float64(buffers[SCRATCH])
    gathered = stack(BLOCK, as_computed(buffers[0]))
    t = view(gathered, 0, 1).dtype.type
    unit = lo // pieces
    piece = lo - unit * pieces
    outer = unit // middle
    channel = unit - outer * middle
    for _ in range(lo, hi):
        x = offset(buffers[s.source], outer * s.x_outer + channel * s.x_middle)
        second = offset(buffers[SECOND], outer * s.second_outer + channel * s.second_middle)
        u = Unit(x, second, last, s.x_repeat, s.second_repeat, s.ahead, s.sparse * GROUP * lanes(x))
        start = piece * s.length
        end = min(start + s.length, s.total)
        count = 0.0
        mean = 0.0
        m2 = 0.0
        if centred and start < end:
            mean = np.float64(first_shift(u, start, end, True) if has_second else first_shift(u, start, end, False))
        while start < end:
            k = min(BLOCK, end - start)
            shift = t(mean) if centred else t(0)
            if has_second:
                block_mean, block_m2 = block_moments(u, start, k, shift, centred, True, gathered)
            else:
                block_mean, block_m2 = block_moments(u, start, k, shift, centred, False, gathered)
            size = np.float64(k)
            if count == 0.0:  # nothing to merge: divisions would take half the time of a short unit
                count = size
                mean = block_mean
                m2 = block_m2
            else:
                both = count + size
                d = block_mean - mean
                m2 += block_m2 + d * d * (count * size / both)
                mean = merged(mean, block_mean, size / both)
                count = both
            start += BLOCK
        entry = s.moments + (outer * pieces + piece) * middle + channel
        table[entry] = count
        table[entry + s.entries] = mean
        table[entry + 2 * s.entries] = m2
        piece += 1
        if piece == pieces:
            piece = 0
            channel += 1
            if channel == middle:
                channel = 0
                outer += 1


@inline
def fetch(x, start, count, buffer):
    """x[start : start + count] in T: where it is, or widened into `buffer`."""
    if size_of(x) == size_of(buffer):
        return view(as_computed(x), start, count)
    q = 0
    while q + lanes(x) <= count:
        store(buffer, q, load(x, start + q))
        q += lanes(x)
    store_some(buffer, q, load_some(x, start + q, count - q, 0), count - q)
    return view(buffer, 0, count)


@inline
def wide_strip_moments(x, stride, rows, n, centred, buffer, mean, m2):
    """Columns of `rows` rows, `stride` apart, in two passes in float64."""
    for q in range(n):
        mean[q] = 0.0
        m2[q] = 0.0
    if centred:
        for r in range(rows):
            v = fetch(x, r * stride, n, buffer)
            for q in range(n):
                mean[q] += np.float64(v[q])
        for q in range(n):
            mean[q] /= np.float64(rows)
    for r in range(rows):
        v = fetch(x, r * stride, n, buffer)
        for q in range(n):
            d = np.float64(v[q]) - mean[q]
            m2[q] += d * d


@inline
def mend_strip(x, stride, rows, n, centred, buffer, mean, m2):
    """Columns whose sums left the range, and only these (the others keep their bits), again in float64; a constant one is right."""
    wide_mean = view(stack(STRIP, as_float64(buffer)), 0, n)
    wide_m2 = view(stack(STRIP, as_float64(buffer)), 0, n)
    other = wide_m2  # values that differ from the column's first
    first = view(buffer, STRIP, n)
    top = fetch(x, 0, n, buffer)
    for q in range(n):
        first[q] = top[q]
        other[q] = 0.0
    for r in range(1, rows):
        v = fetch(x, r * stride, n, buffer)
        for q in range(n):
            other[q] += 0.0 if v[q] == first[q] else 1.0
    lost = 0
    for q in range(n):
        constant = centred and other[q] == 0.0 and m2[q] < np.inf
        if not in_range(m2[q]) and not constant:
            lost += 1
            m2[q] = -1.0
        elif m2[q] < 0.0:
            m2[q] = 0.0
    if lost:
        wide_strip_moments(x, stride, rows, n, centred, buffer, wide_mean, wide_m2)
        for q in range(n):
            if m2[q] == -1.0:
                mean[q] = wide_mean[q]
                m2[q] = wide_m2[q]


@inline
def add_rows(x, stride, rows, n, shift, sums, squares):
    """Adds d = x - shift and d * d of a few rows, a group of columns after another: its sums are in registers, and the rows in L1 after the
    first group. Meanwhile as much is fetched in the order of memory, which gives slivers at two thirds of its rate: the rows after these.
    """
    width = lanes(x)
    following = rows * stride
    fetched = 0
    q = 0
    while q + GROUP * width <= n:
        near = load_group(shift, q)
        sum_ = load_group(sums, q)
        square = load_group(squares, q)
        for r in range(rows):
            prefetch_group(x, following + fetched, 0)
            fetched += GROUP * width
            if fetched + GROUP * width > n:
                fetched = 0
                following += stride
            d = load_group(x, r * stride + q) - near
            sum_ += d
            square += d * d
        store(sums, q, sum_)
        store(squares, q, square)
        q += GROUP * width
    while q < n:
        k = min(width, n - q)
        near_some = load_some(shift, q, k, 0)
        sum_some = load_some(sums, q, k, 0)
        square_some = load_some(squares, q, k, 0)
        for r in range(rows):
            e = load_some(x, r * stride + q, k, 0) - near_some
            sum_some += e
            square_some += e * e
        store_some(sums, q, sum_some, k)
        store_some(squares, q, square_some, k)
        q += width


@inline
def strip_moments(x, stride, rows, n, centred, shift, sums, squares, wide, count_at, mean_at, m2_at):
    """Columns of `rows` rows, `stride` apart: sums of d = x - shift and of d * d, ROWS rows in T, then in float64.

    The shift is the mean of the first rows, so that M2 = sum(d * d) - sum(d)^2 / n cancels little; a constant column is exact again.
    """
    count = view(count_at, 0, n)
    mean = view(mean_at, 0, n)
    m2 = view(m2_at, 0, n)
    near = view(shift, 0, n)
    t = near.dtype.type
    part = view(sums, 0, n)
    square = view(squares, 0, n)
    for q in range(n):
        part[q] = t(0)
        near[q] = t(0)
        mean[q] = 0.0
        m2[q] = 0.0
    if centred:
        top = fetch(x, 0, n, wide)
        k = min(rows, 8)
        for r in range(1, k):
            v = fetch(x, r * stride, n, offset(wide, STRIP))
            for q in range(n):
                part[q] += v[q] - top[q]
        share = t(1) / t(k)
        for q in range(n):
            near[q] = top[q] + part[q] * share
    few = rows_in_l1(n)
    r = 0
    while r < rows:
        end = min(rows, r + ROWS)
        for q in range(n):
            part[q] = t(0)
            square[q] = t(0)
        for row in range(r, end, few):
            add_rows(offset(x, row * stride), stride, min(few, end - row), n, shift, sums, squares)
        r = end
        for q in range(n):
            mean[q] += np.float64(part[q])
            m2[q] += np.float64(square[q])
    size = np.float64(rows)
    if centred:
        for q in range(n):
            m2[q] -= mean[q] * mean[q] / size
            mean[q] = np.float64(near[q]) + mean[q] / size
    else:
        for q in range(n):
            mean[q] = 0.0
    lost = 0
    for q in range(n):
        count[q] = size
        lost += not in_range(m2[q])
    if lost:
        mend_strip(x, stride, rows, n, centred, wide, mean, m2)


def moments_columns(step, buffers, lo, hi):
    """Item = (outer index, piece). A piece is `length` values in rows of `last`, `x_middle` apart; the last row may be cut short."""
    s = record(step)
    p = s.last
    pieces = s.pieces
    centred = s.centred
    x = buffers[s.source]
    table = as_float64(buffers[SCRATCH])
    shift = stack(STRIP, as_computed(x))
    sums = stack(STRIP, as_computed(x))
    squares = stack(STRIP, as_computed(x))
    wide = stack(WIDE, as_computed(x))
    for item in range(lo, hi):
        outer = item // pieces
        start = (item - outer * pieces) * s.length
        left = min(s.length, s.total - start)
        base = offset(x, outer * s.x_outer + start // p * s.x_middle)
        rows = left // p
        rest = left - rows * p
        count = offset(table, s.moments + item * p)
        mean = offset(count, s.entries)
        m2 = offset(mean, s.entries)
        if rows == 0:
            for q in range(p):
                count[q] = 0.0
                mean[q] = 0.0
                m2[q] = 0.0
        c = 0 if rows else p
        while c < p:
            w = min(STRIP, p - c)
            at = offset(base, c)
            mean_at = offset(mean, c)
            m2_at = offset(m2, c)
            strip_moments(at, s.x_middle, rows, w, centred, shift, sums, squares, wide, offset(count, c), mean_at, m2_at)
            c += STRIP
        if rest:  # one value more for the first columns
            row = offset(base, rows * s.x_middle)
            for q in range(rest):
                v = np.float64(fetch(row, q, 1, wide)[0])
                both = count[q] + 1.0
                d = v - mean[q]
                if centred:
                    m2[q] += d * d * (count[q] / both)
                    mean[q] = merged(mean[q], v, 1.0 / both)
                else:
                    m2[q] += d * d
                count[q] = both
