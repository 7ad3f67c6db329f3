"""Batches of real photographs: the user's, or the portrait of Grace Hopper that matplotlib brings."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from cpunorm import loader

Array = np.ndarray[Any, Any]

MOST = 64  # pictures read from a folder


def load(folder: Path | None) -> list[Array]:
    """The pictures of a folder, in the order of their names, or matplotlib's: uint8 of shape (height, width, 3)."""
    if folder is None:
        from matplotlib.cbook import get_sample_data

        return [loader.load(get_sample_data("grace_hopper.jpg", asfileobj=False))]
    if not folder.is_dir():
        raise ValueError(f"{folder} is not a folder of pictures")
    files = loader.find([folder])
    if not files:
        raise ValueError(f"there is no picture in {folder}")
    return [_bytes(loader.load(file)) for file in files[:MOST]]


def _bytes(picture: Array) -> Array:
    return picture if picture.dtype == np.uint8 else (picture >> 8).astype(np.uint8)


def raw(pictures: list[Array], shape: tuple[int, ...]) -> Array:
    """Channels last, uint8; `shape` is channels first. Pictures are cut or tiled to size, each from another corner: no two are the same."""
    count, channels, height, width = shape
    made = np.empty((count, height, width, channels), np.uint8)
    for index in range(count):
        picture = pictures[index % len(pictures)]
        rows, columns = (
            (np.arange(size) + index * step) % available
            for size, step, available in ((height, 37, picture.shape[0]), (width, 53, picture.shape[1]))
        )
        made[index] = picture[np.ix_(rows, columns)]
    return made


def batch(pictures: list[Array], shape: tuple[int, ...]) -> Array:
    """The same channels first, float32, values from 0 to 1."""
    made = np.ascontiguousarray(raw(pictures, shape).transpose(0, 3, 1, 2), np.float32)
    made /= 255
    return made
