"""What all layers share."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar, NamedTuple, Self, TypedDict

import numpy as np

from cpunorm import check, dispatch
from cpunorm import layout as layouts
from cpunorm.layout import CHANNELS_FIRST

Array = np.ndarray[Any, Any]


class Keys(NamedTuple):
    """What `Layer.load_state_dict` did not find, and what it did not know."""

    missing_keys: list[str]
    unexpected_keys: list[str]


class Options(TypedDict, total=False):
    """The keywords that PyTorch's layers do not have, and dtype."""

    dtype: Any
    layout: str
    activation: str | None
    backend: str | None


class Forward(NamedTuple):
    """What backward needs of the last call. `batch_axis` is the axis that an input without samples was given."""

    x: Array
    before_activation: Callable[[], Array]
    backward: Callable[[Array], Any]  # grad_x, or (grad_x, grad_weight, grad_bias)
    batch_axis: int | None = None


class Layer:
    """What all layers share: parameters, running statistics, modes, state and gradients.

    Attributes
    ----------
    weight, bias, running_mean, running_var, num_batches_tracked : array, or None where the layer has none
        Change them in place, or put arrays of the same shape and dtype there.
    grads : dict of arrays
        ``"weight"`` and ``"bias"``, as far as they exist: the sums of the gradients since the start or `zero_grad`.
    training : bool
        What `train` and `eval` set.
    """

    _STATE: ClassVar = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")  # in PyTorch's order
    _ARGUMENTS: ClassVar[tuple[str, ...]] = ()  # of the constructor, shown by repr

    weight: Array | None = None
    bias: Array | None = None
    running_mean: Array | None = None
    running_var: Array | None = None
    num_batches_tracked: Array | None = None

    def __init__(
        self,
        shape: tuple[int, ...] = (),
        *,
        weight: bool = False,
        bias: bool = False,
        dtype: Any = np.float32,
        layout: str = CHANNELS_FIRST,
        activation: str | None = None,
        backend: str | None = None,
    ) -> None:
        self._name = type(self).__name__
        try:
            self._dtype = np.dtype(dtype)
        except TypeError as problem:
            raise TypeError(f"{self._name}: expected dtype to be a NumPy dtype, got {dtype!r}") from problem
        check.float_dtype(self._name, "parameters", self._dtype)
        check.activation(self._name, activation)
        check.backend(self._name, backend)
        if not layouts.is_layout(layout):
            check.fail(ValueError, self._name, f"expected layout to be a string such as 'NCHW' or 'channels_last', got {layout!r}")
        self.layout, self.activation, self.backend = layout, activation, backend
        self.training = True
        self.weight = np.ones(shape, self._dtype) if weight else None
        self.bias = np.zeros(shape, self._dtype) if bias else None
        self.grads = {name: np.zeros(shape, self._dtype) for name, there in (("weight", weight), ("bias", bias)) if there}
        self._last: Forward | None = None

    def train(self, mode: bool = True) -> Self:
        """Training mode, or with False inference; returns the layer."""
        self.training = bool(mode)
        return self

    def eval(self) -> Self:
        """Inference mode; returns the layer."""
        return self.train(False)

    def zero_grad(self) -> None:
        """Start the sums in `grads` anew."""
        for grad in self.grads.values():
            grad[...] = 0

    def __call__(self, x: Any) -> Array:
        """y, of x's shape and dtype."""
        x = check.array(self._name, "x", x)
        y, self._last = self._forward(x)
        return y

    def backward(self, grad: Any) -> Array:
        """The gradient of the last call's x, from that of its result; both have x's shape and dtype. Adds to `grads`."""
        call = f"{self._name}.backward"
        if self._last is None:
            check.fail(ValueError, call, "expected a call of the layer before it; got none since it was made, copied or unpickled")
        x, before_activation, backward, axis = self._last
        grad = check.array(call, "grad", grad)
        check.like(call, "grad", grad, x if axis is None else x.squeeze(axis))
        if axis is not None:
            grad = np.expand_dims(grad, axis)
        if self.activation is not None:
            grad = _through(self.activation, grad, before_activation())
        result = backward(grad)
        grad_x: Array
        grad_x, *parts = result if isinstance(result, tuple) else (result,)
        for name, part in zip(("weight", "bias"), parts, strict=False):
            if name in self.grads:
                self.grads[name] += part
        return grad_x if axis is None else grad_x.squeeze(axis)

    def state_dict(self) -> dict[str, Array]:
        """Parameters and running statistics by PyTorch's names: the layer's own arrays, as PyTorch gives its own; copy what shall stay."""
        return {name: value for name in self._STATE if (value := getattr(self, name)) is not None}

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True) -> Keys:
        """Copy arrays or tensors into the layer, rounded to its dtype; with `strict` all keys have to fit.

        As in PyTorch a ``num_batches_tracked`` that is missing stays as it is, unless the state says that it is of a version that has it.
        """
        call = f"{self._name}.load_state_dict"
        own = self.state_dict()
        given = {name: check.array(call, name, value) for name, value in state_dict.items() if name in own}
        keys = Keys([name for name in own if name not in given], [name for name in state_dict if name not in own])
        metadata = getattr(state_dict, "_metadata", None) or {}
        if "num_batches_tracked" in keys.missing_keys and (metadata.get("", {}).get("version") or 0) < 2:
            keys.missing_keys.remove("num_batches_tracked")
        if strict and any(keys):
            check.fail(ValueError, call, f"expected the keys {list(own)}; missing {keys.missing_keys}, unexpected {keys.unexpected_keys}")
        for name, value in given.items():
            if value.shape != own[name].shape:
                check.fail(ValueError, call, f"expected {name} of shape {own[name].shape}, got {value.shape}")
            if value.dtype.kind not in "biuf" and value.dtype.name != "bfloat16":
                check.fail(TypeError, call, f"expected {name} of a real dtype, got {value.dtype}")
            check.writeable(call, **{name: own[name]})
        with np.errstate(all="ignore"):
            for name, value in given.items():
                own[name][...] = value
        return keys

    def __getstate__(self) -> dict[str, Any]:
        """Without the last call's x."""
        return {**self.__dict__, "_last": None}

    def __repr__(self) -> str:
        """As the constructor was called."""
        return f"{self._name}({', '.join(f'{name}={getattr(self, name)!r}' for name in self._ARGUMENTS)})"

    def _forward(self, x: Array) -> tuple[Array, Forward]:
        raise NotImplementedError

    def _sizes(self, name: str, sizes: Any) -> tuple[int, ...]:
        """Whole numbers, none negative."""
        found = tuple(sizes) if isinstance(sizes, (list, tuple)) else (sizes,)
        for size in found:
            if isinstance(size, bool) or not isinstance(size, (int, np.integer)):
                check.fail(TypeError, self._name, f"expected {name} to be of whole numbers, got {sizes!r}")
            if size < 0:
                check.fail(ValueError, self._name, f"expected {name} not to be negative, got {sizes!r}")
        return tuple(int(size) for size in found)


def _through(activation: str, grad: Array, z: Array) -> Array:
    """`grad` times the activation's derivative at z, in `grad`'s dtype; at the corners and for NaN as PyTorch."""
    compute = np.dtype(dispatch.compute_dtype(grad.dtype))
    z, g = z.astype(compute, copy=False), grad.astype(compute, copy=False)
    with np.errstate(all="ignore"):
        match activation:
            case "relu":
                result = np.where(z <= 0, compute.type(0), g)
            case "relu6":
                result = np.where((z > 0) & (z < 6), g, compute.type(0))
            case "silu":
                sigmoid = 1 / (1 + np.exp(-z))
                result = g * (sigmoid * (1 + z * (1 - sigmoid)))
            case "hardswish":
                result = np.where(z <= -3, compute.type(0), np.where(z >= 3, g, g * (z / 3 + compute.type(0.5))))
        return np.asarray(result.astype(grad.dtype, copy=False))
