"""`cpunorm.dask` against the NumPy calls on the whole array: chunks that cut any axis."""

import copy
import math

import numpy as np
import pytest
from helpers import DTYPES, assert_close, assert_same_bits, normal, present
from hypothesis import given, settings
from hypothesis import strategies as st

import cpunorm as cn
from cpunorm.samples import arrange, dtype_of

dask = pytest.importorskip("dask", reason="cpunorm.dask needs dask")
import dask.array as da  # noqa: E402

import cpunorm.dask as cd  # noqa: E402
from cpunorm.dask import tasks  # noqa: E402

pytestmark = [pytest.mark.peer, pytest.mark.usefixtures("dask_in_this_thread")]
BACKEND = tasks.native() or "numba"

SHAPE = (6, 5, 8, 7)  # N, C, H, W
CHUNKS = {
    "one": SHAPE,
    "images": (2, 5, 8, 7),
    "channels": (6, 2, 8, 7),
    "all axes": (4, 3, 5, 2),
    "single values": (6, 1, 1, 1),
    "uneven": ((1, 5), (2, 3), (3, 4, 1), (7,)),
    "empty ones": ((0, 4, 2), (5,), (0, 8), (3, 4)),
}
TOLERANCE = {"float64": 1e-12, "float32": 1e-6, "float16": 2e-3, "bfloat16": 2e-2}


@pytest.fixture(params=CHUNKS.values(), ids=CHUNKS)
def chunks(request):
    return request.param


def computed(*collections):
    """Their results, which have to have the shape and dtype that was promised."""
    results = dask.compute(*collections)
    for promised, result in zip(collections, results, strict=True):
        assert promised.shape == result.shape
        assert promised.dtype == result.dtype == promised._meta.dtype
    return results[0] if len(results) == 1 else results


def in_layout(x, chunks, layout):
    """x of SHAPE, channels first, in another layout, and its chunks likewise."""
    order = ["NCHW".index(letter) for letter in layout]
    return arrange(x, layout), tuple(chunks[axis] for axis in order)


def parameters(dtype="float64"):
    rng = np.random.default_rng(5)
    made = rng.normal(size=5), rng.uniform(0.5, 2, 5), rng.normal(1, 0.3, 5), rng.normal(size=5)
    return [value.astype(dtype_of(dtype)) for value in made]


# ---------------------------------------------------------------- statistics


@pytest.mark.parametrize("layout", ["NCHW", "NHWC", "CHWN"])
def test_channel_stats_of_floats(chunks, layout, any_dtype):
    """Of float32 and 16 bits too by float64, to 1e-12."""
    x, parts = in_layout(normal(SHAPE, dtype_of(any_dtype)), chunks, layout)
    stats = cd.channel_stats(da.from_array(x, chunks=parts), layout).compute()
    whole = cn.ChannelStats(layout=layout).update(x.astype(np.float64))
    assert (stats.count, stats.layout) == (whole.count, layout)
    np.testing.assert_allclose(stats.mean, whole.mean, rtol=1e-12)
    np.testing.assert_allclose(stats.variance(1), whole.variance(1), rtol=1e-12)


@pytest.mark.parametrize("dtype", ["bool", "uint8", "int16", "uint16", "int64"])
def test_integers_are_exact(chunks, dtype):
    low, high = (0, 2) if dtype == "bool" else (np.iinfo(dtype).min, np.iinfo(dtype).max)
    x = np.random.default_rng(0).integers(low, high, SHAPE, np.int64).astype(dtype)
    lazy = da.from_array(x, chunks=chunks)
    assert cd.channel_stats(lazy).compute().to_dict() == cn.ChannelStats().update(x).to_dict()
    np.testing.assert_array_equal(computed(*cd.mean_var(lazy, (0, 3), ddof=1)), cn.mean_var(x, (0, 3), ddof=1))


@pytest.mark.parametrize("axis", [None, 0, -1, (0, 2, 3), (1, 2), ()], ids=str)
@pytest.mark.parametrize("options", [{}, {"ddof": 1, "keepdims": True}], ids=str)
def test_mean_var(chunks, axis, options):
    x = normal(SHAPE, "float64")
    with np.errstate(all="ignore"):
        wanted = cn.mean_var(x, axis, **options)
    for got, whole in zip(computed(*cd.mean_var(da.from_array(x, chunks=chunks), axis, **options)), wanted, strict=True):
        np.testing.assert_allclose(got, whole, rtol=1e-12, atol=1e-300)


