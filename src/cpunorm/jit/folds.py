"""Folds: tables to tables, in float64. What happens between the trips to memory."""

# ruff: noqa: ANN001, ANN201  (typed by the signatures in `cpunorm.jit.backend`)

from __future__ import annotations

import numpy as np

from cpunorm.jit.lowlevel import address, as_float64, finite, inline, record, stack, view
from cpunorm.jit.tile import (
    BIAS,
    GRAD_BIAS,
    GRAD_WEIGHT,
    MEAN,
    RSTD,
    RUNNING_MEAN,
    RUNNING_VAR,
    SCRATCH,
    TILE,
    WEIGHT,
    coefficients,
)


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


def fold_sums(step, buffers, lo, hi):
    """Item = unit = (outer index, channel). Adds up its `unit_entries` pairs of sums."""
    s = record(step)
    table = as_float64(buffers[SCRATCH])
    unit = lo
    while unit < hi:
        outer = unit // s.channels
        channel = unit - outer * s.channels
        w = min(hi - unit, s.channels - channel)
        first = s.moments + outer * s.unit_entries * s.channels + channel
        for i in range(2):
            total = view(table, s.statistics + i * s.units + unit, w)
            for q in range(w):
                total[q] = 0.0
            for e in range(s.unit_entries):
                part = view(table, first + e * s.channels + i * s.entries, w)
                for q in range(w):
                    total[q] += part[q]
        unit += w


def fold_statistics(step, buffers, lo, hi):
    """Item = unit = (outer index, group). rstd = 1 / sqrt(M2 / n + eps); results, running statistics, and a group's coefficients.

    running = (1 - momentum) * running + momentum * new, with the unbiased variance, for batch norm's units, which are channels.
    """
    s = record(step)
    scratch = as_float64(buffers[SCRATCH])
    eps = s.eps
    new = s.momentum
    old = 1.0 - new
    groups = s.groups
    each = s.channels // groups
    memory = stack(TILE, scratch)
    means = view(stack(TILE, scratch), 0, TILE)  # a group's, as often as it has channels
    rstds = view(stack(TILE, scratch), 0, TILE)
    u = lo
    while u < hi:  # units of one outer index
        outer = u // groups
        group = u - outer * groups
        w = min(hi - u, groups - group, TILE)
        total = view(scratch, s.statistics + u, w)
        mean = view(scratch, s.statistics + s.units + u, w)
        m2 = view(scratch, s.statistics + 2 * s.units + u, w)
        rstd = view(memory, 0, w)
        for q in range(w):
            rstd[q] = 1.0 / np.sqrt(m2[q] / total[q] + eps)
        if address(buffers[MEAN]):
            result = view(buffers[MEAN], u, w)
            for q in range(w):
                result[q] = mean[q]
        if address(buffers[RSTD]):
            result = view(buffers[RSTD], u, w)
            for q in range(w):
                result[q] = rstd[q]
        if address(buffers[RUNNING_MEAN]):
            running = view(buffers[RUNNING_MEAN], group, w)
            for q in range(w):
                running[q] = np.float64(running[q]) * old + mean[q] * new
            running = view(buffers[RUNNING_VAR], group, w)
            for q in range(w):
                running[q] = np.float64(running[q]) * old + m2[q] / (total[q] - 1.0) * new
        if each == 1:
            write_forward(s, buffers, outer, group, w, mean, rstd)
        else:
            for g in range(w):
                for c in range(0, each, TILE):
                    n = min(TILE, each - c)
                    for q in range(n):
                        means[q] = mean[g]
                        rstds[q] = rstd[g]
                    write_forward(s, buffers, outer, (group + g) * each + c, n, means, rstds)
        u += w


def fold_running(step, buffers, lo, hi):
    """Item = channel. The running statistics are the statistics."""
    s = record(step)
    scratch = as_float64(buffers[SCRATCH])
    eps = s.eps
    mean = view(stack(TILE, scratch), 0, TILE)
    rstd = view(stack(TILE, scratch), 0, TILE)
    for c in range(lo, hi, TILE):
        w = min(hi - c, TILE)
        running_mean = view(buffers[RUNNING_MEAN], c, w)
        running_var = view(buffers[RUNNING_VAR], c, w)
        for q in range(w):
            mean[q] = running_mean[q]
        for q in range(w):
            rstd[q] = 1.0 / np.sqrt(np.float64(running_var[q]) + eps)
        if address(buffers[MEAN]):
            mean_out = view(buffers[MEAN], c, w)
            rstd_out = view(buffers[RSTD], c, w)
            for q in range(w):
                mean_out[q] = mean[q]
            for q in range(w):
                rstd_out[q] = rstd[q]
        write_forward(s, buffers, 0, c, w, mean, rstd)


