"""What the benchmarks share: the quick set, the machine in every JSON file, and the limit measured in the same rounds.

    python -m pytest benchmarks -m quick          the quick set, under three minutes
    python -m pytest benchmarks                   all of it, which takes hours: choose with -k, e.g. -k "layer_norm and ViT and float16"
    --benchmark-json=FILE, --benchmark-autosave, --benchmark-compare, --benchmark-disable (check only)     as pytest-benchmark has them

Rounds of one benchmark are not interleaved with those of another: for ratios between contestants on a machine that is not quiet, take
`cpunorm compare`, which does that and says which ratio it does not trust. What is interleaved here is the limit: before each round, a
copy of the same bytes. agree.py says which ratios of a JSON file are not to be trusted, and whether two files agree.
"""

import time

import numpy as np
import pytest

from cpunorm import backends, check, machine, settings
from cpunorm.compare import contestants, heap, measure, peers, save
from cpunorm.compare.results import CORE, trips

ALL = settings.default_threads()
THREADS = tuple(dict.fromkeys((1, ALL)))


def pytest_configure(config):
    config.addinivalue_line("markers", "quick: the quick set")
    heap.keep_pages()


def pytest_benchmark_update_machine_info(config, machine_info):
    caches = machine.caches()
    machine_info |= {
        "cpu_name": machine.cpu_name(),
        "cpus": machine.affinity(),
        "l2": caches.l2,
        "l3": caches.l3,
        "versions": save.versions(),
    }


def loaded(backend):
    """A backend of ours, or skip and say why."""
    try:
        backends.load(backend)
    except ImportError as problem:
        pytest.skip(str(problem))
    return backend


def has_limit():
    try:
        backends.load("c")
    except ImportError:
        return False
    return True


class Yardstick:
    """Times the parts of the limit before each round."""

    def __init__(self, parts, reads, writes):
        self._parts, self._reads, self._writes = parts, reads, writes
        self._best = dict.fromkeys(parts, float("inf"))
        self.rounds = []  # the limit's seconds, of each time

    def __call__(self):
        taken = {}
        for name, run in self._parts.items():
            start = time.perf_counter()
            run()
            taken[name] = time.perf_counter() - start
            self._best[name] = min(self._best[name], taken[name])
        if taken:
            self.rounds.append(self._limit(taken))
        time.sleep(measure.PAUSE)  # the threads of its region spin for a while

    def _limit(self, taken):
        if self._reads is None:
            return min(taken.values())
        copy = min(taken[measure.COPY], taken[measure.STREAM])
        return trips(self._reads, self._writes, copy, taken[measure.READ])

    @property
    def seconds(self):
        return self._limit(self._best) if self._parts else None


@pytest.fixture
def checked(benchmark):
    """Check a contestant, time it in rounds with the limit between them, and say so in `extra_info`."""

    def run(contestant, work, threads, libraries, trips=(None, None)):
        peers.use_threads(threads, libraries)
        good, error = contestants.deviation(contestant.results(contestant.run()), work.expected, **contestant.tolerance)
        problem = f"{contestant.name} differs from the reference by {error:.2g}"
        if not good and contestant.name not in check.BACKENDS:
            pytest.skip(f"not timed: {problem}")
        assert good, problem
        yardstick = Yardstick({name: run for name, run in work.limit_parts(threads).items() if name != CORE} if has_limit() else {}, *trips)
        yardstick()
        start = time.perf_counter()
        contestant.run()
        seconds = time.perf_counter() - start
        rounds = int(np.clip(0.15 / seconds, 5, 30))
        iterations = int(np.clip(measure.TURN / seconds, 1, 100))
        if iterations > 1:  # pytest-benchmark allows no setup then: the limit comes before and after
            yardstick()
            benchmark.pedantic(contestant.run, rounds=rounds, iterations=iterations)
            yardstick()
        else:
            benchmark.pedantic(contestant.run, setup=yardstick, rounds=rounds)
        benchmark.extra_info |= {
            "contestant": contestant.name,
            "threads": 1 if contestant.name in peers.SERIAL else threads,
            "largest_error": error,
            "bytes": work.bytes,
            "cpu": machine.cpu_name(),
            "versions": save.versions(),
        }
        if benchmark.stats is not None:  # not disabled
            best = benchmark.stats.stats.min
            limit = yardstick.seconds
            benchmark.extra_info["gb_per_second"] = work.bytes / best / 1e9
            benchmark.extra_info["percent_of_limit"] = None if limit is None else 100 * limit / best
            benchmark.extra_info["limit_rounds"] = yardstick.rounds

    return run
