"""Cold start, each in a new process: import, the first call (kernels compiled, or nothing to compile), the first call from a warm cache."""

import pytest
from cold import CALL, COLD_ROUNDS, IMPORT, WARM, fresh_process
from conftest import loaded

from cpunorm import check

ROUNDS = 3


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
        Clock.now += fresh_process(code, **environment)

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
    measured(benchmark, CALL.format(backend=loaded(backend)), COLD_ROUNDS, lambda: {"NUMBA_CACHE_DIR": str(tmp_path / str(next(number)))})


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
