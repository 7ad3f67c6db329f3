"""Resize: `resize_rows`, bilinear with antialias as Pillow's, normalized in the same pass.

`cpunorm.resize` makes the weights; slot x is the table of pictures, and the coefficients are the rows, that `cpunorm.jit.pictures` says. T
is float32.
"""

# ruff: noqa: ANN001, ANN201  (typed by the signatures in `cpunorm.jit.backend`)

from __future__ import annotations

import numpy as np
from numba import types

from cpunorm.jit.lowlevel import (
    address,
    as_uint8,
    at_byte,
    call_stage,
    fence,
    inline,
    offset,
    record,
    size_of,
    stack,
    to_pointer,
    view,
)
from cpunorm.jit.octets import DOT_LANES, dot, pick
from cpunorm.jit.pictures import FLOATS, PICKED, RAW, REACH, base, picture, swapped, take_apart
from cpunorm.jit.tile import BIAS, MEAN, RSTD, SCRATCH, TILE, X, Y

BITS = 22  # of the fraction of a weight of bytes, as Pillow has them
HALF = np.int32(1 << (BITS - 1))
INTEGERS = types.CPointer(types.int32)


@inline
def clipped(total):
    """A sum of weighted bytes as a byte."""
    value = total >> BITS
    value = 0 if value < 0 else value
    return 255 if value > 255 else value


@inline
def read_row(s, p, raw, line, source):
    """A row of a picture as planes, bytes as they are, all else in T, to line[channel * reach :]."""
    for group in range(0, s.channels, PICKED):
        channels = min(PICKED, s.channels - group)
        start = source + group * p.channel
        if s.item_size == 1:
            take_apart(s, p, at_byte(line, group * s.reach), s.reach, start, channels, p.width)
        else:
            for j in range(0, p.width, TILE):
                w = min(TILE, p.width - j)
                take_apart(s, p, raw, TILE, start + j * p.column, channels, w)
                for c in range(channels):
                    from_raw = at_byte(raw, c * TILE * s.item_size)
                    to = offset(line, (group + c) * s.reach + j)
                    if s.load:
                        call_stage(s.load, to, from_raw, w)
                    else:
                        pick(to, 1, address(from_raw), size_of(to), w)


@inline
def resize_columns(s, p, line, out, apart, plane):
    """The columns of a row of planes, to out[channel * plane + column * apart], bytes again if they were."""
    n = s.last  # fields are taken out of the loop: for all LLVM knows, the bytes that it writes might change them
    whole = s.item_size == 1
    mirror = p.mirror
    row = (2 + p.across_taps) * 4
    for c in range(s.channels):
        values = offset(line, c * s.reach)
        bytes_ = offset(as_uint8(line), c * s.reach)
        to = swapped(s, c) * plane
        where = p.across
        for x in range(n):
            weights = to_pointer(where, INTEGERS)
            where += row
            first = weights[0]
            count = weights[1]
            at = to + (n - 1 - x if mirror else x) * apart
            if whole:
                vectors = (count + DOT_LANES - 1) // DOT_LANES
                as_uint8(out)[at] = clipped(dot(offset(weights, 2), offset(bytes_, first), vectors) + HALF)
            else:
                factors = offset(to_pointer(address(weights), FLOATS), 2)
                vectors = count // DOT_LANES
                total = dot(factors, offset(values, first), vectors)
                for t in range(vectors * DOT_LANES, count):
                    total += factors[t] * values[first + t]
                out[at] = total


def resize_rows(step, buffers, lo, hi):
    """Item = its share of the rows of all of y. The picture's rows are taken apart, their columns resized into a ring of rows (both in the
    item's own scratch), these added up to a row of y a tile at a time, and normalized from there.

    Bytes are weighted in integers and rounded after either direction, as Pillow does; all else in T, in T between the two.
    """
    s = record(step)
    size = 1 if s.item_size == 1 else 4
    runs = s.groups  # a row of y has so many: planes, or one of pixels
    run = s.period
    apart = 1 if runs > 1 or s.padded == 1 else s.padded
    plane = run if runs > 1 else 1
    ring_row = s.channels * s.last if runs > 1 else run
    raw = stack(RAW, buffers[X])
    wide = stack(TILE, buffers[X])
    tile = stack(TILE, buffers[X])
    sums = view(to_pointer(address(stack(TILE, buffers[X])), INTEGERS), 0, TILE)
    rows = s.outer * s.middle
    for item in range(lo, hi):
        line = at_byte(buffers[SCRATCH], item * s.length * 8)
        ring = at_byte(line, s.moments * 8)
        blank = view(as_uint8(line), 0, s.length * 8)
        for q in range(blank.size):
            blank[q] = 0
        before = -1
        ready = 0
        for r in range(item * rows // s.items, (item + 1) * rows // s.items):
            i = r // s.middle
            p = picture(buffers, i)
            data = p.data + base(buffers)
            if i != before:
                before = i
                ready = 0
            weights = to_pointer(p.down + (r - i * s.middle) * (2 + p.down_taps) * 4, INTEGERS)
            first = weights[0]
            count = weights[1]
            for row in range(max(ready, first), first + count):
                read_row(s, p, raw, line, data + row * p.row)
                resize_columns(s, p, line, at_byte(ring, row % s.ring * ring_row * size), apart, plane)
            ready = first + count
            for c in range(runs):
                at = i * s.y_outer + c * s.y_middle + (r - i * s.middle) * run
                for start in range(0, run, TILE):
                    w = min(TILE, run - start)
                    v = view(wide, 0, w)
                    here = start + c * run
                    terms = count if c < s.channels or runs == 1 else 0
                    if size == 1:
                        for q in range(w):
                            sums[q] = HALF
                        for t in range(terms):
                            values = view(as_uint8(ring), (first + t) % s.ring * ring_row + here, w)
                            factor = weights[2 + t]
                            for q in range(w):
                                sums[q] += factor * np.int32(values[q])
                        for q in range(w):
                            v[q] = np.float32(clipped(sums[q]))
                    else:
                        for q in range(w):
                            v[q] = np.float32(0)
                        for t in range(terms):
                            others = view(ring, (first + t) % s.ring * ring_row + here, w)
                            share = to_pointer(address(weights), FLOATS)[2 + t]
                            for q in range(w):
                                v[q] += share * others[q]
                    y = at_byte(buffers[Y], (at + start) * s.out_size)
                    z = view(tile if s.store else y, 0, w)
                    coefficient = c * REACH if runs > 1 else start % s.padded
                    center = view(buffers[MEAN], coefficient, w)
                    scale = view(buffers[RSTD], coefficient, w)
                    shift = view(buffers[BIAS], coefficient, w)
                    for q in range(w):
                        z[q] = (v[q] - center[q]) * scale[q] + shift[q]
                    if s.store:
                        call_stage(s.store, y, tile, w)
    if s.store:
        fence()
