"""Where the time of an operation goes: each step of its plan on its own, beside a copy and a reading of the same bytes.

Each step runs over everything, breadth first. What a call takes beyond the sum of its steps is Python, the waking of threads and, where
steps go depth first, what they lose or gain by sharing the caches. Figures are ns per vector of 32 bytes and thread: the time times the
threads, over the vectors of x. A step of fewer instructions than bytes comes near the copy (reads and writes) or the reading; what lies
above is bound by its instructions. On one thread nothing has to be woken.

python benchmarks/steps.py [--threads 1] [--backends c,numba] [OPERATION:LAYOUT:SHAPE ...]
"""

import argparse
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from cpunorm import call, dispatch, native, ops
from cpunorm.compare import contestants
from cpunorm.dispatch import Runner
from cpunorm.plan import Phase, Plan, Step

CASES = [
    "batch_norm inference:NCHW:1x64x112x112",
    "batch_norm inference:NCHW:4x2048x7x7",
    "batch_norm training:NCHW:1x64x112x112",
    "batch_norm training:NHWC:1x64x112x112",
    "instance_norm:NCHW:4x2048x7x7",
    "group_norm:NHWC:2x320x64x64",
    "layer_norm::197x768",
    "batch_norm_backward:NCHW:1x256x56x56",
    "batch_norm_backward:NHWC:1x256x56x56",
]
TURN = 0.02  # seconds
ROUNDS = 5
VECTOR = 32  # bytes


def captured(run: Callable[[], object]) -> tuple[Runner, tuple[Any, ...]]:
    """The runner that a call ends in, and the arrays that it runs on."""
    seen: list[tuple[Runner, tuple[Any, ...]]] = []
    whole = Runner.__call__

    def spy(self: Runner, *arrays: Any) -> Any:
        seen.append((self, arrays))
        return whole(self, *arrays)

    call._PREPARED.clear()  # a call that was made before goes past the runner
    Runner.__call__ = spy  # type: ignore[method-assign]
    try:
        run()
    finally:
        Runner.__call__ = whole  # type: ignore[method-assign]
    return seen[0]


def alone(plan: Plan, step: Step) -> Plan:
    """A plan of this step over everything."""
    scaled = Step(step.kernel, {**step.fields, "scale": 1})
    return replace(plan, phases=(Phase(step.items, -(-step.items // (8 * plan.threads)), (scaled,)),))


def fastest(runs: dict[str, Callable[[], object]]) -> dict[str, float]:
    """Seconds of the fastest call, the contestants in turn."""
    best = dict.fromkeys(runs, float("inf"))
    for _ in range(ROUNDS):
        for name, run in runs.items():
            time.sleep(0.006)
            begin = now = time.perf_counter()
            while now - begin < TURN:
                start = now
                run()
                now = time.perf_counter()
                best[name] = min(best[name], now - start)
    return best


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--backends", default="c,numba")
    parser.add_argument("cases", nargs="*", default=CASES)
    options = parser.parse_args()
    contestants.set_torch_threads(options.threads)
    for case in options.cases:
        name, layout, shape_text = case.split(":")
        row = ops.OPERATIONS[name]
        inputs = row.inputs(tuple(map(int, shape_text.split("x"))), layout, "float32", np.random.default_rng(0))
        x, out = inputs["x"], np.zeros_like(inputs["x"])
        runs: dict[str, Callable[[], object]] = {}
        for backend in options.backends.split(","):
            entrant = contestants.backend(row, inputs, backend, options.threads, out)
            runner, arrays = captured(entrant.run)
            runs[f"{backend}: the call"] = entrant.run
            tables = runner(*arrays)  # what the steps read and write: kept, so that each finds the tables of those before it
            for phase in runner.plan.phases:
                for step in phase.steps:
                    one = Runner(alone(runner.plan, step), backend, x.dtype.name)
                    runs[f"{backend}: {step.kernel}"] = with_tables(one, arrays, tables)
        if peer := contestants.torch(row, inputs):
            runs["pytorch: the call"] = peer.run
        source, to = np.ones(x.size, np.float32), np.zeros(x.size, np.float32)
        runs["copy, through the caches"] = lambda: native.copy_limit(to, source, options.threads, stream=False)  # noqa: B023
        runs["copy, past them"] = lambda: native.copy_limit(to, source, options.threads, stream=True)  # noqa: B023
        runs["read"] = lambda: native.read_limit(source, options.threads)  # noqa: B023
        scale = 1e9 * options.threads / (x.nbytes / VECTOR)
        print(f"\n{case}, {options.threads} threads, {x.nbytes / 1e6:.1f} MB")
        for label, seconds in fastest(runs).items():
            print(f"  {label:36} {seconds * 1e6:10.1f} us {seconds * scale:8.2f} ns a vector and thread", flush=True)


def with_tables(runner: Runner, arrays: tuple[Any, ...], tables: Any) -> Callable[[], object]:
    """The runner on these arrays and on this scratch array, which it would else make anew."""

    class Given:
        empty = staticmethod(lambda _: tables)

    def run() -> None:
        numpy, dispatch.np = dispatch.np, Given  # type: ignore[assignment, misc]
        try:
            runner(*arrays)
        finally:
            dispatch.np = numpy  # type: ignore[misc]

    return run


if __name__ == "__main__":
    main()
