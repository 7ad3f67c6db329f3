"""What runs in the workers, on one thread a task. No task changes what it is given: when a worker is lost, its tasks are done again."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from dask.core import flatten

import cpunorm
from cpunorm import backends, dispatch, moments, settings
from cpunorm.integers import Sums
from cpunorm.reference import rstd_of, wide
from cpunorm.stats import Array, ChannelStats, Moments
from cpunorm.whitening import Whitening

STATISTICS = np.dtype([("mean", np.float64), ("var", np.float64)])
PIECE = 1 << 17  # values that are widened at once: 1 MB
FEW = 64  # values a unit that a piece has at least, so that merging costs little beside them
LETTERS = "ABDEFGHIJKLMOPQRSTUVWXYZ"  # axes of a layout that are neither N nor C


def chosen(asked: str | None) -> str | None:
    """The backend of a task: what was asked for, or is configured here; else C. docs/dask.md says what each costs a worker."""
    return settings.resolve_backend(asked) or native()


@functools.cache
def native() -> str | None:
    """C where it is."""
    try:
        backends.load("c")
    except ImportError:
        return None
    return "c"


# ---------------------------------------------------------------- the tree: `chunk`, `combine` and `aggregate` of dask.array.reduction


def block_moments(x: Any, axis: tuple[int, ...], keepdims: bool, *, backend: str | None, computing_meta: bool = False) -> Any:
    """Of a block over `axis`, which are kept with size 1: exact sums of integers, else moments."""
    if computing_meta:
        return x
    x = np.asarray(x)
    integers = x.dtype.kind in "biu"
    if x.size == 0:
        return (Sums if integers else Moments).empty(tuple(1 if a in axis else size for a, size in enumerate(x.shape)))
    if integers:
        return moments.of_integers(x, axis, chosen(backend), 1)
    return functools.reduce(Moments.merge, (float_moments(piece, axis, backend) for piece in pieces(x, axis)))


def float_moments(x: Array, axis: tuple[int, ...], backend: str | None) -> Moments:
    """In float64: a large array should not lose in float32, nor by other chunks, what merging keeps."""
    mean, m2 = moments.of_floats(x.astype(np.float64, copy=False), axis, chosen(backend), 1)
    return Moments(moments.count_of(x.shape, axis), mean, m2)


def pieces(x: Array, axis: tuple[int, ...]) -> Iterator[Array]:
    """Of x along its longest reduced axis, small enough to be widened in cache; float64 is one piece."""
    if x.dtype == np.float64 or not axis:
        yield x
        return
    longest = max(axis, key=lambda a: x.shape[a])
    values = max(PIECE, FEW * x.size // moments.count_of(x.shape, axis))
    step = max(1, values * x.shape[longest] // x.size)
    for start in range(0, x.shape[longest], step):
        yield x[(slice(None),) * longest + (slice(start, start + step),)]


def merged(parts: Any, axis: tuple[int, ...] = (), keepdims: bool = True) -> Any:
    """Of nested lists of parts, or of one, in their order."""
    return functools.reduce(lambda one, other: one.merge(other), flatten([parts]))


def mean_and_var(parts: Any, axis: tuple[int, ...], keepdims: bool, *, ddof: float) -> Array:
    """Of what is merged at last; NaN where there is no value."""
    total = merged(parts)
    found = np.full((total.total if isinstance(total, Sums) else total.mean).shape, np.nan, STATISTICS)
    if total.count and isinstance(total, Sums):
        found["mean"], found["var"] = total.mean(), total.variance(ddof)
    elif total.count:
        with np.errstate(all="ignore"):
            found["mean"], found["var"] = total.mean, total.m2 / np.float64(max(total.count - ddof, 0))
    return found if keepdims else found.squeeze(axis)


def joined(parts: list[Any], layout: str) -> ChannelStats:
    """`ChannelStats` of the chunks along the channels."""
    return ChannelStats.of(parts, layout=layout)


def fitted(x: Any, axis: tuple[int, ...], keepdims: bool, *, empty: Whitening, computing_meta: bool = False) -> Any:
    """Whitening by the samples of a block; `empty` has seen none."""
    return x if computing_meta else all_fitted([], axis, keepdims, empty=empty).fit(np.asarray(x))


def all_fitted(parts: Any, axis: tuple[int, ...], keepdims: bool, *, empty: Whitening) -> Whitening:
    """Of nested lists of parts, or of one, in their order."""
    total = Whitening(empty.method, empty.n_components, empty.eps)
    return functools.reduce(lambda one, other: one.merge(other), flatten([parts]), total)


# ---------------------------------------------------------------- blocks


def with_names(function: Callable[..., Array], names: tuple[str, ...], options: dict[str, Any], x: Any, *values: Array) -> Array:
    """`function` of a block, its part of the parameters, and options."""
    return function(np.asarray(x), **dict(zip(names, values, strict=True)), **options)


def affine(
    x: Array, mean: Array, scale: Array, bias: Array | float, *, channel: int, dtype: Any, activation: str | None, backend: str | None
) -> Array:
    """``activation((x - mean) * scale + bias)`` of float64 coefficients: batch norm with variance 1 and eps 0.

    What rounding the mean to the computing dtype loses comes back in the bias, as in `cpunorm.jit.folds.write_forward`.
    """
    kind = dispatch.compute_dtype(dtype)
    with np.errstate(all="ignore"):
        center, narrow = mean.astype(kind), scale.astype(kind)
        lost = mean - center
        shift = (bias - np.where((lost != 0) & np.isfinite(lost), lost * scale, 0)).astype(kind)
    values = x.astype(dtype, copy=False)[None]  # with an N
    letters = "N" + "".join("C" if axis == channel else LETTERS[axis] for axis in range(x.ndim))
    out = None if x.dtype == dtype else values  # what was converted is ours
    options: dict[str, Any] = {"eps": 0.0, "layout": letters, "activation": activation, "backend": chosen(backend), "threads": 1}
    return np.asarray(cpunorm.batch_norm(values, center, np.ones_like(center), narrow, shift, out=out, **options)[0])


def standardized(x: Array, *, mean: Array, std: Array, **options: Any) -> Array:
    """``(x - mean) / std``."""
    with np.errstate(all="ignore"):
        scale = 1 / std
    return affine(x, mean, scale, 0.0, activation=None, **options)


def normalized(x: Array, *, statistics: Array, weight: Array | None = None, bias: Array | None = None, eps: float, **options: Any) -> Array:
    """Batch norm by statistics of the whole array."""
    scale = rstd_of(statistics["var"], eps)
    with np.errstate(all="ignore"):
        scale = scale if weight is None else scale * wide(weight)
    return affine(x, statistics["mean"], scale, 0.0 if bias is None else wide(bias), dtype=x.dtype, **options)


def batch_normed(x: Array, *, running_mean: Array, running_var: Array, backend: str | None, **options: Any) -> Array:
    """Inference."""
    return np.asarray(cpunorm.batch_norm(x, running_mean, running_var, backend=chosen(backend), threads=1, **options))


def moved(running: Array, *, new: Array, momentum: float, factor: float) -> Array:
    """The next running statistic: ``(1 - momentum) * running + momentum * factor * new``."""
    with np.errstate(all="ignore"):
        return np.asarray(wide(running) * (1 - momentum) + new * factor * momentum).astype(running.dtype)


def layer_normed(x: Array, *, backend: str | None, **options: Any) -> Array:
    """Of whole rows."""
    return np.asarray(cpunorm.layer_norm(x, backend=chosen(backend), threads=1, **options))


def preprocessed(x: Array, *, backend: str | None, **options: Any) -> Array:
    """Of whole pictures."""
    return cpunorm.preprocess(x, backend=chosen(backend), threads=1, **options)
