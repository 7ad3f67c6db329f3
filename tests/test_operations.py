"""The operation table: every row on every backend, layout and dtype, against its float64 reference."""

import numpy as np
import pytest
from helpers import BACKENDS, COMPILED, LAYOUTS, assert_all, assert_close, assert_same_bits, copied, exact_shape_for, shape_for

import cpunorm as cn
from cpunorm import backends, functional, ops
from cpunorm.ops import OPERATIONS

SETTINGS = {"__version__", "config", "set_backend", "set_num_threads", "show_config"}


@pytest.fixture(params=OPERATIONS.values(), ids=OPERATIONS)
def row(request):
    return request.param


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


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("large", [False, True], ids=["small", "large"])
def test_equals_reference(row, layout, dtype, large, backend, rng):
    inputs = row.inputs(shape_for(layout, large), layout, dtype, rng)
    assert_all(assert_close, row.call(copied(inputs), backend=backend), row.reference(inputs), **ops.tolerance(dtype))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("large", [False, True], ids=["small", "large"])
def test_exact_inputs_give_the_same_bits(row, layout, dtype, large, rng):
    """On all backends and numbers of threads, and those are the reference's."""
    inputs = row.exact_inputs(exact_shape_for(layout, large), layout, dtype, rng)
    reference = row.reference(inputs)
    for backend in available():
        for threads in (1, 3) if backend in COMPILED else (1,):
            results = row.call(copied(inputs), backend=backend, threads=threads)
            kind = [np.float64] * len(results) if row.function is cn.mean_var else [inputs["x"].dtype] * len(results)
            assert_all(assert_same_bits, results, [value.astype(to) for value, to in zip(reference, kind, strict=True)])


@pytest.mark.parametrize("layout", ["NCHW", "NHWC", "NC"])
def test_every_instruction_set(row, layout, dtype, native, rng):
    inputs = row.inputs(shape_for(layout, large=True), layout, dtype, rng)
    for name in native.instruction_sets():
        functional._PREPARED.clear()  # programs keep the kernels they were linked with
        with native.forced(name):
            results = row.call(copied(inputs), backend="c")
        assert_all(assert_close, results, row.reference(inputs), **ops.tolerance(dtype))
    functional._PREPARED.clear()


def test_every_public_function_has_a_row():
    rows = {row.function.__name__ for row in OPERATIONS.values()}
    assert set(cn.__all__) - SETTINGS == rows
    assert all(callable(getattr(cn, name)) or name == "__version__" for name in cn.__all__)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts_come_back(layout):
    x = np.arange(np.prod(shape_for(layout))).reshape(shape_for(layout))
    assert_same_bits(ops.channels_first(ops.arrange(x, layout), layout).astype(float), x.astype(float))


@pytest.mark.parametrize("layout", ["NCHW", "NHWC", "NC"])
@pytest.mark.peer
def test_peers_of_the_table_agree(row, layout, rng):
    pytest.importorskip("torch")
    inputs = row.inputs(shape_for(layout), layout, "float64", rng)
    theirs = row.torch(copied(inputs))()
    theirs = [value.numpy() for value in theirs] if isinstance(theirs, (tuple, list)) else [theirs.numpy()]
    if row.function is cn.batch_norm:
        theirs = [theirs[0].transpose(ops.layout_axes(layout, theirs[0].ndim))]
    assert_all(assert_close, theirs, row.reference(inputs)[: len(theirs)], rtol=1e-12, atol=1e-12)


def test_the_comparison_fails_where_one_value_is_wrong(row, dtype, rng):
    """Negative control of all of the above."""
    inputs = row.inputs((2, 3, 5, 4), "NCHW", dtype, rng)
    reference = row.reference(inputs)
    good = row.call(copied(inputs), backend="numpy")
    for at in range(len(good)):
        bad = [value.copy() for value in good]
        bad[at].flat[-1] *= 1 + 4 * ops.tolerance(dtype)["rtol"]
        bad[at].flat[-1] += 4 * ops.tolerance(dtype)["atol"] * np.sign(bad[at].flat[-1])
        with pytest.raises(AssertionError):
            assert_all(assert_close, bad, reference, **ops.tolerance(dtype))
        bits = [value.copy() for value in good]
        bits[at].flat[0] = np.nextafter(bits[at].flat[0], np.array(np.inf, bits[at].dtype))
        with pytest.raises(AssertionError):
            assert_all(assert_same_bits, bits, good)
