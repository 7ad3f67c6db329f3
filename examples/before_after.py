"""The usual NumPy code for preparing pictures and for batch norm, and the same in one call: times, and the largest difference.

python examples/before_after.py --batch 32
"""

import argparse
import time

import numpy as np

import cpunorm as cn


def timed(run, calls):
    """The best of some calls, in ms, and the result; one call before them compiles."""
    result = run()
    best = np.inf
    for _ in range(calls):
        start = time.perf_counter()
        result = run()
        best = min(best, time.perf_counter() - start)
    return 1e3 * best, result


def report(name, before, after, calls, tolerance):
    """Time both, compare the results, print a line."""
    (slow, wanted), (fast, got) = timed(before, calls), timed(after, calls)
    difference = float(np.abs(got - wanted).max())
    print(f"{name:<14} before {slow:8.2f} ms   after {fast:8.2f} ms   {slow / fast:5.1f} times   largest difference {difference:.1e}")
    if not difference <= tolerance:
        raise SystemExit(f"{name}: expected a difference of no more than {tolerance}")


def main():
    """Two jobs, before and after."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--side", type=int, default=224)
    parser.add_argument("--calls", type=int, default=5)
    arguments = parser.parse_args()
    rng = np.random.default_rng(0)

    pictures = rng.integers(0, 256, (arguments.batch, arguments.side, arguments.side, 3), np.uint8)
    mean, std = np.array(cn.IMAGENET_MEAN, np.float32), np.array(cn.IMAGENET_STD, np.float32)

    def prepare():
        return np.ascontiguousarray(((pictures.astype(np.float32) / 255 - mean) / std).transpose(0, 3, 1, 2))

    plan, buffer = cn.Preprocessor(cn.IMAGENET_MEAN, cn.IMAGENET_STD), np.empty((arguments.batch, 3, *pictures.shape[1:3]), np.float32)
    report("preprocessing", prepare, lambda: plan(pictures, out=buffer), arguments.calls, 2e-6)

    x = rng.normal(3, 2, (arguments.batch, 64, arguments.side // 4, arguments.side // 4)).astype(np.float32)
    center, variance, weight, bias = (rng.uniform(0.5, 2, 64).astype(np.float32) for _ in range(4))
    shape, y = (1, 64, 1, 1), np.empty_like(x)

    def normalize():
        scaled = (x - center.reshape(shape)) / np.sqrt(variance.reshape(shape) + np.float32(1e-5))
        return np.maximum(scaled * weight.reshape(shape) + bias.reshape(shape), 0)

    def normalize_here():
        return cn.batch_norm(x, center, variance, weight, bias, activation="relu", out=y)

    report("batch norm", normalize, normalize_here, arguments.calls, 1e-5)


if __name__ == "__main__":
    main()
