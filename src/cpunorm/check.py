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
FLOATS = ("float16", "bfloat16", "float32", "float64")
ACTIVATIONS = ("relu", "relu6", "silu", "hardswish")


def array(call: str, name: str, value: object) -> Array:
    """`value` as an ndarray that shares its memory; TypeError for what numpy.asarray would have to copy."""
    if isinstance(value, np.ma.MaskedArray):
        raise TypeError(f"{call}: expected {name} to be a plain array, got a masked one, whose mask would be lost; pass {name}.filled(...)")
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


def float_dtype(call: str, name: str, dtype: np.dtype[Any], dtypes: tuple[str, ...] = FLOATS) -> None:
    """The dtypes that norms take."""
    if dtype.newbyteorder("=").name not in dtypes:
        raise TypeError(f"{call}: expected {name} of dtype {' or '.join(dtypes)}, got {dtype}")


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


def channel_layout(call: str, layout: object) -> str:
    """A layout of statistics, which need no N."""
    if not isinstance(layout, str):
        raise TypeError(f"{call}: expected layout to be a string such as 'NCHW' or 'HWC', got {type(layout).__name__}")
    if not (layouts.is_layout(layout) or layouts.is_layout("N" + layout)):
        raise ValueError(
            f"{call}: expected layout to be 'channels_first', 'channels_last' or one letter an axis, C among them and none twice, "
            f"got {layout!r}"
        )
    return layout


def channel_axis(call: str, layout: str, shape: tuple[int, ...]) -> int:
    """Of a block in a layout that `channel_layout` passed; one with an N takes a single sample without it."""
    rank = len(shape)
    if layout == layouts.CHANNELS_LAST and rank:
        return rank - 1
    if layout == layouts.CHANNELS_FIRST and rank > 1:
        return 1
    letters = layout.replace("N", "") if len(layout) == rank + 1 else layout
    if not layout.isupper() or len(letters) != rank:
        wanted = f"{len(layout)} axes" + (f" or {len(layout) - 1} without N" if "N" in layout else "")
        wanted = wanted if layout.isupper() else "more axes"
        raise ValueError(f"{call}: layout {layout!r} expects {wanted}, got x of shape {shape}")
    return letters.index("C")


def parameter(call: str, name: str, value: Array | None, shape: tuple[int, ...], x: Array, what: str) -> None:
    """Of this shape, and of x's dtype or, for 16-bit x, float32."""
    if value is None:
        return
    if value.shape != shape:
        raise ValueError(f"{call}: expected {name} of shape {shape} ({what}) for x of shape {x.shape}, got shape {value.shape}")
    dtypes = [x.dtype.newbyteorder("="), *([np.dtype(np.float32)] if x.itemsize == 2 else [])]
    if value.dtype not in dtypes:
        raise TypeError(f"{call}: expected {name} of dtype {' or '.join(map(str, dtypes))} for x of dtype {x.dtype}, got {value.dtype}")


def statistics(
    call: str, mean: Array | None, rstd: Array | None, shape: tuple[int, ...], dtype: np.dtype[Any], *, centred: bool = True
) -> None:
    """What the forward call returned."""
    wanted = np.dtype(np.float64 if dtype.itemsize == 8 else np.float32)
    for name, value in (("mean", mean), ("rstd", rstd)):
        if value is None:
            if name == "rstd" or centred:
                raise ValueError(f"{call}: expected {name} of shape {shape}, as the forward call returns it; got None")
            continue
        if value.shape != shape:
            raise ValueError(f"{call}: expected {name} of shape {shape}, as the forward call returns it; got shape {value.shape}")
        if value.dtype != wanted:
            raise TypeError(f"{call}: expected {name} of dtype {wanted}, as the forward call returns it; got {value.dtype}")


def like(call: str, name: str, value: Array, x: Array) -> None:
    """x's shape and dtype."""
    if value.shape != x.shape:
        raise ValueError(f"{call}: expected {name} of x's shape {x.shape}, got {value.shape}")
    if value.dtype != x.dtype:
        raise TypeError(f"{call}: expected {name} of x's dtype {x.dtype}, got {value.dtype}")


def writeable(call: str, **arrays: Array) -> None:
    """What a call changes may be changed."""
    for name, value in arrays.items():
        if not value.flags.writeable:
            raise ValueError(f"{call}: expected {name} to be writeable, since training updates it; got a read-only array")


def activation(call: str, name: object) -> None:
    """One of ACTIVATIONS, or None."""
    if name is not None and name not in ACTIVATIONS:
        raise ValueError(f"{call}: expected activation to be one of {', '.join(map(repr, ACTIVATIONS))} or None, got {name!r}")


def positive(call: str, name: str, value: object) -> int:
    """A whole number of at least 1."""
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)):
        raise TypeError(f"{call}: expected {name} to be a whole number, got {value!r}")
    if value < 1:
        raise ValueError(f"{call}: expected {name} to be at least 1, got {value!r}")
    return int(value)


def groups(call: str, number: object, channels: int, axis: int, shape: tuple[int, ...]) -> int:
    """Divides the number of channels."""
    found = positive(call, "num_groups", number) if call.startswith("group_norm") else channels
    if channels % max(found, 1):
        raise ValueError(f"{call}: expected num_groups to divide the {channels} channels (axis {axis} of shape {shape}), got {found}")
    return found


