"""The ends of what kernels do in vectors: runs of every length around a vector and a group, every place in a cache line."""

import itertools

import numpy as np
import pytest
from helpers import assert_all, assert_close, assert_same_bits, present

import cpunorm as cn
from cpunorm import call, dispatch, plan, reference, samples
from cpunorm.machine import Caches

LENGTHS = range(1, 71)  # a group is 16 values of float64 by AVX2, 32 of float32, 64 by AVX-512
LINE = 64
GUARD = 9
FORMS = ("runs", "columns", "rows")
WAYS = {  # l3, SHORT, in place
    "plain": (1 << 40, plan.SHORT, False),
    "in place": (1 << 40, plan.SHORT, True),
    "streamed": (1, 0, False),
    "through a tile": (1, plan.SHORT, False),
}


@pytest.fixture(params=WAYS)
def in_place(request, monkeypatch):
    """Plans that go this way, as if the last-level cache had that size."""
    l3, short, in_place = WAYS[request.param]
    monkeypatch.setattr(dispatch, "resources", lambda threads: plan.Resources(threads or 2, Caches(1 << 20, l3)))
    monkeypatch.setattr(plan, "SHORT", short)
    call._PREPARED.clear()
    yield in_place
    call._PREPARED.clear()


@pytest.fixture
def kind(any_dtype):
    return samples.dtype_of(any_dtype)


def at(x, place):
    """A copy of x whose first value is `place` values after a cache line, and the memory that it lies in, full of `GUARD`."""
    line = LINE // x.itemsize
    memory = np.full(x.size + 3 * line, GUARD, x.dtype)
    start = -memory.ctypes.data % LINE // x.itemsize + place + line * (place == 0)
    mine = memory[start : start + x.size].reshape(x.shape)
    mine[...] = x
    return mine, memory


def problem(form, n, kind, rng):
    """(function, x, options, y, residual, y with it), exact in every dtype: small integers, statistics that are 0 and 1."""
    kept = samples.statistics_dtype(kind.name)
    if form == "rows":  # of 1 and -1, whose mean square is 1; the residual turns some of their signs
        x = rng.choice([-1, 1], (5, n))
        residual = -2 * x * rng.integers(2, size=x.shape)
        weight = rng.integers(-8, 9, n)
        options = {"normalized_shape": (n,), "weight": weight.astype(kept), "eps": 0.0}
        return cn.rms_norm, x, options, x * weight, residual, (x + residual) * weight
    shape, layout = ((2, 3, n), "NCL") if form == "runs" else ((7, n), "NC")
    x, residual = (rng.integers(-20, 21, shape) for _ in range(2))
    mean, weight, bias = (rng.integers(-4, 5, shape[1]) for _ in range(3))
    c = (slice(None), None) if form == "runs" else slice(None)
    y = (x - mean[c]) * weight[c] + bias[c]
    parameters = {name: value.astype(kept) for name, value in {"running_mean": mean, "weight": weight, "bias": bias}.items()}
    options = {**parameters, "running_var": np.ones(shape[1], kept), "eps": 0.0, "layout": layout}
    return cn.batch_norm, x, options, y, residual, y + residual


