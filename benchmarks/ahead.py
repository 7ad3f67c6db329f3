"""From what size on it pays that kernels ask for what they read next: each case with and without, of arrays that grow.

Only depth-first schedules ask; see `cpunorm.plan.fetches`.

python benchmarks/ahead.py [--threads 1,2] [--backends c,numba]
"""

import argparse
import time
from collections.abc import Callable
from unittest import mock

import numpy as np

from cpunorm import call, machine, ops, plan
from cpunorm.compare import contestants

CASES = [
    ("layer_norm", lambda n: (197 * n, 768)),
    ("group_norm", lambda n: (n, 320, 16, 16)),
    ("batch_norm training", lambda n: (n, 256, 28, 28)),
    ("batch_norm_backward", lambda n: (n, 256, 14, 14)),
    ("batch_norm_backward", lambda n: (n, 8, 112, 112)),  # units that L2 has no room for
]
SIXTEENTHS = (1, 2, 4, 6, 8, 10, 12, 16, 24)  # of L3, read and written
TURN = 0.02  # seconds
ROUNDS = 8


def prepared(name: str, shape: tuple[int, ...], backend: str, threads: int, fetches: bool) -> Callable[[], object]:
    """A call that was made before, of this schedule."""
    row = ops.OPERATIONS[name]
    inputs = row.inputs(shape, "NCHW", "float32", np.random.default_rng(0))
    run = contestants.backend(row, inputs, backend, threads, np.zeros_like(inputs["x"])).run
    with mock.patch.object(plan, "fetches", return_value=fetches):
        call._PREPARED.clear()
        run()
    kept = dict(call._PREPARED)

    def again() -> None:
        call._PREPARED.clear()
        call._PREPARED.update(kept)
        begin = now = time.perf_counter()
        while now - begin < TURN:
            start = now
            run()
            now = time.perf_counter()
            fastest[fetches] = min(fastest[fetches], now - start)

    fastest = again.fastest = {fetches: float("inf")}  # type: ignore[attr-defined]
    return again


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", default="1,2")
    parser.add_argument("--backends", default="c,numba")
    options = parser.parse_args()
    l3 = machine.caches().l3
    print(f"L3 {l3 >> 20} MB; fastest of {ROUNDS} turns, us; above 1: asking pays")
    for backend in options.backends.split(","):
        for threads in map(int, options.threads.split(",")):
            for name, grow in CASES:
                for sixteenths in SIXTEENTHS:
                    moved = 3 if name.endswith("backward") else 2
                    shape = grow(max(1, l3 // 16 * sixteenths // (4 * moved * int(np.prod(grow(1))))))
                    runs = {fetches: prepared(name, shape, backend, threads, fetches) for fetches in (False, True)}
                    for _ in range(ROUNDS):
                        for run in runs.values():
                            run()
                    without, with_ = (1e6 * runs[fetches].fastest[fetches] for fetches in (False, True))  # type: ignore[attr-defined]
                    head = f"{backend:6} {threads} {name:20} {'x'.join(map(str, shape)):16} {sixteenths / 16:5.0%} of L3"
                    print(f"{head} {without:8.0f} {with_:8.0f} {without / with_:5.2f}", flush=True)


if __name__ == "__main__":
    main()
