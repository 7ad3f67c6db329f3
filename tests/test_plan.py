"""Plans, from views and numbers alone."""

import itertools

import numpy as np
import pytest
from helpers import present
from test_layout import columns, runs

from cpunorm import check_pictures, pictures, plan, program, recipes
from cpunorm.jit import kernels
from cpunorm.layout import View, find_view
from cpunorm.machine import Caches
from cpunorm.plan import Data, Resources
from cpunorm.preprocessing import Preprocessor
from cpunorm.warmup import FLOAT32_ONLY

CACHES = Caches(1 << 20, 32 << 20)
ITEMSIZES = {"float32": 4, "float64": 8, "float16": 2, "bfloat16": 2}
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
KEPT = {  # statistics of each outer index
    "groups": runs(32, 64, 3136, (64 * 3136, 3136), (64 * 3136, 3136), kept=True),
    "groups, small": runs(2, 6, 20, (120, 20), (120, 20), kept=True),
    "groups with gaps": runs(8, 6, 100, (6000, 200), (600, 100), kept=True),
    "groups of columns": columns(32, 3136, 64, (64 * 3136, 64), (64 * 3136, 64), kept=True),
    "groups of columns with gaps": columns(4, 50, 24, (2000, 30), (1200, 24), kept=True),
    "groups of one pixel": columns(8, 1, 64, (64, 0), (64, 0), kept=True),
}
ROWS = {
    "rows": runs(4096, 1, 768, (768, 0), (768, 0), kept=True),
    "short rows": runs(100_000, 1, 16, (16, 0), (16, 0), kept=True),
    "long rows": runs(4, 1, 1 << 20, (1 << 20, 0), (1 << 20, 0), kept=True),
    "one row": runs(1, 1, 5000, (0, 0), (0, 0)),
    "rows of a slice": runs(6, 7, 96, (2000, 100), (672, 96), kept=True),
}


def _both(view):
    """The same with a second operand, which lies as x does."""
    return View(view.form, view.outer, view.middle, view.last, (view.strides[0], *view.strides), view.kept_outer)


def _groups(view):
    return next(groups for groups in (32, 3, 1) if view.channels % groups == 0)


# name -> (views, plan(view, data, resources))
CHANNELS = VIEWS | KEPT
FORWARD = {
    "training": (VIEWS, lambda *given: recipes.batch_norm(*given, training=True, eps=1e-5, momentum=0.1)),
    "inference": (VIEWS, lambda *given: recipes.batch_norm(*given, training=False, eps=1e-5, momentum=0.1)),
    "moments": (CHANNELS, lambda *given: recipes.moments(*given)),
    "group_norm": (KEPT, lambda view, *given: recipes.group_norm(view, *given, groups=_groups(view), eps=1e-5)),
    "instance_norm": (KEPT, lambda view, *given: recipes.group_norm(view, *given, groups=view.channels, eps=1e-5)),
    "layer_norm": (ROWS, lambda *given: recipes.layer_norm(*given, eps=1e-5, centred=True)),
    "rms_norm": (ROWS, lambda *given: recipes.layer_norm(*given, eps=1e-5, centred=False)),
    "normalize": (CHANNELS, lambda *given: recipes.normalize(*given, eps=1e-12)),
    "local_response_norm": (KEPT, lambda *given: recipes.local_response_norm(*given, size=5, alpha=1.0, beta=0.75, k=1.0)),
}
BACKWARD = {
    "batch_norm_backward": (VIEWS, lambda v, *given: recipes.channel_gradients(v, *given, groups=v.channels, training=True)),
    "batch_norm_backward, inference": (VIEWS, lambda v, *given: recipes.channel_gradients(v, *given, groups=v.channels, training=False)),
    "group_norm_backward": (KEPT, lambda v, *given: recipes.channel_gradients(v, *given, groups=_groups(v), training=True)),
    "instance_norm_backward": (KEPT, lambda v, *given: recipes.channel_gradients(v, *given, groups=v.channels, training=True)),
    "row_gradients": (ROWS, recipes.row_gradients),
    "normalize_backward": (CHANNELS, lambda *given: recipes.normalize_gradient(*given, eps=1e-12)),
    "local_response_norm_backward": (KEPT, lambda *given: recipes.local_response_norm(*given, size=5, alpha=1.0, beta=0.75, k=1.0)),
}


