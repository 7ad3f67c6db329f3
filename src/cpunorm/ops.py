"""The operation table: one row an operation, walked by the tests, ``cpunorm compare``, the benchmarks and the README.

A row knows how to make inputs of any shape, layout and dtype (ordinary ones, and exact ones whose result has the same bits however it is
summed), how to call us, the float64 reference, and PyTorch as a peer, and which bytes cannot but move. A public function that has no row
fails a test.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from cpunorm import functional, reference
from cpunorm.layout import Axes, parse_layout

Array = np.ndarray[Any, Any]
Inputs = dict[str, Any]
Shape = tuple[int, ...]
Make = Callable[[Shape, str, str, np.random.Generator], Inputs]

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
    """One row. Inputs are the keyword arguments of the public function."""

    name: str
    function: Callable[..., Any]
    inputs: Make
    reference: Callable[[Inputs], tuple[Array, ...]]
    torch: Callable[[Inputs], Callable[[], Any]]
    reads: int  # trips over x that no implementation avoids once x is larger than the caches
    writes: int
    exact_inputs: Make | None = None
    updates: tuple[str, ...] = ()  # inputs that the call changes; the reference returns their new values last
    layouts: bool = True  # takes a layout; else the last axis is normalized, or what the inputs say
    dtypes: tuple[str, ...] = ("float32", "float64", "float16", "bfloat16")
    data: str = "x"  # the argument that is read and written
    takes_out: bool = True
    least_rank: int = 2  # axes of x

    def call(self, inputs: Inputs, **options: Any) -> tuple[Array, ...]:
        """Our results, then what the call changed."""
        result = self.function(**inputs, **options)
        results = result if isinstance(result, tuple) else (result,)
        return (*results, *(inputs[name] for name in self.updates if inputs.get(name) is not None))

    def tolerance(self, inputs: Inputs) -> dict[str, float]:
        """How far from the reference a result may be."""
        x = inputs["x"]
        if self.data == "x":
            return tolerance(x.dtype.name)
        return gradient_tolerance(x.dtype.name, x.size // inputs["weight"].size if "weight" in inputs else 1)

    def bytes_moved(self, x: Array) -> int:
        """What has to be read and written for `x`."""
        return (self.reads + self.writes) * x.nbytes


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
    axes = _axes(layout, rank)
    spatial = iter(range(2, rank))
    return [0 if axis == axes.batch else 1 if axis == axes.channel else next(spatial) for axis in range(rank)]


def channels_first(x: Array, layout: str) -> Array:
    """An array of `layout` seen channels first; no copy."""
    return x.transpose(np.argsort(layout_axes(layout, x.ndim)))


def tolerance(dtype: str) -> dict[str, float]:
    """How far from the float64 reference a result may be: ``abs(y - r) <= atol + rtol * abs(r)`` for data of ordinary size.

    For 16 bits that is one unit in the last place; 1e-5 near zero, where the terms of a sum are rounded to float32.
    """
    return {
        "float16": {"rtol": 2.0**-10, "atol": 1e-5},
        "bfloat16": {"rtol": 2.0**-7, "atol": 1e-5},
        "float32": {"rtol": 1e-5, "atol": 1e-6},
        "float64": {"rtol": 1e-12, "atol": 1e-12},
    }[dtype]


def gradient_tolerance(dtype: str, terms: int) -> dict[str, float]:
    """The same for a gradient, whose sums of `terms` products around 1 are rounded relative to their size, not to their result's."""
    limits = tolerance(dtype)
    return {"rtol": 4 * limits["rtol"], "atol": 4 * limits["atol"] * max(1.0, math.sqrt(terms) / 8)}


def _axes(layout: str, rank: int) -> Axes:
    axes = parse_layout(layout, rank)
    if axes is None:
        raise ValueError(f"layout {layout!r} does not fit arrays of {rank} axes")
    return axes


def _channel(inputs: Inputs) -> int:
    return _axes(inputs["layout"], inputs["x"].ndim).channel


def _data(shape: Shape, layout: str | None, dtype: str, rng: np.random.Generator, mean: float = 3, std: float = 2) -> Array:
    x = rng.normal(mean, std, shape).astype(dtype_of(dtype))
    return x if layout is None else arrange(x, layout)


