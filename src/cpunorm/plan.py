"""From a view and an operation to a `Plan`: which kernels, over which items, in which order, with which tables.

Decided from integers alone (shapes, strides, cache sizes, threads), so that it is tested without arrays and without a backend. Nothing here
touches memory; `link` turns names of kernels into a backend's addresses.

**Same bits for any number of threads.** Pieces, blocks of a reduction and tables depend on the view only. The number of threads decides
merely how the items are dealt out, and whether the schedule is breadth or depth first, which changes no order of additions.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from cpunorm.layout import View
from cpunorm.machine import Caches
from cpunorm.program import Program

PIECE_BYTES = 128 << 10  # of a run's unit in one item of moments_runs: small enough to share out, large beside its merge
PIECE_ROWS = 128  # at least so many rows in one item of moments_columns: each leaves an entry of 24 bytes a column
PERIOD = 192  # fewest values in a row of coefficients: 3 channels as they stand reach a fifth of the rate
GRAIN = 1024  # elements in one item of a breadth-first affine
STRETCH = 1024  # fewest contiguous elements that a depth-first block walks in one go
BLOCKS_A_THREAD = 8  # blocks of a phase that each thread gets on average, so that a busy core is no brake
LARGEST_BLOCK = 512 << 10  # bytes
SERIAL_BYTES = 128 << 10  # read and written by a call, below which a second thread costs more than it gives
FOLD_BLOCK = 1 << 14  # table entries


@dataclass(frozen=True)
class Step:
    """A kernel over a small view; `fields` are those of `program.STEP`. `store` names the stage that writes a tile."""

    kernel: str
    fields: Mapping[str, int | float]
    store: str | None = None


@dataclass(frozen=True)
class Phase:
    """Steps run one after another over each block of the items."""

    items: int
    block: int
    steps: tuple[Step, ...]


@dataclass(frozen=True)
class Plan:
    """All that a backend needs besides addresses. `scratch` is in float64 values."""

    phases: tuple[Phase, ...]
    scratch: int
    threads: int
    tables: dict[str, int] = field(default_factory=dict)

    def link(self, address: Callable[[str], int]) -> Program:
        """The plan with a backend's kernels in it."""
        phases: list[tuple[dict[str, int], list[dict[str, Any]]]] = []
        for phase in self.phases:
            steps = []
            for step in phase.steps:
                fields: dict[str, Any] = {"scale": 1, "kernel": address(step.kernel), **step.fields}
                if step.store is not None:
                    fields["store"] = address(step.store)
                steps.append(fields)
            phases.append(({"items": phase.items, "block": phase.block}, steps))
        return Program(phases, self.scratch)


@dataclass(frozen=True)
class Resources:
    """What a schedule may use."""

    threads: int
    caches: Caches