def _cases():
    """(make(data options, resources), view) of every operation, with a residual where it takes one."""
    for name, (views, make) in (FORWARD | BACKWARD).items():
        for label, view in views.items():
            second = name in BACKWARD
            yield f"{name}, {label}", make, _both(view) if second else view, second
            if name in ("training", "inference", "group_norm", "layer_norm"):
                yield f"{name} and residual, {label}", make, _both(view), True


CASES = list(_cases())
by_case = pytest.mark.parametrize(("make", "view", "second"), [case[1:] for case in CASES], ids=[case[0] for case in CASES])
STREAMED = ["training", "inference", "group_norm", "layer_norm", "normalize"]


def steps(made):
    return [step for phase in made.phases for step in phase.steps]


def affine_of(made):
    """The fields of the last step that writes y."""
    return next(step.fields for step in reversed(steps(made)) if step.kernel.startswith("affine_"))


@by_case
@pytest.mark.parametrize("dtype", ["float32", "float64", "float16"])
def test_what_decides_bits_does_not_depend_on_threads(make, view, second, dtype):
    def tables(threads, caches):
        made = make(view, Data(dtype, second), Resources(threads, caches))
        names = (
            "pieces",
            "length",
            "entries",
            "unit_entries",
            "units",
            "period",
            "width",
            "channels",
            "moments",
            "statistics",
            "coefficients",
        )
        found = {(step.kernel, *(step.fields.get(name) for name in names)) for step in steps(made)}
        return made.scratch, made.tables, found

    first = tables(1, CACHES)
    for threads, caches in itertools.product((2, 3, 64), (CACHES, Caches(1 << 10, 1 << 12), Caches(1 << 30, 1 << 40))):
        assert tables(threads, caches) == first


@by_case
def test_pieces_cover_the_view(make, view, second):
    for dtype in ITEMSIZES:
        for step in steps(make(view, Data(dtype, second), Resources(2, CACHES))):
            fields = step.fields
            if step.kernel.startswith(("moments_", "sums_")):
                pieces = fields["items"] if step.kernel == "sums_rows" else fields["pieces"]
                assert (pieces - 1) * fields["length"] < fields["total"] <= pieces * fields["length"]
                if step.kernel == "sums_rows":
                    assert fields["total"] * view.last == view.size
                else:
                    assert fields["items"] // fields["pieces"] * fields["total"] == view.size
            if step.kernel.startswith("affine_"):
                assert fields["items"] * fields["grain"] >= fields["total"]
                assert fields["total"] * fields["repeat"] == view.size


@by_case
@pytest.mark.parametrize("threads", [1, 2, 64])
def test_blocks_cover_the_items(make, view, second, threads):
    for phase in make(view, Data("float32", second), Resources(threads, CACHES)).phases:
        assert phase.block >= 1
        for step in phase.steps:
            assert phase.items * step.fields.get("scale", 1) >= step.fields["items"]


@by_case
def test_every_step_has_a_kernel_and_known_fields(make, view, second):
    for dtype, activation, in_place in itertools.product(ITEMSIZES, (None, "silu"), (False, True)):
        for step in steps(make(view, Data(dtype, second, activation, in_place), Resources(2, CACHES))):
            assert step.kernel in kernels.KERNELS
            assert {step.fields.get(name) for name in ("load", "activation", "store")} - {None} <= set(kernels.STAGES)
            assert set(step.fields) <= set(program.STEP.names)


