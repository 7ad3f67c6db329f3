"""Who is compared: our backends, NumPy as one would write it, PyTorch; and the check that each has to pass before it is timed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from typing import Any

import numpy as np

from cpunorm import samples
from cpunorm.layout import parse_layout
from cpunorm.ops import Inputs, Operation

Array = np.ndarray[Any, Any]
Run = Callable[[], Any]

NUMPY, TORCH = "NumPy", "PyTorch"
CHUNK = 1 << 14  # values checked at a time, in cache

# How far NumPy and PyTorch may be from the float64 reference: both sum some layouts' float32 in float32, which loses digits with the
# length of the sum. This asks whether they compute the same thing; how well they do is in the column of the largest error. Ours get
# `ops.tolerance`.
PEER_TOLERANCE = {
    "float16": {"rtol": 0.02, "atol": 0.05},
    "bfloat16": {"rtol": 0.05, "atol": 0.1},
    "float32": {"rtol": 0.01, "atol": 0.05},
    "float64": {"rtol": 1e-9, "atol": 1e-9},
}


@dataclass(frozen=True)
class Contestant:
    """`run` computes; `results` turns what it returns into arrays in the order of the operation's reference."""

    name: str
    run: Run
    results: Callable[[Any], tuple[Array, ...]]
    tolerance: dict[str, float]


def fresh(inputs: Inputs, row: Operation) -> Inputs:
    """The inputs, with copies of what a call changes."""
    return {name: value.copy() if name in row.updates and value is not None else value for name, value in inputs.items()}


def backend(row: Operation, inputs: Inputs, name: str, threads: int, out: Array) -> Contestant:
    """One of ours, writing into `out` where the function can."""
    inputs = fresh(inputs, row)
    options: dict[str, Any] = {"backend": name, "threads": threads}
    if row.takes_out:
        options["out"] = out
    return Contestant(name, partial(row.function, **inputs, **options), lambda given: row.results(given, inputs), row.tolerance(inputs))


def numpy(row: Operation, inputs: Inputs) -> Contestant | None:
    """The plain idiom; None where this module has none for the operation."""
    idiom = IDIOMS.get(row.function.__name__)
    if idiom is None:
        return None
    inputs = fresh(inputs, row)
    return Contestant(NUMPY, lambda: idiom(**inputs), tuple, PEER_TOLERANCE[inputs["x"].dtype.name])


def torch(row: Operation, inputs: Inputs) -> Contestant | None:
    """PyTorch, where it is installed. It allocates its results; `heap` has pages for them."""
    if find_spec("torch") is None:
        return None
    rank, layout = inputs["x"].ndim, inputs.get("layout")
    try:
        row.torch(fresh(inputs, row))()
    except (NotImplementedError, RuntimeError):  # it has not every operation in every dtype
        return None
    inputs = fresh(inputs, row)

    def results(given: Any) -> tuple[Array, ...]:
        arrays = [array_of(value) for value in (given if isinstance(given, tuple) else (given,))]
        if layout is not None:
            arrays = [value.transpose(samples.layout_axes(layout, rank)) if value.ndim == rank else value for value in arrays]
        return (*arrays, *(inputs[name] for name in row.updates))

    return Contestant(TORCH, row.torch(inputs), results, PEER_TOLERANCE[inputs["x"].dtype.name])


def array_of(tensor: Any) -> Array:
    """A tensor as an array that NumPy computes with."""
    import torch

    return np.asarray(tensor.float().numpy() if tensor.dtype == torch.bfloat16 else tensor.numpy())


def core_part(threads: int) -> Run:
    """What a core does without memory: copies within L1, of every thread its own, some 50 us of them."""
    from cpunorm import native

    source = np.ones(3 * 1024 * threads, np.float32)
    to = np.zeros_like(source)
    return lambda: native.copy_limit(to, source, threads, stream=False, repeat=256)


