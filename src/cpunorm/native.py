"""The C backend: the kernels of csrc/, compiled when the package was installed. It mirrors `cpunorm.jit.backend`.

Importing it raises ImportError where the package was installed without a C compiler.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import numpy as np

from cpunorm import forks, settings

try:
    from cpunorm._native import ffi, lib
except ImportError as problem:
    raise ImportError(
        f"cpunorm has no C kernels here ({problem}): it was installed without a working C compiler. "
        "Install one (e.g. `apt-get install gcc python3-dev`), then "
        "`pip install --force-reinstall --no-cache-dir --no-binary cpunorm cpunorm` or, from a checkout, `pip install .`",
        name="cpunorm._native",
    ) from problem

name = "c"
VARIABLE = "CPUNORM_INSTRUCTION_SET"
_DTYPES = {"float32": 0, "float64": 1, "float16": 2, "bfloat16": 3}  # as cpunorm_kernel numbers them

lib.cpunorm_data_field = object.__basicsize__

# ---------------------------------------------------------------- instruction sets


def _sets() -> dict[str, int]:
    found: dict[str, int] = {}
    number = 0
    while (text := lib.cpunorm_set_name(number)) != ffi.NULL:
        if lib.cpunorm_set_runs_here(number):
            found[ffi.string(text).decode()] = number
        number += 1
    return found


_SETS = _sets()


def _checked(wanted: str, source: str) -> str:
    if wanted not in _SETS:
        raise ValueError(f"{source}: {wanted!r} is not an instruction set that the C kernels have and this CPU runs: {', '.join(_SETS)}")
    return wanted


# The widest one, unless the environment says otherwise (read once, here).
_chosen = _checked(os.environ[VARIABLE], VARIABLE) if os.environ.get(VARIABLE) else [*_SETS][-1]


def instruction_sets() -> tuple[str, ...]:
    """The instruction sets that the C kernels have and this CPU runs, the narrowest first."""
    return tuple(_SETS)


def instruction_set() -> str:
    """The one whose kernels `address` gives out."""
    return _chosen


@contextmanager
def forced(instruction_set: str) -> Iterator[None]:
    """Give out the kernels of another instruction set, in all threads. For tests: programs linked before keep theirs."""
    global _chosen
    before = _chosen
    _chosen = _checked(instruction_set, "forced")
    try:
        yield
    finally:
        _chosen = before


# ---------------------------------------------------------------- the backend


@cache
def _address(instruction_set: str, kernel: str, dtype: str) -> int:
    found = int(lib.cpunorm_kernel(_SETS[instruction_set], kernel.encode(), _DTYPES[dtype]))
    if not found:
        raise LookupError(f"there is no C kernel {kernel!r}")
    return found


def address(kernel: str, dtype: str) -> int:
    """The address of a kernel or stage for elements of `dtype`."""
    return _address(_chosen, kernel, dtype)


# omp_get_max_threads() as OpenMP starts: below it, somebody has set a limit since (threadpoolctl, PyTorch's set_num_threads).
lib.cpunorm_usual_threads = settings.omp_threads() or lib.cpunorm_processors()


def has_openmp() -> bool:
    """Whether the compiler had OpenMP: without it there is one thread."""
    return bool(lib.cpunorm_has_openmp)


def waking() -> int:
    """Times `plan.SERIAL_BYTES` that a second thread pays from (benchmarks/waking.py)."""
    return 1


def driver(count: int) -> tuple[Callable[..., None], int]:
    """The function that runs a program on `count` threads, and the number of threads to pass to it. It runs Numba's kernels as well as C's.

    A forked child runs on one: OpenMP's threads do not survive the fork, and libgomp waits for them forever.
    """
    return lib.cpunorm_run, 1 if forks.forked() or not has_openmp() else max(count, 1)


def struct_fields(struct: str) -> tuple[list[str], list[int], int]:
    """Names and offsets of the fields of csrc/program.h's `struct`, and its size: as the C compiler sees what `cpunorm.program` writes."""
    kind = ffi.typeof(struct)
    return [field for field, _ in kind.fields], [place.offset for _, place in kind.fields], int(ffi.sizeof(kind))


# ---------------------------------------------------------------- the yardstick


def copy_limit(to: np.ndarray[Any, Any], source: np.ndarray[Any, Any], threads: int, *, stream: bool, repeat: int = 1) -> None:
    """Copy `source` to `to` as fast as this machine can, through its caches or past them (`stream`). Both contiguous float32."""
    count = _floats(source)
    if _floats(to) != count:
        raise ValueError(f"a copy needs as much room as there is: {to.nbytes} bytes for {source.nbytes}")
    stage = address("store_stream" if stream else "store_plain", "float32")
    target = ffi.from_buffer("float[]", to, require_writable=True)
    lib.cpunorm_copy(stage, target, ffi.from_buffer("float[]", source), count, repeat, driver(threads)[1])


def read_limit(source: np.ndarray[Any, Any], threads: int) -> float:
    """Read `source`, contiguous float32, as fast as this machine can. Returns its sum, which nobody needs."""
    return float(lib.cpunorm_read(address("load_sum", "float32"), ffi.from_buffer("float[]", source), _floats(source), driver(threads)[1]))


def expand_limit(to: np.ndarray[Any, Any], source: np.ndarray[Any, Any], threads: int, *, stream: bool) -> float:
    """Read `source` and write all of `to`, through the caches or past them, as fast as this machine can. Contiguous float32."""
    read, write = address("load_sum", "float32"), address("store_stream" if stream else "store_plain", "float32")
    target = ffi.from_buffer("float[]", to, require_writable=True)
    counts = _floats(to), _floats(source)
    return float(lib.cpunorm_expand(read, write, target, counts[0], ffi.from_buffer("float[]", source), counts[1], driver(threads)[1]))


def _floats(array: np.ndarray[Any, Any]) -> int:
    if array.dtype != np.float32 or not array.flags.c_contiguous:
        raise ValueError("the yardstick takes C-contiguous arrays of float32")
    return array.size
