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
import warnings
from functools import cache

import numba
from numba.np.ufunc import parallel

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
def choose() -> str | None:
    """The layer that the parallel driver will run on, None where there is no safe one. Says so once."""
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
    return _running() is not None


def pool_size() -> int:
    """The most threads that the pool can have."""
    return int(numba.config.NUMBA_NUM_THREADS)
