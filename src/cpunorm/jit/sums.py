"""The two sums of a gradient: sum(g) and sum(g * (x - mean)) of each item; g is the gradient of the result (slot X), x the input (SECOND).

Sums of a block in T, blocks in float64. `sums_rows` multiplies g by the weight first, a row being normalized as a whole, and adds up the
gradients of weight and bias, which are sums over rows.
"""

# ruff: noqa: ANN001, ANN201  (typed by the signatures in `cpunorm.jit.backend`)

from __future__ import annotations

import numpy as np

from cpunorm.jit.lowlevel import address, as_computed, as_float64, inline, inlined, offset, record, size_of, stack, view
from cpunorm.jit.tile import BLOCK, MEAN, ROWS, RSTD, SCRATCH, SECOND, STRIP, WEIGHT, X
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

CHUNK = BLOCK // 4  # values of g and of x between two additions in float64
LAST = GROUP - 1


@inlined
def add_run(g, x, n, mean, sums, dots, ahead, passed):
    """Adds a run of `n` values to groups of sums."""
    width = lanes(g)
    q = 0
    while q + GROUP * width <= n:
        if ahead and not q & passed:
            prefetch_group(g, q, ahead)
            prefetch_group(x, q, ahead)
        u = load_group(g, q)
        sums += u
        dots += u * (load_group(x, q) - mean)
        q += GROUP * width
    if q + width <= n:
        v = load(g, q)
        sums = add_to(sums, 0, v)
        dots = add_to(dots, 0, v * (load(x, q) - mean))
        q += width
    if q + width <= n:
        v = load(g, q)
        sums = add_to(sums, 1, v)
        dots = add_to(dots, 1, v * (load(x, q) - mean))
        q += width
    if q + width <= n:
        v = load(g, q)
        sums = add_to(sums, 2, v)
        dots = add_to(dots, 2, v * (load(x, q) - mean))
        q += width
    if q < n:  # the last lanes of vectors that end with the run; a NaN of x in the others must not get in
        if n >= width:
            v = last_lanes(load(g, n - width), n - q)
            d = last_lanes(load(x, n - width) - mean, n - q)
        else:
            v = load_some(g, 0, n, 0)
            d = load_some(x, 0, n, mean) - mean
        sums = add_to(sums, LAST, v)
        dots = add_to(dots, LAST, v * d)
    return sums, dots


