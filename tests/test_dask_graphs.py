"""What `cpunorm.dask` makes before anything is computed: graphs, their tasks, errors. Then Zarr, and a cluster that loses workers."""

import os
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from helpers import assert_close, normal

import cpunorm as cn
from cpunorm import call, dispatch, moments

dask = pytest.importorskip("dask", reason="cpunorm.dask needs dask")
import dask.array as da  # noqa: E402

import cpunorm.dask as cd  # noqa: E402
from cpunorm.dask import tasks  # noqa: E402

pytestmark = [pytest.mark.peer, pytest.mark.usefixtures("dask_in_this_thread")]
SHAPE = (6, 5, 8, 7)  # N, C, H, W


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
    environment = {"OMP_NUM_THREADS": "1", "DASK_DISTRIBUTED__WORKER__MULTIPROCESSING_METHOD": "forkserver"}  # imports distributed once
    done = subprocess.run(words, capture_output=True, text=True, timeout=180, check=False, env=os.environ | environment)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("one worker killed half way") == 2
    assert "WRONG" not in done.stdout
    assert not list(tmp_path.iterdir())
