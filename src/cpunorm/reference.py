"""The NumPy reference: float64, two passes, axis tuples. It knows no view, no plan and no blocks, and says what is correct.

It is the backend ``"numpy"`` too: slow, a few temporaries of 8 bytes an element, and there wherever NumPy is. Functions take arrays of any
float dtype and return float64; `channel` and `batch` are axes. Gradients are those of the formulas in `cpunorm.functional`.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

Array = np.ndarray[Any, Any]

name = "numpy"


class Moments(NamedTuple):
    """Mean and sum of squared differences from it over `n` values; the reduced axes are kept with size 1."""

    n: int
    mean: Array
    m2: Array


def wide(x: Array) -> Array:
    """In float64."""
    with np.errstate(invalid="ignore"):  # a signalling NaN
        return x.astype(np.float64)


def moments(x: Array, axes: tuple[int, ...]) -> Moments:
    """Over `axes`. Summed as differences from the first value, so that the mean of equal values is that value."""
    x = wide(x)
    n = int(np.prod([x.shape[axis] for axis in axes], dtype=np.int64))
    first = x[tuple(slice(0, 1) if axis in axes else slice(None) for axis in range(x.ndim))]
    with np.errstate(all="ignore"):
        mean = first + (x - first).mean(axis=axes, keepdims=True)
        mean = np.where(np.isfinite(mean), mean, x.mean(axis=axes, keepdims=True))  # inf - inf
        m2 = np.square(x - mean).sum(axis=axes, keepdims=True)
    return Moments(n, mean, m2)


def integer_sums(x: Array, axes: tuple[int, ...]) -> tuple[Array, Array]:
    """Sum and sum of squares over `axes` (kept with size 1) of less than 2**31 integers, exact: int64 where they fit, else Python's."""
    n = int(np.prod([x.shape[axis] for axis in axes], dtype=np.int64))
    top = max(int(x.max(initial=0)), -int(x.min(initial=0)))
    w = x.astype(np.int64 if top < 2**32 else object)
    total, squares = w.sum(axis=axes, keepdims=True), w * w
    if n * top * top < 2**63 or top >= 2**32:
        return total, squares.sum(axis=axes, keepdims=True)
    squares = squares.view(np.uint64)  # each fits; their halves are added
    high, low = ((half).sum(axis=axes, keepdims=True).astype(object) for half in (squares >> np.uint64(32), squares & np.uint64(2**32 - 1)))
    return total, high * 2**32 + low


def along(parameter: Array | None, rank: int, axis: int) -> Array | float:
    """A parameter of one value a channel, to be broadcast; 1 if there is none."""
    return 1.0 if parameter is None else wide(parameter).reshape([-1 if a == axis else 1 for a in range(rank)])


def rstd_of(variance: Array, eps: float) -> Array:
    """1 / sqrt(variance + eps)."""
    with np.errstate(all="ignore"):
        return np.asarray(1 / np.sqrt(variance + eps))


def activate(y: Array, activation: str | None) -> Array:
    """relu, relu6, silu or hardswish of y; NaN stays."""
    with np.errstate(all="ignore"):
        match activation:
            case None:
                return y
            case "relu":
                return np.where(y < 0, 0, y)  # -0.0 stays, as in PyTorch
            case "relu6":
                return np.clip(y, 0, 6)
            case "silu":
                return np.asarray(y / (1 + np.exp(-y)))
            case "hardswish":
                return np.asarray(y * np.clip(y + 3, 0, 6) / 6)
    raise AssertionError(activation)


def affine(
    x: Array, mean: Array, rstd: Array, weight: Array | float, bias: Array | float, residual: Array | None, activation: str | None
) -> Array:
    """activation((x - mean) * (rstd * weight) + bias + residual), all broadcast."""
    with np.errstate(all="ignore"):
        y = (wide(x) - mean) * (rstd * weight) + bias
        return activate(y if residual is None else y + wide(residual), activation)


def update_running(running_mean: Array, running_var: Array, mean: Array, unbiased: Array, momentum: float) -> None:
    """running = (1 - momentum) * running + momentum * new; in place, one rounding."""
    pairs = ((running_mean, mean), (running_var, unbiased))
    with np.errstate(all="ignore"):
        values = [wide(running) * (1 - momentum) + new.reshape(running.shape) * momentum for running, new in pairs]
        for (running, _), value in zip(pairs, values, strict=True):  # both are there before one is written
            running[...] = value


def batch_norm(
    x: Array,
    running_mean: Array | None,
    running_var: Array | None,
    weight: Array | None,
    bias: Array | None,
    *,
    training: bool,
    momentum: float,
    eps: float,
    channel: int,
    residual: Array | None = None,
    activation: str | None = None,
) -> tuple[Array, Array, Array]:
    """y, mean and rstd (the latter of shape (C,)); updates the running statistics in training."""
    if training:
        statistics = moments(x, tuple(axis for axis in range(x.ndim) if axis != channel))
        mean, variance = statistics.mean, statistics.m2 / statistics.n
    else:
        mean, variance = (np.asarray(along(running, x.ndim, channel)) for running in (running_mean, running_var))
    rstd = rstd_of(variance, eps)
    shift = 0.0 if bias is None else along(bias, x.ndim, channel)
    y = affine(x, mean, rstd, along(weight, x.ndim, channel), shift, residual, activation)
    if training and running_mean is not None and running_var is not None:
        with np.errstate(all="ignore"):
            update_running(running_mean, running_var, statistics.mean, statistics.m2 / (statistics.n - 1), momentum)
    return y, mean.reshape(-1), rstd.reshape(-1)


