"""Measuring. How, and why so:

* The contestants of a case take turns, in rounds, in one process, each round in another order: what the machine does meanwhile hits all.
* Minimum and median of the rounds are kept. A slow contestant has fewer rounds, never fewer than `Request.least`.
* Between two turns is a pause: the threads of an OpenMP region spin for about a millisecond after it and slow down whoever comes next.
* The limit is measured in the same rounds, on the same arrays, with the same number of threads. It depends on nothing but the size of the
  arrays and that number, so the best value of the run counts, whichever case saw it.
* Nobody is timed whose first result differs from the reference by more than its tolerance.
"""

from __future__ import annotations

import math
import random
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import numpy as np

from cpunorm import ops, samples
from cpunorm.compare import contestants, heap, pictures, preprocessing
from cpunorm.compare.contestants import Contestant, Run
from cpunorm.ops import Inputs, Operation

Array = np.ndarray[Any, Any]

PAUSE = 0.0025  # seconds
MOST_ROUNDS = 200
PHOTOGRAPHS = "photographs, batch 8"
QUICK_SHAPES = (PHOTOGRAPHS, "ResNet-50 stage 5, batch 32", "MobileNetV2 block 2, batch 8")
# `seconds` are shared out among all contestants of all cases; `least` rounds are made in any case.
QUICK: dict[str, Any] = {"seconds": 6.0, "least": 3}
FULL: dict[str, Any] = {"seconds": 60.0, "least": 5}
COPY, STREAM, READ = "copy", "copy past the caches", "read"


def operations() -> tuple[str, ...]:
    """The names of all that can be compared: the operation table's, and preprocessing."""
    return (*ops.OPERATIONS, preprocessing.NAME)


def shapes() -> dict[str, tuple[int, ...]]:
    """The named shapes, channels first."""
    return {PHOTOGRAPHS: (8, 3, 512, 512), **ops.SHAPES}


@dataclass(frozen=True)
class Request:
    """What to measure."""

    operations: tuple[str, ...]
    shapes: dict[str, tuple[int, ...]]
    layouts: tuple[str, ...]
    backends: tuple[str, ...]
    threads: tuple[int, ...]
    dtype: str
    pictures: list[Array]
    has_limit: bool
    seconds: float
    least: int


@dataclass(frozen=True)
class Timing:
    """Of one contestant, or one part of the limit."""

    minimum: float
    median: float
    rounds: int


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
    numpy: float | None  # seconds of NumPy
    largest_error: float
    case_threads: int  # NumPy has one thread and is timed beside others that have more
    limit: float | None = None  # seconds that this machine needs for as many bytes

    @property
    def rate(self) -> float:
        """GB/s."""
        return self.bytes / self.timing.minimum / 1e9

    @property
    def percent(self) -> float | None:
        """Of the copy limit."""
        return None if self.limit is None else 100 * self.limit / self.timing.minimum

    @property
    def speedup(self) -> float | None:
        """Over NumPy."""
        return None if self.numpy is None else self.numpy / self.timing.minimum

    @property
    def case(self) -> tuple[str, str]:
        """What is the same work, whoever does it in whatever layout."""
        return self.operation, self.shape_name


@dataclass(frozen=True)
class Limit:
    """The parts of the limit in one case."""

    operation: str
    shape_name: str
    layout: str
    threads: int
    array_bytes: int
    parts: dict[str, Timing]


@dataclass
class Result:
    """What was measured, and what was not."""

    rows: list[Row] = field(default_factory=list)
    limits: list[Limit] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


def add_limits(result: Result) -> None:
    """Give every row its limit: the faster copy for every write, a read for every further one; preprocessing has its own."""
    copy: dict[tuple[int, int], float] = {}
    read: dict[tuple[int, int], float] = {}
    expand: dict[tuple[int, int], float] = {}
    for limit in result.limits:
        key = limit.array_bytes, limit.threads
        if limit.operation == preprocessing.NAME:
            expand[key] = min(expand.get(key, math.inf), *(part.minimum for part in limit.parts.values()))
            continue
        copy[key] = min(copy.get(key, math.inf), limit.parts[COPY].minimum, limit.parts[STREAM].minimum)
        read[key] = min(read.get(key, math.inf), limit.parts[READ].minimum, copy[key])  # a copy reads too
    for index, row in enumerate(result.rows):
        if row.operation == preprocessing.NAME:
            result.rows[index] = replace(row, limit=expand.get((row.bytes, row.case_threads)))
            continue
        operation = ops.OPERATIONS[row.operation]
        key = row.bytes // (operation.reads + operation.writes), row.case_threads
        if key in copy:
            further = max(operation.reads - operation.writes, 0)
            result.rows[index] = replace(row, limit=operation.writes * copy[key] + further * read[key])


