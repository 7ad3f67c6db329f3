"""Preprocessing: pictures, each somewhere in memory, to y = (x - m) * s + t, channels first (planes) or last (pixels), a tile at a time.

Slot x is a table of `program.PICTURE`: where a picture is, and how far its rows, pixels and channels lie apart. Where pictures are counts
from slot second, the array that has them all (absent, from 0). A crop is another start, a mirrored picture has a negative stride: the
kernels know neither. Values are picked as they are (bytes are cheaper to shuffle than floats) into a raw tile, unless they lie in memory as
they are wanted; then they are widened, normalized, narrowed and stored as in the affine. Pixels of three bytes, which most pictures have,
go to planes of float without a raw tile: one 224 x 224 picture takes 11 us instead of 27.

The coefficients (slots mean, rstd, bias) are rows: planes have one of `REACH` equal values each; pixels have one of all channels again and
again, so long that a tile finds its coefficients in one piece wherever in a pixel it starts. T is float32.
"""

# ruff: noqa: ANN001, ANN201  (typed by the signatures in `cpunorm.jit.backend`)

from __future__ import annotations

import numpy as np
from numba import types

from cpunorm.jit.lowlevel import (
    PICTURE_RECORD,
    VECTOR_BYTES,
    address,
    as_uint8,
    as_uint16,
    as_uint32,
    at_byte,
    call_stage,
    fence,
    inline,
    offset,
    record,
    stack,
    to_pointer,
    view,
)
from cpunorm.jit.octets import (
    CYCLE,
    EIGHT,
    PIXELS,
    normalize_bytes,
    normalize_bytes_cyclic,
    pick,
    split_backwards,
    split_forwards,
    spread_alone,
    spread_planes,
    stream_alone,
    stream_bytes,
    stream_bytes_cyclic,
)
from cpunorm.jit.tile import BIAS, LINE, MEAN, RSTD, SECOND, TILE, X, Y

PICKED = 4  # channels that are picked together
REACH = TILE + LINE  # pixels of a raw tile: where planes begin elsewhere in a line, each takes those that end on one of its own
RAW = PICKED * REACH
LANES = VECTOR_BYTES // 4

PICTURES = types.CPointer(PICTURE_RECORD)
BYTES = types.CPointer(types.uint8)
FLOATS = types.CPointer(types.float32)


@inline
def picture(buffers, i):
    """The picture `i` of the table."""
    table = to_pointer(address(buffers[X]), PICTURES)
    return record(offset(table, i))


@inline
def base(buffers):
    """What the addresses of pictures count from."""
    return address(buffers[SECOND])


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
def normalize(s, buffers, coefficients, cyclic, source, y, wide, tile, count):
    """`count` values at the address `source` to y, by the coefficients from there on (`cyclic`: they repeat after `CYCLE` vectors)."""
    center = offset(buffers[MEAN], coefficients)
    scale = offset(buffers[RSTD], coefficients)
    if s.bytes_to_floats:
        values = to_pointer(source, BYTES)
        streamed = s.store != 0 and address(y) & (VECTOR_BYTES - 1) == 0
        turns = count // (2 * CYCLE * LANES) if cyclic else 0
        if streamed:
            stream_bytes_cyclic(y, values, center, scale, turns)
        else:
            normalize_bytes_cyclic(y, values, center, scale, turns)
        done = turns * 2 * CYCLE * LANES
        vectors = (count - done) // LANES
        if streamed:
            stream_bytes(offset(y, done), offset(values, done), center, scale, vectors)
        else:
            normalize_bytes(offset(y, done), offset(values, done), center, scale, vectors)
        for q in range(done + vectors * LANES, count):
            y[q] = (np.float32(values[q]) - center[q - done]) * scale[q - done]
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


@inline
def spread_few(source, column, center, scale, y, count):
    """`count` values of the channel whose byte is at `source`, three bytes a pixel, to its plane."""
    for q in range(count):
        y[q] = (np.float32(to_pointer(source + q * column, BYTES)[0]) - center[0]) * scale[0]


@inline
def spread_one(source, column, center, scale, y, count):
    """One channel of pixels of three bytes, past the caches where y is aligned."""
    if count < EIGHT:
        spread_few(source, column, center, scale, y, count)
    elif address(y) & (VECTOR_BYTES - 1) == 0:
        stream_alone(y, 0, source, column < 0, center, scale, 0, count)
    else:
        spread_alone(y, 0, source, column < 0, center, scale, 0, count)


