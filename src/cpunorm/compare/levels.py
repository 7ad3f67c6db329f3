"""What else of the machine the page shows: the rate of each level of its caches, and where NCHW and NHWC change places."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from cpunorm import machine
from cpunorm.compare import measure
from cpunorm.compare.measure import Request
from cpunorm.compare.results import Result

L1 = 32 << 10  # bytes; all CPUs that the package is for have at least that
LEAST = 1 << 22  # bytes a call copies, in as many repetitions as that takes
ROUNDS = 7
CROSSOVER = ("batch_norm inference", "batch_norm training")
CHANNELS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)
VALUES = 1 << 20  # of each shape: 4 MB, of any number of channels


@dataclass(frozen=True)
class Level:
    """A copy within one level of the memory, by all of so many threads."""

    name: str
    threads: int
    bytes: int  # read from and written to, of all threads
    rate: float  # GB/s, read and written


def sizes(threads: int) -> dict[str, int]:
    """Bytes that fill three quarters of L1, half of L2 and of L3, and four times L3."""
    caches = machine.caches()
    return {"L1": 3 * L1 // 4 * threads, "L2": caches.l2 // 2 * threads, "L3": caches.l3 // 2, "memory": 4 * caches.l3}


def measured(threads: tuple[int, ...]) -> list[Level]:
    """By the C part's copy, repeated within the call where the data is small, in rounds; the best of them."""
    from cpunorm import native

    found: list[Level] = []
    for count in threads:
        runs: dict[tuple[str, int, int], Callable[[], None]] = {}
        for name, size in sizes(count).items():
            source = np.ones(size // 8, np.float32)
            to, repeat = np.zeros_like(source), max(1, LEAST // size)
            for stream in (False, True)[: 1 + (name == "memory")]:
                runs[f"{name} {stream}", size, repeat] = _copy(native, to, source, count, stream, repeat)
        taken = measure.take_turns([*runs.values()], 0.0, ROUNDS)
        best: dict[str, Level] = {}
        for (label, size, repeat), seconds in zip(runs, taken, strict=True):
            name = label.split()[0]
            level = Level(name, count, size, size * repeat / min(seconds) / 1e9)
            best[name] = max(level, best.get(name, level), key=lambda one: one.rate)
        found += best.values()
    return found


def busy(found: list[Level]) -> str | None:
    """Why these rates are not to be trusted: more threads copy less within their own L1 than one does, so they had no core each."""
    rates = {level.threads: level.rate for level in found if level.name == "L1"}
    if len(rates) < 2 or rates[max(rates)] > rates[1]:
        return None
    return (
        f"the machine was busy: {max(rates)} threads copied {rates[max(rates)]:.0f} GB/s within L1, one {rates[1]:.0f}; "
        "do not trust rates of several threads, nor what the model makes of them"
    )


def _copy(native: Any, to: Any, source: Any, threads: int, stream: bool, repeat: int) -> Callable[[], None]:
    return lambda: native.copy_limit(to, source, threads, stream=stream, repeat=repeat)


def crossover_shapes() -> dict[str, tuple[int, ...]]:
    """`VALUES` of each number of channels."""
    made: dict[str, tuple[int, ...]] = {}
    for channels in CHANNELS:
        pixels = VALUES // 4 // channels
        height = 1 << (pixels.bit_length() - 1) // 2
        made[str(channels)] = (4, channels, height, pixels // height)
    return made


def count(request: Request) -> int:
    """How often `of_machine` reports progress."""
    return 1 + measure.case_count(crossover_request(request))


def of_machine(request: Request, progress: Callable[[str], None]) -> tuple[list[Level], Result]:
    """The levels, with one thread and with all; and batch norm of as many values in more and more channels."""
    progress("the caches")
    found = measured(tuple(dict.fromkeys((1, request.threads[-1])))) if request.has_limit else []
    crossing = crossover_request(request)
    return found, measure.run(crossing, progress) if crossing.backends else Result()


def crossover_request(request: Request) -> Request:
    """As `request`, of these shapes alone and nobody else."""
    return replace(
        request,
        operations=CROSSOVER,
        shapes=crossover_shapes(),
        layouts=("NCHW", "NHWC"),
        backends=tuple(name for name in request.backends if name != "numpy"),
        threads=request.threads[-1:],
        peers=(),
        has_limit=False,
        seconds=2.0,
        least=2,
        passes=3,
    )


def crossings(channels: list[int], nchw: list[float], nhwc: list[float]) -> list[float]:
    """Numbers of channels at which the faster of both layouts changes, between the measured ones on a logarithmic scale."""
    ahead = [math.log(last / first) for first, last in zip(nchw, nhwc, strict=True)]  # above zero: NCHW is faster
    found = []
    for (c0, d0), (c1, d1) in zip(zip(channels, ahead, strict=True), [*zip(channels, ahead, strict=True)][1:], strict=False):
        if d0 * d1 < 0:
            found.append(c0 * (c1 / c0) ** (d0 / (d0 - d1)))
    return found
