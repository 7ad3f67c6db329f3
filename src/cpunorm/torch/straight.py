"""The straight way from tensors to a C kernel: a call is prepared once, and run on the addresses of its tensors.

Between two layers of a network the caches hold a convolution's data, and every Python object that a call touches comes from memory: the way
by arrays (`norms.Norm`), 20 us in a loop, takes 250 to 350 there. This way makes no array, no view and no dictionary.

`forward` and `backward` return None for what they do not take: data with gaps, parameters of another dtype, no C kernels, whatever is
wrong. The call then goes by arrays, where it is copied or refused. Only what lies in another memory order is copied by PyTorch first. Both
ways run the same programs: the bits are the same.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import cache, partial
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from cpunorm import channels, rows, settings
from cpunorm.call import Prepared, Request
from cpunorm.dispatch import Runner
from cpunorm.torch.arrays import PLAIN, alike, array, backend, in_order, wide

if TYPE_CHECKING:
    from cpunorm.torch.norms import Norm


class Call(NamedTuple):
    """A program and what it takes besides addresses; what its tensors have to be that is not in its key."""

    program: int
    threads: int
    scratch: int
    ones: int  # addresses of the weight and the bias of a call without
    zeros: int
    kind: torch.dtype  # of parameters and statistics
    shape: tuple[int, ...]  # of parameters
    stats: tuple[int, ...]  # the shape of statistics
    data_bits: int  # that the address of an element of x does not have,
    kind_bits: int  # and that of a parameter
    runner: Runner  # keeps the memory of all this


_calls: dict[Any, Call | None] = {}
_MOST = 4096
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_calls.clear)  # as what `cpunorm.call` has prepared
settings.when_limits_change.append(_calls.clear)


def forward(
    norm: Norm,
    x: Tensor,
    residual: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    stats: bool,
    total: bool,
) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor | None] | None:
    """y, and mean, rstd and the sum as far as they are asked for."""
    if type(x) not in PLAIN or not x.is_cpu:
        return None
    if norm.by_row:
        x = in_order(x)
    given = residual is None, weight is None, bias is None, running_mean is None, running_var is None
    try:
        x_at = x.data_ptr()
        key = (norm, x.shape, x.stride(), x.dtype, given, settings.current())
        call = _calls[key]
    except KeyError:
        call = _remember(key, _prepare, norm, x, residual, weight, bias, running_mean, running_var)
    except RuntimeError:  # no memory or no strides of its own: another layout, a transform's tensor
        return None
    if call is None:
        return None
    data, residual_at, weight_at, bias_at, mean_at, var_at = x_at, 0, call.ones, call.zeros, 0, 0
    if residual is not None:
        residual, residual_at = _data(residual, x)
        data |= residual_at
    if weight is not None:
        weight_at = _parameter(weight, call)
    if bias is not None:
        bias_at = _parameter(bias, call)
    if running_mean is not None and running_var is not None:
        mean_at, var_at = _parameter(running_mean, call), _parameter(running_var, call)
    if not x_at or data & call.data_bits or (weight_at | bias_at | mean_at | var_at) & call.kind_bits:
        return None
    y = torch.empty_like(x)
    mean = x.new_empty(call.stats, dtype=call.kind) if stats and norm.centred else None
    rstd = x.new_empty(call.stats, dtype=call.kind) if stats else None
    summed = torch.empty_like(x) if total else None
    done = _run()(
        call.program,
        call.threads,
        call.scratch,
        x_at,
        residual_at,
        y.data_ptr(),
        0 if summed is None else summed.data_ptr(),
        weight_at,
        bias_at,
        mean_at,
        var_at,
        0 if mean is None else mean.data_ptr(),
        0 if rstd is None else rstd.data_ptr(),
        0,
        0,
    )
    if not done:
        raise MemoryError(f"{norm.name}: no memory for {8 * call.scratch} bytes of tables")
    return y, mean, rstd, summed


def backward(
    norm: Norm, grad: Tensor, x: Tensor, mean: Tensor | None, rstd: Tensor, weight: Tensor | None, in_place: bool
) -> tuple[Tensor, Tensor, Tensor | None] | None:
    """grad_x, grad_weight and, but for RMS norm, grad_bias; with `in_place` grad_x is where `grad` was."""
    if type(x) not in PLAIN or not x.is_cpu:
        return None
    if norm.by_row:
        x = in_order(x)
    try:
        x_at = x.data_ptr()
        key = (norm, in_place, x.shape, x.stride(), x.dtype, weight is None, settings.current())
        call = _calls[key]
    except KeyError:
        call = _remember(key, _prepare_gradient, norm, x, mean, rstd, weight, in_place)
    except RuntimeError:
        return None
    if call is None:
        return None
    g, grad_at = _data(grad, x)
    rstd_at, mean_at = _statistic(rstd, call), 0
    weight_at = 0 if weight is None else _parameter(weight, call)
    if mean is not None:
        mean_at = _statistic(mean, call)
    if not x_at or (x_at | grad_at) & call.data_bits or (weight_at | mean_at | rstd_at) & call.kind_bits or (in_place and g is not grad):
        return None
    grad_x = grad if in_place else torch.empty_like(x)
    grad_weight = x.new_empty(call.shape, dtype=call.kind)
    grad_bias = x.new_empty(call.shape, dtype=call.kind) if norm.centred else None
    done = _run()(
        call.program,
        call.threads,
        call.scratch,
        grad_at,
        x_at,
        grad_x.data_ptr(),
        0,
        weight_at or call.ones,
        call.zeros,
        0,
        0,
        mean_at,
        rstd_at,
        grad_weight.data_ptr(),
        0 if grad_bias is None else grad_bias.data_ptr(),
    )
    if not done:
        raise MemoryError(f"{norm.name}_backward: no memory for {8 * call.scratch} bytes of tables")
    return grad_x, grad_weight, grad_bias


def _data(value: Tensor, x: Tensor) -> tuple[Tensor, int]:
    """What has to be as x, copied by PyTorch where it lies in another order, and its address: 1, which is none, if it is not as x."""
    if type(value) not in PLAIN or value.dtype is not x.dtype or value.shape != x.shape or not value.is_cpu:
        return value, 1
    if value.stride() != x.stride():
        value = alike(value, x)
        if value.stride() != x.stride() and not (value.is_contiguous() and x.is_contiguous()):  # (axes of length 1 have any)
            return value, 1
    return value, value.data_ptr()


def _parameter(value: Tensor, call: Call) -> int:
    if type(value) in PLAIN and value.dtype is call.kind and value.shape == call.shape and value.is_cpu and value.is_contiguous():
        return value.data_ptr()
    return 1


def _statistic(value: Tensor, call: Call) -> int:
    if type(value) in PLAIN and value.dtype is call.kind and value.shape == call.stats and value.is_cpu and value.is_contiguous():
        return value.data_ptr()
    return 1


@cache
def _run() -> Any:
    from cpunorm._native import lib

    return lib.cpunorm_run_at


# ---------------------------------------------------------------- preparing


def _remember(key: Any, prepare: Callable[..., Call | None], *given: Any) -> Call | None:
    try:
        call = prepare(*given)
    except (TypeError, ValueError, ImportError):
        return None  # to be refused
    if len(_calls) >= _MOST:
        _calls.clear()
    _calls[key] = call
    return call


_PREPARE: dict[str, tuple[Callable[..., Prepared], Callable[..., Prepared]]] = {  # forward and backward
    "batch_norm": (channels._prepare_batch_norm, channels._prepare_batch_gradient),
    "instance_norm": (channels._prepare_instance_norm, channels._prepare_instance_gradient),
    "group_norm": (channels._prepare_group_norm, channels._prepare_group_gradient),
    "layer_norm": (partial(rows._prepare_rows, centred=True), partial(rows._prepare_row_gradient, centred=True)),
    "rms_norm": (partial(rows._prepare_rows, centred=False), partial(rows._prepare_row_gradient, centred=False)),
}


# What is prepared is the call of tensors as the kernels take them: what comes with this x once is not what comes the next time.


def _prepare(norm: Norm, x: Tensor, residual: Tensor | None, *parameters: Tensor | None) -> Call | None:
    name, seen, y = norm.name, array(norm.name, "x", x), array(norm.name, "y", torch.empty_like(x))
    added = None if residual is None else seen
    weight, bias, running_mean, running_var = (_like(value, x) for value in parameters)
    given = weight, bias, running_mean, running_var, None, None
    request = Request(name, seen, added, seen, *given, y, False, norm.activation, backend(norm.backend), norm.threads)
    prepared = _PREPARE[norm.name][0](request, **norm.options)
    shape = next((tuple(value.shape) for value in parameters if value is not None), ())
    return _call(prepared, x, backend(norm.backend), shape, prepared.stats or ())


def _prepare_gradient(norm: Norm, x: Tensor, mean: Tensor | None, rstd: Tensor, weight: Tensor | None, in_place: bool) -> Call | None:
    name = f"{norm.name}_backward"
    seen, g, apart = (array(name, "x", value) for value in (x, torch.empty_like(x), torch.empty_like(x)))
    w, m, r = (_like(value, x) for value in (weight, mean, rstd))
    out = g if in_place else apart
    request = Request(name, g, seen, seen, w, None, None, None, m, r, out, in_place, None, backend(norm.backend), norm.threads)
    prepared = _PREPARE[norm.name][1](request, **norm.gradient_options)
    return _call(prepared, x, backend(norm.backend), prepared.parameters, tuple(rstd.shape))


def _like(parameter: Tensor | None, x: Tensor) -> Any:
    """An array of the parameter's shape as kernels read it beside x."""
    if parameter is None:
        return None
    return np.ones(tuple(parameter.shape), np.float64 if wide(x.dtype) is torch.float64 else np.float32)


def _call(prepared: Prepared, x: Tensor, name: str, shape: tuple[int, ...], stats: tuple[int, ...]) -> Call | None:
    """What has no gaps and needs no copies; the rest goes by arrays."""
    runner, kind = prepared.run, wide(x.dtype)
    if name != "c" or type(runner) is not Runner or torch.empty_like(x).stride() != x.stride():
        return None
    return Call(*runner.addressed(), kind, shape, stats, x.dtype.itemsize - 1, kind.itemsize - 1, runner)
