"""What was measured: seconds by pass and round, and what follows from them (rates, ratios, and which ratios are not to be trusted)."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from cpunorm import ops
from cpunorm.compare import contestants, preprocessing

COPY, STREAM, READ = "copy", "copy past the caches", "read"
CORE = "copy within L1"  # no part of the limit: how fast the cores are meanwhile
TRUSTED = 1.10  # a ratio whose passes differ by more than this factor gets a mark


@dataclass(frozen=True)
class Timing:
    """Of one contestant, or one part of the limit: the seconds of each turn, by pass."""

    passes: tuple[tuple[float, ...], ...]

    @property
    def minimum(self) -> float:
        """Of all turns."""
        return min(self.minima)

    @property
    def minima(self) -> tuple[float, ...]:
        """Of each pass."""
        return tuple(map(min, self.passes))

    @property
    def median(self) -> float:
        """Of all turns."""
        return statistics.median(second for turns in self.passes for second in turns)

    @property
    def rounds(self) -> int:
        """How many turns."""
        return sum(map(len, self.passes))


@dataclass(frozen=True)
class Ratio:
    """How many times as fast: the median of the passes, and the least and the most of them.

    Each pass is a measurement of its own, seconds after the one before. Where they disagree, so would another run.
    """

    value: float
    low: float
    high: float
    passes: int

    @property
    def trusted(self) -> bool:
        """Whether the passes agree (and there is more than one)."""
        return self.passes > 1 and self.high <= TRUSTED * self.low

    def __str__(self) -> str:
        return f"{self.value:.3g}{'' if self.trusted else '?'}"


def ratio(other: Sequence[float], own: Sequence[float]) -> Ratio:
    """Seconds of another by seconds of one's own, of the same passes."""
    values = [theirs / ours for theirs, ours in zip(other, own, strict=False)]
    return Ratio(statistics.median(values), min(values), max(values), len(values))


@dataclass(frozen=True)
class Row:
    """One contestant in one case."""

    operation: str
    shape_name: str
    shape: tuple[int, ...]
    layout: str
    contestant: str
    threads: int
    timing: Timing
    bytes: int  # what has to be read and written
    largest_error: float
    case_threads: int  # NumPy has one thread and is timed beside others that have more
    peers: dict[str, Timing]  # of NumPy and PyTorch, in the same case
    limit: float | None = None  # seconds that this machine needs for as many bytes: the best of the run
    limits: tuple[float, ...] = ()  # the same of each pass, in this row's own rounds
    cores: tuple[float, ...] = ()  # seconds of as many copies within L1, of each pass

    @property
    def rate(self) -> float:
        """GB/s."""
        return self.bytes / self.timing.minimum / 1e9

    @property
    def percent(self) -> float | None:
        """Of the copy limit."""
        return None if self.limit is None else 100 * self.limit / self.timing.minimum

    def over(self, peer: str) -> Ratio | None:
        """How many times as fast as a peer; None where it was not timed here."""
        return ratio(self.peers[peer].minima, self.timing.minima) if peer in self.peers else None

    @property
    def speedup(self) -> float | None:
        """Over NumPy."""
        plain = self.peers.get(contestants.NUMPY)
        return None if plain is None else plain.minimum / self.timing.minimum

    @property
    def case(self) -> tuple[str, str]:
        """What is the same work, whoever does it in whatever layout."""
        return self.operation, self.shape_name

    @property
    def key(self) -> tuple[str, str, str, str, int]:
        """By which another run's row is found."""
        return self.operation, "x".join(map(str, self.shape)), self.layout, self.contestant, self.case_threads


@dataclass(frozen=True)
class Limit:
    """The parts of the limit in one case."""

    operation: str
    shape_name: str
    layout: str
    threads: int
    array_bytes: int
    parts: dict[str, Timing]

    def seconds(self) -> tuple[float, ...]:
        """Of each pass: the faster copy for every write, a read for every further trip; preprocessing has its own two parts."""
        if self.operation == preprocessing.NAME:
            return tuple(map(min, zip(*(part.minima for name, part in self.parts.items() if name != CORE), strict=True)))
        operation = ops.OPERATIONS[self.operation]
        parts = zip(*(self.parts[name].minima for name in (COPY, STREAM, READ)), strict=True)
        return tuple(trips(operation.reads, operation.writes, min(copy, stream), read) for copy, stream, read in parts)


def trips(reads: int, writes: int, copy: float, read: float) -> float:
    """Seconds of so many readings and writings of an array that is copied and read in so many; a copy reads too."""
    return writes * copy + max(reads - writes, 0) * min(read, copy)


@dataclass
class Result:
    """What was measured, and what was not."""

    rows: list[Row] = field(default_factory=list)
    limits: list[Limit] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


def add_limits(result: Result) -> None:
    """Give every row its limits: the best that the run has seen for that size and number of threads, and those of its own rounds."""
    copy: dict[tuple[int, int], float] = {}
    read: dict[tuple[int, int], float] = {}
    expand: dict[tuple[int, int], float] = {}
    own = {(limit.operation, limit.shape_name, limit.layout, limit.threads): limit for limit in result.limits}
    for limit in result.limits:
        key = limit.array_bytes, limit.threads
        if limit.operation == preprocessing.NAME:
            expand[key] = min(expand.get(key, math.inf), *limit.seconds())
            continue
        copy[key] = min(copy.get(key, math.inf), limit.parts[COPY].minimum, limit.parts[STREAM].minimum)
        read[key] = min(read.get(key, math.inf), limit.parts[READ].minimum)
    for index, row in enumerate(result.rows):
        mine = own.get((row.operation, row.shape_name, row.layout, row.case_threads))
        if row.operation == preprocessing.NAME:
            best = expand.get((row.bytes, row.case_threads))
        else:
            operation = ops.OPERATIONS[row.operation]
            key = row.bytes // (operation.reads + operation.writes), row.case_threads
            best = trips(operation.reads, operation.writes, copy[key], read[key]) if key in copy else None
        if mine is not None:
            cores = mine.parts[CORE].minima if CORE in mine.parts else ()
            result.rows[index] = replace(row, limit=best, limits=mine.seconds(), cores=cores)