def test_every_kernel_and_stage_has_c_code(native):
    """Of elements, one for each dtype of theirs; the others, one for each dtype they compute in."""
    for name in (*kernels.KERNELS, *kernels.STAGES):
        if name in ("fold_moments", "fold_sums"):
            assert native.address(name, "float64")
        elif name in kernels.OF_ELEMENTS:
            assert len({native.address(name, dtype) for dtype in ITEMSIZES}) == 4
        elif name.endswith(FLOAT32_ONLY):
            assert native.address(name, "float32")
        else:
            assert native.address(name, "float32") != native.address(name, "float64")
            assert native.address(name, "float32") == native.address(name, "float16") == native.address(name, "bfloat16")
    with pytest.raises(LookupError, match="nothing_of_the_kind"):
        native.address("nothing_of_the_kind", "float32")


def test_every_kernel_and_stage_is_in_some_plan():
    used = set()
    for _, make, view, second in CASES:
        for dtype, activation, l3 in itertools.product(ITEMSIZES, ("relu", "relu6", "silu", "hardswish"), (1, 1 << 50)):
            for step in steps(make(view, Data(dtype, second, activation), Resources(2, Caches(1 << 20, l3)))):
                used |= {step.kernel, *(step.fields.get(name) for name in ("load", "activation", "store"))}
    for view in FORWARD["training"][0].values():
        used |= {step.kernel for step in steps(recipes.counts(view, Data("uint8"), Resources(2, CACHES)))}
    for kind, dtype in itertools.product(("uint8", "uint16", "float16", "float32"), check_pictures.RESULTS):
        for layout, size in itertools.product(("NCHW", "NHWC"), (None, (2, 2))):
            quant = (1.0, 0) if dtype.endswith("int8") else None
            options = Preprocessor(0, 1, output_layout=layout, dtype=present(dtype), quant=quant, size=size, backend="numba")._options
            prepared = pictures.Prepared("preprocess", options, [np.zeros((4, 5, 3), kind)], True, None)
            for step in steps(prepared._run.plan):
                used |= {step.kernel, *(step.fields.get(name) for name in ("load", "store"))}
                assert set(step.fields) <= set(program.STEP.names)
    assert used - {None} == set(kernels.KERNELS) | set(kernels.STAGES)


def depth_first(name, view, threads=2, caches=CACHES, dtype="float32"):
    views, make = (FORWARD | BACKWARD)[name]
    view = _both(views[view]) if name in BACKWARD else views[view]
    return len(make(view, Data(dtype, name in BACKWARD), Resources(threads, caches)).phases[0].steps) > 1


@pytest.mark.parametrize(
    ("name", "view", "threads", "caches", "depth"),
    [
        ("training", "NCHW", 2, CACHES, True),
        ("training", "NCHW of one sample", 2, CACHES, True),
        ("training", "NCHW with gaps", 2, CACHES, True),
        ("training", "NCHW", 16, CACHES, True),
        ("training", "NCHW", 17, CACHES, False),  # 64 channels are not 4 for each of 17 threads
        ("training", "NCHW", 2, Caches(1 << 18, 1 << 20), False),  # a channel of 400 KB is more than each thread's share of 1 MB
        ("training", "huge channels", 2, CACHES, False),
        ("training", "few channels", 2, CACHES, False),
        ("training", "NHWC", 2, CACHES, False),
        ("training", "NHWC small", 1, CACHES, False),
        ("training", "NC", 2, CACHES, False),
        ("group_norm", "groups", 2, CACHES, True),
        ("instance_norm", "groups", 2, CACHES, True),
        ("group_norm", "groups of columns", 2, CACHES, True),
        ("group_norm", "groups of columns", 9, CACHES, False),  # 32 samples are not 4 for each of 9 threads
        ("layer_norm", "rows", 2, CACHES, True),
        ("layer_norm", "short rows", 64, CACHES, True),
        ("layer_norm", "long rows", 2, CACHES, False),
        ("row_gradients", "rows", 2, CACHES, True),
        ("row_gradients", "long rows", 2, CACHES, False),
        ("batch_norm_backward", "NCHW", 2, CACHES, True),
        ("batch_norm_backward", "NHWC", 2, CACHES, False),
        ("instance_norm_backward", "groups", 2, CACHES, True),
        ("group_norm_backward", "groups", 2, CACHES, False),  # sums are of channels, the gradient of groups
    ],
)
def test_depth_first_where_a_unit_fits(name, view, threads, caches, depth):
    assert depth_first(name, view, threads, caches) is depth


