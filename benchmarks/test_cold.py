"""Cold start, each in a new process: import, the first call (kernels compiled, or nothing to compile), the first call from a warm cache.

The seconds are taken within the process, from before ``import cpunorm`` or from after it; starting Python and NumPy is not ours.
"""

import pytest
from conftest import fresh_process, loaded

from cpunorm import check

ROUNDS = 3
IMPORT = """
import time
import numpy
start = time.perf_counter()
import cpunorm
print(time.perf_counter() - start)
"""
CALL = """
import time
import numpy as np
import cpunorm as cn
x, y = np.ones((8, 64, 56, 56), np.float32), np.zeros((8, 64, 56, 56), np.float32)
running = np.zeros(64, np.float32), np.ones(64, np.float32)
start = time.perf_counter()
cn.batch_norm(x, *running, training=True, backend="{backend}", out=y)
print(time.perf_counter() - start)
assert abs(y).max() < 1e-3  # of a constant
"""
WARM = CALL.replace(
    "start = time.perf_counter()\ncn",
    'cn.batch_norm(x, *running, training=True, backend="{backend}", out=y)\nstart = time.perf_counter()\ncn',
)


class Clock:
    """A timer for pytest-benchmark that goes on by what the process says it took."""

    now = 0.0

    def __call__(self):
        return Clock.now


def measured(benchmark, code, rounds=ROUNDS, prepare=lambda: {}):
    """As benchmark.pedantic, of the seconds that the code prints."""

    def setup():
        return (), {"environment": prepare()}

    def run(environment):
        Clock.now += float(fresh_process(code, **environment))

    benchmark.pedantic(run, setup=setup, rounds=rounds)


@pytest.mark.quick
@pytest.mark.benchmark(group="cold start", timer=Clock())
def test_import(benchmark):
    measured(benchmark, IMPORT)


@pytest.mark.quick
@pytest.mark.parametrize("backend", check.BACKENDS)
@pytest.mark.benchmark(group="cold start", timer=Clock())
def test_first_call(benchmark, backend, tmp_path):
    """Numba compiles what one call needs into an empty cache folder; the others have nothing to compile."""
    number = iter(range(100))
    measured(benchmark, CALL.format(backend=loaded(backend)), 2, lambda: {"NUMBA_CACHE_DIR": str(tmp_path / str(next(number)))})


@pytest.mark.quick
@pytest.mark.parametrize("backend", check.BACKENDS)
@pytest.mark.benchmark(group="cold start", timer=Clock())
def test_first_call_cached(benchmark, backend, tmp_path):
    code = CALL.format(backend=loaded(backend))
    fresh_process(code, NUMBA_CACHE_DIR=str(tmp_path))
    measured(benchmark, code, prepare=lambda: {"NUMBA_CACHE_DIR": str(tmp_path)})


@pytest.mark.parametrize("backend", check.BACKENDS)
@pytest.mark.benchmark(group="cold start", timer=Clock())
def test_second_call(benchmark, backend):
    """What the others are to be compared with."""
    measured(benchmark, WARM.format(backend=loaded(backend)))