@pytest.mark.parametrize("axis", [0, (0, 2), None], ids=str)
def test_blocks_are_widened_in_pieces(axis, monkeypatch):
    monkeypatch.setattr(tasks, "PIECE", 100)
    monkeypatch.setattr(tasks, "FEW", 3)
    x = normal((50, 4, 9), "float32", mean=1e4, std=1)
    axes = (0, 1, 2) if axis is None else (axis,) if isinstance(axis, int) else axis
    sizes = [len(piece) for piece in tasks.pieces(x, axes)]
    assert sum(sizes) == 50
    assert len(sizes) > 10
    got = computed(*cd.mean_var(da.from_array(x, chunks=x.shape), axis))
    for one, other in zip(got, cn.mean_var(x.astype(np.float64), axis), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-11)


@st.composite
def some_chunks(draw):
    def cut(size):
        ends = sorted(draw(st.sets(st.integers(1, size - 1), max_size=3)))
        return tuple(np.diff([0, *ends, size]).tolist())

    return tuple(cut(size) for size in SHAPE)


@given(some_chunks(), st.sampled_from([0, 1e2, -1e4]))
@settings(max_examples=20)
def test_chunks_change_no_more_than_rounding(chunks, mean):
    """And the same chunks give the same bits, in whatever order and on however many threads the tasks run."""
    x = normal(SHAPE, "float64", mean=mean, std=3)
    lazy = da.from_array(x, chunks=chunks)
    collections = [*cd.mean_var(lazy, (0, 2, 3)), cd.batch_norm(lazy, None, None, training=True)]
    first = dask.compute(*collections)
    wanted = [*cn.mean_var(x, (0, 2, 3)), cn.batch_norm(x, None, None, training=True)]
    for one, other, scale in zip(first, wanted, (0, 0, 1 + abs(mean) / 3), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-12, atol=1e-12 * scale)
    again = dask.compute(*collections, scheduler="threads", num_workers=4)
    for one, other in zip(first, again, strict=True):
        assert_same_bits(one, other)


def test_statistics_of_nothing_and_of_one():
    empty = da.zeros((0, 3, 4), chunks=(1, 2, 4))
    stats = cd.channel_stats(empty).compute()
    assert (stats.count, stats.num_channels) == (0, 3)
    assert np.isnan(computed(*cd.mean_var(empty, (0, 2)))).all()
    assert np.isnan(computed(*cd.mean_var(empty.astype("u1"), (0, 2)))).all()
    assert computed(cd.mean_var(empty, 1)[0]).shape == (0, 4)
    mean, var = computed(*cd.mean_var(da.from_array(np.array(3.0)), None, ddof=1))
    assert mean == 3
    assert np.isnan(var)


def test_nan_and_infinity_stay_in_their_channel(chunks):
    x = normal(SHAPE, "float32")
    x[3, 1, 2, 2], x[2, 3, 0, 0] = np.nan, np.inf
    lazy = da.from_array(x, chunks=chunks)
    mean = cd.channel_stats(lazy).compute().mean
    np.testing.assert_array_equal(np.isfinite(mean), [True, False, True, False, True])
    assert np.isposinf(mean[3])
    y = cd.batch_norm(lazy, None, None, training=True).compute()
    np.testing.assert_array_equal(np.isfinite(y).all(axis=(0, 2, 3)), [True, False, True, False, True])


@pytest.mark.parametrize("method", ["pca", "zca"])
@pytest.mark.parametrize("chunks", [(500, 6), (64, 6), (130, 4), ((0, 1, 499), (1, 5))], ids=str)
def test_whitening(method, chunks):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(500, 6)) @ rng.normal(size=(6, 6)) + 40
    found = cd.fit_whitening(da.from_array(x, chunks=chunks), method, eps=0.1).compute()
    whole = cn.Whitening(method, eps=0.1).fit(x)
    assert found.n_samples_seen_ == 500
    np.testing.assert_allclose(found.mean_, whole.mean_, rtol=1e-12)
    np.testing.assert_allclose(found.transform(x), whole.transform(x), rtol=1e-9, atol=1e-9)


# ---------------------------------------------------------------- standardize


