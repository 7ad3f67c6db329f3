"""`cpunorm.dask` against the NumPy calls on the whole array: chunks that cut any axis, lazily, with every check at the call."""

import copy
import math
import os
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from helpers import DTYPES, assert_close, assert_same_bits, normal, present
from hypothesis import given, settings
from hypothesis import strategies as st

import cpunorm as cn
from cpunorm import call, dispatch, moments
from cpunorm.samples import arrange, dtype_of

dask = pytest.importorskip("dask", reason="cpunorm.dask needs dask")
import dask.array as da  # noqa: E402

import cpunorm.dask as cd  # noqa: E402
from cpunorm.dask import tasks  # noqa: E402

pytestmark = pytest.mark.peer
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


@pytest.fixture(autouse=True)
def _one_by_one():
    with dask.config.set(scheduler="synchronous"):
        yield


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


# ---------------------------------------------------------------- lazily


def unread(shape, chunks, dtype="float32"):
    """An array that nobody may read."""

    def read(_):
        raise AssertionError("this was computed")

    return da.zeros(shape, chunks=chunks, dtype=dtype).map_blocks(read, dtype=dtype, meta=np.empty((0,) * len(shape), dtype))


EVERY = {
    "channel_stats": lambda x: cd.channel_stats(x),
    "mean_var": lambda x: cd.mean_var(x, (0, 2, 3)),
    "standardize": lambda x: cd.standardize(x, cd.channel_stats(x).mean, 2),
    "batch_norm": lambda x: cd.batch_norm(x, np.zeros(4, "f4"), np.ones(4, "f4")),
    "batch_norm training": lambda x: cd.batch_norm(x, np.zeros(4, "f4"), np.ones(4, "f4"), training=True),
    "layer_norm": lambda x: cd.layer_norm(x, x.shape[1:]),
    "preprocess": lambda x: cd.preprocess(x, 0, 1),
    "fit_whitening": lambda x: cd.fit_whitening(x.reshape(x.shape[0], -1)),
}


@pytest.mark.parametrize("make", EVERY.values(), ids=EVERY)
def test_nothing_is_computed_before_it_is_asked_for(make):
    made = make(unread((40, 4, 6, 5), (3, 2, 4, 5)))
    with pytest.raises(AssertionError, match="this was computed"):
        dask.compute(made)


@pytest.mark.parametrize("make", EVERY.values(), ids=EVERY)
def test_no_task_takes_many_blocks(make):
    """The graph stays as wide as the array is: a task takes 8 others at most (a tree over three axes), beside its parameters."""
    chunks = (1, 2, 6, 5) if make is not EVERY["fit_whitening"] else (1, 4, 6, 5)
    for made in (lambda found: found if isinstance(found, tuple) else (found,))(make(da.zeros((200, 4, 6, 5), chunks=chunks, dtype="f4"))):
        graph = dict(made.__dask_graph__())
        assert len(graph) > 200
        assert max(len(dask.core.get_dependencies(graph, key)) for key in graph) <= 10
        if made.ndim == 4 if isinstance(made, da.Array) else False:
            assert made.numblocks[0] >= 100


def test_the_same_call_has_the_same_keys():
    x = da.zeros((8, 4, 6, 5), chunks=(3, 2, 4, 5), dtype="f4")
    for name, make in EVERY.items():
        first, second = ([one] if not isinstance(one, tuple) else one for one in (make(x), make(x)))
        assert [list(one.__dask_keys__()) for one in first] == [list(one.__dask_keys__()) for one in second], name


def test_tasks_leave_their_inputs_as_they_are():
    """When a worker is lost, what it had merged is merged again from the same parts."""
    rng = np.random.default_rng(0)
    blocks = [rng.normal(size=(9, 3)) for _ in range(3)]
    empty = cn.Whitening(eps=0.5)
    for make, merge in (
        (lambda x: tasks.block_moments(x, (0,), True, backend=None), lambda parts: tasks.merged([[parts[:2]], [parts[2:]]])),
        (lambda x: tasks.block_moments((9 * x).astype(int), (0,), True, backend=None), tasks.merged),
        (lambda x: tasks.fitted(x, (0, 1), True, empty=empty), lambda parts: tasks.all_fitted(parts, (0, 1), True, empty=empty)),
    ):
        parts = [make(x) for x in blocks]
        before = pickle.dumps(parts)
        first, second = merge(parts), merge(parts)
        assert pickle.dumps(parts) == before
        assert pickle.dumps(first) == pickle.dumps(second)
    assert empty.n_samples_seen_ == 0
    x = blocks[0].copy()
    x.flags.writeable = False  # as what comes from another worker
    tasks.standardized(x, mean=np.zeros(3), std=np.ones(3), channel=1, dtype=x.dtype, backend=None)


