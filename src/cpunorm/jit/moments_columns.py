"""The same moments of columns: (count, mean, M2) of each column of each piece."""

# ruff: noqa: ANN001, ANN201  (typed by the signatures in `cpunorm.jit.backend`)

from __future__ import annotations

import numpy as np

from cpunorm.jit.lowlevel import as_computed, as_float64, inline, offset, record, size_of, stack, view
from cpunorm.jit.tile import ROWS, SCRATCH, STRIP, WIDE, in_range, merged, rows_in_l1
from cpunorm.jit.vectors import GROUP, lanes, load, load_group, load_some, prefetch_group, store, store_some


@inline
def fetch(x, start, count, buffer):
    """x[start : start + count] in T: where it is, or widened into `buffer`."""
    if size_of(x) == size_of(buffer):
        return view(as_computed(x), start, count)
    q = 0
    while q + lanes(x) <= count:
        store(buffer, q, load(x, start + q))
        q += lanes(x)
    store_some(buffer, q, load_some(x, start + q, count - q, 0), count - q)
    return view(buffer, 0, count)


@inline
def wide_strip_moments(x, stride, rows, n, centred, buffer, mean, m2):
    """Columns of `rows` rows, `stride` apart, in two passes in float64."""
    for q in range(n):
        mean[q] = 0.0
        m2[q] = 0.0
    if centred:
        for r in range(rows):
            v = fetch(x, r * stride, n, buffer)
            for q in range(n):
                mean[q] += np.float64(v[q])
        for q in range(n):
            mean[q] /= np.float64(rows)
    for r in range(rows):
        v = fetch(x, r * stride, n, buffer)
        for q in range(n):
            d = np.float64(v[q]) - mean[q]
            m2[q] += d * d


@inline
def mend_strip(x, stride, rows, n, centred, buffer, mean, m2):
    """Columns whose sums left the range, and only these (the others keep their bits), again in float64; a constant one is right."""
    wide_mean = view(stack(STRIP, as_float64(buffer)), 0, n)
    wide_m2 = view(stack(STRIP, as_float64(buffer)), 0, n)
    other = wide_m2  # values that differ from the column's first
    first = view(buffer, STRIP, n)
    top = fetch(x, 0, n, buffer)
    for q in range(n):
        first[q] = top[q]
        other[q] = 0.0
    for r in range(1, rows):
        v = fetch(x, r * stride, n, buffer)
        for q in range(n):
            other[q] += 0.0 if v[q] == first[q] else 1.0
    lost = 0
    for q in range(n):
        constant = centred and other[q] == 0.0 and m2[q] < np.inf
        if not in_range(m2[q]) and not constant:
            lost += 1
            m2[q] = -1.0
        elif m2[q] < 0.0:
            m2[q] = 0.0
    if lost:
        wide_strip_moments(x, stride, rows, n, centred, buffer, wide_mean, wide_m2)
        for q in range(n):
            if m2[q] == -1.0:
                mean[q] = wide_mean[q]
                m2[q] = wide_m2[q]


@inline
def add_rows(x, stride, rows, n, shift, sums, squares):
    """Adds d = x - shift and d * d of a few rows, a group of columns after another: its sums are in registers, and the rows in L1 after the
    first group. Meanwhile as much is fetched in the order of memory, which gives slivers at two thirds of its rate: the rows after these.
    """
    width = lanes(x)
    following = rows * stride
    fetched = 0
    q = 0
    while q + GROUP * width <= n:
        near = load_group(shift, q)
        sum_ = load_group(sums, q)
        square = load_group(squares, q)
        for r in range(rows):
            prefetch_group(x, following + fetched, 0)
            fetched += GROUP * width
            if fetched + GROUP * width > n:
                fetched = 0
                following += stride
            d = load_group(x, r * stride + q) - near
            sum_ += d
            square += d * d
        store(sums, q, sum_)
        store(squares, q, square)
        q += GROUP * width
    while q < n:
        k = min(width, n - q)
        near_some = load_some(shift, q, k, 0)
        sum_some = load_some(sums, q, k, 0)
        square_some = load_some(squares, q, k, 0)
        for r in range(rows):
            e = load_some(x, r * stride + q, k, 0) - near_some
            sum_some += e
            square_some += e * e
        store_some(sums, q, sum_some, k)
        store_some(squares, q, square_some, k)
        q += width


