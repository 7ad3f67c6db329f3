"""From a view and an operation to a `Plan`: which kernels, over which items, in which order, with which tables.

Decided from integers alone (shapes, strides, cache sizes, threads), so that it is tested without arrays and without a backend. Nothing here
touches memory; `Plan.link` turns names of kernels into a backend's addresses.

**Same bits for any number of threads.** Pieces, blocks of a reduction and tables depend on the view only. The number of threads decides
merely how the items are dealt out, and whether the schedule is breadth or depth first, which changes no order of additions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from cpunorm.layout import View
from cpunorm.machine import Caches
from cpunorm.program import ADDRESSES, Program

PIECE_BYTES = 128 << 10  # of a unit in one item of a reduction of runs: small enough to share out, large beside its merge
COUNTED = 512 << 10  # values of a unit in one item of `counts`: each leaves a row of 64-bit sums, for which 8-bit data is little
PIECE_ROWS = 128  # at least so many rows in one item of a reduction of columns: each leaves an entry of 24 bytes a column
PERIOD = 192  # fewest values in a row of coefficients: 3 channels as they stand reach a fifth of the rate
GRAIN = 1024  # elements in one item of a breadth-first affine
STRETCH = 1024  # fewest contiguous elements that a depth-first block walks in one go
BLOCKS_A_THREAD = 8  # blocks of a phase that each thread gets on average, so that a busy core is no brake
LARGEST_BLOCK = 512 << 10  # bytes
SERIAL_BYTES = 128 << 10  # read and written by a call, below which a second thread costs more than it gives
FOLD_BLOCK = 1 << 14  # table entries
RING = 16384  # values of a window that its gradient keeps (windows.RING in the backends)
TILE = 256  # values a tile of the backends
LARGEST_WINDOW = RING // 2  # channels

Value = int | float | str  # a str names a kernel or stage, whose address the link fills in


@dataclass(frozen=True)
class Step:
    """A kernel over a small view; `fields` are those of `program.STEP`."""

    kernel: str
    fields: Mapping[str, Value]

    @property
    def items(self) -> int:
        """Items of the kernel."""
        return int(self.fields["items"])

    def scaled(self, scale: int) -> Step:
        """The same with `scale` of its items in one item of the phase."""
        return Step(self.kernel, {**self.fields, "scale": scale})


@dataclass(frozen=True)
class Phase:
    """Steps run one after another over each block of the items."""

    items: int
    block: int
    steps: tuple[Step, ...]


@dataclass(frozen=True)
class Plan:
    """All that a backend needs besides addresses. `scratch` is in float64 values; `tables` are offsets that the caller reads."""

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
                fields: dict[str, Any] = {"scale": 1, **step.fields, "kernel": step.kernel}
                for name in ADDRESSES:
                    if isinstance(fields.get(name), str):
                        fields[name] = address(fields[name])
                steps.append(fields)
            phases.append(({"items": phase.items, "block": phase.block}, steps))
        return Program(phases, self.scratch)


@dataclass(frozen=True)
class Resources:
    """What a schedule may use."""

    threads: int
    caches: Caches


@dataclass(frozen=True)
class Data:
    """What the elements are, and what is done to them on the way out.

    `dtype` names x, second, y and sum; the computing dtype is float32 unless it is float64. `second` tells whether there is a second
    operand: the views then have strides of x, second and y, else of x and y.
    """

    dtype: str
    second: bool = False
    activation: str | None = None
    in_place: bool = False

    @property
    def itemsize(self) -> int:
        """Bytes of an element."""
        return {"uint8": 1, "uint16": 2, "float16": 2, "bfloat16": 2, "float32": 4, "float64": 8}[self.dtype]

    @property
    def compute(self) -> int:
        """Bytes of the computing dtype."""
        return max(self.itemsize, 4)

    def fields(self, view: View) -> dict[str, Value]:
        """Strides and stages for a step over `view`."""
        names = ["x", "second", "y"] if self.second else ["x", "y"]
        fields: dict[str, Value] = {
            "outer": view.outer,
            "middle": view.middle,
            "last": view.last,
            "item_size": self.itemsize,
            "has_second": int(self.second),
        }
        if self.itemsize == 2:
            fields["load"] = f"load_{self.dtype}"
        for name, (outer, middle) in zip(names, view.strides, strict=False):
            fields |= {f"{name}_outer": outer, f"{name}_middle": middle}
        return fields

    def store(self, view: View, caches: Caches, *, tiled: bool = False) -> dict[str, Value]:
        """How a tile leaves: narrowed; past the caches beyond their size; through a tile where it is written over what was read, or
        where something more is done to it (`tiled`); else the result goes where it belongs at once.
        """
        fields: dict[str, Value] = {"activation": self.activation} if self.activation else {}
        if self.itemsize == 2:
            fields["store"] = f"store_{self.dtype}"
        elif not self.in_place and (2 + self.second) * view.size * self.itemsize > caches.l3:
            fields["store"] = "store_stream"
        elif self.in_place or self.activation or tiled:
            fields["store"] = "store_plain"
        return fields


class Scratch:
    """Offsets in the scratch array, handed out one after another."""

    def __init__(self) -> None:
        self.size = 0

    def take(self, values: int, itemsize: int = 8) -> int:
        """The offset of room for so many values."""
        start = self.size
        self.size += -(-values * itemsize // 64) * 8  # whole cache lines
        return start


# ---------------------------------------------------------------- reductions


@dataclass(frozen=True)
class Reduction:
    """A step whose items leave entries, and what one unit merges: entries in scratch are [outer, unit_entries, channel]."""

    step: Step
    unit_entries: int
    units: int
    channels: int  # units of an outer index
    unit_size: int  # values of a unit

    @property
    def unit_items(self) -> int:
        """Items of the step that make up one outer index (columns) or one unit (runs)."""
        return int(self.step.fields["pieces"])

    @property
    def outer(self) -> int:
        """How many outer indices have units of their own."""
        return self.units // self.channels

    def item_bytes(self, data: Data) -> int:
        """What one item reads."""
        return int(self.step.fields["length"]) * data.itemsize * (1 + data.second)


def reduce(
    kernel: str,
    view: View,
    data: Data,
    scratch: Scratch,
    *,
    groups: int = 0,
    centred: bool = True,
    columns: int = 3,
    piece: int = 0,
) -> Reduction:
    """`kernel` over all of the view, a unit being a channel: of each outer index if that is kept, else of all of them.

    With `groups`, a unit of runs is a group of channels (columns are merged to groups afterwards). Entries have `columns` numbers.
    An item reads `piece` values, by default `PIECE_BYTES`.
    """
    piece = piece or PIECE_BYTES // data.compute
    fields = data.fields(view) | {"centred": int(centred)}
    if view.form == "runs":
        channels, unit = view.middle, view.last
        if view.kept_outer:
            fields |= {"repeat": 1, "total": view.last}
        else:
            fields |= {"repeat": view.outer, "outer": 1, "total": view.outer * view.last}
            for name in ("x", "second", "y"):
                fields |= {f"{name}_repeat": fields.pop(f"{name}_outer", 0)}
        if groups and groups != channels:
            each = channels // groups
            runs, unit = (1, each * unit) if view.rows_packed(0) and (not data.second or view.rows_packed(1)) else (each, unit)
            for name in ("x", "second"):
                middle = int(fields.get(f"{name}_middle", 0))
                fields |= {f"{name}_repeat": middle, f"{name}_middle": middle * each}
            channels = groups
            fields |= {"repeat": runs, "middle": groups, "last": unit, "total": each * view.last}
        total = int(fields["total"])
        length = piece
        pieces = -(-total // length)
        outer = view.outer if view.kept_outer else 1
        units = outer * channels
        entries = items = units * pieces
        merged, unit_size = pieces, total
    else:
        packed = all(view.rows_packed(array) for array in range(1 + data.second))
        channels = view.last
        period = _period(view) if packed else channels
        total = view.middle * channels
        length = max(PIECE_ROWS * channels, piece) // period * period or period
        pieces = -(-total // length)
        items = view.outer * pieces
        entries = items * period
        units = (view.outer if view.kept_outer else 1) * channels
        merged, unit_size = entries // units, view.size // units
        if packed:
            fields |= {"x_middle": period, "second_middle": period}
        fields |= {"last": period, "total": total}
    fields |= {"items": items, "pieces": pieces, "length": length, "entries": entries, "moments": scratch.take(columns * entries)}
    fields |= {"channels": channels if view.form == "runs" else view.channels, "groups": channels}
    return Reduction(Step(kernel, fields), merged, units, channels, unit_size)


def _period(view: View) -> int:
    """Columns: how many values a widened row has. Rows of few channels are repeated until vectors have something to do."""
    return view.last * max(1, -(-PERIOD // view.last))


def merge_entries(kernel: str, reduction: Reduction, scratch: Scratch, *, columns: int = 3) -> tuple[tuple[Step, ...], dict[str, Value]]:
    """The fold of entries to units, if a unit has more than one, and where the statistics of the units are."""
    fields = reduction.step.fields
    if reduction.unit_entries == 1:
        return (), {"statistics": fields["moments"], "units": fields["entries"]}
    where: dict[str, Value] = {"statistics": scratch.take(columns * reduction.units), "units": reduction.units}
    entries = {name: fields[name] for name in ("moments", "entries")}
    step = Step(
        kernel,
        {"items": reduction.units, "channels": reduction.channels, "unit_entries": reduction.unit_entries, **entries, **where},
    )
    return (step,), where


def merge_groups(each: int, units: int, where: dict[str, Value], scratch: Scratch) -> tuple[Step, dict[str, Value]]:
    """Channels merged to groups of `each`: the same fold, with the channels as entries of a unit that has one channel."""
    merged: dict[str, Value] = {"statistics": scratch.take(3 * units), "units": units}
    entries = {"moments": where["statistics"], "entries": where["units"]}
    return Step("fold_moments", {"items": units, "channels": 1, "unit_entries": each, **entries, **merged}), merged


# ---------------------------------------------------------------- affine


def coefficients_table(count: int, outer: int, period: int, channels: int, data: Data, scratch: Scratch) -> dict[str, Value]:
    """A table of `count` rows of `period`, one row an outer index where `outer`."""
    values = count * period
    return {
        "period": period,
        "channels": channels,
        "coefficients": scratch.take(5 * values, data.compute),
        "coefficient_count": values,
        "coefficient_outer": period if outer else 0,
    }


def coefficients_of(view: View, data: Data, scratch: Scratch, *, outer: bool) -> dict[str, Value]:
    """For the affine of this view, a row of coefficients for each outer index if `outer`."""
    packed = view.form == "columns" and all(view.rows_packed(array) for array in range(len(view.strides)))
    period = _period(view) if packed else view.channels
    return coefficients_table(view.outer if outer else 1, outer, period, view.channels, data, scratch)


def affine_step(
    view: View, data: Data, coefficients: Mapping[str, Value], caches: Caches, *, kernel: str = "", tiled: bool = False
) -> Step:
    """Breadth first: items of `GRAIN` elements of everything, in memory order."""
    fields = data.fields(view)
    y = len(view.strides) - 1
    if view.form == "columns" and all(view.rows_packed(array) for array in range(y + 1)):
        outer, last = view.outer, view.middle * view.last  # a row is all of an outer index
        if not coefficients["coefficient_outer"] and all(view.packed(array) for array in range(y + 1)):
            outer, last = 1, outer * last
        fields |= {"outer": outer, "middle": 1, "last": last}
    fields |= {"items": -(-view.size // GRAIN), "grain": GRAIN, "total": view.size, "repeat": 1, "packed": int(view.packed(y))}
    return Step(kernel or f"affine_{view.form}", fields | dict(coefficients) | data.store(view, caches, tiled=tiled))


def by_unit(affine: Step, items: int, grain: int) -> Step:
    """Depth first: an item is a unit of `grain` contiguous elements."""
    return Step(affine.kernel, {**affine.fields, "items": items, "grain": grain})


def by_channel(affine: Step, view: View, y: int) -> Step:
    """Depth first, runs pooled over outer: an item is a channel, walked in each outer index."""
    fields = dict(affine.fields)
    for name in ("x", "second", "y"):
        fields[f"{name}_repeat"] = fields.pop(f"{name}_outer", 0)
    fields |= {"items": view.middle, "grain": view.last, "total": view.middle * view.last, "repeat": view.outer, "outer": 1}
    return Step(affine.kernel, {**fields, "packed": int(view.rows_packed(y))})


# ---------------------------------------------------------------- schedules


def threads_for(moved: int, resources: Resources) -> int:
    """One, below the number of bytes where a second thread pays."""
    return 1 if moved < SERIAL_BYTES else resources.threads


def phase_of(step: Step, item_bytes: int, threads: int) -> Phase:
    """One step over everything, breadth first."""
    return Phase(step.items, _block(step.items, item_bytes, threads), (step,))


def _block(items: int, item_bytes: int, threads: int) -> int:
    """Items of a block: every thread gets several, none is longer than `LARGEST_BLOCK` or shorter than its dispatch is worth."""
    if threads == 1:
        return items
    share = items * item_bytes // (threads * BLOCKS_A_THREAD)
    return max(1, min(max(share, SERIAL_BYTES // 8), LARGEST_BLOCK) // max(item_bytes, 1))


def fold_phases(steps: Iterable[Step], unit_entries: int) -> tuple[Phase, ...]:
    """A phase each for steps over tables."""
    return tuple(Phase(step.items, max(1, FOLD_BLOCK // unit_entries), (step,)) for step in steps)


def depth_block(units: int, unit_bytes: int, stretch: int, threads: int, caches: Caches) -> int:
    """Units that one thread takes from the first step to the last while they are in its cache; 0 where that does not pay.

    `stretch` is the number of contiguous elements of a unit.
    """
    if units < 4 * threads or unit_bytes > caches.l3 // (2 * threads):
        return 0  # too few units to share out, or none fits
    block = max(1, caches.l2 // 2 // unit_bytes, -(-STRETCH // stretch))
    return min(block, -(-units // (4 * threads)))


def affine_bytes(data: Data) -> int:
    """What an item of a breadth-first affine reads and writes."""
    return (2 + data.second) * GRAIN * data.itemsize


def scheduled(
    view: View,
    data: Data,
    reduction: Reduction,
    folds: tuple[Step, ...],
    affine: Step,
    scratch: Scratch,
    threads: int,
    caches: Caches,
    last: tuple[Step, ...] = (),
) -> Plan:
    """reduction -> folds -> affine, a few units at a time while they are in cache, or each over everything; `last` are folds at the end."""
    itemsize = (1 + data.second) * data.itemsize
    y = len(view.strides) - 1
    depth: tuple[Step, ...] = ()
    if view.form == "runs":
        units, stretch = reduction.units, view.last * view.middle // reduction.channels
        block = depth_block(units, reduction.unit_size * itemsize, stretch, threads, caches)
        first = reduction.step.scaled(reduction.unit_items)
        inner = by_unit(affine, units, reduction.unit_size) if view.kept_outer or view.outer == 1 else by_channel(affine, view, y)
        depth = (first, *folds, inner)
    elif view.kept_outer:
        units = view.outer
        block = depth_block(units, view.size // units * itemsize, view.last * view.middle, threads, caches)
        first = reduction.step.scaled(reduction.unit_items)
        depth = (first, *(step.scaled(step.items // units) for step in folds), by_unit(affine, units, view.size // units))
    else:
        block = 0  # pooled columns would be read in slivers
    phases: tuple[Phase, ...]
    if block:
        phases = (Phase(units, block, depth),)
    else:
        phases = (
            phase_of(reduction.step, reduction.item_bytes(data), threads),
            *fold_phases(folds, reduction.unit_entries),
            phase_of(affine, affine_bytes(data), threads),
        )
    return Plan((*phases, *fold_phases(last, reduction.outer)), scratch.size, threads)


def with_groups(reduction: Reduction, groups: int) -> Reduction:
    """With the number of groups that mean and rstd are of: of each outer index that has units of its own, or of all."""
    where = {"groups": groups, "coefficient_outer": groups if reduction.outer > 1 else 0}
    return replace(reduction, step=Step(reduction.step.kernel, {**reduction.step.fields, **where}))