def test_every_task_has_one_thread_and_the_backend_of_the_call(monkeypatch):
    seen = []

    def recorded(threads):
        seen.append(threads)
        return found(threads)

    found = dispatch.resources
    monkeypatch.setattr(dispatch, "resources", recorded)
    x = da.from_array(normal((5, 4, 13, 11), "float32"), chunks=(2, 4, 13, 11))
    for name, make in EVERY.items():
        before = len(seen)
        call._PREPARED.clear()  # plans that were made before
        dask.compute(make(x))
        assert len(seen) > before or name == "fit_whitening"
    assert set(seen) == {1}

    asked = []
    of_floats = moments.of_floats
    monkeypatch.setattr(
        moments, "of_floats", lambda x, axes, backend, threads: asked.append(backend) or of_floats(x, axes, backend, threads)
    )
    with cn.config(backend="numpy"):
        lazy = cd.mean_var(x)
    dask.compute(*lazy)
    assert set(asked) == {"numpy"}
    dask.compute(*cd.mean_var(x))
    assert asked[-1] == tasks.native()


# ---------------------------------------------------------------- errors, at the call

X = SHAPE, (2, 5, 8, 7)


@pytest.mark.parametrize(
    ("call", "error", "fragments"),
    [
        (lambda: cd.channel_stats(np.ones(SHAPE)), TypeError, ["dask.channel_stats", "dask.array.Array", "ndarray"]),
        (lambda: cd.channel_stats(unread(*X), "NHW"), ValueError, ["layout", "'NHW'"]),
        (lambda: cd.channel_stats(unread(*X), "NCL"), ValueError, ["3 axes", str(SHAPE)]),
        (lambda: cd.channel_stats(unread(*X, "complex64")), TypeError, ["complex64"]),
        (lambda: cd.channel_stats(unread(*X), backend="cuda"), ValueError, ["backend", "'cuda'"]),
        (lambda: cd.mean_var(unread(*X), 4), np.exceptions.AxisError, ["dask.mean_var", "4"]),
        (lambda: cd.mean_var(unread(*X), (1, -3)), ValueError, ["different axes"]),
        (lambda: cd.mean_var(unread(*X), ddof="1"), TypeError, ["ddof"]),
        (lambda: cd.standardize(unread(*X), np.ones(4), 1), ValueError, ["mean", "(5,)", "(4,)"]),
        (lambda: cd.standardize(unread(*X), 0, da.ones((5, 1))), ValueError, ["std", "(5, 1)"]),
        (lambda: cd.standardize(unread(*X), "zero", 1), TypeError, ["mean", "'zero'"]),
        (lambda: cd.standardize(unread(*X, "longdouble"), 0, 1), TypeError, ["float128"]),
        (lambda: cd.batch_norm(unread(*X), None, None), ValueError, ["dask.batch_norm", "running_mean"]),
        (lambda: cd.batch_norm(unread(*X), np.ones(5, "f4"), None, training=True), ValueError, ["running_var"]),
        (lambda: cd.batch_norm(unread(*X), np.ones(4, "f4"), np.ones(5, "f4")), ValueError, ["running_mean", "(5,)", "(4,)"]),
        (lambda: cd.batch_norm(unread(*X), da.ones(5), da.ones(5)), TypeError, ["running_mean", "float32", "float64"]),
        (lambda: cd.batch_norm(unread(*X), None, None, [1] * 5, training=True), TypeError, ["weight", "list"]),
        (lambda: cd.batch_norm(unread(*X, "uint8"), None, None, training=True), TypeError, ["uint8"]),
        (lambda: cd.batch_norm(unread(*X), None, None, training=True, layout="NCL"), ValueError, ["NCL", str(SHAPE)]),
        (lambda: cd.batch_norm(unread(*X), None, None, training=1), TypeError, ["training"]),
        (lambda: cd.batch_norm(unread(*X), None, None, training=True, eps=0), ValueError, ["eps"]),
        (lambda: cd.batch_norm(unread(*X), None, None, training=True, momentum=None), TypeError, ["momentum"]),
        (lambda: cd.batch_norm(unread(*X), None, None, training=True, activation="tanh"), ValueError, ["'tanh'"]),
        (lambda: cd.batch_norm(unread((1, 3), (1, 2)), None, None, training=True), ValueError, ["more than 1 value"]),
        (lambda: cd.layer_norm(unread(*X), (8, 8)), ValueError, ["dask.layer_norm", "(8, 8)"]),
        (lambda: cd.layer_norm(unread(*X), 7, np.ones(8, "f4")), ValueError, ["weight", "(7,)", "(8,)"]),
        (lambda: cd.layer_norm(unread(*X), 7, eps="small"), TypeError, ["eps"]),
        (lambda: cd.preprocess(unread(*X), 0, 1, mirror=[True]), ValueError, ["mirror", "6", "1"]),
        (lambda: cd.preprocess(unread(*X), 0, 1, crop=(0, 0, 99, 1)), ValueError, ["crop", "99"]),
        (lambda: cd.preprocess(unread(*X), da.zeros(7), 1), TypeError, ["mean", "compute"]),
        (lambda: cd.preprocess(unread((6, 5), (2, 5)), 0, 1), ValueError, ["(6, 5)"]),
        (lambda: cd.preprocess(unread(*X), 0, 1, threads=2), TypeError, ["threads"]),
        (lambda: cd.fit_whitening(unread(*X)), ValueError, ["(samples, features)", str(SHAPE)]),
        (lambda: cd.fit_whitening(unread((9, 4), 3), n_components=5), ValueError, ["n_components", "5"]),
        (lambda: cd.fit_whitening(unread((9, 4), 3, "int64")), TypeError, ["int64"]),
        (lambda: cd.fit_whitening(unread((9, 4), 3), "ica"), ValueError, ["'ica'"]),
    ],
)
def test_refused_before_anything_is_computed(call, error, fragments):
    with pytest.raises(error) as caught:
        call()
    for fragment in fragments:
        assert fragment in str(caught.value)


