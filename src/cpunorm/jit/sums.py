"""The two sums of a gradient: sum(g) and sum(g * (x - mean)) of each item; g is the gradient of the result (slot X), x the input (SECOND).

Sums of a block in T, blocks in float64. `sums_rows` multiplies g by the weight first, a row being normalized as a whole, and adds up the
gradients of weight and bias, which are sums over rows.
"""

# ruff: noqa: ANN001, ANN201  (typed by the signatures in `cpunorm.jit.backend`)

from __future__ import annotations

import numpy as np

from cpunorm.jit.lowlevel import address, as_float64, difference, inline, record, stack, view
from cpunorm.jit.tile import BLOCK, MEAN, ROWS, RSTD, SCRATCH, SECOND, STRIP, WEIGHT, X, fetch

CHUNK = BLOCK // 4  # values of g and of x between two additions in float64


@inline
def mean_of(s, buffers, outer, channel):
    """The mean that belongs to a channel, in T; 0 where there is none (RMS)."""
    if address(buffers[MEAN]):
        return buffers[MEAN][outer * s.coefficient_outer + channel * s.groups // s.channels]
    return view(buffers[RSTD], 0, 1).dtype.type(0)


def sums_runs(step, buffers, lo, hi):
    """Item = (unit, piece), a unit being a channel (of an outer index): `repeat` runs of `last` values."""
    s = record(step)
    n = s.last
    table = as_float64(buffers[SCRATCH])
    wide_g = stack(CHUNK, buffers[X])
    wide_x = stack(CHUNK, buffers[X])
    zero = view(wide_g, 0, 1).dtype.type(0)
    for item in range(lo, hi):
        unit = item // s.pieces
        piece = item - unit * s.pieces
        outer = unit // s.middle
        channel = unit - outer * s.middle
        base = outer * s.x_outer + channel * s.x_middle
        second = outer * s.second_outer + channel * s.second_middle
        mean = mean_of(s, buffers, outer, channel)
        start = piece * s.length
        left = min(s.length, s.total - start)
        run = start // n
        j = start - run * n
        total = 0.0
        product = 0.0
        while left > 0:
            k = min(min(CHUNK, left), n - j)
            g = fetch(s, buffers[X], base + run * s.x_repeat + j, k, wide_g)
            x = fetch(s, buffers[SECOND], second + run * s.second_repeat + j, k, wide_x)
            part = zero
            dot = zero
            for q in range(k):
                part += g[q]
                dot += g[q] * difference(x[q], mean)
            total += np.float64(part)
            product += np.float64(dot)
            left -= k
            j += k
            if j == n:
                j = 0
                run += 1
        entry = s.moments + (outer * s.pieces + piece) * s.middle + channel
        table[entry] = total
        table[entry + s.entries] = product


def sums_columns(step, buffers, lo, hi):
    """Item = (outer index, piece): `length` values in rows of `last` columns, which repeat the channels; the last row may be cut short."""
    s = record(step)
    p = s.last
    table = as_float64(buffers[SCRATCH])
    means = view(stack(STRIP, buffers[X]), 0, STRIP)
    parts = view(stack(STRIP, buffers[X]), 0, STRIP)
    dots = view(stack(STRIP, buffers[X]), 0, STRIP)
    wide_g = stack(STRIP, buffers[X])
    wide_x = stack(STRIP, buffers[X])
    zero = means.dtype.type(0)
    for item in range(lo, hi):
        outer = item // s.pieces
        start = (item - outer * s.pieces) * s.length
        left = min(s.length, s.total - start)
        base = outer * s.x_outer + start // p * s.x_middle
        second = outer * s.second_outer + start // p * s.second_middle
        entry = s.moments + item * p
        rows = -(-left // p)
        column = 0
        while column < p:
            w = min(STRIP, p - column)
            total = view(table, entry + column, w)
            product = view(table, entry + column + s.entries, w)
            for q in range(w):
                means[q] = mean_of(s, buffers, outer, (column + q) % s.channels)
                total[q] = 0.0
                product[q] = 0.0
            r = 0
            while r < rows:
                for q in range(w):
                    parts[q] = zero
                    dots[q] = zero
                end = min(rows, r + ROWS)
                while r < end:
                    k = min(w, left - r * p - column)  # less than w in a cut last row
                    if k > 0:
                        g = fetch(s, buffers[X], base + r * s.x_middle + column, k, wide_g)
                        x = fetch(s, buffers[SECOND], second + r * s.second_middle + column, k, wide_x)
                        for q in range(k):
                            parts[q] += g[q]
                            dots[q] += g[q] * difference(x[q], means[q])
                    r += 1
                for q in range(w):
                    total[q] += np.float64(parts[q])
                    product[q] += np.float64(dots[q])
            column += w


def sums_rows(step, buffers, lo, hi):
    """Item = piece of `length` rows of `last` values. A row's sums are of h = g * weight; the partial sums of a piece are a column's."""
    s = record(step)
    n = s.last
    table = as_float64(buffers[SCRATCH])
    weighted = address(buffers[WEIGHT]) != 0
    wide_g = stack(STRIP, buffers[X])
    wide_x = stack(STRIP, buffers[X])
    ones = view(stack(STRIP, buffers[X]), 0, STRIP)
    parts = view(stack(STRIP, buffers[X]), 0, STRIP)
    dots = view(stack(STRIP, buffers[X]), 0, STRIP)
    zero = ones.dtype.type(0)
    for q in range(STRIP):
        ones[q] = ones.dtype.type(1)
    for item in range(lo, hi):
        first = item * s.length
        last = min(first + s.length, s.total)
        for row in range(first, last):
            table[s.moments + row] = 0.0
            table[s.moments + row + s.entries] = 0.0
        column = 0
        while column < n:
            w = min(STRIP, n - column)
            weight = view(buffers[WEIGHT], column, w) if weighted else ones[:w]
            bias_part = view(table, s.partials + 2 * item * n + column, w)
            weight_part = view(table, s.partials + (2 * item + 1) * n + column, w)
            for q in range(w):
                bias_part[q] = 0.0
                weight_part[q] = 0.0
            row = first
            while row < last:
                end = min(last, row + ROWS)
                for q in range(w):
                    parts[q] = zero
                    dots[q] = zero
                while row < end:
                    outer = row // s.middle
                    m = row - outer * s.middle
                    g = fetch(s, buffers[X], outer * s.x_outer + m * s.x_middle + column, w, wide_g)
                    x = fetch(s, buffers[SECOND], outer * s.second_outer + m * s.second_middle + column, w, wide_x)
                    mean = buffers[MEAN][row] if address(buffers[MEAN]) else zero
                    rstd = buffers[RSTD][row]
                    total = zero
                    product = zero
                    for q in range(w):
                        d = difference(x[q], mean)
                        h = g[q] * weight[q]
                        total += h
                        product += h * d
                    for q in range(w):
                        parts[q] += g[q]
                        dots[q] += g[q] * (difference(x[q], mean) * rstd)
                    table[s.moments + row] += np.float64(total)
                    table[s.moments + row + s.entries] += np.float64(product)
                    row += 1
                for q in range(w):
                    bias_part[q] += np.float64(parts[q])
                    weight_part[q] += np.float64(dots[q])
            column += w
