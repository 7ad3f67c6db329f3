"""What others in the process or on the machine cost us, and we them: ``python benchmarks/neighbours.py`` (2 minutes; PyTorch if installed).

1. Taking turns in one process (``neighbours.py turns``). A call right after one of another library, against the same call after one of its
   own library, on other arrays of the same size, and a wait until that took as long. So what anything before costs is on both sides of the
   ratio: the arrays that it pushed out of the caches, the lines that it left to the other core, and the time that has passed, in which this
   code itself goes out of the caches (on the machine of docs/performance.md ten lines of plain Python take 11 us, and 17 after 300 us of
   waiting, 27 to 40 after 1000; one of our calls is 10 us of Python). What remains is what the pools do to each other: threads that still
   spin, or that went to sleep. The aim is 10%.
2. Beside a busy core (``neighbours.py busy``): another process spins on one CPU, stopped and continued in turns. What it costs us should be
   no more than what it costs PyTorch. With two CPUs and one of them busy, half of the time is what fair shares would take.

Batch norm in training, each call into arrays of its own that are there, of a size out of cache (large) and in it (small). Medians of the
ratios of many short rounds, and the quarters of them: single ones are anything from 0.8 to 100.
"""

import signal
import statistics
import subprocess
import sys
import time
from functools import partial

import numpy as np

import cpunorm as cn

SHAPES = {"small, 4x64x28x28": (4, 64, 28, 28), "large, 32x64x56x56": (32, 64, 56, 56)}
ROUNDS = 21
SECONDS = 0.08  # a measurement
SLICES = 0.25  # one beside a busy core


def calls(shape):
    """By name: batch norm in training, on arrays of its own."""
    made = {}
    for backend in ("numba", "c"):
        try:
            cn.set_backend(backend)
        except ImportError as problem:
            print(f"without {backend}: {problem}", file=sys.stderr)
            continue
        made[f"cpunorm {backend}"] = ours(shape, backend)
    try:
        import torch
    except ImportError:
        print("without PyTorch: there is nobody to take turns with but ourselves", file=sys.stderr)
    else:
        made["PyTorch"] = pytorch(shape, torch)
    return made


def arrays(shape):
    """Input, output, running statistics."""
    x = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    return x, np.zeros_like(x), np.zeros(shape[1], np.float32), np.ones(shape[1], np.float32)


def ours(shape, backend):
    """Our call."""
    x, y, *running = arrays(shape)
    return lambda: cn.batch_norm(x, *running, training=True, backend=backend, out=y)


def pytorch(shape, torch):
    """The same by PyTorch, which has it with an `out` too, if not in torch.nn.functional: fresh pages are not what this is about."""
    x, y, *running = map(torch.from_numpy, arrays(shape))
    out = {"out": y, "save_mean": torch.empty(shape[1]), "save_invstd": torch.empty(shape[1])}
    return lambda: torch.ops.aten.native_batch_norm.out(x, None, None, *running, True, 0.1, 1e-5, **out)


def microseconds(call, before=None):
    """The median of a call, each after one of `before`."""
    times = []
    end = time.perf_counter() + SECONDS
    while time.perf_counter() < end or len(times) < 5:
        if before:
            before()
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return statistics.median(times[1:]) * 1e6


def said(found):
    """The median of the ratios, and their quarters."""
    low, middle, high = statistics.quantiles(found, n=4)
    return f"{middle:.2f} ({low:.2f} to {high:.2f})"


def as_long(call, microseconds):
    """The call, and what is left of the time."""
    start = time.perf_counter()
    call()
    while time.perf_counter() < start + microseconds / 1e6:
        pass


def take_turns(made, others):
    """Print of each call its time after every other library's, on arrays of `others`, in parts of its time after its own library's."""
    ratios = {(name, before): [] for name in made for before in others if before != name}
    alone = {name: [] for name in made}
    for _ in range(ROUNDS):
        for name, call in others.items():
            alone[name].append(microseconds(call))
        for name, before in ratios:
            after = microseconds(made[name], others[before])
            own = microseconds(made[name], partial(as_long, others[name], alone[before][-1]))
            ratios[name, before].append(after / own)
    for (name, before), found in ratios.items():
        print(f"  {name} ({statistics.median(alone[name]):.0f} us) after {before}: {said(found)}", flush=True)


def many(call):
    """Microseconds of a call: the mean over many time slices of the system (some ms each), and the median."""
    times = []
    end = time.perf_counter() + SLICES
    while (start := time.perf_counter()) < end:
        call()
        times.append(time.perf_counter() - start)
    return statistics.mean(times) * 1e6, statistics.median(times) * 1e6


def beside_a_busy_core(made):
    """Print the ratio of each call's time with another process on one CPU to that without, the two measured in turns, and what it loses.

    Of the mean and of the median: calls that wait for a time slice of 4 ms are few, or most, as the system puts three threads on two CPUs.
    The time lost is of the mean: a slice is as long for a call of 50 us as for one of 10 ms, whose ratio it hardly moves.
    """
    ratios = {name: [] for name in made}
    lost = {name: [] for name in made}
    spinning = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        for _ in range(ROUNDS):
            for name, call in made.items():
                found = []
                for what in (signal.SIGSTOP, signal.SIGCONT):
                    spinning.send_signal(what)
                    time.sleep(0.01)
                    found.append(many(call))
                ratios[name].append([busy / free for free, busy in zip(*found, strict=True)])
                lost[name].append(found[1][0] - found[0][0])
    finally:
        spinning.kill()
        spinning.wait()
    for name, found in ratios.items():
        mean, median = zip(*found, strict=True)
        microseconds_lost = f"{statistics.median(lost[name]):.0f} us lost a call"
        print(f"  {name} beside a busy core: in the mean {said(mean)}, {microseconds_lost}; the median call {said(median)}", flush=True)


def main():
    """Print a line a measurement."""
    parts = sys.argv[1:] or ["turns", "busy"]
    for label, shape in SHAPES.items():
        print(label, flush=True)
        made, others = calls(shape), calls(shape)
        for call in (*made.values(), *others.values()):
            call()
        if "turns" in parts:
            take_turns(made, others)
        if "busy" in parts:
            beside_a_busy_core(made)


if __name__ == "__main__":
    main()
