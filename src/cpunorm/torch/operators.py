"""The same calls as operators of ``torch.library`` (``torch.ops.cpunorm``): what `torch.compile`, `torch.export` and FakeTensor record.

Operators with a gradient may not change what they are given. So those of batch and instance norm return the batch's mean and unbiased
variance too, which ``cpunorm::update_running`` brings into the running statistics.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from cpunorm import check
from cpunorm.torch import norms, plain
from cpunorm.torch.arrays import CLIPS, through, wide
from cpunorm.torch.norms import BY_ROW, Norm

_HOW = "str? backend, int? threads"
_WHERE = "str layout, str? activation, " + _HOW


class Operator(NamedTuple):
    """A norm's name, tensors and other arguments (as a schema), the `Norm` that the latter make, and which of them the gradient takes."""

    name: str
    tensors: tuple[str, ...]
    arguments: str
    make: Callable[..., Norm]
    gradient: tuple[int, ...]

    @property
    def tracks(self) -> bool:
        """Whether there may be running statistics."""
        return "running_mean" in self.tensors

    @property
    def centred(self) -> bool:
        """Whether there is a mean."""
        return self.name != "rms_norm"


_AFFINE = ("x", "residual", "weight", "bias")
_RUNNING = ("running_mean", "running_var")
OPERATORS = (
    Operator(
        "batch_norm",
        _AFFINE + _RUNNING,
        f"bool training, float eps, {_WHERE}",
        lambda training, *rest: norms.batch_norm(training, 1.0, *rest),
        (0, 2),
    ),
    Operator(
        "instance_norm",
        _AFFINE + _RUNNING,
        f"bool use_input_stats, float eps, {_WHERE}",
        lambda own, *rest: norms.instance_norm(own, 1.0, *rest),
        (0, 2),
    ),
    Operator("group_norm", _AFFINE, f"int num_groups, float eps, {_WHERE}", norms.group_norm, (0, 2)),
    Operator(
        "layer_norm",
        _AFFINE,
        f"SymInt[] normalized_shape, float eps, str? activation, {_HOW}",
        lambda shape, *rest: norms.row_norm("layer_norm", tuple(shape), *rest),
        (0,),
    ),
    Operator(
        "rms_norm",
        _AFFINE[:3],
        f"SymInt[] normalized_shape, float? eps, str? activation, {_HOW}",
        lambda shape, *rest: norms.row_norm("rms_norm", tuple(shape), *rest),
        (0,),
    ),
)


def _schema(arguments: str, results: int) -> str:
    return f"({arguments}) -> " + ("Tensor" if results == 1 else f"({', '.join(['Tensor'] * results)})")