class _Scratch:
    """Offsets in the scratch array, handed out one after another."""

    def __init__(self) -> None:
        self.size = 0

    def take(self, values: int, itemsize: int = 8) -> int:
        start = self.size
        self.size += -(-values * itemsize // 64) * 8  # whole cache lines
        return start


def _block(items: int, item_bytes: int, threads: int) -> int:
    """Items of a block: every thread gets several, none is longer than `LARGEST_BLOCK` or shorter than its dispatch is worth."""
    if threads == 1:
        return items
    share = items * item_bytes // (threads * BLOCKS_A_THREAD)
    return max(1, min(max(share, SERIAL_BYTES // 8), LARGEST_BLOCK) // max(item_bytes, 1))


def _threads(moved: int, resources: Resources) -> int:
    return 1 if moved < SERIAL_BYTES else resources.threads


# ---------------------------------------------------------------- the steps, each from the view alone


def _moments(view: View, itemsize: int, scratch: _Scratch) -> tuple[Step, int, int]:
    """The step, the number of entries that a unit merges, and the number of units."""
    (x_outer, x_middle) = view.strides[0]
    if view.form == "runs":
        pooled = 1 if view.kept_outer else view.outer
        outer = view.outer if view.kept_outer else 1
        total = pooled * view.last
        length = max(PIECE_BYTES // itemsize, 1)
        pieces = -(-total // length)
        units = outer * view.middle
        entries = units * pieces
        fields = {
            "items": entries,
            "repeat": pooled,
            "x_repeat": 0 if view.kept_outer else x_outer,
            "x_outer": x_outer if view.kept_outer else 0,
            "middle": view.middle,
            "x_middle": x_middle,
            "last": view.last,
            "total": total,
        }
        merged = pieces
    else:
        packed = view.rows_packed(0)
        period = _period(view) if packed else view.last
        total = view.middle * view.last
        length = max(PIECE_ROWS * view.last, PIECE_BYTES // itemsize) // period * period or period
        pieces = -(-total // length)
        entries = view.outer * pieces * period
        units = (view.outer if view.kept_outer else 1) * view.last
        fields = {
            "items": view.outer * pieces,
            "x_outer": x_outer,
            "x_middle": period if packed else x_middle,
            "last": period,
            "total": total,
        }
        merged = entries // units
    fields |= {"pieces": pieces, "length": length, "entries": entries, "moments": scratch.take(3 * entries)}
    return Step(f"moments_{view.form}", fields), merged, units


def _period(view: View) -> int:
    """Columns: how many values a widened row has. Rows of few channels are repeated until vectors have something to do."""
    return view.last * max(1, -(-PERIOD // view.last))


def _fold_moments(moments: Step, merged: int, units: int, channels: int, scratch: _Scratch) -> Step:
    fields = {
        "items": units,
        "channels": channels,
        "moments": moments.fields["moments"],
        "entries": moments.fields["entries"],
        "unit_entries": merged,
        "statistics": scratch.take(3 * units),
        "units": units,
    }
    return Step("fold_moments", fields)


def _coefficients(view: View, rows: int, itemsize: int, scratch: _Scratch) -> dict[str, int | float]:
    period = _affine_period(view)
    count = rows * period
    return {
        "period": period,
        "coefficients": scratch.take(3 * count, itemsize),
        "coefficient_count": count,
        "coefficient_outer": period if rows > 1 else 0,
    }


def _affine_period(view: View) -> int:
    if view.form == "columns" and view.rows_packed(0) and view.rows_packed(1):
        return _period(view)
    return view.channels


def _store(view: View, itemsize: int, in_place: bool, caches: Caches) -> str | None:
    """How a tile leaves: ordinary and at once; through a tile where it is written over what was read; past the caches beyond them."""
    if in_place:
        return "store_plain"
    return "store_stream" if 2 * view.size * itemsize > caches.l3 else None


def _affine(view: View, coefficients: dict[str, int | float], store: str | None) -> Step:
    """Breadth first: items of `GRAIN` elements of everything, in memory order."""
    (x_outer, x_middle), (y_outer, y_middle) = view.strides
    outer, middle, last = view.outer, view.middle, view.last
    if view.form == "columns" and view.rows_packed(0) and view.rows_packed(1):
        middle, last = 1, middle * last  # a row is all of an outer index
        if view.packed(0) and view.packed(1) and not coefficients["coefficient_outer"]:
            outer, last = 1, outer * last
    fields = {
        "items": -(-view.size // GRAIN),
        "grain": GRAIN,
        "total": view.size,
        "repeat": 1,
        "outer": outer,
        "middle": middle,
        "last": last,
        "x_outer": x_outer,
        "x_middle": x_middle,
        "y_outer": y_outer,
        "y_middle": y_middle,
        "packed": int(view.packed(1)),
        **coefficients,
    }
    return Step(f"affine_{view.form}", fields, store)


def _affine_units(view: View, coefficients: dict[str, int | float], store: str | None) -> Step:
    """Depth first, runs pooled over outer: an item is a channel, walked in each outer index."""
    (x_outer, x_middle), (y_outer, y_middle) = view.strides
    fields = {
        "items": view.middle,
        "grain": view.last,
        "total": view.middle * view.last,
        "repeat": view.outer,
        "x_repeat": x_outer,
        "y_repeat": y_outer,
        "outer": 1,
        "middle": view.middle,
        "last": view.last,
        "x_middle": x_middle,
        "y_middle": y_middle,
        "packed": int(view.rows_packed(1)),
        **coefficients,
    }
    return Step("affine_runs", fields, store)


# ---------------------------------------------------------------- the operations


def batch_norm_training(view: View, itemsize: int, *, eps: float, momentum: float, in_place: bool, resources: Resources) -> Plan:
    """moments -> fold_moments -> fold_batch -> affine."""
    scratch = _Scratch()
    moved = 3 * view.size * itemsize
    threads = _threads(moved, resources)
    moments, merged, units = _moments(view, itemsize, scratch)
    fold = _fold_moments(moments, merged, units, view.channels, scratch)
    coefficients = _coefficients(view, 1, itemsize, scratch)
    batch = Step(
        "fold_batch",
        {
            "items": units,
            "channels": view.channels,
            "statistics": fold.fields["statistics"],
            "units": units,
            "eps": eps,
            "momentum": momentum,
            **coefficients,
        },
    )
    store = _store(view, itemsize, in_place, resources.caches)
    depth = _depth_block(view, itemsize, threads, resources.caches)
    phases: tuple[Phase, ...]
    if depth:
        moments = Step(moments.kernel, {**moments.fields, "scale": moments.fields["pieces"]})
        phases = (Phase(units, depth, (moments, fold, batch, _affine_units(view, coefficients, store))),)
    else:
        affine = _affine(view, coefficients, store)
        phases = (
            _phase(moments, moments.fields["length"] * itemsize, threads),
            Phase(units, max(1, FOLD_BLOCK // merged), (fold, batch)),
            _phase(affine, 2 * GRAIN * itemsize, threads),
        )
    return Plan(phases, scratch.size, threads)


def batch_norm_inference(view: View, itemsize: int, *, eps: float, in_place: bool, resources: Resources) -> Plan:
    """fold_running -> affine."""
    scratch = _Scratch()
    threads = _threads(2 * view.size * itemsize, resources)
    coefficients = _coefficients(view, 1, itemsize, scratch)
    channels = view.channels
    fold = Step("fold_running", {"items": channels, "channels": channels, "eps": eps, **coefficients})
    affine = _affine(view, coefficients, _store(view, itemsize, in_place, resources.caches))
    phases = (Phase(channels, FOLD_BLOCK, (fold,)), _phase(affine, 2 * GRAIN * itemsize, threads))
    return Plan(phases, scratch.size, threads)


def moments(view: View, itemsize: int, *, resources: Resources) -> Plan:
    """moments -> fold_moments; the result is the table ``statistics``: rows of count, mean and M2, in the order of the view's units."""
    scratch = _Scratch()
    threads = _threads(view.size * itemsize, resources)
    step, merged, units = _moments(view, itemsize, scratch)
    fold = _fold_moments(step, merged, units, view.channels, scratch)
    phases = (
        _phase(step, step.fields["length"] * itemsize, threads),
        Phase(units, max(1, FOLD_BLOCK // merged), (fold,)),
    )
    return Plan(phases, scratch.size, threads, {"statistics": int(fold.fields["statistics"]), "units": units})


def _phase(step: Step, item_bytes: int | float, threads: int) -> Phase:
    items = int(step.fields["items"])
    return Phase(items, _block(items, int(item_bytes), threads), (step,))


def _depth_block(view: View, itemsize: int, threads: int, caches: Caches) -> int:
    """Channels that one thread takes from moments to affine while they are in its cache; 0 where that does not pay."""
    if view.form != "runs" or view.middle < 4 * threads:
        return 0  # pooled columns would be read in slivers; few channels do not share out
    channel = view.outer * view.last * itemsize
    if channel > caches.l3 // (2 * threads):
        return 0
    block = max(1, caches.l2 // 2 // channel, -(-STRETCH // view.last))
    return min(block, -(-view.middle // (4 * threads)))
