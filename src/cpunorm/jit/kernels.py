"""The Numba kernels: serial loops over a range of items. csrc/kernels.inc has the same ones, by the same names, in C.

Every kernel is ``kernel(step, buffers, lo, hi)`` and trusts its step: no checks, no defaults, no allocation. T below is the computing
dtype, float32 or float64, that the type of `buffers` carries; statistics are merged in float64 whatever T is.

Two reductions and an affine, each in two forms (`cpunorm.layout`):

========================  ==================================================================================================
``moments_runs/columns``  (count, mean, M2) of each item, M2 the sum of squared differences from the mean
``fold_moments``          the same of each unit, from its items: many-way form of Chan, Golub and LeVeque's merge
``fold_batch``            statistics to coefficients, results and running statistics
``fold_running``          running statistics to coefficients
``affine_runs/columns``   y = (x - center) * scale + shift
========================  ==================================================================================================
"""

# ruff: noqa: ANN001, ANN201  (Numba types these functions by the signatures in `cpunorm.jit.backend`)

from __future__ import annotations

import numpy as np

from cpunorm.jit.lowlevel import (
    VECTOR_BYTES,
    address,
    as_float64,
    as_type_of,
    call_stage,
    fence,
    inline,
    offset,
    record,
    size_of,
    stack,
    stream,
    view,
)

BLOCK = 4096  # values read twice in a row by moments_runs: 16 KB of float32, half of the smallest L1
TILE = 256  # values between load and store of the affine: streaming wants them fine (2048: 85% of the limit, 8192: 77%)
STRIP = 512  # columns that moments_columns accumulates at once: 3 rows of float64 on the stack
ROWS = 32  # rows summed in T before they go to float64
LINE = 64  # bytes

X, Y, WEIGHT, BIAS, RUNNING_MEAN, RUNNING_VAR, MEAN, RSTD, SCRATCH = range(9)  # program.SLOTS


# ---------------------------------------------------------------- moments


@inline
def finite(value):
    """Neither NaN nor infinite. (np.isfinite is value - value == 0 in Numba, which `reassoc` may turn into true.)"""
    return abs(value) < np.inf


@inline
def block_moments(v):
    """Mean and M2 of a block in L1: a shifted sum, then Chan's corrected two-pass sum of squares.

    The first value is the shift: the mean of a constant block is that constant exactly, and the sum of a block far from zero loses nothing.
    The correction (sum of d)^2 / n takes back that m is rounded to T.
    """
    zero = v.dtype.type(0)
    first = v[0]
    total = zero
    for q in range(v.size):
        total += v[q] - first
    m = first + total / v.dtype.type(v.size)
    total = zero
    squares = zero
    for q in range(v.size):
        d = v[q] - m
        total += d
        squares += d * d
    error = np.float64(total) / v.size
    return np.float64(m) + error, np.float64(squares) - error * np.float64(total)


@inline
def wide_block_moments(v):
    """The same in float64: for blocks whose sums leave the range of float32, or that hold NaN or infinity."""
    m = 0.0
    for q in range(v.size):
        m += np.float64(v[q])
    m /= v.size
    squares = 0.0
    for q in range(v.size):
        d = np.float64(v[q]) - m
        squares += d * d
    return m, squares


@inline
def merged(mu, other, share):
    """Chan's mean: mu + (other - mu) * share, exact for equal means; an infinite one stays infinite instead of inf - inf."""
    d = other - mu
    return mu + d * share if finite(d) else mu + other


def moments_runs(step, buffers, lo, hi):
    """Item = (unit, piece). A unit is `repeat` runs of `last` values, `x_repeat` apart; a piece is `length` of these values."""
    s = record(step)
    n = s.last
    x = buffers[X]
    table = as_float64(buffers[SCRATCH])
    gathered = stack(BLOCK, x)
    for item in range(lo, hi):
        unit = item // s.pieces
        piece = item - unit * s.pieces
        outer = unit // s.middle
        channel = unit - outer * s.middle
        base = outer * s.x_outer + channel * s.x_middle
        start = piece * s.length
        left = min(s.length, s.total - start)
        run = start // n
        j = start - run * n
        count = 0.0
        mean = 0.0
        m2 = 0.0
        while left > 0:
            k = min(BLOCK, left)
            if j + k <= n:  # inside one run: read where it is
                v = view(x, base + run * s.x_repeat + j, k)
                j += k
                if j == n:
                    j = 0
                    run += 1
            else:  # across runs: gathered first, so that a short run costs no merge of its own
                v = view(gathered, 0, k)
                f = 0
                while f < k:
                    w = min(n - j, k - f)
                    part = view(x, base + run * s.x_repeat + j, w)
                    to = view(gathered, f, w)
                    for q in range(w):
                        to[q] = part[q]
                    f += w
                    j += w
                    if j == n:
                        j = 0
                        run += 1
            block_mean, block_m2 = block_moments(v)
            if not finite(block_m2):
                block_mean, block_m2 = wide_block_moments(v)
            size = np.float64(k)
            both = count + size
            d = block_mean - mean
            m2 += block_m2 + d * d * (count * size / both)
            mean = merged(mean, block_mean, size / both)
            count = both
            left -= k
        entry = s.moments + (outer * s.pieces + piece) * s.middle + channel
        table[entry] = count
        table[entry + s.entries] = mean
        table[entry + 2 * s.entries] = m2


