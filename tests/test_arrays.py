"""What goes in and comes out: strides of x and out, memory order, kinds of arrays, returned statistics."""

import numpy as np
import pytest
from helpers import ARRANGEMENTS, WRITABLE, arguments, assert_all, assert_close, assert_same_bits, expected, normal, run

import cpunorm as cn
from cpunorm import call, dispatch, ops, plan, samples
from cpunorm.machine import Caches

SHAPE = (3, 4, 6, 5)


@pytest.fixture
def x(dtype):
    return normal(SHAPE, dtype)


@pytest.fixture
def parameters(dtype):
    return arguments(SHAPE[1], dtype)


@pytest.mark.parametrize("arrangement", ARRANGEMENTS)
def test_out_of_any_strides(arrangement, x, parameters, dtype, training, backend):
    x = ARRANGEMENTS[arrangement](x)
    wanted = expected(x, parameters, training=training)
    for make in WRITABLE.values():
        out = make(np.full(SHAPE, 7, dtype))
        around = out.base if isinstance(out.base, np.ndarray) else out
        before = around.copy()
        options = {"training": training, "out": out, "backend": backend}
        if not x.dtype.isnative:
            with pytest.raises(TypeError, match="out of dtype"):
                cn.batch_norm(x, **parameters, **options)
            continue
        y, *rest = run(x, parameters, **options)
        assert y is out
        assert_all(assert_close, (y, *rest), wanted, **ops.tolerance(dtype))
        if around.dtype == out.dtype:  # the gaps of out stay as they were
            assert (around != before).sum() <= out.size


@pytest.mark.parametrize("arrangement", WRITABLE)
@pytest.mark.parametrize("layout", ["channels_first", "channels_last"])
def test_in_place_of_any_strides(arrangement, layout, x, dtype, training, backend):
    x = WRITABLE[arrangement](x)
    parameters = arguments(SHAPE[1 if layout == "channels_first" else 3], dtype)
    options = {"training": training, "layout": layout, "backend": backend}
    wanted = run(x, parameters, **options)
    assert_all(assert_same_bits, run(x, parameters, out=x, **options), wanted)
    assert_same_bits(x, wanted[0])


@pytest.mark.parametrize("order", [(0, 1, 2, 3), (0, 2, 3, 1), (1, 2, 3, 0), (3, 2, 1, 0)], ids=str)
def test_memory_order_of_the_result(order, x, parameters, training, backend):
    x = x.transpose(order).copy().transpose(np.argsort(order))
    y, *_ = run(x, parameters, training=training, backend=backend)
    assert y.strides == x.strides
    assert y.flags.writeable
    assert y.flags.owndata or y.base.flags.owndata


@pytest.mark.parametrize("arrangement", ARRANGEMENTS)
def test_x_and_parameters_are_not_written(arrangement, x, parameters, training, backend):
    x = ARRANGEMENTS[arrangement](x)
    before = x.copy(), {name: value.copy() for name, value in parameters.items()}
    mine = {name: value.copy() for name, value in parameters.items()}
    cn.batch_norm(x, **mine, training=training, backend=backend)
    assert_same_bits(x.astype(x.dtype.newbyteorder("=")), before[0].astype(x.dtype.newbyteorder("=")))
    for name in ("weight", "bias") if training else mine:
        assert_same_bits(mine[name], before[1][name])


@pytest.mark.parametrize("arrangement", ["negative inner", "inner step", "unaligned", "broadcast inner"])
def test_parameters_with_gaps(arrangement, x, dtype, training, backend):
    """Running statistics with strides are updated where they are."""
    names = ("weight", "bias") if arrangement.startswith("broadcast") else ("running_mean", "running_var", "weight", "bias")
    plain = arguments(SHAPE[1], dtype)
    plain |= {name: np.ascontiguousarray(ARRANGEMENTS[arrangement](plain[name])) for name in names}
    mine = {**plain, **{name: ARRANGEMENTS[arrangement](plain[name]) for name in names}}
    mine = {name: value if name in names else value.copy() for name, value in mine.items()}
    wanted = run(x, plain, training=training, backend=backend)
    y = cn.batch_norm(x, **mine, training=training, backend=backend)
    assert_all(assert_same_bits, (y, mine["running_mean"], mine["running_var"]), (wanted[0], *wanted[3:]))


