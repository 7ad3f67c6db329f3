"""The five norms as autograd sees them: one call forward, one backward, on the memory of tensors."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache, wraps
from typing import Any

import torch
from torch import Tensor

from cpunorm import check, functional
from cpunorm.torch import straight
from cpunorm.torch.arrays import alike, array, backend, in_order, tensor, through, twice

BY_ROW = ("layer_norm", "rms_norm")  # residual before the statistics, result in the axes' own order
_BATCH = ("batch_norm", "instance_norm")
Results = tuple[Tensor, Tensor | None, Tensor | None, Tensor | None]


class Norm:
    """A call but for its tensors: a function of `cpunorm.functional`, its keywords, and those of its gradient.

    `bare` is the same without activation.
    """

    __slots__ = ("activation", "backend", "bare", "by_row", "centred", "gradient_options", "name", "options", "threads")

    def __init__(
        self,
        name: str,
        options: dict[str, Any],
        gradient_options: dict[str, Any],
        activation: str | None,
        backend: str | None,
        threads: int | None,
    ) -> None:
        self.name, self.options, self.gradient_options = name, options, gradient_options
        self.activation, self.backend, self.threads = activation, backend, threads
        self.by_row, self.centred = name in BY_ROW, name != "rms_norm"
        self.bare: Norm = self if activation is None else Norm(name, options, gradient_options, None, backend, threads)

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
    ) -> Results:
        """y, and mean, rstd and the sum as far as they are asked for."""
        if out is None:
            found = straight.forward(self, x, residual, weight, bias, running_mean, running_var, stats, total)
            if found is not None:
                return found
        name = self.name
        given = self.options | {"activation": self.activation, "return_stats": stats}
        given |= {"backend": backend(self.backend), "threads": self.threads}
        given["weight"] = array(name, "weight", weight)
        seen = array(name, "x", x)
        if self.by_row:
            x = in_order(x)
            y = torch.empty(x.shape, dtype=x.dtype) if out is None else out
            seen, given["return_sum"] = array(name, "x", x), total
            residual = residual if residual is None else in_order(residual)
        else:
            y = torch.empty_like(x) if out is None else out
            residual = residual if residual is None else alike(residual, x)
        if residual is not None:
            given["residual"] = array(name, "residual", residual)
        if self.centred:
            given["bias"] = array(name, "bias", bias)
        if name in _BATCH:
            given["running_mean"] = array(name, "running_mean", running_mean)
            given["running_var"] = array(name, "running_var", running_var)
        result = getattr(functional, name)(seen, out=array(name, "out", y), **given)
        if not (stats or total):
            return y, None, None, None
        rest = [tensor(value) for value in result[1:]]
        mean = rest.pop(0) if stats and self.centred else None
        rstd = rest.pop(0) if stats else None
        return y, mean, rstd, rest.pop(0) if total else None

    def backward(
        self, grad: Tensor, x: Tensor, mean: Tensor | None, rstd: Tensor, weight: Tensor | None, out: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """grad_x, grad_weight and, but for RMS norm, grad_bias. `out` may be `grad` itself."""
        if out is None or out is grad:
            found = straight.backward(self, grad, x, mean, rstd, weight, out is grad)
            if found is not None:
                return found
        name = f"{self.name}_backward"
        if self.by_row:
            x, grad = in_order(x), in_order(grad)
            grad_x = torch.empty(x.shape, dtype=x.dtype) if out is None else out
        else:
            grad = alike(grad, x)
            grad_x = torch.empty_like(x) if out is None else out
        given = self.gradient_options | {"backend": backend(self.backend), "threads": self.threads, "rstd": array(name, "rstd", rstd)}
        if self.centred:
            given["mean"] = array(name, "mean", mean)
        seen = {"grad": array(name, "grad", grad), "x": array(name, "x", x), "weight": array(name, "weight", weight)}
        _, grad_weight, *rest = getattr(functional, name)(**seen, out=array(name, "out", grad_x), **given)
        return grad_x, tensor(grad_weight), tensor(rest[0]) if rest else None


def _once(make: Callable[..., Norm]) -> Callable[..., Norm]:
    """One object for the same options (1 and True are not the same): prepared calls are found by it."""
    kept = lru_cache(1024, typed=True)(make)

    @wraps(make)
    def found(*options: Any) -> Norm:
        try:
            return kept(*options)
        except TypeError:  # an option that cannot be hashed, and will be refused
            return make(*options)

    return found


@_once
def batch_norm(
    training: bool, momentum: float, eps: float, layout: str, activation: str | None, backend: str | None, threads: int | None
) -> Norm:
    """Batch norm with these options."""
    options = {"training": training, "momentum": momentum, "eps": eps, "layout": layout}
    return Norm("batch_norm", options, {"training": training, "layout": layout}, activation, backend, threads)


@_once
def instance_norm(
    use_input_stats: bool, momentum: float, eps: float, layout: str, activation: str | None, backend: str | None, threads: int | None
) -> Norm:
    """Instance norm with these options."""
    gradient = {"use_input_stats": use_input_stats, "layout": layout}
    return Norm("instance_norm", gradient | {"momentum": momentum, "eps": eps}, gradient, activation, backend, threads)


@_once
def group_norm(num_groups: int, eps: float, layout: str, activation: str | None, backend: str | None, threads: int | None) -> Norm:
    """Group norm with these options."""
    gradient = {"num_groups": num_groups, "layout": layout}
    return Norm("group_norm", gradient | {"eps": eps}, gradient, activation, backend, threads)


@_once
def row_norm(name: str, normalized_shape: Any, eps: float | None, activation: str | None, backend: str | None, threads: int | None) -> Norm:
    """Layer or RMS norm with these options."""
    gradient = {"normalized_shape": normalized_shape}
    return Norm(name, gradient | {"eps": eps}, gradient, activation, backend, threads)


def rule(name: str, *given: Any) -> Norm:
    """The norm of which only the gradient is wanted: `given` are its options, backend and threads."""
    if name in BY_ROW:
        shape, *how = given
        return row_norm(name, tuple(shape), 1e-5, None, *how)
    first, layout, *how = given
    if name == "group_norm":
        return group_norm(first, 1e-5, layout, None, *how)
    return (batch_norm if name == "batch_norm" else instance_norm)(first, 0.1, 1e-5, layout, None, *how)


class Differentiable(torch.autograd.Function):
    """A norm with its gradient. Second derivatives are refused."""

    @staticmethod
    def forward(
        ctx: Any,
        norm: Norm,
        stats: bool,
        total: bool,
        running: tuple[Tensor | None, Tensor | None],
        x: Tensor,
        residual: Tensor | None,
        weight: Tensor | None,
        bias: Tensor | None,
    ) -> Any:
        """y; with `stats` or `total` (y, mean, rstd, sum), None for what is not asked for."""
        by_row = norm.by_row and residual is not None
        y, mean, rstd, summed = norm.forward(x, residual, weight, bias, *running, stats=True, total=by_row)
        h = x if summed is None else summed
        ctx.norm, ctx.by_row = norm, by_row
        ctx.save_for_backward(h, weight, y if norm.activation else None, mean, rstd)
        ctx.set_materialize_grads(False)
        if not (stats or total):
            return y
        given = (mean, rstd) if stats else (None, None)
        ctx.mark_non_differentiable(*(value for value in given if value is not None))
        return y, *given, h if total else None

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None, *others: Tensor | None) -> tuple[Tensor | None, ...]:
        """Of x, residual, weight and bias."""
        if torch.is_grad_enabled():  # create_graph=True
            with torch.no_grad():
                results = Differentiable.backward(ctx, grad, *others)
            return twice(results)
        x, weight, y, mean, rstd = ctx.saved_tensors
        norm, by_row = ctx.norm, ctx.by_row
        _, _, _, _, _, add, weighted, biased = ctx.needs_input_grad
        grad_sum = others[-1] if others else None
        if grad is None:  # nobody asked for y's, only for the sum's
            return None, None, None, None, grad_sum, grad_sum if add else None, None, None
        g = grad if norm.activation is None else through(norm.activation, grad, y)
        # the gradient before the activation is nobody else's, but where it is the residual's too
        own = g is not grad and (by_row or not add)
        grad_x, grad_weight, grad_bias = norm.backward(g, x, mean, rstd, weight, g if own else None)
        if grad_sum is not None:
            grad_x = grad_x.add_(grad_sum)
        grad_residual = None if not add else grad_x if by_row else g
        return None, None, None, None, grad_x, grad_residual, grad_weight if weighted else None, grad_bias if biased else None


def sizes(given: int | list[int] | tuple[int, ...]) -> tuple[Any, ...]:
    """A normalized_shape or a dim, of which there may be one."""
    return tuple(given) if isinstance(given, (list, tuple)) else (given,)


def checked_sum(call: str, residual: Tensor | None, return_sum: bool) -> None:
    """A sum has two summands."""
    if return_sum and residual is None:
        check.fail(ValueError, call, "return_sum expects a residual to sum with; got None")
