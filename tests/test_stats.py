"""Statistics that add up: exact integers on every backend, `ChannelStats` in any order and split, through JSON and pickle."""

import json
import math
import pickle
from fractions import Fraction

import numpy as np
import pytest
from helpers import present
from hypothesis import given
from hypothesis import strategies as st

import cpunorm as cn
from cpunorm import call, integers, moments, reference
from cpunorm.layout import REDUCED, find_view
from cpunorm.samples import dtype_of

# Runs and columns, few channels and many; more than LONG values in a run, 256 rows of lanes, STRIP columns and a piece, and a bit.
SHAPES = [(2, 3, 5, 7), (1, 1, 1, 1), (3, 2, 1, 1), (2, 3, 71, 43), (5, 600, 3, 2), (1, 3, 300, 301), (2, 1, 1100, 1000)]
AXES = {"channels_first": (0, 2, 3), "channels_last": (0, 1, 2), "instance": (2, 3), "rows": (3,), "all": (0, 1, 2, 3), "first": (0,)}
INTEGERS = ["bool", "int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64"]


def whole(shape, dtype, seed=0):
    """Every value of the dtype as likely, and its ends."""
    rng = np.random.default_rng(seed)
    if dtype == "bool":
        return rng.integers(0, 2, shape).astype(bool)
    info = np.iinfo(dtype)
    x = rng.integers(info.min, info.max, shape, dtype=dtype, endpoint=True)
    x.flat[0], x.flat[-1] = info.min, info.max
    return x


def exactly(x, axes, ddof=0):
    """Mean and variance by Python's fractions, rounded once."""
    kept = [axis for axis in range(x.ndim) if axis not in axes]
    rows = x.transpose([*kept, *axes]).reshape(math.prod(x.shape[axis] for axis in kept), -1)
    found = []
    for row in rows.tolist():
        n, total, squares = len(row), sum(map(int, row)), sum(int(v) ** 2 for v in row)
        left = n - ddof
        found.append((float(Fraction(total, n)), float(Fraction(n * squares - total**2, n * left)) if left > 0 else math.nan))
    shape = [x.shape[axis] for axis in kept]
    return tuple(np.array(values).reshape(shape) for values in zip(*found, strict=True))


# ---------------------------------------------------------------- mean_var of integers


@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
@pytest.mark.parametrize("axes", AXES.values(), ids=AXES)
def test_sums_are_exact(axes, dtype, compiled):
    for shape in SHAPES:
        x = whole(shape, dtype)
        for threads in (1, 2):
            sums = moments.of_integers(x, axes, compiled, threads)
            wide = x.astype(np.uint64)
            np.testing.assert_array_equal(sums.total.astype(np.uint64), wide.sum(axes, keepdims=True))
            np.testing.assert_array_equal(sums.squares.astype(np.uint64), (wide * wide).sum(axes, keepdims=True))


@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
def test_every_instruction_set(dtype, native):
    x = whole((2, 3, 300, 301), dtype)
    wide = x.astype(np.uint64)
    for name in native.instruction_sets():
        call._PREPARED.clear()  # programs keep the kernels they were linked with
        with native.forced(name):
            for axes in ((0, 2, 3), (0, 1, 2)):
                sums = moments.of_integers(x, axes, "c", 2)
                np.testing.assert_array_equal(sums.squares.astype(np.uint64), (wide * wide).sum(axes, keepdims=True))
    call._PREPARED.clear()


@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
def test_lanes_hold_the_largest_values(dtype, compiled):
    """All values at the top, in more rows than lanes take before they overflow."""
    top = np.iinfo(dtype).max
    for shape, axis in (((70_000, 40), 0), ((70_000, 40), None), ((260, 513), 0), ((3, 1_000_001), 1)):
        sums = moments.of_integers(np.full(shape, top, dtype), (0, 1) if axis is None else (axis,), compiled, 2)
        assert (sums.total == top * sums.count).all()
        assert (sums.squares == top**2 * sums.count).all()


@pytest.mark.parametrize("dtype", INTEGERS)
def test_mean_var_is_rounded_once(dtype, backend):
    for shape, axes in (((2, 3, 5, 7), (0, 2, 3)), ((2, 3, 5, 7), (0, 1, 2)), ((4, 6), (1,)), ((3, 40, 30), (1, 2))):
        x = whole(shape, dtype)
        for ddof in (0, 1):
            mean, var = cn.mean_var(x, axes, ddof=ddof, backend=backend)
            wanted = exactly(x, axes, ddof)
            np.testing.assert_array_equal(mean, wanted[0])
            np.testing.assert_array_equal(var, wanted[1])


