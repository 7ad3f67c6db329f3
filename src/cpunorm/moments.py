"""Mean and variance over any axes."""

from __future__ import annotations

import math
from typing import Any, cast

import numpy as np

from cpunorm import backends, call, check, dispatch, recipes, reference, settings
from cpunorm.call import Array, statistics_of
from cpunorm.layout import KEPT, REDUCED, find_view, memory_order
from cpunorm.plan import Data

Stats = tuple[Any, Any]


def mean_var(
    x: Any,
    axis: int | tuple[int, ...] | None = None,
    *,
    ddof: float = 0,
    keepdims: bool = False,
    backend: str | None = None,
    threads: int | None = None,
) -> Stats:
    """Mean and variance over `axis`, in one pass over memory: blocks in cache, merged in float64 (Chan, Golub and LeVeque 1983).

    ``var = sum((x - mean)**2) / (n - ddof)``, as ``numpy.mean`` and ``numpy.var`` of ``x.astype(float64)``, without that copy for
    float32 and float64. Other dtypes are converted first.

    Parameters
    ----------
    x : array of a real or integer dtype
        Any rank and strides. Where the strides are no view for these axes, x is copied once.
    axis : int, tuple of int or None
        As NumPy's: None is all of them.
    ddof : float
        Taken from the count: 0 gives the population's variance, 1 the unbiased one. Where nothing remains it is NaN or infinite.
    keepdims : bool
        Keep the reduced axes with size 1.
    backend, threads
        As in `batch_norm`.

    Returns
    -------
    mean, var : float64 arrays of the kept axes (scalars if none is kept)
        NaN where there is no value.

    Raises
    ------
    ValueError, TypeError
        A complex or object array, an axis out of range or named twice, a bad ddof, backend or number of threads.
    """
    asked = "mean_var"
    x = check.array(asked, "x", x)
    check.statistics_dtype(asked, x.dtype)
    axes = check.reduced_axes(asked, axis, x.ndim)
    ddof = check.number(asked, "ddof", ddof)
    check.backend(asked, backend)
    check.threads(asked, threads)
    name = backends.choose(backend)
    if x.dtype.name not in check.FLOATS:
        x = x.astype(np.float64)
    count = math.prod(x.shape[a] for a in axes)
    shape = tuple(1 if a in axes else size for a, size in enumerate(x.shape))
    if x.size == 0:
        mean = np.full(shape, np.nan)
        m2 = np.full(shape, np.nan)
    elif name == "numpy":
        _, mean, m2 = reference.moments(x, axes)
    else:
        mean, m2 = _moments(x, axes, name, threads)
    with np.errstate(all="ignore"):
        var = m2 / np.float64(max(count - ddof, 0))
    if not keepdims:
        mean, var = (cast(Array, value.squeeze(axes)[()]) for value in (mean, var))
    return mean, var


def _moments(x: Array, axes: tuple[int, ...], backend: str, threads: int | None) -> Stats:
    """Mean and M2 by the kernels, the reduced axes kept with size 1."""
    roles = "".join(REDUCED if a in axes else KEPT for a in range(x.ndim))
    strides = dispatch.element_strides(x)
    view = None if strides is None else find_view(x.shape, (strides,), roles)
    if view is None:  # kept axes first, reduced ones last: always a view
        order = [a for a in range(x.ndim) if a not in axes] + list(axes)
        copy = np.empty([x.shape[a] for a in order], x.dtype.newbyteorder("="))
        copy[...] = x.transpose(order)
        x = copy.transpose(np.argsort(order))
        strides = cast(tuple[int, ...], dispatch.element_strides(x))
        view = find_view(x.shape, (strides,), roles)
        assert view is not None
    assert strides is not None
    data = Data(x.dtype.name)
    key = ("moments", view, data, backend, threads, settings.current())
    runner = call.find(key)
    if runner is None:
        made = recipes.moments(view, data, dispatch.resources(threads))
        runner = call.remember(key, dispatch.Runner(made, backend, x.dtype.name))
    _, mean, m2 = statistics_of(runner, runner(x))
    kept = [a for a in memory_order(x.shape, strides) if a not in axes]  # units are in memory order
    back = np.argsort(kept)
    shape = tuple(1 if a in axes else size for a, size in enumerate(x.shape))
    order_shape = [x.shape[a] for a in kept]
    return mean.reshape(order_shape).transpose(back).reshape(shape), m2.reshape(order_shape).transpose(back).reshape(shape)
