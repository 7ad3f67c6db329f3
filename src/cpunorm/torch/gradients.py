"""The gradients of `cpunorm.functional` on CPU tensors, for those who write their own backward pass; autograd needs none of these."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from cpunorm.layout import CHANNELS_FIRST
from cpunorm.torch import norms, plain
from cpunorm.torch.arrays import eager, refuse_grad, tracked


def batch_norm_backward(
    grad: Tensor,
    x: Tensor,
    mean: Tensor,
    rstd: Tensor,
    weight: Tensor | None = None,
    *,
    training: bool = True,
    layout: str = CHANNELS_FIRST,
    out: Tensor | None = None,
    backend: str | None = None,
    threads: int | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """`cpunorm.batch_norm_backward` of tensors."""
    return _gradient("batch_norm", grad, x, mean, rstd, weight, (training, layout), out, backend, threads)


def instance_norm_backward(
    grad: Tensor,
    x: Tensor,
    mean: Tensor,
    rstd: Tensor,
    weight: Tensor | None = None,
    *,
    use_input_stats: bool = True,
    layout: str = CHANNELS_FIRST,
    out: Tensor | None = None,
    backend: str | None = None,
    threads: int | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """`cpunorm.instance_norm_backward` of tensors."""
    return _gradient("instance_norm", grad, x, mean, rstd, weight, (use_input_stats, layout), out, backend, threads)


def group_norm_backward(
    grad: Tensor,
    x: Tensor,
    num_groups: int,
    mean: Tensor,
    rstd: Tensor,
    weight: Tensor | None = None,
    *,
    layout: str = CHANNELS_FIRST,
    out: Tensor | None = None,
    backend: str | None = None,
    threads: int | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """`cpunorm.group_norm_backward` of tensors."""
    return _gradient("group_norm", grad, x, mean, rstd, weight, (num_groups, layout), out, backend, threads)


def layer_norm_backward(
    grad: Tensor,
    x: Tensor,
    normalized_shape: int | list[int] | tuple[int, ...],
    mean: Tensor,
    rstd: Tensor,
    weight: Tensor | None = None,
    *,
    out: Tensor | None = None,
    backend: str | None = None,
    threads: int | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """`cpunorm.layer_norm_backward` of tensors."""
    return _gradient("layer_norm", grad, x, mean, rstd, weight, (norms.sizes(normalized_shape),), out, backend, threads)


def rms_norm_backward(
    grad: Tensor,
    x: Tensor,
    normalized_shape: int | list[int] | tuple[int, ...],
    rstd: Tensor,
    weight: Tensor | None = None,
    *,
    out: Tensor | None = None,
    backend: str | None = None,
    threads: int | None = None,
) -> tuple[Tensor, Tensor]:
    """`cpunorm.rms_norm_backward` of tensors."""
    return _gradient("rms_norm", grad, x, None, rstd, weight, (norms.sizes(normalized_shape),), out, backend, threads)


def local_response_norm_backward(
    grad: Tensor,
    x: Tensor,
    size: int,
    alpha: float = 1e-4,
    beta: float = 0.75,
    k: float = 1.0,
    *,
    layout: str = CHANNELS_FIRST,
    out: Tensor | None = None,
    backend: str | None = None,
    threads: int | None = None,
) -> Tensor:
    """`cpunorm.local_response_norm_backward` of tensors."""
    return _plain("local_response_norm", grad, x, out, size, alpha, beta, k, layout, backend, threads)


def normalize_backward(
    grad: Tensor,
    x: Tensor,
    p: float = 2.0,
    dim: int | tuple[int, ...] = 1,
    eps: float = 1e-12,
    *,
    out: Tensor | None = None,
    backend: str | None = None,
    threads: int | None = None,
) -> Tensor:
    """`cpunorm.normalize_backward` of tensors."""
    return _plain("normalize", grad, x, out, p, norms.sizes(dim), eps, backend, threads)


def _gradient(
    name: str,
    grad: Tensor,
    x: Tensor,
    mean: Tensor | None,
    rstd: Tensor,
    weight: Tensor | None,
    options: tuple[Any, ...],
    out: Tensor | None,
    backend: str | None,
    threads: int | None,
) -> Any:
    call = f"{name}_backward"
    refuse_grad(call, grad, x, mean, rstd, weight, out)
    if not eager(grad):
        stats = (rstd,) if mean is None else (mean, rstd)
        grad_x, *parts = getattr(torch.ops.cpunorm, call)(grad, x, *stats, weight, *options, backend, threads)
        return grad_x if out is None else out.copy_(grad_x), *parts
    grad_x, *parts = norms.rule(name, *options, backend, threads).backward(grad, x, mean, rstd, weight, out)
    if out is not None:
        tracked(out)
    return grad_x, *(part for part in parts if part is not None)


def _plain(name: str, grad: Tensor, x: Tensor, out: Tensor | None, *given: Any) -> Tensor:
    call = f"{name}_backward"
    refuse_grad(call, grad, x, out)
    if eager(grad):
        return plain.backward(name, grad, x, *given, out=out)
    grad_x = getattr(torch.ops.cpunorm, call)(grad, x, *given)
    return grad_x if out is None else out.copy_(grad_x)
