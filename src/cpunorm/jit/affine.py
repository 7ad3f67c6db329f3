"""The affine that every normalization and every gradient ends in: y = act((x - m) * s + t + (r - n) * q).

The difference comes first, so that a constant channel gives exactly t and a large mean loses no digits. Forward, r is the residual, with
n = 0 and q = 1; backward, x is the gradient, with m = 0, and r what was normalized.

A *span* is a contiguous part of a run or row; its values go from memory through registers to memory, past the caches (`streams`) where the
result is larger than these. relu and relu6 are a clip on the way; the other activations, and streamed runs that are too short to fill lines
of y, go through a tile of `TILE` values in L1, which crosses runs and ends on a cache line of y.

Spans are `inlined` where they are called, so that `has_second`, `training` and `target`, constants there, leave no branch in their loops.
"""

# ruff: noqa: ANN001, ANN201  (typed by the signatures in `cpunorm.jit.backend`)

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from cpunorm.jit.lowlevel import address, call_stage, fence, inline, inlined, offset, record, size_of, stack
from cpunorm.jit.tile import LINE, SECOND, TILE, X, Y, coefficients
from cpunorm.jit.vectors import (
    GROUP,
    clip,
    lanes,
    load,
    load_group,
    load_some,
    prefetch_group,
    splat,
    store,
    store_some,
    stream,
)

# Constants of spans. They are NumPy's, as each of Python's is a type of its own to Numba, and a compilation of all that it is passed to.
DIRECT, STREAMED, TILED = np.intp(0), np.intp(1), np.intp(2)  # where a span goes
NO, YES = np.False_, np.True_
START = np.intp(0)


class Result(NamedTuple):
    """Where results go, and the bounds between which they are clipped."""

    y: Any  # pointer to E
    tile: Any  # pointer to T
    floor: Any
    ceiling: Any
    clips: Any


class Coefficients(NamedTuple):
    """Coefficients of a run."""

    center: Any
    scale: Any
    shift: Any
    second_center: Any
    second_scale: Any


@inlined
def result_of(s, y, tile):
    """Results to y, or to the tile."""
    return Result(y, tile, s.floor, s.ceiling, s.floor > -np.inf or s.ceiling < np.inf)


@inlined
def run_affine(x, r, a, has_second):
    """Of a vector or a group."""
    y = (x - a.center) * a.scale + a.shift
    if has_second:
        y = y + (r - a.second_center) * a.second_scale
    return y


@inlined
def put_group(to, q, v, target):
    """A group of the result to y[q:] or to the tile."""
    if to.clips:
        v = clip(v, to.floor, to.ceiling)
    if target == TILED:
        store(to.tile, q, v)
    elif target == STREAMED:
        stream(to.y, q, v)
    else:
        store(to.y, q, v)


@inlined
def put_some(to, q, v, count, target):
    """`count` lanes of a vector; never past the caches."""
    if to.clips:
        v = clip(v, to.floor, to.ceiling)
    if target == TILED:
        store_some(to.tile, q, v, count)
    else:
        store_some(to.y, q, v, count)


