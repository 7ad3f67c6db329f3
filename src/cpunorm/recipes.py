"""Recipes: each operation as a plan, its steps and what each needs. The pieces are in `cpunorm.plan`."""

from __future__ import annotations

from dataclasses import replace

from cpunorm.layout import View
from cpunorm.plan import (
    COUNTED,
    ENTRY_BYTES,
    FEWEST,
    PIECE_ROWS,
    RING,
    ROW_BYTES,
    ROWS_AT_ONCE,
    TILE,
    Data,
    Phase,
    Plan,
    Resources,
    Scratch,
    Step,
    Value,
    affine_bytes,
    affine_step,
    by_unit,
    coefficients_of,
    coefficients_table,
    depth_phase,
    fold_phases,
    merge_entries,
    merge_groups,
    phase_of,
    reduce,
    scheduled,
    threads_for,
    with_groups,
)


def batch_norm(view: View, data: Data, resources: Resources, *, training: bool, eps: float, momentum: float) -> Plan:
    """Training: moments -> fold_moments -> fold_statistics -> affine, channel by channel where one fits; else fold_running -> affine."""
    scratch = Scratch()
    threads = threads_for((2 + training + data.second) * view.size * data.itemsize, resources)
    coefficients = coefficients_of(view, data, scratch, outer=False)
    affine = affine_step(view, data, coefficients, resources.caches)
    channels = view.channels
    common: dict[str, Value] = {"items": channels, "groups": channels, "weighted": 1, "eps": eps, "momentum": momentum, **coefficients}
    if not training:
        phases = (*fold_phases([Step("fold_running", common)], 1), phase_of(affine, affine_bytes(data), threads))
        return Plan(phases, scratch.size, threads)
    inputs = Data(data.dtype)  # the residual comes after the statistics
    reduction = reduce("moments_" + view.form, view, inputs, scratch)
    merge, where = merge_entries("fold_moments", reduction, scratch)
    folds = (*merge, Step("fold_statistics", common | where))
    return scheduled(view, data, reduction, folds, affine, scratch, threads, resources.caches)