def _define(op: Operator) -> None:
    """The operator, its gradient's, and what autograd and FakeTensor have to know of both."""
    count, centred = len(op.tensors), op.centred
    by_row = op.name in BY_ROW

    def unpack(given: tuple[Any, ...]) -> tuple[list[Tensor | None], tuple[Any, ...]]:
        named = dict(zip(op.tensors, given, strict=False))
        return [named.get(name) for name in _AFFINE + _RUNNING], given[count:]

    def forward(*given: Any) -> tuple[Tensor, ...]:
        """y, (mean,) rstd; then the batch's mean and variance, or the sum."""
        (x, residual, weight, bias, *running), rest = unpack(given)
        assert x is not None
        updates = op.tracks and bool(rest[0])
        if updates:
            channels = x.shape[check.axes(op.name, rest[2], tuple(x.shape)).channel]
            running = [torch.zeros(channels, dtype=wide(x.dtype)), torch.ones(channels, dtype=wide(x.dtype))]
        total = by_row and residual is not None
        y, mean, rstd, summed = op.make(*rest).forward(x, residual, weight, bias, *running, stats=True, total=total)
        results = [y, *(value for value in (mean, rstd) if value is not None)]
        if op.tracks:
            results += running if updates else [x.new_empty(0, dtype=wide(x.dtype)) for _ in running]  # type: ignore[misc]
        if by_row:
            results.append(x.new_empty(0) if summed is None else summed)
        return tuple(results)

    def forward_shapes(*given: Any) -> tuple[Tensor, ...]:
        (x, residual, *_), rest = unpack(given)
        assert x is not None
        kind = wide(x.dtype)
        if by_row:
            leading = x.ndim - len(rest[0])
            stats = [x.new_empty([*x.shape[:leading], *[1] * len(rest[0])], dtype=kind) for _ in range(1 + centred)]
            total = x.new_empty(0) if residual is None else x.new_empty(x.shape)
            return x.new_empty(x.shape), *stats, total
        axes = check.axes(op.name, rest[2], tuple(x.shape))
        samples, channels = x.shape[axes.batch], x.shape[axes.channel]
        shape = [channels]
        if op.name == "group_norm" or (op.name == "instance_norm" and rest[0]):
            shape = [samples, rest[0] if op.name == "group_norm" else channels]
        stats = [x.new_empty(shape, dtype=kind) for _ in range(2)]
        if op.tracks:
            stats += [x.new_empty([channels] if rest[0] else [0], dtype=kind) for _ in range(2)]
        return torch.empty_like(x), *stats

    def keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        (x, residual, weight, bias, *_), rest = unpack(inputs)
        activation, *ctx.how = rest[-3:]
        if activation not in CLIPS:
            through(activation, output[0], None)  # refuses
        mean, rstd = (output[1], output[2]) if centred else (None, output[1])
        ctx.activation, ctx.arguments = activation, [rest[i] for i in op.gradient]
        ctx.parameters = (residual is not None, weight is not None, bias is not None)
        ctx.summed = by_row and residual is not None
        ctx.save_for_backward(output[-1] if ctx.summed else x, mean, rstd, weight, output[0] if activation else None)
        ctx.set_materialize_grads(False)

    def backward(ctx: Any, grad: Tensor | None, *others: Tensor | None) -> tuple[Tensor | None, ...]:
        x, mean, rstd, weight, y = ctx.saved_tensors
        grad_sum = others[-1] if ctx.summed else None
        residual, weighted, biased = ctx.parameters
        none = (None,) * (len(_RUNNING) * op.tracks + op.arguments.count(",") + 1)
        if grad is None:
            found: list[Tensor | None] = [grad_sum, grad_sum if residual else None, None, None]
        else:
            grad = through(ctx.activation, grad, y)
            stats = (mean, rstd) if centred else (rstd,)
            gradient = getattr(torch.ops.cpunorm, f"{op.name}_backward")
            grad_x, *rest = gradient(grad, x, *stats, weight, *ctx.arguments, *ctx.how)
            if grad_sum is not None:
                grad_x = grad_x + grad_sum
            found = [grad_x, (grad_x if ctx.summed else grad) if residual else None, rest[0] if weighted else None]
            found.append(rest[1] if biased else None)
        return *found[: min(count, 4)], *none

    names = ", ".join(f"Tensor{'?' * (name != 'x')} {name}" for name in op.tensors)
    defined = torch.library.custom_op(
        f"cpunorm::{op.name}", forward, mutates_args=(), schema=_schema(f"{names}, {op.arguments}", 2 + centred + 2 * op.tracks + by_row)
    )
    defined.register_fake(forward_shapes)
    defined.register_autograd(backward, setup_context=keep)
    _define_gradient(op)


