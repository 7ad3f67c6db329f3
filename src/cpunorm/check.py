"""Every error of the public functions: what was expected, what came, in which call. Nothing is written before these have passed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from numbers import Real
from typing import Any, NoReturn

import numpy as np

from cpunorm import layout as layouts

Array = np.ndarray[Any, Any]

BACKENDS = ("numba", "c", "numpy")
FLOATS = ("float32", "float64")


def array(call: str, name: str, value: object) -> Array:
    """`value` as an ndarray that shares its memory; TypeError for what numpy.asarray would have to copy."""
    if isinstance(value, np.ndarray):
        return np.asarray(value)
    if getattr(value, "requires_grad", False):
        raise TypeError(f"{call}: {name} requires grad, which would be lost here; pass {name}.detach()")
    if not any(hasattr(value, protocol) for protocol in ("__array__", "__array_interface__", "__buffer__", "__dlpack__")):
        raise TypeError(f"{call}: expected {name} to be an array, got {type(value).__name__}")
    try:
        return np.asarray(value)
    except (TypeError, RuntimeError, ValueError, BufferError) as problem:
        raise TypeError(f"{call}: {name} ({type(value).__name__}) cannot be seen as a NumPy array: {problem}") from problem


def float_dtype(call: str, name: str, dtype: np.dtype[Any]) -> None:
    """The dtypes that norms take."""
    if dtype.name not in FLOATS:
        raise TypeError(f"{call}: expected {name} of dtype {' or '.join(FLOATS)}, got {dtype}")


def axes(call: str, layout: object, shape: tuple[int, ...]) -> layouts.Axes:
    """The batch and channel axes."""
    if not isinstance(layout, str):
        raise TypeError(f"{call}: expected layout to be a string such as 'NCHW', got {type(layout).__name__}")
    found = layouts.parse_layout(layout, len(shape))
    if found is not None:
        return found
    if not layouts.is_layout(layout):
        raise ValueError(
            f"{call}: expected layout to be 'channels_first', 'channels_last' or one letter an axis, N and C among them and none twice, "
            f"got {layout!r}"
        )
    wanted = "at least 2 axes (N and C)" if layout in (layouts.CHANNELS_FIRST, layouts.CHANNELS_LAST) else f"{len(layout)} axes"
    raise ValueError(f"{call}: layout {layout!r} expects {wanted}, got x of shape {shape}")


def parameter(call: str, name: str, value: Array | None, channels: int, x: Array, axis: int, *, written: bool = False) -> None:
    """One value a channel, of the computing dtype."""
    if value is None:
        return
    if value.shape != (channels,):
        raise ValueError(
            f"{call}: expected {name} of shape ({channels},), one value for each index of axis {axis} of x of shape {x.shape}, "
            f"got shape {value.shape}"
        )
    if value.dtype != x.dtype.newbyteorder("="):
        raise TypeError(f"{call}: expected {name} of dtype {x.dtype.newbyteorder('=')} for x of dtype {x.dtype}, got {value.dtype}")
    if written and not value.flags.writeable:
        raise ValueError(f"{call}: expected {name} to be writeable, since training updates it; got a read-only array")


def running(call: str, mean: Array | None, var: Array | None, *, needed: bool) -> None:
    """Both or neither; both where nothing else gives statistics."""
    if (mean is None) != (var is None):
        missing = "running_mean" if mean is None else "running_var"
        raise ValueError(f"{call}: expected running_mean and running_var both or neither, got no {missing}")
    if needed and mean is None:
        raise ValueError(f"{call}: expected running_mean and running_var, which inference normalizes by; got None")


def number(call: str, name: str, value: object) -> float:
    """A real number."""
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"{call}: expected {name} to be a real number, got {value!r}")
    return float(value)


def epsilon(call: str, value: object, *, training: bool) -> float:
    """As PyTorch: not negative, and positive where it keeps a variance of 0 from dividing."""
    eps = number(call, "eps", value)
    if not (eps > 0 if training else eps >= 0) or math.isinf(eps):
        raise ValueError(f"{call}: expected eps to be {'positive in training' if training else 'not negative'}, got {value!r}")
    return eps


def several_values(call: str, shape: tuple[int, ...], channel: int) -> None:
    """Training needs more than one value a channel (none at all is an empty batch)."""
    if math.prod(size for axis, size in enumerate(shape) if axis != channel) == 1:
        raise ValueError(f"{call}: expected more than 1 value a channel in training, got x of shape {shape}, channels on axis {channel}")


def out_like(call: str, out: Array, shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
    """Shape and dtype of the result."""
    if out.shape != shape:
        raise ValueError(f"{call}: expected out of shape {shape}, got {out.shape}")
    if out.dtype != dtype:
        raise TypeError(f"{call}: expected out of dtype {dtype}, got {out.dtype}")
    if any(size > 1 and stride == 0 for size, stride in zip(out.shape, out.strides, strict=True)):
        raise ValueError(f"{call}: expected every element of out to have its own place, got strides {out.strides} for shape {out.shape}")


def out_free(call: str, out: Array, inputs: Sequence[tuple[str, Array | None]], whole: Sequence[str] = ("x",)) -> None:
    """`out` may be written, and shares no memory with an input, or all of it with one named in `whole`. Checked at every call."""
    if not out.flags.writeable:
        raise ValueError(f"{call}: expected out to be writeable, got a read-only array")
    for name, value in inputs:
        if value is None or value is out or not np.may_share_memory(out, value):
            if value is out and name not in whole:
                raise ValueError(f"{call}: out is also {name}")
            continue
        if name in whole and same_place(out, value):
            continue
        if np.shares_memory(out, value):
            allowed = f" (only {' or '.join(whole)} itself may be out)" if whole else ""
            raise ValueError(f"{call}: expected out to be apart from the inputs{allowed}, but it overlaps {name}")


def same_place(a: Array, b: Array) -> bool:
    """The same elements at the same addresses."""
    return a is b or (
        a.__array_interface__["data"][0] == b.__array_interface__["data"][0] and a.strides == b.strides and a.shape == b.shape
    )


def backend(call: str, name: object) -> None:
    """A backend's name, or None."""
    if name is not None and name not in BACKENDS:
        raise ValueError(f"{call}: expected backend to be one of {', '.join(map(repr, BACKENDS))} or None, got {name!r}")


