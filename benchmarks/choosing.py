"""What a choice costs: backends, `out=`, one thread and several, by the size of the array. The table of docs/guide/choosing.md.

python benchmarks/choosing.py          batch norm in inference, float32, NCHW; a GitHub table of times and of ratios to C with out=
"""

import time
from collections.abc import Iterator

import numpy as np

import cpunorm as cn
from cpunorm import settings

SHAPES = {
    "8 KB": (1, 8, 16, 16),
    "200 KB": (1, 64, 28, 28),
    "3 MB": (4, 64, 56, 56),
    "26 MB": (32, 256, 28, 28),
    "103 MB": (32, 64, 112, 112),
}
TURN, PAUSE, ROUNDS = 0.003, 0.006, 60


def calls(x, threads):
    """What is compared; the first is what the others are divided by."""
    ones, out = np.ones(x.shape[1], np.float32), np.empty_like(x)

    def run(**options):
        return lambda: cn.batch_norm(x, ones, ones, ones, ones, **options)

    return {
        "c, out=": run(backend="c", out=out, threads=threads),
        "c, fresh result": run(backend="c", threads=threads),
        "c, out=, 1 thread": run(backend="c", out=out, threads=1),
        "numba, out=": run(backend="numba", out=out, threads=threads),
        "numpy": run(backend="numpy"),
    }


def table(shapes=SHAPES, rounds=ROUNDS) -> Iterator[str]:
    """In turn, each for some milliseconds, and of each the fastest turn: a CPU that somebody else uses makes threads wait."""
    threads = settings.default_threads()
    names = list(calls(np.ones((1, 1, 2, 2), np.float32), 1))
    yield f"| array | {names[0]}, {threads} threads | {' | '.join(names[1:])} |"
    yield f"|---|{'--:|' * len(names)}"
    for size, shape in shapes.items():
        contestants = calls(np.random.default_rng(0).normal(size=shape).astype(np.float32), threads)
        times = {name: [] for name in contestants}
        for run in contestants.values():
            run()
        for _ in range(rounds):
            for name, run in contestants.items():
                time.sleep(PAUSE)
                start, count = time.perf_counter(), 0
                while not count or time.perf_counter() - start < TURN:
                    run()
                    count += 1
                times[name].append((time.perf_counter() - start) / count)
        least = min(times[names[0]])
        ratios = [min(times[name]) / least for name in names[1:]]
        first = f"{1e3 * least:.2f} ms" if least >= 1e-3 else f"{1e6 * least:.0f} us"
        yield f"| {size} | {first} | {' | '.join(f'{ratio:.1f}' for ratio in ratios)} |"


if __name__ == "__main__":
    for line in table():
        print(line, flush=True)
