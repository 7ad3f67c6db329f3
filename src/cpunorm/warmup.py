"""Compile every Numba kernel once, so that no later call waits for it. ``cpunorm warmup`` runs this.

Which kernels there are is not listed here: `cpunorm.jit.kernels` has them. Drivers, where Numba has its own, by running something.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np

from cpunorm import functional
from cpunorm.plan import SERIAL_BYTES

FLOAT64_ONLY = ("fold_moments", "fold_sums")  # tables
NARROW = ("float16", "bfloat16")  # only kernels of elements know them
# Endings: what is computed in float32 whatever the data is, or not computed in floats.
FLOAT32_ONLY = ("int8", "int16", "float16", "planes", "pixels", "resize_rows", "counts_runs", "counts_columns")


def jobs() -> list[tuple[str, Callable[[], object]]]:
    """(what it is, a function that compiles it): kernels that the cache folder has are read from there."""
    from cpunorm.jit import backend, kernels

    made: list[tuple[str, Callable[[], object]]] = [
        (f"{kernel}, {dtype}", partial(backend.address, kernel, dtype))
        for kernel in (*kernels.KERNELS, *kernels.STAGES)
        for dtype in ("float32", "float64", *NARROW)
        if not (
            kernel in FLOAT64_ONLY
            if dtype == "float32"
            else kernel.endswith(FLOAT32_ONLY)
            if dtype == "float64"
            else kernel not in kernels.OF_ELEMENTS
        )
    ]
    x = np.zeros((2, SERIAL_BYTES), np.float32)  # enough for the parallel driver
    for threads in (1, 2):
        label = f"a call on {'one thread' if threads == 1 else 'several threads'}"
        made.append((label, partial(functional.mean_var, x, 1, backend="numba", threads=threads)))
    return made


def warmup(progress: Callable[[str], object] = str) -> None:
    """Compile all; `progress` is told what comes next."""
    for label, run in jobs():
        progress(label)
        run()