def test_mean_var_of_close_values_far_from_zero(backend):
    """float64 cannot tell these squares apart."""
    x = 2**62 + np.arange(10, dtype=np.int64).reshape(2, 5)
    mean, var = cn.mean_var(x, 1, backend=backend)
    np.testing.assert_array_equal(mean, 2.0**62)
    np.testing.assert_array_equal(var, 2.0)


def test_mean_var_of_any_strides(backend):
    x = whole((4, 9, 8, 6), "uint16")
    for seen in (x[::2, :, ::-1], x[:, 1:5, :, ::3], x.transpose(0, 3, 1, 2), x.astype(">u2"), x[:, :, ::-2].transpose(3, 1, 2, 0)):
        for axes in ((0, 2, 3), (1,), (0, 1, 2)):
            got = cn.mean_var(seen, axes, backend=backend)
            np.testing.assert_array_equal(got, exactly(seen, axes))


def test_where_nothing_remains(backend):
    x = np.array([[3], [5]], np.uint8)
    assert np.isnan(cn.mean_var(x, 1, ddof=1, backend=backend)[1]).all()
    assert np.isposinf(cn.mean_var(x, 0, ddof=2, backend=backend)[1]).all()
    np.testing.assert_allclose(cn.mean_var(x, 0, ddof=0.5, backend=backend)[1], 2 / 1.5, rtol=1e-15)


def test_sums_beyond_64_bits():
    """What more than 2**32 values of uint16 leave, without making them."""
    entries = np.full((2, 1, 5, 3), 2**63, np.uint64)
    assert (moments.added(entries, moments.FITS + 1) == 5 * 2**63).all()
    sums = integers.Sums(2**33, np.array([2**33 * 40000]), np.array([2**33 * 65535**2], object))
    assert sums.mean() == 40000
    assert sums.variance(0) == 65535**2 - 40000**2


