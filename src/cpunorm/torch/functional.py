"""The functions of `cpunorm` on CPU tensors. Names, order and defaults are those of ``torch.nn.functional``; see `cpunorm.functional`.

What differs from the functions on arrays:

* tensors are read and written where they are; the result is allocated by PyTorch, in x's memory format (that of layer and RMS norm is
  contiguous). A gradient of another memory format than x's is brought into x's by PyTorch;
* gradients are autograd's, once: a second derivative is a RuntimeError, and so is forward mode. mean and rstd of `return_stats` are not
  differentiable. relu and relu6 stay in the same pass where gradients are wanted; silu and hardswish, whose gradient is that of the value
  before them, are then PyTorch's;
* with `out` no argument may require grad (RuntimeError), as in PyTorch;
* without a configured backend it is C, where that is installed: it runs on the threads of PyTorch;
* `torch.compile`, `torch.export` and FakeTensor see operators, ``torch.ops.cpunorm``: no graph breaks.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from cpunorm import check
from cpunorm.layout import CHANNELS_FIRST
from cpunorm.torch import norms, operators, plain
from cpunorm.torch.arrays import CLIPS, activate, differentiates, eager, refuse_out, split, tracked
from cpunorm.torch.norms import BY_ROW, Norm, checked_sum, sizes

_OPS = torch.ops.cpunorm
assert operators.OPERATORS


def batch_norm(
    x: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
    *,
    layout: str = CHANNELS_FIRST,
    out: Tensor | None = None,
    activation: str | None = None,
    residual: Tensor | None = None,
    return_stats: bool = False,
    backend: str | None = None,
    threads: int | None = None,
) -> Any:
    """`cpunorm.batch_norm` of tensors; in training running statistics are changed in place."""
    given, running, rest = (x, residual, weight, bias), (running_mean, running_var), (eps, layout, activation, backend, threads)
    return _tracking("batch_norm", norms.batch_norm, training, momentum, rest, out, return_stats, given, running)


def instance_norm(
    x: Tensor,
    running_mean: Tensor | None = None,
    running_var: Tensor | None = None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    use_input_stats: bool = True,
    momentum: float = 0.1,
    eps: float = 1e-5,
    *,
    layout: str = CHANNELS_FIRST,
    out: Tensor | None = None,
    activation: str | None = None,
    residual: Tensor | None = None,
    return_stats: bool = False,
    backend: str | None = None,
    threads: int | None = None,
) -> Any:
    """`cpunorm.instance_norm` of tensors; with `use_input_stats` running statistics are changed in place."""
    given, running, rest = (x, residual, weight, bias), (running_mean, running_var), (eps, layout, activation, backend, threads)
    return _tracking("instance_norm", norms.instance_norm, use_input_stats, momentum, rest, out, return_stats, given, running)


def group_norm(
    x: Tensor,
    num_groups: int,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    *,
    layout: str = CHANNELS_FIRST,
    out: Tensor | None = None,
    activation: str | None = None,
    residual: Tensor | None = None,
    return_stats: bool = False,
    backend: str | None = None,
    threads: int | None = None,
) -> Any:
    """`cpunorm.group_norm` of tensors."""
    given = (x, residual, weight, bias)
    if eager(x):
        return _run(norms.group_norm(num_groups, eps, layout, activation, backend, threads), out, return_stats, False, given)
    fused, after = split("group_norm", activation, *given)
    results = _OPS.group_norm(*given, num_groups, eps, layout, fused, backend, threads)
    return _recorded("group_norm", results, out, after, return_stats, False, given)


def layer_norm(
    x: Tensor,
    normalized_shape: int | list[int] | tuple[int, ...],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    *,
    out: Tensor | None = None,
    activation: str | None = None,
    residual: Tensor | None = None,
    return_stats: bool = False,
    return_sum: bool = False,
    backend: str | None = None,
    threads: int | None = None,
) -> Any:
    """`cpunorm.layer_norm` of tensors; the result is contiguous."""
    rest = (sizes(normalized_shape), eps, activation, backend, threads)
    return _by_row("layer_norm", rest, out, return_stats, return_sum, (x, residual, weight, bias))


def rms_norm(
    x: Tensor,
    normalized_shape: int | list[int] | tuple[int, ...],
    weight: Tensor | None = None,
    eps: float | None = None,
    *,
    out: Tensor | None = None,
    activation: str | None = None,
    residual: Tensor | None = None,
    return_stats: bool = False,
    return_sum: bool = False,
    backend: str | None = None,
    threads: int | None = None,
) -> Any:
    """`cpunorm.rms_norm` of tensors; the result is contiguous."""
    rest = (sizes(normalized_shape), eps, activation, backend, threads)
    return _by_row("rms_norm", rest, out, return_stats, return_sum, (x, residual, weight, None))


def local_response_norm(
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
    """`cpunorm.local_response_norm` of tensors."""
    return _plain("local_response_norm", x, out, size, alpha, beta, k, layout, backend, threads)


def normalize(
    x: Tensor,
    p: float = 2.0,
    dim: int | tuple[int, ...] = 1,
    eps: float = 1e-12,
    *,
    out: Tensor | None = None,
    backend: str | None = None,
    threads: int | None = None,
) -> Tensor:
    """`cpunorm.normalize` of tensors."""
    return _plain("normalize", x, out, p, sizes(dim), eps, backend, threads)


def mean_var(
    x: Tensor,
    axis: int | tuple[int, ...] | None = None,
    *,
    ddof: float = 0,
    keepdims: bool = False,
    backend: str | None = None,
    threads: int | None = None,
) -> tuple[Tensor, Tensor]:
    """`cpunorm.mean_var` of a tensor: two of float64."""
    axes = tuple(range(x.ndim)) if axis is None else sizes(axis)
    given = (x, axes, ddof, keepdims, backend, threads)
    if not eager(x):
        return _OPS.mean_var(*given)  # type: ignore[no-any-return]
    return plain.MeanVar.apply(*given) if differentiates(x) else plain.mean_var(*given)  # type: ignore[no-any-return]


# ---------------------------------------------------------------- what they share


_Given = tuple[Tensor, Tensor | None, Tensor | None, Tensor | None]  # x, residual, weight, bias
_Pair = tuple[Tensor | None, Tensor | None]  # running mean and variance
_NONE: _Pair = (None, None)


def _tracking(
    name: str,
    make: Callable[..., Norm],
    own: bool,
    momentum: float,
    rest: tuple[Any, ...],
    out: Tensor | None,
    stats: bool,
    given: _Given,
    running: _Pair,
) -> Any:
    """Batch and instance norm: running statistics change where x's `own` normalize it."""
    if eager(given[0]):
        results = _run(make(own, momentum, *rest), out, stats, False, given, running)
        if own:
            tracked(*running)
        return results
    eps, layout, activation, *how = rest
    check.running(name, *running, needed=not own)
    fused, after = split(name, activation, *given)
    results = getattr(_OPS, name)(*given, *(_NONE if own else running), own, eps, layout, fused, *how)
    return _recorded(name, results, out, after, stats, False, given, running if own else _NONE, momentum)


