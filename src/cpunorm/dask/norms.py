"""Normalization of Dask arrays. See `cpunorm.dask`."""

from __future__ import annotations

import functools
from typing import Any

import dask.array as da
import numpy as np
from dask.delayed import Delayed

from cpunorm import check, check_pictures, settings
from cpunorm.dask import tasks
from cpunorm.dask.graphs import by_blocks, check_array, coefficients, parameter, reduced, whole
from cpunorm.layout import CHANNELS_FIRST
from cpunorm.preprocessing import Preprocessor


def standardize(array: da.Array, mean: Any, std: Any, layout: str = CHANNELS_FIRST, *, backend: str | None = None) -> da.Array:
    """``(x - mean) / std``, a mean and a std a channel; computed as ``(x - mean) * (1 / std)``, the difference first.

    Parameters
    ----------
    array : dask array of a real or integer dtype
    mean, std : of shape (C,), or one number for all channels
        Numbers, an array, a dask array, or a Delayed of an array. A std of 0 gives what division gives: NaN or infinity.
    layout : str
        As `ChannelStats` takes it.
    backend : {"numba", "c", "numpy"} or None

    Returns
    -------
    dask array of array's shape and chunks
        Of array's dtype; of integers float32, or float64 where these have more than 16 bits.
    """
    call = "dask.standardize"
    check_array(call, array, backend)
    check.statistics_dtype(call, array.dtype)
    channel = check.channel_axis(call, check.channel_layout(call, layout), array.shape)
    parameters = {name: coefficients(call, name, value, array.shape[channel]) for name, value in (("mean", mean), ("std", std))}
    dtype = np.result_type(array.dtype, np.float32) if array.dtype.kind in "biu" else array.dtype.newbyteorder("=")
    if dtype.name not in check.FLOATS:
        raise TypeError(f"{call}: expected array of integers or dtype {', '.join(check.FLOATS)}, got {array.dtype}")
    options = {"channel": channel, "dtype": dtype, "backend": settings.resolve_backend(backend)}
    return by_blocks(tasks.standardized, array, dtype, (channel,), parameters, options)


def batch_norm(
    array: da.Array,
    running_mean: Any,
    running_var: Any,
    weight: Any = None,
    bias: Any = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
    *,
    layout: str = CHANNELS_FIRST,
    activation: str | None = None,
    backend: str | None = None,
) -> Any:
    """As `cpunorm.batch_norm`: in inference block by block, in training by the statistics of the whole array.

    Nothing that is computed later can be updated in place: in training the **new running statistics are returned**, and those given stay
    as they are. (PyTorch updates them; to go on as there, pass on what this returns.)

    Parameters
    ----------
    array : dask array, rank >= 2, float16, bfloat16, float32 or float64
    running_mean, running_var, weight, bias : arrays or dask arrays of shape (C,), or None
    training, momentum, eps, layout, activation, backend
        As there.

    Returns
    -------
    y : dask array of array's shape, dtype and chunks; or (y, running_mean, running_var) in training where these were given
        In training the blocks are needed twice. Computed at once, they wait in memory (or, on a cluster, on disk) for the statistics; see
        docs/dask.md for data that should be read twice instead.
    """
    call = "dask.batch_norm"
    check_array(call, array, backend)
    check.float_dtype(call, "array", array.dtype)
    check.activation(call, activation)
    check.flag(call, "training", training)
    axes = check.axes(call, layout, array.shape)
    channel = (axes.channel,)
    momentum = check.number(call, "momentum", momentum)
    eps = check.epsilon(call, eps, training=training)
    check.running(call, running_mean, running_var, needed=not training)
    given = {"running_mean": running_mean, "running_var": running_var, "weight": weight, "bias": bias}
    parameters = {name: parameter(call, name, value, array, channel) for name, value in given.items()}
    options = {"eps": eps, "activation": activation, "backend": settings.resolve_backend(backend)}
    if not training:
        return by_blocks(tasks.batch_normed, array, array.dtype, channel, parameters, {**options, "layout": layout})
    check.several_values(call, array.shape, axes.channel)
    others = tuple(axis for axis in range(array.ndim) if axis != axes.channel)
    found = reduced(array, others, functools.partial(tasks.mean_and_var, ddof=0), tasks.STATISTICS, backend)
    running = [parameters.pop(name) for name in ("running_mean", "running_var")]
    options["channel"] = axes.channel
    y = by_blocks(tasks.normalized, array, array.dtype, channel, {"statistics": found, **parameters}, options)
    if running_mean is None:
        return y
    count = array.size // max(array.shape[axes.channel], 1)
    if count == 0:
        return y, *map(da.asarray, running)
    news = (found["mean"], 1.0), (found["var"], count / (count - 1))  # the running variance is unbiased
    return y, *(
        by_blocks(tasks.moved, da.asarray(old), old.dtype, (0,), {"new": new}, {"momentum": momentum, "factor": factor})
        for old, (new, factor) in zip(running, news, strict=True)
    )