@inline
def strip_moments(x, stride, rows, n, centred, shift, sums, squares, wide, count_at, mean_at, m2_at):
    """Columns of `rows` rows, `stride` apart: sums of d = x - shift and of d * d, ROWS rows in T, then in float64.

    The shift is the mean of the first rows, so that M2 = sum(d * d) - sum(d)^2 / n cancels little; a constant column is exact again.
    """
    count = view(count_at, 0, n)
    mean = view(mean_at, 0, n)
    m2 = view(m2_at, 0, n)
    near = view(shift, 0, n)
    t = near.dtype.type
    part = view(sums, 0, n)
    square = view(squares, 0, n)
    for q in range(n):
        part[q] = t(0)
        near[q] = t(0)
        mean[q] = 0.0
        m2[q] = 0.0
    if centred:
        top = fetch(x, 0, n, wide)
        k = max(1, min(rows // 8, 8))  # of few rows, these are read twice for it
        for r in range(1, k):
            v = fetch(x, r * stride, n, offset(wide, STRIP))
            for q in range(n):
                part[q] += v[q] - top[q]
        share = t(1) / t(k)
        for q in range(n):
            near[q] = top[q] + part[q] * share
    few = rows_in_l1(n)
    r = 0
    while r < rows:
        end = min(rows, r + ROWS)
        for q in range(n):
            part[q] = t(0)
            square[q] = t(0)
        for row in range(r, end, few):
            add_rows(offset(x, row * stride), stride, min(few, end - row), n, shift, sums, squares)
        r = end
        for q in range(n):
            mean[q] += np.float64(part[q])
            m2[q] += np.float64(square[q])
    size = np.float64(rows)
    if centred:
        for q in range(n):
            off = mean[q] / size
            m2[q] -= mean[q] * off
            mean[q] = np.float64(near[q]) + off
    else:
        for q in range(n):
            mean[q] = 0.0
    lost = 0
    for q in range(n):
        count[q] = size
        lost += not in_range(m2[q])
    if lost:
        mend_strip(x, stride, rows, n, centred, wide, mean, m2)


def moments_columns(step, buffers, lo, hi):
    """Item = (outer index, piece). A piece is `length` values in rows of `last`, `x_middle` apart; the last row may be cut short."""
    s = record(step)
    p = s.last
    pieces = s.pieces
    centred = s.centred
    x = buffers[s.source]
    table = as_float64(buffers[SCRATCH])
    shift = stack(STRIP, as_computed(x))
    sums = stack(STRIP, as_computed(x))
    squares = stack(STRIP, as_computed(x))
    wide = stack(WIDE, as_computed(x))
    for item in range(lo, hi):
        outer = item // pieces
        start = (item - outer * pieces) * s.length
        left = min(s.length, s.total - start)
        base = offset(x, outer * s.x_outer + start // p * s.x_middle)
        rows = left // p
        rest = left - rows * p
        count = offset(table, s.moments + item * p)
        mean = offset(count, s.entries)
        m2 = offset(mean, s.entries)
        if rows == 0:
            for q in range(p):
                count[q] = 0.0
                mean[q] = 0.0
                m2[q] = 0.0
        c = 0 if rows else p
        while c < p:
            w = min(STRIP, p - c)
            at = offset(base, c)
            mean_at = offset(mean, c)
            m2_at = offset(m2, c)
            strip_moments(at, s.x_middle, rows, w, centred, shift, sums, squares, wide, offset(count, c), mean_at, m2_at)
            c += STRIP
        if rest:  # one value more for the first columns
            row = offset(base, rows * s.x_middle)
            for q in range(rest):
                v = np.float64(fetch(row, q, 1, wide)[0])
                both = count[q] + 1.0
                d = v - mean[q]
                if centred:
                    m2[q] += d * d * (count[q] / both)
                    mean[q] = merged(mean[q], v, 1.0 / both)
                else:
                    m2[q] += d * d
                count[q] = both
