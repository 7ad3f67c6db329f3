"""Interleaved timing: contestants take turns in one process, and the fastest of many turns counts."""

import time
from collections.abc import Callable

PAUSE = 0.006  # seconds; an OpenMP region's threads spin for 2 to 3 ms after it


def race(runs: dict[str, Callable[[], object]], rounds: int = 30) -> dict[str, float]:
    """Seconds of each, the minimum over `rounds` rounds after one that does not count."""
    best = dict.fromkeys(runs, float("inf"))
    for number in range(rounds + 1):
        for name, run in runs.items():
            time.sleep(PAUSE)
            start = time.perf_counter()
            run()
            if number:
                best[name] = min(best[name], time.perf_counter() - start)
    return best