def _pairs(shape: Shape, axes: Shape, rng: np.random.Generator, mean: int = 64) -> Array:
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


def _exact_parameters(shape: Shape, dtype: str, rng: np.random.Generator) -> Inputs:
    """Powers of two and small integers; with a variance of 4 and eps = 12, rstd is 1/4."""
    kind = statistics_dtype(dtype)
    return {"weight": (2.0 ** rng.integers(-2, 3, shape)).astype(kind), "bias": rng.integers(-8, 8, shape).astype(kind), "eps": 12.0}


def _parameters(shape: Shape, dtype: str, rng: np.random.Generator) -> Inputs:
    kind = statistics_dtype(dtype)
    return {"weight": rng.normal(1, 0.3, shape).astype(kind), "bias": rng.normal(0, 1, shape).astype(kind)}


# ---------------------------------------------------------------- PyTorch as a peer


def _tensor(value: Any) -> Any:
    import torch

    if not isinstance(value, np.ndarray):
        return value
    if value.dtype.name == "bfloat16":
        return torch.from_numpy(value.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(value)


def _torch(name: str) -> Callable[[Inputs], Callable[[], Any]]:
    """The function of this name in torch.nn.functional, on tensors that share our memory, channels first."""

    def prepare(inputs: Inputs) -> Callable[[], Any]:
        import torch

        options = dict(inputs)
        layout = options.pop("layout", None)
        x = options.pop("x")
        tensor = _tensor(x) if layout is None else _tensor(x).permute([int(axis) for axis in np.argsort(layout_axes(layout, x.ndim))])
        rest = {key: _tensor(value) for key, value in options.items()}
        function = getattr(torch.nn.functional, name)

        def run() -> Any:
            with torch.no_grad():
                return function(tensor, **rest)

        return run

    return prepare


def _torch_gradient(name: str, forward: Callable[[Inputs], Inputs]) -> Callable[[Inputs], Callable[[], Any]]:
    """PyTorch's backward pass alone: the graph is built once and kept."""

    def prepare(inputs: Inputs) -> Callable[[], Any]:
        import torch

        options = forward(inputs)
        layout = options.pop("layout", None)
        order = None if layout is None else [int(axis) for axis in np.argsort(layout_axes(layout, inputs["x"].ndim))]
        x, grad = (_tensor(inputs[key]) if order is None else _tensor(inputs[key]).permute(order) for key in ("x", "grad"))
        rest = {key: _tensor(value) for key, value in options.items()}
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


# ---------------------------------------------------------------- batch norm


def _batch_norm_inputs(training: bool) -> Make:
    def make(shape: Shape, layout: str, dtype: str, rng: np.random.Generator) -> Inputs:
        kind = statistics_dtype(dtype)
        return {
            "x": _data(shape, layout, dtype, rng),
            "running_mean": rng.normal(3, 1, shape[1]).astype(kind),
            "running_var": rng.uniform(0.5, 4, shape[1]).astype(kind),
            **_parameters((shape[1],), dtype, rng),
            "training": training,
            "layout": layout,
        }

    return make


def _batch_norm_exact(training: bool) -> Make:
    def make(shape: Shape, layout: str, dtype: str, rng: np.random.Generator) -> Inputs:
        kind = statistics_dtype(dtype)
        x = _pairs(shape, tuple(axis for axis in range(len(shape)) if axis != 1), rng)
        return {
            "x": arrange(x.astype(dtype_of(dtype)), layout),
            "running_mean": rng.integers(-8, 8, shape[1]).astype(kind),
            "running_var": np.full(shape[1], 4, kind),
            **_exact_parameters((shape[1],), dtype, rng),
            "training": training,
            "momentum": 0.25,
            "layout": layout,
        }

    return make


def _batch_norm_reference(inputs: Inputs) -> tuple[Array, ...]:
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
        channel=_channel(inputs),
    )
    return (y, *(value for value in (mean, var) if value is not None)) if training else (y,)


# ---------------------------------------------------------------- group, instance, layer, RMS


def _groups(channels: int) -> int:
    """The largest of 32, 16, ... 1 that divides the channels."""
    return next(groups for groups in (32, 16, 8, 4, 3, 2, 1) if channels % groups == 0)


