"""Whose threads run the Numba kernels, decided when they are first needed.

=========  ==========================  =======================  ===========================================================
layer      two Python threads at once  a forked child           here
=========  ==========================  =======================  ===========================================================
openmp     works                       hangs, if it uses it     the first choice: the driver of the C part, where it was built;
                                                                a forked child runs serially
tbb        works                       works, may hang as it    the second; a forked child runs serially, and we hold TBB for it
                                       forks itself or exits
omp        works                       killed, if it uses it    the third; a forked child runs serially
workqueue  aborts the process          works                    never: the serial driver, with one warning
=========  ==========================  =======================  ===========================================================

The last three are Numba's own, under ``prange``. Kernels are called by address, so that either driver can run them. The C part's wakes its
threads 20 us sooner than TBB (layer norm of (1, 197, 768): 33 us instead of 51) and shares them with PyTorch (benchmarks/waking.py,
benchmarks/neighbours.py). Who sets ``NUMBA_THREADING_LAYER`` gets the layer that it names.
"""

from __future__ import annotations

import ctypes
import importlib.metadata
import os
import warnings
from contextlib import suppress
from functools import cache
from typing import Any

import numba
from numba.np.ufunc import parallel

from cpunorm import backends

# What others may have asked Numba for (NUMBA_THREADING_LAYER, numba.config.THREADING_LAYER), and the layers that are safe and keep to it.
# "forksafe" is for their forked children: there GNU's OpenMP kills.
_SAFE = {"default": ("tbb", "omp"), "threadsafe": ("tbb", "omp"), "omp": ("omp",), "tbb": ("tbb",), "safe": ("tbb",), "forksafe": ("tbb",)}


def _load_tbb() -> bool:
    """Load the library of the ``tbb`` package for all: a virtual environment's ``lib`` is not where the loader looks for it."""
    try:
        files = importlib.metadata.files("tbb") or []
        for file in files:
            if file.name in ("libtbb.so.12", "tbb12.dll"):
                ctypes.CDLL(str(file.locate().resolve()), mode=ctypes.RTLD_GLOBAL)
                break
    except (importlib.metadata.PackageNotFoundError, OSError):
        pass
    try:
        parallel._check_tbb_version_compatible()
        from numba.np.ufunc import tbbpool  # noqa: F401
    except ImportError:
        return False
    return True


def _has_omp() -> bool:
    try:
        from numba.np.ufunc import omppool  # noqa: F401
    except ImportError:
        return False
    return True


@cache
def native() -> backends.Backend | None:
    """The C backend, whose driver runs the kernels. None where it is not built, has no OpenMP, or Numba was told which layer to take."""
    if str(numba.config.THREADING_LAYER).lower() != "default":
        return None
    try:
        module: Any = backends.load("c")
    except ImportError:
        return None
    return module if module.has_openmp() else None


@cache
def choose() -> str | None:
    """The layer that the kernels will run on, None where there is no safe one. Says so once."""
    if native():
        return "openmp"
    if parallel._is_initialized:  # somebody else's choice
        return _running()
    asked = str(numba.config.THREADING_LAYER).lower()
    safe = _SAFE.get(asked, ())
    for layer in numba.config.THREADING_LAYER_PRIORITY:
        if layer in safe and (_load_tbb() if layer == "tbb" else _has_omp()):
            numba.config.THREADING_LAYER = layer
            return str(layer)
    if not safe:
        _serial_because(f"Numba is set to the threading layer {asked!r}, which aborts when two Python threads use it")
    elif len(safe) == 1:
        _serial_because(f"Numba is set to the threading layer {asked!r}, and {safe[0]} cannot be loaded")
    else:
        _serial_because("neither TBB nor OpenMP can be loaded (pip install tbb)")
    return None


def _running() -> str | None:
    layer = str(parallel.threading_layer())
    if layer != "workqueue":
        return layer
    _serial_because("another user of Numba in this process chose the workqueue layer, which aborts when two Python threads use it")
    return None


def _serial_because(reason: str) -> None:
    warnings.warn(f"cpunorm: Numba's kernels run on one thread: {reason}", RuntimeWarning, stacklevel=5)


def launch() -> bool:
    """Start the layer's threads, which registers the names that the parallel driver is linked with; whether it is a safe one.

    Somebody else may have launched another one since `choose`.
    """
    parallel._launch_threads()
    layer = _running()
    if layer == "tbb" and hasattr(os, "register_at_fork"):
        _hold_tbb_in_children()
    return layer is not None


def _hold_tbb_in_children() -> None:
    """Before a fork of a forked child, and when it exits, Numba shuts TBB down, which waits forever for threads that were at work when the
    child was forked. It waits for nobody where somebody else holds TBB (``tbb::task_scheduler_handle``), and so we do.
    """
    with suppress(ImportError, AttributeError):  # a TBB that has no such handle
        from numba.np.ufunc import tbbpool

        hold = ctypes.CDLL(tbbpool.__file__)._ZN3tbb6detail2r13getERNS0_2d121task_scheduler_handleE
        handle = ctypes.c_void_p()
        os.register_at_fork(after_in_child=lambda: hold(ctypes.byref(handle)))


def pool_size() -> int:
    """The most threads that the pool can have."""
    return int(numba.config.NUMBA_NUM_THREADS)
