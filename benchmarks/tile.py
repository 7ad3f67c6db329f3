"""Inference larger than the caches by the size of the tile between load and store, in percent of the fastest copy.

python benchmarks/tile.py        (needs the C part, for the copy)
"""

import subprocess
import sys

SIZES = (64, 128, 256, 512, 2048, 8192)


def measure(size: int) -> None:
    import numpy as np
    from race import race

    from cpunorm import native, settings
    from cpunorm.jit import tile

    tile.TILE = size  # before the kernels that use it are imported
    import cpunorm as cn

    x = np.random.default_rng(0).normal(size=(32, 64, 112, 112)).astype(np.float32)
    y = np.zeros_like(x)
    statistics = np.zeros(64, np.float32), np.ones(64, np.float32)
    threads = settings.default_threads()
    flat = x.reshape(-1), y.reshape(-1)
    best = race(
        {
            "affine": lambda: cn.batch_norm(x, *statistics, out=y, backend="numba"),
            "copy": lambda: native.copy_limit(flat[1], flat[0], threads, stream=False),
            "stream": lambda: native.copy_limit(flat[1], flat[0], threads, stream=True),
        },
        15,
    )
    print(f"tile of {size:>5}: {100 * min(best['copy'], best['stream']) / best['affine']:4.0f}% of the copy limit")


if __name__ == "__main__":
    if len(sys.argv) > 1:
        measure(int(sys.argv[1]))
    else:
        import os
        import tempfile

        for size in SIZES:
            with tempfile.TemporaryDirectory() as folder:  # the cache does not know of a constant changed from outside
                subprocess.run([sys.executable, __file__, str(size)], check=True, env=os.environ | {"NUMBA_CACHE_DIR": folder})