@inlined
def head_of(y, n, target):
    """How many of the first `n` values lie before a cache line of y that can be streamed."""
    return min(n, (-address(y) & (LINE - 1)) // size_of(y)) if target == STREAMED else START


@inlined
def run_some(x, r, q, count, a, has_second):
    """`count` lanes of the result, the others of no meaning."""
    v = load_some(x, q, count, 0.0)
    u = load_some(r, q, count, 0.0) if has_second else v
    return run_affine(v, u, a, has_second)


@inlined
def run_span(x, r, to, n, a, ahead, has_second, target):
    """`n` values of one run. Vectors that do not fill a line, at either end of what is streamed, are stored."""
    one = lanes(x)
    stride = GROUP * one
    q = START
    head = head_of(to.y, n, target)
    while q < head:
        k = min(one, head - q)
        put_some(to, q, run_some(x, r, q, k, a, has_second), k, target)
        q += k
    overlaps = target != STREAMED and n >= one  # the last vector may begin in the one before it; loaded first: y may be x
    last = run_some(x, r, n - one, one, a, has_second) if overlaps else splat(x, 0.0)
    while q + stride <= n:
        if target == STREAMED or ahead:
            prefetch_group(x, q, ahead)
            if has_second:
                prefetch_group(r, q, ahead)
        v = load_group(x, q)
        u = load_group(r, q) if has_second else v
        put_group(to, q, run_affine(v, u, a, has_second), target)
        q += stride
    while q + one <= n:
        put_some(to, q, run_some(x, r, q, one, a, has_second), one, target)
        q += one
    if q < n:
        if overlaps:
            put_some(to, n - one, last, one, target)
        else:
            put_some(to, q, run_some(x, r, q, n - q, a, has_second), n - q, target)


@inline
def finish(activation, spare, tile, y, n, streams):
    """A tile through the activation to y."""
    one = lanes(y)
    line = LINE // size_of(y)
    if activation:
        call_stage(activation, spare, tile, n)
        tile = spare
    q = START
    head = head_of(y, n, STREAMED) if streams else START
    while q < head:
        k = min(one, head - q)
        store_some(y, q, load_some(tile, q, k, 0.0), k)
        q += k
    if streams:
        while q + line <= n:
            for i in range(0, line, one):
                stream(y, q + i, load(tile, q + i))
            q += line
    while q + one <= n:
        store(y, q, load(tile, q))
        q += one
    if q < n:
        store_some(y, q, load_some(tile, q, n - q, 0.0), n - q)


@inlined
def to_line(y):
    """How many values the tile at y has, so that it ends on a cache line; all others then start on one."""
    return TILE - (address(y) & (LINE - 1)) // size_of(y)


class Place(NamedTuple):
    """Where a walk over [outer, middle, last] is: element `pos` of all, the j-th of run (or row) (outer, c); and where it ends."""

    pos: Any
    end: Any
    outer: Any
    c: Any
    j: Any


@inlined
def place_of(s, lo, hi):
    """Where a step's item `lo` begins, and `hi`."""
    pos = lo * s.grain
    run = pos // s.last
    outer = run // s.middle
    return Place(pos, min(hi * s.grain, s.total), outer, run - outer * s.middle, pos - run * s.last)


@inlined
def coefficients_at(row, count, has_second):
    """Of one run."""
    center, scale, shift = row[0], row[count], row[2 * count]
    if has_second:
        return Coefficients(center, scale, shift, row[3 * count], row[4 * count])
    return Coefficients(center, scale, shift, center, scale)


@inlined
def walk_runs(s, at, table, x, second, y, tile, has_second, target):
    """Spans that are runs, and parts of them at either end. From run to run addresses are added to: of 7x7 planes, these took a third."""
    n, middle, count, ahead = s.last, s.middle, s.coefficient_count, s.ahead
    x_middle, second_middle, y_middle = s.x_middle, s.second_middle, s.y_middle
    pos, end, outer, c, j = at
    while pos < end:
        v = offset(x, outer * s.x_outer + c * x_middle)
        r = offset(second, outer * s.second_outer + c * second_middle)
        to = offset(y, outer * s.y_outer + c * y_middle)
        row = offset(table, outer * s.coefficient_outer + c)
        while c < middle and pos < end:
            w = min(n - j, end - pos)
            a = coefficients_at(row, count, has_second)
            run_span(offset(v, j), offset(r, j), result_of(s, offset(to, j), tile), w, a, ahead, has_second, target)
            pos += w
            j = 0
            c += 1
            v = offset(v, x_middle)
            r = offset(r, second_middle)
            to = offset(to, y_middle)
            row = offset(row, 1)
        c = 0
        outer += 1


@inlined
def walk_tiles(s, at, table, x, second, y, tile, spare, has_second):
    """Spans that go through tiles, which cross runs where y is packed."""
    n, packed = s.last, s.packed
    pos, end, outer, c, j = at
    to = offset(y, outer * s.y_outer + c * s.y_middle + j)
    k = to_line(to)
    while pos < end:
        k = min(k, end - pos)
        if not packed:
            k = min(k, n - j)
        f = 0
        while f < k:
            w = min(n - j, k - f)
            v = offset(x, outer * s.x_outer + c * s.x_middle + j)
            r = offset(second, outer * s.second_outer + c * s.second_middle + j)
            a = coefficients_at(offset(table, outer * s.coefficient_outer + c), s.coefficient_count, has_second)
            run_span(v, r, result_of(s, to, offset(tile, f)), w, a, s.ahead, has_second, TILED)
            f += w
            j += w
            if j == n:
                j = 0
                c += 1
                if c == s.middle:
                    c = 0
                    outer += 1
        finish(s.activation, spare, tile, to, k, s.streams)
        pos += k
        to = offset(to, k) if packed else offset(y, outer * s.y_outer + c * s.y_middle + j)
        k = TILE if packed else to_line(to)


@inlined
def walk(s, at, table, x, second, y, tile, spare, has_second):
    """As the results go."""
    if s.tiled:
        walk_tiles(s, at, table, x, second, y, tile, spare, has_second)
    elif s.streams:
        walk_runs(s, at, table, x, second, y, tile, has_second, STREAMED)
    else:
        walk_runs(s, at, table, x, second, y, tile, has_second, DIRECT)


def affine_runs(step, buffers, lo, hi):
    """Item = `grain` elements of [outer, middle, last]; a coefficient a run. The same items of each of the `repeat` arrays."""
    s = record(step)
    table = coefficients(s, buffers)
    tile = stack(TILE, table)
    spare = stack(TILE, table)
    at = place_of(s, lo, hi)
    for repeat in range(s.repeat):
        x = offset(buffers[X], repeat * s.x_repeat)
        second = offset(buffers[SECOND], repeat * s.second_repeat)
        y = offset(buffers[Y], repeat * s.y_repeat)
        if s.has_second:
            walk(s, at, table, x, second, y, tile, spare, YES)
        else:
            walk(s, at, table, x, second, y, tile, spare, NO)
    if s.streams:
        fence()


class Columns(NamedTuple):
    """Rows of coefficients that repeat after `period` values, and go on for PAD values more, so that a group may begin at any of them."""

    center: Any  # pointers to T
    scale: Any
    shift: Any
    second_center: Any
    second_scale: Any


@inlined
def column_some(x, r, q, count, a, i, has_second):
    """`count` lanes of the result, the others of no meaning."""
    y = (load_some(x, q, count, 0.0) - load(a.center, i)) * load(a.scale, i) + load(a.shift, i)
    if has_second:
        y = y + (load_some(r, q, count, 0.0) - load(a.second_center, i)) * load(a.second_scale, i)
    return y


@inlined
def column_group(x, r, q, a, i, has_second):
    """The same of a group."""
    y = (load_group(x, q) - load_group(a.center, i)) * load_group(a.scale, i) + load_group(a.shift, i)
    if has_second:
        y = y + (load_group(r, q) - load_group(a.second_center, i)) * load_group(a.second_scale, i)
    return y


@inlined
def column_span(x, r, to, n, a, i, period, ahead, has_second, target):
    """`n` values from column `i` of the period on."""
    one = lanes(x)
    stride = GROUP * one
    q = START
    head = head_of(to.y, n, target)
    while q < n:
        while q < head:  # a head that cannot be streamed, or less than a group
            k = min(one, head - q)
            put_some(to, q, column_some(x, r, q, k, a, i, has_second), k, target)
            q += k
            i += k
            i = i if i < period else i - period
        while q + stride <= n:  # groups that begin in this period
            end = q + min((period - i + stride - 1) // stride, (n - q) // stride) * stride
            while q < end:
                if target == STREAMED or ahead:
                    prefetch_group(x, q, ahead)
                    if has_second:
                        prefetch_group(r, q, ahead)
                put_group(to, q, column_group(x, r, q, a, i, has_second), target)
                q += stride
                i += stride
            i = i if i < period else i - period
        head = n


def affine_columns(step, buffers, lo, hi):
    """Item = `grain` elements of [outer, middle, last]; rows of coefficients that repeat after `period` values, from each row's start."""
    s = record(step)
    n = s.last
    middle = s.middle
    period = s.period
    coefficient_outer, coefficient_count = s.coefficient_outer, s.coefficient_count
    packed, has_second, streams, tiled, ahead = s.packed, s.has_second, s.streams, s.tiled, s.ahead
    activation = s.activation
    x, second, y = buffers[X], buffers[SECOND], buffers[Y]
    table = coefficients(s, buffers)
    tile = stack(TILE, table)
    spare = stack(TILE, table)
    pos = lo * s.grain
    end = min(hi * s.grain, s.total)
    row = pos // n
    j = pos - row * n
    outer = row // middle
    m = row - outer * middle
    to = offset(y, outer * s.y_outer + m * s.y_middle + j)
    k = to_line(to)
    while pos < end:
        k = min(k, end - pos)
        if not tiled or not packed:
            k = min(k, n - j) if tiled else min(n - j, end - pos)
        f = 0
        while f < k:
            w = min(n - j, k - f)
            v = offset(x, outer * s.x_outer + m * s.x_middle + j)
            r = offset(second, outer * s.second_outer + m * s.second_middle + j)
            i = j % period
            result = result_of(s, to, offset(tile, f))
            center = offset(table, outer * coefficient_outer)
            scale = offset(center, coefficient_count)
            shift = offset(scale, coefficient_count)
            second_center = offset(shift, coefficient_count)
            a = Columns(center, scale, shift, second_center, offset(second_center, coefficient_count))
            if has_second:
                if tiled:
                    column_span(v, r, result, w, a, i, period, ahead, YES, TILED)
                elif streams:
                    column_span(v, r, result, w, a, i, period, ahead, YES, STREAMED)
                else:
                    column_span(v, r, result, w, a, i, period, ahead, YES, DIRECT)
            elif tiled:
                column_span(v, r, result, w, a, i, period, ahead, NO, TILED)
            elif streams:
                column_span(v, r, result, w, a, i, period, ahead, NO, STREAMED)
            else:
                column_span(v, r, result, w, a, i, period, ahead, NO, DIRECT)
            f += w
            j += w
            if j == n:
                j = 0
                m += 1
                if m == middle:
                    m = 0
                    outer += 1
        if tiled:
            finish(activation, spare, tile, to, k, streams)
        pos += k
        to = offset(to, k) if packed else offset(y, outer * s.y_outer + m * s.y_middle + j)
        k = TILE if packed else to_line(to)
    if streams:
        fence()
