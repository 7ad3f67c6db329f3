"""A small model of throughput beyond the threads that can be measured here.

**What it says.** The seconds of an operation on n cores are

    t(n) = own / n + bytes / B(n)                    own = t(1) - bytes / B(1)

`bytes / B(n)` is the limit, a copy of the same bytes by n threads; `own` is what one core computes beyond it, and cores share that evenly.
t(1), B(1) and B(n) are measured here. For the numbers of threads that are measured too, but not used, the model's error is known and shown.

**Beyond.** For more cores than there are, B(n) is not known. Two bounds:

* low: cores get into each other's way as they do here, B(n) = n B(1) / (1 + (n - 1) s), with s from the largest measured n (Gunther's law
  without its last term). On two sockets, half of what is read lies in the other one's memory and comes at `REMOTE` of the rate.
* high: every core brings B(1) until its socket has `SOCKET` bytes a second, what eight channels of DDR4-3200 give in practice; pages lie
  where they are read; and where all L3 caches of so many cores together hold the data (one for every `CORES_OF_L3`, as on Zen 3), each core
  copies at the rate that it has in L3 here.

Starting threads is not in it: what takes a core less than some 50 us does not get faster by 128 of them.

What lies between is a **prediction**, of a machine with cores like these, and no measurement.

**Where pages are.** Results are `numpy.empty`: nothing has touched them, so the system places each page in the memory of the core that
first writes to it, which is the thread that computes its block (tests/test_first_touch.py counts the page faults of each thread). Blocks
are dealt out as threads become free, so that the next call may give a block to another core: of what it reads, (sockets - 1) / sockets lies
elsewhere on average. That is what `low` assumes. One process a socket (`numactl --cpunodebind=N --membind=N`) avoids it.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from cpunorm import check, machine
from cpunorm.compare.levels import Level
from cpunorm.compare.results import Row

SOCKET = 164e9  # bytes a second: eight channels of DDR4-3200 are 205 by their data sheet, of which a copy gets four fifths
REMOTE = 0.5  # rate of the other socket's memory, by that of one's own
CORES_OF_L3 = 8


@dataclass(frozen=True)
class Machine:
    """One that is predicted."""

    cores: int
    sockets: int


MACHINES = (Machine(16, 1), Machine(64, 1), Machine(128, 2))


@dataclass(frozen=True)
class Constants:
    """What is measured of one operation in one layout by one backend."""

    bytes: int
    held: int  # bytes of the arrays, which a cache may hold
    one: float  # seconds, one thread
    limits: dict[int, float]  # seconds of the limit, by threads

    @property
    def own(self) -> float:
        """Seconds of one core beyond its memory."""
        return max(self.one - self.limits[1], 0.0)

    def seconds(self, threads: int) -> float:
        """The model, where the limit is measured."""
        return self.own / threads + self.limits[threads]

    @property
    def contention(self) -> float:
        """s above: 0 where every thread brings the rate of the first, 1 where it brings nothing."""
        most = max(self.limits)
        if most == 1:
            return 0.0
        return max((most * self.limits[most] / self.limits[1] - 1) / (most - 1), 0.0)


@dataclass(frozen=True)
class Prediction:
    """GB/s of one row: measured, by the model where it can be checked, and beyond."""

    row: Row  # with the most threads
    measured: dict[int, float]
    modelled: dict[int, float]
    beyond: dict[int, tuple[float, float]]  # cores: low, high

    @property
    def error(self) -> float:
        """Of the model at the most threads: 0.1 is 10% too fast."""
        most = max(self.modelled)
        return self.modelled[most] / self.measured[most] - 1


def predict(constants: Constants, one: Machine, levels: Sequence[Level] = ()) -> tuple[float, float]:
    """Seconds on that machine: of the low bound, and of the high one."""
    core = constants.bytes / constants.limits[1]
    most = SOCKET * one.sockets
    low = min(one.cores * core / (1 + (one.cores / one.sockets - 1) * constants.contention), most)
    elsewhere = (one.sockets - 1) / one.sockets
    low /= 1 - elsewhere + elsewhere / REMOTE
    high = max([min(one.cores * core, most), *_cached(constants, one, levels)])
    return (constants.own / one.cores + constants.bytes / low, constants.own / one.cores + constants.bytes / high)


def _cached(constants: Constants, one: Machine, levels: Sequence[Level]) -> list[float]:
    """Bytes a second from the caches that hold the data, of all cores."""
    caches = machine.caches()
    if one.cores // CORES_OF_L3 * caches.l3 < constants.held:
        return []
    return [1e9 * level.rate / level.threads * one.cores for level in levels if level.name == "L3"]


def predictions(rows: Iterable[Row], levels: Sequence[Level] = ()) -> list[Prediction]:
    """Of all rows of our compiled backends that were timed with one thread and with more, beside their limits."""
    by_who: dict[tuple[str, str, str, str], dict[int, Row]] = {}
    for row in rows:
        if row.contestant in check.BACKENDS and row.contestant != "numpy" and row.limits:
            by_who.setdefault((row.operation, row.shape_name, row.layout, row.contestant), {})[row.threads] = row
    found = []
    for of in by_who.values():
        if 1 not in of or len(of) < 2:
            continue
        most = of[max(of)]
        seconds = {threads: statistics.median(row.timing.minima) for threads, row in of.items()}
        limits = {threads: statistics.median(row.limits) for threads, row in of.items()}
        constants = Constants(most.bytes, most.bytes, seconds[1], limits)
        found.append(
            Prediction(
                most,
                {threads: most.bytes / value / 1e9 for threads, value in seconds.items()},
                {threads: most.bytes / constants.seconds(threads) / 1e9 for threads in limits if threads > 1},
                {one.cores: _rates(most.bytes, predict(constants, one, levels)) for one in MACHINES},
            )
        )
    return found


def _rates(count: int, seconds: tuple[float, float]) -> tuple[float, float]:
    low, high = (count / value / 1e9 for value in seconds)
    return low, high


def error_text(found: Sequence[Prediction]) -> str:
    """How far the model was off where it can be checked."""
    if not found:
        return "The model needs rows with one thread and with more, and the C part's limit."
    errors = [abs(one.error) for one in found]
    threads = max(found[0].modelled)
    return (
        f"Against {len(found)} rows measured with {threads} threads, which it was not told, the model is off by "
        f"{100 * statistics.median(errors):.0f}% in the median and {100 * max(errors):.0f}% at most."
    )
