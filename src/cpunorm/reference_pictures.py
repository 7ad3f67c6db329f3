"""Preprocessing in NumPy, float64, a picture at a time: it says what is correct, and is the backend ``"numpy"``. It knows no plan."""

from __future__ import annotations

from typing import Any

import numpy as np

from cpunorm.reference import wide

Array = np.ndarray[Any, Any]


def preprocess(
    picture: Array,
    mean: tuple[float, ...],
    std: tuple[float, ...],
    scale: float,
    swap_rb: bool,
    size: tuple[int, int],
    crop: tuple[int, int, int, int],
    mirror: bool,
    channels: int,
    quant: tuple[float, int] | None = None,
) -> Array:
    """A picture of axes height, width, channels: swapped, resized, cropped, mirrored, normalized and padded, in this order."""
    if swap_rb:
        picture = picture[..., [2, 1, 0, *range(3, picture.shape[2])]]
    if size != picture.shape[:2]:
        picture = resized(picture, size)
    top, left, height, width = crop
    picture = picture[top : top + height, left : left + width]
    if mirror:
        picture = picture[:, ::-1]
    with np.errstate(all="ignore"):
        y = (picture.astype(np.float64) * scale - np.asarray(mean)) / np.asarray(std)
    return np.concatenate([y, np.zeros((height, width, channels - y.shape[2]))], axis=2)


def quantized(y: Array, dtype: np.dtype[Any], quant: tuple[float, int]) -> Array:
    """clip(rint(y / s) + z); NaN becomes the lowest number."""
    step, zero = quant
    limits = np.iinfo(dtype)
    found = np.clip(np.rint(y / step) + zero, limits.min, limits.max)
    return np.where(np.isnan(found), limits.min, found).astype(dtype)


def resized(picture: Array, size: tuple[int, int]) -> Array:
    """Columns, then rows, as Pillow's BILINEAR: bytes are rounded after each, by weights of 22 bits; else float32 after each (mode F)."""
    whole = picture.dtype == np.uint8
    x = wide(picture)
    for axis in (1, 0):
        x = np.moveaxis(_resized_axis(np.moveaxis(x, axis, 0), size[axis], whole), 0, axis)
        if not whole:
            with np.errstate(all="ignore"):
                x = x.astype(np.float32).astype(np.float64)
    return x


def _resized_axis(x: Array, after: int, whole: bool) -> Array:
    before = x.shape[0]
    ratio = before / after
    support = max(ratio, 1.0)
    y = np.empty((after, *x.shape[1:]))
    for i in range(after):
        center = (i + 0.5) * ratio
        places = np.arange(max(int(center - support + 0.5), 0), min(int(center + support + 0.5), before))
        weights = np.maximum(1 - np.abs((places - center + 0.5) * (1 / support)), 0)
        places, weights = places[weights > 0], weights[weights > 0] / weights.sum()
        if whole:
            total = np.tensordot(np.floor(weights * (1 << 22) + 0.5), x[places], 1) + (1 << 21)
            y[i] = np.clip(np.floor(total / (1 << 22)), 0, 255)
        else:
            with np.errstate(all="ignore"):
                y[i] = np.tensordot(weights, x[places], 1)
    return y