def fold_norms(step, buffers, lo, hi):
    """Item = unit = (outer index, channel). scale = 1 / max(sqrt(sum of squares), eps), the L2 norm."""
    s = record(step)
    scratch = as_float64(buffers[SCRATCH])
    for u in range(lo, hi):
        outer = u // s.channels
        norm = np.sqrt(scratch[s.statistics + 2 * s.units + u])
        divisor = norm if not norm < s.eps else s.eps  # NaN stays
        write(s, buffers, outer, u - outer * s.channels, 0.0, 1.0 / divisor, -0.0, 0.0, 1.0)  # a shift of -0.0 keeps the sign of zeros


def fold_norm_gradients(step, buffers, lo, hi):
    """Item = unit. Through y = x / max(norm, eps): grad_x = g / norm - x * sum(g * x) / norm^3; g / eps where eps is larger.

    The sums of g * x are `partials`, laid out as `statistics` are.
    """
    s = record(step)
    scratch = as_float64(buffers[SCRATCH])
    for u in range(lo, hi):
        outer = u // s.channels
        norm = np.sqrt(scratch[s.statistics + 2 * s.units + u])
        dot = scratch[s.partials + s.units + u]
        inverse = 1.0 / norm
        product = dot * inverse * inverse * inverse
        if norm < s.eps:
            inverse = 1.0 / s.eps
            product = 0.0
        write(s, buffers, outer, u - outer * s.channels, 0.0, inverse, 0.0, 0.0, -product)


@inline
def write_forward(s, buffers, outer, c, n, mean, rstd):
    """Of `n` channels, at most TILE, from c on: center = mean rounded to T, scale = rstd * weight, shift = bias - (mean - center) * scale:
    what rounding the mean lost comes back. A row's bias is added later, and may be what keeps the sign of zeros: its shift is -0.0 until
    then.
    """
    table = coefficients(s, buffers)
    first = outer * s.coefficient_outer + c
    count = s.coefficient_count
    wide_scale = view(stack(TILE, as_float64(buffers[SCRATCH])), 0, n)
    wide_shift = view(stack(TILE, as_float64(buffers[SCRATCH])), 0, n)
    if s.weighted and address(buffers[WEIGHT]):
        weight = view(buffers[WEIGHT], c, n)
        for q in range(n):
            wide_scale[q] = rstd[q] * np.float64(weight[q])
    else:
        for q in range(n):
            wide_scale[q] = rstd[q]
    if s.weighted and address(buffers[BIAS]):
        bias = view(buffers[BIAS], c, n)
        for q in range(n):
            wide_shift[q] = bias[q]
    else:
        for q in range(n):
            wide_shift[q] = 0.0 if s.weighted else -0.0
    center = view(table, first, n)
    for q in range(n):
        center[q] = mean[q]
    scale = view(table, first + count, n)
    for q in range(n):
        scale[q] = wide_scale[q]
    shift = view(table, first + 2 * count, n)
    for q in range(n):
        lost = mean[q] - np.float64(center[q])
        shift[q] = wide_shift[q] - lost * wide_scale[q] if lost != 0.0 and finite(lost) else wide_shift[q]
    if s.has_second:
        second = view(table, first + 3 * count, n)
        for q in range(n):
            second[q] = 0.0
        second = view(table, first + 4 * count, n)
        for q in range(n):
            second[q] = 1.0
    repeat(s, table, outer, c, n)


@inline
def write(s, buffers, outer, c, center, scale, shift, second_center, second_scale):
    """The coefficients of one channel."""
    table = coefficients(s, buffers)
    n = s.coefficient_count
    at = outer * s.coefficient_outer + c
    table[at] = center
    table[at + n] = scale
    table[at + 2 * n] = shift
    if s.has_second:
        table[at + 3 * n] = second_center
        table[at + 4 * n] = second_scale
    repeat(s, table, outer, c, 1)


@inline
def repeat(s, table, outer, c, n):
    """A table's row of coefficients from channel c on: `n` of them, and again wherever a widened row repeats them."""
    tables = 5 if s.has_second else 3
    for i in range(c + s.channels, s.width, s.channels):
        m = min(n, s.width - i)
        for k in range(tables):
            row = outer * s.coefficient_outer + k * s.coefficient_count
            to = view(table, row + i, m)
            of = view(table, row + c, m)
            for q in range(m):
                to[q] = of[q]