@pytest.mark.parametrize("layout", ["NCHW", "NHWC", "CHWN"])
@pytest.mark.parametrize("dtype", [*DTYPES, "uint8", "int16", "bool", "int32", "uint64"])
def test_standardize(chunks, layout, dtype):
    kind = dtype_of(dtype if dtype not in DTYPES else present(dtype))
    x, parts = in_layout(np.random.default_rng(0).integers(0, 2 if dtype == "bool" else 100, SHAPE).astype(kind), chunks, layout)
    mean, std = np.linspace(-3, 50, 5), np.linspace(0.5, 9, 5)
    y = cd.standardize(da.from_array(x, chunks=parts), mean, std, layout)
    result = {"uint8": "float32", "int16": "float32", "bool": "float32", "int32": "float64", "uint64": "float64"}.get(dtype, dtype)
    assert y.dtype == dtype_of(result)
    assert y.numblocks == tuple(map(len, da.core.normalize_chunks(parts, x.shape)))
    shape = [5 if letter == "C" else 1 for letter in layout]
    wanted = (x.astype(np.float64) - mean.reshape(shape)) / std.reshape(shape)
    assert_close(computed(y), wanted, rtol=TOLERANCE[result], atol=TOLERANCE[result])


def test_means_and_stds_of_every_kind():
    x = normal(SHAPE, "float32")
    lazy = da.from_array(x, chunks=(4, 3, 5, 2))
    stats = cd.channel_stats(lazy)
    mean, std = stats.compute().mean, stats.compute().std()
    wanted = cd.standardize(lazy, mean, std).compute()
    means, variances = cd.mean_var(lazy, (0, 2, 3))
    for one, other in ((stats.mean, stats.std()), (mean.tolist(), tuple(std)), (da.from_array(mean), std)):
        assert_same_bits(cd.standardize(lazy, one, other).compute(), wanted)
    assert_close(cd.standardize(lazy, means, da.sqrt(variances)).compute(), wanted, rtol=1e-6, atol=1e-6)
    assert_same_bits(cd.standardize(lazy, 3, da.from_array(np.array(2.0))).compute(), cd.standardize(lazy, [3] * 5, [2] * 5).compute())


def test_one_picture():
    x = np.random.default_rng(0).integers(0, 256, (40, 30, 3), np.uint8)
    lazy = da.from_array(x, chunks=(13, 30, 2))
    stats = cd.channel_stats(lazy, "HWC").compute()
    assert stats.to_dict() == cn.ChannelStats(layout="HWC").update(x).to_dict()
    assert_close(cd.standardize(lazy, stats.mean, stats.std(), "HWC").compute(), (x - stats.mean) / stats.std(), rtol=1e-6, atol=1e-6)


def test_a_large_mean_loses_no_digits():
    """float32 cannot hold this mean: what its rounding loses is given back."""
    x = (100_000 + np.random.default_rng(0).integers(0, 4, (4, 1, 50)) / 128).astype(np.float32)
    mean, std = x.mean(dtype=np.float64), x.std(dtype=np.float64)
    wanted = (x.astype(np.float64) - mean) / std
    lazy = da.from_array(x, chunks=(1, 1, 20))
    assert_close(cd.standardize(lazy, mean, std).compute(), wanted, rtol=1e-5, atol=1e-5)
    assert_close(cd.batch_norm(lazy, None, None, training=True, eps=1e-30).compute(), wanted, rtol=1e-5, atol=1e-5)
    constant = da.full((4, 3, 9), np.float32(0.1), chunks=(1, 2, 4))
    assert not cd.batch_norm(constant, None, None, training=True).compute().any()


def test_division_by_a_std_of_zero_is_quiet():
    y = cd.standardize(da.ones((2, 2, 3), chunks=1, dtype="f4"), [1, 0], 0).compute()
    assert np.isnan(y[:, 0]).all()
    assert np.isposinf(y[:, 1]).all()


# ---------------------------------------------------------------- norms


@pytest.mark.parametrize("layout", ["NCHW", "NHWC", "CHWN"])
def test_inference_has_the_bits_of_one_call(chunks, layout, any_dtype):
    x, parts = in_layout(normal(SHAPE, dtype_of(any_dtype)), chunks, layout)
    mean, var, weight, bias = parameters("float64" if any_dtype == "float64" else "float32")
    for rest in ((), (weight,), (weight, bias)):
        options = {"layout": layout, "activation": "silu", "backend": BACKEND, "eps": 1e-3}
        y = cd.batch_norm(da.from_array(x, chunks=parts), mean, var, *map(da.from_array, rest), **options)
        assert_same_bits(computed(y), cn.batch_norm(x, mean, var, *rest, **options))