@pytest.mark.parametrize("size", [3, 2**20 + 3])
def test_other_integers_in_pieces(size, monkeypatch):
    monkeypatch.setattr(moments, "PIECE", 1000)
    x = np.broadcast_to(np.arange(-5, 6, dtype=np.int32), (size // 1000 + 2, 11))
    sums = moments.of_integers(x, (0,), "numpy", None)
    np.testing.assert_array_equal(sums.total, reference.integer_sums(x, (0,))[0])
    assert sums.count == len(x)


def test_pieces_do_not_depend_on_threads():
    """Or on anything but the view: the plan of counts."""
    from cpunorm import recipes
    from cpunorm.machine import Caches
    from cpunorm.plan import Data, Resources

    view = find_view((640, 480, 3), ((1440, 3, 1),), REDUCED * 2 + "k")
    plans = [recipes.counts(view, Data("uint8"), Resources(threads, Caches(1 << 20, 1 << 25))) for threads in (1, 64)]
    assert plans[0].tables == plans[1].tables
    assert plans[0].phases[0].steps == plans[1].phases[0].steps
    assert plans[1].phases[0].items == 2


# ---------------------------------------------------------------- ChannelStats


def close(stats, x, channel, rtol=1e-13):
    axes = tuple(axis for axis in range(x.ndim) if axis != channel)
    wide = x.astype(np.float64)
    assert stats.count == math.prod(x.shape[axis] for axis in axes)
    np.testing.assert_allclose(stats.mean, wide.mean(axes), rtol=rtol)
    for ddof in (0, 1):
        np.testing.assert_allclose(stats.variance(ddof), wide.var(axes, ddof=ddof), rtol=10 * rtol)
        np.testing.assert_allclose(stats.std(ddof), wide.std(axes, ddof=ddof), rtol=10 * rtol)


@pytest.mark.parametrize(
    ("layout", "shape", "channel"),
    [
        ("channels_first", (4, 3, 5, 6), 1),
        ("channels_first", (40, 3), 1),
        ("channels_last", (4, 5, 6, 3), 3),
        ("channels_last", (5, 6, 3), 2),
        ("channels_last", (7,), 0),
        ("NCHW", (4, 3, 5, 6), 1),
        ("NCHW", (3, 5, 6), 0),
        ("NHWC", (5, 6, 3), 2),
        ("CHW", (3, 5, 6), 0),
        ("HWC", (5, 6, 3), 2),
        ("CNHW", (3, 2, 5, 6), 0),
    ],
)
@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int32", "float16", "bfloat16", "float32", "float64", "longdouble"])
def test_layouts_and_dtypes(layout, shape, channel, dtype, backend):
    if dtype == "bfloat16":
        present(dtype)
    values = np.random.default_rng(0).integers(0, 200, shape)  # exact in all
    x = values.astype(dtype_of(dtype))
    with cn.config(backend=backend):
        stats = cn.ChannelStats(layout=layout).update(x)
    if math.prod(shape) == shape[channel]:
        np.testing.assert_array_equal(stats.mean, values)
    else:
        close(stats, values, channel, 1e-7 if dtype in ("float16", "bfloat16", "float32") else 1e-13)  # blocks are summed in float32


@given(
    st.lists(st.tuples(st.integers(0, 4), st.integers(0, 30), st.booleans()), min_size=1, max_size=6),
    st.sampled_from(["uint8", "uint16", "int64"]),
    st.randoms(),
)
def test_any_split_and_order_of_integers_gives_the_same_bits(sizes, dtype, random):
    blocks = [whole((n, 3, h, 7), dtype, seed) if n * h else np.empty((n, 3, h, 7), dtype) for seed, (n, h, _) in enumerate(sizes)]
    everything = np.concatenate([block.transpose(1, 0, 2, 3).reshape(3, -1) for block in blocks], axis=1)
    parts = []
    for block, (_, _, together) in zip(blocks, sizes, strict=True):
        if together and parts:
            parts[-1].update(block)
        else:
            parts.append(cn.ChannelStats().update(block))
    random.shuffle(parts)
    total = sum(parts, cn.ChannelStats(3))
    wanted = cn.ChannelStats(layout="CL").update(everything)
    assert total.count == wanted.count == everything.shape[1]
    np.testing.assert_array_equal(total.mean, wanted.mean)
    np.testing.assert_array_equal(total.variance(), wanted.variance())
    if everything.size:
        np.testing.assert_array_equal([total.mean, total.variance()], exactly(everything, (1,)))


def test_floats_split_to_rounding(backend):
    x = np.random.default_rng(0).normal(1000, 1, (6, 3, 50, 40)).astype(np.float32)
    with cn.config(backend=backend):
        parts = [cn.ChannelStats().update(part) for part in (x[:1], x[1:5], x[5:])]
    total = parts[2] + parts[0] + parts[1]
    assert total.count == 12000
    wide = x.astype(np.float64)
    np.testing.assert_allclose(total.mean, wide.mean((0, 2, 3)), rtol=1e-9)
    np.testing.assert_allclose(total.variance(), wide.var((0, 2, 3)), rtol=1e-6)


def test_integers_and_floats_mix():
    whole_part, real_part = whole((2, 3, 4, 4), "uint8"), np.random.default_rng(1).normal(100, 9, (5, 3, 2, 2))
    one = cn.ChannelStats().update(whole_part).update(real_part)
    other = cn.ChannelStats().update(real_part) + cn.ChannelStats().update(whole_part)
    x = np.concatenate([part.transpose(1, 0, 2, 3).reshape(3, -1) for part in (whole_part, real_part)], axis=1)
    close(one, x, 0)
    np.testing.assert_array_equal(one.mean, other.mean)


def test_merge_leaves_the_other_and_adds_in_place():
    a, b = (cn.ChannelStats(layout="HWC").update(whole((4, 4, 3), "uint8", seed)) for seed in (0, 1))
    before = b.to_dict()
    same = a
    a += b
    assert a is same
    assert a.count == 32
    assert b.to_dict() == before
    a.merge(a)
    assert a.count == 64
    assert (cn.ChannelStats() + a).count == (a + cn.ChannelStats()).count == 64


def test_nan_and_infinity_stay_in_their_channel(backend):
    x = np.ones((2, 4, 3), np.float32)
    x[0, 1, 0], x[1, 2, 1], x[1, 3, :2] = np.nan, np.inf, (np.inf, -np.inf)
    with cn.config(backend=backend):
        stats = cn.ChannelStats().update(x).update(np.full((5, 4, 3), 2, np.uint8)).update(np.ones((1, 4, 2)))
    np.testing.assert_array_equal(np.isfinite(stats.mean), [True, False, False, False])
    np.testing.assert_array_equal(np.isnan(stats.std()), [False, True, True, True])
    assert np.isposinf(stats.mean[2])
    again = cn.ChannelStats.from_dict(json.loads(json.dumps(stats.to_dict(), allow_nan=False)))
    np.testing.assert_array_equal(again.mean, stats.mean)


def test_nothing_seen():
    stats = cn.ChannelStats(2)
    assert stats.count == 0
    assert np.isnan([stats.mean, stats.variance(), stats.std(1)]).all()
    assert stats.update(np.empty((0, 2, 5))).count == 0
    with pytest.raises(ValueError, match="num_channels"):
        _ = cn.ChannelStats().mean
    assert cn.ChannelStats().update(np.empty((0, 2, 5), np.uint8)).num_channels == 2
    assert np.isnan(cn.ChannelStats(2).update(np.ones((1, 2))).variance(1)).all()


def through_json(stats):
    return cn.ChannelStats.from_dict(json.loads(json.dumps(stats.to_dict())))


@pytest.mark.parametrize("copy", [lambda stats: pickle.loads(pickle.dumps(stats)), through_json], ids=["pickle", "json"])
def test_round_trips_are_exact(copy):
    stats = cn.ChannelStats(layout="HWC").update(whole((9, 9, 3), "uint64")).update(np.random.default_rng(0).normal(size=(5, 7, 3)))
    for one in (cn.ChannelStats(), cn.ChannelStats(5, layout="NCHW"), stats):
        again = copy(one)
        assert repr(again) == repr(one)
        assert again.to_dict() == one.to_dict()
        assert (again.layout, again.num_channels) == (one.layout, one.num_channels)
    more = whole((2, 2, 3), "uint16")
    np.testing.assert_array_equal(copy(stats).update(more).variance(), stats.update(more).variance())


@pytest.mark.parametrize(
    ("make", "error", "fragments"),
    [
        (lambda: cn.ChannelStats(3).update(np.ones((2, 4, 5))), ValueError, ["3 channels", "got 4", "axis 1", "(2, 4, 5)"]),
        (lambda: cn.ChannelStats(3).merge(cn.ChannelStats(4)), ValueError, ["3 channels", "got 4"]),
        (lambda: cn.ChannelStats().merge({}), TypeError, ["ChannelStats", "dict"]),
        (lambda: cn.ChannelStats() + 1, TypeError, ["+"]),
        (lambda: cn.ChannelStats(0), ValueError, ["num_channels", "0"]),
        (lambda: cn.ChannelStats(2.0), TypeError, ["num_channels", "2.0"]),
        (lambda: cn.ChannelStats(layout="HW"), ValueError, ["layout", "'HW'"]),
        (lambda: cn.ChannelStats(layout=3), TypeError, ["layout", "int"]),
        (lambda: cn.ChannelStats(layout="NCHW").update(np.ones((3, 4))), ValueError, ["NCHW", "4 axes or 3", "(3, 4)"]),
        (lambda: cn.ChannelStats(layout="HWC").update(np.ones((3, 4))), ValueError, ["HWC", "3 axes", "(3, 4)"]),
        (lambda: cn.ChannelStats().update(np.ones(3)), ValueError, ["channels_first", "(3,)"]),
        (lambda: cn.ChannelStats(layout="channels_last").update(np.ones(())), ValueError, ["channels_last", "()"]),
        (lambda: cn.ChannelStats().update(np.ones((3, 3), complex)), TypeError, ["complex128"]),
        (lambda: cn.ChannelStats().update([[1, 2]]), TypeError, ["list"]),
        (lambda: cn.ChannelStats(3).variance("1"), TypeError, ["ddof"]),
        (lambda: cn.ChannelStats.from_dict({}), ValueError, ["to_dict", "num_channels"]),
        (lambda: cn.ChannelStats.from_dict(cn.ChannelStats(3).to_dict() | {"num_channels": 2}), ValueError, ["2 channels"]),
    ],
)
def test_refuses(make, error, fragments):
    with pytest.raises(error) as caught:
        make()
    for fragment in fragments:
        assert fragment in str(caught.value)


def test_a_refused_block_changes_nothing():
    stats = cn.ChannelStats(layout="HWC").update(whole((3, 3, 3), "uint8"))
    before = stats.to_dict()
    with pytest.raises(ValueError, match="channels"):
        stats.update(np.ones((3, 3, 4), np.uint8))
    assert stats.to_dict() == before
