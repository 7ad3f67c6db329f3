"""16-bit data: every pattern widens exactly, every rounding is to nearest, ties to even."""

import ctypes

import numpy as np
import pytest
from helpers import assert_same_bits, present

import cpunorm as cn
from cpunorm import samples


@pytest.fixture(params=["float16", "bfloat16"])
def narrow(request):
    return samples.dtype_of(present(request.param))


def identity(x, backend, layout="NCL", **options):
    """Batch norm in inference by mean 0, variance 1 and eps 0."""
    channels = x.shape[layout.index("C")]
    return cn.batch_norm(
        x, np.zeros(channels, np.float32), np.ones(channels, np.float32), eps=0.0, layout=layout, backend=backend, **options
    )


def every(narrow):
    return np.arange(1 << 16, dtype=np.uint16).view(narrow)


@pytest.mark.parametrize("layout", ["NCL", "NLC"])
def test_every_pattern_comes_back(narrow, layout, backend):
    x = every(narrow).reshape(4, 64, 256)
    with np.errstate(all="ignore"):  # NumPy's conversion of signalling NaN
        y = identity(x, backend, layout)
    zero = x.astype(np.float32) == 0  # -0 + 0 is 0
    assert_same_bits(y[~zero], x[~zero])
    assert (y[zero].astype(np.float32) == 0).all()


def test_every_pattern_widens(narrow, backend):
    """The mean of one value a row is that value, in float32."""
    x = every(narrow)
    with np.errstate(all="ignore"):
        wanted = x.astype(np.float32)
    with np.errstate(all="ignore"):
        mean, _ = cn.mean_var(x.reshape(-1, 1), 1, backend=backend)
    assert_same_bits(mean.astype(np.float32)[np.isfinite(wanted)], wanted[np.isfinite(wanted)] + np.float32(0))
    assert (np.isfinite(mean) == np.isfinite(wanted)).all()


def edges(narrow):
    """float32 values around every 16-bit one: it, the middle to the next one, and the neighbours of that."""
    bits = np.arange(1 << 15, dtype=np.uint16)
    values = bits.view(narrow)
    values = values[np.isfinite(values.astype(np.float32))].astype(np.float32)
    following = np.append(values[1:], np.float32(np.inf))
    with np.errstate(all="ignore"):
        middle = ((values.astype(np.float64) + following) / 2).astype(np.float32)
        middle[-1] = values[-1] + np.float64(values[-1] - values[-2]) / 2  # from here on it overflows
        found = [values, middle, np.nextafter(middle, np.float32(-np.inf)), np.nextafter(middle, np.float32(np.inf))]
    found.append(np.array([1e-45, 1e-40, 3e-8, 2.9802322e-8, 5.96e-8, 65519.99, 65520, 65536, 3.4e38, np.inf, np.nan], np.float32))
    positive = np.concatenate(found)
    return np.concatenate([positive, -positive])


@pytest.mark.parametrize("layout", ["NCL", "NLC"])
def test_rounding_is_that_of_numpy(narrow, layout, compiled):
    """x = 0, so that y is the bias, a float32, rounded once."""
    wanted = edges(narrow)
    zeros = np.zeros((1, wanted.size, 3) if layout == "NCL" else (1, 3, wanted.size), narrow)
    kept = (np.zeros_like(wanted), np.ones_like(wanted))
    y = cn.batch_norm(zeros, *kept, None, wanted, eps=0.0, layout=layout, backend=compiled)
    with np.errstate(all="ignore"):
        rounded = wanted.astype(narrow)
    y = y[0, :, 1] if layout == "NCL" else y[0, 1]
    nonzero = wanted != 0
    assert_same_bits(y[nonzero], rounded[nonzero])


def test_narrow_parameters_are_read_exactly(narrow, backend):
    """Parameters of the data's dtype give what the same values in float32 give."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(4, 6, 5)).astype(narrow)
    parameters = {"weight": rng.normal(size=6).astype(narrow), "bias": rng.normal(size=6).astype(narrow)}
    wide = {name: value.astype(np.float32) for name, value in parameters.items()}
    for function, options in ((cn.group_norm, {"num_groups": 3}), (cn.instance_norm, {})):
        assert_same_bits(function(x, **options, **parameters, backend=backend), function(x, **options, **wide, backend=backend))
    running = {"running_mean": rng.normal(size=6).astype(narrow), "running_var": rng.uniform(1, 2, 6).astype(narrow)}
    mine = {name: value.astype(np.float32) for name, value in running.items()}
    narrow_running = {name: value.copy() for name, value in running.items()}
    assert_same_bits(
        cn.batch_norm(x, **narrow_running, **parameters, training=True, backend=backend),
        cn.batch_norm(x, **mine, **wide, training=True, backend=backend),
    )
    for name, value in narrow_running.items():
        assert_same_bits(value, mine[name].astype(narrow))


def stage(function):
    """A Numba stage as a function of (target, source, count)."""
    types = pytest.importorskip("numba").types
    from cpunorm.jit.backend import _Kernel

    pointer = types.CPointer(types.float32)
    kernel = _Kernel(function, types.void(pointer, pointer, types.intp))
    kernel.compile()
    run = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_ssize_t)(kernel.address)

    def call(source, dtype):
        target = np.empty(source.size, dtype)
        run(target.ctypes.data, source.ctypes.data, source.size)
        run.kernel = kernel
        return target

    return call


def test_float16_by_its_bits():
    """What a CPU without the instruction runs, which others choose not to."""
    from cpunorm.jit import stages

    halves = np.arange(1 << 16, dtype=np.uint16).view(np.float16)
    wide = stage(stages.load_float16_bits)(halves, np.float32)
    assert_same_bits(wide, halves.astype(np.float32))
    with np.errstate(all="ignore"):
        around = [np.nextafter(wide, np.float32(sign * np.inf)) for sign in (1, -1)]
        values = np.concatenate([wide, *around, wide * np.float32(1 + 2.0**-11)])  # the last are ties
        assert_same_bits(stage(stages.store_float16_bits)(values, np.float16), values.astype(np.float16))