def strided(shape, strides, offset=0, dtype="f4"):
    """An array of these bytes, in memory that begins on a line."""
    memory = np.zeros(1000, np.uint8)
    return np.ndarray(shape, dtype, memory, -memory.ctypes.data % 64 + offset, strides)


@pytest.mark.parametrize(
    ("array", "strides"),
    [
        (strided((4, 6), (24, 4)), (6, 1)),
        (strided((4, 6), (-24, 4), 96), (-6, 1)),
        (strided((4, 6), (24, 4), 2), None),
        (strided((4, 6), (26, 4)), None),
        (strided((4, 6), (24, 5)), None),
        (strided((4, 6), (24, 4), dtype=np.dtype("f4").newbyteorder()), None),
        (strided((1, 6), (5, 4)), (1, 1)),
    ],
    ids=["packed", "backwards", "an odd address", "odd rows", "odd elements", "byte-swapped", "one odd row"],
)
def test_what_kernels_read_in_place(array, strides):
    assert dispatch.element_strides(array) == strides


def test_an_odd_stride_of_one_row_is_not_used(backend):
    x = strided((1, 3, 4), (5, 16, 4))
    x[...] = np.arange(12).reshape(x.shape)
    out = strided((1, 3, 4), (7, 16, 4))
    cn.layer_norm(x, 4, out=out, backend=backend)
    assert_same_bits(out, cn.layer_norm(x.copy(), 4, backend=backend))


def test_elements_are_aligned_to_their_size(any_dtype):
    """So that an aligned array's strides are whole elements."""
    assert samples.dtype_of(any_dtype).alignment == samples.dtype_of(any_dtype).itemsize


@pytest.mark.parametrize("operand", ["x", "out", "residual"])
def test_unaligned_where_an_aligned_one_was_before(operand, compiled, monkeypatch):
    """Of the same shape and strides, so that only its address tells it from the call that was prepared; streaming stores would trap."""
    monkeypatch.setattr(dispatch, "resources", lambda threads: plan.Resources(1, Caches(1 << 20, 1)))
    call._PREPARED.clear()
    rng = np.random.default_rng(5)
    given = {name: rng.normal(size=(2, 3, 64, 64)).astype(np.float32) for name in ("x", "out", "residual")}
    parameters = {"running_mean": np.zeros(3, np.float32), "running_var": np.ones(3, np.float32), "backend": compiled}
    wanted = cn.batch_norm(**given, **parameters).copy()
    given[operand] = ARRANGEMENTS["unaligned"](given[operand])
    assert_same_bits(cn.batch_norm(**given, **parameters), wanted)
    call._PREPARED.clear()


def test_unaligned_statistics(compiled, monkeypatch):
    """Kernels see aligned copies: what they would do with others is the compiler's choice."""
    run, seen = dispatch.Runner.__call__, []

    def spy(self, *arrays):
        seen.extend(array for array in arrays if array is not None)
        return run(self, *arrays)

    monkeypatch.setattr(dispatch.Runner, "__call__", spy)
    x = normal((5, 40), np.float32)
    _, *statistics = cn.layer_norm(x, 40, return_stats=True, backend=compiled)
    wanted = cn.layer_norm_backward(x, x, 40, *statistics, backend=compiled)
    moved = [ARRANGEMENTS["unaligned"](value) for value in statistics]
    seen.clear()
    assert_all(assert_same_bits, cn.layer_norm_backward(x, x, 40, *moved, backend=compiled), wanted)
    assert len(seen) > 4
    assert all(array.flags.aligned for array in seen)


def test_return_stats(x, parameters, dtype, training, backend):
    y, mean, rstd = cn.batch_norm(x, **parameters, training=training, return_stats=True, backend=backend)
    assert mean.dtype == rstd.dtype == y.dtype == np.dtype(dtype)
    assert mean.shape == rstd.shape == (SHAPE[1],)
    parameters = arguments(SHAPE[1], dtype)
    assert_all(assert_close, (y, mean, rstd), expected(x, parameters, training=training)[:3], **ops.tolerance(dtype))
    assert_same_bits(cn.batch_norm(x, **parameters, training=training, backend=backend), y)


