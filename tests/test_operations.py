"""The operation table: every row on every backend, layout and dtype, against its float64 reference."""

import numpy as np
import pytest
from helpers import (
    ARRANGEMENTS,
    BACKENDS,
    COMPILED,
    LAYOUTS,
    WRITABLE,
    assert_all,
    assert_close,
    assert_same_bits,
    copied,
    exact_shape_for,
    present,
    shape_for,
)

import cpunorm as cn
from cpunorm import backends, call, functional, ops, samples
from cpunorm.ops import OPERATIONS

SETTINGS = {"__version__", "config", "set_backend", "set_num_threads", "show_config"}
WIDE, NARROW = ("float32", "float64"), ("float16", "bfloat16")


def table(layouts=LAYOUTS, dtypes=(*WIDE, *NARROW), keep=lambda row: True):
    """(row, layout, dtype) of all rows: those that take no layout once a rank, ranks that a row does not take left out."""
    chosen, ids = [], []
    for name, row in OPERATIONS.items():
        once = [layout for layout in ("NC", "NCL", "NCHW") if layout in layouts]
        for layout in layouts if row.layouts else once:
            if len(shape_for(layout)) < row.least_rank or not keep(row):
                continue
            for dtype in dtypes:
                if dtype in row.dtypes:
                    chosen.append((row, layout, dtype))
                    ids.append(f"{name}, {layout}, {dtype}")
    return pytest.mark.parametrize(("row", "layout", "dtype"), chosen, ids=ids)


@pytest.fixture
def rng():
    return np.random.default_rng(7)


def available():
    for name in BACKENDS:
        try:
            backends.load(name)
        except ImportError:
            continue
        yield name


def kinds(row, inputs):
    """The dtypes of a row's results: the data's first, then those of parameters and statistics."""
    if row.function is cn.mean_var:
        return [np.dtype(np.float64)] * 2
    parameters = samples.statistics_dtype(inputs["x"].dtype.name)
    return [inputs["x"].dtype, parameters, parameters]


def assert_right(row, inputs, results):
    reference = row.reference(inputs)
    assert_all(assert_close, results, reference, **row.tolerance(inputs))
    assert [value.dtype for value in results] == kinds(row, inputs)[: len(results)]


@table()
def test_equals_reference(row, layout, dtype, backend, rng):
    inputs = row.inputs(shape_for(layout), layout, present(dtype), rng)
    assert_right(row, inputs, row.call(copied(inputs), backend=backend))


@table(layouts=("NC", "NCL", "NLC", "NCHW", "NHWC", "CHWN", "NCDHW", "NDHWC"), dtypes=WIDE)
def test_large_equals_reference(row, layout, dtype, compiled, rng):
    inputs = row.inputs(shape_for(layout, large=True), layout, dtype, rng)
    assert_right(row, inputs, row.call(copied(inputs), backend=compiled))


@table(layouts=("NC", "NCHW", "NHWC", "CHWN"), dtypes=NARROW)
def test_large_of_16_bits_equals_reference(row, layout, dtype, compiled, rng):
    inputs = row.inputs(shape_for(layout, large=True), layout, present(dtype), rng)
    assert_right(row, inputs, row.call(copied(inputs), backend=compiled))


def assert_exact(row, layout, dtype, large, rng):
    pools = row.function in (cn.batch_norm, cn.mean_var, cn.instance_norm)  # nothing over the channels
    inputs = row.exact_inputs(exact_shape_for(layout, large, channels=not pools), layout, dtype, rng)
    reference = row.reference(inputs)
    for backend in available():
        for threads in (1, 3) if backend in COMPILED else (1,):
            results = row.call(copied(inputs), backend=backend, threads=threads)
            wanted = [value.astype(to) for value, to in zip(reference, kinds(row, inputs), strict=False)]
            assert_all(assert_same_bits, results, wanted)


@table(keep=lambda row: row.exact_inputs)
def test_exact_inputs_give_the_same_bits(row, layout, dtype, rng):
    """On all backends and numbers of threads, and those are the reference's."""
    assert_exact(row, layout, present(dtype), False, rng)


@table(layouts=("NC", "NCL", "NCHW", "NHWC"), dtypes=("float32", "float64", "float16"), keep=lambda row: row.exact_inputs)
def test_large_exact_inputs_give_the_same_bits(row, layout, dtype, rng):
    assert_exact(row, layout, present(dtype), True, rng)


