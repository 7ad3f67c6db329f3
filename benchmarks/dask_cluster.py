"""Data larger than memory: a Zarr array on a local cluster of processes with a memory limit each, one of them killed half way.

Makes an array of float32 in a temporary folder (and its statistics by NumPy in float64, chunk by chunk, on the way), then

1. `channel_stats` of it, 2. the same with a worker killed half way: the same bits, 3. `standardize` to another Zarr array, with a worker
killed half way too, and some of its blocks compared with NumPy's.

Prints times, errors, and the peak memory of each worker process, which has to stay below 60% of the limit: there Dask starts to write
blocks to disk. Exit 1 where something is wrong.

python benchmarks/dask_cluster.py --gigabytes 8 [--workers 2] [--limit 1] [--folder /tmp]
"""

import argparse
import os
import shutil
import signal
import sys
import tempfile
import threading
import time
from pathlib import Path

import dask.array as da
import numpy as np
import zarr
from distributed import Client, LocalCluster

import cpunorm.dask as cd

CHANNELS, SIDE = 8, 128
TOLERANCE = 1e-9  # of the statistics, relative
EPSILON = 1e-5  # of the standardized values, which are float32
SPILLED = 0.6  # of the limit: distributed.worker.memory.target


def make(path, gigabytes, megabytes):
    """The array, and its mean and variance by NumPy: of each chunk in two passes, of all of them by the definition."""
    image = CHANNELS * SIDE * SIDE * 4
    images, each = max(int(gigabytes * 1e9 / image), 4), max(int(megabytes * 1e6 / image), 1)
    array = zarr.create_array(path, shape=(images, CHANNELS, SIDE, SIDE), chunks=(each, CHANNELS, SIDE, SIDE), dtype="f4", compressors=None)
    center, spread = np.linspace(-100, 300, CHANNELS, dtype=np.float32), np.geomspace(1, 200, CHANNELS, dtype=np.float32)
    counts, means, m2s = [], [], []
    for start in range(0, images, each):
        rng = np.random.Generator(np.random.SFC64(start))
        x = rng.random((min(each, images - start), CHANNELS, SIDE, SIDE), np.float32)
        x *= spread[:, None, None]
        x += (center + np.float32(start / images) * spread)[:, None, None]  # the mean drifts
        array[start : start + len(x)] = x
        rows = x.transpose(1, 0, 2, 3).reshape(CHANNELS, -1).astype(np.float64)
        counts.append(rows.shape[1])
        means.append(rows.mean(axis=1))
        rows -= means[-1][:, None]
        m2s.append(np.einsum("cn,cn->c", rows, rows))
    n = np.array(counts)[:, None]
    mean = (n * means).sum(axis=0) / n.sum()
    return mean, (np.sum(m2s, axis=0) + (n * np.square(means - mean)).sum(axis=0)) / n.sum()


class Peaks(threading.Thread):
    """The largest resident memory (VmHWM) of every worker process that there was."""

    def __init__(self, cluster):
        super().__init__(daemon=True)
        self.cluster, self.peaks, self.ended = cluster, {}, threading.Event()

    def pids(self):
        nannies = list(self.cluster.workers.values())
        return [nanny.process.pid for nanny in nannies if nanny.process is not None and nanny.process.pid]

    def run(self):
        while not self.ended.wait(0.02):
            for pid in self.pids():
                try:
                    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
                except OSError:
                    continue
                for line in lines:
                    if line.startswith("VmHWM"):
                        self.peaks[pid] = int(line.split()[1]) * 1024


def left(scheduler):
    """Tasks that are not done."""
    return sum(task.state in ("waiting", "queued", "processing", "no-worker") for task in list(scheduler.tasks.values()))


