"""Pictures from files, by Pillow: for ``cpunorm stats``, ``preprocess`` and ``compare``. Needs the `cli` extra.

What a picture becomes, whatever its file:

* RGB, uint8 of shape (height, width, 3), turned as its EXIF orientation says. Of an animation or a stack, the first picture.
* Grey and palette pictures become RGB (three equal channels for grey). An alpha channel is dropped: the colour under it counts as it is.
  CMYK and YCbCr are converted by Pillow, without a colour profile.
* 16-bit grey stays 16 bits: uint16 of shape (height, width, 3), where 65535 is what 255 is elsewhere. (16-bit RGB is read as 8 bits, as
  Pillow does.) 32-bit integers beyond 65535 and floats are refused: nothing says what their white is.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

Array = np.ndarray[Any, Any]
Made = TypeVar("Made")

# Formats of pixels that Pillow decodes itself: no PostScript, which it hands to another program.
FORMATS = ("AVIF", "BMP", "DIB", "GIF", "ICO", "JPEG", "JPEG2000", "MPO", "PCX", "PNG", "PPM", "SGI", "TGA", "TIFF", "WEBP", "XBM")
AHEAD = 2  # pictures a thread that are decoded before they are asked for


class PictureError(ValueError):
    """A file that is no picture, or one that cannot be read; the message names it and says why."""


def find(paths: Sequence[Path]) -> list[Path]:
    """The files, and of folders all pictures in them and below, by their suffix, in the order of their names. ValueError for no such path.

    Links to folders are not followed.
    """
    suffixes = {suffix for suffix, kind in Image.registered_extensions().items() if kind in _formats()}
    found: list[Path] = []
    for path in paths:
        if path.is_dir():
            within = (Path(folder, name) for folder, _, names in os.walk(path) for name in names)
            found += sorted(file for file in within if file.suffix.lower() in suffixes)
        elif path.exists():
            found.append(path)
        else:
            raise ValueError(f"there is no {path}")
    return found


@cache
def _formats() -> list[str]:
    """Those of FORMATS that this Pillow has."""
    Image.init()
    return [kind for kind in FORMATS if kind in Image.OPEN]


def load(file: Path | str) -> Array:
    """The pixels: uint8, or uint16 for 16-bit grey, of shape (height, width, 3). PictureError for whatever cannot be read.

    A picture of more pixels than Pillow's limit against decompression bombs (twice ``PIL.Image.MAX_IMAGE_PIXELS``: 179 million) cannot.
    """
    try:
        with Image.open(file, formats=_formats()) as picture:
            return _pixels(ImageOps.exif_transpose(picture))
    except UnidentifiedImageError as problem:
        raise PictureError(f"{file}: no picture in a format that is read here") from problem
    except Exception as problem:  # what a decoder raises on damaged data is anything
        raise PictureError(f"{file}: {str(problem) or type(problem).__name__}") from problem


def _pixels(picture: Image.Image) -> Array:
    if picture.mode.startswith("I"):
        grey = np.asarray(picture)
        if grey.dtype.itemsize > 2 and not (grey.min() >= 0 and grey.max() <= 65535):
            raise ValueError(f"expected integers from 0 to 65535, got {grey.min()} to {grey.max()}: there is no saying what is white")
        return np.repeat(grey.astype(np.uint16)[..., None], 3, axis=2)
    if picture.mode == "F":
        raise ValueError("expected integers, got floats: there is no saying what is white")
    if picture.mode in ("P", "PA", "La", "RGBa"):
        picture = picture.convert("RGBA")  # with its transparency, whatever form that has
    return np.asarray(picture.convert("RGB"))


def in_parallel(files: Sequence[Path], work: Callable[[Path], Made], threads: int) -> Generator[Made | PictureError, None, None]:
    """``work(file)`` of each, in their order, a few at a time on `threads` threads (Pillow lets go of Python while it decodes).

    A PictureError is given in the place of its result; any other is raised. Whoever stops iterating waits for what has begun, no more.
    """
    waiting: deque[Future[Made]] = deque()
    with ThreadPoolExecutor(threads) as pool:
        try:
            for file in files:
                waiting.append(pool.submit(work, file))
                if len(waiting) >= AHEAD * threads:
                    yield _result(waiting.popleft())
            while waiting:
                yield _result(waiting.popleft())
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _result(future: Future[Any]) -> Any:
    try:
        return future.result()
    except PictureError as problem:
        return problem
