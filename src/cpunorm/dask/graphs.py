"""From checked arguments to graphs: the tree of moments, functions by blocks, parameters in the chunks of what they belong to."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import dask.array as da
import numpy as np
from dask.delayed import Delayed

from cpunorm import check, settings
from cpunorm.dask import tasks
from cpunorm.stats import Array

# ---------------------------------------------------------------- arguments


def check_array(call: str, array: Any, backend: str | None, name: str = "array") -> None:
    """A Dask array of NumPy's, of known chunks; and a backend's name."""
    check.backend(call, backend)
    if not isinstance(array, da.Array):
        raise TypeError(f"{call}: expected {name} to be a dask.array.Array (see dask.array.from_array), got {type(array).__name__}")
    check.array(call, name, array._meta)
    for axis, sizes in enumerate(array.chunks):
        if any(math.isnan(size) for size in sizes):
            raise ValueError(
                f"{call}: expected chunks of known sizes, got unknown ones on axis {axis}; {name}.compute_chunk_sizes() finds them"
            )


def parameter(call: str, name: str, value: Any, array: da.Array, axes: tuple[int, ...]) -> Any:
    """One value for each index of `axes`, of a dtype that goes with array's; None as it is."""
    if value is None:
        return None
    if not isinstance(value, da.Array):
        value = check.array(call, name, value)
    shape = tuple(array.shape[axis] for axis in axes)
    check.parameter(call, name, value, shape, array, f"one value for each index of axis {', '.join(map(str, axes))}")
    return value


def coefficients(call: str, name: str, value: Any, channels: int) -> Any:
    """A number a channel, float64."""
    if isinstance(value, Delayed):
        return da.from_delayed(value, (channels,), np.float64)
    if not isinstance(value, da.Array):
        try:
            value = np.asarray(value, np.float64)
        except (TypeError, ValueError):
            raise TypeError(f"{call}: expected {name} to be a number a channel, got {value!r}") from None
    if value.shape not in ((), (channels,)):
        raise ValueError(f"{call}: expected {name} of shape ({channels},), a number a channel, or one number, got shape {value.shape}")
    return da.broadcast_to(da.asarray(value), (channels,)).astype(np.float64)


def whole(array: da.Array, axes: tuple[int, ...]) -> da.Array:
    """The same with one chunk along `axes`; the others cut so that no block is larger than the largest was, or than one such row."""
    if all(len(array.chunks[axis]) == 1 for axis in axes):
        return array
    if array.size == 0:
        return array.rechunk(dict.fromkeys(axes, -1))
    limit = math.prod(map(max, array.chunks)) * array.dtype.itemsize
    return array.rechunk({axis: -1 if axis in axes else "auto" for axis in range(array.ndim)}, block_size_limit=limit)


# ---------------------------------------------------------------- graphs


def reduced(
    array: da.Array, axes: tuple[int, ...], last: Callable[..., Any], dtype: Any, backend: str | None, *, keepdims: bool = False
) -> da.Array:
    """The tree: moments of blocks over `axes`, merged a few at a time; `last` merges the last ones, and makes of them what is wanted."""
    return da.reduction(
        array,
        functools.partial(tasks.block_moments, backend=settings.resolve_backend(backend)),
        last,
        axis=axes,
        keepdims=keepdims,
        dtype=np.dtype(dtype),
        combine=tasks.merged,
        concatenate=False,
        meta=np.empty((0,) * (array.ndim if keepdims else array.ndim - len(axes)), dtype),
        name="cpunorm-moments",
    )


def by_blocks(
    function: Callable[..., Array],
    array: da.Array,
    dtype: Any,
    axes: tuple[int, ...],
    parameters: dict[str, Any],
    options: dict[str, Any],
    sizes: dict[int, int] | None = None,
) -> da.Array:
    """``function(block, **parameters, **options)``. A block gets its part of the parameters that are not None, which lie along `axes`.

    `sizes` are those of the axes that `function` changes, which have one chunk.
    """
    given = {name: value for name, value in parameters.items() if value is not None}
    chunks = tuple(array.chunks[axis] for axis in axes)
    every = tuple(range(array.ndim))
    return da.blockwise(
        functools.partial(tasks.with_names, function, tuple(given), options),
        every,
        array,
        every,
        *(each for value in given.values() for each in (da.asarray(value).rechunk(chunks), axes)),
        adjust_chunks=sizes,
        dtype=np.dtype(dtype),
        meta=np.empty((0,) * array.ndim, dtype),
        token="cpunorm-" + function.__name__.replace("_", "-"),
    )