@pytest.mark.parametrize("shape", [(0, 3, 4), (2, 3, 0), (2, 0, 4), (0, 0)], ids=str)
def test_empty(shape, dtype, training, backend):
    """Mean 0, rstd NaN, running statistics as they were."""
    parameters = arguments(shape[1], dtype)
    y, mean, rstd, *running = run(np.zeros(shape, dtype), parameters, training=training, backend=backend)
    assert (y.shape, y.dtype) == (shape, dtype)
    assert_all(assert_same_bits, running, [parameters["running_mean"], parameters["running_var"]])
    if training:
        assert_same_bits(mean, np.zeros(shape[1], dtype))
        assert_same_bits(rstd, np.full(shape[1], np.nan, dtype))


@pytest.mark.parametrize("axis", [None, 0, -1, (0, 2), (1, 3), (0, 2, 3), (1, 2, 3), (0, 1, 2, 3), ()], ids=str)
@pytest.mark.parametrize("arrangement", ARRANGEMENTS)
def test_mean_var_of_any_strides_and_axes(arrangement, axis, x, dtype, backend):
    x = ARRANGEMENTS[arrangement](x)
    wide = x.astype(np.float64)
    for options in ({}, {"ddof": 1}, {"keepdims": True}):
        if axis == () and "ddof" in options:
            continue  # one value: nothing remains
        wanted = wide.mean(axis, keepdims="keepdims" in options), wide.var(axis, **options)
        assert_all(assert_close, cn.mean_var(x, axis, **options, backend=backend), wanted, rtol=1e-6, atol=1e-12)


@pytest.mark.parametrize("dtype", ["bool", "int8", "uint8", "int64", "float16", ">f4", "longdouble"])
def test_mean_var_of_other_dtypes(dtype, backend):
    x = (np.arange(60).reshape(3, 4, 5) % 7).astype(dtype)
    wide = x.astype(np.float64)
    mean, var = cn.mean_var(x, (0, 2), backend=backend)
    assert mean.dtype == var.dtype == np.float64
    assert_all(assert_close, (mean, var), (wide.mean((0, 2)), wide.var((0, 2))), rtol=1e-6)


def test_mean_var_where_nothing_remains(backend):
    for x, ddof in ((np.zeros((0, 3)), 0), (np.ones((1, 3)), 1)):
        mean, var = cn.mean_var(x, 0, ddof=ddof, backend=backend)
        assert np.isnan(var).all()
        assert np.isnan(mean).all() == (x.size == 0)


class _Subclass(np.ndarray):
    pass


def test_subclasses_are_seen_as_arrays(x, parameters, backend):
    wanted = cn.batch_norm(x, **parameters, backend=backend)
    mine = {name: value.view(_Subclass) for name, value in parameters.items()}
    y = cn.batch_norm(x.view(_Subclass), **mine, backend=backend)
    assert type(y) is np.ndarray
    assert_same_bits(y, wanted)
    shared = x.view(_Subclass)
    cn.batch_norm(shared, **mine, out=shared, backend=backend)
    assert_same_bits(x, wanted)


@pytest.mark.peer
def test_tensors_are_seen_as_arrays(x, parameters, training, backend):
    torch = pytest.importorskip("torch")
    wanted = run(x, parameters, training=training, backend=backend)
    tensors = {name: torch.from_numpy(value.copy()) for name, value in parameters.items()}
    out = torch.zeros(SHAPE, dtype=torch.from_numpy(x).dtype)
    y = cn.batch_norm(torch.from_numpy(x), **tensors, training=training, out=out, backend=backend)
    results = (y, out.numpy(), tensors["running_mean"].numpy(), tensors["running_var"].numpy())
    assert_all(assert_same_bits, results, (wanted[0], wanted[0], *wanted[3:]))


@pytest.mark.peer
@pytest.mark.parametrize("name", ["x", "weight", "out"])
def test_a_tensor_that_requires_grad_is_refused(name, backend):
    torch = pytest.importorskip("torch")
    given = {"x": normal(SHAPE, "float32"), **arguments(SHAPE[1], "float32")}
    given[name] = torch.from_numpy(given.get(name, np.zeros(SHAPE, "float32"))).requires_grad_()
    with pytest.raises(TypeError, match=rf"{name}\.detach\(\)"):
        cn.batch_norm(**given, backend=backend)


@pytest.mark.peer
def test_a_tensor_that_numpy_has_no_dtype_for_is_refused(backend):
    torch = pytest.importorskip("torch")
    with pytest.raises(TypeError, match=r"x \(Tensor\) cannot be seen as a NumPy array"):
        cn.batch_norm(torch.zeros(2, 3, dtype=torch.bfloat16), np.zeros(3), np.ones(3), backend=backend)
