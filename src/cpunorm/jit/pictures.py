"""Preprocessing: pictures, each somewhere in memory, to y = (x - m) * s + t, channels first (planes) or last (pixels), a tile at a time.

Slot x is a table of `program.PICTURE`: where a picture is, and how far its rows, pixels and channels lie apart. A crop is another start, a
mirrored picture has a negative stride: the kernels know neither. Values are picked as they are (bytes are cheaper to shuffle than floats)
into a raw tile, unless they lie in memory as they are wanted; then they are widened, normalized, narrowed and stored as in the affine.

The coefficients (slots mean, rstd, bias) are rows: planes have one of `REACH` equal values each; pixels have one of all channels again and
again, so long that a tile finds its coefficients in one piece wherever in a pixel it starts. T is float32.
"""

# ruff: noqa: ANN001, ANN201  (typed by the signatures in `cpunorm.jit.backend`)

from __future__ import annotations

import numpy as np
from numba import types

from cpunorm.jit.lowlevel import (
    DOT_LANES,
    PICTURE_RECORD,
    PIXELS,
    VECTOR_BYTES,
    address,
    as_uint8,
    as_uint16,
    as_uint32,
    at_byte,
    call_stage,
    dot,
    fence,
    inline,
    normalize_bytes,
    normalize_bytes_equal,
    offset,
    pick,
    record,
    size_of,
    split_backwards,
    split_forwards,
    stack,
    stream_bytes,
    stream_bytes_equal,
    to_pointer,
    view,
)
from cpunorm.jit.tile import BIAS, LINE, MEAN, RSTD, SCRATCH, TILE, X, Y

PICKED = 4  # channels that are picked together
REACH = TILE + LINE  # pixels of a raw tile: where planes begin elsewhere in a line, each takes those that end on one of its own
RAW = PICKED * REACH
BITS = 22  # of the fraction of a weight of bytes, as Pillow has them
LANES = VECTOR_BYTES // 4
HALF = np.int32(1 << (BITS - 1))

PICTURES = types.CPointer(PICTURE_RECORD)
BYTES = types.CPointer(types.uint8)
FLOATS = types.CPointer(types.float32)
INTEGERS = types.CPointer(types.int32)


@inline
def picture(buffers, i):
    """The picture `i` of the table."""
    table = to_pointer(address(buffers[X]), PICTURES)
    return record(offset(table, i))


@inline
def to_line(s, y, start):
    """How many values the tile at y[start] has, so that it ends on a line; all others then start on one."""
    return TILE - (address(at_byte(y, start * s.out_size)) & (LINE - 1)) // s.out_size


@inline
def lead(s, y, start):
    """How many values from y[start] to the next line."""
    return (-address(at_byte(y, start * s.out_size)) & (LINE - 1)) // s.out_size


@inline
def swapped(s, c):
    """Where the channel `c` goes; and where that of y comes from."""
    return 2 - c if s.swap and c < 3 else c


@inline
def pick_items(s, target, apart, source, stride, count):
    """`count` elements, `stride` bytes apart, to every `apart`-th one of `target`."""
    if s.item_size == 1:
        pick(as_uint8(target), apart, source, stride, count)
    elif s.item_size == 2:
        pick(as_uint16(target), apart, source, stride, count)
    else:
        pick(as_uint32(target), apart, source, stride, count)


@inline
def take_apart(s, p, raw, apart, source, channels, count):
    """`count` pixels of a row, `channels` of them from `source` on, to raw[channel * apart :]."""
    done = 0
    if channels == 3 and s.item_size == 1 and p.channel == 1 and (p.column == 3 or p.column == -3):
        vectors = count // PIXELS
        if p.column == 3:
            split_forwards(as_uint8(raw), apart, source, vectors)
        else:
            split_backwards(as_uint8(raw), apart, source, vectors)
        done = vectors * PIXELS
    for c in range(channels):
        to = at_byte(raw, (c * apart + done) * s.item_size)
        pick_items(s, to, 1, source + done * p.column + c * p.channel, p.column, count - done)


@inline
def widened(s, source, count, buffer):
    """The values at the address `source` in T: where they are, or widened into `buffer`."""
    if s.load:
        call_stage(s.load, buffer, to_pointer(source, FLOATS), count)
        return view(buffer, 0, count)
    return view(to_pointer(source, FLOATS), 0, count)


@inline
def normalize(s, buffers, coefficients, equal, source, y, wide, tile, count):
    """`count` values at the address `source` to y, by the coefficients from there on (`equal`: all as the first one)."""
    center = offset(buffers[MEAN], coefficients)
    scale = offset(buffers[RSTD], coefficients)
    if s.bytes_to_floats:
        values = to_pointer(source, BYTES)
        vectors = count // LANES
        if s.store and address(y) & (VECTOR_BYTES - 1) == 0:
            if equal:
                stream_bytes_equal(y, values, center, scale, vectors)
            else:
                stream_bytes(y, values, center, scale, vectors)
        elif equal:
            normalize_bytes_equal(y, values, center, scale, vectors)
        else:
            normalize_bytes(y, values, center, scale, vectors)
        for q in range(vectors * LANES, count):
            y[q] = (np.float32(values[q]) - center[q]) * scale[q]
        return
    v = widened(s, source, count, wide)
    z = view(tile if s.store else y, 0, count)
    m = view(center, 0, count)
    t = view(scale, 0, count)
    shift = view(buffers[BIAS], coefficients, count)
    for q in range(count):
        z[q] = (v[q] - m[q]) * t[q] + shift[q]
    if s.store:
        call_stage(s.store, y, tile, count)