def several_in_group(call: str, shape: tuple[int, ...], groups: int) -> None:
    """As PyTorch, which counts the values of a group over all samples."""
    if math.prod(shape) == groups:
        raise ValueError(f"{call}: expected more than 1 value a group, got x of shape {shape} with num_groups {groups}")


def several_spatial(call: str, shape: tuple[int, ...], axes: layouts.Axes) -> None:
    """A channel of a sample has more than one value."""
    if math.prod(size for axis, size in enumerate(shape) if axis not in (axes.batch, axes.channel)) == 1:
        raise ValueError(f"{call}: expected more than 1 spatial element, got x of shape {shape}")


def rank(call: str, shape: tuple[int, ...], least: int) -> None:
    """At least so many axes."""
    if len(shape) < least:
        raise ValueError(f"{call}: expected x of at least {least} axes, got shape {shape}")


def norm_exists(call: str, p: float, shape: tuple[int, ...], axes: tuple[int, ...]) -> None:
    """The largest of no values is none."""
    if math.isinf(p) and math.prod(shape[axis] for axis in axes) == 0:
        raise ValueError(f"{call}: expected values along dim {axes} for p = {p}, got x of shape {shape}")


def normalized_shape(call: str, given: object, shape: tuple[int, ...]) -> tuple[int, ...]:
    """The last axes of x."""
    sizes = (given,) if isinstance(given, (int, np.integer)) and not isinstance(given, bool) else given
    if not isinstance(sizes, tuple) or not all(isinstance(size, (int, np.integer)) and not isinstance(size, bool) for size in sizes):
        raise TypeError(f"{call}: expected normalized_shape to be a whole number or a tuple of these, got {given!r}")
    if not sizes or shape[-len(sizes) :] != sizes:
        raise ValueError(f"{call}: expected normalized_shape to be the sizes of the last axes of x of shape {shape}, got {given!r}")
    return tuple(int(size) for size in sizes)


def running(call: str, mean: Array | None, var: Array | None, *, needed: bool) -> None:
    """Both or neither; both where nothing else gives statistics."""
    if (mean is None) != (var is None):
        missing = "running_mean" if mean is None else "running_var"
        raise ValueError(f"{call}: expected running_mean and running_var both or neither, got no {missing}")
    if needed and mean is None:
        raise ValueError(f"{call}: expected running_mean and running_var, which inference normalizes by; got None")


def flag(call: str, name: str, value: object) -> None:
    """True or False."""
    if not isinstance(value, (bool, np.bool_)):
        raise TypeError(f"{call}: expected {name} to be True or False, got {value!r}")


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
    extent = out.itemsize  # of the axes with smaller strides; a stride within it leads to a place that is taken
    for stride, size in sorted((abs(stride), size) for stride, size in zip(out.strides, out.shape, strict=True) if out.size and size > 1):
        if stride < extent:
            raise ValueError(
                f"{call}: expected every element of out to have its own place, got strides {out.strides} for shape {out.shape}"
            )
        extent += stride * (size - 1)


def out_free(call: str, out: Array, inputs: Sequence[tuple[str, Array | None]], whole: Sequence[str] = ("x",)) -> None:
    """`out` may be written, and shares no memory with an input, or all of it with one named in `whole`. Checked at every call."""
    if not out.flags.writeable:
        raise ValueError(f"{call}: expected out to be writeable, got a read-only array")
    owned = out.flags.owndata
    for name, value in inputs:
        if value is out:
            if name not in whole:
                raise ValueError(f"{call}: out is also {name}")
            continue
        if value is None or (owned and value.flags.owndata):
            continue  # two arrays with memory of their own: 50 ns where np.may_share_memory takes 330
        if not np.may_share_memory(out, value) or (name in whole and same_place(out, value)):
            continue
        if np.shares_memory(out, value):
            allowed = " or ".join(whole)
            raise ValueError(f"{call}: expected out to be apart from the inputs (only {allowed} itself may be out), but it overlaps {name}")


def same_place(a: Array, b: Array) -> bool:
    """The same elements at the same addresses."""
    if a is b or (a.flags.owndata and b.flags.owndata):
        return a is b
    return (
        np.may_share_memory(a, b)  # 0.3 us where an address takes 1.8
        and a.__array_interface__["data"][0] == b.__array_interface__["data"][0]
        and a.strides == b.strides
        and a.shape == b.shape
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


def reduced_axes(call: str, axis: object, rank: int, name: str = "axis") -> tuple[int, ...]:
    """`axis` as NumPy's: None for all, one, or several different ones."""
    if axis is None:
        return tuple(range(rank))
    given = axis if isinstance(axis, tuple) else (axis,)
    found: list[int] = []
    for one in given:
        if isinstance(one, bool) or not isinstance(one, (int, np.integer)):
            raise TypeError(f"{call}: expected {name} to be None, a whole number or a tuple of these, got {axis!r}")
        if not -rank <= one < rank:
            raise np.exceptions.AxisError(f"{call}: expected {name} from {-rank} to {rank - 1} for an array of {rank} axes, got {one}")
        found.append(int(one) % rank)
    if len(set(found)) != len(found):
        raise ValueError(f"{call}: expected different axes, got {axis!r}")
    return tuple(sorted(found))


def fail(error: type[Exception], call: str, message: str) -> NoReturn:
    """Anything said once only."""
    raise error(f"{call}: {message}")
