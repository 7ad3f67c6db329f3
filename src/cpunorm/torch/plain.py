"""Functions of x alone, with their gradients: local response and Lp norm, mean and variance."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from cpunorm import functional
from cpunorm.torch.arrays import alike, array, backend, once, tracked


def forward(name: str, x: Tensor, *given: Any, out: Tensor | None = None) -> Tensor:
    """`given`: the function's arguments in turn, then backend and threads; dim as a tuple or list."""
    y = torch.empty_like(x) if out is None else out
    options = _named(name, given)
    getattr(functional, name)(array(name, "x", x), out=array(name, "out", y), **options)
    if out is not None:
        tracked(out)
    return y


def backward(name: str, grad: Tensor, x: Tensor, *given: Any, out: Tensor | None = None) -> Tensor:
    """The gradient of `forward`."""
    call = f"{name}_backward"
    grad_x = torch.empty_like(x) if out is None else out
    seen = array(call, "grad", alike(grad, x)), array(call, "x", x)
    getattr(functional, call)(*seen, out=array(call, "out", grad_x), **_named(name, given))
    if out is not None:
        tracked(out)
    return grad_x


_NAMES = {"local_response_norm": ("size", "alpha", "beta", "k", "layout"), "normalize": ("p", "dim", "eps")}


def _named(name: str, given: tuple[Any, ...]) -> dict[str, Any]:
    *values, asked, threads = given
    options = dict(zip(_NAMES[name], values, strict=True))
    if isinstance(options.get("dim"), list):
        options["dim"] = tuple(options["dim"])
    return options | {"backend": backend(asked), "threads": threads}


def mean_var(
    x: Tensor, axis: list[int] | tuple[int, ...], ddof: float, keepdims: bool, asked: str | None, threads: int | None
) -> tuple[Tensor, Tensor]:
    """`cpunorm.mean_var`."""
    seen = array("mean_var", "x", x)
    results = functional.mean_var(seen, tuple(axis), ddof=ddof, keepdims=keepdims, backend=backend(asked), threads=threads)
    mean, var = (torch.as_tensor(value, dtype=torch.float64) for value in results)
    return mean, var


def mean_var_gradient(
    grad_mean: Tensor, grad_var: Tensor, x: Tensor, mean: Tensor, axis: list[int] | tuple[int, ...], ddof: float, keepdims: bool
) -> Tensor:
    """``grad_mean / n + 2 * (x - mean) * grad_var / (n - ddof)``."""
    axes = sorted({one % x.ndim for one in axis})
    if not keepdims:
        for one in axes:
            grad_mean, grad_var, mean = (value.unsqueeze(one) for value in (grad_mean, grad_var, mean))
    count = math.prod(x.shape[one] for one in axes)
    return (grad_mean / count + (x - mean) * (grad_var * (2 / (count - ddof)))).to(x.dtype)


class Differentiable(torch.autograd.Function):
    """`forward` with its gradient. Second derivatives are refused."""

    @staticmethod
    def forward(ctx: Any, name: str, x: Tensor, *given: Any) -> Tensor:
        """y."""
        ctx.name, ctx.given = name, given
        ctx.save_for_backward(x)
        return forward(name, x, *given)

    @staticmethod
    @once
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """Of x."""
        return None, backward(ctx.name, grad, *ctx.saved_tensors, *ctx.given), *[None] * len(ctx.given)


class MeanVar(torch.autograd.Function):
    """`mean_var` with its gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, *given: Any) -> tuple[Tensor, Tensor]:
        """mean, var."""
        mean, var = mean_var(x, *given)
        ctx.given = given
        ctx.save_for_backward(x, mean)
        return mean, var

    @staticmethod
    @once
    def backward(ctx: Any, grad_mean: Tensor, grad_var: Tensor) -> tuple[Tensor | None, ...]:
        """Of x."""
        return mean_var_gradient(grad_mean, grad_var, *ctx.saved_tensors, *ctx.given[:3]), *[None] * len(ctx.given)
