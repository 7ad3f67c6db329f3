"""Which threading layer runs the parallel driver, decided when it is first needed.

=========  ==========================  =======================  ==========================================
layer      two Python threads at once  a forked child           here
=========  ==========================  =======================  ==========================================
tbb        works                       works                    the first choice
omp        works                       killed, if it uses it    the second; a forked child runs serially
workqueue  aborts the process          works                    never: the serial driver, with one warning
=========  ==========================  =======================  ==========================================
"""

from __future__ import annotations

import ctypes
import importlib.metadata
import os
import warnings
from functools import cache

import numba
from numba.np.ufunc import parallel

_forked = False


def _after_fork() -> None:
    global _forked
    _forked = True


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


def forked() -> bool:
    """Whether this process was forked after this module was loaded. Threads do not survive a fork: it computes serially."""
    return _forked


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
def choose() -> str | None:
    """The layer that the parallel driver will run on, None where there is no safe one. Says so once."""
    if parallel._is_initialized:  # somebody else's choice
        layer = str(parallel.threading_layer())
        if layer != "workqueue":
            return layer
        reason = "another user of Numba in this process chose the workqueue layer, which aborts when two Python threads use it"
    elif _load_tbb():
        numba.config.THREADING_LAYER = "tbb"
        return "tbb"
    elif _has_omp():
        numba.config.THREADING_LAYER = "omp"
        return "omp"
    else:
        reason = "neither TBB nor OpenMP can be loaded (pip install tbb)"
    warnings.warn(f"cpunorm: Numba's kernels run on one thread: {reason}", RuntimeWarning, stacklevel=4)
    return None


def launch() -> None:
    """Start the layer's threads, which registers the names that the parallel driver is linked with."""
    parallel._launch_threads()


def pool_size() -> int:
    """The most threads that the pool can have."""
    return int(numba.config.NUMBA_NUM_THREADS)
