"""Preprocessing beside OpenCV, PyTorch, NumPy and Pillow, and the limit of its bytes: ``python benchmarks/preprocess.py [case ...]``.

Results are checked against the float64 formula first. Then everybody takes turns, in random order, with a pause between them; printed are
the fastest run, GB/s of the bytes that have to move (pictures read, result written), and the share of the limit: the same bytes read and
written with streaming stores, in the same rounds. PyTorch "at its best" writes into buffers it has, by the fastest of three ways.
"""

from __future__ import annotations

import random
import sys
import time

import numpy as np

import cpunorm as cn
from cpunorm import backends, machine, settings

MEAN, STD = np.array(cn.IMAGENET_MEAN), np.array(cn.IMAGENET_STD)
THREADS = settings.default_threads()
SECONDS, PAUSE, LEAST = 4.0, 0.003, 5  # a case; between two runs; turns of each
CASES = {
    "32 x 224": ((32, 224, 224, 3), None),
    "64 x 640": ((64, 640, 640, 3), None),
    "1 x 224": ((1, 224, 224, 3), None),
    "1080p to 224": ((1, 1080, 1920, 3), (224, 224)),
}


def ours(x, size, layout, backend):
    plan = cn.Preprocessor(MEAN, STD, output_layout=layout, size=size, backend=backend)
    out = np.zeros_like(plan(x))
    return lambda: plan(x, out=out)


def numpy_idiom(x, size, layout):
    """As one would write it: five passes."""

    def run():
        y = (x.astype(np.float32) / np.float32(255) - MEAN.astype(np.float32)) / STD.astype(np.float32)
        return np.ascontiguousarray(y.transpose(0, 3, 1, 2)) if layout == "NCHW" else y

    return run


def pillow_idiom(x, size, layout):
    from PIL import Image

    pictures = [Image.fromarray(picture) for picture in x]

    def run():
        small = np.stack([np.asarray(picture.resize(size[::-1], Image.Resampling.BILINEAR)) for picture in pictures])
        return numpy_idiom(small, None, layout)()

    return run


def opencv(x, size, layout):
    import cv2

    cv2.setNumThreads(THREADS)
    settings = cv2.dnn.Image2BlobParams()
    settings.scalefactor = (*(1 / (255 * STD)), 1.0)
    settings.mean = (*(255 * MEAN), 0.0)
    settings.ddepth = cv2.CV_32F
    settings.datalayout = cv2.DATA_LAYOUT_NCHW if layout == "NCHW" else cv2.DATA_LAYOUT_NHWC
    pictures = list(x)
    return lambda: cv2.dnn.blobFromImagesWithParams(pictures, settings)


def torch_ways(x, size, layout):
    """Subtract and multiply into a buffer; copy, subtract and multiply; one fused addcmul of what was widened into a buffer."""
    import torch

    torch.set_num_threads(THREADS)
    source = torch.from_numpy(x).permute(0, 3, 1, 2)
    memory = torch.contiguous_format if layout == "NCHW" else torch.channels_last
    out = torch.zeros(source.shape).to(memory_format=memory)
    wide = torch.zeros(source.shape).to(memory_format=memory)
    center = torch.tensor(255 * MEAN, dtype=torch.float32).reshape(1, 3, 1, 1)
    scale = torch.tensor(1 / (255 * STD), dtype=torch.float32).reshape(1, 3, 1, 1)
    shift = -center * scale

    def result():
        return (out if layout == "NCHW" else out.permute(0, 2, 3, 1)).numpy()

    def subtract():
        torch.sub(source, center, out=out).mul_(scale)
        return result()

    def copy():
        out.copy_(source).sub_(center).mul_(scale)
        return result()

    def fused():
        wide.copy_(source)
        torch.addcmul(shift, wide, scale, out=out)
        return result()

    return {"PyTorch sub, mul": subtract, "PyTorch copy, sub, mul": copy, "PyTorch copy, addcmul": fused}


def limit(x, y):
    from cpunorm import native

    source = x.reshape(-1)[: x.nbytes // 4 * 4].view(np.float32)
    to = np.zeros(y.size, np.float32)
    return lambda: native.expand_limit(to, source, THREADS)


def contestants(x, size, layout):
    found = {name: ours(x, size, layout, name) for name in ("numba", "c") if _loads(name)}
    if size:
        return found | {"Pillow, NumPy": pillow_idiom(x, size, layout)}
    found["NumPy"] = numpy_idiom(x, size, layout)
    for make in (opencv, torch_ways):
        try:
            made = make(x, size, layout)
        except ImportError as problem:
            print(f"skipped: {problem}")
            continue
        found |= made if isinstance(made, dict) else {"OpenCV": made}
    return found


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
            before = time.perf_counter()
            runs[name]()
            taken[name].append(time.perf_counter() - before)
    return {name: min(times) for name, times in taken.items()}


def main():
    print(f"{machine.cpu_name()}, {THREADS} threads, {time.strftime('%Y-%m-%d')}")
    rng = np.random.default_rng(0)
    for name in [case for case in CASES if not sys.argv[1:] or any(part in case for part in sys.argv[1:])]:
        shape, size = CASES[name]
        x = rng.integers(0, 256, shape, dtype=np.uint8)
        for layout in ("NCHW", "NHWC"):
            runs = contestants(x, size, layout)
            right = cn.preprocess(x[:1], MEAN, STD, output_layout=layout, size=size, backend="numpy")
            for who, run in runs.items():
                worst = np.abs(np.asarray(run())[:1] - right).max()
                assert worst < (0.02 if size else 2e-6), f"{who} is wrong by {worst}"
            y = runs["numba"]() if "numba" in runs else right
            moved = x.nbytes + y.nbytes
            if _loads("c"):
                runs["limit"] = limit(x, y)
            best = measure(runs, SECONDS)
            print(f"\n{name}, NHWC uint8 -> {layout} float32, {moved / 1e6:.1f} MB")
            for who, seconds in sorted(best.items(), key=lambda item: item[1]):
                share = f"{100 * best['limit'] / seconds:6.0f} % of the limit" if "limit" in best else ""
                ratios = "  ".join(f"{seconds / best[one]:5.1f} x {one}" for one in ("numba", "c") if one in best)
                print(f"  {who:<24}{seconds * 1e6:10.1f} us{moved / seconds / 1e9:8.1f} GB/s{share}   {ratios}")


if __name__ == "__main__":
    main()
