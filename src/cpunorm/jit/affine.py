"""The affine that every normalization and every gradient ends in: y = act((x - m) * s + t + (r - n) * q), a tile at a time.

The difference comes first, so that a constant channel gives exactly t and a large mean loses no digits. Forward, r is the residual, with
n = 0 and q = 1; backward, x is the gradient, with m = 0, and r what was normalized. Everything optional happens once a tile of `TILE`
values in L1: widening, activation, narrowing, and stores past the caches; a tile crosses runs, and ends on a cache line of y.
"""

# ruff: noqa: ANN001, ANN201  (typed by the signatures in `cpunorm.jit.backend`)

from __future__ import annotations

from cpunorm.jit.lowlevel import address, at_byte, call_stage, fence, inline, offset, record, stack, view
from cpunorm.jit.tile import BIAS, SECOND, SUM, TILE, WEIGHT, X, Y, coefficients, fetch, to_line


@inline
def finish(s, tile, spare, y, at, count):
    """A tile through the activation to y[at:]."""
    if s.activation:
        call_stage(s.activation, spare, tile, count)
        call_stage(s.store, at_byte(y, at * s.item_size), spare, count)
    else:
        call_stage(s.store, at_byte(y, at * s.item_size), tile, count)


def affine_runs(step, buffers, lo, hi):
    """Item = `grain` elements of [outer, middle, last]; a coefficient a run. The same items of each of the `repeat` arrays."""
    s = record(step)
    n = s.last
    tile = stack(TILE, buffers[X])
    wide_x = stack(TILE, buffers[X])
    wide_r = stack(TILE, buffers[X])
    table = coefficients(s, buffers)
    rows = s.coefficient_count
    first = lo * s.grain
    end = min(hi * s.grain, s.total)
    for repeat in range(s.repeat):
        x = repeat * s.x_repeat
        second = repeat * s.second_repeat
        y = repeat * s.y_repeat
        pos = first
        run = pos // n
        j = pos - run * n
        outer = run // s.middle
        c = run - outer * s.middle
        at = y + outer * s.y_outer + c * s.y_middle + j
        k = to_line(s, buffers[Y], at)
        while pos < end:
            k = min(k, end - pos)
            if not s.packed:
                k = min(k, n - j)
            to = tile if s.store else offset(buffers[Y], at)
            f = 0
            while f < k:
                w = min(n - j, k - f)
                v = fetch(s, buffers[X], x + outer * s.x_outer + c * s.x_middle + j, w, wide_x)
                z = view(to, f, w)
                i = outer * s.coefficient_outer + c
                center = table[i]
                scale = table[i + rows]
                shift = table[i + 2 * rows]
                if s.has_second:
                    r = fetch(s, buffers[SECOND], second + outer * s.second_outer + c * s.second_middle + j, w, wide_r)
                    second_center = table[i + 3 * rows]
                    second_scale = table[i + 4 * rows]
                    for q in range(w):
                        z[q] = ((v[q] - center) * scale + shift) + (r[q] - second_center) * second_scale
                else:
                    for q in range(w):
                        z[q] = (v[q] - center) * scale + shift
                f += w
                j += w
                if j == n:
                    j = 0
                    c += 1
                    if c == s.middle:
                        c = 0
                        outer += 1
            if s.store:
                finish(s, tile, wide_x, buffers[Y], at, k)
            pos += k
            at = at + k if s.packed else y + outer * s.y_outer + c * s.y_middle + j
            k = TILE if s.packed else to_line(s, buffers[Y], at)
    if s.store:
        fence()


