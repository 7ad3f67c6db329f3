"""The bars: how near each operation comes to the limit of this machine's memory, and how far ahead of PyTorch it is.

The limit of a case is measured in its own rounds, on its own arrays: the faster of a copy through the caches and one past them, and one
more read for each trip beyond the first. PyTorch is taken at its best: glibc is told to keep freed pages, so that no page fault of a fresh
result flatters us. Nobody is timed whose result differs from the float64 reference. A turn repeats its call for a few milliseconds (data
that fits stays in cache, threads stay awake); between turns everybody's threads go to sleep.

python benchmarks/limits.py [--threads 2] [--only REGEX] [--seconds 2] [--backends numba,c] [--json FILE]

`*` after a figure: below its bar. `numba/c`: seconds of Numba over those of C.
"""

import argparse
import json
import re
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from cpunorm import machine, native, ops
from cpunorm.compare import contestants, heap

TURN = 0.006  # seconds, or one call
PAUSE = 0.006  # libgomp's threads spin for 2 to 3 ms after a region, and slow what is timed next beside them threefold
LEAST = 5  # turns


@dataclass(frozen=True)
class Case:
    operation: str
    shape: tuple[int, ...]
    layout: str = "NCHW"
    dtype: str = "float32"
    percent: float | None = None  # of the limit, at least
    torch: float | None = None  # times PyTorch, at least

    @property
    def name(self) -> str:
        layout = f" {self.layout}" if ops.OPERATIONS[self.operation].layouts else ""
        return f"{self.operation}{layout} {'x'.join(map(str, self.shape))}{'' if self.dtype == 'float32' else ' ' + self.dtype}"


RESNET = [(64, 112), (64, 56), (256, 56), (512, 28), (1024, 14), (2048, 7)]
RESNET_SHAPES = [(n, c, s, s) for n in (32, 1) for c, s in RESNET if (n, c, s) != (1, 64, 56)]
YOLO = [(1, 3, 640, 640), (16, 32, 320, 320), (1, 32, 320, 320)]
ODD = [(7, 37, 45, 83), (4, 3, 513, 511)]
DIFFUSION = [(2, 320, 64, 64), (16, 320, 64, 64)]
SMALL = [("batch_norm inference", (1, 8, 4, 4)), ("batch_norm inference", (1, 64, 7, 7)), ("layer_norm", (4, 64))]
ROWS = [(32, 197, 768), (1, 197, 768), (4096, 4096)]


def in_cache(shape: tuple[int, ...], itemsize: int = 4) -> bool:
    """Whether what is read and written stays in L3."""
    return 2 * int(np.prod(shape)) * itemsize <= machine.caches().l3


def cases() -> list[Case]:
    found = []
    for layout in ("NCHW", "NHWC"):
        first = layout == "NCHW"
        for shape in RESNET_SHAPES + YOLO:
            cached = in_cache(shape)
            found.append(Case("batch_norm inference", shape, layout, percent=85 if cached else 95, torch=1.0 if cached else 1.3))
            fits = shape[0] * shape[2] * shape[3] * 4 <= machine.caches().l3 // 4
            percent = 60 if cached else (110 if fits else 95) if first else 85
            found.append(Case("batch_norm training", shape, layout, percent=percent, torch=1.0 if cached else 3 if first else 1.4))
        for shape in ODD:
            found += [Case(f"batch_norm {mode}", shape, layout, percent=60, torch=1) for mode in ("inference", "training")]
        for shape in [*DIFFUSION, (8, 512, 28, 28)]:
            percent = (75 if in_cache(shape) else 90) if first else 75
            found.append(Case("group_norm", shape, layout, percent=percent, torch=1.5))
        for shape in [(32, 64, 112, 112), (16, 320, 64, 64), (1, 64, 112, 112), (4, 3, 513, 511)]:
            percent = (75 if in_cache(shape) else 90) if first else 75
            found.append(Case("instance_norm", shape, layout, percent=percent, torch=4 if first else 8))
        found.append(Case("instance_norm", (32, 2048, 7, 7), layout, percent=45, torch=1))
        for shape in [(32, 64, 112, 112), (32, 512, 28, 28), (32, 2048, 7, 7), (1, 256, 56, 56)]:
            found.append(Case("batch_norm_backward", shape, layout, torch=1.8))
        for dtype in ("float16", "bfloat16"):
            found.append(Case("batch_norm inference", (32, 256, 56, 56), layout, dtype, torch=1.4))
    for name in ("layer_norm", "rms_norm"):
        for shape in ROWS:
            found.append(Case(name, shape, percent=75 if in_cache(shape) else 90, torch=1.5))
        found.append(Case(name, (3, 1000003), percent=60, torch=1))
        for dtype in ("float16", "bfloat16"):
            found += [Case(name, shape, dtype=dtype, torch=1.4) for shape in [(32, 197, 768), (4096, 4096)]]
        found += [Case(f"{name}_backward", shape, torch=1) for shape in [(32, 197, 768), (4096, 4096)]]
    return found + [Case(name, shape, torch=1.3) for name, shape in SMALL]