def split_groups(x: Array, batch: int, channel: int, groups: int) -> Array:
    """x as (N, groups, C / groups, values)."""
    first = np.moveaxis(x, (batch, channel), (0, 1))
    return first.reshape(first.shape[0], groups, first.shape[1] // groups, int(np.prod(first.shape[2:], dtype=np.int64)))


def join_groups(y: Array, x: Array, batch: int, channel: int) -> Array:
    """What `split_groups` split, in x's shape."""
    first = np.moveaxis(x, (batch, channel), (0, 1))
    return np.moveaxis(y.reshape(first.shape), (0, 1), (batch, channel))


def by_group(parameter: Array | None, groups: int) -> Array | None:
    """A parameter of one value a channel as (1, groups, C / groups, 1)."""
    return None if parameter is None else wide(parameter).reshape(1, groups, -1, 1)


def group_norm(
    x: Array,
    groups: int,
    weight: Array | None,
    bias: Array | None,
    *,
    eps: float,
    batch: int,
    channel: int,
    residual: Array | None = None,
    activation: str | None = None,
) -> tuple[Array, Array, Array, Array]:
    """y, and mean, rstd and unbiased variance of shape (N, groups)."""
    split = split_groups(x, batch, channel, groups)
    statistics = moments(split, (2, 3))
    rstd = rstd_of(statistics.m2 / statistics.n, eps)
    scale, shift = by_group(weight, groups), by_group(bias, groups)
    r = None if residual is None else split_groups(residual, batch, channel, groups)
    y = affine(split, statistics.mean, rstd, 1.0 if scale is None else scale, 0.0 if shift is None else shift, r, activation)
    with np.errstate(all="ignore"):
        unbiased = statistics.m2 / np.float64(statistics.n - 1)
    mean, rstd, unbiased = (value[:, :, 0, 0] for value in (statistics.mean, rstd, unbiased))
    return join_groups(y, x, batch, channel), mean, rstd, unbiased


def layer_norm(
    x: Array,
    normalized: int,
    weight: Array | None,
    bias: Array | None,
    *,
    eps: float,
    centred: bool = True,
    residual: Array | None = None,
    activation: str | None = None,
) -> tuple[Array, Array, Array, Array]:
    """y, mean, rstd (the last `normalized` axes kept with size 1) and x + residual. Not `centred` it is RMS norm."""
    with np.errstate(all="ignore"):
        h = wide(x) if residual is None else wide(x) + wide(residual)
    axes = tuple(range(x.ndim - normalized, x.ndim))
    if centred:
        statistics = moments(h, axes)
        mean, variance = statistics.mean, statistics.m2 / statistics.n
    else:
        with np.errstate(all="ignore"):
            variance = np.square(h).mean(axis=axes, keepdims=True)
        mean = np.zeros_like(variance)
    rstd = rstd_of(variance, eps)
    shift = (0.0 if centred else -0.0) if bias is None else wide(bias)  # RMS norm adds none, and zeros keep their sign
    y = affine(h, mean, rstd, 1.0 if weight is None else wide(weight), shift, None, activation)
    return y, mean, rstd, h


def window_sums(values: Array, channel: int, before: int, after: int) -> Array:
    """For each channel the sum over those from `before` to `after` it; channels beyond the ends are 0."""
    total = np.zeros_like(values)
    n = values.shape[channel]
    for shift in range(-min(before, n - 1), min(after, n - 1) + 1):
        to, of = [slice(None)] * values.ndim, [slice(None)] * values.ndim
        to[channel], of[channel] = slice(max(0, -shift), n - max(0, shift)), slice(max(0, shift), n - max(0, -shift))
        total[tuple(to)] += values[tuple(of)]
    return total


def local_response_norm(x: Array, size: int, alpha: float, beta: float, k: float, *, channel: int) -> Array:
    """x * (k + alpha / size * window sum of squares) ** -beta."""
    x = wide(x)
    with np.errstate(all="ignore"):
        return np.asarray(x * (k + alpha / size * window_sums(x * x, channel, size // 2, (size - 1) // 2)) ** -beta)


def norms(x: Array, p: float, axes: tuple[int, ...]) -> Array:
    """The Lp norm over `axes`, kept with size 1."""
    with np.errstate(all="ignore"):
        a = np.abs(wide(x))
        if p == np.inf:
            return np.asarray(a.max(axis=axes, keepdims=True))
        if p == -np.inf:
            return np.asarray(a.min(axis=axes, keepdims=True))
        if p == 0:
            return np.asarray((a != 0).sum(axis=axes, keepdims=True, dtype=np.float64))
        return np.asarray((a**p).sum(axis=axes, keepdims=True) ** (1 / p))


def normalize(x: Array, p: float, axes: tuple[int, ...], eps: float) -> Array:
    """x / max(norm, eps)."""
    with np.errstate(all="ignore"):
        return np.asarray(wide(x) / np.maximum(norms(x, p, axes), eps))


# ---------------------------------------------------------------- gradients


def gradient(g: Array, x: Array, mean: Array, rstd: Array, axes: tuple[int, ...], *, centred: bool = True) -> Array:
    """Through y = (x - mean(x)) * rstd(x): rstd * (g - mean(g) - xhat * mean(g * xhat)), means over `axes`."""
    hat = (x - mean) * rstd
    inner = g - g.mean(axis=axes, keepdims=True) if centred else g
    return np.asarray(rstd * (inner - hat * (g * hat).mean(axis=axes, keepdims=True)))


def batch_norm_backward(
    grad: Array, x: Array, mean: Array, rstd: Array, weight: Array | None, *, training: bool, channel: int
) -> tuple[Array, Array, Array]:
    """grad_x, grad_weight, grad_bias."""
    axes = tuple(axis for axis in range(x.ndim) if axis != channel)
    m, r = (np.asarray(along(value, x.ndim, channel)) for value in (mean, rstd))
    with np.errstate(all="ignore"):
        g, x = wide(grad), wide(x)
        grad_weight, grad_bias = (g * (x - m) * r).sum(axis=axes), g.sum(axis=axes)
        g = g * along(weight, x.ndim, channel)
        return gradient(g, x, m, r, axes) if training else g * r, grad_weight, grad_bias


def group_norm_backward(
    grad: Array, x: Array, groups: int, mean: Array, rstd: Array, weight: Array | None, *, batch: int, channel: int
) -> tuple[Array, Array, Array]:
    """grad_x, grad_weight, grad_bias."""
    g, split = wide(split_groups(grad, batch, channel, groups)), wide(split_groups(x, batch, channel, groups))
    m, r = (wide(value)[:, :, None, None] for value in (mean, rstd))
    with np.errstate(all="ignore"):
        grad_weight, grad_bias = (g * (split - m) * r).sum(axis=(0, 3)).reshape(-1), g.sum(axis=(0, 3)).reshape(-1)
        scale = by_group(weight, groups)
        y = gradient(g if scale is None else g * scale, split, m, r, (2, 3))
    return join_groups(y, x, batch, channel), grad_weight, grad_bias


def layer_norm_backward(
    grad: Array, x: Array, normalized: int, mean: Array | None, rstd: Array, weight: Array | None
) -> tuple[Array, Array, Array]:
    """grad_x, grad_weight, grad_bias; RMS norm has no mean."""
    axes = tuple(range(x.ndim - normalized, x.ndim))
    rows = tuple(range(x.ndim - normalized))
    with np.errstate(all="ignore"):
        g, x, r = wide(grad), wide(x), wide(rstd)
        m = np.zeros_like(r) if mean is None else wide(mean)
        grad_weight, grad_bias = (g * (x - m) * r).sum(axis=rows), g.sum(axis=rows)
        h = g if weight is None else g * wide(weight)
        return gradient(h, x, m, r, axes, centred=mean is not None), grad_weight, grad_bias


def local_response_norm_backward(grad: Array, x: Array, size: int, alpha: float, beta: float, k: float, *, channel: int) -> Array:
    """g * d^-beta - 2 alpha beta / size * x * (sum of g * x * d^(-beta - 1) over the channels whose window holds this one)."""
    g, x = wide(grad), wide(x)
    before, after = size // 2, (size - 1) // 2
    with np.errstate(all="ignore"):
        d = k + alpha / size * window_sums(x * x, channel, before, after)
        inner = window_sums(g * x * d**-beta / d, channel, after, before)  # d^(-beta - 1) leaves the range where d is 1e-187
        return np.asarray(g * d**-beta - 2 * alpha * beta / size * x * inner)


def normalize_backward(grad: Array, x: Array, p: float, axes: tuple[int, ...], eps: float) -> Array:
    """g / n - x' * sum(g * x) / n^2 with x' = dn/dx; g / eps where n < eps. dn/dx is 0 where n is, as PyTorch's."""
    g, x = wide(grad), wide(x)
    n = norms(x, p, axes)
    with np.errstate(all="ignore"):
        if p in (np.inf, -np.inf):
            most = np.abs(x) == n
            slope = np.sign(x) * most / most.sum(axis=axes, keepdims=True)
        elif p == 0:
            slope = np.zeros_like(x)
        else:
            slope = np.sign(x) * np.abs(x) ** (p - 1) / n ** (p - 1)
            slope = np.where(x == 0, 0, slope) if p < 2 else slope
        dot = (g * x).sum(axis=axes, keepdims=True)
        return np.where(n < eps, g / eps, g / n - np.where(n == 0, 0, slope) * dot / (n * n))  # NaN stays