def _by_row(name: str, rest: tuple[Any, ...], out: Tensor | None, stats: bool, total: bool, given: _Given) -> Any:
    """Layer and RMS norm."""
    checked_sum(name, given[1], total)
    if eager(given[0]):
        return _run(norms.row_norm(name, *rest), out, stats, total, given)
    shape, eps, activation, *how = rest
    fused, after = split(name, activation, *given)
    tensors = given if name == "layer_norm" else given[:3]
    return _recorded(name, getattr(_OPS, name)(*tensors, shape, eps, fused, *how), out, after, stats, total, given)


def _run(norm: Norm, out: Tensor | None, stats: bool, total: bool, given: _Given, running: _Pair = _NONE) -> Any:
    """At once: the kernel, or autograd's function of it."""
    x, residual, weight, bias = given
    if differentiates(*given):
        refuse_out(norm.name, out, *given)
        after = None
        if norm.activation not in CLIPS:
            check.activation(norm.name, norm.activation)
            norm, after = norm.bare, norm.activation
        results = norms.Differentiable.apply(norm, stats, total, running, x, residual, weight, bias)
        if not (stats or total):
            return activate(after, results)
        return _results(activate(after, results[0]), *results[1:])
    results = norm.forward(x, residual, weight, bias, *running, out=out, stats=stats, total=total)
    if out is not None:
        tracked(out)
    return _results(*results)


def _results(*values: Tensor | None) -> Any:
    found = tuple(value for value in values if value is not None)
    return found if len(found) > 1 else found[0]


def _recorded(
    name: str,
    results: tuple[Tensor, ...],
    out: Tensor | None,
    after: str | None,
    stats: bool,
    total: bool,
    given: _Given,
    running: _Pair = _NONE,
    momentum: float = 0.0,
) -> Any:
    """What an operator gave, as the function gives it."""
    y = activate(after, results[0])
    centred = name != "rms_norm"
    running_mean, running_var = running
    if running_mean is not None and given[0].numel():
        _OPS.update_running(running_mean, running_var, results[3].detach(), results[4].detach(), momentum)
    if out is not None:
        refuse_out(name, out, *given)
        y = _into(name, out, y)
    statistics = [value.detach() for value in results[1 : 2 + centred]] if stats else []
    return _results(y, *statistics, results[-1] if total and name in BY_ROW else None)


def _plain(name: str, x: Tensor, out: Tensor | None, *given: Any) -> Tensor:
    if not eager(x):
        y = getattr(_OPS, name)(x, *given)
        return y if out is None else _into(name, out, y)
    if differentiates(x):
        refuse_out(name, out, x)
        return plain.Differentiable.apply(name, x, *given)  # type: ignore[no-any-return]
    return plain.forward(name, x, *given, out=out)


def _into(name: str, out: Tensor, y: Tensor) -> Tensor:
    if out.shape != y.shape or out.dtype != y.dtype:
        check.fail(ValueError, name, f"expected out of shape {tuple(y.shape)} and {y.dtype}, got {tuple(out.shape)} and {out.dtype}")
    return out.copy_(y)