@inline
def strip_moments(x, start, stride, rows, shift, sums, squares, count, mean, m2):
    """Columns of `rows` rows, `stride` apart: sums of d = x - shift and of d * d, ROWS rows in T, then in float64.

    The shift is the mean of the first rows, so that M2 = sum(d * d) - sum(d)^2 / n cancels little; a constant column is exact again.
    """
    n = count.size
    zero = shift.dtype.type(0)
    top = view(x, start, n)
    k = min(rows, 8)
    for q in range(n):
        sums[q] = zero
    for r in range(1, k):
        v = view(x, start + r * stride, n)
        for q in range(n):
            sums[q] += v[q] - top[q]
    part = shift.dtype.type(1) / shift.dtype.type(k)
    for q in range(n):
        shift[q] = top[q] + sums[q] * part
        mean[q] = 0.0
        m2[q] = 0.0
    r = 0
    while r < rows:
        end = min(rows, r + ROWS)
        for q in range(n):
            sums[q] = zero
            squares[q] = zero
        while r + 4 <= end:  # four rows at once: the sums are loaded and stored once for four values
            v0 = view(x, start + r * stride, n)
            v1 = view(x, start + (r + 1) * stride, n)
            v2 = view(x, start + (r + 2) * stride, n)
            v3 = view(x, start + (r + 3) * stride, n)
            for q in range(n):
                d0 = v0[q] - shift[q]
                d1 = v1[q] - shift[q]
                d2 = v2[q] - shift[q]
                d3 = v3[q] - shift[q]
                sums[q] += (d0 + d1) + (d2 + d3)
                squares[q] += (d0 * d0 + d1 * d1) + (d2 * d2 + d3 * d3)
            r += 4
        while r < end:
            v = view(x, start + r * stride, n)
            for q in range(n):
                d = v[q] - shift[q]
                sums[q] += d
                squares[q] += d * d
            r += 1
        for q in range(n):
            mean[q] += np.float64(sums[q])
            m2[q] += np.float64(squares[q])
    size = np.float64(rows)
    lost = 0.0
    for q in range(n):
        m2[q] -= mean[q] * mean[q] / size
        mean[q] = np.float64(shift[q]) + mean[q] / size
        count[q] = size
        lost += m2[q] * 0.0
    return lost == 0.0  # NaN where a sum left the range


@inline
def wide_strip_moments(x, start, stride, rows, mean, m2):
    """Two passes in float64, for strips with a column that holds NaN, infinity or values whose squares leave the range of float32."""
    n = mean.size
    for q in range(n):
        mean[q] = 0.0
        m2[q] = 0.0
    for r in range(rows):
        v = view(x, start + r * stride, n)
        for q in range(n):
            mean[q] += np.float64(v[q])
    for q in range(n):
        mean[q] /= np.float64(rows)
    for r in range(rows):
        v = view(x, start + r * stride, n)
        for q in range(n):
            d = np.float64(v[q]) - mean[q]
            m2[q] += d * d


def moments_columns(step, buffers, lo, hi):
    """Item = (outer index, piece). A piece is `length` values in rows of `last`, `x_middle` apart; the last row may be cut short."""
    s = record(step)
    p = s.last
    x = buffers[X]
    table = as_float64(buffers[SCRATCH])
    shift = view(stack(STRIP, x), 0, STRIP)
    sums = view(stack(STRIP, x), 0, STRIP)
    squares = view(stack(STRIP, x), 0, STRIP)
    for item in range(lo, hi):
        outer = item // s.pieces
        start = (item - outer * s.pieces) * s.length
        left = min(s.length, s.total - start)
        base = outer * s.x_outer + start // p * s.x_middle
        rows = left // p
        rest = left - rows * p
        entry = s.moments + item * p
        if rows == 0:
            for i in range(3):
                row = view(table, entry + i * s.entries, p)
                for q in range(p):
                    row[q] = 0.0
        column = 0 if rows else p
        while column < p:
            w = min(STRIP, p - column)
            at = base + column
            count = view(table, entry + column, w)
            mean = view(table, entry + column + s.entries, w)
            m2 = view(table, entry + column + 2 * s.entries, w)
            if not strip_moments(x, at, s.x_middle, rows, shift, sums, squares, count, mean, m2):
                wide_strip_moments(x, at, s.x_middle, rows, mean, m2)
            column += w
        if rest:  # one value more for the first columns
            count = view(table, entry, rest)
            mean = view(table, entry + s.entries, rest)
            m2 = view(table, entry + 2 * s.entries, rest)
            v = view(x, base + rows * s.x_middle, rest)
            for q in range(rest):
                both = count[q] + 1.0
                d = np.float64(v[q]) - mean[q]
                m2[q] += d * d * (count[q] / both)
                mean[q] = merged(mean[q], np.float64(v[q]), 1.0 / both)
                count[q] = both


