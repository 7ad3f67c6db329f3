"""Measuring. How, and why so:

* The contestants of a case take turns, in rounds, in one process, each round in another order: what the machine does meanwhile hits all.
* A turn is one call, or as many as fit into `TURN` seconds, of which the fastest counts: data that fits stays in the caches, as it does
  in a program that has just made it.
* All cases are gone through several times, in passes, seconds apart. A pass is a measurement of its own: how far passes differ says how far
  another run would (`results.Ratio`).
* Between two turns is a pause: the threads of an OpenMP region spin for some milliseconds after it and slow down whoever comes next. With
  pauses of 2.5 ms and turns of 2, Numba's threads took 1.2 ms for what takes them 0.4 in a program of their own.
* The limit is measured in the same rounds, on the same arrays, with the same number of threads. It depends on nothing but the size of the
  arrays and that number, so the best value of the run counts, whichever case saw it.
* Nobody is timed whose first result differs from the reference by more than its tolerance.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Protocol

import numpy as np

from cpunorm import ops, samples
from cpunorm.compare import contestants, heap, peers, pictures, preprocessing, shapes
from cpunorm.compare.contestants import Contestant, Run
from cpunorm.compare.results import COPY, CORE, READ, STREAM, Limit, Result, Row, Timing, add_limits
from cpunorm.ops import Inputs, Operation

Array = np.ndarray[Any, Any]

PAUSE, TURN = 0.006, 0.006  # seconds
MOST_ROUNDS = 200
KEEP = 2 << 30  # bytes of arrays that are kept from one pass to the next; what is beyond is made anew
# `seconds` are shared out among all contestants of all cases and passes; `least` rounds a pass are made in any case.
QUICK: dict[str, Any] = {"seconds": 6.0, "least": 1, "passes": 5}
FULL: dict[str, Any] = {"seconds": 60.0, "least": 2, "passes": 5}

Case = tuple[str, str, str]  # shape's name, operation, layout


def operations() -> tuple[str, ...]:
    """The names of all that can be compared: the operation table's, and preprocessing."""
    return (*ops.OPERATIONS, preprocessing.NAME)


@dataclass(frozen=True)
class Request:
    """What to measure."""

    operations: tuple[str, ...]
    shapes: dict[str, tuple[int, ...]]
    layouts: tuple[str, ...]
    backends: tuple[str, ...]
    threads: tuple[int, ...]
    dtype: str
    peers: tuple[str, ...]
    pictures: list[Array]
    has_limit: bool
    seconds: float
    least: int
    passes: int
    quick: bool = False


def cases(request: Request) -> list[Case]:
    """All that is asked for and exists."""
    found = []
    for name, shape in request.shapes.items():
        for operation in request.operations:
            if not shapes.fits(operation, shape):
                continue
            if operation == preprocessing.NAME:
                layouts = [layout for layout in request.layouts if request.dtype == "float32" and layout in preprocessing.LAYOUTS]
            else:
                layouts = [*request.layouts[: None if ops.OPERATIONS[operation].layouts else 1]]
            found += [(name, operation, layout) for layout in layouts]
    return found


def case_count(request: Request) -> int:
    """How often `run` reports progress."""
    return len(cases(request)) * len(request.threads) * request.passes


def run(request: Request, progress: Callable[[str], None], only: set[tuple[Case, int]] | None = None) -> Result:
    """Check and time everybody in all cases; or in those of `only`, with the number of threads."""
    heap.keep_pages()
    result = Result()
    wanted = [case for case in cases(request) if only is None or any(case == one for one, _ in only)]
    share = request.seconds / (len(wanted) * len(request.threads) * request.passes * (len(request.backends) + 5))
    kept: dict[Case, dict[int, _Entrants]] = {}
    timed = {(case, threads): _Timed() for case in wanted for threads in request.threads if only is None or (case, threads) in only}
    for _ in range(request.passes):
        for case in wanted:
            name, operation, layout = case
            made = kept.get(case)
            if made is None:
                work = make_work(operation, request.shapes[name], layout, request)
                made = {threads: _Entrants(work, threads, request) for threads in request.threads if (case, threads) in timed}
                if sum(one.work.array_bytes * 4 * len(of) for of in kept.values() for one in of.values()) < KEEP:
                    kept[case] = made
            for threads, entrants in made.items():
                progress(f"{operation}, {name}, {layout}, {threads} thread{'s' * (threads > 1)}")
                timed[case, threads].add(entrants, share, request)
    for (case, threads), one in timed.items():
        one.finish(case, threads, request, result, timed[case, request.threads[0]] if only is None else one)
    add_limits(result)
    return result


