"""`cpunorm.fold_batch_norm` on tensors, with its gradients. Always called as an operator: no call of it is in the middle of a network."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from cpunorm import check, folding
from cpunorm.torch.arrays import alike, array, tensor

_NAMES = ("weight", "bias", "running_mean", "running_var", "gamma", "beta")


def fold_batch_norm(
    weight: Tensor,
    bias: Tensor | None,
    running_mean: Tensor,
    running_var: Tensor,
    gamma: Tensor | None,
    beta: Tensor | None,
    eps: float = 1e-5,
    *,
    transposed: bool = False,
) -> tuple[Tensor, Tensor]:
    """`cpunorm.fold_batch_norm` of tensors; weight is in the given one's memory format. Gradients of all six, as often as is wanted."""
    given = (weight, bias, running_mean, running_var, gamma, beta)
    for name, value in zip(_NAMES, given, strict=True):
        if not isinstance(value, Tensor) and (value is not None or name in ("weight", "running_mean", "running_var")):
            check.fail(TypeError, "fold_batch_norm", f"expected {name} to be a tensor, got {type(value).__name__}")
    return torch.ops.cpunorm.fold_batch_norm(*given, eps, transposed)  # type: ignore[no-any-return]


def _forward(*given: Any) -> tuple[Tensor, Tensor]:
    *tensors, eps, transposed = given
    arrays = {name: array("fold_batch_norm", name, value) for name, value in zip(_NAMES, tensors, strict=True)}
    weight, bias = folding.fold_batch_norm(**arrays, eps=eps, transposed=transposed)
    return alike(tensor(weight), tensors[0]), tensor(bias)


def _shapes(weight: Tensor, bias: Tensor | None, running_mean: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    return torch.empty_like(weight), running_mean.new_empty(running_mean.shape, dtype=(weight if bias is None else bias).dtype)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    *tensors, ctx.eps, ctx.transposed = inputs
    ctx.save_for_backward(*tensors)


def _backward(ctx: Any, grad_weight: Tensor, grad_bias: Tensor) -> tuple[Tensor | None, ...]:
    """With ``r = 1 / sqrt(running_var + eps)`` and ``s = gamma * r``: weight' = weight * s, bias' = (bias - running_mean) * s + beta."""
    given = ctx.saved_tensors
    weight, mean, var = (given[i].double() for i in (0, 2, 3))
    bias, gamma = (None if given[i] is None else given[i].double() for i in (1, 4))
    g, h = grad_weight.double(), grad_bias.double()
    r = (var + ctx.eps).rsqrt()
    s = r if gamma is None else gamma * r
    by_weight, trailing = g * weight, weight.dim() - 2
    if ctx.transposed:  # (groups, in / groups, out / groups, kernel ...)
        groups = len(s) // weight.shape[1]
        inputs = weight.shape[0] // groups
        spread = s.view(groups, 1, -1).expand(-1, inputs, -1).reshape(*weight.shape[:2], *[1] * trailing)
        grad_s = by_weight.flatten(1).view(groups, inputs, weight.shape[1], -1).sum((1, 3)).flatten()
    else:
        spread, grad_s = s.view(-1, *[1] * (trailing + 1)), by_weight.flatten(1).sum(1)
    grad_s = grad_s + h * ((0 if bias is None else bias) - mean)
    grads = g * spread, h * s, -h * s, -0.5 * grad_s * s * r * r, grad_s * r, h
    return *(None if value is None else grad.to(value.dtype) for grad, value in zip(grads, given, strict=True)), None, None


_SCHEMA = (
    "(Tensor weight, Tensor? bias, Tensor running_mean, Tensor running_var, Tensor? gamma, Tensor? beta, float eps, bool transposed)"
    " -> (Tensor, Tensor)"
)
_operator = torch.library.custom_op("cpunorm::fold_batch_norm", _forward, mutates_args=(), schema=_SCHEMA)
_operator.register_fake(_shapes)
_operator.register_autograd(_backward, setup_context=_keep)
