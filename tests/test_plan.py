"""Plans, from views and numbers alone, and the structs that they are handed over in."""

import itertools

import numpy as np
import pytest
from test_layout import columns, runs

from cpunorm import plan, program
from cpunorm.jit import drivers, kernels
from cpunorm.machine import Caches
from cpunorm.plan import Resources

CACHES = Caches(1 << 20, 32 << 20)
VIEWS = {
    "NCHW small": runs(2, 3, 20, (60, 20), (60, 20)),
    "NCHW": runs(32, 64, 3136, (64 * 3136, 3136), (64 * 3136, 3136)),
    "NCHW of one sample": runs(1, 256, 3136, (0, 3136), (0, 3136)),
    "NCHW with gaps": runs(32, 64, 100, (100_000, 1000), (6400, 100)),
    "few channels": runs(8, 3, 50_000, (150_000, 50_000), (150_000, 50_000)),
    "huge channels": runs(64, 64, 1 << 18, (64 << 18, 1 << 18), (64 << 18, 1 << 18)),
    "one value": runs(1, 1, 1, (0, 0), (0, 0)),
    "NHWC small": columns(1, 40, 3, (0, 3), (0, 3)),
    "NHWC": columns(1, 100_352, 512, (0, 512), (0, 512)),
    "NHWC of few channels": columns(1, 1 << 20, 3, (0, 3), (0, 3)),
    "NHWC with gaps": columns(4, 1000, 24, (100_000, 30), (24_000, 24)),
    "NC": columns(1, 5000, 1030, (0, 1030), (0, 1030)),
}
OPERATIONS = {
    "training": lambda view, itemsize, resources, in_place=False: plan.batch_norm_training(
        view, itemsize, eps=1e-5, momentum=0.1, in_place=in_place, resources=resources
    ),
    "inference": lambda view, itemsize, resources, in_place=False: plan.batch_norm_inference(
        view, itemsize, eps=1e-5, in_place=in_place, resources=resources
    ),
    "moments": lambda view, itemsize, resources, in_place=False: plan.moments(view, itemsize, resources=resources),
}
by_view = pytest.mark.parametrize("view", VIEWS.values(), ids=VIEWS)
by_operation = pytest.mark.parametrize("make", OPERATIONS.values(), ids=OPERATIONS)
by_itemsize = pytest.mark.parametrize("itemsize", [4, 8])


def steps(made):
    return [step for phase in made.phases for step in phase.steps]


@by_view
@by_operation
@by_itemsize
def test_what_decides_bits_does_not_depend_on_threads(view, make, itemsize):
    def tables(threads, caches):
        made = make(view, itemsize, Resources(threads, caches))
        names = ("pieces", "length", "entries", "unit_entries", "units", "period", "channels", "moments", "statistics", "coefficients")
        return made.scratch, made.tables, [{name: step.fields.get(name) for name in names} for step in steps(made)]

    first = tables(1, CACHES)
    for threads, caches in itertools.product((1, 2, 3, 8, 64), (CACHES, Caches(1 << 10, 1 << 12), Caches(1 << 30, 1 << 40))):
        assert tables(threads, caches) == first


@by_view
@by_operation
@by_itemsize
def test_pieces_cover_the_view(view, make, itemsize):
    for step in steps(make(view, itemsize, Resources(2, CACHES))):
        fields = step.fields
        if step.kernel.startswith("moments_"):
            assert (fields["pieces"] - 1) * fields["length"] < fields["total"] <= fields["pieces"] * fields["length"]
            units = fields["items"] // fields["pieces"]
            assert units * fields["total"] == view.size
        if step.kernel.startswith("affine_"):
            assert fields["items"] * fields["grain"] >= fields["total"]
            assert fields["total"] * fields["repeat"] == view.size


@by_view
@by_operation
@pytest.mark.parametrize("threads", [1, 2, 64])
def test_blocks_cover_the_items(view, make, threads):
    for phase in make(view, 4, Resources(threads, CACHES)).phases:
        assert phase.block >= 1
        for step in phase.steps:
            assert phase.items * step.fields.get("scale", 1) >= step.fields["items"]


@by_view
@by_operation
def test_every_step_has_a_kernel_and_known_fields(view, make):
    for in_place, threads in itertools.product((False, True), (1, 2)):
        made = make(view, 4, Resources(threads, CACHES), in_place)
        for step in steps(made):
            assert callable(getattr(kernels, step.kernel))
            assert step.store is None or callable(getattr(kernels, step.store))
            assert set(step.fields) <= set(program.STEP.names)