def set_torch_threads(threads: int) -> None:
    """For all calls that follow."""
    if find_spec("torch") is not None:
        import torch

        torch.set_num_threads(threads)


# ---------------------------------------------------------------- NumPy as one would write it


def _batch_norm(
    x: Array,
    running_mean: Array,
    running_var: Array,
    weight: Array,
    bias: Array,
    training: bool,
    layout: str,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> tuple[Array, ...]:
    place = parse_layout(layout, x.ndim)
    assert place is not None
    axes = tuple(axis for axis in range(x.ndim) if axis != place.channel)
    shape = tuple(x.shape[axis] if axis == place.channel else 1 for axis in range(x.ndim))
    w, b = weight.reshape(shape), bias.reshape(shape)
    if not training:
        return ((x - running_mean.reshape(shape)) / np.sqrt(running_var.reshape(shape) + eps) * w + b,)
    mean, var = x.mean(axis=axes, keepdims=True), x.var(axis=axes, keepdims=True)
    y = (x - mean) / np.sqrt(var + eps) * w + b
    count = x.size // mean.size
    running_mean[...] = (1 - momentum) * running_mean + momentum * mean.reshape(-1)
    running_var[...] = (1 - momentum) * running_var + momentum * var.reshape(-1) * count / (count - 1)
    return y, running_mean, running_var


def _layer_norm(x: Array, normalized_shape: tuple[int, ...], weight: Array, bias: Array, eps: float = 1e-5) -> tuple[Array, ...]:
    axes = tuple(range(x.ndim - len(normalized_shape), x.ndim))
    return ((x - x.mean(axis=axes, keepdims=True)) / np.sqrt(x.var(axis=axes, keepdims=True) + eps) * weight + bias,)


def _rms_norm(x: Array, normalized_shape: tuple[int, ...], weight: Array, eps: float) -> tuple[Array, ...]:
    axes = tuple(range(x.ndim - len(normalized_shape), x.ndim))
    return (x / np.sqrt((x * x).mean(axis=axes, keepdims=True) + eps) * weight,)


def _group_norm(x: Array, weight: Array, bias: Array, layout: str, num_groups: int | None = None, eps: float = 1e-5) -> tuple[Array, ...]:
    first = samples.channels_first(x, layout)
    split = first.reshape(first.shape[0], num_groups or first.shape[1], -1)
    y = (split - split.mean(axis=2, keepdims=True)) / np.sqrt(split.var(axis=2, keepdims=True) + eps)
    shape = (1, -1, *(1,) * (x.ndim - 2))
    y = y.reshape(first.shape) * weight.reshape(shape) + bias.reshape(shape)
    return (y.transpose(samples.layout_axes(layout, x.ndim)),)


def _mean_var(x: Array, axis: tuple[int, ...]) -> tuple[Array, ...]:
    return x.mean(axis=axis), x.var(axis=axis)


IDIOMS: dict[str, Callable[..., tuple[Array, ...]]] = {
    "batch_norm": _batch_norm,
    "instance_norm": _group_norm,
    "group_norm": _group_norm,
    "layer_norm": _layer_norm,
    "rms_norm": _rms_norm,
    "mean_var": _mean_var,
}


# ---------------------------------------------------------------- the check


def deviation(results: tuple[Array, ...], expected: tuple[Array, ...], rtol: float, atol: float) -> tuple[bool, float]:
    """Whether ``abs(result - expected) <= atol + rtol * abs(expected)`` everywhere, and the largest difference."""
    if [result.shape for result in results] != [value.shape for value in expected]:
        return False, float("inf")
    good, largest = True, 0.0
    for result, value in zip(results, expected, strict=True):
        flat, wanted = result.reshape(-1), value.reshape(-1)
        for start in range(0, flat.size, CHUNK):
            want = wanted[start : start + CHUNK]
            difference = np.abs(flat[start : start + CHUNK] - want)
            good = good and bool((difference <= atol + rtol * np.abs(want)).all())
            largest = max(largest, float(difference.max()))
    return good, largest