@table(layouts=("NCHW", "NHWC", "NC"))
def test_every_instruction_set(row, layout, dtype, native, rng):
    inputs = row.inputs(shape_for(layout, large=dtype == "float32"), layout, present(dtype), rng)
    for name in native.instruction_sets():
        call._PREPARED.clear()  # programs keep the kernels they were linked with
        with native.forced(name):
            results = row.call(copied(inputs), backend="c")
        assert_right(row, inputs, results)
    call._PREPARED.clear()


@table(layouts=("NCHW", "NHWC"), dtypes=("float32", "float16"), keep=lambda row: row.takes_out)
def test_any_strides(row, layout, dtype, backend, rng):
    """Of what is read; of out; in place."""
    inputs = row.inputs((2, 6, 4, 6), layout, dtype, rng)
    shape = inputs["x"].shape
    for name, arrange in ARRANGEMENTS.items():
        if name.startswith("byte"):
            continue  # test_arrays
        mine = copied(inputs)
        mine[row.data] = arrange(mine[row.data])
        wanted = row.call(copied(inputs) | {row.data: np.ascontiguousarray(mine[row.data])}, backend=backend)
        results = row.call(mine, backend=backend)
        limits = ops.gradient_tolerance(dtype, 64)
        try:
            assert_all(assert_close, results, wanted, **limits)
            if name in WRITABLE:
                out = arrange(np.full(shape, 7, dtype))
                results = row.call(copied(inputs), out=out, backend=backend)
                assert results[0] is out
                assert_all(assert_close, results, row.call(copied(inputs), backend=backend), **limits)
                mine = copied(inputs)
                mine[row.data] = arrange(mine[row.data])
                wanted = row.call(copied(mine) | {row.data: mine[row.data]}, backend=backend)
                results = row.call(mine, out=mine[row.data], backend=backend)
                if row.data == "x" or name == "contiguous":
                    assert_all(assert_same_bits, results, wanted)
                else:  # a gradient lies as x does, unless it is written over one that lies otherwise
                    assert_all(assert_close, results, wanted, **limits)
        except AssertionError as problem:
            problem.add_note(f"{row.data}: {name}")
            raise


def test_every_public_function_has_a_row():
    public = set(functional.__all__)
    assert {row.function.__name__ for row in OPERATIONS.values()} == public
    assert public | SETTINGS <= set(cn.__all__)
    assert all(callable(getattr(cn, name)) or name == "__version__" or name.endswith(("_MEAN", "_STD")) for name in cn.__all__)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts_come_back(layout):
    x = np.arange(np.prod(shape_for(layout))).reshape(shape_for(layout))
    assert_same_bits(samples.channels_first(samples.arrange(x, layout), layout).astype(float), x.astype(float))


@table(layouts=("NCHW", "NHWC", "NC"), dtypes=("float64",))
@pytest.mark.peer
def test_peers_of_the_table_agree(row, layout, dtype, rng):
    pytest.importorskip("torch")
    inputs = row.inputs(shape_for(layout), layout, dtype, rng)
    theirs = row.torch(copied(inputs))()
    theirs = [value.numpy() for value in theirs] if isinstance(theirs, (tuple, list)) else [theirs.numpy()]
    if row.layouts and row.function is not cn.mean_var:
        theirs[0] = theirs[0].transpose(samples.layout_axes(layout, theirs[0].ndim))
    reference = row.reference(inputs)
    assert len(theirs) >= len(reference) - len(row.updates) - ("grad" in inputs and len(reference) == 3)  # no bias, no gradient of it
    assert_all(assert_close, theirs[: len(reference)], reference[: len(theirs)], rtol=1e-10, atol=1e-10)


@table(layouts=("NCHW",), dtypes=WIDE)
def test_the_comparison_fails_where_one_value_is_wrong(row, layout, dtype, rng):
    """Negative control of all of the above."""
    inputs = row.inputs((2, 3, 5, 4), layout, dtype, rng)
    reference = row.reference(inputs)
    limits = row.tolerance(inputs)
    good = row.call(copied(inputs), backend="numpy")
    for at in range(len(good)):
        bad = [value.copy() for value in good]
        bad[at].flat[-1] *= 1 + 4 * limits["rtol"]
        bad[at].flat[-1] += 4 * limits["atol"] * np.sign(bad[at].flat[-1])
        with pytest.raises(AssertionError):
            assert_all(assert_close, bad, reference, **limits)
        bits = [value.copy() for value in good]
        bits[at].flat[0] = np.nextafter(bits[at].flat[0], np.array(np.inf, bits[at].dtype))
        with pytest.raises(AssertionError):
            assert_all(assert_same_bits, bits, good)