@inline
def channel_gradients(s, buffers, outer, c, u, n):
    """fold_gradients of `n` units from u on, of one outer index, which are its channels from c on."""
    scratch = as_float64(buffers[SCRATCH])
    table = coefficients(s, buffers)
    first = outer * s.coefficient_outer + c
    count = s.coefficient_count
    sums = view(scratch, s.statistics + u, n)
    dots = view(scratch, s.statistics + s.units + u, n)
    center = view(table, first, n)
    scale = view(table, first + count, n)
    shift = view(table, first + 2 * count, n)
    rstd = view(buffers[RSTD], u, n)
    has_weight = address(buffers[WEIGHT]) != 0
    weight = view(buffers[WEIGHT], c, n) if has_weight else rstd
    has_mean = address(buffers[MEAN]) != 0
    mean = view(buffers[MEAN], u, n) if has_mean else rstd
    size = np.float64(s.total)
    shifts = s.training and has_mean
    for q in range(n):
        center[q] = 0.0
    for q in range(n):
        scale[q] = np.float64(rstd[q]) * (np.float64(weight[q]) if has_weight else 1.0)
    for q in range(n):
        total = (np.float64(weight[q]) if has_weight else 1.0) * sums[q] / size if shifts else 0.0
        shift[q] = -np.float64(rstd[q]) * total
    if s.has_second:  # training: only then x is read again
        second = view(table, first + 3 * count, n)
        for q in range(n):
            second[q] = mean[q] if has_mean else 0.0
        second = view(table, first + 4 * count, n)
        for q in range(n):
            r = np.float64(rstd[q])
            product = (np.float64(weight[q]) if has_weight else 1.0) * dots[q] * (r * r / size)
            second[q] = -r * product
    repeat(s, table, outer, c, n)


def fold_gradients(step, buffers, lo, hi):
    """Item = unit = (outer index, group). grad_x = g * s - (c1 + (x - mean) * c2) * rstd, s = rstd * weight.

    c1 and c2 are the means over the unit of g * weight and of g * weight * (x - mean) * rstd^2; both 0 where the statistics were given.
    """
    s = record(step)
    scratch = as_float64(buffers[SCRATCH])
    each = s.channels // s.groups
    done = lo
    while each == 1 and done < hi:  # units of one outer index
        outer = done // s.groups
        w = min(hi - done, (outer + 1) * s.groups - done)
        channel_gradients(s, buffers, outer, done - outer * s.groups, done, w)
        done += w
    for u in range(done, hi):
        outer = u // s.groups
        group = u - outer * s.groups
        mean = np.float64(buffers[MEAN][u]) if address(buffers[MEAN]) else 0.0
        rstd = np.float64(buffers[RSTD][u])
        total = 0.0
        product = 0.0
        if s.training:
            for c in range(group * each, (group + 1) * each):
                at = s.statistics + outer * s.channels + c
                weight = np.float64(buffers[WEIGHT][c]) if address(buffers[WEIGHT]) else 1.0
                total += weight * scratch[at]
                product += weight * scratch[at + s.units]
            size = np.float64(s.total)
            total = total / size if address(buffers[MEAN]) else 0.0
            product *= rstd * rstd / size
        for c in range(group * each, (group + 1) * each):
            weight = np.float64(buffers[WEIGHT][c]) if address(buffers[WEIGHT]) else 1.0
            write(s, buffers, outer, c, 0.0, rstd * weight, -rstd * total, mean, -rstd * product)


def fold_parameters(step, buffers, lo, hi):
    """Item = channel. grad_bias = sum(g), grad_weight = sum(g * (x - mean)) * rstd, over the outer indices that have units of their own."""
    s = record(step)
    scratch = as_float64(buffers[SCRATCH])
    for c in range(lo, hi):
        group = c if s.groups == s.channels else c * s.groups // s.channels
        bias = 0.0
        weight = 0.0
        for outer in range(s.outer):
            at = s.statistics + outer * s.channels + c
            bias += scratch[at]
            weight += scratch[at + s.units] * np.float64(buffers[RSTD][outer * s.groups + group])
        buffers[GRAD_BIAS][c] = bias
        buffers[GRAD_WEIGHT][c] = weight


def fold_row_gradients(step, buffers, lo, hi):
    """Item = row. As fold_gradients; the weight is in the sums, and is applied an element at a time."""
    s = record(step)
    scratch = as_float64(buffers[SCRATCH])
    size = np.float64(s.last)
    for row in range(lo, hi):
        rstd = np.float64(buffers[RSTD][row])
        mean = 0.0
        total = 0.0
        if address(buffers[MEAN]):
            mean = np.float64(buffers[MEAN][row])
            total = scratch[s.moments + row] / size
        product = scratch[s.moments + row + s.entries] * (rstd * rstd) / size
        write(s, buffers, row, 0, 0.0, rstd, -rstd * total, mean, -rstd * product)


def fold_row_parameters(step, buffers, lo, hi):
    """Item = column. Adds up the partial sums of the pieces."""
    s = record(step)
    scratch = as_float64(buffers[SCRATCH])
    for c in range(lo, hi):
        bias = 0.0
        weight = 0.0
        for piece in range(s.pieces):
            bias += scratch[s.partials + 2 * piece * s.last + c]
            weight += scratch[s.partials + (2 * piece + 1) * s.last + c]
        if address(buffers[GRAD_BIAS]):
            buffers[GRAD_BIAS][c] = bias
        buffers[GRAD_WEIGHT][c] = weight
