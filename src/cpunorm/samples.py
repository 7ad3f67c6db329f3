"""Inputs for the rows of the operation table, ordinary and exact; their float64 references; the same calls in PyTorch."""

# ruff: noqa: D103  (names say of which row and what)

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from cpunorm import functional, reference
from cpunorm.layout import Axes, parse_layout

Array = np.ndarray[Any, Any]
Inputs = dict[str, Any]
Shape = tuple[int, ...]
Make = Callable[[Shape, str, str, np.random.Generator], Inputs]


def dtype_of(name: str) -> np.dtype[Any]:
    """A dtype by its name; bfloat16 is ml_dtypes' (extra ``bf16``)."""
    if name == "bfloat16":
        import ml_dtypes

        return np.dtype(ml_dtypes.bfloat16)  # type: ignore[no-any-return]
    return np.dtype(name)


def statistics_dtype(name: str) -> np.dtype[Any]:
    """Of parameters and statistics beside data of this dtype."""
    return np.dtype(np.float64 if name == "float64" else np.float32)


def arrange(x: Array, layout: str) -> Array:
    """A channels-first array as a contiguous one of `layout` (spatial axes in the order of their letters after N and C)."""
    return np.ascontiguousarray(x.transpose(layout_axes(layout, x.ndim)))


def layout_axes(layout: str, rank: int) -> list[int]:
    """For each axis of `layout` the axis of a channels-first array: 0 for N, 1 for C, then the spatial ones in turn."""
    axes = axes_of(layout, rank)
    spatial = iter(range(2, rank))
    return [0 if axis == axes.batch else 1 if axis == axes.channel else next(spatial) for axis in range(rank)]


def channels_first(x: Array, layout: str) -> Array:
    """An array of `layout` seen channels first; no copy."""
    return x.transpose(np.argsort(layout_axes(layout, x.ndim)))


def axes_of(layout: str, rank: int) -> Axes:
    axes = parse_layout(layout, rank)
    if axes is None:
        raise ValueError(f"layout {layout!r} does not fit arrays of {rank} axes")
    return axes


def channel_of(inputs: Inputs) -> int:
    return axes_of(inputs["layout"], inputs["x"].ndim).channel


def normal_data(shape: Shape, layout: str | None, dtype: str, rng: np.random.Generator, mean: float = 3, std: float = 2) -> Array:
    x = rng.normal(mean, std, shape).astype(dtype_of(dtype))
    return x if layout is None else arrange(x, layout)


