"""Every error of `cpunorm.preprocess`: see `cpunorm.check`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from cpunorm.check import Array, array, number, positive

PICTURES = ("uint8", "uint16", "float16", "float32")
RESULTS = ("float32", "float16", "bfloat16", "int8", "uint8")


def picture_layout(call: str, name: str, layout: object) -> str:
    """Channels last or first."""
    if layout not in ("NHWC", "NCHW"):
        raise ValueError(f"{call}: expected {name} to be 'NHWC' or 'NCHW', got {layout!r}")
    return str(layout)


def coefficients(call: str, name: str, values: object, *, positive: bool) -> tuple[float, ...]:
    """A finite number a channel; one number alone is for all channels, and given as a tuple of one."""
    try:
        found = np.asarray(values, np.float64)
    except (TypeError, ValueError):
        raise TypeError(f"{call}: expected {name} to be a number a channel, got {values!r}") from None
    if found.ndim > 1 or found.size == 0:
        raise ValueError(f"{call}: expected {name} to be a number a channel, got shape {found.shape}")
    if not np.isfinite(found).all() or (positive and not (found > 0).all()):
        raise ValueError(f"{call}: expected {name} to be {'positive and ' if positive else ''}finite, got {values!r}")
    return tuple(found.reshape(-1).tolist())


def picture_scale(call: str, scale: object) -> float | None:
    """None for "auto"."""
    if isinstance(scale, str) and scale == "auto":
        return None
    found = number(call, "scale", scale)
    if not 0 < found < math.inf:
        raise ValueError(f"{call}: expected scale to be 'auto' or a positive, finite number, got {scale!r}")
    return found


def result_dtype(call: str, dtype: Any, quant: object) -> tuple[np.dtype[Any], tuple[float, int] | None]:
    """dtype, and (s, z) where it is an integer's."""
    if dtype == "bfloat16":
        try:
            from ml_dtypes import bfloat16 as dtype
        except ImportError as problem:
            raise ImportError(f"{call}: dtype 'bfloat16' needs ml_dtypes ({problem}); pip install 'cpunorm[bf16]'") from problem
    try:
        found = np.dtype(dtype)
    except TypeError:
        raise TypeError(f"{call}: expected dtype to be one of {', '.join(RESULTS)}, got {dtype!r}") from None
    if dtype is None or found.name not in RESULTS or not found.isnative:
        raise TypeError(f"{call}: expected dtype to be one of {', '.join(RESULTS)}, got {dtype!r}")
    if found.kind not in "iu":
        if quant is not None:
            raise ValueError(f"{call}: expected quant only with dtype int8 or uint8, got it with {found}")
        return found, None
    if not isinstance(quant, (tuple, list)) or len(quant) != 2:
        raise ValueError(f"{call}: expected quant=(s, z) for dtype {found}, got {quant!r}")
    step, zero = number(call, "quant's s", quant[0]), quant[1]
    if not 0 < step < math.inf:
        raise ValueError(f"{call}: expected quant's s to be positive and finite, got {quant[0]!r}")
    if isinstance(zero, bool) or not isinstance(zero, (int, np.integer)):
        raise TypeError(f"{call}: expected quant's z to be a whole number, got {zero!r}")
    if not np.iinfo(found).min <= zero <= np.iinfo(found).max:
        raise ValueError(f"{call}: expected quant's z to be a number of dtype {found}, got {zero}")
    return found, (step, int(zero))


def picture_size(call: str, size: object) -> tuple[Any, int] | None:
    """(height, width), ("short", n) or None."""
    if size is None:
        return None
    if not isinstance(size, (tuple, list)) or len(size) != 2 or (isinstance(size[0], str) and size[0] != "short"):
        raise ValueError(f"{call}: expected size to be (height, width), ('short', n) or None, got {size!r}")
    first = size[0] if size[0] == "short" else positive(call, "size's height", size[0])
    return first, positive(call, "size", size[1])


def picture_crop(call: str, crop: object) -> tuple[Any, ...] | None:
    """(top, left, height, width), ("center", height, width) or None."""
    if crop is None:
        return None
    if not isinstance(crop, (tuple, list)) or not (len(crop) == 4 or (len(crop) == 3 and crop[0] == "center")):
        raise ValueError(f"{call}: expected crop to be (top, left, height, width), ('center', height, width) or None, got {crop!r}")
    sizes = tuple(positive(call, "crop's height and width", value) for value in crop[-2:])
    if len(crop) == 3:
        return ("center", *sizes)
    corner = []
    for value in crop[:2]:
        if isinstance(value, bool) or not isinstance(value, (int, np.integer)):
            raise TypeError(f"{call}: expected crop of whole numbers, got {crop!r}")
        if value < 0:
            raise ValueError(f"{call}: expected crop's top and left not to be negative, got {crop!r}")
        corner.append(int(value))
    return (*corner, *sizes)