@pytest.mark.parametrize("make", EVERY.values(), ids=EVERY)
def test_unknown_chunks_are_refused(make):
    x = da.ones((6, 4, 8, 7), chunks=(2, 4, 8, 7), dtype="f4")
    x = x[x[:, 0, 0, 0] > 0]
    if make is EVERY["fit_whitening"]:
        make, x = cd.fit_whitening, x[:, :, 0, 0]
    with pytest.raises(ValueError, match=r"unknown ones on axis 0; \w+\.compute_chunk_sizes\(\)"):
        make(x)
    make(x.compute_chunk_sizes())


# ---------------------------------------------------------------- Zarr, and a cluster


def test_zarr_to_zarr(tmp_path):
    zarr = pytest.importorskip("zarr")
    x = np.random.default_rng(0).integers(0, 256, (20, 12, 10, 3), np.uint8)
    zarr.create_array(tmp_path / "x.zarr", data=x, chunks=(6, 12, 5, 3))
    lazy = da.from_zarr(tmp_path / "x.zarr")
    stats = cd.channel_stats(lazy, "NHWC").compute(scheduler="threads")
    assert stats.to_dict() == cn.ChannelStats(layout="NHWC").update(x).to_dict()
    cd.standardize(lazy, stats.mean, stats.std(), "NHWC").to_zarr(tmp_path / "y.zarr")
    written = zarr.open_array(tmp_path / "y.zarr")
    assert written.chunks == (6, 12, 5, 3)
    assert_close(written[:], (x - stats.mean) / stats.std(), rtol=1e-6, atol=1e-6)


def test_a_cluster_that_loses_workers(tmp_path):
    """benchmarks/dask_cluster.py, scaled down: 8 GB as 40 MB."""
    for module in ("distributed", "zarr"):
        pytest.importorskip(module)
    script = Path(__file__).parents[1] / "benchmarks" / "dask_cluster.py"
    words = [sys.executable, "-W", "error", str(script), "--gigabytes", "0.04", "--chunk", "0.5", "--folder", str(tmp_path)]
    done = subprocess.run(words, capture_output=True, text=True, timeout=180, check=False, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("one worker killed half way") == 2
    assert "WRONG" not in done.stdout
    assert not list(tmp_path.iterdir())
