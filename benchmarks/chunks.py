"""Blocks dealt out one at a time against equal shares, on Numba's own threads, with one core busy and with none.

python benchmarks/chunks.py
"""

import multiprocessing
import os

import numba
import numpy as np
from numba import njit, prange, set_parallel_chunksize
from race import race

from cpunorm.jit import threads


def spin() -> None:
    while True:
        pass


def main() -> None:
    numba.config.THREADING_LAYER = "threadsafe"  # else it is the C part's driver that is chosen
    threads.choose()

    @njit(parallel=True, nogil=True)
    def blocks(x, y, chunk):
        old = set_parallel_chunksize(chunk)
        for k in prange(64):
            v, z = x[k], y[k]
            for q in range(v.size):
                z[q] = v[q] * np.float32(2)
        set_parallel_chunksize(old)

    x = np.ones((64, 1 << 17), np.float32)
    y = np.zeros_like(x)
    runs = {"a block at a time": lambda: blocks(x, y, 1), "equal shares": lambda: blocks(x, y, 0)}
    for busy in (False, True):
        other = multiprocessing.get_context("spawn").Process(target=spin, daemon=True)
        if busy:
            other.start()
        best = race(runs, 200)
        print(f"{os.cpu_count()} CPUs, {'one busy' if busy else 'none busy'}:", {k: f"{1e3 * v:.2f} ms" for k, v in best.items()})
        if busy:
            other.terminate()


if __name__ == "__main__":
    main()
