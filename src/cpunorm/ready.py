"""Calls that were made before: C compares the arrays with those of that call and runs its program, 3 us sooner than Python can.

`call` asks here first. Only a call whose program runs on its arrays as they are (no copies, no parts, results that need no rounding) is
kept; what does not match in every stride, dtype and flag, or where `out` shares memory that it may not, goes the usual way, which plans
anew or says what is wrong. Without the C part every call goes that way.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from functools import cache
from typing import Any, NamedTuple

import numpy as np

from cpunorm import backends
from cpunorm.dispatch import Array, Run, Runner
from cpunorm.program import ABSENT, OURS, READY, SLOTS, Program

MOST = 8  # calls that differ in strides, flags or dtypes only; another one goes the usual way each time
Slots = tuple[Array | int | None, ...]
_ALIGNED, _WRITEABLE = 0x100, 0x400  # NPY_ARRAY_ALIGNED, NPY_ARRAY_WRITEABLE


class Ready(NamedTuple):
    """What `run`, the C function, takes as `address`; and what the caller prepared."""

    run: Callable[..., int]
    address: int
    prepared: Any
    held: tuple[Any, ...]  # C has their addresses


def make(run: Run, prepared: Any, arrays: Slots, written: Collection[str], *, in_place: bool) -> Ready | None:
    """`arrays` are the slots but scratch; OURS stands for a result that the caller makes. None for a call that C cannot make."""
    native = _native()
    if native is None or not isinstance(run, Runner) or run.driver != native.cpunorm_run:
        return None
    address, held = _expecting(run.addressed(), arrays, written, in_place=in_place)
    return Ready(native.cpunorm_run_ready, address, prepared, (run, held))


def _expecting(program: tuple[int, int, int, int, int], arrays: Slots, written: Collection[str], *, in_place: bool) -> tuple[int, Any]:
    """The address of a struct ready, and what has to live as long."""
    expected: list[int] = []
    for name, array in zip(SLOTS, arrays, strict=False):
        if array is None:
            expected.append(ABSENT)
        elif isinstance(array, int):
            expected.append(OURS)
        else:
            flags = _ALIGNED | _WRITEABLE if name in written else _ALIGNED
            expected += [array.ndim, id(array.dtype), flags, array.itemsize, *array.shape, *array.strides]
    table = np.array(expected, np.int64)
    head = np.array([(*program, in_place, table.ctypes.data)], READY)
    return int(head.ctypes.data), (head, table, [array.dtype for array in arrays if isinstance(array, np.ndarray)])


@cache
def _native() -> Any:
    """The C part; None without it, or if it does not find in an array what NumPy says of it."""
    try:
        native: Any = backends.load("c").lib
    except ImportError:
        return None
    native.cpunorm_array_type = id(np.ndarray)
    nothing = Program([], 0)
    array = np.empty((2, 3, 5), np.float32)[:, ::-1]
    address, _held = _expecting((nothing.address, 1, 0, 0, 0), (array, *[None] * (len(SLOTS) - 2)), (), in_place=False)
    return native if native.cpunorm_run_ready(address, id(array), *[0] * (len(SLOTS) - 2)) else None
