"""The NumPy reference: float64, two passes, axis tuples. It knows no view, no plan and no blocks, and says what is correct.

It is the backend ``"numpy"`` too: slow, a few temporaries of 8 bytes an element, and there wherever NumPy is.
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


def moments(x: Array, axes: tuple[int, ...]) -> Moments:
    """Over `axes`, in float64. Summed as differences from the first value, so that the mean of equal values is that value."""
    wide = x.astype(np.float64)
    count = int(np.prod([x.shape[axis] for axis in axes], dtype=np.int64))
    first = wide[tuple(slice(0, 1) if axis in axes else slice(None) for axis in range(x.ndim))]
    with np.errstate(all="ignore"):
        mean = first + (wide - first).mean(axis=axes, keepdims=True)
        mean = np.where(np.isfinite(mean), mean, wide.mean(axis=axes, keepdims=True))  # inf - inf
        m2 = np.square(wide - mean).sum(axis=axes, keepdims=True)
    return Moments(count, mean, m2)


def affine(x: Array, mean: Array, rstd: Array, weight: Array | None, bias: Array | None, channel: int) -> Array:
    """(x - mean) * (rstd * weight) + bias, in float64; weight and bias lie along axis `channel`."""
    shape = tuple(x.shape[channel] if axis == channel else 1 for axis in range(x.ndim))
    with np.errstate(all="ignore"):
        scale = rstd if weight is None else rstd * weight.astype(np.float64).reshape(shape)
        y: Array = (x.astype(np.float64) - mean) * scale
        return y if bias is None else y + bias.astype(np.float64).reshape(shape)


def rstd_of(variance: Array, eps: float) -> Array:
    """1 / sqrt(variance + eps)."""
    with np.errstate(all="ignore"):
        return np.asarray(1 / np.sqrt(variance + eps))


def update_running(running_mean: Array, running_var: Array, statistics: Moments, momentum: float) -> None:
    """running = (1 - momentum) * running + momentum * new, with the unbiased variance; in place, one rounding."""
    with np.errstate(all="ignore"):
        for running, new in ((running_mean, statistics.mean), (running_var, statistics.m2 / (statistics.n - 1))):
            running[...] = running.astype(np.float64) * (1 - momentum) + new.reshape(running.shape) * momentum


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
) -> tuple[Array, Array, Array]:
    """y, mean and rstd in float64 (the latter of shape (C,)); updates the running statistics in training."""
    shape = tuple(x.shape[channel] if axis == channel else 1 for axis in range(x.ndim))
    if training:
        statistics = moments(x, tuple(axis for axis in range(x.ndim) if axis != channel))
        mean, variance = statistics.mean, statistics.m2 / statistics.n
    else:
        assert running_mean is not None
        assert running_var is not None
        mean, variance = (running.astype(np.float64).reshape(shape) for running in (running_mean, running_var))
    rstd = rstd_of(variance, eps)
    y = affine(x, mean, rstd, weight, bias, channel)
    if training and running_mean is not None and running_var is not None:
        update_running(running_mean, running_var, statistics, momentum)
    return y, mean.reshape(-1), rstd.reshape(-1)