def exact_pairs(shape: Shape, axes: Shape, rng: np.random.Generator, mean: int = 64) -> Array:
    """An integer mean for each kept index, plus and minus 2 in turn over `axes`: the variance is 4.

    With a power of two of values over `axes` all sums, means and merges on the way are exact too.
    """
    kept = tuple(axis for axis in range(len(shape)) if axis not in axes)
    count, items = (math.prod(shape[axis] for axis in some) for some in (axes, kept))
    if count % 2:
        raise ValueError(f"exact inputs have an even number of values over axes {axes} of {shape}")
    means = rng.integers(-mean, mean + 1, (items, 1)) if mean else 0
    values = means + rng.choice([-1, 1], (items, 1)) * np.tile([-2, 2], (items, count // 2))
    order = (*kept, *axes)
    arranged: Array = values.reshape([shape[axis] for axis in order]).transpose(np.argsort(order))
    return arranged


def exact_parameters(shape: Shape, dtype: str, rng: np.random.Generator) -> Inputs:
    """Powers of two and small integers; with a variance of 4 and eps = 12, rstd is 1/4."""
    kind = statistics_dtype(dtype)
    return {"weight": (2.0 ** rng.integers(-2, 3, shape)).astype(kind), "bias": rng.integers(-8, 8, shape).astype(kind), "eps": 12.0}


def random_parameters(shape: Shape, dtype: str, rng: np.random.Generator) -> Inputs:
    kind = statistics_dtype(dtype)
    return {"weight": rng.normal(1, 0.3, shape).astype(kind), "bias": rng.normal(0, 1, shape).astype(kind)}


def tensor_of(value: Any) -> Any:
    import torch

    if not isinstance(value, np.ndarray):
        return value
    if value.dtype.name == "bfloat16":
        return torch.from_numpy(value.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(value)


def torch_function(name: str) -> Callable[[Inputs], Callable[[], Any]]:
    """The function of this name in torch.nn.functional, on tensors that share our memory, channels first."""

    def prepare(inputs: Inputs) -> Callable[[], Any]:
        import torch

        options = dict(inputs)
        layout = options.pop("layout", None)
        x = options.pop("x")
        tensor = tensor_of(x) if layout is None else tensor_of(x).permute([int(axis) for axis in np.argsort(layout_axes(layout, x.ndim))])
        rest = {key: tensor_of(value) for key, value in options.items()}
        return partial(getattr(torch.nn.functional, name), tensor, **rest)  # nothing requires a gradient: no_grad would cost it 2 us

    return prepare


def torch_gradient(name: str, forward: Callable[[Inputs], Inputs]) -> Callable[[Inputs], Callable[[], Any]]:
    """PyTorch's backward pass alone: the graph is built once and kept."""

    def prepare(inputs: Inputs) -> Callable[[], Any]:
        import torch

        options = forward(inputs)
        layout = options.pop("layout", None)
        order = None if layout is None else [int(axis) for axis in np.argsort(layout_axes(layout, inputs["x"].ndim))]
        x, grad = (tensor_of(inputs[key]) if order is None else tensor_of(inputs[key]).permute(order) for key in ("x", "grad"))
        rest = {key: tensor_of(value) for key, value in options.items()}
        if rest.get("weight") is not None and name != "rms_norm":
            rest["bias"] = torch.zeros_like(rest["weight"])  # ours gives its gradient in any case
        leaves = [x.detach().requires_grad_()]
        for key in ("weight", "bias"):
            if rest.get(key) is not None:
                rest[key] = rest[key].detach().requires_grad_()
                leaves.append(rest[key])
        y = getattr(torch.nn.functional, name)(leaves[0], **rest)
        return lambda: torch.autograd.grad(y, leaves, grad, retain_graph=True)

    return prepare


def batch_norm_inputs(training: bool) -> Make:
    def make(shape: Shape, layout: str, dtype: str, rng: np.random.Generator) -> Inputs:
        kind = statistics_dtype(dtype)
        return {
            "x": normal_data(shape, layout, dtype, rng),
            "running_mean": rng.normal(3, 1, shape[1]).astype(kind),
            "running_var": rng.uniform(0.5, 4, shape[1]).astype(kind),
            **random_parameters((shape[1],), dtype, rng),
            "training": training,
            "layout": layout,
        }

    return make


def batch_norm_exact(training: bool) -> Make:
    def make(shape: Shape, layout: str, dtype: str, rng: np.random.Generator) -> Inputs:
        kind = statistics_dtype(dtype)
        x = exact_pairs(shape, tuple(axis for axis in range(len(shape)) if axis != 1), rng)
        return {
            "x": arrange(x.astype(dtype_of(dtype)), layout),
            "running_mean": rng.integers(-8, 8, shape[1]).astype(kind),
            "running_var": np.full(shape[1], 4, kind),
            **exact_parameters((shape[1],), dtype, rng),
            "training": training,
            "momentum": 0.25,
            "layout": layout,
        }

    return make


def batch_norm_reference(inputs: Inputs) -> tuple[Array, ...]:
    training = inputs["training"]
    mean, var = (None if value is None else value.astype(np.float64) for value in (inputs["running_mean"], inputs["running_var"]))
    y, _, _ = reference.batch_norm(
        inputs["x"],
        mean,
        var,
        inputs["weight"],
        inputs["bias"],
        training=training,
        momentum=inputs.get("momentum", 0.1),
        eps=inputs.get("eps", 1e-5),
        channel=channel_of(inputs),
    )
    return (y, *(value for value in (mean, var) if value is not None)) if training else (y,)


def group_count(channels: int) -> int:
    """The largest of 32, 16, ... 1 that divides the channels."""
    return next(groups for groups in (32, 16, 8, 4, 3, 2, 1) if channels % groups == 0)


def group_norm_inputs(shape: Shape, layout: str, dtype: str, rng: np.random.Generator) -> Inputs:
    x = normal_data(shape, layout, dtype, rng)
    return {"x": x, "num_groups": group_count(shape[1]), **random_parameters((shape[1],), dtype, rng), "layout": layout}


def group_norm_exact(shape: Shape, layout: str, dtype: str, rng: np.random.Generator) -> Inputs:
    x = arrange(exact_pairs(shape, tuple(range(1, len(shape))), rng).astype(dtype_of(dtype)), layout)
    return {"x": x, "num_groups": 1, **exact_parameters((shape[1],), dtype, rng), "layout": layout}


def instance_norm_inputs(shape: Shape, layout: str, dtype: str, rng: np.random.Generator) -> Inputs:
    return {"x": normal_data(shape, layout, dtype, rng), **random_parameters((shape[1],), dtype, rng), "layout": layout}


def instance_norm_exact(shape: Shape, layout: str, dtype: str, rng: np.random.Generator) -> Inputs:
    x = arrange(exact_pairs(shape, tuple(range(2, len(shape))), rng).astype(dtype_of(dtype)), layout)
    return {"x": x, **exact_parameters((shape[1],), dtype, rng), "layout": layout}


def group_norm_reference(inputs: Inputs) -> tuple[Array, ...]:
    axes = axes_of(inputs["layout"], inputs["x"].ndim)
    groups = inputs.get("num_groups", inputs["x"].shape[axes.channel])
    eps = inputs.get("eps", 1e-5)
    y = reference.group_norm(inputs["x"], groups, inputs["weight"], inputs["bias"], eps=eps, batch=axes.batch, channel=axes.channel)
    return y[:1]


def layer_norm_inputs(shape: Shape, layout: str, dtype: str, rng: np.random.Generator) -> Inputs:
    normalized = shape[-1:]
    return {"x": normal_data(shape, None, dtype, rng), "normalized_shape": normalized, **random_parameters(normalized, dtype, rng)}


def layer_norm_exact(shape: Shape, layout: str, dtype: str, rng: np.random.Generator) -> Inputs:
    x = exact_pairs(shape, (len(shape) - 1,), rng).astype(dtype_of(dtype))
    return {"x": x, "normalized_shape": shape[-1:], **exact_parameters(shape[-1:], dtype, rng)}


def rms_norm_inputs(shape: Shape, layout: str, dtype: str, rng: np.random.Generator) -> Inputs:
    inputs = layer_norm_inputs(shape, layout, dtype, rng)
    del inputs["bias"]
    return inputs | {"eps": 1e-6}


def rms_norm_exact(shape: Shape, layout: str, dtype: str, rng: np.random.Generator) -> Inputs:
    x = exact_pairs(shape, (len(shape) - 1,), rng, mean=0).astype(dtype_of(dtype))
    inputs = {"x": x, "normalized_shape": shape[-1:], **exact_parameters(shape[-1:], dtype, rng)}
    del inputs["bias"]
    return inputs


def row_reference(centred: bool) -> Callable[[Inputs], tuple[Array, ...]]:
    def run(inputs: Inputs) -> tuple[Array, ...]:
        normalized = len(inputs["normalized_shape"])
        eps = inputs.get("eps", 1e-5)
        return reference.layer_norm(inputs["x"], normalized, inputs["weight"], inputs.get("bias"), eps=eps, centred=centred)[:1]

    return run


def window_inputs(shape: Shape, layout: str, dtype: str, rng: np.random.Generator) -> Inputs:
    return {"x": normal_data(shape, layout, dtype, rng, 0, 1), "size": 5, "alpha": 0.1, "beta": 0.75, "k": 2.0, "layout": layout}


def window_arguments(inputs: Inputs) -> tuple[Any, ...]:
    return tuple(inputs[name] for name in ("size", "alpha", "beta", "k"))


def window_reference(inputs: Inputs) -> tuple[Array, ...]:
    return (reference.local_response_norm(inputs["x"], *window_arguments(inputs), channel=channel_of(inputs)),)


def normalize_inputs(shape: Shape, layout: str, dtype: str, rng: np.random.Generator) -> Inputs:
    return {"x": normal_data(shape, None, dtype, rng), "dim": len(shape) - 1}


def normalize_reference(inputs: Inputs) -> tuple[Array, ...]:
    return (reference.normalize(inputs["x"], 2.0, (inputs["dim"],), 1e-12),)


def mean_var_axes(layout: str, rank: int) -> Shape:
    channel = axes_of(layout, rank).channel
    return tuple(axis for axis in range(rank) if axis != channel)


def mean_var_inputs(shape: Shape, layout: str, dtype: str, rng: np.random.Generator) -> Inputs:
    return {"x": normal_data(shape, layout, dtype, rng), "axis": mean_var_axes(layout, len(shape))}


def mean_var_exact(shape: Shape, layout: str, dtype: str, rng: np.random.Generator) -> Inputs:
    x = batch_norm_exact(True)(shape, layout, dtype, rng)["x"]
    return {"x": x, "axis": mean_var_axes(layout, len(shape))}


def mean_var_reference(inputs: Inputs) -> tuple[Array, ...]:
    n, mean, m2 = reference.moments(inputs["x"], inputs["axis"])
    return mean.squeeze(inputs["axis"]), m2.squeeze(inputs["axis"]) / n


def mean_var_torch(inputs: Inputs) -> Callable[[], Any]:
    import torch

    x = tensor_of(inputs["x"])
    return lambda: torch.var_mean(x, dim=inputs["axis"], correction=0)[::-1]


def gradient_inputs(forward: Make, function: Callable[..., Any], drop: tuple[str, ...]) -> Make:
    """The inputs of a forward call, its statistics, and a gradient; without the arguments that the backward call does not take."""

    def make(shape: Shape, layout: str, dtype: str, rng: np.random.Generator) -> Inputs:
        inputs = forward(shape, layout, dtype, rng)
        grad = rng.normal(size=inputs["x"].shape).astype(inputs["x"].dtype)
        statistics: Inputs = {}
        if function is not functional.local_response_norm and function is not functional.normalize:
            _, *values = function(**inputs, return_stats=True, backend="numpy")
            statistics = dict(zip(("mean", "rstd") if len(values) == 2 else ("rstd",), values, strict=True))
        return {"grad": grad, **{name: value for name, value in inputs.items() if name not in drop}, **statistics}

    return make


def batch_gradient_reference(inputs: Inputs) -> tuple[Array, ...]:
    grad, x, mean, rstd, weight = (inputs[name] for name in ("grad", "x", "mean", "rstd", "weight"))
    return reference.batch_norm_backward(grad, x, mean, rstd, weight, training=True, channel=channel_of(inputs))


def group_gradient_reference(inputs: Inputs) -> tuple[Array, ...]:
    axes = axes_of(inputs["layout"], inputs["x"].ndim)
    grad, x, mean, rstd, weight = (inputs[name] for name in ("grad", "x", "mean", "rstd", "weight"))
    groups = inputs.get("num_groups", x.shape[axes.channel])
    return reference.group_norm_backward(grad, x, groups, mean, rstd, weight, batch=axes.batch, channel=axes.channel)


def row_gradient_reference(inputs: Inputs) -> tuple[Array, ...]:
    grad, x, rstd, weight = (inputs[name] for name in ("grad", "x", "rstd", "weight"))
    mean = inputs.get("mean")
    results = reference.layer_norm_backward(grad, x, len(inputs["normalized_shape"]), mean, rstd, weight)
    return results if mean is not None else results[:2]


def window_gradient_reference(inputs: Inputs) -> tuple[Array, ...]:
    arguments = window_arguments(inputs)
    return (reference.local_response_norm_backward(inputs["grad"], inputs["x"], *arguments, channel=channel_of(inputs)),)


def normalize_gradient_reference(inputs: Inputs) -> tuple[Array, ...]:
    return (reference.normalize_backward(inputs["grad"], inputs["x"], 2.0, (inputs["dim"],), 1e-12),)


def forward_of(*names: str, **more: Any) -> Callable[[Inputs], Inputs]:
    """The forward call that belongs to a backward one."""

    def forward(inputs: Inputs) -> Inputs:
        return {name: value for name, value in inputs.items() if name not in ("grad", "x", "mean", "rstd", *names)} | more

    return forward
