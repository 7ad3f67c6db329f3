"""Calls that were made before: C compares the arguments with those of that call and runs its program, 3 us sooner than Python can.

`call` asks here first. Only a call whose program runs on its arrays as they are (no copies, no parts, results that need no rounding) is
kept; what does not match in every stride, dtype and flag, or where `out` shares memory that it may not, goes the usual way, which plans
anew or says what is wrong. Without the C part every call goes that way.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Collection, Sequence
from functools import cache
from typing import Any, NamedTuple

import numpy as np

from cpunorm.dispatch import Array, Run, Runner
from cpunorm.program import ABSENT, OURS, READY, SLOTS, Program

MOST = 8  # calls that differ in strides, flags or dtypes only; another one goes the usual way each time
Slots = tuple[Array | int | None, ...]
_ALIGNED, _WRITEABLE = 0x100, 0x400  # NPY_ARRAY_ALIGNED, NPY_ARRAY_WRITEABLE


class Ready(NamedTuple):
    """What `run`, the C function, takes as `address`; what the caller prepared, whose program it is."""

    run: Callable[..., int]
    address: int
    prepared: Any  # a call.Prepared
    held: Any  # C has its address


def make(prepared: Any, arrays: Slots, types: Sequence[type], written: Collection[str], *, in_place: bool) -> Ready | None:
    """`arrays` are the slots but scratch; OURS stands for a result that the caller makes. `types` are those of the options, and of the
    number of threads. None for a call that C cannot make.
    """
    run: Run = prepared.run
    native = getattr(sys.modules.get("cpunorm.native"), "lib", None)  # loaded by who runs on its driver
    if native is None or not isinstance(run, Runner) or run.driver != native.cpunorm_run or not _reads_objects(native):
        return None
    address, held = _expecting(run.addressed(), arrays, types, written, in_place=in_place)
    return Ready(native.cpunorm_run_ready, address, prepared, held)


def _expecting(
    program: tuple[int, int, int, int, int], arrays: Slots, types: Sequence[type], written: Collection[str], *, in_place: bool
) -> tuple[int, Any]:
    """The address of a struct ready, and what has to live as long."""
    expected: list[int] = []
    for name, array in zip(SLOTS, arrays, strict=False):
        if array is None:
            expected.append(ABSENT)
        elif isinstance(array, int):
            expected.append(OURS)
        else:
            flags = _ALIGNED | _WRITEABLE if name in written else _ALIGNED
            expected += [array.ndim, id(array.dtype.type), flags, array.itemsize, *array.shape, *array.strides]
    table = np.array([*expected, *map(id, types)], np.int64)
    head = np.array([(*program, in_place, table.ctypes.data, len(types) - 1)], READY)
    return int(head.ctypes.data), (head, table, types, [array.dtype.type for array in arrays if isinstance(array, np.ndarray)])


@cache
def _reads_objects(native: Any) -> bool:
    """Whether the C part finds in objects what Python and NumPy say of them."""
    native.cpunorm_array_type, native.cpunorm_none, native.cpunorm_items_field = id(np.ndarray), id(None), tuple.__basicsize__
    nothing, rest = Program([], 0), [None] * (len(SLOTS) - 2)
    array = np.empty((2, 3, 5), np.float32)[:, ::-1]
    address, _held = _expecting((nothing.address, 1, 0, 0, 0), (array, *rest), (bool, float, int), (), in_place=False)
    given = (array, *rest, (True, 0.1), 2)
    return bool(native.cpunorm_run_ready(address, id(given)))