# ---------------------------------------------------------------- folds: tables to tables, in float64


def fold_moments(step, buffers, lo, hi):
    """Item = unit = (outer index, channel). Merges its `unit_entries` entries: mean = sum(n m) / n, M2 = sum(M2 + n (m - mean)^2)."""
    s = record(step)
    table = as_float64(buffers[SCRATCH])
    unit = lo
    while unit < hi:
        outer = unit // s.channels
        channel = unit - outer * s.channels
        w = min(hi - unit, s.channels - channel)
        first = s.moments + outer * s.unit_entries * s.channels + channel
        total = view(table, s.statistics + unit, w)
        mean = view(table, s.statistics + s.units + unit, w)
        m2 = view(table, s.statistics + 2 * s.units + unit, w)
        origin = view(table, first + s.entries, w)  # differences from the first mean: equal means merge to themselves
        for q in range(w):
            total[q] = 0.0
            mean[q] = 0.0
            m2[q] = 0.0
        for e in range(s.unit_entries):
            n = view(table, first + e * s.channels, w)
            m = view(table, first + e * s.channels + s.entries, w)
            for q in range(w):
                total[q] += n[q]
                mean[q] += n[q] * (m[q] - origin[q])
        for q in range(w):
            mean[q] = origin[q] + mean[q] / total[q]
        for q in range(w):
            if not finite(mean[q]):  # inf - inf: the plain sum keeps an infinity
                mean[q] = 0.0
                for e in range(s.unit_entries):
                    mean[q] += table[first + e * s.channels + s.entries + q]
        for e in range(s.unit_entries):
            n = view(table, first + e * s.channels, w)
            m = view(table, first + e * s.channels + s.entries, w)
            part = view(table, first + e * s.channels + 2 * s.entries, w)
            for q in range(w):
                d = m[q] - mean[q]
                m2[q] += part[q] + n[q] * (d * d)
        unit += w


def fold_batch(step, buffers, lo, hi):
    """Item = unit. rstd = 1 / sqrt(M2 / n + eps); results, running statistics and coefficients, each where there is room for it."""
    s = record(step)
    scratch = as_float64(buffers[SCRATCH])
    total = view(scratch, s.statistics, s.units)
    mean = view(scratch, s.statistics + s.units, s.units)
    m2 = view(scratch, s.statistics + 2 * s.units, s.units)
    coefficients = as_type_of(offset(scratch, s.coefficients), buffers[X])
    for u in range(lo, hi):
        variance = m2[u] / total[u]
        rstd = 1.0 / np.sqrt(variance + s.eps)
        outer = u // s.channels
        c = u - outer * s.channels
        if address(buffers[MEAN]):
            buffers[MEAN][u] = mean[u]
            buffers[RSTD][u] = rstd
        if address(buffers[RUNNING_MEAN]):
            running = np.float64(buffers[RUNNING_MEAN][c])
            buffers[RUNNING_MEAN][c] = running * (1.0 - s.momentum) + mean[u] * s.momentum
            running = np.float64(buffers[RUNNING_VAR][c])
            unbiased = m2[u] / (total[u] - 1.0)
            buffers[RUNNING_VAR][c] = running * (1.0 - s.momentum) + unbiased * s.momentum
        write_coefficients(s, buffers, coefficients, outer, c, mean[u], rstd)


def fold_running(step, buffers, lo, hi):
    """Item = channel. The running statistics are the statistics."""
    s = record(step)
    coefficients = as_type_of(offset(as_float64(buffers[SCRATCH]), s.coefficients), buffers[X])
    for c in range(lo, hi):
        mean = np.float64(buffers[RUNNING_MEAN][c])
        rstd = 1.0 / np.sqrt(np.float64(buffers[RUNNING_VAR][c]) + s.eps)
        if address(buffers[MEAN]):
            buffers[MEAN][c] = mean
            buffers[RSTD][c] = rstd
        write_coefficients(s, buffers, coefficients, 0, c, mean, rstd)


