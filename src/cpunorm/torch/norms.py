"""The five norms as autograd sees them: one call forward, one backward, on the memory of tensors."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from cpunorm import check, functional
from cpunorm.torch.arrays import Array, alike, array, backend, in_order, once, tensor, through

BY_ROW = ("layer_norm", "rms_norm")  # residual before the statistics, result in the axes' own order
_BATCH = ("batch_norm", "instance_norm")


class Norm(NamedTuple):
    """A call but for its tensors: a function of `cpunorm.functional`, its keywords, and those of its gradient."""

    name: str
    options: dict[str, Any]
    gradient_options: dict[str, Any]
    activation: str | None
    backend: str | None
    threads: int | None

    def forward(
        self,
        x: Tensor,
        residual: Tensor | None,
        weight: Tensor | None,
        bias: Tensor | None,
        running_mean: Tensor | None,
        running_var: Tensor | None,
        *,
        out: Tensor | None = None,
        stats: bool = False,
        total: bool = False,
    ) -> tuple[Tensor, Array | None, Array | None, Array | None]:
        """y, and mean, rstd and the sum as far as they are asked for."""
        name = self.name
        given = self.options | {"activation": self.activation, "return_stats": stats}
        given |= {"backend": backend(self.backend), "threads": self.threads}
        given["weight"] = array(name, "weight", weight)
        seen = array(name, "x", x)
        if name in BY_ROW:
            x = in_order(x)
            y = torch.empty(x.shape, dtype=x.dtype) if out is None else out
            seen, given["return_sum"] = array(name, "x", x), total
            residual = residual if residual is None else in_order(residual)
        else:
            y = torch.empty_like(x) if out is None else out
            residual = residual if residual is None else alike(residual, x)
        if residual is not None:
            given["residual"] = array(name, "residual", residual)
        if name != "rms_norm":
            given["bias"] = array(name, "bias", bias)
        if name in _BATCH:
            given["running_mean"] = array(name, "running_mean", running_mean)
            given["running_var"] = array(name, "running_var", running_var)
        result = getattr(functional, name)(seen, out=array(name, "out", y), **given)
        if not (stats or total):
            return y, None, None, None
        rest = list(result[1:])
        mean = rest.pop(0) if stats and name != "rms_norm" else None
        rstd = rest.pop(0) if stats else None
        return y, mean, rstd, rest.pop(0) if total else None

    def backward(
        self, grad: Tensor, x: Tensor, mean: Array | None, rstd: Array, weight: Tensor | None, out: Tensor | None = None
    ) -> tuple[Tensor, Array, Array | None]:
        """grad_x, grad_weight and, but for RMS norm, grad_bias."""
        name = f"{self.name}_backward"
        if self.name in BY_ROW:
            x, grad = in_order(x), in_order(grad)
            grad_x = torch.empty(x.shape, dtype=x.dtype) if out is None else out
        else:
            grad = alike(grad, x)
            grad_x = torch.empty_like(x) if out is None else out
        given = self.gradient_options | {"backend": backend(self.backend), "threads": self.threads}
        if self.name != "rms_norm":
            given["mean"] = mean
        seen = {"grad": array(name, "grad", grad), "x": array(name, "x", x), "weight": array(name, "weight", weight)}
        _, grad_weight, *rest = getattr(functional, name)(**seen, rstd=rstd, out=array(name, "out", grad_x), **given)
        return grad_x, grad_weight, rest[0] if rest else None


def batch_norm(
    training: bool, momentum: float, eps: float, layout: str, activation: str | None, backend: str | None, threads: int | None
) -> Norm:
    """Batch norm with these options."""
    options = {"training": training, "momentum": momentum, "eps": eps, "layout": layout}
    return Norm("batch_norm", options, {"training": training, "layout": layout}, activation, backend, threads)


def instance_norm(
    use_input_stats: bool, momentum: float, eps: float, layout: str, activation: str | None, backend: str | None, threads: int | None
) -> Norm:
    """Instance norm with these options."""
    gradient = {"use_input_stats": use_input_stats, "layout": layout}
    return Norm("instance_norm", gradient | {"momentum": momentum, "eps": eps}, gradient, activation, backend, threads)


def group_norm(num_groups: int, eps: float, layout: str, activation: str | None, backend: str | None, threads: int | None) -> Norm:
    """Group norm with these options."""
    gradient = {"num_groups": num_groups, "layout": layout}
    return Norm("group_norm", gradient | {"eps": eps}, gradient, activation, backend, threads)


def row_norm(name: str, normalized_shape: Any, eps: float | None, activation: str | None, backend: str | None, threads: int | None) -> Norm:
    """Layer or RMS norm with these options."""
    gradient = {"normalized_shape": tuple(normalized_shape) if isinstance(normalized_shape, (list, tuple)) else normalized_shape}
    return Norm(name, gradient | {"eps": eps}, gradient, activation, backend, threads)


class Differentiable(torch.autograd.Function):
    """A norm with its gradient. Second derivatives are refused."""

    @staticmethod
    def forward(ctx: Any, norm: Norm, stats: bool, total: bool, x: Tensor, residual: Tensor | None, *parameters: Tensor | None) -> Any:
        """(y, mean, rstd, sum); None for what is not asked for."""
        by_row = norm.name in BY_ROW and residual is not None
        y, mean, rstd, summed = norm.forward(x, residual, *parameters, stats=True, total=by_row)
        h = x if summed is None else tensor(summed)
        ctx.norm, ctx.statistics, ctx.by_row = norm, (mean, rstd), by_row
        ctx.save_for_backward(h, parameters[0], y if norm.activation else None)
        ctx.set_materialize_grads(False)
        given = [tensor(value) if stats and value is not None else None for value in (mean, rstd)]
        ctx.mark_non_differentiable(*(value for value in given if value is not None))
        return y, *given, h if total else None

    @staticmethod
    @once
    def backward(ctx: Any, grad: Tensor | None, _mean: None, _rstd: None, grad_sum: Tensor | None) -> tuple[Tensor | None, ...]:
        """Of x, residual, weight and bias."""
        x, weight, y = ctx.saved_tensors
        mean, rstd = ctx.statistics
        grad_x, grad_residual, grad_weight, grad_bias = gradients(ctx.norm, grad, grad_sum, x, mean, rstd, weight, y, ctx.by_row)
        needs = ctx.needs_input_grad[3:7]
        wanted = (grad_x, grad_residual, grad_weight, grad_bias)
        return None, None, None, *(value if need else None for value, need in zip(wanted, needs, strict=True)), None, None


def gradients(
    norm: Norm,
    grad: Tensor | None,
    grad_sum: Tensor | None,
    x: Tensor,
    mean: Array | None,
    rstd: Array,
    weight: Tensor | None,
    y: Tensor | None,
    by_row: bool,
) -> tuple[Tensor | None, ...]:
    """Of x, residual, weight and bias; `by_row`: x is the sum with the residual, whose gradient is the same."""
    if grad is None:  # nobody asked for y's, only for the sum's
        return grad_sum, grad_sum, None, None
    grad = through(norm.activation, grad, y)
    grad_x, grad_weight, grad_bias = norm.backward(grad, x, mean, rstd, weight)
    if grad_sum is not None:
        grad_x = grad_x.add_(grad_sum)
    return grad_x, grad_x if by_row else grad, tensor(grad_weight), None if grad_bias is None else tensor(grad_bias)


def tracked(*running: Tensor | None) -> None:
    """Tell autograd that running statistics have changed."""
    for value in running:
        if value is not None and not value.is_inference():
            torch.autograd.graph.increment_version(value)


def checked_sum(call: str, residual: Tensor | None, return_sum: bool) -> None:
    """A sum has two summands."""
    if return_sum and residual is None:
        check.fail(ValueError, call, "return_sum expects a residual to sum with; got None")
