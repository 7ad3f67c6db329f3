"""A call with very many rows, or channels of samples, in parts one after another, so that its tables of statistics stay small.

A unit has 36 to 60 bytes in them: for a million rows of 16 values, half as much as the data. Where a part ends depends on shapes alone, so
that the bits do not depend on the number of threads.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from cpunorm import plan
from cpunorm.dispatch import Array, Run
from cpunorm.layout import CHANNEL, KEPT

Prepare = Callable[[Array, "Array | None", Array, int], Run]  # x, second, out, and the number of parts that they are one of


def in_parts(run: Run, prepare: Prepare, x: Array, second: Array | None, out: Array, roles: str, parts: int = 1) -> Run:
    """`run`, prepared for these arrays, or where its tables take more than `plan.TABLE_BYTES`, runs of parts of them.

    They are cut along the first axis that statistics are kept apart on; where one index of it is still too much, along the next.
    """
    needed = -(-8 * run.plan.scratch // plan.TABLE_BYTES)  # type: ignore[attr-defined]
    axis = next((axis for axis, role in enumerate(roles) if role == KEPT and x.shape[axis] > 1), None)
    if needed <= 1 or axis is None:
        return run
    size = x.shape[axis]
    length = -(-size // needed)
    parts *= -(-size // length)

    def prepared(lo: int) -> Run:
        here = _part(axis, lo, length)
        cut, cut_second, cut_out = x[here], None if second is None else second[here], out[here]
        run = prepare(cut, cut_second, cut_out, parts)
        return in_parts(run, prepare, cut, cut_second, cut_out, roles, parts) if length == 1 else run

    first = prepared(0)
    last = prepared(size - size % length) if size % length else first
    return _one_after_another(first, last, axis, size, length, axis if CHANNEL not in roles else 0)


def _part(axis: int, lo: int, length: int) -> tuple[slice, ...]:
    return (slice(None),) * axis + (slice(lo, lo + length),)


def _one_after_another(first: Run, last: Run, axis: int, size: int, length: int, axis_of_stats: int) -> Run:
    """Statistics are written in parts as the result is; gradients of parameters are added up in float64."""

    room = first.room  # type: ignore[attr-defined]

    def run(*arrays: Array | None) -> Array:
        data, parameters, stats, gradients = arrays[:4], arrays[4:8], arrays[8:10], arrays[10:]
        sums = [None if gradient is None else np.zeros(gradient.shape) for gradient in gradients]
        added: list[Any] = [None if gradient is None else np.empty_like(gradient) for gradient in gradients]
        np.empty(room, np.uint8)  # what each part will take is there: no memory is found out before the first one writes
        for lo in range(0, size, length):
            here, there = _part(axis, lo, length), _part(axis_of_stats, lo, length)
            cut = [None if array is None else array[here] for array in data]
            cut_stats = [None if array is None else array[there] for array in stats]
            (first if lo + length <= size else last)(*cut, *parameters, *cut_stats, *added)
            with np.errstate(all="ignore"):
                for total, part in zip(sums, added, strict=True):
                    if total is not None:
                        total += part
        with np.errstate(all="ignore"):
            for gradient, total in zip(gradients, sums, strict=True):
                if gradient is not None:
                    gradient[...] = total
        return np.empty(0)

    run.room = room  # type: ignore[attr-defined]
    return run