def test_a_small_call_has_one_thread():
    for name, (views, make) in FORWARD.items():
        small, large = sorted(views.values(), key=lambda view: view.size)[:: len(views) - 1]
        assert (make(small, Data("float32"), Resources(8, CACHES)).threads == 1) or small.size > 1000, name
        assert make(large, Data("float32"), Resources(8, CACHES)).threads == 8, name


@pytest.mark.parametrize("name", STREAMED)
@pytest.mark.parametrize("dtype", ITEMSIZES)
def test_what_streams(name, dtype):
    """Only the affine, only beyond the caches, never in place; through a tile where runs are too short to fill lines."""
    views, make = FORWARD[name]
    seen = set()
    for view in views.values():
        moved = 2 * view.size * ITEMSIZES[dtype]
        for fits, in_place in itertools.product((-1, 0, 1), (False, True)):
            l3 = -(-moved * 4 // 3) + 4 * fits
            made = make(view, Data(dtype, in_place=in_place), Resources(2, Caches(1 << 20, l3)))
            fields = affine_of(made)
            streams = fits < 0 and not in_place
            assert fields["streams"] == streams
            assert all("streams" not in step.fields for step in steps(made) if step.fields is not fields)
            assert fields["tiled"] == (streams and fields["last"] * ITEMSIZES[dtype] < plan.SHORT)
            if len(made.phases) > 1:  # in a depth-first phase it fetches the next part instead
                assert fields["ahead"] == plan.AHEAD * streams
            seen.add((fields["streams"], fields["tiled"]))
    assert seen == {(0, 0), (1, 0), (1, 1)}


def test_packed_columns_stream_as_one_run():
    """Rows of 3 channels are short, all of them are not, unless they lie apart or each sample has coefficients of its own."""
    for label, last, tiled in (
        ("NHWC of few channels", 3 << 20, 0),
        ("NHWC small", 120, 1),
        ("NHWC with gaps", 24, 1),
        ("groups of columns", 3136 * 64, 0),
        ("groups of one pixel", 64, 1),
    ):
        view = (VIEWS | KEPT)[label]
        make = FORWARD["training" if label in VIEWS else "group_norm"][1]
        fields = affine_of(make(view, Data("float32"), Resources(2, Caches(1, 1))))
        assert (fields["streams"], fields["last"], fields["tiled"]) == (1, last, tiled), label


@by_case
def test_only_windows_have_stages_for_16_bits(make, view, second):
    """All others are looked up by the dtype of the elements, whose size their steps name."""
    for dtype, itemsize in ITEMSIZES.items():
        for step in steps(make(view, Data(dtype, second), Resources(2, CACHES))):
            if step.kernel.startswith("window_"):
                wide = "store_stream" if (2 + second) * view.size * itemsize > CACHES.l3 else "store_plain"
                assert step.fields.get("load") == (f"load_{dtype}" if itemsize == 2 else None)
                assert step.fields["store"] == (f"store_{dtype}" if itemsize == 2 else wide)
            else:
                assert not {"load", "store"} & set(step.fields)
            if step.kernel in kernels.OF_ELEMENTS:
                assert step.fields["item_size"] == itemsize


@pytest.mark.parametrize("name", ["training", "inference", "group_norm", "layer_norm"])
@pytest.mark.parametrize("l3", [1, 1 << 60], ids=["beyond the caches", "in the caches"])
def test_a_clip_needs_no_tile_and_other_activations_do(name, l3):
    views, make = FORWARD[name]
    for view in views.values():

        def fields(activation, view=view):
            return affine_of(make(view, Data("float32", activation=activation), Resources(1, Caches(1 << 20, l3))))

        plain = fields(None)
        assert not {"activation", "floor", "ceiling"} & set(plain)
        assert fields("relu") == plain | {"floor": 0.0, "ceiling": np.inf}
        assert fields("relu6") == plain | {"floor": 0.0, "ceiling": 6.0}
        for activation in ("silu", "hardswish"):
            assert fields(activation) == plain | {"activation": activation, "tiled": 1}


@by_case
def test_a_group_of_vectors_may_begin_anywhere_in_a_period(make, view, second):
    """A row of coefficients goes on past its period by a group of the widest vectors, and a head before a cache line."""
    widest = 4 * 64 // 4  # 4 vectors of 64 bytes, of float32
    for dtype in ITEMSIZES:
        made = make(view, Data(dtype, second), Resources(2, CACHES))
        for step in steps(made):
            fields = step.fields
            if "coefficients" not in fields:
                continue
            assert fields["period"] % fields["channels"] == 0
            assert fields["coefficient_outer"] in (0, fields["width"])
            if step.kernel == "affine_columns":
                assert fields["width"] >= fields["period"] + widest
                # one subtraction brings an index back into the period, unless a row has no group
                assert fields["period"] >= widest or fields["last"] == fields["period"]
            else:
                assert fields["width"] >= fields["period"]


@by_case
@pytest.mark.parametrize("threads", [1, 2, 16])
def test_parts_of_a_block(make, view, second, threads):
    """A depth-first block goes through its steps in parts that are in L1 when they are read again, or that walk a stretch of memory; what
    the next part reads is fetched meanwhile.
    """
    made = make(view, Data("float32", second), Resources(threads, CACHES))
    for phase in made.phases:
        if len(phase.steps) == 1:
            assert phase.part == 0
            continue
        assert 1 <= phase.part <= phase.block
        assert phase.block % phase.part == 0 or phase.steps[0].kernel == "sums_rows"  # whose blocks are whole partial sums
        assert made.threads == 1 or (phase.part - 1) * 4 * made.threads < phase.items  # enough to share out
        size = view.size // phase.items
        fits = phase.part * size * 4 * (1 + second) <= plan.PART_BYTES
        assert phase.part == 1 or fits or (phase.part - 1) * view.last < plan.STRETCH
        affine = phase.steps[-1].fields
        assert affine["sparse"] == 0
        read = view.size * 4 * (1 + second)
        if 2 * read > CACHES.l3 // 2 and read // phase.items <= CACHES.l2:
            assert affine["ahead"] >= phase.part * view.last * 4
        else:
            assert affine["ahead"] == 0
        for step in phase.steps:
            if step.kernel in ("moments_runs", "sums_runs"):
                assert (step.fields["sparse"], step.fields["ahead"]) == (1, affine["ahead"] * affine["streams"])


@by_case
def test_pieces_of_columns_are_enough_but_no_more(make, view, second):
    """For many cores, and with no more entries, above the fewest, than `ENTRY_BYTES` for each number of an entry."""
    for dtype in ITEMSIZES:
        for step in steps(make(view, Data(dtype, second), Resources(2, CACHES))):
            fields = step.fields
            if step.kernel not in ("moments_columns", "sums_columns"):
                continue
            outer = view.outer if view.kept_outer else 1
            assert outer * (fields["pieces"] - 1) < max(plan.MOST, outer)
            assert fields["pieces"] <= -(-plan.FEWEST // outer) or 24 * fields["entries"] <= plan.ENTRY_BYTES + 24 * outer * fields["last"]
            long = fields["length"] * max(4, ITEMSIZES[dtype]) > plan.PIECE_BYTES + 8 * fields["last"]
            assert outer * fields["pieces"] * 2 >= plan.FEWEST or not long
            assert fields["length"] % fields["last"] == 0


@by_case
def test_widened_rows_are_merged_as_wide_as_they_are(make, view, second):
    """Then their repeats. Entries are [outer, pieces, repeats, channels]; each is merged once."""
    made = steps(make(view, Data("float32", second), Resources(2, CACHES)))
    for step in made:
        if step.kernel not in ("moments_columns", "sums_columns"):
            continue
        table, left, width = (step.fields[name] for name in ("moments", "entries", "last"))
        outer = view.outer if view.kept_outer else 1
        for channels in (width, view.last):
            if left == outer * channels:
                continue
            (fold,) = (fold.fields for fold in made if fold.kernel.startswith("fold_") and fold.fields.get("moments") == table)
            assert (fold["channels"], fold["items"], fold["entries"]) == (channels, outer * channels, left)
            assert fold["items"] * fold["unit_entries"] == left
            table, left = fold["statistics"], fold["units"]
        assert left == outer * view.last


def test_one_thread_reduces_more_short_units_at_once():
    """Several leave each other some."""
    view = runs(128, 4, 49, (196, 49), (196, 49), kept=True)
    make = FORWARD["instance_norm"][1]
    parts = [make(view, Data("float32"), Resources(threads, CACHES)).phases[0].part for threads in (1, 2)]
    assert parts == [plan.PART_BYTES // (49 * 4), 128 * 4 // (4 * 2)]


@by_case
def test_a_second_operand_has_strides(make, view, second):
    """What a step reads of it, it knows the place of; and steps that share a table of coefficients agree on its rows."""
    tables = {}
    for step in steps(make(view, Data("float32", second), Resources(2, CACHES))):
        if step.fields.get("has_second") and not step.kernel.startswith("fold_"):
            assert "second_middle" in step.fields, step.kernel
        if "coefficients" in step.fields:
            tables.setdefault(step.fields["coefficients"], set()).add(step.fields["has_second"])
    assert all(len(rows) == 1 for rows in tables.values())


@by_case
def test_tables_do_not_overlap(make, view, second):
    """moments, statistics, partials and coefficients have their own places in scratch."""
    for dtype in ("float32", "float64"):
        made = make(view, Data(dtype, second), Resources(2, CACHES))
        places = set()
        for step in steps(made):
            fields = step.fields
            columns = 2 if step.kernel.startswith("sums_") else 3
            if step.kernel.startswith(("moments_", "sums_")):
                places.add((fields["moments"], fields["moments"] + columns * fields["entries"]))
            if step.kernel == "sums_rows":
                partials = -(-fields["items"] // fields["pieces"])
                places.add((fields["partials"], fields["partials"] + 2 * partials * view.last))
            if step.kernel in ("fold_moments", "fold_sums"):
                columns = 3 if step.kernel == "fold_moments" else 2
                places.add((fields["statistics"], fields["statistics"] + columns * fields["units"]))
            if step.kernel.startswith("affine_"):
                values = (5 if fields["has_second"] else 3) * fields["coefficient_count"] * (2 if dtype == "float64" else 1)
                places.add((fields["coefficients"], fields["coefficients"] + -(-values // 2)))
        ends = sorted(places)
        assert all(end <= start for (_, end), (start, _) in itertools.pairwise(ends))
        assert not ends or ends[-1][1] <= made.scratch


def test_a_window_that_fits_no_ring_has_another_way():
    """Its gradient keeps the window's values, at most `RING` of them."""
    view = _both(runs(1, 20_000, 3, (0, 3), (0, 3)))
    made = recipes.local_response_norm(
        view, Data("float32", True), Resources(1, CACHES), size=plan.LARGEST_WINDOW, alpha=1.0, beta=1.0, k=1.0
    )
    fields = steps(made)[0].fields
    assert fields["grain"] * (fields["before"] + fields["after"] + 1) <= plan.RING
    assert fields["grain"] >= 1


@pytest.mark.parametrize(("rows", "n"), [(1, 5), (300, 4000), (6304, 768), (4096, 4096), (3, 1000003), (100000, 7)])
@pytest.mark.parametrize("threads", [1, 2, 64])
def test_the_rows_of_a_partial_sum_are_one_threads(rows, n, threads):
    view = find_view((rows, n), ((n, 1),) * 3, "kr")
    made = recipes.row_gradients(view, Data("float32", True), Resources(threads, CACHES))
    sums, parameters = (next(step for step in steps(made) if step.kernel == name) for name in ("sums_rows", "fold_row_parameters"))
    assert made.phases[0].block % sums.fields["pieces"] == 0
    assert parameters.fields["pieces"] == -(-sums.items // sums.fields["pieces"])
    assert 16 * parameters.fields["pieces"] * n <= max(plan.ENTRY_BYTES, 16 * plan.FEWEST // 2 * n)
