"""Local response norm: y = x * d^-beta with d = k + alpha / size * (sum of x^2 over a window of channels), and its gradient.

grad_x = g * d^-beta - (2 alpha beta / size) * x * (sum of g * x * d^(-beta - 1) over the channels whose window holds this one).
A strip of values of each channel stays in L1 while the window moves over it.
"""

# ruff: noqa: ANN001, ANN201  (typed by the signatures in `cpunorm.jit.backend`)

from __future__ import annotations

import numpy as np

from cpunorm.jit.lowlevel import at_byte, call_stage, fence, inline, record, stack, view
from cpunorm.jit.tile import SECOND, TILE, X, Y, fetch

RING = 16384  # values: the reach of a window (before + after + TILE) or its channels times a strip must fit


@inline
def inverse_power(d, beta, out):
    """out = d ** -beta; 0.75 and 0.5, the usual ones, by square roots, which are vectorized."""
    one = d.dtype.type(1)
    if beta == 0.75:
        for q in range(d.size):
            root = np.sqrt(d[q])
            out[q] = one / (root * np.sqrt(root))
    elif beta == 0.5:
        for q in range(d.size):
            out[q] = one / np.sqrt(d[q])
    else:
        power = -d.dtype.type(beta)
        for q in range(d.size):
            out[q] = d[q] ** power


@inline
def add_window(s, data, start, stride, c, w, buffer, d):
    """Runs: d = k + alpha / size * sum of squares of `w` values over the window of channel c; channels are `stride` apart."""
    zero = d.dtype.type(0)
    for q in range(w):
        d[q] = zero
    for other in range(max(0, c - s.before), min(s.channels, c + s.after + 1)):
        v = fetch(s, data, start + other * stride, w, buffer)
        for q in range(w):
            d[q] += v[q] * v[q]
    factor = d.dtype.type(s.alpha / s.size)
    k = d.dtype.type(s.k)
    for q in range(w):
        d[q] = d[q] * factor + k


@inline
def add_row_window(s, data, start, c, w, buffer, d):
    """Columns: the same for `w` channels from c on, which lie one after another from `start`."""
    zero = d.dtype.type(0)
    for q in range(w):
        d[q] = zero
    for shift in range(-s.before, s.after + 1):
        lo = max(c, -shift)
        hi = min(c + w, s.channels - shift)
        if lo < hi:
            v = fetch(s, data, start + lo + shift, hi - lo, buffer)
            to = d[lo - c : hi - c]
            for q in range(v.size):
                to[q] += v[q] * v[q]
    factor = d.dtype.type(s.alpha / s.size)
    k = d.dtype.type(s.k)
    for q in range(w):
        d[q] = d[q] * factor + k


def window_runs(step, buffers, lo, hi):
    """Item = (outer index, strip of `grain` values); channels are `x_middle` apart."""
    s = record(step)
    wide = stack(TILE, buffers[X])
    d = view(stack(TILE, buffers[X]), 0, TILE)
    tile = stack(TILE, buffers[X])
    for item in range(lo, hi):
        outer = item // s.pieces
        j = (item - outer * s.pieces) * s.grain
        w = min(s.grain, s.last - j)
        base = outer * s.x_outer + j
        z = view(tile, 0, w)
        for c in range(s.channels):
            add_window(s, buffers[X], base, s.x_middle, c, w, wide, d[:w])
            inverse_power(d[:w], s.beta, z)
            v = fetch(s, buffers[X], base + c * s.x_middle, w, wide)
            for q in range(w):
                z[q] *= v[q]
            call_stage(s.store, at_byte(buffers[Y], (outer * s.y_outer + c * s.y_middle + j) * s.item_size), tile, w)
    fence()


def window_columns(step, buffers, lo, hi):
    """Item = row of `channels` values, `x_middle` apart."""
    s = record(step)
    wide = stack(TILE, buffers[X])
    d = view(stack(TILE, buffers[X]), 0, TILE)
    tile = stack(TILE, buffers[X])
    for row in range(lo, hi):
        outer = row // s.middle
        m = row - outer * s.middle
        start = outer * s.x_outer + m * s.x_middle
        for c in range(0, s.channels, TILE):
            w = min(TILE, s.channels - c)
            z = view(tile, 0, w)
            add_row_window(s, buffers[X], start, c, w, wide, d[:w])
            inverse_power(d[:w], s.beta, z)
            v = fetch(s, buffers[X], start + c, w, wide)
            for q in range(w):
                z[q] *= v[q]
            call_stage(s.store, at_byte(buffers[Y], (outer * s.y_outer + m * s.y_middle + c) * s.item_size), tile, w)
    fence()


