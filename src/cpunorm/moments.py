"""Mean and variance over any axes."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any, cast

import numpy as np

from cpunorm import backends, call, check, dispatch, recipes, reference, settings
from cpunorm.call import Array, statistics_of
from cpunorm.integers import Sums
from cpunorm.layout import KEPT, REDUCED, View, find_view, memory_order
from cpunorm.plan import Data

Stats = tuple[Any, Any]

COUNTED = ("uint8", "uint16")  # dtypes that kernels add up as integers
PIECE = 1 << 20  # values of another integer dtype that are widened at once
FITS = 2**32  # so many squares of uint16 fit 64 bits


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

    ``var = sum((x - mean)**2) / (n - ddof)``, as ``numpy.mean`` and ``numpy.var`` of ``x.astype(float64)``, without that copy. Integers
    are exact: added up as integers (by kernels for bool, uint8 and uint16, by NumPy for the others), and rounded once at the end.

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
    mean: Any
    var: Any
    if x.size == 0:
        mean = var = np.full(_kept(x.shape, axes), np.nan)
    elif x.dtype.kind in "biu":
        sums = of_integers(x, axes, backend, threads)
        mean, var = sums.mean(), sums.variance(ddof)
    else:
        mean, m2 = of_floats(x, axes, backend, threads)
        with np.errstate(all="ignore"):
            var = m2 / np.float64(max(count_of(x.shape, axes) - ddof, 0))
    if not keepdims:
        mean, var = (value.squeeze(axes)[()] for value in (mean, var))
    return mean, var


def count_of(shape: tuple[int, ...], axes: tuple[int, ...]) -> int:
    """Values that a statistic over `axes` is of."""
    return math.prod(shape[axis] for axis in axes)


def of_floats(x: Array, axes: tuple[int, ...], backend: str | None, threads: int | None) -> Stats:
    """Mean and M2 of floats, at least one; the reduced axes kept with size 1."""
    name = backends.choose(backend)
    if x.dtype.newbyteorder("=").name not in check.FLOATS:
        x = x.astype(np.float64)
    if name == "numpy":
        return reference.moments(x, axes)[1:]
    x, view, units = _seen(x, axes)
    runner = _runner("moments", x, view, name, threads)
    _, mean, m2 = statistics_of(runner, runner(x))
    return units(mean), units(m2)


def of_integers(x: Array, axes: tuple[int, ...], backend: str | None, threads: int | None) -> Sums:
    """Exact sums of integers or booleans, at least one; the reduced axes kept with size 1."""
    name = backends.choose(backend)
    count = count_of(x.shape, axes)
    if x.dtype.kind == "b":
        x = x.view(np.uint8)
    if name == "numpy" or x.dtype.name not in COUNTED:
        return _summed(x, axes)
    x, view, units = _seen(x, axes)
    runner = _runner("counts", x, view, name, threads)
    tables = runner.plan.tables
    size = 2 * tables["units"] * tables["unit_entries"]
    entries = runner(x)[tables["entries"] : tables["entries"] + size].view(np.uint64)
    total, squares = added(entries.reshape(2, -1, tables["unit_entries"], tables["channels"]), count)
    return Sums(count, units(total), units(squares))


def added(entries: Array, count: int) -> Array:
    """Sums over axis 2 of uint64, of `count` values in all: in 64 bits where these fit, else in Python's integers."""
    return cast(Array, (entries if count <= FITS else entries.astype(object)).sum(axis=2))


def _summed(x: Array, axes: tuple[int, ...]) -> Sums:
    """By NumPy, a piece of the longest of `axes` at a time."""
    if not axes:
        return Sums(1, *reference.integer_sums(x, axes))
    longest = max(axes, key=lambda axis: x.shape[axis])
    step = max(1, PIECE * x.shape[longest] // x.size)
    parts = []
    for start in range(0, x.shape[longest], step):
        piece = x[(slice(None),) * longest + (slice(start, start + step),)]
        parts.append(Sums(count_of(piece.shape, axes), *reference.integer_sums(piece, axes)))
    return functools.reduce(Sums.merge, parts)


def _seen(x: Array, axes: tuple[int, ...]) -> tuple[Array, View, Callable[[Array], Array]]:
    """x as kernels can read it (copied once if need be), its view, and what brings a row of the view's units into the shape of x."""
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
    kept = [a for a in memory_order(x.shape, strides) if a not in axes]  # units are in memory order
    shape = x.shape

    def units(row: Array) -> Array:
        return row.reshape([shape[a] for a in kept]).transpose(np.argsort(kept)).reshape(_kept(shape, axes))

    return x, view, units


def _kept(shape: tuple[int, ...], axes: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(1 if a in axes else size for a, size in enumerate(shape))


def _runner(recipe: str, x: Array, view: View, backend: str, threads: int | None) -> dispatch.Runner:
    data = Data(x.dtype.name)
    key = (recipe, view, data, backend, threads, settings.current())
    runner = call.find(key)
    if runner is None:
        made = getattr(recipes, recipe)(view, data, dispatch.resources_of(backend, threads))
        runner = call.remember(key, dispatch.Runner(made, backend, x.dtype.name if x.dtype.name in check.FLOATS else "float32"))
    return cast(dispatch.Runner, runner)