def aligned_like(x: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """An array like `x` as NumPy allocates them, its pages touched."""
    y = np.empty_like(x)
    y.reshape(-1).view(np.uint8)[...] = 0
    return y


def turns(runs: dict[str, Callable[[], object]], seconds: float) -> dict[str, list[float]]:
    """The fastest call of each turn of each contestant, until each has had its share of `seconds`."""
    best: dict[str, list[float]] = {name: [] for name in runs}
    spent = dict.fromkeys(runs, 0.0)
    number = 0
    while True:
        present = [name for name in runs if number < LEAST or spent[name] < seconds / len(runs)]
        if not present or number >= 100:
            return best
        for name in present if number % 2 else reversed(present):
            run = runs[name]
            time.sleep(PAUSE)
            begin = now = time.perf_counter()
            fastest = float("inf")
            while now - begin < TURN:
                start = now
                run()
                now = time.perf_counter()
                fastest = min(fastest, now - start)
            spent[name] += now - begin
            best[name].append(fastest)
        number += 1


def measure(case: Case, backends: list[str], threads: int, seconds: float) -> dict[str, Any]:
    row = ops.OPERATIONS[case.operation]
    inputs = row.inputs(case.shape, case.layout, case.dtype, np.random.default_rng(0))
    x, out = inputs["x"], aligned_like(inputs["x"])
    expected = row.reference(contestants.fresh(inputs, row))
    contestants.set_torch_threads(threads)
    entrants = [contestants.backend(row, inputs, name, threads, out) for name in backends]
    peer = contestants.torch(row, inputs)
    runs: dict[str, Callable[[], object]] = {}
    for entrant in [*entrants, *([peer] if peer else [])]:
        good, error = contestants.deviation(entrant.results(entrant.run()), expected, **entrant.tolerance)
        if good:
            runs[entrant.name] = entrant.run
        else:
            print(f"not timed: {entrant.name}, {case.name}: differs by {error:.2g}")
    whole = x.nbytes // 4 * 4
    source, to = (array.reshape(-1).view(np.uint8)[:whole].view(np.float32) for array in (x, out))
    runs["copy"] = lambda: native.copy_limit(to, source, threads, stream=False)
    runs["stream"] = lambda: native.copy_limit(to, source, threads, stream=True)
    if row.reads > row.writes:
        runs["read"] = lambda: native.read_limit(source, threads)
    taken = turns(runs, seconds)
    return {name: (min(values), statistics.median(values)) for name, values in taken.items()}


def limit_of(case: Case, times: dict[str, Any]) -> float:
    row = ops.OPERATIONS[case.operation]
    copy = min(times["copy"][0], times["stream"][0])
    read = min(times["read"][0], copy) if "read" in times else 0.0
    return row.writes * copy + (row.reads - row.writes) * read


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--only", default="")
    parser.add_argument("--backends", default="numba,c")
    parser.add_argument("--seconds", type=float, default=2.0)
    parser.add_argument("--json")
    args = parser.parse_args()
    heap.keep_pages()
    backends = args.backends.split(",")
    print(f"{machine.cpu_name()}, {args.threads} threads")
    heads = "".join(f" {name + ' us':>9} {'%':>5}  {'x torch':>7} " for name in backends)
    print(f"{'case':<52}{'limit us':>9}{heads} {backends[0]}/{backends[-1]}")
    saved = []
    for case in cases():
        if not re.search(args.only, case.name):
            continue
        times = measure(case, backends, args.threads, args.seconds)
        limit = limit_of(case, times)
        line = f"{case.name:<52}{1e6 * limit:9.0f}"
        for name in backends:
            if name not in times:
                line += " " * 26
                continue
            own = times[name][0]
            percent = 100 * limit / own
            ahead = times[contestants.TORCH][0] / own if contestants.TORCH in times else float("nan")
            low = "*" if case.percent is not None and percent < case.percent else " "
            behind = "*" if case.torch is not None and ahead < case.torch else " "
            line += f" {1e6 * own:9.0f} {percent:5.0f}{low} {ahead:7.2f}{behind}"
        line += f"  {times[backends[0]][0] / times[backends[-1]][0]:5.2f}" if len(backends) > 1 and set(backends) <= set(times) else ""
        print(line, flush=True)
        saved.append({"case": case.name, "percent bar": case.percent, "torch bar": case.torch, "limit": limit, "times": times})
    if args.json:
        with open(args.json, "w") as file:
            json.dump(saved, file, indent=1)


if __name__ == "__main__":
    main()