def affine_columns(step, buffers, lo, hi):
    """Item = `grain` elements of [outer, middle, last]; rows of coefficients that repeat after `period` values, from each row's start."""
    s = record(step)
    n = s.last
    tile = stack(TILE, buffers[X])
    wide_x = stack(TILE, buffers[X])
    wide_r = stack(TILE, buffers[X])
    table = coefficients(s, buffers)
    rows = s.coefficient_count
    pos = lo * s.grain
    end = min(hi * s.grain, s.total)
    row = pos // n
    j = pos - row * n
    outer = row // s.middle
    m = row - outer * s.middle
    i = j % s.period
    at = outer * s.y_outer + m * s.y_middle + j
    k = to_line(s, buffers[Y], at)
    while pos < end:
        k = min(k, end - pos)
        if not s.packed:
            k = min(k, n - j)
        to = tile if s.store else offset(buffers[Y], at)
        f = 0
        while f < k:
            w = min(min(n - j, k - f), s.period - i)
            v = fetch(s, buffers[X], outer * s.x_outer + m * s.x_middle + j, w, wide_x)
            z = view(to, f, w)
            here = outer * s.coefficient_outer + i
            center = view(table, here, w)
            scale = view(table, here + rows, w)
            shift = view(table, here + 2 * rows, w)
            if s.has_second:
                r = fetch(s, buffers[SECOND], outer * s.second_outer + m * s.second_middle + j, w, wide_r)
                second_center = view(table, here + 3 * rows, w)
                second_scale = view(table, here + 4 * rows, w)
                for q in range(w):
                    z[q] = ((v[q] - center[q]) * scale[q] + shift[q]) + (r[q] - second_center[q]) * second_scale[q]
            else:
                for q in range(w):
                    z[q] = (v[q] - center[q]) * scale[q] + shift[q]
            f += w
            j += w
            i += w
            if i == s.period:
                i = 0
            if j == n:
                j = 0
                i = 0
                m += 1
                if m == s.middle:
                    m = 0
                    outer += 1
        if s.store:
            finish(s, tile, wide_x, buffers[Y], at, k)
        pos += k
        at = at + k if s.packed else outer * s.y_outer + m * s.y_middle + j
        k = TILE if s.packed else to_line(s, buffers[Y], at)
    if s.store:
        fence()


def affine_rows(step, buffers, lo, hi):
    """Item = `grain` elements of [outer, middle, last]; coefficients a row, weight and bias an element.

    Forward (not `training`): ((x + r - m) * s + t) * w + b, where r is the residual and the sum goes to `sum` if that is asked for;
    backward (`training`): (x * w) * s + ((r - n) * q + t).
    """
    s = record(step)
    n = s.last
    tile = stack(TILE, buffers[X])
    wide_x = stack(TILE, buffers[X])
    wide_r = stack(TILE, buffers[X])
    ones = view(stack(TILE, buffers[X]), 0, TILE)
    zeros = view(stack(TILE, buffers[X]), 0, TILE)
    for q in range(TILE):
        ones[q] = ones.dtype.type(1)
        zeros[q] = ones.dtype.type(0)
    table = coefficients(s, buffers)
    rows = s.coefficient_count
    pos = lo * s.grain
    end = min(hi * s.grain, s.total)
    row = pos // n
    j = pos - row * n
    outer = row // s.middle
    m = row - outer * s.middle
    at = outer * s.y_outer + m * s.y_middle + j
    k = to_line(s, buffers[Y], at)
    while pos < end:
        k = min(k, end - pos)
        if not s.packed:
            k = min(k, n - j)
        to = tile if s.store else offset(buffers[Y], at)
        f = 0
        while f < k:
            w = min(n - j, k - f)
            v = fetch(s, buffers[X], outer * s.x_outer + m * s.x_middle + j, w, wide_x)
            z = view(to, f, w)
            weight = view(buffers[WEIGHT], j, w) if address(buffers[WEIGHT]) else ones[:w]
            center = table[row]
            scale = table[row + rows]
            shift = table[row + 2 * rows]
            if s.training:
                r = fetch(s, buffers[SECOND], outer * s.second_outer + m * s.second_middle + j, w, wide_r)
                second_center = table[row + 3 * rows]
                second_scale = table[row + 4 * rows]
                for q in range(w):
                    z[q] = (v[q] * weight[q]) * scale + ((r[q] - second_center) * second_scale + shift)
            else:
                bias = view(buffers[BIAS], j, w) if address(buffers[BIAS]) else zeros[:w]
                if s.has_second:
                    r = fetch(s, buffers[SECOND], outer * s.second_outer + m * s.second_middle + j, w, wide_r)
                    h = view(wide_x, 0, w)
                    for q in range(w):
                        h[q] = v[q] + r[q]
                    if address(buffers[SUM]):
                        call_stage(s.store, at_byte(buffers[SUM], (row * n + j) * s.item_size), wide_x, w)
                    v = h
                for q in range(w):
                    z[q] = ((v[q] - center) * scale + shift) * weight[q] + bias[q]
            f += w
            j += w
            if j == n:
                j = 0
                row += 1
                m += 1
                if m == s.middle:
                    m = 0
                    outer += 1
        if s.store:
            finish(s, tile, wide_x, buffers[Y], at, k)
        pos += k
        at = at + k if s.packed else outer * s.y_outer + m * s.y_middle + j
        k = TILE if s.packed else to_line(s, buffers[Y], at)
    if s.store:
        fence()
