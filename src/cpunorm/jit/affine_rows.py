"""The affine of layer and RMS norm and of their gradients: statistics a row, weight and bias an element of it."""

# ruff: noqa: ANN001, ANN201  (typed by the signatures in `cpunorm.jit.backend`)

from __future__ import annotations

from typing import Any, NamedTuple

from cpunorm.jit.affine import DIRECT, NO, START, STREAMED, TILED, YES, finish, head_of, place_of, put_group, put_some, result_of, to_line
from cpunorm.jit.lowlevel import address, as_computed, fence, inlined, offset, record, stack
from cpunorm.jit.tile import BIAS, SECOND, SUM, TILE, WEIGHT, X, Y, coefficients
from cpunorm.jit.vectors import GROUP, lanes, load_group, load_some, prefetch_group, splat, splat_group, store, store_some


class Row(NamedTuple):
    """One row's statistics, and the weight and bias of its elements."""

    center: Any
    scale: Any
    shift: Any
    second_center: Any
    second_scale: Any
    weight: Any  # pointers to T
    bias: Any


@inlined
def row_affine(x, r, a, weight, bias, training):
    """Forward ((x [+ r]) - m) * s + t, then the weight and bias of the element; `training`, a gradient: its weight comes first."""
    if training:
        return (x * weight) * a.scale + ((r - a.second_center) * a.second_scale + a.shift)
    return ((x - a.center) * a.scale + a.shift) * weight + bias


@inlined
def row_some(x, r, to, total, q, count, a, has_second, training, target):
    """`count` values of a row from `q` on."""
    v = load_some(x, q, count, 0.0)
    u = load_some(r, q, count, 0.0) if has_second else v
    if has_second and not training:
        v = v + u
        if address(total):
            store_some(total, q, v, count)
    weight = load_some(a.weight, q, count, 0.0)
    bias = splat(x, 0.0) if training else load_some(a.bias, q, count, 0.0)
    put_some(to, q, row_affine(v, u, a, weight, bias, training), count, target)


@inlined
def row_span(x, r, to, total, n, a, ahead, has_second, training, target):
    """`n` values of a row; `total` (not null) gets x + r."""
    one = lanes(x)
    stride = GROUP * one
    q = START
    head = head_of(to.y, n, target)
    while q < head:
        k = min(one, head - q)
        row_some(x, r, to, total, q, k, a, has_second, training, target)
        q += k
    while q + stride <= n:
        if target == STREAMED or ahead:
            prefetch_group(x, q, ahead)
            if has_second:
                prefetch_group(r, q, ahead)
        v = load_group(x, q)
        u = load_group(r, q) if has_second else v
        if has_second and not training:
            v = v + u
            if address(total):
                store(total, q, v)
        weight = load_group(a.weight, q)
        bias = splat_group(x, 0.0) if training else load_group(a.bias, q)
        put_group(to, q, row_affine(v, u, a, weight, bias, training), target)
        q += stride
    while q < n:
        k = min(one, n - q)
        row_some(x, r, to, total, q, k, a, has_second, training, target)
        q += k


@inlined
def row_at(row, count, weight, bias, training):
    """Of one row."""
    center, scale, shift = row[0], row[count], row[2 * count]
    if training:
        return Row(center, scale, shift, row[3 * count], row[4 * count], weight, bias)
    return Row(center, scale, shift, center, scale, weight, bias)


@inlined
def walk_rows(s, at, table, buffers, tile, has_second, training, target):
    """Spans that are rows, and parts of them at either end; as `walk_runs`."""
    n, middle, count, ahead = s.last, s.middle, s.coefficient_count, s.ahead
    x_middle, second_middle, y_middle = s.x_middle, s.second_middle, s.y_middle
    x, second, y, sums = buffers[X], buffers[SECOND], buffers[Y], buffers[SUM]
    weight, bias = as_computed(buffers[WEIGHT]), as_computed(buffers[BIAS])
    pos, end, outer, c, j = at
    while pos < end:
        first = outer * middle + c
        v = offset(x, outer * s.x_outer + c * x_middle)
        r = offset(second, outer * s.second_outer + c * second_middle)
        to = offset(y, outer * s.y_outer + c * y_middle)
        total = offset(sums, first * n) if address(sums) else sums
        row = offset(table, first)
        while c < middle and pos < end:
            w = min(n - j, end - pos)
            a = row_at(row, count, offset(weight, j), offset(bias, j), training)
            part = offset(total, j) if address(sums) else sums
            row_span(offset(v, j), offset(r, j), result_of(s, offset(to, j), tile), part, w, a, ahead, has_second, training, target)
            pos += w
            j = 0
            c += 1
            v = offset(v, x_middle)
            r = offset(r, second_middle)
            to = offset(to, y_middle)
            total = offset(total, n) if address(sums) else sums
            row = offset(row, 1)
        c = 0
        outer += 1


@inlined
def walk_row_tiles(s, at, table, buffers, tile, spare, has_second, training):
    """Spans that go through tiles, which cross rows where y is packed; as `walk_tiles`."""
    n, packed = s.last, s.packed
    x, second, y, sums = buffers[X], buffers[SECOND], buffers[Y], buffers[SUM]
    weight, bias = as_computed(buffers[WEIGHT]), as_computed(buffers[BIAS])
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
            row = outer * s.middle + c
            v = offset(x, outer * s.x_outer + c * s.x_middle + j)
            r = offset(second, outer * s.second_outer + c * s.second_middle + j)
            total = offset(sums, row * n + j) if address(sums) else sums
            a = row_at(offset(table, row), s.coefficient_count, offset(weight, j), offset(bias, j), training)
            row_span(v, r, result_of(s, to, offset(tile, f)), total, w, a, s.ahead, has_second, training, TILED)
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
def walk_all_rows(s, at, table, buffers, tile, spare, has_second, training):
    """As the results go."""
    if s.tiled:
        walk_row_tiles(s, at, table, buffers, tile, spare, has_second, training)
    elif s.streams:
        walk_rows(s, at, table, buffers, tile, has_second, training, STREAMED)
    else:
        walk_rows(s, at, table, buffers, tile, has_second, training, DIRECT)


def affine_rows(step, buffers, lo, hi):
    """Item = `grain` elements of [outer, middle, last]. A row has a center, a scale and a shift; weight and bias are an element's."""
    s = record(step)
    table = coefficients(s, buffers)
    tile = stack(TILE, table)
    spare = stack(TILE, table)
    at = place_of(s, lo, hi)
    if s.training:
        walk_all_rows(s, at, table, buffers, tile, spare, YES, YES)
    elif s.has_second:
        walk_all_rows(s, at, table, buffers, tile, spare, YES, NO)
    else:
        walk_all_rows(s, at, table, buffers, tile, spare, NO, NO)
    if s.streams:
        fence()