def cases(request: Request) -> list[tuple[str, str, str]]:
    """(shape's name, operation, layout) of all that is asked for and exists."""
    found = []
    for name, shape in request.shapes.items():
        for operation in request.operations:
            if operation == preprocessing.NAME:
                fits = shape[1] == preprocessing.CHANNELS and request.dtype == "float32"
                layouts = [layout for layout in request.layouts if fits and layout in preprocessing.LAYOUTS]
            else:
                layouts = [*request.layouts[: None if ops.OPERATIONS[operation].layouts else 1]]
            found += [(name, operation, layout) for layout in layouts]
    return found


def case_count(request: Request) -> int:
    """How often `run` reports progress."""
    return len(cases(request)) * len(request.threads)


def run(request: Request, progress: Callable[[str], None]) -> Result:
    """Check and time everybody in all cases."""
    heap.keep_pages()
    result = Result()
    share = request.seconds / (case_count(request) * (len(request.backends) + 5))
    for shape_name, operation, layout in cases(request):
        shape = request.shapes[shape_name]
        work: Work | None = None
        plain: float | None = None  # NumPy has one thread: timed with the first number of threads, for all of them
        for threads in request.threads:
            progress(f"{operation}, {shape_name}, {layout}, {threads} thread{'s' * (threads > 1)}")
            if work is None:
                work = make_work(operation, shape, layout, request)
            plain = _Case(operation, shape_name, shape, layout, threads, work).run(request, result, share, plain)
    add_limits(result)
    return result


class Work(Protocol):
    """What is timed in one layout, with any number of threads."""

    expected: tuple[Array, ...]
    bytes: int  # that have to move
    array_bytes: int  # of what the limit's parts run over

    def ours(self, backend: str, threads: int) -> Contestant:
        """One of our backends."""

    def plain(self) -> Contestant | None:
        """NumPy."""

    def peers(self, threads: int) -> list[Contestant]:
        """The other libraries that are installed."""

    def limit_parts(self, threads: int) -> dict[str, Run]:
        """What the limit is made of."""


def make_work(operation: str, shape: tuple[int, ...], layout: str, request: Request) -> Work:
    """Preprocessing of pictures, or a row of the operation table."""
    if operation == preprocessing.NAME:
        return preprocessing.Work(pictures.raw(request.pictures, shape), layout)
    row = ops.OPERATIONS[operation]
    return _RowWork(row, make_inputs(row, shape, layout, request))


class _RowWork:
    def __init__(self, row: Operation, inputs: Inputs) -> None:
        self._row, self._inputs = row, inputs
        self._out = np.zeros_like(inputs["x"])
        self.expected = row.reference(contestants.fresh(inputs, row))
        self.bytes, self.array_bytes = row.bytes_moved(inputs["x"]), inputs["x"].nbytes

    def ours(self, backend: str, threads: int) -> Contestant:
        return contestants.backend(self._row, self._inputs, backend, threads, self._out)

    def plain(self) -> Contestant | None:
        return contestants.numpy(self._row, self._inputs)

    def peers(self, threads: int) -> list[Contestant]:
        contestants.set_torch_threads(threads)
        found = contestants.torch(self._row, self._inputs)
        return [] if found is None else [found]

    def limit_parts(self, threads: int) -> dict[str, Run]:
        from cpunorm import native

        whole = self._out.nbytes // 4 * 4
        source, to = (array.reshape(-1).view(np.uint8)[:whole].view(np.float32) for array in (self._inputs["x"], self._out))
        return {
            COPY: lambda: native.copy_limit(to, source, threads, stream=False),
            STREAM: lambda: native.copy_limit(to, source, threads, stream=True),
            READ: lambda: native.read_limit(source, threads),
        }


