"""From a view and an operation to a `Plan`: which kernels, over which items, in which order, with which tables.

Decided from integers alone (shapes, strides, cache sizes, threads), so that it is tested without arrays and without a backend. Nothing here
touches memory; `Plan.link` turns names of kernels into a backend's addresses.

**Same bits for any number of threads.** Pieces, blocks of a reduction and tables depend on the view only. The number of threads decides
merely how the items are dealt out, and whether the schedule is breadth or depth first, which changes no order of additions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from math import inf
from typing import Any

from cpunorm.layout import View
from cpunorm.machine import Caches
from cpunorm.program import ADDRESSES, Program

PIECE_BYTES = 128 << 10  # of a unit in one item of a reduction of runs: small enough to share out, large beside its merge
PIECE_ROWS = 128  # rows that a partial sum of the gradients of weight and bias is of, of so many that each core gets some
ROWS_AT_ONCE, ROW_BYTES = 32, 128 << 10  # the most that go through all steps of a row's gradient together
FEWEST, MOST = 16, 256  # pieces that a reduction of columns is cut into, if it is large: enough for many cores, and
ENTRY_BYTES = 512 << 10  # no more, above the fewest, than leave so many bytes of entries, of 24 bytes a column each
CUT_ROWS = 32  # fewest rows in one of these pieces: its entries take the bytes of six, and are written and read again
TABLE_BYTES = 1 << 20  # of all tables, above which a call is run in parts (`cpunorm.parts`)
COUNTED = 512 << 10  # values of a unit in one item of `counts`: each leaves a row of 64-bit sums, for which 8-bit data is little
PERIOD = 192  # fewest values in a row of coefficients: 3 channels as they stand reach a fifth of the rate
GRAIN = 1024  # elements in one item of a breadth-first affine
PART_BYTES = 32 << 10  # read in one part of a depth-first block: it is in L1 or just beyond when it is read again
STRETCH = 1024  # fewest contiguous elements that a depth-first part walks in one go
SHORT = 2048  # bytes of a run, fewer than which are not worth streaming on their own
PAD = 128  # coefficients that go on after a period: more than a group of the widest vectors
WHOLE = 32  # values of a group of vectors (float32, AVX2)
WIDEST = 2048  # columns to which a period may grow to become a multiple of a group
AHEAD = 1024  # bytes between what is read and what is fetched meanwhile
BLOCKS_A_THREAD = 8  # blocks of a phase that each thread gets on average, so that a busy core is no brake
LARGEST_BLOCK = 2048 << 10  # bytes
SERIAL_BYTES = 256 << 10  # read and written by a call, below which a second thread costs more than it gives
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
    """Steps run one after another over each part of a block of the items; a part is the whole block if it is 0."""

    items: int
    block: int
    steps: tuple[Step, ...]
    part: int = 0


@dataclass(frozen=True)
class Plan:
    """All that a backend needs besides addresses. `scratch` is in float64 values; `tables` are offsets that the caller reads; `affine` is
    the number of weights and of biases that the kernels read even where the caller has none: 1 and `bias` then.
    """

    phases: tuple[Phase, ...]
    scratch: int
    threads: int
    tables: dict[str, int] = field(default_factory=dict)
    affine: int = 0
    bias: float = 0.0

    def link(self, address: Callable[[str], int]) -> Program:
        """The plan with a backend's kernels in it."""
        phases: list[tuple[dict[str, int], list[dict[str, Any]]]] = []
        for phase in self.phases:
            steps = []
            for step in phase.steps:
                fields: dict[str, Any] = {"scale": 1, "floor": -inf, "ceiling": inf, **step.fields, "kernel": step.kernel}
                for name in ADDRESSES:
                    if isinstance(fields.get(name), str):
                        fields[name] = address(fields[name])
                steps.append(fields)
            phases.append(({"items": phase.items, "block": phase.block, "part": phase.part or phase.block}, steps))
        return Program(phases, self.scratch)