@by_view
@by_operation
def test_every_step_has_a_c_kernel(view, make, native):
    for in_place in (False, True):
        made = make(view, 4, Resources(2, CACHES), in_place)
        for name in {step.kernel for step in steps(made)} | {step.store for step in steps(made)} - {None}:
            assert native.address(name, "float32") != native.address(name, "float64")


def depth_first(view, threads=2, caches=CACHES, itemsize=4):
    return len(OPERATIONS["training"](view, itemsize, Resources(threads, caches)).phases) == 1


@pytest.mark.parametrize(
    ("view", "threads", "caches", "depth"),
    [
        ("NCHW", 2, CACHES, True),
        ("NCHW of one sample", 2, CACHES, True),
        ("NCHW with gaps", 2, CACHES, True),
        ("NCHW", 16, CACHES, True),
        ("NCHW", 17, CACHES, False),  # 64 channels are not 4 for each of 17 threads
        ("NCHW", 2, Caches(1 << 18, 1 << 20), False),  # a channel of 400 KB is more than each thread's share of 1 MB
        ("huge channels", 2, CACHES, False),
        ("few channels", 2, CACHES, False),
        ("NHWC", 2, CACHES, False),
        ("NHWC small", 1, CACHES, False),
        ("NC", 2, CACHES, False),
    ],
)
def test_depth_first_where_a_channel_fits(view, threads, caches, depth):
    assert depth_first(VIEWS[view], threads, caches) is depth


def test_a_small_call_has_one_thread():
    for make in OPERATIONS.values():
        assert make(VIEWS["NCHW small"], 4, Resources(8, CACHES)).threads == 1
        assert make(VIEWS["NCHW"], 4, Resources(8, CACHES)).threads == 8


@by_view
@by_itemsize
@pytest.mark.parametrize("make", [OPERATIONS["training"], OPERATIONS["inference"]], ids=["training", "inference"])
def test_stores(view, itemsize, make):
    """Streaming only beyond the caches, never in place."""
    moved = 2 * view.size * itemsize
    for l3 in (moved - 1, moved, moved + 1):
        for in_place in (False, True):
            stores = [step.store for step in steps(make(view, itemsize, Resources(2, Caches(1 << 20, l3)), in_place))]
            assert stores[:-1] == [None] * (len(stores) - 1)
            assert stores[-1] == ("store_plain" if in_place else "store_stream" if moved > l3 else None)


@by_view
@by_operation
def test_tables_do_not_overlap(view, make):
    """moments, statistics and coefficients have their own places in scratch."""
    made = make(view, 8, Resources(2, CACHES))
    places = set()
    for step in steps(made):
        for name, count in (("moments", "entries"), ("statistics", "units"), ("coefficients", "coefficient_count")):
            if count in step.fields and name in step.fields:
                places.add((step.fields[name], step.fields[name] + 3 * step.fields[count]))
    ends = sorted(places)
    assert all(end <= start for (_, end), (start, _) in itertools.pairwise(ends))
    assert ends[-1][1] <= made.scratch


def test_link():
    names = {"moments_runs": 11, "fold_moments": 12, "fold_batch": 13, "affine_runs": 14, "store_stream": 15}
    made = OPERATIONS["training"](VIEWS["NCHW"], 4, Resources(2, CACHES))
    linked = made.link(names.__getitem__)
    assert linked.steps["kernel"].tolist() == [11, 12, 13, 14]
    assert linked.steps["store"].tolist() == [0, 0, 0, 15]
    assert linked.steps["momentum"][2] == 0.1
    assert linked.phases.tolist() == [(made.phases[0].items, made.phases[0].block, 0, 4)]
    assert linked.head.tolist() == [(linked.phases.ctypes.data, 1, linked.steps.ctypes.data)]
    assert linked.address == linked.head.ctypes.data


def test_slots():
    assert len(program.SLOTS) == drivers.SLOT_COUNT
    for number, name in enumerate(program.SLOTS):
        assert getattr(kernels, name.upper()) == number


@pytest.mark.parametrize("name", ["step", "phase", "program"])
def test_structs_are_those_of_c(name, native):
    fields, offsets, size = native.struct_fields(name)
    ours = getattr(program, name.upper())
    assert fields == list(ours.names)
    assert offsets == [ours.fields[field][1] for field in fields]
    assert size == ours.itemsize


@pytest.mark.parametrize("struct", [program.STEP, program.PHASE, program.PROGRAM], ids=["step", "phase", "program"])
def test_structs_have_no_gaps(struct):
    assert struct.itemsize == 8 * len(struct.names)
    assert all(struct[name] in (np.int64, np.float64) for name in struct.names)