class Work(Protocol):
    """What is timed in one layout, with any number of threads."""

    bytes: int  # that have to move
    array_bytes: int  # of what the limit's parts run over

    @property
    def expected(self) -> tuple[Array, ...]:
        """By the float64 reference."""

    def ours(self, backend: str, threads: int) -> Contestant:
        """One of our backends."""

    def peers(self, threads: int, libraries: tuple[str, ...], *, serial: bool) -> list[Contestant]:
        """The other libraries; `serial`: those too that have one thread."""

    def limit_parts(self, threads: int) -> dict[str, Run]:
        """What the limit is made of."""


def make_work(operation: str, shape: tuple[int, ...], layout: str, request: Request) -> Work:
    """Preprocessing of pictures, or a row of the operation table."""
    if operation == preprocessing.NAME:
        return preprocessing.Work(pictures.raw(request.pictures, shape), layout)
    row = ops.OPERATIONS[operation]
    return RowWork(row, make_inputs(row, shape, layout, request.dtype, request.pictures))


class RowWork:
    """A row of the operation table, with its inputs."""

    def __init__(self, row: Operation, inputs: Inputs) -> None:
        self._row, self._inputs = row, inputs
        self._out = np.zeros_like(inputs["x"])
        self.bytes, self.array_bytes = row.bytes_moved(inputs["x"]), inputs["x"].nbytes

    @cached_property
    def expected(self) -> tuple[Array, ...]:
        """By the float64 reference."""
        return self._row.reference(contestants.fresh(self._inputs, self._row))

    def ours(self, backend: str, threads: int) -> Contestant:
        """One of our backends."""
        return contestants.backend(self._row, self._inputs, backend, threads, self._out)

    def peers(self, threads: int, libraries: tuple[str, ...], *, serial: bool) -> list[Contestant]:
        """The other libraries."""
        return peers.found(self._row, self._inputs, threads, libraries, serial=serial)

    def limit_parts(self, threads: int) -> dict[str, Run]:
        """A copy, one past the caches, a read of x; and what a core does without memory."""
        return limit_parts(self._inputs["x"], self._out, threads) | {CORE: contestants.core_part(threads)}


def limit_parts(x: Array, out: Array, threads: int) -> dict[str, Run]:
    """A copy of x to out, one past the caches, and a read of x."""
    from cpunorm import native

    whole = out.nbytes // 4 * 4
    source, to = (array.reshape(-1).view(np.uint8)[:whole].view(np.float32) for array in (x, out))
    return {
        COPY: lambda: native.copy_limit(to, source, threads, stream=False),
        STREAM: lambda: native.copy_limit(to, source, threads, stream=True),
        READ: lambda: native.read_limit(source, threads),
    }


def make_inputs(row: Operation, shape: tuple[int, ...], layout: str, dtype: str, photographs: list[Array]) -> Inputs:
    """The row's inputs; pictures where there are three channels, with their own statistics as the running ones."""
    inputs = row.inputs(shape, layout, dtype, np.random.default_rng(0))
    if len(shape) == 4 and shape[1] == 3:
        x = pictures.batch(photographs, shape)
        if row.data == "x":
            inputs["x"] = (samples.arrange(x, layout) if row.layouts else x).astype(inputs["x"].dtype)
        for name, values in (("running_mean", x.mean(axis=(0, 2, 3))), ("running_var", x.var(axis=(0, 2, 3)))):
            if name in inputs:
                inputs[name] = values.astype(inputs[name].dtype)
    return inputs


