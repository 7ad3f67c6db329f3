"""Preprocessing beside OpenCV, PyTorch, NumPy and Pillow, and the limit of its bytes: ``python benchmarks/preprocess.py [case ...]``.

Results are checked against the float64 formula first. Then everybody takes turns, in random order, with a pause between them, of two
milliseconds or one call each (the first one after a pause finds nothing in the caches); printed are the fastest call, GB/s of the bytes
that have to move (pictures read, result written), and the share of the limit: the same bytes read and written, by ordinary or streaming
stores, in the same rounds. PyTorch writes into buffers it has, in three ways.
"""

from __future__ import annotations

import random
import sys
import time

import numpy as np

import cpunorm as cn
from cpunorm import backends, machine, settings
from cpunorm.compare import preprocessing
from cpunorm.compare.contestants import NUMPY
from cpunorm.compare.preprocessing import MEAN, STD

THREADS = settings.default_threads()
SECONDS, PAUSE, TURN, LEAST = 4.0, 0.006, 0.002, 5  # a case; between two turns; one; turns of each
CASES = {
    "32 x 224": ((32, 224, 224, 3), None),
    "64 x 640": ((64, 640, 640, 3), None),
    "1 x 224": ((1, 224, 224, 3), None),
    "1080p to 224": ((1, 1080, 1920, 3), (224, 224)),
}


def pillow_idiom(x, size, layout):
    from PIL import Image

    pictures = [Image.fromarray(picture) for picture in x]

    def run():
        small = np.stack([np.asarray(picture.resize(size[::-1], Image.Resampling.BILINEAR)) for picture in pictures])
        return preprocessing.numpy(small, layout)()

    return run


def contestants(x, size, layout, out):
    found = {name: preprocessing.ours(x, layout, name, THREADS, out, size) for name in ("numba", "c") if _loads(name)}
    if size:
        return found | {"Pillow, NumPy": pillow_idiom(x, size, layout)}
    found[NUMPY] = preprocessing.numpy(x, layout)
    found |= preprocessing.torch(x, layout, THREADS)
    blob = preprocessing.opencv(x, layout, THREADS)
    return found if blob is None else found | {preprocessing.OPENCV: blob}


def _loads(backend):
    try:
        backends.load(backend)
    except ImportError as problem:
        print(f"skipped: {problem}")
        return False
    return True


def measure(runs, seconds):
    taken = {name: [] for name in runs}
    start = time.perf_counter()
    shuffle = random.Random(0).shuffle
    while time.perf_counter() - start < seconds or min(map(len, taken.values())) < LEAST:
        order = list(runs)
        shuffle(order)
        for name in order:
            time.sleep(PAUSE)  # threads of others spin for a while
            end = time.perf_counter() + TURN
            calls = []
            while not calls or time.perf_counter() < end:
                before = time.perf_counter()
                runs[name]()
                calls.append(time.perf_counter() - before)
            taken[name].append(min(calls))
    return {name: min(times) for name, times in taken.items()}


def main():
    print(f"{machine.cpu_name()}, {THREADS} threads, {time.strftime('%Y-%m-%d')}")
    rng = np.random.default_rng(0)
    for name in [case for case in CASES if not sys.argv[1:] or any(part in case for part in sys.argv[1:])]:
        shape, size = CASES[name]
        x = rng.integers(0, 256, shape, dtype=np.uint8)
        for layout in ("NCHW", "NHWC"):
            right = cn.preprocess(x[:1], MEAN, STD, output_layout=layout, size=size, backend="numpy")
            y = np.zeros((len(x), *right.shape[1:]), np.float32)
            runs = contestants(x, size, layout, y)
            for who, run in runs.items():
                worst = np.abs(np.asarray(run())[:1] - right).max()
                assert worst < (0.02 if size else 2e-6), f"{who} is wrong by {worst}"
            moved = x.nbytes + y.nbytes
            limits = {}
            if _loads("c"):
                runs |= (limits := preprocessing.limit(x, np.zeros_like(y), THREADS))
            best = measure(runs, SECONDS)
            least = min((best.pop(name) for name in limits), default=None)
            print(f"\n{name}, NHWC uint8 -> {layout} float32, {moved / 1e6:.1f} MB")
            for who, seconds in sorted(best.items(), key=lambda item: item[1]):
                share = f"{100 * least / seconds:6.0f} % of the limit" if least else ""
                ratios = "  ".join(f"{seconds / best[one]:5.1f} x {one}" for one in ("numba", "c") if one in best)
                print(f"  {who:<24}{seconds * 1e6:10.1f} us{moved / seconds / 1e9:8.1f} GB/s{share}   {ratios}")


if __name__ == "__main__":
    main()
