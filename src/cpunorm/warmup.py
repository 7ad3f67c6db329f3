"""Compile every Numba kernel once, so that no later call waits for it. ``cpunorm warmup`` runs this.

Which kernels there are is not listed here: the operation table is run on small arrays, in every way that chooses another kernel or driver.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import partial
from itertools import product

import numpy as np

from cpunorm import check
from cpunorm.ops import OPERATIONS, Operation
from cpunorm.plan import SERIAL_BYTES

LAYOUTS = ("NCHW", "NHWC")  # one of each form, runs and columns
SHAPE = (2, 16, 32, SERIAL_BYTES // (2 * 16 * 32))  # enough for the parallel driver


def jobs() -> list[tuple[str, Callable[[], object]]]:
    """(what it is, a function that compiles it): kernels that the cache folder has are read from there."""
    from cpunorm.jit import backend, threads

    made: list[tuple[str, Callable[[], object]]] = []
    counts = (1, 2) if threads.pool_size() > 1 else (1,)
    for row, dtype, layout, count in product(OPERATIONS.values(), check.FLOATS, LAYOUTS, counts):
        for in_place in (False, True) if "out" in inspect.signature(row.function).parameters else (False,):
            label = f"{row.name}, {dtype}, {layout}, {'in place, ' if in_place else ''}{count} thread{'s' * (count > 1)}"
            made.append((label, _job(row, dtype, layout, count, in_place)))
    # Chosen for arrays beyond the caches only; making one takes longer than compiling.
    return made + [(f"streaming stores, {dtype}", partial(backend.address, "store_stream", dtype)) for dtype in check.FLOATS]


def _job(row: Operation, dtype: str, layout: str, threads: int, in_place: bool) -> Callable[[], object]:
    def run() -> None:
        inputs = row.inputs(SHAPE, layout, dtype, np.random.default_rng(0))
        options = {"out": inputs["x"]} if in_place else {}
        row.call(inputs, backend="numba", threads=threads, **options)

    return run


def warmup(progress: Callable[[str], object] = str) -> None:
    """Compile all, for float32 and float64; `progress` is told what comes next."""
    for label, run in jobs():
        progress(label)
        run()
