"""A call with very many rows, or channels of samples, in parts one after another, so that its tables of statistics stay small.

A unit has 36 to 60 bytes in them: for a million rows of 16 values, half as much as the data. Where a part ends depends on shapes alone, so
that the bits do not depend on the number of threads.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import product
from typing import Any, NamedTuple

import numpy as np

from cpunorm import plan
from cpunorm.dispatch import Array, Run
from cpunorm.layout import CHANNEL, KEPT, REDUCED

Prepare = Callable[[Array, "Array | None", Array, int], Run]  # x, second, out, and the number of parts that they are one of
SUMS = 64  # bytes that a value of the parameters' two gradients counts for: a part's and the sum in float64, and a pass over them a part


class Cut(NamedTuple):
    """Of an axis of so many indices, into parts of so many."""

    axis: int
    size: int
    length: int


def in_parts(run: Run, prepare: Prepare, x: Array, second: Array | None, out: Array, roles: str, *, gradients: bool) -> Run:
    """`run`, prepared for these arrays, or where its tables take more than `plan.TABLE_BYTES`, runs of parts of them.

    They are cut along the first axis that statistics are kept apart on; where one index of it is still too much, along the next too. Not
    where a part costs more than half of what all need: a few long rows have large partial sums of gradients, which parts have as well.
    """
    cuts: list[Cut] = []
    first = last = run
    parts = 1
    for axis, (role, size) in enumerate(zip(roles, x.shape, strict=True)):
        needed = -(-8 * first.plan.scratch // plan.TABLE_BYTES)  # type: ignore[attr-defined]
        if needed <= 1 or (cuts and cuts[-1].length > 1):
            break
        if role != KEPT or size == 1:
            continue
        cut = Cut(axis, size, -(-size // needed))
        cuts.append(cut)
        parts *= -(-size // cut.length)
        rest = size % cut.length
        end = [_part(array, cut, size - rest, rest) for array in (x, second, out)] if rest else []
        x, second, out = (_part(array, cut, 0, cut.length) for array in (x, second, out))
        first = prepare(x, second, out, parts)
        last = prepare(end[0], end[1], end[2], parts) if rest else first
    values = math.prod(size for role, size in zip(roles, x.shape, strict=True) if role == (CHANNEL if CHANNEL in roles else REDUCED))
    if not cuts or 2 * (8 * first.plan.scratch + gradients * SUMS * values) > 8 * run.plan.scratch:  # type: ignore[attr-defined]
        return run
    return _one_after_another(first, last, cuts, roles)


def _part(array: Array | None, cut: Cut, lo: int, length: int) -> Any:
    """As many indices, from `lo` on; aligned if all of the array is, since what is prepared for one part runs on others.

    (One index alone can be aligned where the next is not: the fields of a structured array lie as far apart as they like.)
    """
    if array is None:
        return None
    part = array[(slice(None),) * cut.axis + (slice(lo, lo + length),)]
    if array.flags.aligned or not part.flags.aligned:
        return part
    return _part(array, cut, lo - 1 if lo else 1, length)


def _one_after_another(first: Run, last: Run, cuts: list[Cut], roles: str) -> Run:
    """Statistics are written in parts as the result is; gradients of parameters are added up in float64."""
    room = first.room  # type: ignore[attr-defined]
    starts = [range(0, cut.size, cut.length) for cut in cuts]

    def run(*arrays: Array | None) -> Array:
        data, parameters, stats, gradients = arrays[:4], arrays[4:8], arrays[8:10], arrays[10:]
        sums = [None if gradient is None else np.zeros(gradient.shape) for gradient in gradients]
        added: list[Any] = [None if gradient is None else np.empty_like(gradient) for gradient in gradients]
        np.empty(room, np.uint8)  # what each part will take is there: no memory is found out before the first one writes
        for place in product(*starts):
            here = [slice(None)] * len(roles)
            for cut, lo in zip(cuts, place, strict=True):
                here[cut.axis] = slice(lo, lo + cut.length)
            there = here if CHANNEL not in roles else [here[cuts[0].axis]]  # (samples are the first axis of their statistics)
            part = first if place[-1] + cuts[-1].length <= cuts[-1].size else last
            cut_data = [None if array is None else array[tuple(here)] for array in data]
            cut_stats = [None if array is None else array[tuple(there)] for array in stats]
            part(*cut_data, *parameters, *cut_stats, *added)
            with np.errstate(all="ignore"):
                for total, one in zip(sums, added, strict=True):
                    if total is not None:
                        total += one
        with np.errstate(all="ignore"):
            for gradient, total in zip(gradients, sums, strict=True):
                if gradient is not None:
                    gradient[...] = total
        return np.empty(0)

    return run
