"""The Numba backend: compiles a kernel when a program first asks for it, and runs programs."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any, cast

from numba import njit, types
from numba.core.ccallback import CFunc
from numba.core.compiler_lock import global_compiler_lock
from numba.core.sigutils import normalize_signature

from cpunorm import forks
from cpunorm.jit import drivers, kernels, threads
from cpunorm.jit.cache import KernelCache
from cpunorm.jit.lowlevel import FASTMATH, STEP_RECORD
from cpunorm.program import SLOTS

name = "numba"
_WAKING = 8  # of Numba's own layers: two threads take 45 us for 2 MB where one takes 38 (benchmarks/waking.py)
_ELEMENTS = {"float32": types.float32, "float64": types.float64, "float16": types.uint16, "bfloat16": types.int16}  # `vectors` says how
_OPTIONS = {"error_model": "numpy", "boundscheck": False, "fastmath": FASTMATH}
forks.locks.append(global_compiler_lock)  # another user of Numba may be compiling


class _Kernel(CFunc):
    """A C callback whose machine code is kept by our cache."""

    def __init__(self, function: Callable[..., None], signature: Any) -> None:
        super().__init__(function, normalize_signature(signature), locals={}, options=_OPTIONS)
        self._cache = KernelCache(function.__name__)


_compiled: dict[tuple[str, str], _Kernel] = {}


def address(kernel: str, dtype: str) -> int:
    """The address of a kernel or stage for elements of `dtype`, compiled (or loaded from the cache) if need be."""
    if kernel not in kernels.OF_ELEMENTS and dtype != "float64":
        dtype = "float32"  # what 16-bit elements are computed in
    found = _compiled.get((kernel, dtype))
    if found is not None:
        return cast(int, found.address)
    with forks.undisturbed():
        found = _compiled.get((kernel, dtype))
        if found is None:
            value = types.CPointer(_ELEMENTS[dtype])
            if kernel in kernels.STAGES:
                function, signature = kernels.STAGES[kernel], types.void(value, value, types.intp)
            else:
                function = kernels.KERNELS[kernel]
                signature = types.void(types.CPointer(STEP_RECORD), types.CPointer(value), types.intp, types.intp)
            found = _Kernel(function, signature)
            found.compile()
            _compiled[kernel, dtype] = found
        return cast(int, found.address)


def _driver(function: Callable[..., None], parallel: bool) -> Callable[..., None]:
    dispatcher: Any = njit(nogil=True, error_model="numpy", parallel=parallel)(function)
    dispatcher._cache = KernelCache(function.__name__)
    dispatcher.compile(types.void(*[types.intp] * (2 + len(SLOTS))))
    dispatcher.disable_compile()
    return cast(Callable[..., None], dispatcher)


@cache
def _serial() -> Callable[..., None]:
    return _driver(drivers.run_serial, parallel=False)


@cache
def _parallel() -> Callable[..., None] | None:
    if threads.choose() is None or not threads.launch():
        return None
    return _driver(drivers.run_parallel, parallel=True)


def waking() -> int:
    """Times `plan.SERIAL_BYTES` that a second thread pays from."""
    native = threads.native()
    return native.waking() if native else _WAKING


def driver(count: int) -> tuple[Callable[..., None], int]:
    """The function that runs a program on `count` threads, and the number of threads to pass to it."""
    count = min(count, threads.pool_size())
    native = threads.native()
    if native:
        return native.driver(count)
    with forks.undisturbed():
        parallel = _parallel() if count > 1 and not forks.forked() else None
        return (_serial(), 1) if parallel is None else (parallel, count)