def _group_norm_inputs(shape: Shape, layout: str, dtype: str, rng: np.random.Generator) -> Inputs:
    x = _data(shape, layout, dtype, rng)
    return {"x": x, "num_groups": _groups(shape[1]), **_parameters((shape[1],), dtype, rng), "layout": layout}


def _group_norm_exact(shape: Shape, layout: str, dtype: str, rng: np.random.Generator) -> Inputs:
    x = arrange(_pairs(shape, tuple(range(1, len(shape))), rng).astype(dtype_of(dtype)), layout)
    return {"x": x, "num_groups": 1, **_exact_parameters((shape[1],), dtype, rng), "layout": layout}


def _instance_norm_inputs(shape: Shape, layout: str, dtype: str, rng: np.random.Generator) -> Inputs:
    return {"x": _data(shape, layout, dtype, rng), **_parameters((shape[1],), dtype, rng), "layout": layout}


def _instance_norm_exact(shape: Shape, layout: str, dtype: str, rng: np.random.Generator) -> Inputs:
    x = arrange(_pairs(shape, tuple(range(2, len(shape))), rng).astype(dtype_of(dtype)), layout)
    return {"x": x, **_exact_parameters((shape[1],), dtype, rng), "layout": layout}


def _group_norm_reference(inputs: Inputs) -> tuple[Array, ...]:
    axes = _axes(inputs["layout"], inputs["x"].ndim)
    groups = inputs.get("num_groups", inputs["x"].shape[axes.channel])
    eps = inputs.get("eps", 1e-5)
    y = reference.group_norm(inputs["x"], groups, inputs["weight"], inputs["bias"], eps=eps, batch=axes.batch, channel=axes.channel)
    return y[:1]


def _layer_norm_inputs(shape: Shape, layout: str, dtype: str, rng: np.random.Generator) -> Inputs:
    normalized = shape[-1:]
    return {"x": _data(shape, None, dtype, rng), "normalized_shape": normalized, **_parameters(normalized, dtype, rng)}


def _layer_norm_exact(shape: Shape, layout: str, dtype: str, rng: np.random.Generator) -> Inputs:
    x = _pairs(shape, (len(shape) - 1,), rng).astype(dtype_of(dtype))
    return {"x": x, "normalized_shape": shape[-1:], **_exact_parameters(shape[-1:], dtype, rng)}


def _rms_norm_inputs(shape: Shape, layout: str, dtype: str, rng: np.random.Generator) -> Inputs:
    inputs = _layer_norm_inputs(shape, layout, dtype, rng)
    del inputs["bias"]
    return inputs | {"eps": 1e-6}


def _rms_norm_exact(shape: Shape, layout: str, dtype: str, rng: np.random.Generator) -> Inputs:
    x = _pairs(shape, (len(shape) - 1,), rng, mean=0).astype(dtype_of(dtype))
    inputs = {"x": x, "normalized_shape": shape[-1:], **_exact_parameters(shape[-1:], dtype, rng)}
    del inputs["bias"]
    return inputs


def _row_reference(centred: bool) -> Callable[[Inputs], tuple[Array, ...]]:
    def run(inputs: Inputs) -> tuple[Array, ...]:
        normalized = len(inputs["normalized_shape"])
        eps = inputs.get("eps", 1e-5)
        return reference.layer_norm(inputs["x"], normalized, inputs["weight"], inputs.get("bias"), eps=eps, centred=centred)[:1]

    return run


# ---------------------------------------------------------------- local response, Lp, mean_var


def _window_inputs(shape: Shape, layout: str, dtype: str, rng: np.random.Generator) -> Inputs:
    return {"x": _data(shape, layout, dtype, rng, 0, 1), "size": 5, "alpha": 0.1, "beta": 0.75, "k": 2.0, "layout": layout}


def _window_arguments(inputs: Inputs) -> tuple[Any, ...]:
    return tuple(inputs[name] for name in ("size", "alpha", "beta", "k"))


def _window_reference(inputs: Inputs) -> tuple[Array, ...]:
    return (reference.local_response_norm(inputs["x"], *_window_arguments(inputs), channel=_channel(inputs)),)