def threads(call: str, number: object) -> None:
    """A number of threads, or None."""
    if number is None:
        return
    if isinstance(number, bool) or not isinstance(number, (int, np.integer)):
        raise TypeError(f"{call}: expected threads to be a whole number or None, got {number!r}")
    if number < 1:
        raise ValueError(f"{call}: expected threads to be at least 1, got {number!r}")


def statistics_dtype(call: str, dtype: np.dtype[Any]) -> None:
    """The dtypes that have a mean."""
    if dtype.kind not in "biuf" and dtype.name not in ("bfloat16", "float16"):
        raise TypeError(f"{call}: expected x of a real or integer dtype, got {dtype}")


def reduced_axes(call: str, axis: object, rank: int) -> tuple[int, ...]:
    """`axis` as NumPy's: None for all, one, or several different ones."""
    if axis is None:
        return tuple(range(rank))
    given = axis if isinstance(axis, tuple) else (axis,)
    found: list[int] = []
    for one in given:
        if isinstance(one, bool) or not isinstance(one, (int, np.integer)):
            raise TypeError(f"{call}: expected axis to be None, a whole number or a tuple of these, got {axis!r}")
        if not -rank <= one < rank:
            raise np.exceptions.AxisError(f"{call}: expected axis from {-rank} to {rank - 1} for an array of {rank} axes, got {one}")
        found.append(int(one) % rank)
    if len(set(found)) != len(found):
        raise ValueError(f"{call}: expected different axes, got {axis!r}")
    return tuple(sorted(found))


def fail(error: type[Exception], call: str, message: str) -> NoReturn:
    """Anything said once only."""
    raise error(f"{call}: {message}")
