"""The operation table: one row an operation, walked by the tests, ``cpunorm compare``, the benchmarks and the README.

A row knows how to make inputs of any shape, layout and dtype (ordinary ones, and exact ones whose result has the same bits however it is
summed), how to call us, the float64 reference, and PyTorch as a peer, and which bytes cannot but move. A public function that has no row
fails a test.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from cpunorm import functional, reference
from cpunorm.layout import parse_layout

Array = np.ndarray[Any, Any]
Inputs = dict[str, Any]

# Shapes are given channels first, (N, C, *spatial), whatever the layout.
SHAPES = {
    "ResNet-50 conv1, batch 32": (32, 64, 112, 112),
    "ResNet-50 stage 3, batch 32": (32, 512, 28, 28),
    "ResNet-50 stage 5, batch 32": (32, 2048, 7, 7),
    "ResNet-50 stage 2, batch 1": (1, 256, 56, 56),
    "MobileNetV2 block 2, batch 8": (8, 96, 56, 56),
}


@dataclass(frozen=True)
class Operation:
    """One row. `call`, `reference` and `torch` take the inputs as keyword arguments, under the names of the public function."""

    name: str
    function: Callable[..., Any]
    inputs: Callable[[tuple[int, ...], str, str, np.random.Generator], Inputs]
    exact_inputs: Callable[[tuple[int, ...], str, str, np.random.Generator], Inputs]
    reference: Callable[[Inputs], tuple[Array, ...]]
    torch: Callable[[Inputs], Callable[[], Any]]
    reads: int  # trips over x that no implementation avoids once x is larger than the caches
    writes: int
    updates: tuple[str, ...] = ()  # inputs that the call changes; the reference returns their new values last

    def call(self, inputs: Inputs, **options: Any) -> tuple[Array, ...]:
        """Our results, then what the call changed."""
        result = self.function(**inputs, **options)
        results = result if isinstance(result, tuple) else (result,)
        return (*results, *(inputs[name] for name in self.updates if inputs.get(name) is not None))

    def bytes_moved(self, x: Array) -> int:
        """What has to be read and written for `x`."""
        return (self.reads + self.writes) * x.nbytes


def arrange(x: Array, layout: str) -> Array:
    """A channels-first array as a contiguous one of `layout` (spatial axes in the order of their letters after N and C)."""
    return np.ascontiguousarray(x.transpose(layout_axes(layout, x.ndim)))


def layout_axes(layout: str, rank: int) -> list[int]:
    """For each axis of `layout` the axis of a channels-first array: 0 for N, 1 for C, then the spatial ones in turn."""
    axes = parse_layout(layout, rank)
    if axes is None:
        raise ValueError(f"layout {layout!r} does not fit arrays of {rank} axes")
    spatial = iter(range(2, rank))
    return [0 if axis == axes.batch else 1 if axis == axes.channel else next(spatial) for axis in range(rank)]


def channels_first(x: Array, layout: str) -> Array:
    """An array of `layout` seen channels first; no copy."""
    return x.transpose(np.argsort(layout_axes(layout, x.ndim)))


def tolerance(dtype: str) -> dict[str, float]:
    """How far from the float64 reference a result may be: ``abs(y - r) <= atol + rtol * abs(r)`` for data of ordinary size."""
    return {"float32": {"rtol": 1e-5, "atol": 1e-6}, "float64": {"rtol": 1e-12, "atol": 1e-12}}[dtype]


# ---------------------------------------------------------------- batch norm


def _batch_norm_inputs(training: bool) -> Callable[[tuple[int, ...], str, str, np.random.Generator], Inputs]:
    def make(shape: tuple[int, ...], layout: str, dtype: str, rng: np.random.Generator) -> Inputs:
        channels = shape[1]
        return {
            "x": arrange(rng.normal(3, 2, shape).astype(dtype), layout),
            "running_mean": rng.normal(3, 1, channels).astype(dtype),
            "running_var": rng.uniform(0.5, 4, channels).astype(dtype),
            "weight": rng.normal(1, 0.3, channels).astype(dtype),
            "bias": rng.normal(0, 1, channels).astype(dtype),
            "training": training,
            "layout": layout,
        }

    return make


def _batch_norm_exact(training: bool) -> Callable[[tuple[int, ...], str, str, np.random.Generator], Inputs]:
    """A channel holds an integer mean plus and minus 2, each for half of its values: the variance is 4 and, eps being 12, rstd 1/4."""

    def make(shape: tuple[int, ...], layout: str, dtype: str, rng: np.random.Generator) -> Inputs:
        channels = shape[1]
        count = int(np.prod(shape)) // max(channels, 1)
        if count % 2:
            raise ValueError(f"exact inputs have an even number of values a channel, not {count}")
        mean = rng.integers(-64, 64, channels)
        signs = rng.permuted(np.tile([-2, 2], (channels, count // 2)), axis=1)
        x = np.moveaxis((mean[:, None] + signs).reshape((channels, shape[0], *shape[2:])), 0, 1)
        return {
            "x": arrange(x.astype(dtype), layout),
            "running_mean": rng.integers(-8, 8, channels).astype(dtype),
            "running_var": np.full(channels, 4, dtype),
            "weight": (2.0 ** rng.integers(-2, 3, channels)).astype(dtype),
            "bias": rng.integers(-8, 8, channels).astype(dtype),
            "training": training,
            "momentum": 0.25,
            "eps": 12.0,
            "layout": layout,
        }

    return make


def _batch_norm_reference(inputs: Inputs) -> tuple[Array, ...]:
    x, training = inputs["x"], inputs["training"]
    axes = parse_layout(inputs["layout"], x.ndim)
    assert axes is not None
    mean, var = (None if value is None else value.astype(np.float64) for value in (inputs["running_mean"], inputs["running_var"]))
    y, _, _ = reference.batch_norm(
        x,
        mean,
        var,
        inputs["weight"],
        inputs["bias"],
        training=training,
        momentum=inputs.get("momentum", 0.1),
        eps=inputs.get("eps", 1e-5),
        channel=axes.channel,
    )
    return (y, *(value for value in (mean, var) if value is not None)) if training else (y,)


def _batch_norm_torch(inputs: Inputs) -> Callable[[], Any]:
    import torch

    options = dict(inputs)
    x = torch.from_numpy(channels_first(options.pop("x"), options.pop("layout")))
    tensors = {name: torch.from_numpy(value) for name, value in options.items() if isinstance(value, np.ndarray)}
    rest = {name: value for name, value in options.items() if name not in tensors}

    def run() -> Any:
        with torch.no_grad():
            return torch.nn.functional.batch_norm(x, **tensors, **rest)  # type: ignore[arg-type]

    return run


# ---------------------------------------------------------------- mean_var


def _mean_var_axes(layout: str, rank: int) -> tuple[int, ...]:
    axes = parse_layout(layout, rank)
    assert axes is not None
    return tuple(axis for axis in range(rank) if axis != axes.channel)


def _mean_var_inputs(shape: tuple[int, ...], layout: str, dtype: str, rng: np.random.Generator) -> Inputs:
    return {"x": arrange(rng.normal(3, 2, shape).astype(dtype), layout), "axis": _mean_var_axes(layout, len(shape))}


def _mean_var_exact(shape: tuple[int, ...], layout: str, dtype: str, rng: np.random.Generator) -> Inputs:
    x = _batch_norm_exact(True)(shape, layout, dtype, rng)["x"]
    return {"x": x, "axis": _mean_var_axes(layout, len(shape))}


def _mean_var_reference(inputs: Inputs) -> tuple[Array, ...]:
    count, mean, m2 = reference.moments(inputs["x"], inputs["axis"])
    return mean.squeeze(inputs["axis"]), m2.squeeze(inputs["axis"]) / count


def _mean_var_torch(inputs: Inputs) -> Callable[[], Any]:
    import torch

    x = torch.from_numpy(inputs["x"])
    return lambda: torch.var_mean(x, dim=inputs["axis"], correction=0)[::-1]


OPERATIONS = {
    row.name: row
    for row in (
        Operation(
            "batch_norm inference",
            functional.batch_norm,
            _batch_norm_inputs(False),
            _batch_norm_exact(False),
            _batch_norm_reference,
            _batch_norm_torch,
            reads=1,
            writes=1,
        ),
        Operation(
            "batch_norm training",
            functional.batch_norm,
            _batch_norm_inputs(True),
            _batch_norm_exact(True),
            _batch_norm_reference,
            _batch_norm_torch,
            reads=2,
            writes=1,
            updates=("running_mean", "running_var"),
        ),
        Operation(
            "mean_var",
            functional.mean_var,
            _mean_var_inputs,
            _mean_var_exact,
            _mean_var_reference,
            _mean_var_torch,
            reads=1,
            writes=0,
        ),
    )
}