def computed(client, cluster, peaks, what, collection, *, kill):
    """The result. `kill` kills a worker process when half of the tasks are done, as an operating system does."""
    start = time.perf_counter()
    future = client.compute(collection)
    victim = most = 0
    while kill and not victim:
        now = left(cluster.scheduler)
        most = max(most, now)
        if most > 4 and now <= most / 2:
            victim = peaks.pids()[0]
            os.kill(victim, signal.SIGKILL)
        elif future.done():
            sys.exit("all was done before a worker could be killed; take more --gigabytes")
        time.sleep(0.002)
    result = future.result()
    print(f"{what + (', one worker killed half way' if kill else ''):<60}{time.perf_counter() - start:8.1f} s", flush=True)
    return result


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--gigabytes", type=float, default=8)
    parser.add_argument("--chunk", type=float, default=32, help="MB")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--limit", type=float, default=1, help="GB of memory a worker")
    parser.add_argument("--folder", help="where the temporary folder is made")
    arguments = parser.parse_args()
    room = shutil.disk_usage(arguments.folder or tempfile.gettempdir()).free
    if room < 2.2e9 * arguments.gigabytes:
        sys.exit(f"{2.2 * arguments.gigabytes:.1f} GB are needed for two arrays, {room / 1e9:.1f} are free; --folder takes another place")
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        sys.exit(run(arguments, f"{folder}/x.zarr", f"{folder}/y.zarr"))


def run(arguments, source, target):
    start = time.perf_counter()
    mean, variance = make(source, arguments.gigabytes, arguments.chunk)
    x = da.from_zarr(source)
    print(f"{x.nbytes / 1e9:.2f} GB {x.dtype} in {x.npartitions} chunks, {arguments.workers} workers of {arguments.limit} GB")
    print(f"{'made, with its statistics by NumPy in float64':<60}{time.perf_counter() - start:8.1f} s", flush=True)
    wrong = []

    def expect(what, error, most):
        print(f"   {what:<57}{error:10.1e}{'' if error <= most else f'   WRONG: more than {most}'}", flush=True)
        if not error <= most:
            wrong.append(what)

    limit = int(arguments.limit * 1e9)
    with (
        LocalCluster(n_workers=arguments.workers, threads_per_worker=1, memory_limit=limit, dashboard_address=None) as cluster,
        Client(cluster) as client,
    ):
        peaks = Peaks(cluster)
        peaks.start()
        client.wait_for_workers(arguments.workers)
        stats = computed(client, cluster, peaks, "channel_stats", cd.channel_stats(x), kill=False)
        expect("largest relative error of the mean", np.abs(stats.mean / mean - 1).max(), TOLERANCE)
        expect("largest relative error of the variance", np.abs(stats.variance() / variance - 1).max(), TOLERANCE)
        client.wait_for_workers(arguments.workers)
        again = computed(client, cluster, peaks, "channel_stats", cd.channel_stats(x), kill=True)
        expect("difference of any bit", float(again.to_dict() != stats.to_dict()), 0)
        client.wait_for_workers(arguments.workers)
        y = cd.standardize(x, stats.mean, stats.std())
        made = zarr.create_array(target, shape=y.shape, chunks=y.chunksize, dtype=y.dtype, compressors=None)
        # (`to_zarr` would join chunks to 128 MB before it writes to an array that is there: 660 MB a worker instead of 210)
        computed(client, cluster, peaks, "standardize to Zarr", y.store(made, lock=False, compute=False), kill=True)
        peaks.ended.set()
        peaks.join()
    written, given, rows = zarr.open_array(target, mode="r"), zarr.open_array(source, mode="r"), x.chunks[0]
    error = 0.0
    for chunk in np.unique(np.linspace(0, len(rows) - 1, 24).astype(int)):
        where = slice(sum(rows[:chunk]), sum(rows[: chunk + 1]))
        wanted = (given[where].astype(np.float64) - mean[:, None, None]) / np.sqrt(variance)[:, None, None]
        error = max(error, float(np.abs(written[where] - wanted).max()))
    expect("largest error of a value in 24 chunks", error, EPSILON)
    for pid, peak in sorted(peaks.peaks.items()):
        expect(f"peak memory of worker process {pid}, MB of {limit / 1e6:.0f}", peak / 1e6, SPILLED * limit / 1e6)
    expect("worker processes that were started anew", float(len(peaks.peaks) - arguments.workers - 2), 0)
    return 1 if wrong else 0


if __name__ == "__main__":
    main()
