"""The affine of layer and RMS norm and of their gradients: statistics a row, weight and bias an element of it."""

# ruff: noqa: ANN001, ANN201  (typed by the signatures in `cpunorm.jit.backend`)

from __future__ import annotations

from typing import Any, NamedTuple

from cpunorm.jit.affine import DIRECT, NO, START, STREAMED, TILED, YES, finish, head_of, put_group, put_some, result_of, to_line
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


def affine_rows(step, buffers, lo, hi):
    """Item = `grain` elements of [outer, middle, last]. A row has a center, a scale and a shift; weight and bias are an element's."""
    s = record(step)
    n = s.last
    middle = s.middle
    coefficient_count, training = s.coefficient_count, s.training
    packed, has_second, streams, tiled, ahead = s.packed, s.has_second, s.streams, s.tiled, s.ahead
    activation = s.activation
    x, second, y, sums = buffers[X], buffers[SECOND], buffers[Y], buffers[SUM]
    weight, bias = as_computed(buffers[WEIGHT]), as_computed(buffers[BIAS])
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
            total = offset(sums, row * n + j) if address(sums) else sums
            result = result_of(s, to, offset(tile, f))
            center, scale, shift = table[row], table[row + coefficient_count], table[row + 2 * coefficient_count]
            second_center = table[row + 3 * coefficient_count] if training else center
            second_scale = table[row + 4 * coefficient_count] if training else scale
            a = Row(center, scale, shift, second_center, second_scale, offset(weight, j), offset(bias, j))
            if training:
                if tiled:
                    row_span(v, r, result, total, w, a, ahead, YES, YES, TILED)
                elif streams:
                    row_span(v, r, result, total, w, a, ahead, YES, YES, STREAMED)
                else:
                    row_span(v, r, result, total, w, a, ahead, YES, YES, DIRECT)
            elif has_second:
                if tiled:
                    row_span(v, r, result, total, w, a, ahead, YES, NO, TILED)
                elif streams:
                    row_span(v, r, result, total, w, a, ahead, YES, NO, STREAMED)
                else:
                    row_span(v, r, result, total, w, a, ahead, YES, NO, DIRECT)
            elif tiled:
                row_span(v, r, result, total, w, a, ahead, NO, NO, TILED)
            elif streams:
                row_span(v, r, result, total, w, a, ahead, NO, NO, STREAMED)
            else:
                row_span(v, r, result, total, w, a, ahead, NO, NO, DIRECT)
            f += w
            j += w
            if j == n:
                j = 0
                row += 1
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