@inline
def rows_of_three(s, p, data, buffers, y, pos, end):
    """Pixels [pos, end) of a picture of three bytes a pixel to planes from y on, row by row, through the caches."""
    n = s.last
    apart = s.y_middle
    first = swapped(s, 0)
    turn = -1 if s.swap else 1
    center = offset(buffers[MEAN], first * REACH)
    scale = offset(buffers[RSTD], first * REACH)
    while pos < end:
        row = pos // n
        j = pos - row * n
        w = min(n - j, end - pos)
        source = data + row * p.row + j * p.column
        to = offset(y, first * apart + pos)
        if w < EIGHT:
            for c in range(3):
                further = c * turn * REACH
                spread_few(source + c, p.column, offset(center, further), offset(scale, further), offset(to, c * turn * apart), w)
        else:
            spread_planes(to, turn * apart, source, p.column < 0, center, scale, turn * REACH, w)
        for c in range(3, s.padded):
            plane = view(y, c * apart + pos, w)
            for q in range(w):
                plane[q] = buffers[BIAS][c * REACH]
        pos += w


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
        data = p.data + base(buffers)
        of_three = s.bytes_to_floats != 0 and s.channels == 3 and p.channel == 1 and (p.column == 3 or p.column == -3)
        if of_three and not s.store:
            rows_of_three(s, p, data, buffers, offset(buffers[Y], i * s.y_outer), pos, end)
            continue
        apart = s.y_middle * s.out_size % LINE  # 0: a tile that ends on a line of one plane does so in all of them
        slack = LINE // s.out_size if apart else 0
        k = to_line(s, buffers[Y], i * s.y_outer + pos)
        while pos < end:
            row = pos // n
            j = pos - row * n
            k = min(k, end - pos)
            # A row that ends on a line ends its tile, which then needs no raw one: rows of 224 are shorter than a tile.
            if of_three and not apart and n >= TILE // 4 and n - j < k and not lead(s, buffers[Y], i * s.y_outer + pos + n - j):
                k = n - j
            count = min(k + slack, end - pos)
            straight = p.column == s.item_size and j + count <= n
            at_once = of_three and j + count <= n
            for group in range(0, s.padded, PICKED):
                channels = max(0, min(PICKED, s.channels - group))
                source = data + row * p.row + j * p.column + group * p.channel
                if not straight and not at_once:
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
                    elif at_once:
                        here = source + c + (start - pos) * p.column
                        spread_one(here, p.column, offset(buffers[MEAN], to * REACH), offset(buffers[RSTD], to * REACH), y, w)
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
def put_together(s, p, data, raw, start, count):
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
                pick_items(s, target, s.padded, data + row * p.row + j * p.column + swapped(s, to) * p.channel, p.column, w)
            else:
                for f in range(w * s.item_size):
                    as_uint8(target)[f // s.item_size * s.padded * s.item_size + f % s.item_size] = 0
            q += w


def pixels(step, buffers, lo, hi):
    """Item = `grain` pixels of a picture. y has no gaps within a picture; a tile ends on a line of it."""
    s = record(step)
    run = s.last * s.padded
    cyclic = CYCLE * LANES % s.padded == 0
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
        data = p.data + base(buffers)
        as_wanted = s.channels == s.padded and not s.swap and p.channel == s.item_size and p.column == s.channels * s.item_size
        k = to_line(s, buffers[Y], i * s.y_outer + pos)
        while pos < end:
            row = pos // run
            j = pos - row * run
            if as_wanted and s.bytes_to_floats and cyclic and k == TILE:  # what needs no tile goes on to the last line of the row
                line = LINE // s.out_size
                k += max(0, run - j - k) // line * line
            k = min(k, end - pos)
            source = address(raw)
            if not as_wanted:
                put_together(s, p, data, raw, pos, k)
            elif j + k <= run:
                source = data + row * p.row + j * s.item_size
            else:
                f = 0
                while f < k:
                    w = min(run - j, k - f)
                    pick_items(s, at_byte(raw, f * s.item_size), 1, data + row * p.row + j * s.item_size, s.item_size, w)
                    f += w
                    row += 1
                    j = 0
            y = at_byte(buffers[Y], (i * s.y_outer + pos) * s.out_size)
            normalize(s, buffers, pos % s.padded, cyclic, source, y, wide, tile, k)
            pos += k
            k = TILE
    if s.store:
        fence()
