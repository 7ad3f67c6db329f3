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

from cpunorm.jit.lowlevel import as_computed, as_float64, as_uint64, inline, inlined, offset, record, stack, summing, view
from cpunorm.jit.tile import BLOCK, BRIEF, SCRATCH, SECOND, TINY, in_range, merged
from cpunorm.jit.vectors import (
    GROUP,
    REGISTER,
    add_to,
    first,
    lanes,
    last_lanes,
    load,
    load_group,
    load_some,
    prefetch_group,
    splat,
    splat_group,
    store,
    store_some,
    together,
    totals,
)
from cpunorm.jit.vectors import total as total_of

LAST = GROUP - 1
MOST_LANES = REGISTER // 4  # of a vector
ROOM = (2 * MOST_LANES + 3) * MOST_LANES  # vectors of sums and of squares, a unit each, and three with a lane each


class Unit(NamedTuple):
    """Where the values of a unit are: runs of `last` values, `stride` apart; with `has_second` the residual is added to them."""

    x: Any
    second: Any
    last: Any
    stride: Any
    second_stride: Any
    ahead: Any  # what is fetched meanwhile, if not 0,
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
            if u.ahead and not q & u.passed:
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
    return together(sums), together(squares)


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
    top = v[0]
    other = 0
    for q in range(v.size):
        other += v[q] != top
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
        sums, squares = sum_block(u, start, count, shift, has_second)
        total = total_of(sums)
        square = total_of(squares)
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


@inlined
def first_shift(u, start, end, has_second):
    """The first shift, near the mean: that of a vector of values, exact if they are equal."""
    run = 0 if start < u.last else start // u.last
    j = start - run * u.last
    x = offset(u.x, run * u.stride + j)
    r = offset(u.second, run * u.second_stride + j)
    shift = first(load_some(x, 0, 1, 0))
    if has_second:
        shift += first(load_some(r, 0, 1, 0))
    if j + lanes(x) <= u.last and start + lanes(x) <= end:
        shift += total_of(values(x, r, 0, has_second) - shift) / lanes(x)
    return shift


@inlined
def moments_of_few(u, x, x_at, second_at, few, count, centred, has_second, room, mean, m2, gathered):
    """Mean and M2 of up to a vector's lanes of units of one block each, at x[x_at[i]] and second[second_at[i]]. Their sums are their own;
    totals and divisions, which take as long as 30 vectors, are of all at once, a unit a lane, by the same operations.
    """
    width = lanes(u.x)
    sums = room
    squares = offset(room, width * width)
    shift_at = offset(squares, width * width)
    total_at = offset(shift_at, width)
    square_at = offset(total_at, width)
    for i in range(width):
        store(sums, i * width, splat(room, 0))
        store(squares, i * width, splat(room, 0))
    store(shift_at, 0, splat(room, 0))
    shift = view(shift_at, 0, width)
    if centred:  # first_shift of each
        for i in range(few):
            v = offset(x, np.int64(x_at[i]))
            r = offset(u.second, np.int64(second_at[i]))
            if width <= u.last:
                top = values(v, r, 0, has_second)
                store(sums, i * width, top - first(top))
            else:
                top = load_some(v, 0, 1, 0)
                if has_second:
                    top += load_some(r, 0, 1, 0)
            shift[i] = first(top)
        store(shift_at, 0, load(shift_at, 0) + totals(sums) * (shift.dtype.type(1) / shift.dtype.type(width)))
    for i in range(few):
        v = offset(x, np.int64(x_at[i]))
        r = offset(u.second, np.int64(second_at[i]))
        a, b = sum_block(Unit(v, r, u.last, u.stride, u.second_stride, u.ahead, u.passed), 0, count, shift[i], has_second)
        store(sums, i * width, a)
        store(squares, i * width, b)
    store(total_at, 0, totals(sums))
    store(square_at, 0, totals(squares))
    total = view(total_at, 0, width)
    square = view(square_at, 0, width)
    n = np.float64(count)
    for i in range(few):  # (of a constant number, LLVM makes no vectors)
        off = np.float64(total[i]) / n
        lost = np.float64(total[i]) * off if centred else 0.0
        mean[i] = np.float64(shift[i]) + off if centred else 0.0
        rest = np.float64(square[i]) - lost
        kept = (lost + lost <= np.float64(square[i])) & (rest >= TINY) & (rest < np.inf)  # with `and` it would be no vector
        m2[i] = rest if kept else -1.0
    for i in range(few):
        if m2[i] == -1.0:
            v = offset(x, np.int64(x_at[i]))
            r = offset(u.second, np.int64(second_at[i]))
            one = Unit(v, r, u.last, u.stride, u.second_stride, u.ahead, u.passed)
            mean[i], m2[i] = block_moments(one, 0, count, shift[i], centred, has_second, gathered)


@inline
def brief_moments(s, buffers, lo, hi, u, gathered):
    """Items that are units of one block each."""
    middle = s.middle
    count = s.total
    x = buffers[s.source]
    width = lanes(x)
    table = as_float64(buffers[SCRATCH])
    x_at = view(stack(MOST_LANES, as_uint64(table)), 0, width)
    second_at = view(stack(MOST_LANES, as_uint64(table)), 0, width)
    mean = view(stack(MOST_LANES, table), 0, width)
    m2 = view(stack(MOST_LANES, table), 0, width)
    room = stack(ROOM, gathered)
    outer = lo // middle
    channel = lo - outer * middle
    for item in range(lo, hi, width):
        few = min(width, hi - item)
        for i in range(few):
            x_at[i] = outer * s.x_outer + channel * s.x_middle
            second_at[i] = outer * s.second_outer + channel * s.second_middle
            channel += 1
            if channel == middle:
                channel = 0
                outer += 1
        if s.has_second:
            moments_of_few(u, x, x_at, second_at, few, count, s.centred, True, room, mean, m2, gathered)
        else:
            moments_of_few(u, x, x_at, second_at, few, count, s.centred, False, room, mean, m2, gathered)
        entry = s.moments + item
        for i in range(few):
            table[entry + i] = count
            table[entry + s.entries + i] = mean[i]
            table[entry + 2 * s.entries + i] = m2[i]


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
    if pieces == 1 and s.total <= BRIEF:
        x = buffers[s.source]
        u = Unit(x, buffers[SECOND], last, s.x_repeat, s.second_repeat, s.ahead, s.sparse * GROUP * lanes(x))
        brief_moments(s, buffers, lo, hi, u, gathered)
        return
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