def group_norm(view: View, data: Data, resources: Resources, *, groups: int, eps: float) -> Plan:
    """moments -> fold_moments -> fold_statistics -> affine; a unit is a group of channels of a sample (instance norm: a channel)."""
    scratch = Scratch()
    channels = view.channels
    samples = view.outer if view.kept_outer else 1
    threads = threads_for((3 + data.second) * view.size * data.itemsize, resources)
    coefficients = coefficients_of(view, data, scratch, outer=view.kept_outer)
    affine = affine_step(view, data, coefficients, resources.caches)
    # A group's channels that lie side by side are one unit; else (columns; one sample whose channels lie in several places) each is.
    apart = groups != channels and (view.form == "columns" or (view.outer > 1 and not view.kept_outer))
    reduction = reduce("moments_" + view.form, view, Data(data.dtype), scratch, groups=0 if apart else groups)
    merge, where = merge_entries("fold_moments", reduction, scratch)
    units = samples * groups
    if apart:
        step, where = merge_groups(channels // groups, units, where, scratch)
        merge = (*merge, step)
    common: dict[str, Value] = {"items": units, "groups": groups, "weighted": 1, "eps": eps, **coefficients}
    folds = (*merge, Step("fold_statistics", common | where))
    if apart and view.form == "runs":  # units of the moments are channels, units of the fold groups: all of the former first
        first = phase_of(reduction.step, reduction.item_bytes(data), threads)
        last = phase_of(affine, affine_bytes(data), threads)
        plan = Plan((first, *fold_phases(folds, reduction.unit_entries), last), scratch.size, threads)
    else:
        plan = scheduled(view, data, reduction, folds, affine, scratch, threads, resources.caches)
    return Plan(plan.phases, plan.scratch, plan.threads, {"statistics": int(where["statistics"]), "units": int(where["units"])})


def layer_norm(view: View, data: Data, resources: Resources, *, eps: float, centred: bool) -> Plan:
    """moments -> fold_moments -> fold_statistics -> affine_rows; a unit is a row. Not `centred` it is RMS norm."""
    scratch = Scratch()
    rows = view.outer * view.middle
    threads = threads_for((3 + data.second) * view.size * data.itemsize, resources)
    coefficients = coefficients_table(1, 0, rows, rows, data, scratch)
    affine = affine_step(view, data, coefficients, resources.caches, kernel="affine_rows")
    reduction = reduce("moments_runs", view, data, scratch, centred=centred)
    merge, where = merge_entries("fold_moments", reduction, scratch)
    folds = (*merge, Step("fold_statistics", {"items": rows, "groups": rows, "eps": eps, **coefficients, **where}))
    made = scheduled(view, data, reduction, folds, affine, scratch, threads, resources.caches)
    return replace(made, affine=view.last, bias=0.0 if centred else -0.0)  # PyTorch's RMS norm adds none, and zeros keep their sign


def normalize(view: View, data: Data, resources: Resources, *, eps: float) -> Plan:
    """moments (not centred) -> fold_moments -> fold_norms -> affine: the L2 norm."""
    scratch = Scratch()
    threads = threads_for(3 * view.size * data.itemsize, resources)
    outer = view.kept_outer
    reduction = reduce("moments_" + view.form, view, data, scratch, centred=False)
    coefficients = coefficients_of(view, data, scratch, outer=outer)
    affine = affine_step(view, data, coefficients, resources.caches)
    merge, where = merge_entries("fold_moments", reduction, scratch)
    folds = (*merge, Step("fold_norms", {"items": reduction.units, "eps": eps, **coefficients, **where}))
    plan = scheduled(view, data, reduction, folds, affine, scratch, threads, resources.caches)
    return plan


def local_response_norm(view: View, data: Data, resources: Resources, *, size: int, alpha: float, beta: float, k: float) -> Plan:
    """One window step; with a second operand its gradient."""
    threads = threads_for(2 * view.size * data.itemsize, resources)
    before, after = (min(reach, view.channels) for reach in (size // 2, (size - 1) // 2))
    name = "window_gradient_" if data.second else "window_"
    fields = data.fields(view) | {"channels": view.channels, "before": before, "after": after}
    fields |= {"size": float(size), "alpha": alpha, "beta": beta, "k": k}
    if data.itemsize == 2:
        fields |= {"load": f"load_{data.dtype}", "store": f"store_{data.dtype}"}
    else:
        fields["store"] = "store_stream" if data.streams(view, resources.caches) else "store_plain"
    if view.form == "runs":
        grain = min(TILE, RING // (before + after + 1)) if data.second else TILE
        pieces = -(-view.last // grain)
        fields |= {"items": view.outer * pieces, "pieces": pieces, "grain": grain}
        item_bytes = view.channels * grain * data.itemsize
    else:
        fields |= {"items": view.outer * view.middle}
        item_bytes = view.channels * data.itemsize
    return Plan((phase_of(Step(name + view.form, fields), 2 * item_bytes, threads),), 0, threads)


def moments(view: View, data: Data, resources: Resources, *, centred: bool = True) -> Plan:
    """moments -> fold_moments; the result is the table ``statistics``: rows of count, mean and M2, in the order of the view's units."""
    scratch = Scratch()
    threads = threads_for(view.size * data.itemsize, resources)
    reduction = reduce("moments_" + view.form, view, data, scratch, centred=centred)
    merge, where = merge_entries("fold_moments", reduction, scratch)
    phases = (phase_of(reduction.step, reduction.item_bytes(data), threads), *fold_phases(merge, reduction.unit_entries))
    return Plan(phases, scratch.size, threads, {"statistics": int(where["statistics"]), "units": int(where["units"])})


def counts(view: View, data: Data, resources: Resources) -> Plan:
    """counts, of uint8 and uint16; the result is the table ``entries`` of uint64: (sum, sum of squares), a row of `unit_entries` each of
    `units`, in the order of the view's units.
    """
    scratch = Scratch()
    threads = threads_for(view.size * data.itemsize, resources)
    reduction = reduce("counts_" + view.form, view, data, scratch, columns=2, piece=COUNTED)
    step = Step(reduction.step.kernel, {name: value for name, value in reduction.step.fields.items() if name != "load"})
    tables = {"entries": int(step.fields["moments"]), "unit_entries": reduction.unit_entries, "channels": reduction.channels}
    item_bytes = min(COUNTED, int(step.fields["total"])) * data.itemsize
    return Plan((phase_of(step, item_bytes, threads),), scratch.size, threads, tables | {"units": reduction.units})


def channel_gradients(view: View, data: Data, resources: Resources, *, groups: int, training: bool) -> Plan:
    """sums -> fold_sums -> fold_gradients, fold_parameters -> affine: of batch, instance and group norm."""
    scratch = Scratch()
    channels = view.channels
    samples = view.outer if view.kept_outer else 1
    threads = threads_for(5 * view.size * data.itemsize, resources)
    reduction = reduce("sums_" + view.form, view, data, scratch, columns=2)
    reduction = with_groups(reduction, groups)
    merge, where = merge_entries("fold_sums", reduction, scratch, columns=2)
    last_view, last_data = view, data
    if not training:  # grad_x is grad * scale: x is not read again, and an infinity in it stays out
        last_view, last_data = replace(view, strides=(view.strides[0], view.strides[2])), replace(data, second=False)
    coefficients = coefficients_of(last_view, last_data, scratch, outer=view.kept_outer)
    affine = affine_step(last_view, last_data, coefficients, resources.caches)
    common: dict[str, Value] = {**coefficients, **where, "groups": groups, "training": int(training)}
    common |= {"total": reduction.unit_size * (channels // groups)}
    gradients = Step("fold_gradients", {"items": samples * groups, **common})
    last = (Step("fold_parameters", {**common, "items": channels, "outer": samples}),)
    if groups != channels:  # units of the sums are channels, units of the gradient groups: all of the former first
        phases = (
            phase_of(reduction.step, reduction.item_bytes(data), threads),
            *fold_phases((*merge, gradients, *last), reduction.unit_entries),
            phase_of(affine, affine_bytes(data), threads),
        )
        return Plan(phases, scratch.size, threads)
    return scheduled(view, data, reduction, (*merge, gradients), affine, scratch, threads, resources.caches, last)


def normalize_gradient(view: View, data: Data, resources: Resources, *, eps: float) -> Plan:
    """moments of x, sums of g * x -> folds -> fold_norm_gradients -> affine: of the L2 norm."""
    scratch = Scratch()
    threads = threads_for(5 * view.size * data.itemsize, resources)
    squares = reduce("moments_" + view.form, view, data, scratch, centred=False)
    fields = dict(squares.step.fields) | {"source": 1, "has_second": 0}
    fields |= {f"x_{end}": fields.get(f"second_{end}", 0) for end in ("repeat", "outer", "middle")}
    squares = replace(squares, step=Step(squares.step.kernel, fields))
    sums = with_groups(reduce("sums_" + view.form, view, data, scratch, columns=2), 1)
    merge, where = merge_entries("fold_moments", squares, scratch)
    add, dots = merge_entries("fold_sums", sums, scratch, columns=2)
    coefficients = coefficients_of(view, data, scratch, outer=view.kept_outer)
    fold = Step("fold_norm_gradients", {"items": squares.units, "eps": eps, "partials": dots["statistics"], **where, **coefficients})
    affine = affine_step(view, data, coefficients, resources.caches)
    phases = (
        phase_of(squares.step, squares.item_bytes(data) // 2, threads),
        phase_of(sums.step, sums.item_bytes(data), threads),
        *fold_phases((*merge, *add, fold), squares.unit_entries),
        phase_of(affine, affine_bytes(data), threads),
    )
    return Plan(phases, scratch.size, threads)


def row_gradients(view: View, data: Data, resources: Resources) -> Plan:
    """sums_rows -> fold_row_gradients -> affine_rows, then fold_row_parameters: of layer and RMS norm."""
    scratch = Scratch()
    rows, n = view.outer * view.middle, view.last
    threads = threads_for(5 * view.size * data.itemsize, resources)
    length = max(1, min(ROWS_AT_ONCE, ROW_BYTES // (2 * n * data.itemsize)))  # rows of an item: in cache when they are read again
    items = -(-rows // length)
    fewest = FEWEST // 2
    most = max(fewest, ENTRY_BYTES // (16 * n))
    each = max(min(-(-PIECE_ROWS // length), -(-items // fewest)), -(-items // most))  # items that add to the same partial sums
    pieces = -(-items // each)
    coefficients = coefficients_table(rows, 1, 1, 1, data, scratch)
    tables: dict[str, Value] = {"moments": scratch.take(2 * rows), "entries": rows, "partials": scratch.take(2 * pieces * n)}
    sums = Step("sums_rows", data.fields(view) | tables | {"items": items, "pieces": each, "length": length, "total": rows})
    fold = Step("fold_row_gradients", {"items": rows, "last": n, **tables, **coefficients})
    affine = affine_step(view, data, {**coefficients, "training": 1}, resources.caches, kernel="affine_rows")
    parameters = Step("fold_row_parameters", {"items": n, "last": n, "pieces": pieces, **tables})
    item_bytes = length * n * 2 * data.itemsize
    steps = (sums, fold.scaled(length), by_unit(affine, items, length * n))
    first = depth_phase(steps, items, item_bytes, length * n, length * n * data.itemsize, threads, resources.caches)
    phases: tuple[Phase, ...]
    if first:
        phases = (first,)
    else:
        phases = (phase_of(sums, item_bytes, threads), *fold_phases([fold], 1), phase_of(affine, affine_bytes(data), threads))
    block = -(-phases[0].block // each) * each  # the items of a partial sum are one thread's, in their order
    phases = (replace(phases[0], block=block), *phases[1:])
    return Plan((*phases, *fold_phases([parameters], pieces)), scratch.size, threads, affine=n)