@inline
def write_coefficients(s, buffers, coefficients, outer, c, mean, rstd):
    """center = mean rounded to T, scale = rstd * weight, shift = bias - (mean - center) * scale: what rounding the mean lost comes back."""
    scale = rstd
    if address(buffers[WEIGHT]):
        scale *= np.float64(buffers[WEIGHT][c])
    shift = 0.0
    if address(buffers[BIAS]):
        shift = np.float64(buffers[BIAS][c])
    at = outer * s.coefficient_outer + c
    center = view(coefficients, at, 1)
    center[0] = mean
    lost = mean - np.float64(center[0])
    if lost != 0.0 and finite(lost):
        shift -= lost * scale
    for i in range(at, at + s.period - c, s.channels):
        coefficients[i] = center[0]
        coefficients[i + s.coefficient_count] = scale
        coefficients[i + 2 * s.coefficient_count] = shift


# ---------------------------------------------------------------- affine


@inline
def to_line(y, start):
    """How many values the tile at y[start] has, so that it ends on a cache line of y; all others then start on one."""
    return TILE - (address(offset(y, start)) & (LINE - 1)) // size_of(y)


def affine_runs(step, buffers, lo, hi):
    """Item = `grain` elements of [outer, middle, last]; a coefficient a run. The same items of each of the `repeat` arrays."""
    s = record(step)
    n = s.last
    tile = stack(TILE, buffers[X])
    table = as_type_of(offset(as_float64(buffers[SCRATCH]), s.coefficients), buffers[X])
    first = lo * s.grain
    end = min(hi * s.grain, s.total)
    for repeat in range(s.repeat):
        x = offset(buffers[X], repeat * s.x_repeat)
        y = offset(buffers[Y], repeat * s.y_repeat)
        pos = first
        run = pos // n
        j = pos - run * n
        outer = run // s.middle
        c = run - outer * s.middle
        at = outer * s.y_outer + c * s.y_middle + j
        k = to_line(y, at)
        while pos < end:
            k = min(k, end - pos)
            if not s.packed:
                k = min(k, n - j)
            to = tile if s.store else offset(y, at)
            f = 0
            while f < k:
                w = min(n - j, k - f)
                v = view(x, outer * s.x_outer + c * s.x_middle + j, w)
                z = view(to, f, w)
                i = outer * s.coefficient_outer + c
                center = table[i]
                scale = table[i + s.coefficient_count]
                shift = table[i + 2 * s.coefficient_count]
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
                call_stage(s.store, offset(y, at), tile, k)
            pos += k
            at = at + k if s.packed else outer * s.y_outer + c * s.y_middle + j
            k = TILE if s.packed else to_line(y, at)
    if s.store:
        fence()


def affine_columns(step, buffers, lo, hi):
    """Item = `grain` elements of [outer, middle, last]; rows of coefficients that repeat after `period` values, from each row's start."""
    s = record(step)
    n = s.last
    tile = stack(TILE, buffers[X])
    table = as_type_of(offset(as_float64(buffers[SCRATCH]), s.coefficients), buffers[X])
    x = buffers[X]
    y = buffers[Y]
    pos = lo * s.grain
    end = min(hi * s.grain, s.total)
    row = pos // n
    j = pos - row * n
    outer = row // s.middle
    m = row - outer * s.middle
    i = j % s.period
    at = outer * s.y_outer + m * s.y_middle + j
    k = to_line(y, at)
    while pos < end:
        k = min(k, end - pos)
        if not s.packed:
            k = min(k, n - j)
        to = tile if s.store else offset(y, at)
        f = 0
        while f < k:
            w = min(min(n - j, k - f), s.period - i)
            v = view(x, outer * s.x_outer + m * s.x_middle + j, w)
            z = view(to, f, w)
            center = view(table, outer * s.coefficient_outer + i, w)
            scale = view(table, outer * s.coefficient_outer + i + s.coefficient_count, w)
            shift = view(table, outer * s.coefficient_outer + i + 2 * s.coefficient_count, w)
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
            call_stage(s.store, offset(y, at), tile, k)
        pos += k
        at = at + k if s.packed else outer * s.y_outer + m * s.y_middle + j
        k = TILE if s.packed else to_line(y, at)
    if s.store:
        fence()


# ---------------------------------------------------------------- stages: (target, source, count), once a tile


def store_plain(y, tile, count):
    """Through the caches. For results written over their input: LLVM does not vectorize a loop whose ends may overlap."""
    to = view(y, 0, count)
    v = view(tile, 0, count)
    for q in range(count):
        to[q] = v[q]


def store_stream(y, tile, count):
    """Past the caches, for results larger than these; the ends that fill no vector go the ordinary way."""
    vectors = 0
    if address(y) & (VECTOR_BYTES - 1) == 0:
        vectors = count * size_of(y) // VECTOR_BYTES
        stream(y, tile, vectors)
    done = vectors * VECTOR_BYTES // size_of(y)
    to = view(y, done, count - done)
    v = view(tile, done, count - done)
    for q in range(v.size):
        to[q] = v[q]
