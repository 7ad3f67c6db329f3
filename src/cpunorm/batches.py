"""Pictures from files to one normalized array in a ``.npy``: what ``cpunorm preprocess`` does.

Rows are written one after another as they are made, so that the array may be larger than memory (read it by ``np.load(...,
mmap_mode="r")``), a full disk is an error and not a crash, and an unreadable picture leaves no hole: the header, which says how many rows
there are, is written again at the end. Until then the file has another name.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import numpy as np

from cpunorm import loader, settings
from cpunorm.preprocessing import Preprocessor

Array = np.ndarray[Any, Any]


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
    try:
        with open(aside, "wb") as output, closing(loader.in_parallel(files, work, settings.default_threads())) as made:
            for file, row in zip(files, made, strict=True):
                progress(file.name)
                if isinstance(row, loader.PictureError):
                    result.unreadable.append(str(row))
                    continue
                if not result.rows:
                    result.shape, result.dtype = row.shape[1:], row.dtype
                    _header(output, len(files), result)
                if row.shape[1:] != result.shape:
                    raise ValueError(f"{file} becomes {row.shape[1:]}, those before it {result.shape}; give --size, or --crop too")
                output.write(row.data)
                result.rows.append(file)
            if not result.rows:
                raise ValueError(f"none of {len(files)} files is a readable picture; the first: {result.unreadable[0]}")
            _header(output, len(result.rows), result)
        os.replace(aside, target)
    finally:
        aside.unlink(missing_ok=True)
    result.shape = (len(result.rows), *result.shape)
    return result


def _header(output: IO[bytes], rows: int, result: Result) -> None:
    """At the start. NumPy leaves room for any number of rows, so that the second one is as long as the first."""
    output.seek(0)
    np.lib.format.write_array_header_1_0(output, {"descr": result.dtype.str, "fortran_order": False, "shape": (rows, *result.shape)})