@dataclass(frozen=True)
class Resources:
    """What a schedule may use; `waking` is how many times `SERIAL_BYTES` it takes until a second thread of the backend pays."""

    threads: int
    caches: Caches
    waking: int = 1

    def of_one(self, parts: int) -> Resources:
        """What one of so many parts of a call may use: its share of L3, so that it streams if the whole would."""
        return self if parts == 1 else replace(self, caches=self.caches._replace(l3=self.caches.l3 // parts))


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
        for name, (outer, middle) in zip(names, view.strides, strict=False):
            fields |= {f"{name}_outer": outer, f"{name}_middle": middle}
        return fields

    def streams(self, view: View, caches: Caches) -> bool:
        """Whether the result goes past the caches: what is read and written would fill three quarters of L3, and, as it is shared, not stay
        there (benchmarks/streaming.py); never what is written over its input, which is in them.
        """
        return not self.in_place and (2 + self.second) * view.size * self.itemsize > caches.l3 * 3 // 4

    def store(self, view: View, caches: Caches, run: int) -> dict[str, Value]:
        """How the affine's values leave, in runs of `run` contiguous ones: clipped; past the caches; through a tile for an activation that
        is no clip, or where runs are too short to fill lines.
        """
        fields: dict[str, Value] = {"streams": int(self.streams(view, caches)), "ahead": AHEAD * self.streams(view, caches)}
        if self.activation in CLIPS:
            fields["floor"], fields["ceiling"] = CLIPS[self.activation]
        elif self.activation:
            fields["activation"] = self.activation
        fields["tiled"] = int("activation" in fields or (fields["streams"] and run * self.itemsize < SHORT))
        return fields


CLIPS = {"relu": (0.0, inf), "relu6": (0.0, 6.0)}


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
    repeats: int = 1  # columns: rows of all channels in a row of entries

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
        merged, unit_size, repeats = pieces, total, 1
    else:
        packed = all(view.rows_packed(array) for array in range(1 + data.second))
        channels = view.last
        period = _period(view) if packed else channels
        total = view.middle * channels
        cut = max(1, max(FEWEST, min(MOST, ENTRY_BYTES // (24 * period))) // (view.outer if view.kept_outer else 1))
        length = max(-(-total // (cut * period)), piece // period, min(CUT_ROWS, -(-total // period)), 1) * period
        pieces = -(-total // length)
        items = view.outer * pieces
        entries = items * period
        units = (view.outer if view.kept_outer else 1) * channels
        merged, unit_size, repeats = entries // units, view.size // units, period // channels
        if packed:
            fields |= {"x_middle": period, "second_middle": period}
        fields |= {"last": period, "total": total}
    fields |= {"ahead": AHEAD, "items": items, "pieces": pieces, "length": length}
    fields |= {"entries": entries, "moments": scratch.take(columns * entries)}
    fields |= {"channels": channels if view.form == "runs" else view.channels, "groups": channels}
    return Reduction(Step(kernel, fields), merged, units, channels, unit_size, repeats)


def _period(view: View) -> int:
    """Columns: how many values a widened row has: rows of few channels repeated until vectors have something to do, and none is left."""
    fewest = max(1, -(-PERIOD // view.last))
    for repeats in range(fewest, max(WIDEST // view.last, fewest) + 1):
        if repeats * view.last % WHOLE == 0:
            return repeats * view.last
    return fewest * view.last


def merge_entries(kernel: str, reduction: Reduction, scratch: Scratch, *, columns: int = 3) -> tuple[tuple[Step, ...], dict[str, Value]]:
    """The folds of entries to units, if a unit has more than one, and where the statistics of the units are."""
    fields = reduction.step.fields
    if reduction.unit_entries == 1:
        return (), {"statistics": fields["moments"], "units": fields["entries"]}
    where: dict[str, Value] = {"statistics": scratch.take(columns * reduction.units), "units": reduction.units}
    entries = {name: fields[name] for name in ("moments", "entries")}
    steps: tuple[Step, ...] = ()
    merged = reduction.unit_entries
    if 1 < reduction.repeats < merged:  # rows of entries first, as wide as they are: in rows of 3 channels there is nothing for vectors
        units, merged = reduction.units * reduction.repeats, reduction.repeats
        wide: dict[str, Value] = {"statistics": scratch.take(columns * units), "units": units}
        sizes = {"channels": reduction.channels * reduction.repeats, "unit_entries": reduction.unit_entries // reduction.repeats}
        steps = (Step(kernel, {"items": units, **sizes, **entries, **wide}),)
        entries = {"moments": wide["statistics"], "entries": units}
    sizes = {"channels": reduction.channels, "unit_entries": merged}
    return (*steps, Step(kernel, {"items": reduction.units, **sizes, **entries, **where})), where


def merge_groups(each: int, units: int, where: dict[str, Value], scratch: Scratch) -> tuple[Step, dict[str, Value]]:
    """Channels merged to groups of `each`: the same fold, with the channels as entries of a unit that has one channel."""
    merged: dict[str, Value] = {"statistics": scratch.take(3 * units), "units": units}
    entries = {"moments": where["statistics"], "entries": where["units"]}
    return Step("fold_moments", {"items": units, "channels": 1, "unit_entries": each, **entries, **merged}), merged


# ---------------------------------------------------------------- affine


def coefficients_table(
    count: int, outer: int, period: int, channels: int, data: Data, scratch: Scratch, *, pad: int = 0
) -> dict[str, Value]:
    """A table of `count` rows of `period` and `pad` values, one row an outer index where `outer`: three, with a second operand five."""
    width = period + pad
    values = count * width
    return {
        "has_second": int(data.second),
        "period": period,
        "width": width,
        "channels": channels,
        "coefficients": scratch.take((5 if data.second else 3) * values, data.compute),
        "coefficient_count": values,
        "coefficient_outer": width if outer else 0,
    }


def coefficients_of(view: View, data: Data, scratch: Scratch, *, outer: bool) -> dict[str, Value]:
    """For the affine of this view, a row of coefficients for each outer index if `outer`."""
    packed = view.form == "columns" and all(view.rows_packed(array) for array in range(len(view.strides)))
    period = _period(view) if packed else view.channels
    pad = PAD if view.form == "columns" else 0
    return coefficients_table(view.outer if outer else 1, outer, period, view.channels, data, scratch, pad=pad)


def affine_step(view: View, data: Data, coefficients: Mapping[str, Value], caches: Caches, *, kernel: str = "") -> Step:
    """Breadth first: items of `GRAIN` elements of everything, in memory order."""
    fields = data.fields(view)
    y = len(view.strides) - 1
    last = view.last
    if view.form == "columns" and all(view.rows_packed(array) for array in range(y + 1)):
        outer, last = view.outer, view.middle * view.last  # a row is all of an outer index
        if not coefficients["coefficient_outer"] and all(view.packed(array) for array in range(y + 1)):
            outer, last = 1, outer * last
        fields |= {"outer": outer, "middle": 1, "last": last}
    fields |= {"items": -(-view.size // GRAIN), "grain": GRAIN, "total": view.size, "repeat": 1, "packed": int(view.packed(y))}
    return Step(kernel or f"affine_{view.form}", fields | dict(coefficients) | data.store(view, caches, last))


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
    return 1 if moved < SERIAL_BYTES * resources.waking else resources.threads


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


def depth_phase(
    steps: tuple[Step, ...], units: int, unit_bytes: int, stretch: int, apart: int, threads: int, caches: Caches
) -> Phase | None:
    """`steps` over a few units at a time, while they are in cache; None where that does not pay.

    `unit_bytes` are read of a unit, `stretch` is the number of its contiguous elements, units begin `apart` bytes from each other.
    """
    if units < 4 * threads or unit_bytes > caches.l3 // (4 * threads):
        return None  # too few units to share out, or none fits
    most = -(-units // (4 * threads)) if threads > 1 else units  # short units are reduced several at once
    part = min(max(1, PART_BYTES // unit_bytes, -(-STRETCH // stretch)), most)
    block = max(1, _block(units, unit_bytes, threads) // part) * part
    next_part = part if part < block else block * threads  # the same thread's
    ahead = next_part * apart if fetches(2 * units * unit_bytes, unit_bytes, caches) else 0
    return Phase(units, block, tuple(_fetching(step, ahead, bool(steps[-1].fields["streams"])) for step in steps), part)


def _fetching(step: Step, ahead: int, streams: bool) -> Step:
    """A step that fetches meanwhile what comes next: the affine; where results stream half of it the reduction, so that memory rests in
    neither. (One of columns fetches what it reads itself.)
    """
    reduces = "moments" in step.fields
    if "ahead" not in step.fields or (step.kernel.endswith("columns") and reduces):
        return step
    return Step(step.kernel, {**step.fields, "ahead": 0 if reduces and not streams else ahead, "sparse": int(reduces)})


def fetches(moved: int, unit: int, caches: Caches) -> bool:
    """Whether kernels ask for what they read next: it pays where half of L3 and more is read and written (layer norm of (3152, 768) takes
    two thirds of the time with it); below, the CPU fetches enough by itself, and asking costs a tenth to a fifth (benchmarks/ahead.py).
    Not where the next unit is more than L2 has room for: the gradient of (32, 64, 112, 112), of 3 MB a channel, takes 1.28 times as long.
    """
    return moved > caches.l3 // 2 and unit <= caches.l2


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
    first: Phase | None = None
    reduce_unit = reduction.step.scaled(reduction.unit_items)
    if view.form == "runs":
        units, stretch = reduction.units, view.last * view.middle // reduction.channels
        together = view.kept_outer or view.outer == 1  # a unit lies in one place
        inner = by_unit(affine, units, reduction.unit_size) if together else by_channel(affine, view, y)
        apart = (reduction.unit_size if together else view.strides[0][1]) * data.itemsize
        first = depth_phase((reduce_unit, *folds, inner), units, reduction.unit_size * itemsize, stretch, apart, threads, caches)
    elif view.kept_outer:
        units, size = view.outer, view.size // view.outer
        steps = (reduce_unit, *(step.scaled(step.items // units) for step in folds), by_unit(affine, units, size))
        first = depth_phase(steps, units, size * itemsize, view.last * view.middle, size * data.itemsize, threads, caches)
    # else pooled columns, which would be read in slivers
    phases: tuple[Phase, ...]
    if first:
        phases = (first,)
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