@inline
def fill(s, value, y, tile, count):
    """`count` times `value` to y."""
    z = view(tile if s.store else y, 0, count)
    for q in range(count):
        z[q] = value
    if s.store:
        call_stage(s.store, y, tile, count)


def planes(step, buffers, lo, hi):
    """Item = `grain` pixels of a picture. Planes of y have no gaps; each tile of a plane ends on a line of it."""
    s = record(step)
    n = s.last
    raw = stack(RAW, buffers[X])
    wide = stack(REACH, buffers[X])
    tile = stack(REACH, buffers[X])
    item = lo
    while item < hi:
        i = item // s.pieces
        pos = (item - i * s.pieces) * s.grain
        item = min(hi, (i + 1) * s.pieces)
        end = min(s.total, (item - i * s.pieces) * s.grain)
        first = pos
        p = picture(buffers, i)
        apart = s.y_middle * s.out_size % LINE  # 0: a tile that ends on a line of one plane does so in all of them
        slack = LINE // s.out_size if apart else 0
        k = to_line(s, buffers[Y], i * s.y_outer + pos)
        while pos < end:
            k = min(k, end - pos)
            count = min(k + slack, end - pos)
            row = pos // n
            j = pos - row * n
            straight = p.column == s.item_size and j + count <= n
            for group in range(0, s.padded, PICKED):
                channels = max(0, min(PICKED, s.channels - group))
                source = p.data + row * p.row + j * p.column + group * p.channel
                if not straight:
                    f = 0
                    from_row = source
                    w = min(n - j, count)
                    while f < count:
                        take_apart(s, p, at_byte(raw, f * s.item_size), REACH, from_row, channels, w)
                        from_row += p.row - (j * p.column if f == 0 else 0)
                        f += w
                        w = min(n, count - f)
                for c in range(group, min(s.padded, group + PICKED)):
                    to = swapped(s, c)
                    plane = i * s.y_outer + to * s.y_middle
                    start = pos if pos == first else pos + lead(s, buffers[Y], plane + pos)
                    stop = end if pos + k == end else min(end, pos + k + lead(s, buffers[Y], plane + pos + k))
                    w = stop - start
                    if w <= 0:
                        continue
                    y = at_byte(buffers[Y], (plane + start) * s.out_size)
                    if c >= s.channels:
                        fill(s, buffers[BIAS][to * REACH], y, tile, w)
                    elif straight:
                        here = source + (c - group) * p.channel + (start - pos) * s.item_size
                        normalize(s, buffers, to * REACH, True, here, y, wide, tile, w)
                    else:
                        here = address(at_byte(raw, ((c - group) * REACH + start - pos) * s.item_size))
                        normalize(s, buffers, to * REACH, True, here, y, wide, tile, w)
            pos += k
            k = TILE
    if s.store:
        fence()


@inline
def put_together(s, p, raw, start, count):
    """Elements [start, start + count) of a picture as y has them, channels last, to `raw`."""
    n = s.last
    for to in range(s.padded):
        q = (start - to + s.padded - 1) // s.padded  # the first pixel whose channel is among these
        stop = (start + count - to + s.padded - 1) // s.padded
        while q < stop:
            row = q // n
            j = q - row * n
            w = min(n - j, stop - q)
            target = at_byte(raw, (q * s.padded + to - start) * s.item_size)
            if to < s.channels:
                pick_items(s, target, s.padded, p.data + row * p.row + j * p.column + swapped(s, to) * p.channel, p.column, w)
            else:
                for f in range(w * s.item_size):
                    as_uint8(target)[f // s.item_size * s.padded * s.item_size + f % s.item_size] = 0
            q += w


def pixels(step, buffers, lo, hi):
    """Item = `grain` pixels of a picture. y has no gaps within a picture; a tile ends on a line of it."""
    s = record(step)
    run = s.last * s.padded
    raw = stack(TILE, buffers[X])
    wide = stack(TILE, buffers[X])
    tile = stack(TILE, buffers[X])
    item = lo
    while item < hi:
        i = item // s.pieces
        pos = (item - i * s.pieces) * s.grain * s.padded
        item = min(hi, (i + 1) * s.pieces)
        end = min(s.total, (item - i * s.pieces) * s.grain) * s.padded
        p = picture(buffers, i)
        as_wanted = s.channels == s.padded and not s.swap and p.channel == s.item_size and p.column == s.channels * s.item_size
        k = to_line(s, buffers[Y], i * s.y_outer + pos)
        while pos < end:
            k = min(k, end - pos)
            row = pos // run
            j = pos - row * run
            source = address(raw)
            if not as_wanted:
                put_together(s, p, raw, pos, k)
            elif j + k <= run:
                source = p.data + row * p.row + j * s.item_size
            else:
                f = 0
                while f < k:
                    w = min(run - j, k - f)
                    pick_items(s, at_byte(raw, f * s.item_size), 1, p.data + row * p.row + j * s.item_size, s.item_size, w)
                    f += w
                    row += 1
                    j = 0
            y = at_byte(buffers[Y], (i * s.y_outer + pos) * s.out_size)
            normalize(s, buffers, pos % s.padded, False, source, y, wide, tile, k)
            pos += k
            k = TILE
    if s.store:
        fence()


# ---------------------------------------------------------------- resize


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
            if i != before:
                before = i
                ready = 0
            weights = to_pointer(p.down + (r - i * s.middle) * (2 + p.down_taps) * 4, INTEGERS)
            first = weights[0]
            count = weights[1]
            for row in range(max(ready, first), first + count):
                read_row(s, p, raw, line, p.data + row * p.row)
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