def layer_norm(
    array: da.Array,
    normalized_shape: int | tuple[int, ...],
    weight: Any = None,
    bias: Any = None,
    eps: float = 1e-5,
    *,
    activation: str | None = None,
    backend: str | None = None,
) -> da.Array:
    """As `cpunorm.layer_norm`, block by block. Chunks along the normalized axes are joined.

    Parameters
    ----------
    array : dask array of float16, bfloat16, float32 or float64
    weight, bias : arrays or dask arrays of `normalized_shape`, or None
    normalized_shape, eps, activation, backend
        As there.
    """
    call = "dask.layer_norm"
    check_array(call, array, backend)
    check.float_dtype(call, "array", array.dtype)
    check.activation(call, activation)
    sizes = tuple(normalized_shape) if isinstance(normalized_shape, list) else normalized_shape
    normalized = check.normalized_shape(call, sizes, array.shape)
    eps = check.number(call, "eps", eps)
    last = tuple(range(array.ndim - len(normalized), array.ndim))
    array = whole(array, last)
    parameters = {name: parameter(call, name, value, array, last) for name, value in (("weight", weight), ("bias", bias))}
    options = {"normalized_shape": normalized, "eps": eps, "activation": activation, "backend": settings.resolve_backend(backend)}
    return by_blocks(tasks.layer_normed, array, array.dtype, last, parameters, options)


def preprocess(images: da.Array, mean: Any, std: Any, *, mirror: Any = False, backend: str | None = None, **options: Any) -> da.Array:
    """As `cpunorm.preprocess`, some pictures at a time. Chunks within pictures are joined.

    Parameters
    ----------
    images : dask array of uint8, uint16, float16 or float32
        One picture or a batch of them, of rank 3 or 4.
    mean, std, mirror, backend, **options
        As there, but `out` and `threads`.

    Returns
    -------
    dask array of rank 4, chunks along axis 0
    """
    call = "dask.preprocess"
    check_array(call, images, backend, "images")
    for name, value in (("mean", mean), ("std", std), ("mirror", mirror)):
        if isinstance(value, (da.Array, Delayed)):
            raise TypeError(f"{call}: expected {name} to be known, got a {type(value).__name__}; pass {name}.compute()")
    if images.ndim not in (3, 4):
        raise ValueError(f"{call}: expected images of 3 or 4 axes, got shape {images.shape}")
    images = images if images.ndim == 4 else images[None]
    mirrors = check_pictures.mirrors(call, mirror)
    if isinstance(mirrors, tuple) and len(mirrors) != len(images):
        raise ValueError(f"{call}: expected mirror to be one an image of {len(images)}, got {len(mirrors)}")
    # No picture of these sizes shows every error, and the shape of the result.
    result = Preprocessor(mean, std, backend="numpy", threads=1, **options)(np.empty((0, *images.shape[1:]), images.dtype))
    images = whole(images, (1, 2, 3))
    options |= {"mean": mean, "std": std, "backend": settings.resolve_backend(backend)}
    parameters = {}
    if isinstance(mirrors, tuple):
        parameters["mirror"] = np.array(mirrors)
    else:
        options["mirror"] = mirrors
    return by_blocks(tasks.preprocessed, images, result.dtype, (0,), parameters, options, dict(enumerate(result.shape[1:], 1)))
