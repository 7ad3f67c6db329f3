"""Mean, variance and covariance of Dask arrays. See `cpunorm.dask`."""

from __future__ import annotations

import functools
from typing import Any

import dask
import dask.array as da
import numpy as np
from dask.delayed import Delayed

from cpunorm import check
from cpunorm.dask import tasks
from cpunorm.dask.graphs import check_array, reduced, whole
from cpunorm.layout import CHANNELS_FIRST
from cpunorm.whitening import Whitening


def channel_stats(array: da.Array, layout: str = CHANNELS_FIRST, *, backend: str | None = None) -> Delayed:
    """`cpunorm.ChannelStats` of an array: ``channel_stats(x).compute()``; lazily ``.mean`` and ``.std()``, for `standardize`.

    Parameters
    ----------
    array : dask array of a real or integer dtype
    layout : str
        As `ChannelStats` takes it: ``"NCHW"``, ``"HWC"``, ``"channels_last"``, ...
    backend : {"numba", "c", "numpy"} or None

    Returns
    -------
    Delayed
        Of a `ChannelStats`, which merges with others, and goes through JSON.
    """
    call = "dask.channel_stats"
    check_array(call, array, backend)
    check.statistics_dtype(call, array.dtype)
    channel = check.channel_axis(call, check.channel_layout(call, layout), array.shape)
    parts = reduced(array, tuple(axis for axis in range(array.ndim) if axis != channel), tasks.merged, object, backend)
    return dask.delayed(tasks.joined, pure=True)(list(parts.to_delayed()), layout)


def mean_var(
    array: da.Array, axis: int | tuple[int, ...] | None = None, *, ddof: float = 0, keepdims: bool = False, backend: str | None = None
) -> tuple[da.Array, da.Array]:
    """Mean and variance over `axis`, as `cpunorm.mean_var`: one pass for both.

    Parameters
    ----------
    array : dask array of a real or integer dtype
    axis, ddof, keepdims, backend
        As there.

    Returns
    -------
    mean, var : dask arrays of float64
    """
    call = "dask.mean_var"
    check_array(call, array, backend)
    check.statistics_dtype(call, array.dtype)
    axes = check.reduced_axes(call, axis, array.ndim)
    last = functools.partial(tasks.mean_and_var, ddof=check.number(call, "ddof", ddof))
    found = reduced(array, axes, last, tasks.STATISTICS, backend, keepdims=keepdims)
    return found["mean"], found["var"]


def fit_whitening(array: da.Array, method: str = "pca", n_components: int | None = None, eps: float = 1e-5) -> Delayed:
    """`cpunorm.Whitening` fitted to an array of (samples, features): ``fit_whitening(x).compute()``. Chunks along features are joined.

    Parameters
    ----------
    array : dask array of float16, bfloat16, float32 or float64
    method, n_components, eps
        As `Whitening` takes them.

    Returns
    -------
    Delayed
        Of a `Whitening`; its `transform` is for `dask.array.map_blocks`.
    """
    call = "dask.fit_whitening"
    check_array(call, array, None)
    if array.ndim != 2:
        raise ValueError(f"{call}: expected array of shape (samples, features), got {array.shape}")
    empty = Whitening(method, n_components, eps)
    empty.fit(np.empty((0, array.shape[1]), array.dtype))  # of no samples: for its errors
    options: dict[str, Any] = {"empty": Whitening(method, n_components, eps)}
    found = da.reduction(
        whole(array, (1,)),
        functools.partial(tasks.fitted, **options),
        functools.partial(tasks.all_fitted, **options),
        dtype=np.dtype(object),
        concatenate=False,
        meta=np.empty((), object),
        name="cpunorm-whitening",
    )
    return found.to_delayed().item()