@pytest.mark.parametrize("form", FORMS)
def test_every_length_at_every_place_in_a_line(form, kind, in_place, compiled):
    """Exact, and nothing around it is written. Odd lengths with a residual, every third one clipped."""
    rng = np.random.default_rng(0)
    for n in LENGTHS:
        function, x, options, plain, residual, summed = problem(form, n, kind, rng)
        wanted = summed if n % 2 else plain
        if n % 2:
            options["residual"] = residual.astype(kind)
        if n % 3 == 0:
            options["activation"] = "relu6"
            wanted = np.clip(wanted, 0, 6)
        x, wanted = x.astype(kind), wanted.astype(kind)
        for place in range(LINE // kind.itemsize):
            out, memory = at(x if in_place else np.full_like(x, 7), place)
            function(out if in_place else x, **options, out=out, backend=compiled)
            np.testing.assert_array_equal(out.astype(np.float32), wanted.astype(np.float32), err_msg=f"{n} values, {place} after a line")
            out[...] = GUARD
            assert (memory == GUARD).all()


@pytest.mark.parametrize("activation", ["silu", "hardswish"])
@pytest.mark.parametrize("form", FORMS)
def test_an_activation_ends_where_the_data_ends(form, activation, in_place, compiled):
    """Through a tile: the same bits wherever it lies."""
    rng = np.random.default_rng(1)
    for n in (1, 7, 8, 31, 33, 63, 70, 255, 256, 257, 600):
        function, x, options, _, _, _ = problem(form, n, np.dtype("float32"), rng)
        x = x.astype(np.float32)
        options["activation"] = activation
        wanted = function(x, **options, backend="numpy")
        first = None
        for place in (0, 1, 5, 15):
            out, memory = at(x if in_place else np.full_like(x, 7), place)
            function(out if in_place else x, **options, out=out, backend=compiled)
            assert_close(out, wanted, rtol=1e-6, atol=1e-6)
            first = out.copy() if first is None else first
            assert_same_bits(out, first)
            out[...] = GUARD
            assert (memory == GUARD).all()


def inside(values, gap, step=1):
    """A copy of values (outer, middle, last) with gaps between its runs, which lie one before the other if `step` is -1; and its memory."""
    outer, middle, last = values.shape
    memory = np.full((outer, middle + gap, last + gap), GUARD, values.dtype)
    mine = memory[:, :middle, gap:][:, ::step]
    mine[...] = values
    return mine, memory


@pytest.mark.parametrize("activation", [None, "hardswish"])
@pytest.mark.parametrize("form", ["runs", "rows"])
def test_runs_that_lie_apart(form, activation, in_place, compiled, monkeypatch):
    """x, residual and result with strides of their own, in items that begin inside a run. Exact: runs of 1 and -1 times a power of 2."""
    monkeypatch.setattr(plan, "SERIAL_BYTES", 64)
    rng = np.random.default_rng(7)
    for name, n in itertools.product(("float32", "float64", "float16"), (500, 700)):
        shape = (2, 3, n)
        sign = rng.permuted(np.broadcast_to(np.arange(n) % 2 * 2 - 1, shape), axis=2)
        size = 2.0 ** np.arange(6).reshape(2, 3, 1)
        kept = samples.statistics_dtype(name)
        if form == "rows":
            weight = rng.integers(-8, 9, n)
            flips = rng.integers(2, size=shape)
            x, residual, y = sign * size, -2 * sign * size * flips, sign * (1 - 2 * flips) * weight
            options = {"normalized_shape": (n,), "weight": weight.astype(kept), "eps": 0.0, "return_sum": True}
        else:
            weight, bias = (rng.integers(-8, 9, 3) for _ in range(2))
            residual = rng.integers(-8, 9, shape)
            x, y = sign * size, sign * weight[:, None] + bias[:, None] + residual
            options = {"weight": weight.astype(kept), "bias": bias.astype(kept), "eps": 0.0, "layout": "NCL"}
        wanted = reference.activate(y.astype(kept), activation).astype(name) if activation else y.astype(name)
        mine, _ = inside(x.astype(name), 3, -1)
        other, _ = inside(residual.astype(name), 5)
        for gap in (0, 9):
            out, memory = inside(x.astype(name) if in_place else np.full(shape, 7, name), gap)
            function = cn.rms_norm if form == "rows" else cn.instance_norm
            given = {**options, "residual": other, "activation": activation, "out": out, "backend": compiled}
            found = function(out if in_place else mine, **given)
            assert_close(out.astype(kept), wanted.astype(kept), rtol=4 * np.finfo(name).eps if activation else 0)
            if form == "rows":
                assert_same_bits(found[1], (x + residual).astype(name))
            out[...] = GUARD
            assert (memory == GUARD).all()


@pytest.mark.parametrize("name", ["float16", "bfloat16"])
@pytest.mark.parametrize("bits", [0x7FFFFFFF, 0xFFFFFFFF, 0x7F800001, 0xFF800001], ids=hex)
def test_a_nan_of_16_bits_stays_alone(name, bits, in_place, compiled):
    """Wherever in a group: rounded like a number, these bits would carry over into zeros and infinities."""
    kind = samples.dtype_of(present(name))
    nan = np.array([bits], np.uint32).view(np.float32)[0]
    n = 70
    x = np.random.default_rng(2).normal(size=(3, n)).astype(kind)
    bias = np.linspace(-1, 1, n, dtype=np.float32)
    clean = cn.layer_norm(x, (n,), None, bias, backend=compiled)
    assert np.isfinite(clean.astype(np.float32)).all()
    for place in range(n):
        mine = bias.copy()
        mine.view(np.uint32)[place] = bits
        for number in (0, 3):
            out, _ = at(x if in_place else np.full_like(x, 7), number)
            cn.layer_norm(out if in_place else x, (n,), None, mine, out=out, backend=compiled)
            assert np.isnan(out[:, place].astype(np.float32)).all(), place
            assert_same_bits(np.delete(out, place, 1), np.delete(clean, place, 1))
    kept = (np.zeros(n, np.float32), np.ones(n, np.float32))
    clean = cn.batch_norm(x, *kept, None, bias, backend=compiled)
    for place in range(n):
        mine = bias.copy()
        mine[place] = nan
        y = cn.batch_norm(x, *kept, None, mine, backend=compiled)
        assert np.isnan(y[:, place].astype(np.float32)).all(), place
        assert_same_bits(np.delete(y, place, 1), np.delete(clean, place, 1))


@pytest.mark.parametrize("layout", ["NCL", "NLC"])
def test_sums_of_every_length_are_exact(layout, kind, compiled):
    """Of integers, between NaN that must not be read in: mean and variance, and the sums of a gradient. 64 values have exact means."""
    rng = np.random.default_rng(3)
    for n in (*LENGTHS, 255, 257, 1023, 1025):
        x, g = (rng.integers(-4, 5, (2, 3, n)) for _ in range(2))

        def inside(values, n=n):
            """Part of a larger array."""
            shape = (2, 3, n + 70) if layout == "NCL" else (2, n, 3 + 2)
            memory = np.full(shape, np.nan, kind)
            mine = memory[:, :, 35 : 35 + n] if layout == "NCL" else memory[:, :, 1:4]
            mine[...] = samples.arrange(values, layout)
            return mine

        axes = (0, 2) if layout == "NCL" else (0, 1)
        mean, var = cn.mean_var(inside(x), axes, backend=compiled)
        assert_close(mean, x.mean((0, 2)), rtol=0, atol=4e-6)
        assert_close(var, x.var((0, 2)), rtol=4e-6, atol=1e-12)
        kept = samples.statistics_dtype(kind.name)
        zeros, ones = np.zeros(3, kept), np.ones(3, kept)
        _, weight, bias = cn.batch_norm_backward(inside(g), inside(x), zeros, ones, training=False, layout=layout, backend=compiled)
        assert_same_bits(weight, (g * x).sum((0, 2)).astype(kept))
        assert_same_bits(bias, g.sum((0, 2)).astype(kept))


def test_sums_of_rows_of_every_length_are_exact(kind, compiled):
    rng = np.random.default_rng(4)
    kept = samples.statistics_dtype(kind.name)
    for n in (*LENGTHS, 511, 513):
        x, g, weight = (rng.integers(-4, 5, size) for size in ((5, n), (5, n), n))
        zeros, ones = np.zeros((5, 1), kept), np.ones((5, 1), kept)
        _, of_weight, of_bias = cn.layer_norm_backward(
            g.astype(kind), x.astype(kind), (n,), zeros, ones, weight.astype(kept), backend=compiled
        )
        assert_same_bits(of_weight, (g * x).sum(0).astype(kept))
        assert_same_bits(of_bias, g.sum(0).astype(kept))


@pytest.mark.parametrize("second", [False, True], ids=["alone", "residual"])
def test_weight_and_bias_that_rows_lack_are_one_and_zero(second, kind, compiled):
    rng = np.random.default_rng(5)
    kept = samples.statistics_dtype(kind.name)
    for n in (1, 7, 33, 70):
        x, g = (rng.normal(size=(6, n)).astype(kind) for _ in range(2))
        residual = {"residual": g} if second else {}
        weight, bias = (rng.normal(size=n).astype(kept) for _ in range(2))
        ones, zeros = np.ones(n, kept), np.zeros(n, kept)
        for given in ((None, None), (weight, None), (None, bias)):
            full = (ones if given[0] is None else weight, zeros if given[1] is None else bias)
            options = {**residual, "return_stats": True, "backend": compiled}
            results = cn.layer_norm(x, (n,), *given, **options)
            assert_all(assert_same_bits, results, cn.layer_norm(x, (n,), *full, **options))
        assert_all(assert_same_bits, cn.rms_norm(x, (n,), **options), cn.rms_norm(x, (n,), ones, **options))
        _, mean, rstd = results
        mine = cn.layer_norm_backward(g, x, (n,), mean, rstd, backend=compiled)
        assert_all(assert_same_bits, mine, cn.layer_norm_backward(g, x, (n,), mean, rstd, ones, backend=compiled))
        mine = cn.rms_norm_backward(g, x, (n,), rstd, backend=compiled)
        assert_all(assert_same_bits, mine, cn.rms_norm_backward(g, x, (n,), rstd, ones, backend=compiled))


@pytest.mark.parametrize("shape", [(1, 4, 4096), (1, 3, 9000), (1300, 4, 3)], ids=str)
def test_values_that_begin_far_from_their_mean(shape, dtype, compiled):
    """A block is summed as differences from its first values; where these lie far off, again from its own mean.

    A mean's error is measured by the deviation: its values cancel. A lane adds up some 1300 values of runs of 3, fewer of long ones.
    """
    x = np.random.default_rng(6).normal(size=shape)
    x[0, :, :8] += 3000
    x = x.astype(dtype)
    mean, var = cn.mean_var(x, (0, 2), backend=compiled)
    wide = x.astype(np.float64)
    limit = 2 * np.sqrt(1300) * np.finfo(dtype).eps
    assert_close(mean, wide.mean((0, 2)), rtol=0, atol=limit * wide.std())
    assert_close(var, wide.var((0, 2)), rtol=limit)


@pytest.mark.parametrize("shape", [(2, 2, 3), (5, 70, 3), (40, 1, 7), (2, 30_000, 3), (3, 9000, 5), (2, 4096, 96)], ids=str)
@pytest.mark.parametrize("gap", [0, 1])
def test_few_channels_last(shape, gap, dtype, compiled):
    """Moments of rows widened to many times the channels: several pieces, of all samples and of each; some columns have no value."""
    rng = np.random.default_rng(8)
    x = rng.normal(100, 1, (shape[0], shape[1] + gap, shape[2])).astype(dtype)[:, : shape[1]]
    wide = x.astype(np.float64)
    eps = np.finfo(dtype).eps
    for axes in ((0, 1), 1):
        mean, var = cn.mean_var(x, axes, backend=compiled)
        assert_close(mean, wide.mean(axes), rtol=max(eps / 10, 1e-14))
        assert_close(var, wide.var(axes), rtol=max(4 * eps, 1e-12), atol=1e-12)
        assert_same_bits(cn.mean_var(np.full_like(x, 1e30), axes, backend=compiled)[1], np.zeros_like(var))


@pytest.mark.parametrize("rows", [8, 64, 700])
def test_a_first_row_far_from_the_others(rows, dtype, compiled):
    """Columns are summed as differences from the mean of their first rows: of one row alone, most digits of the variance of 64 are lost."""
    x = np.random.default_rng(9).normal(size=(rows, 40))
    x[0] += 1e4
    x = x.astype(dtype)
    mean, var = cn.mean_var(x, 0, backend=compiled)
    wide = x.astype(np.float64)
    near = max(1, min(rows // 8, 8))  # rows that the shift is the mean of; the squares of d are up to rows / near times those from the mean
    assert_close(var, wide.var(0), rtol=4 * np.finfo(dtype).eps * rows / near)
    assert_close(mean, wide.mean(0), rtol=0, atol=2 * np.finfo(dtype).eps * 1e4)  # each of n additions of up to 1e4 rounds, then / n


@pytest.mark.parametrize("layout", ["NCL", "NLC"])
def test_constants_of_every_length_have_no_variance(layout, dtype, compiled):
    for n in (*LENGTHS, 4095, 4097, 8193):
        constants = np.array([0.1, 100000.1, -3e-5], dtype)
        x = samples.arrange(np.broadcast_to(constants[:, None], (2, 3, n)), layout)
        mean, var = cn.mean_var(x, (0, 2) if layout == "NCL" else (0, 1), backend=compiled)
        assert_same_bits(mean, constants.astype(np.float64))
        assert_same_bits(var, np.zeros(3))