def window_gradient_runs(step, buffers, lo, hi):
    """Item as in window_runs. A ring holds t = g * x * d^(-beta - 1) of the channels that the window reaches; each is computed once."""
    s = record(step)
    wide_g = stack(TILE, buffers[X])
    wide_x = stack(TILE, buffers[X])
    d = view(stack(TILE, buffers[X]), 0, TILE)
    p = view(stack(TILE, buffers[X]), 0, TILE)
    tile = stack(TILE, buffers[X])
    ring = stack(RING, buffers[X])
    span = s.before + s.after + 1
    zero = d.dtype.type(0)
    for item in range(lo, hi):
        outer = item // s.pieces
        j = (item - outer * s.pieces) * s.grain
        w = min(s.grain, s.last - j)
        base = outer * s.x_outer + j
        second = outer * s.second_outer + j
        z = view(tile, 0, w)
        factor = 2.0 * s.alpha * s.beta / s.size
        ready = 0  # channels whose t is in the ring
        for c in range(s.channels):
            while ready < min(s.channels, c + s.before + 1):
                add_window(s, buffers[SECOND], second, s.second_middle, ready, w, wide_x, d[:w])
                inverse_power(d[:w], s.beta, p[:w])
                g = fetch(s, buffers[X], base + ready * s.x_middle, w, wide_g)
                x = fetch(s, buffers[SECOND], second + ready * s.second_middle, w, wide_x)
                t = view(ring, ready % span * s.grain, w)
                for q in range(w):
                    t[q] = np.float64(g[q]) * x[q] * p[q] / d[q]  # p / d leaves the range of float32 where d is 1e22
                ready += 1
            for q in range(w):
                z[q] = zero
            for other in range(max(0, c - s.after), min(s.channels, c + s.before + 1)):
                t = view(ring, other % span * s.grain, w)
                for q in range(w):
                    z[q] += t[q]
            add_window(s, buffers[SECOND], second, s.second_middle, c, w, wide_x, d[:w])
            inverse_power(d[:w], s.beta, p[:w])
            g = fetch(s, buffers[X], base + c * s.x_middle, w, wide_g)
            x = fetch(s, buffers[SECOND], second + c * s.second_middle, w, wide_x)
            for q in range(w):
                z[q] = np.float64(g[q]) * p[q] - factor * x[q] * z[q]
            call_stage(s.store, at_byte(buffers[Y], (outer * s.y_outer + c * s.y_middle + j) * s.item_size), tile, w)
    fence()


def window_gradient_columns(step, buffers, lo, hi):
    """Item = row of `channels` values. t as above, of TILE channels and those that their windows reach."""
    s = record(step)
    wide_g = stack(TILE, buffers[X])
    wide_x = stack(TILE, buffers[X])
    d = view(stack(TILE, buffers[X]), 0, TILE)
    p = view(stack(TILE, buffers[X]), 0, TILE)
    tile = stack(TILE, buffers[X])
    ring = stack(RING, buffers[X])
    zero = d.dtype.type(0)
    for row in range(lo, hi):
        outer = row // s.middle
        m = row - outer * s.middle
        start = outer * s.x_outer + m * s.x_middle
        second = outer * s.second_outer + m * s.second_middle
        factor = 2.0 * s.alpha * s.beta / s.size
        for c in range(0, s.channels, TILE):
            w = min(TILE, s.channels - c)
            first = max(0, c - s.after)
            last = min(s.channels, c + w + s.before)
            part = first
            while part < last:
                n = min(TILE, last - part)
                add_row_window(s, buffers[SECOND], second, part, n, wide_x, d[:n])
                inverse_power(d[:n], s.beta, p[:n])
                g = fetch(s, buffers[X], start + part, n, wide_g)
                x = fetch(s, buffers[SECOND], second + part, n, wide_x)
                t = view(ring, part - first, n)
                for q in range(n):
                    t[q] = np.float64(g[q]) * x[q] * p[q] / d[q]  # p / d leaves the range of float32 where d is 1e22
                part += n
            z = view(tile, 0, w)
            for q in range(w):
                z[q] = zero
            for shift in range(-s.after, s.before + 1):
                lower = max(c, first - shift)
                upper = min(c + w, last - shift)
                if lower < upper:
                    t = view(ring, lower + shift - first, upper - lower)
                    to = z[lower - c : upper - c]
                    for q in range(t.size):
                        to[q] += t[q]
            add_row_window(s, buffers[SECOND], second, c, w, wide_x, d[:w])
            inverse_power(d[:w], s.beta, p[:w])
            g = fetch(s, buffers[X], start + c, w, wide_g)
            x = fetch(s, buffers[SECOND], second + c, w, wide_x)
            for q in range(w):
                z[q] = np.float64(g[q]) * p[q] - factor * x[q] * z[q]
            call_stage(s.store, at_byte(buffers[Y], (outer * s.y_outer + m * s.y_middle + c) * s.item_size), tile, w)
    fence()