def mirrors(call: str, mirror: object) -> bool | tuple[bool, ...]:
    """A bool, or one an image."""
    if isinstance(mirror, (bool, np.bool_)):
        return bool(mirror)
    if not isinstance(mirror, (tuple, list, np.ndarray)) or not all(isinstance(value, (bool, np.bool_)) for value in mirror):
        raise TypeError(f"{call}: expected mirror to be True, False or one of these an image, got {mirror!r}")
    return tuple(bool(value) for value in mirror)


def pictures(call: str, images: object) -> tuple[list[Array], bool]:
    """Arrays, and whether they are one: a picture or a batch."""
    if not isinstance(images, (list, tuple)):
        return [array(call, "images", images)], True
    if not images:
        raise ValueError(f"{call}: expected at least one picture, got an empty {type(images).__name__}")
    return [array(call, f"images[{i}]", image) for i, image in enumerate(images)], False


def picture_arrays(call: str, arrays: list[Array], single: bool, layout: str) -> int:
    """One dtype, one number of channels, which is returned; pictures of rank 3, or a batch of rank 4."""
    channel = -1 if layout == "NHWC" else -3
    for i, x in enumerate(arrays):
        name = "images" if single else f"images[{i}]"
        if x.dtype.newbyteorder("=").name not in PICTURES:
            raise TypeError(f"{call}: expected {name} of dtype {', '.join(PICTURES)}, got {x.dtype}")
        if x.ndim != 3 and not (single and x.ndim == 4):
            wanted = f"{layout[1:]} or {layout}" if single else layout[1:]
            raise ValueError(f"{call}: expected {name} to have the axes {wanted}, got shape {x.shape}")
        if x.dtype.newbyteorder("=") != arrays[0].dtype.newbyteorder("="):
            raise TypeError(f"{call}: expected pictures of one dtype, got {arrays[0].dtype} and, {name}, {x.dtype}")
        if x.shape[channel] != arrays[0].shape[channel]:
            raise ValueError(
                f"{call}: expected pictures of as many channels, got {arrays[0].shape[channel]} and, {name}, {x.shape[channel]}"
            )
    return int(arrays[0].shape[channel])


def picture_channels(call: str, channels: int, mean: Sequence[float], std: Sequence[float], padded: int | None, swap_rb: bool) -> None:
    """What belongs to channels fits their number."""
    for name, values in (("mean", mean), ("std", std)):
        if len(values) not in (1, channels) or channels == 0:
            raise ValueError(f"{call}: expected {name} of {channels} values, one a channel of the pictures, got {len(values)}")
    if padded is not None and padded < channels:
        raise ValueError(f"{call}: expected pad_channels to be at least the {channels} channels of the pictures, got {padded}")
    if swap_rb and channels not in (3, 4):
        raise ValueError(f"{call}: expected 3 or 4 channels for swap_rb, got {channels}")


def crop_inside(call: str, crop: tuple[int, int, int, int], height: int, width: int, index: int) -> None:
    """Of a picture after its resize."""
    top, left, high, wide = crop
    if top < 0 or left < 0 or top + high > height or left + wide > width:
        raise ValueError(
            f"{call}: expected crop (top, left, height, width) inside picture {index} of {height} rows and {width} columns, got {crop}"
        )


def same_sizes(call: str, before: Sequence[tuple[int, int]], after: Sequence[tuple[int, int]], *, resized: bool) -> None:
    """Pictures of one size, or made so."""
    if not resized and len(set(before)) > 1:
        raise ValueError(f"{call}: expected size for pictures of unequal height and width, got {_some(before)} and no size")
    if len(set(after)) > 1:
        raise ValueError(f"{call}: expected crop, since size leaves the pictures unequal, got {_some(after)} and no crop")


def _some(sizes: Sequence[tuple[int, int]]) -> str:
    different = list(dict.fromkeys(sizes))
    return ", ".join(map(str, different[:3])) + (", ..." if len(different) > 3 else "")