def make_inputs(row: Operation, shape: tuple[int, ...], layout: str, request: Request) -> Inputs:
    """The row's inputs; pictures where there are three channels, with their own statistics as the running ones."""
    inputs = row.inputs(shape, layout, request.dtype, np.random.default_rng(0))
    if shape[1] == 3:
        x = pictures.batch(request.pictures, shape)
        if row.data == "x":
            inputs["x"] = (samples.arrange(x, layout) if row.layouts else x).astype(inputs["x"].dtype)
        for name, values in (("running_mean", x.mean(axis=(0, 2, 3))), ("running_var", x.var(axis=(0, 2, 3)))):
            if name in inputs:
                inputs[name] = values.astype(inputs[name].dtype)
    return inputs


@dataclass(frozen=True)
class _Case:
    operation: str
    shape_name: str
    shape: tuple[int, ...]
    layout: str
    threads: int
    work: Work

    def run(self, request: Request, result: Result, share: float, plain: float | None) -> float | None:
        """Append rows, the limit and problems to `result`; returns NumPy's seconds."""
        work = self.work
        checked: list[tuple[Contestant, float]] = []
        for contestant in self._contestants(request.backends, with_numpy=plain is None, result=result):
            good, largest = contestants.deviation(contestant.results(contestant.run()), work.expected, **contestant.tolerance)
            if good:
                checked.append((contestant, largest))
            else:
                result.problems.append(
                    f"not timed: {contestant.name}, {self.operation}, {self.shape_name}, {self.layout}, {self.threads} threads: "
                    f"differs from the reference by {largest:.2g}"
                )
        parts = work.limit_parts(self.threads) if request.has_limit and checked else {}
        timings = take_turns([contestant.run for contestant, _ in checked] + [*parts.values()], share, request.least)
        if parts:
            measured = dict(zip(parts, timings[len(checked) :], strict=True))
            result.limits.append(Limit(self.operation, self.shape_name, self.layout, self.threads, work.array_bytes, measured))
        for (contestant, _), timing in zip(checked, timings, strict=False):
            if contestant.name == contestants.NUMPY:
                plain = timing.minimum
        for (contestant, largest), timing in zip(checked, timings, strict=False):
            result.rows.append(
                Row(
                    operation=self.operation,
                    shape_name=self.shape_name,
                    shape=self.shape,
                    layout=self.layout,
                    contestant=contestant.name,
                    threads=1 if contestant.name in (contestants.NUMPY, "numpy") else self.threads,
                    timing=timing,
                    bytes=work.bytes,
                    numpy=plain,
                    largest_error=largest,
                    case_threads=self.threads,
                )
            )
        return plain

    def _contestants(self, backends: tuple[str, ...], *, with_numpy: bool, result: Result) -> list[Contestant]:
        found: list[Contestant | None] = []
        for name in backends:
            if name == "numba" and self.threads > _numba_threads():
                result.problems.append(f"skipped: numba with {self.threads} threads: its pool has {_numba_threads()}")
            elif name != "numpy" or self.threads == 1 or with_numpy:
                found.append(self.work.ours(name, self.threads))
        if with_numpy:
            found.append(self.work.plain())
        return [contestant for contestant in (*found, *self.work.peers(self.threads)) if contestant is not None]


def _numba_threads() -> int:
    from cpunorm.jit import threads

    return threads.pool_size() if threads.choose() else 1


def take_turns(runs: list[Run], share: float, least: int) -> list[Timing]:
    """Time all of them in rounds, until each has had `share` seconds and at least `least` turns."""
    taken: list[list[float]] = [[] for _ in runs]
    order = list(range(len(runs)))
    shuffle = random.Random(0).shuffle
    for number in range(MOST_ROUNDS):
        shuffle(order)
        present = [index for index in order if number < least or sum(taken[index]) + number * PAUSE < share]
        if not present:
            break
        for index in present:
            time.sleep(PAUSE)
            start = time.perf_counter()
            runs[index]()
            taken[index].append(time.perf_counter() - start)
    return [Timing(min(seconds), statistics.median(seconds), len(seconds)) for seconds in taken]
