"""Pictures from files to one normalized array in a memory-mapped ``.npy``: what ``cpunorm preprocess`` does.

The array may be larger than memory (read it by ``np.load(..., mmap_mode="r")``): a few rows of it are mapped at a time. How many pictures
can be read is not known before they are, so a row for every file is mapped, and the file cut at the end. Its disk is taken at the start: a
full one is an error then, and not a crash of whoever writes to the map. Until the end the file has another name.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib.format import open_memmap, write_array_header_1_0

from cpunorm import loader, settings
from cpunorm.preprocessing import Preprocessor

Array = np.ndarray[Any, Any]

MAPPED = 16 << 20  # bytes written until the rows mapped are let go of: what is mapped counts as memory of the process


@dataclass
class Result:
    """`rows` names the picture of each row; `unreadable` has a line for each file without one."""

    shape: tuple[int, ...] = ()
    dtype: np.dtype[Any] = field(default_factory=lambda: np.dtype(np.float32))
    rows: list[Path] = field(default_factory=list)
    unreadable: list[str] = field(default_factory=list)


def write(files: list[Path], target: Path, plan: Preprocessor, progress: Callable[[str], Any]) -> Result:
    """Preprocess `files` in parallel into `target`. `plan` has one thread: pictures are shared out, not their rows.

    ValueError where a picture does not fit the options, or becomes another shape than those before it, or no file is readable; `target` is
    as it was then.
    """

    def work(file: Path) -> Array:
        picture = loader.load(file)
        try:
            return plan(picture)
        except ValueError as problem:
            raise ValueError(f"{file}: {problem}") from problem

    result = Result()
    aside = target.with_name(f"{target.name}.{os.getpid()}.tmp")
    batch: Array | None = None
    try:
        with closing(loader.in_parallel(files, work, settings.default_threads())) as made:
            for file, row in zip(files, made, strict=True):
                progress(file.name)
                if isinstance(row, loader.PictureError):
                    result.unreadable.append(str(row))
                    continue
                if batch is None:
                    batch = _create(aside, row.dtype, (len(files), *row.shape[1:]))
                    result.shape, result.dtype = row.shape[1:], row.dtype
                if row.shape[1:] != result.shape:
                    raise ValueError(f"{file} becomes {row.shape[1:]}, those before it {result.shape}; give --size, or --crop too")
                batch[len(result.rows)] = row[0]
                result.rows.append(file)
                if len(result.rows) % max(1, MAPPED // row.nbytes) == 0:
                    batch = open_memmap(aside, mode="r+")
        if batch is None:
            raise ValueError(f"none of {len(files)} files is a readable picture; the first: {result.unreadable[0]}")
        batch = None  # the map is closed
        result.shape = (len(result.rows), *result.shape)
        _cut(aside, result)
        os.replace(aside, target)
    finally:
        batch = None
        aside.unlink(missing_ok=True)
    return result


def _create(path: Path, dtype: np.dtype[Any], shape: tuple[int, ...]) -> Array:
    """A map of a new file, whose disk is taken. OSError where there is not so much of it."""
    batch = open_memmap(path, mode="w+", dtype=dtype, shape=shape)
    if hasattr(os, "posix_fallocate"):
        with path.open("r+b") as file:
            os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
    return batch


def _cut(path: Path, result: Result) -> None:
    """To the rows that there are. NumPy leaves room for any number of them, so that the new header is as long as the first."""
    rows = np.load(path, mmap_mode="r")
    with path.open("r+b") as file:
        write_array_header_1_0(file, {"descr": np.lib.format.dtype_to_descr(rows.dtype), "fortran_order": False, "shape": result.shape})
        if file.tell() != rows.offset:
            raise OSError(f"{path}: expected a header of {rows.offset} bytes, as the file began with, got one of {file.tell()}")
        file.truncate(rows.offset + len(result.rows) * rows[0].nbytes)