def _define_gradient(op: Operator) -> None:
    centred = op.centred
    arguments = [op.arguments.split(", ")[i] for i in op.gradient]

    def gradient(grad: Tensor, x: Tensor, *given: Any) -> tuple[Tensor, ...]:
        mean, rstd, weight, *rest = given if centred else (None, *given)
        grad_x, *parts = norms.rule(op.name, *rest).backward(grad, x, mean, rstd, weight)
        return grad_x, *(part for part in parts if part is not None)

    def shapes(grad: Tensor, x: Tensor, *given: Any) -> tuple[Tensor, ...]:
        weight, first = given[1 + centred : 3 + centred]
        if op.name in BY_ROW:
            shape = list(first)
        else:
            layout = given[3 + centred]
            shape = [x.shape[check.axes(op.name, layout, tuple(x.shape)).channel]]
        kind = wide(x.dtype) if weight is None else weight.dtype
        grad_x = x.new_empty(x.shape) if op.name in BY_ROW else torch.empty_like(x)
        return grad_x, *(x.new_empty(shape, dtype=kind) for _ in range(1 + centred))

    stats = "Tensor mean, Tensor rstd" if centred else "Tensor rstd"
    schema = f"Tensor grad, Tensor x, {stats}, Tensor? weight, {', '.join(arguments)}, {_HOW}"
    defined = torch.library.custom_op(f"cpunorm::{op.name}_backward", gradient, mutates_args=(), schema=_schema(schema, 2 + centred))
    defined.register_fake(shapes)


def _define_plain(name: str, arguments: str) -> None:
    """`local_response_norm` and `normalize`: x alone, and its gradient."""

    def forward(x: Tensor, *given: Any) -> Tensor:
        return plain.forward(name, x, *given)

    def gradient(grad: Tensor, x: Tensor, *given: Any) -> Tensor:
        return plain.backward(name, grad, x, *given)

    def keep(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        x, *ctx.given = inputs
        ctx.save_for_backward(x)

    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        given = ctx.given
        return getattr(torch.ops.cpunorm, f"{name}_backward")(grad, *ctx.saved_tensors, *given), *[None] * len(given)

    defined = torch.library.custom_op(f"cpunorm::{name}", forward, mutates_args=(), schema=_schema(f"Tensor x, {arguments}", 1))
    defined.register_fake(lambda x, *_: torch.empty_like(x))
    defined.register_autograd(backward, setup_context=keep)
    schema = _schema(f"Tensor grad, Tensor x, {arguments}", 1)
    defined = torch.library.custom_op(f"cpunorm::{name}_backward", gradient, mutates_args=(), schema=schema)
    defined.register_fake(lambda grad, x, *_: torch.empty_like(x))


def _define_mean_var() -> None:
    def shapes(x: Tensor, axis: list[int], ddof: float, keepdims: bool, *_: Any) -> tuple[Tensor, Tensor]:
        axes = {one % x.ndim for one in axis}
        shape = [1 if a in axes else size for a, size in enumerate(x.shape) if keepdims or a not in axes]
        return x.new_empty(shape, dtype=torch.float64), x.new_empty(shape, dtype=torch.float64)

    def keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        x, ctx.axis, ctx.ddof, ctx.keepdims, *_ = inputs
        ctx.save_for_backward(x, output[0])

    def backward(ctx: Any, grad_mean: Tensor, grad_var: Tensor) -> tuple[Tensor | None, ...]:
        x, mean = ctx.saved_tensors
        return plain.mean_var_gradient(grad_mean, grad_var, x, mean, ctx.axis, ctx.ddof, ctx.keepdims), *[None] * 5

    schema = _schema(f"Tensor x, int[] axis, float ddof, bool keepdims, {_HOW}", 2)
    defined = torch.library.custom_op("cpunorm::mean_var", plain.mean_var, mutates_args=(), schema=schema)
    defined.register_fake(shapes)
    defined.register_autograd(backward, setup_context=keep)


@torch.library.custom_op("cpunorm::update_running", mutates_args=("running_mean", "running_var"))
def update_running(running_mean: Tensor, running_var: Tensor, mean: Tensor, var: Tensor, momentum: float) -> None:
    """``running = (1 - momentum) * running + momentum * new``, in place."""
    for running, new in ((running_mean, mean), (running_var, var)):
        running.copy_(running.double() * (1 - momentum) + new.double() * momentum)


@update_running.register_fake
def _(running_mean: Tensor, running_var: Tensor, mean: Tensor, var: Tensor, momentum: float) -> None:
    return None


for _op in OPERATORS:
    _define(_op)
_define_plain("local_response_norm", f"int size, float alpha, float beta, float k, str layout, {_HOW}")
_define_plain("normalize", f"float p, int[] dim, float eps, {_HOW}")
_define_mean_var()