def sums_runs(step, buffers, lo, hi):
    """Item = (unit, piece), a unit being a channel (of an outer index): `repeat` runs of `last` values. Without a mean (RMS) it is 0."""
    s = record(step)
    n = s.last
    middle = s.middle
    pieces = s.pieces
    means = as_computed(buffers[MEAN])
    has_means = address(means) != 0
    table = as_float64(buffers[SCRATCH])
    zero = view(means, 0, 1).dtype.type(0)
    for item in range(lo, hi):
        unit = item // pieces
        piece = item - unit * pieces
        outer = unit // middle
        channel = unit - outer * middle
        x = offset(buffers[X], outer * s.x_outer + channel * s.x_middle)
        second = offset(buffers[SECOND], outer * s.second_outer + channel * s.second_middle)
        mean = means[outer * s.coefficient_outer + channel * s.groups // s.channels] if has_means else zero
        start = piece * s.length
        left = min(s.length, s.total - start)
        run = start // n
        j = start - run * n
        total = 0.0
        product = 0.0
        while left > 0:
            sums = splat_group(x, 0)
            dots = splat_group(x, 0)
            chunk = min(CHUNK, left)
            while chunk > 0:
                k = min(chunk, n - j)
                u = offset(x, run * s.x_repeat + j)
                v = offset(second, run * s.second_repeat + j)
                sums, dots = add_run(u, v, k, mean, sums, dots, s.ahead, s.sparse * GROUP * lanes(x))
                chunk -= k
                left -= k
                j += k
                if j == n:
                    j = 0
                    run += 1
            total += np.float64(total_of(sums))
            product += np.float64(total_of(dots))
        entry = s.moments + (outer * pieces + piece) * middle + channel
        table[entry] = total
        table[entry + s.entries] = product


@inline
def add_gradient_row(g, x, g_start, x_start, n, means, parts, dots, ahead):
    """Adds a row of g and g * (x - mean)."""
    width = lanes(g)
    q = 0
    while q + GROUP * width <= n:
        prefetch_group(g, g_start + q, ahead)
        prefetch_group(x, x_start + q, ahead)
        each = load_group(g, g_start + q)
        store(parts, q, load_group(parts, q) + each)
        store(dots, q, load_group(dots, q) + each * (load_group(x, x_start + q) - load_group(means, q)))
        q += GROUP * width
    while q < n:
        k = min(width, n - q)
        some = load_some(g, g_start + q, k, 0)
        d = load_some(x, x_start + q, k, 0) - load_some(means, q, k, 0)
        store_some(parts, q, load_some(parts, q, k, 0) + some, k)
        store_some(dots, q, load_some(dots, q, k, 0) + some * d, k)
        q += width


def sums_columns(step, buffers, lo, hi):
    """Item = (outer index, piece): `length` values in rows of `last` columns, which repeat the channels; the last row may be cut short."""
    s = record(step)
    p = s.last
    pieces = s.pieces
    groups = s.groups
    channels = s.channels
    x_middle = s.x_middle
    second_middle = s.second_middle
    x = buffers[X]
    second = buffers[SECOND]
    means_in = as_computed(buffers[MEAN])
    has_means = address(means_in) != 0
    table = as_float64(buffers[SCRATCH])
    means = stack(STRIP, means_in)
    parts = stack(STRIP, means_in)
    dots = stack(STRIP, means_in)
    zero = view(means, 0, 1).dtype.type(0)
    for item in range(lo, hi):
        outer = item // pieces
        start = (item - outer * pieces) * s.length
        left = min(s.length, s.total - start)
        rows = (left + p - 1) // p
        entry = s.moments + item * p
        for column in range(0, p, STRIP):
            w = min(STRIP, p - column)
            g_top = offset(x, outer * s.x_outer + start // p * x_middle + column)
            x_top = offset(second, outer * s.second_outer + start // p * second_middle + column)
            total = view(table, entry + column, w)
            product = view(table, entry + column + s.entries, w)
            part = view(parts, 0, w)
            dot = view(dots, 0, w)
            c = column % channels
            for q in range(w):
                means[q] = means_in[outer * s.coefficient_outer + c * groups // channels] if has_means else zero
                c = 0 if c + 1 == channels else c + 1
            for q in range(w):
                total[q] = 0.0
                product[q] = 0.0
            near = x_middle * size_of(x) if w < x_middle else s.ahead  # bytes to what is next in memory
            r = 0
            while r < rows:
                end = min(rows, r + ROWS)
                for q in range(w):
                    part[q] = zero
                    dot[q] = zero
                while r < end:
                    k = min(w, left - r * p - column)  # less than w, perhaps none, in a cut last row
                    if k > 0:
                        add_gradient_row(g_top, x_top, r * x_middle, r * second_middle, k, means, parts, dots, near)
                    r += 1
                for q in range(w):
                    total[q] += np.float64(part[q])
                    product[q] += np.float64(dot[q])


@inlined
def row_sums(g, x, weight, n, mean, rstd, parts, dots):
    """A strip of a row, in one pass: the sums of h = g * weight and of h * (x - mean), and what the row adds to its columns."""
    width = lanes(g)
    sums = splat_group(g, 0)
    products = splat_group(g, 0)
    q = 0
    while q + 2 * width <= n:
        p = q
        u = load(g, p)
        d = load(x, p) - mean
        h = u * load(weight, p)
        sums = add_to(sums, 0, h)
        products = add_to(products, 0, h * d)
        store(parts, p, load(parts, p) + u)
        store(dots, p, load(dots, p) + u * (d * rstd))
        p = q + width
        u = load(g, p)
        d = load(x, p) - mean
        h = u * load(weight, p)
        sums = add_to(sums, 1, h)
        products = add_to(products, 1, h * d)
        store(parts, p, load(parts, p) + u)
        store(dots, p, load(dots, p) + u * (d * rstd))
        q += 2 * width
    while q < n:
        k = min(width, n - q)
        u = load_some(g, q, k, 0)
        d = load_some(x, q, k, mean) - mean
        h = u * load_some(weight, q, k, 0)
        sums = add_to(sums, 0, h)
        products = add_to(products, 0, h * d)
        store_some(parts, q, load_some(parts, q, k, 0) + u, k)
        store_some(dots, q, load_some(dots, q, k, 0) + u * (d * rstd), k)
        q += width
    return np.float64(total_of(sums)), np.float64(total_of(products))


def sums_rows(step, buffers, lo, hi):
    """Item = `length` rows of `last` values. A row's sums are of h = g * weight; the partial sums are a column's, and `pieces` items, which
    one thread has in their order, add to the same ones.
    """
    s = record(step)
    n = s.last
    middle = s.middle
    x = buffers[X]
    second = buffers[SECOND]
    weights = as_computed(buffers[WEIGHT])
    means = as_computed(buffers[MEAN])
    has_means = address(means) != 0
    rstds = as_computed(buffers[RSTD])
    table = as_float64(buffers[SCRATCH])
    totals = offset(table, s.moments)
    products = offset(totals, s.entries)
    parts = stack(STRIP, weights)
    dots = stack(STRIP, weights)
    zero = view(parts, 0, 1).dtype.type(0)
    for item in range(lo, hi):
        piece = item // s.pieces
        first = item * s.length
        last = min(first + s.length, s.total)
        for row in range(first, last):
            totals[row] = 0.0
            products[row] = 0.0
        for column in range(0, n, STRIP):
            w = min(STRIP, n - column)
            weight = offset(weights, column)
            bias_part = view(table, s.partials + 2 * piece * n + column, w)
            weight_part = view(table, s.partials + (2 * piece + 1) * n + column, w)
            part = view(parts, 0, w)
            dot = view(dots, 0, w)
            if item == piece * s.pieces:
                for q in range(w):
                    bias_part[q] = 0.0
                    weight_part[q] = 0.0
            outer = first // middle
            m = first - outer * middle
            row = first
            while row < last:
                end = min(last, row + ROWS)
                for q in range(w):
                    part[q] = zero
                    dot[q] = zero
                while row < end:
                    g = offset(x, outer * s.x_outer + m * s.x_middle + column)
                    v = offset(second, outer * s.second_outer + m * s.second_middle + column)
                    mean = means[row] if has_means else zero
                    total, product = row_sums(g, v, weight, w, mean, rstds[row], parts, dots)
                    totals[row] += total
                    products[row] += product
                    m += 1
                    if m == middle:
                        m = 0
                        outer += 1
                    row += 1
                for q in range(w):
                    bias_part[q] += np.float64(part[q])
                    weight_part[q] += np.float64(dot[q])