def _normalize_inputs(shape: Shape, layout: str, dtype: str, rng: np.random.Generator) -> Inputs:
    return {"x": _data(shape, None, dtype, rng), "dim": len(shape) - 1}


def _normalize_reference(inputs: Inputs) -> tuple[Array, ...]:
    return (reference.normalize(inputs["x"], 2.0, (inputs["dim"],), 1e-12),)


def _mean_var_axes(layout: str, rank: int) -> Shape:
    channel = _axes(layout, rank).channel
    return tuple(axis for axis in range(rank) if axis != channel)


def _mean_var_inputs(shape: Shape, layout: str, dtype: str, rng: np.random.Generator) -> Inputs:
    return {"x": _data(shape, layout, dtype, rng), "axis": _mean_var_axes(layout, len(shape))}


def _mean_var_exact(shape: Shape, layout: str, dtype: str, rng: np.random.Generator) -> Inputs:
    x = _batch_norm_exact(True)(shape, layout, dtype, rng)["x"]
    return {"x": x, "axis": _mean_var_axes(layout, len(shape))}


def _mean_var_reference(inputs: Inputs) -> tuple[Array, ...]:
    n, mean, m2 = reference.moments(inputs["x"], inputs["axis"])
    return mean.squeeze(inputs["axis"]), m2.squeeze(inputs["axis"]) / n


def _mean_var_torch(inputs: Inputs) -> Callable[[], Any]:
    import torch

    x = _tensor(inputs["x"])
    return lambda: torch.var_mean(x, dim=inputs["axis"], correction=0)[::-1]


# ---------------------------------------------------------------- gradients


def _gradient_inputs(forward: Make, function: Callable[..., Any], drop: tuple[str, ...]) -> Make:
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


def _batch_gradient_reference(inputs: Inputs) -> tuple[Array, ...]:
    grad, x, mean, rstd, weight = (inputs[name] for name in ("grad", "x", "mean", "rstd", "weight"))
    return reference.batch_norm_backward(grad, x, mean, rstd, weight, training=True, channel=_channel(inputs))


def _group_gradient_reference(inputs: Inputs) -> tuple[Array, ...]:
    axes = _axes(inputs["layout"], inputs["x"].ndim)
    grad, x, mean, rstd, weight = (inputs[name] for name in ("grad", "x", "mean", "rstd", "weight"))
    groups = inputs.get("num_groups", x.shape[axes.channel])
    return reference.group_norm_backward(grad, x, groups, mean, rstd, weight, batch=axes.batch, channel=axes.channel)


def _row_gradient_reference(inputs: Inputs) -> tuple[Array, ...]:
    grad, x, rstd, weight = (inputs[name] for name in ("grad", "x", "rstd", "weight"))
    mean = inputs.get("mean")
    results = reference.layer_norm_backward(grad, x, len(inputs["normalized_shape"]), mean, rstd, weight)
    return results if mean is not None else results[:2]


def _window_gradient_reference(inputs: Inputs) -> tuple[Array, ...]:
    arguments = _window_arguments(inputs)
    return (reference.local_response_norm_backward(inputs["grad"], inputs["x"], *arguments, channel=_channel(inputs)),)


def _normalize_gradient_reference(inputs: Inputs) -> tuple[Array, ...]:
    return (reference.normalize_backward(inputs["grad"], inputs["x"], 2.0, (inputs["dim"],), 1e-12),)


def _without(*names: str, **more: Any) -> Callable[[Inputs], Inputs]:
    """The forward call that belongs to a backward one."""

    def forward(inputs: Inputs) -> Inputs:
        return {name: value for name, value in inputs.items() if name not in ("grad", "x", "mean", "rstd", *names)} | more

    return forward


