"""Between tensors and arrays: one memory, seen by both. What a call may run on, and how."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from functools import cache, wraps
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.autograd import forward_ad

from cpunorm import backends, check, settings

Array = np.ndarray[Any, Any]

PLAIN = (Tensor, torch.nn.Parameter)


def array(call: str, name: str, tensor: Tensor | None) -> Any:
    """The tensor's memory as an array of its shape and strides; bfloat16 as ml_dtypes'. TypeError for what is no CPU tensor."""
    if tensor is None:
        return None
    try:
        if tensor.dtype is torch.bfloat16:
            return tensor.detach().view(torch.uint16).numpy().view(_bfloat16())  # type: ignore[no-any-return]
        return tensor.detach().numpy()  # type: ignore[no-any-return]
    except (AttributeError, TypeError, RuntimeError) as problem:
        if not isinstance(tensor, Tensor):
            found = f"{type(tensor).__name__}; cpunorm.{call} takes arrays"
        else:
            found = f"one of {tensor.dtype}, {tensor.layout}, on {tensor.device} ({problem})"
        raise TypeError(f"{call}: expected {name} to be a dense CPU tensor, got {found}") from problem


def tensor(value: Array) -> Tensor:
    """The array's memory as a tensor."""
    if value.dtype.name == "bfloat16":
        return torch.from_numpy(value.view(np.uint16)).view(torch.bfloat16)
    return torch.from_numpy(value)


@cache
def _bfloat16() -> np.dtype[Any]:
    try:
        import ml_dtypes
    except ImportError as problem:
        raise ImportError(f"bfloat16 tensors need ml_dtypes ({problem}); pip install 'cpunorm[bf16]'") from problem
    return np.dtype(ml_dtypes.bfloat16)  # type: ignore[no-any-return]


def backend(asked: str | None) -> str:
    """Of a call that asked for `asked`: what was configured, or else C.

    The C kernels run on PyTorch's own threads (libgomp's), take addresses of tensors (`cpunorm.torch.straight`), and import no Numba.
    """
    return asked or settings.resolve_backend(None) or _preferred()


@cache
def _preferred() -> str:
    try:
        backends.load("c")
    except ImportError:
        return backends.default()
    return "c"


# Found here once: an attribute of a module as large as torch is a search in memory, in the middle of a network.
_is_compiling, _is_tracing, _is_grad_enabled = torch.compiler.is_compiling, torch._C._is_tracing, torch.is_grad_enabled
_modes, _increment_version = torch._C._len_torch_dispatch_stack, torch.autograd.graph.increment_version


def eager(x: Any) -> bool:
    """Whether x is a tensor with memory and nobody records the call: then kernels are called at once, else by `cpunorm.torch.operators`.

    A custom operator takes 100 us and more to get to its kernel, a `torch.autograd.Function` 10.
    """
    if _is_compiling():
        return False
    if type(x) not in PLAIN:
        return not isinstance(x, Tensor)  # to be refused at once
    return not (_modes() or _is_tracing())


def differentiates(*tensors: Tensor | None) -> bool:
    """Whether autograd wants to know of a call with these."""
    if forward_ad._current_level >= 0:
        return True  # to be refused by `torch.autograd.Function`, which knows no derivative of ours forward
    if _is_grad_enabled():
        for tensor in tensors:
            if tensor is not None and isinstance(tensor, Tensor) and tensor.requires_grad:
                return True
    return False


def once(backward: Callable[..., tuple[Tensor | None, ...]]) -> Callable[..., tuple[Tensor | None, ...]]:
    """A backward pass whose results cannot be differentiated."""

    @wraps(backward)
    def wrapper(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        if not torch.is_grad_enabled():  # no create_graph=True
            return backward(ctx, *grads)
        with torch.no_grad():
            results = backward(ctx, *grads)
        return twice(results)

    return wrapper


def twice(results: tuple[Tensor | None, ...]) -> tuple[Tensor | None, ...]:
    """Gradients that look differentiable: who does differentiate them meets a RuntimeError.

    (``torch.autograd.function.once_differentiable`` raises only where the incoming gradient requires grad; that of a sum does not, and the
    second derivative would be taken for zero.)
    """
    found = [value.detach().requires_grad_() for value in results if value is not None]
    refusing = iter(_Twice.apply(*found))
    return tuple(None if value is None else next(refusing) for value in results)


class _Twice(torch.autograd.Function):
    """What it is given, and an error backward."""

    @staticmethod
    def forward(ctx: Any, *values: Tensor) -> tuple[Tensor, ...]:
        """The same."""
        return tuple(value.view_as(value) for value in values)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        """Refused."""
        raise RuntimeError("cpunorm.torch: second derivatives are not supported; the norm's gradient cannot be differentiated")


def refuse_out(call: str, out: Tensor | None, *tensors: Tensor | None) -> None:
    """As PyTorch."""
    if out is not None and differentiates(*tensors, out):
        raise RuntimeError(f"{call}: out= does not support automatic differentiation, but one of the arguments requires grad")


def refuse_grad(call: str, *tensors: Tensor | None) -> None:
    """Of a call without a derivative."""
    if differentiates(*tensors):
        check.fail(RuntimeError, call, "has no derivative of its own, but one of the arguments requires grad; pass .detach()")


def tracked(*changed: Tensor | None) -> None:
    """Tell autograd that these have changed."""
    for value in changed:
        if value is not None and not value.is_inference():
            _increment_version(value)


def in_order(x: Tensor) -> Tensor:
    """x with its axes in memory in their own order, as rows have to be; copied by PyTorch where they are not."""
    if x.is_contiguous():
        return x
    steps = [step for step, size in zip(x.stride(), x.shape, strict=True) if size > 1]
    return x if all(a >= b for a, b in itertools.pairwise(steps)) and steps[-1:] == [1] else x.contiguous()


def alike(value: Tensor, x: Tensor) -> Tensor:
    """`value` in x's memory order; copied by PyTorch where it has another (an expanded gradient, or one of the other memory format)."""
    if value.stride() == x.stride() or value.shape != x.shape:
        return value  # (of another shape: to be refused)
    if x.is_contiguous():
        return value.contiguous()
    return torch.empty_like(x, dtype=value.dtype).copy_(value)


def wide(dtype: torch.dtype) -> torch.dtype:
    """The dtype of statistics beside data of this one."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def through(activation: str | None, grad: Tensor, y: Tensor | None) -> Tensor:
    """`grad` times the derivative of a clip, found from its result y: what was at a bound or beyond it lies there now."""
    match activation:
        case None:
            return grad
        case "relu":
            return _RELU_BACKWARD(grad, y, 0)  # type: ignore[no-any-return]
        case "relu6":
            return _RELU6_BACKWARD(grad, y, 0, 6)  # type: ignore[no-any-return]
    raise RuntimeError(f"the gradient of {activation} is that of the value before it, which is not kept; apply it afterwards")


_RELU_BACKWARD, _RELU6_BACKWARD = torch.ops.aten.threshold_backward.default, torch.ops.aten.hardtanh_backward.default
CLIPS = (None, "relu", "relu6")  # activations whose gradient is known from their result


def activate(activation: str | None, y: Tensor) -> Tensor:
    """By PyTorch."""
    return y if activation is None else getattr(torch.nn.functional, activation)(y)


def split(call: str, activation: str | None, *tensors: Tensor | None) -> tuple[str | None, str | None]:
    """What the kernel applies and what PyTorch applies after it: an activation whose gradient needs the value before it."""
    check.activation(call, activation)
    return (None, activation) if activation not in CLIPS and differentiates(*tensors) else (activation, None)