@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
def test_training(chunks, layout, any_dtype):
    x, parts = in_layout(normal(SHAPE, dtype_of(any_dtype)), chunks, layout)
    kind = "float64" if any_dtype == "float64" else "float32"
    mean, var, weight, bias = given = parameters(kind)
    before = copy.deepcopy(given)
    options = {"training": True, "momentum": 0.3, "layout": layout, "activation": "relu", "backend": BACKEND}
    y, new_mean, new_var = cd.batch_norm(da.from_array(x, chunks=parts), da.from_array(mean), var, weight, bias, **options)
    got = computed(y, new_mean, new_var)
    np.testing.assert_array_equal(given, before)
    wanted = cn.batch_norm(x, mean, var, weight, bias, **options), mean, var
    for one, other, name in zip(got, wanted, (any_dtype, kind, kind), strict=True):
        assert one.dtype == other.dtype
        assert_close(one, other, rtol=TOLERANCE[name], atol=TOLERANCE[name])
    assert_same_bits(cd.batch_norm(da.from_array(x, chunks=parts), None, None, weight, bias, **options).compute(), got[0])


def test_training_on_nothing_and_far_out():
    running = np.zeros(3), np.ones(3)
    y, mean, var = cd.batch_norm(da.zeros((0, 3, 4), chunks=1), *running, training=True)
    assert computed(y).shape == (0, 3, 4)
    np.testing.assert_array_equal(computed(mean, var), running)
    x = np.random.default_rng(0).uniform(-1e37, 1e37, (4, 2, 9)).astype(np.float32)  # of infinite variance in float32
    y = cd.batch_norm(da.from_array(x, chunks=(2, 1, 5)), None, None, training=True).compute()
    assert_close(y, (x - x.mean((0, 2), np.float64)[:, None]) / x.astype("f8").std((0, 2))[:, None], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("normalized", [7, (7,), [8, 7], (5, 8, 7)], ids=str)
def test_layer_norm(chunks, normalized, any_dtype):
    x = normal(SHAPE, dtype_of(any_dtype))
    shape = (normalized,) if isinstance(normalized, int) else tuple(normalized)
    rng = np.random.default_rng(0)
    weight, bias = (rng.normal(size=shape).astype(dtype_of("float64" if any_dtype == "float64" else "float32")) for _ in range(2))
    lazy = da.from_array(x, chunks=chunks)
    y = cd.layer_norm(lazy, normalized, weight, da.from_array(bias, chunks=2), activation="relu", backend=BACKEND)
    assert_same_bits(computed(y), cn.layer_norm(x, normalized, weight, bias, activation="relu", backend=BACKEND))
    largest = max(math.prod(map(max, lazy.chunks)), math.prod(shape))
    assert math.prod(map(max, y.chunks)) <= largest


@pytest.mark.parametrize("mirror", [False, True, [True, False, True, True, False, False, True]], ids=["no", "all", "some"])
def test_preprocess(mirror):
    images = np.random.default_rng(0).integers(0, 256, (7, 20, 30, 3), np.uint8)
    for parts in ((7, 20, 30, 3), (3, 20, 30, 3), (2, 7, 30, 1), ((0, 7), 20, 13, 3)):
        lazy = da.from_array(images, chunks=parts)
        for options in (
            {},
            {"size": ("short", 12), "crop": ("center", 10, 11), "output_layout": "NHWC", "pad_channels": 4},
            {"dtype": np.int8, "quant": (0.05, 3), "swap_rb": True, "crop": (1, 2, 10, 9)},
        ):
            y = cd.preprocess(lazy, list(cn.IMAGENET_MEAN), np.array(cn.IMAGENET_STD), mirror=mirror, backend=BACKEND, **options)
            wanted = cn.preprocess(images, cn.IMAGENET_MEAN, cn.IMAGENET_STD, mirror=mirror, backend=BACKEND, **options)
            assert_same_bits(computed(y), wanted)
            assert set(map(len, y.chunks[1:])) == {1}
    assert_same_bits(cd.preprocess(lazy[0], 0, 1, backend=BACKEND).compute(), cn.preprocess(images[0], 0, 1, backend=BACKEND))