class _Entrants:
    """Who is timed in one case with one number of threads."""

    def __init__(self, work: Work, threads: int, request: Request) -> None:
        self.work, self.threads = work, threads
        serial = threads == request.threads[0]  # who has one thread is timed with the first number of threads, for all of them
        ours = [name for name in request.backends if (name != "numpy" or serial) and (name != "numba" or threads <= _numba_threads())]
        self.everybody = [work.ours(name, threads) for name in ours] + work.peers(threads, request.peers, serial=serial)


@dataclass
class _Timed:
    """What the passes over one case found."""

    errors: dict[str, float] = field(default_factory=dict)  # of those that passed the check
    wrong: dict[str, float] = field(default_factory=dict)  # and of the others
    passes: dict[str, list[tuple[float, ...]]] = field(default_factory=dict)
    limits: dict[str, list[tuple[float, ...]]] = field(default_factory=dict)
    work: Work | None = None

    def add(self, entrants: _Entrants, share: float, request: Request) -> None:
        """A pass; the first one checks."""
        peers.use_threads(entrants.threads, request.peers)
        if self.work is None:
            self.work = entrants.work
            for contestant in entrants.everybody:
                results = contestant.results(contestant.run())
                good, largest = contestants.deviation(results, entrants.work.expected, **contestant.tolerance)
                (self.errors if good else self.wrong)[contestant.name] = largest
        checked = {contestant.name: contestant.run for contestant in entrants.everybody if contestant.name in self.errors}
        parts = entrants.work.limit_parts(entrants.threads) if request.has_limit and checked else {}
        turns = iter(take_turns([*checked.values(), *parts.values()], share, request.least))
        for names, into in ((checked, self.passes), (parts, self.limits)):
            for name in names:
                into.setdefault(name, []).append(next(turns))

    def finish(self, case: Case, threads: int, request: Request, result: Result, first: _Timed) -> None:
        """Append rows, the limit and problems to `result`; `first` has those of one thread."""
        shape_name, operation, layout = case
        assert self.work is not None
        for name, largest in self.wrong.items():
            result.problems.append(
                f"not timed: {name}, {operation}, {shape_name}, {layout}, {threads} threads: differs from the reference by {largest:.2g}"
            )
        if "numba" in request.backends and threads > _numba_threads():
            result.problems.append(f"skipped: numba with {threads} threads: its pool has {_numba_threads()}")
        if self.limits:
            parts = {name: Timing(tuple(passes)) for name, passes in self.limits.items()}
            result.limits.append(Limit(operation, shape_name, layout, threads, self.work.array_bytes, parts))
        known = {name: Timing(tuple(passes)) for name, passes in (first.passes | self.passes).items()}
        result.rows += [
            Row(
                operation=operation,
                shape_name=shape_name,
                shape=request.shapes[shape_name],
                layout=layout,
                contestant=name,
                threads=1 if name in peers.SERIAL else threads,
                timing=known[name],
                bytes=self.work.bytes,
                largest_error=self.errors[name],
                case_threads=threads,
                peers={peer: known[peer] for peer in (contestants.NUMPY, contestants.TORCH) if peer in known},
            )
            for name in self.passes
        ]


def _numba_threads() -> int:
    from cpunorm.jit import threads

    return threads.pool_size() if threads.choose() else 1


def take_turns(runs: list[Run], share: float, least: int) -> list[tuple[float, ...]]:
    """Time all of them in rounds, until each has had `share` seconds and at least `least` turns: the seconds of each turn."""
    taken: list[list[float]] = [[] for _ in runs]
    spent = [0.0 for _ in runs]
    order = list(range(len(runs)))
    shuffle = random.Random(0).shuffle
    for number in range(MOST_ROUNDS):
        shuffle(order)
        present = [index for index in order if number < least or spent[index] + number * PAUSE < share]
        if not present:
            break
        for index in present:
            time.sleep(PAUSE)
            fastest, seconds = turn(runs[index])
            taken[index].append(fastest)
            spent[index] += seconds
    return [tuple(seconds) for seconds in taken]


def turn(run: Run) -> tuple[float, float]:
    """Seconds of the fastest call of a turn, and of the turn."""
    fastest = float("inf")
    begin = now = time.perf_counter()
    while now - begin < TURN:
        start = now
        run()
        now = time.perf_counter()
        fastest = min(fastest, now - start)
    return fastest, now - begin
