"""From how many bytes on a second thread pays: calls of growing size on one thread and on two, where both are free to choose.

`waking` of the two backends comes from this: the size at which two threads win, over `plan.SERIAL_BYTES`.

python benchmarks/waking.py [--seconds 0.1]
"""

import argparse
import time

import numpy as np

import cpunorm as cn
from cpunorm import plan
from cpunorm.compare import heap

TURN, PAUSE = 0.004, 0.006  # seconds


def batch_norm(size: int):
    x = np.ones((1, max(1, size // 784), 28, 28), np.float32)
    mean, var, y = np.zeros(x.shape[1], np.float32), np.ones(x.shape[1], np.float32), np.zeros_like(x)
    return lambda backend, threads: cn.batch_norm(x, mean, var, out=y, backend=backend, threads=threads)


def layer_norm(size: int):
    x = np.random.default_rng(0).normal(size=(max(1, size // 768), 768)).astype(np.float32)
    weight, y = np.ones(768, np.float32), np.zeros_like(x)
    return lambda backend, threads: cn.layer_norm(x, 768, weight, weight, out=y, backend=backend, threads=threads)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--seconds", type=float, default=0.1, help="for each backend, size and number of threads")
    args = parser.parse_args()
    heap.keep_pages()
    plan.SERIAL_BYTES = 0
    print(f"{'':>20} KB moved " + "".join(f"{backend + ' 1, 2 threads, us':>28}" for backend in ("numba", "c")))
    for operation in (batch_norm, layer_norm):
        for kilobytes in (128, 256, 512, 768, 1024, 1536, 2048, 4096):
            call = operation(kilobytes * 1024 // 8)
            best: dict[tuple[str, int], float] = {}
            for _ in range(max(1, round(args.seconds / TURN))):
                for backend in ("numba", "c"):
                    for threads in (1, 2):
                        time.sleep(PAUSE)
                        end = time.perf_counter() + TURN
                        while (start := time.perf_counter()) < end:
                            call(backend, threads)
                            taken = time.perf_counter() - start
                            best[backend, threads] = min(best.get((backend, threads), taken), taken)
            line = "".join(f"{1e6 * best[backend, 1]:18.1f}{1e6 * best[backend, 2]:10.1f}" for backend in ("numba", "c"))
            print(f"{operation.__name__:>20} {kilobytes:8} {line}", flush=True)


if __name__ == "__main__":
    main()
