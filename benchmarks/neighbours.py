"""What others in the process or on the machine cost us, and we them: ``python benchmarks/neighbours.py`` (a minute; PyTorch if installed).

1. Taking turns in one process: our call and PyTorch's, one after another, against each by itself. Pools that spin after their work slow
   the other: the aim is 10%. The C backend shares PyTorch's libgomp and meets it (small: 0.95); Numba's threads are TBB's, beside which
   libgomp's spin for a while (1.3). The large arrays also push each other out of the cache.
2. Beside a busy core: another process spins on one CPU. What it costs us should be no more than what it costs PyTorch.

Medians of calls that write into an array that is there, of a size out of cache (large) and in it (small). With two CPUs and one of them
busy, half of the time is what fair shares would take.
"""

import statistics
import subprocess
import sys
import time

import numpy as np

import cpunorm as cn

SHAPES = {"large, 32x64x56x56": (32, 64, 56, 56), "small, 4x64x28x28": (4, 64, 28, 28)}
SECONDS = 1.5  # a measurement


def calls(x):
    """By name: batch norm in training, into an array of its own."""
    made = {}
    running = np.zeros(x.shape[1], np.float32), np.ones(x.shape[1], np.float32)
    for backend in ("numba", "c"):
        try:
            cn.set_backend(backend)
        except ImportError as problem:
            print(f"without {backend}: {problem}", file=sys.stderr)
            continue
        y = np.empty_like(x)
        made[f"cpunorm {backend}"] = lambda backend=backend, y=y: cn.batch_norm(x, *running, training=True, backend=backend, out=y)
    try:
        import torch
    except ImportError:
        print("without PyTorch: there are no turns to take", file=sys.stderr)
    else:
        tensor, theirs = torch.from_numpy(x), [torch.from_numpy(value.copy()) for value in running]
        made["PyTorch"] = lambda: torch.nn.functional.batch_norm(tensor, *theirs, training=True)
    return made


def medians(*turns):
    """Microseconds of each of the calls, which take turns."""
    for call in turns:
        call()
    times = [[] for _ in turns]
    end = time.perf_counter() + SECONDS
    while time.perf_counter() < end or len(times[0]) < 7:
        for call, its in zip(turns, times, strict=True):
            start = time.perf_counter()
            call()
            its.append(time.perf_counter() - start)
    return [statistics.median(its) * 1e6 for its in times]


def main():
    """Print a line a measurement."""
    for label, shape in SHAPES.items():
        x = np.random.default_rng(0).normal(size=shape).astype(np.float32)
        made = calls(x)
        alone = {name: medians(call)[0] for name, call in made.items()}
        print(f"\n{label}", *(f"{name} {value:.0f} us" for name, value in alone.items()), sep="; ")
        for name in [name for name in made if "PyTorch" in made and name != "PyTorch"]:
            ours, theirs = medians(made[name], made["PyTorch"])
            print(f"  taking turns: {name} {ours / alone[name]:.2f} of its own time, PyTorch {theirs / alone['PyTorch']:.2f}")
        spinning = subprocess.Popen([sys.executable, "-c", "while True: pass"])
        try:
            for name, call in made.items():
                print(f"  beside a busy core: {name} {medians(call)[0] / alone[name]:.2f}")
        finally:
            spinning.kill()
            spinning.wait()


if __name__ == "__main__":
    main()
