"""A Zarr data set of pictures, larger than memory if you like, normalized by its own statistics on a local cluster of processes.

    pip install "cpunorm[dask]"
    python examples/dask_zarr.py                             # of pictures made for the purpose, in a temporary folder
    python examples/dask_zarr.py --pictures 100000           # 5 GB of them, and 20 GB of result
    python examples/dask_zarr.py --source x.zarr --target y.zarr      # yours: NHWC, of any dtype

The data is read twice: once for mean and standard deviation a channel, which integers have exactly, once for (x - mean) / std.
"""

import argparse
import tempfile
from pathlib import Path

import dask
import dask.array as da
import numpy as np
import zarr
from distributed import Client, LocalCluster

import cpunorm as cn
import cpunorm.dask as cd


def make_pictures(path, count, chunk=64):
    """Gradients with noise, uint8; and their statistics, counted on the way."""
    rng, stats = np.random.default_rng(0), cn.ChannelStats(layout="NHWC")
    array = zarr.create_array(path, shape=(count, 128, 128, 3), chunks=(chunk, 128, 128, 3), dtype="u1")
    ramp = np.linspace(0, 200, 128)[:, None]
    for start in range(0, count, chunk):
        slope = rng.uniform(0.3, 1, (min(chunk, count - start), 1, 1, 3))
        block = (ramp * slope + rng.integers(0, 40, (len(slope), 128, 128, 3))).astype(np.uint8)
        array[start : start + len(block)] = block
        stats.update(block)
    return stats


def normalize(source, target, layout):
    """From Zarr to Zarr; returns the statistics."""
    x = da.from_zarr(source)
    stats = cd.channel_stats(x, layout).compute()
    cd.standardize(x, stats.mean, stats.std(), layout).to_zarr(target)
    return stats


def main():
    """Make pictures if none are given, normalize them, and look at the result."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--source", help="a Zarr array, NHWC")
    parser.add_argument("--target", help="where to write; a folder that is not there")
    parser.add_argument("--pictures", type=int, default=512, help="to make where no source is given")
    parser.add_argument("--workers", type=int, default=2)
    arguments = parser.parse_args()
    if (arguments.source is None) != (arguments.target is None):
        parser.error("--source and --target go together")
    with tempfile.TemporaryDirectory() as folder:
        source, target = arguments.source or str(Path(folder) / "x.zarr"), arguments.target or str(Path(folder) / "y.zarr")
        made = None if arguments.source else make_pictures(source, arguments.pictures)
        # One thread a worker: a task of cpunorm computes on one, and processes share no lock.
        with LocalCluster(n_workers=arguments.workers, threads_per_worker=1, dashboard_address=None) as cluster, Client(cluster):
            stats = normalize(source, target, "NHWC")
            y = da.from_zarr(target)
            mean, var = dask.compute(*cd.mean_var(y, (0, 1, 2)))
        if made is not None and made.to_dict() != stats.to_dict():
            raise SystemExit("the cluster has counted something else")
        print(f"{y.shape[0]} pictures in {y.npartitions} chunks, {stats.count} pixels")
        print(f"mean = {stats.mean.round(6).tolist()}, std = {stats.std().round(6).tolist()}")
        print(f"of what was written: mean {np.abs(mean).max():.0e}, largest distance of the variance from 1: {np.abs(var - 1).max():.0e}")


if __name__ == "__main__":
    main()
