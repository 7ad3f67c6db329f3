"""What needs a process of its own: the import, the kernel cache, threading layers, forks."""

import json
import os

import pytest
from helpers import python

from cpunorm import backends

# A call of two kernels (fold_running, affine_columns) by Numba's own driver (run_serial), and what the cache did.
CALL = """
import json, numpy as np, cpunorm as cn
x = np.arange(12, dtype=np.float32).reshape(4, 3)
y = cn.batch_norm(x, np.full(3, 1, np.float32), np.full(3, 4, np.float32), eps=0, backend="numba", threads=1)
from cpunorm.jit import cache
print(json.dumps([np.array_equal(y, (x - 1) / 2), cache.hits, cache.misses, cache.problems]))
"""


def called(folder, before=""):
    return json.loads(python(before + CALL, NUMBA_CACHE_DIR=str(folder), NUMBA_THREADING_LAYER="threadsafe").splitlines()[-1])


def test_import_is_light():
    heavy = {"numba", "llvmlite", "scipy", "matplotlib", "torch", "cffi", "_cffi_backend", "PIL", "rich", "tbb", "cpunorm._native"}
    heavy |= {"dask", "distributed", "zarr"}
    assert set(python("import sys, cpunorm; print(*sys.modules)").split()) & heavy == set()


def test_a_missing_dask_names_the_extra():
    code = "import sys\nsys.modules['dask'] = None\ntry:\n    import cpunorm.dask\nexcept ImportError as problem:\n    print(problem)"
    assert "pip install 'cpunorm[dask]'" in python(code)


def test_a_call_of_the_numpy_backend_imports_no_numba():
    code = "import sys, numpy as np, cpunorm as cn; cn.batch_norm(np.ones((2, 3)), np.zeros(3), np.ones(3), backend='numpy')\n"
    assert python(code + "print('numba' in sys.modules)") == "False"


def test_kernel_cache(tmp_path):
    """tests/test_cold.py has what can go wrong with it."""
    pytest.importorskip("numba")
    assert called(tmp_path) == [True, 0, 3, []]
    files = sorted((tmp_path / "cpunorm").iterdir())
    assert [file.name.split("-")[0] for file in files] == ["affine_columns", "fold_running", "run_serial"]
    assert called(tmp_path) == [True, 3, 0, []]


# Two calls large enough for two threads and a small one, then the warnings they gave.
LARGE = """
import sys, warnings, numpy as np, cpunorm as cn
x = np.random.default_rng(0).normal(size=(4, 8, 128, 128)).astype(np.float32)
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    results = [cn.batch_norm(x, None, None, training=True, backend="numba", threads=2) for _ in range(2)]
    cn.batch_norm(x, np.zeros(8, np.float32), np.ones(8, np.float32), backend="numba", threads=2)
    cn.show_config()
serial = cn.batch_norm(x, None, None, training=True, backend="numba", threads=1)
assert all(np.array_equal(result, serial) for result in results)
print(*(f"{w.category.__name__}: {w.message}" for w in caught), sep="\\n")
"""
NO_LAYER = "from cpunorm.jit import threads\nthreads.native = threads._load_tbb = threads._has_omp = lambda: False\n"
WORKQUEUE = """
import numba
numba.config.THREADING_LAYER = "workqueue"
@numba.njit(parallel=True)
def somebody(n):
    total = 0
    for i in numba.prange(n):
        total += i
    return total
somebody(10)
assert numba.threading_layer() == "workqueue"
"""


@pytest.mark.parametrize(("before", "reason"), [(NO_LAYER, "neither TBB nor OpenMP"), (WORKQUEUE, "workqueue")], ids=["none", "workqueue"])
def test_without_a_safe_threading_layer(before, reason):
    """One thread, one warning."""
    pytest.importorskip("numba")
    printed = python(before + LARGE, NUMBA_NUM_THREADS="2")
    warned = [line for line in printed.splitlines() if "Warning: " in line]
    assert len(warned) == 1, warned
    assert warned[0].startswith("RuntimeWarning: cpunorm")
    assert reason in warned[0]


@pytest.mark.parametrize("layer", ["default", "threadsafe"])
def test_with_a_safe_threading_layer(layer):
    pytest.importorskip("numba")
    assert "Warning" not in python(LARGE, NUMBA_NUM_THREADS="2", NUMBA_THREADING_LAYER=layer)


FORK = """
import os, warnings, numpy as np, cpunorm as cn
warnings.simplefilter("ignore", DeprecationWarning)  # of forks beside threads: what this is about
x = np.random.default_rng(0).normal(size=(4, 8, 128, 128)).astype(np.float32)
def compute(x):
    y, mean, rstd = cn.batch_norm(x, None, None, training=True, backend=BACKEND, threads=2, return_stats=True)
    return [*cn.mean_var(x, (0, 2, 3), backend=BACKEND, threads=2), y, mean, rstd]
def same(a, b):
    return all(np.array_equal(p, q) for p, q in zip(a, b))
wanted = compute(x)
child = os.fork()
if not child:
    # a shape that was prepared before the fork, and a new one
    os._exit(0 if same(compute(x), wanted) and np.isfinite(compute(x[1:])[2]).all() else 3)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
assert same(compute(x), wanted)
print("both")
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_forked_child_computes(compiled):
    assert python(f"BACKEND = {compiled!r}\n" + FORK, timeout=60, NUMBA_NUM_THREADS="2") == "both"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_child_forked_before_any_call_computes(compiled):
    """The pool of a prefork server: the parent only imported."""
    fork = FORK.replace("wanted = compute(x)\n", "").replace(", wanted)", ", compute(x))")
    code = f"BACKEND = {compiled!r}\n" + fork
    assert python(code, timeout=60, NUMBA_NUM_THREADS="2") == "both"


def test_an_unknown_instruction_set_is_refused():
    try:
        backends.load("c")
    except ImportError as problem:
        pytest.skip(str(problem))
    code = "import cpunorm.backends as b\ntry:\n    b.load('c')\nexcept ValueError as problem:\n    print(problem)"
    printed = python(code, CPUNORM_INSTRUCTION_SET="mmx")
    assert "CPUNORM_INSTRUCTION_SET" in printed
    assert "'mmx'" in printed
