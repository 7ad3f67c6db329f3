"""Peak memory: what a call takes beyond its result, in the cases of limits.py and in some with very many rows.

NumPy reports its allocations to tracemalloc; a kernel allocates nothing but tiles on its stack, below 100 KB a thread. The bar is 1 MB a
thread. `*`: above it.

python benchmarks/memory.py [--threads 2] [--only REGEX] [--backends numba,c]
"""

import argparse
import re
import tracemalloc

import numpy as np
from limits import Case, cases

from cpunorm import ops
from cpunorm.compare import contestants

BAR = 1 << 20  # bytes a thread
MANY = [Case("layer_norm", (200000, 64)), Case("instance_norm", (64, 2048, 7, 7)), Case("instance_norm", (64, 2048, 7, 7), "NHWC")]


def peak(case: Case, backend: str, threads: int) -> int:
    """Bytes at the peak of a second call with `out`, beyond what was there before it."""
    row = ops.OPERATIONS[case.operation]
    inputs = row.inputs(case.shape, case.layout, case.dtype, np.random.default_rng(0))
    run = contestants.backend(row, inputs, backend, threads, np.empty_like(inputs["x"])).run
    run()
    tracemalloc.start()
    before, _ = tracemalloc.get_traced_memory()
    result = run()
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    kept = sum(value.nbytes for value in result[1:] if isinstance(value, np.ndarray) and value.base is None)
    return most - before - kept * (case.operation.endswith("backward"))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--only", default="")
    parser.add_argument("--backends", default="numba,c")
    args = parser.parse_args()
    print(f"{'KB beyond the result':<52}" + "".join(f"{name:>10}" for name in args.backends.split(",")))
    above = 0
    for case in cases() + MANY:
        if re.search(args.only, case.name):
            found = [peak(case, name, args.threads) for name in args.backends.split(",")]
            above += max(found) > BAR * args.threads
            print(f"{case.name:<52}" + "".join(f"{v / 1024:9.0f}{'*' if v > BAR * args.threads else ' '}" for v in found), flush=True)
    print(f"{above} cases above {BAR >> 20} MB a thread")


if __name__ == "__main__":
    main()