_ROWS = (
    Operation(
        "batch_norm inference",
        functional.batch_norm,
        _batch_norm_inputs(False),
        _batch_norm_reference,
        _torch("batch_norm"),
        reads=1,
        writes=1,
        exact_inputs=_batch_norm_exact(False),
    ),
    Operation(
        "batch_norm training",
        functional.batch_norm,
        _batch_norm_inputs(True),
        _batch_norm_reference,
        _torch("batch_norm"),
        reads=2,
        writes=1,
        exact_inputs=_batch_norm_exact(True),
        updates=("running_mean", "running_var"),
    ),
    Operation(
        "instance_norm",
        functional.instance_norm,
        _instance_norm_inputs,
        _group_norm_reference,
        _torch("instance_norm"),
        least_rank=3,
        reads=1,
        writes=1,
        exact_inputs=_instance_norm_exact,
    ),
    Operation(
        "group_norm",
        functional.group_norm,
        _group_norm_inputs,
        _group_norm_reference,
        _torch("group_norm"),
        reads=1,
        writes=1,
        exact_inputs=_group_norm_exact,
    ),
    Operation(
        "layer_norm",
        functional.layer_norm,
        _layer_norm_inputs,
        _row_reference(True),
        _torch("layer_norm"),
        reads=1,
        writes=1,
        exact_inputs=_layer_norm_exact,
        layouts=False,
    ),
    Operation(
        "rms_norm",
        functional.rms_norm,
        _rms_norm_inputs,
        _row_reference(False),
        _torch("rms_norm"),
        reads=1,
        writes=1,
        exact_inputs=_rms_norm_exact,
        layouts=False,
    ),
    Operation(
        "local_response_norm",
        functional.local_response_norm,
        _window_inputs,
        _window_reference,
        _torch("local_response_norm"),
        least_rank=3,
        reads=1,
        writes=1,
    ),
    Operation(
        "normalize", functional.normalize, _normalize_inputs, _normalize_reference, _torch("normalize"), reads=1, writes=1, layouts=False
    ),
    Operation(
        "mean_var",
        functional.mean_var,
        _mean_var_inputs,
        _mean_var_reference,
        _mean_var_torch,
        reads=1,
        writes=0,
        exact_inputs=_mean_var_exact,
        takes_out=False,
    ),
    Operation(
        "batch_norm_backward",
        functional.batch_norm_backward,
        _gradient_inputs(_batch_norm_inputs(True), functional.batch_norm, ("running_mean", "running_var", "bias", "training")),
        _batch_gradient_reference,
        _torch_gradient("batch_norm", _without(running_mean=None, running_var=None, training=True)),
        reads=4,
        writes=1,
        data="grad",
    ),
    Operation(
        "instance_norm_backward",
        functional.instance_norm_backward,
        _gradient_inputs(_instance_norm_inputs, functional.instance_norm, ("bias",)),
        _group_gradient_reference,
        _torch_gradient("instance_norm", _without()),
        least_rank=3,
        reads=2,
        writes=1,
        data="grad",
    ),
    Operation(
        "group_norm_backward",
        functional.group_norm_backward,
        _gradient_inputs(_group_norm_inputs, functional.group_norm, ("bias",)),
        _group_gradient_reference,
        _torch_gradient("group_norm", _without()),
        reads=2,
        writes=1,
        data="grad",
    ),
    Operation(
        "layer_norm_backward",
        functional.layer_norm_backward,
        _gradient_inputs(_layer_norm_inputs, functional.layer_norm, ("bias",)),
        _row_gradient_reference,
        _torch_gradient("layer_norm", _without()),
        reads=2,
        writes=1,
        layouts=False,
        data="grad",
    ),
    Operation(
        "rms_norm_backward",
        functional.rms_norm_backward,
        _gradient_inputs(_rms_norm_inputs, functional.rms_norm, ("eps",)),
        _row_gradient_reference,
        _torch_gradient("rms_norm", _without(eps=1e-6)),
        reads=2,
        writes=1,
        layouts=False,
        data="grad",
    ),
    Operation(
        "local_response_norm_backward",
        functional.local_response_norm_backward,
        _gradient_inputs(_window_inputs, functional.local_response_norm, ()),
        _window_gradient_reference,
        _torch_gradient("local_response_norm", _without()),
        least_rank=3,
        reads=2,
        writes=1,
        data="grad",
    ),
    Operation(
        "normalize_backward",
        functional.normalize_backward,
        _gradient_inputs(_normalize_inputs, functional.normalize, ()),
        _normalize_gradient_reference,
        _torch_gradient("normalize", _without()),
        reads=2,
        writes=1,
        layouts=False,
        data="grad",
    ),
)

OPERATIONS = {row.name: row for row in _ROWS}
