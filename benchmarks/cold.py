"""Cold start: what the import and a first call cost in a new process. A table of docs/guide/choosing.md.

python benchmarks/cold.py          batch norm in training, 6 MB of float32; the median of some processes, as a GitHub table

The seconds are taken within the process, from before ``import cpunorm`` or from after it; starting Python and NumPy is not ours.
"""

import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from cpunorm import check

ROUNDS, COLD_ROUNDS = 5, 2  # compiling takes many seconds
IMPORT = """
import time
import numpy
start = time.perf_counter()
import cpunorm
print(time.perf_counter() - start)
"""
CALL = """
import time
import numpy as np
import cpunorm as cn
x, y = np.ones((8, 64, 56, 56), np.float32), np.zeros((8, 64, 56, 56), np.float32)
running = np.zeros(64, np.float32), np.ones(64, np.float32)
start = time.perf_counter()
cn.batch_norm(x, *running, training=True, backend="{backend}", out=y)
print(time.perf_counter() - start)
assert abs(y).max() < 1e-3  # of a constant
"""
WARM = CALL.replace(
    "start = time.perf_counter()\ncn",
    'cn.batch_norm(x, *running, training=True, backend="{backend}", out=y)\nstart = time.perf_counter()\ncn',
)


def fresh_process(code: str, **environment: str) -> float:
    """The seconds that a new interpreter prints as its last line."""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=300, env=os.environ | environment
    )
    return float(done.stdout.splitlines()[-1])


def table(process: Callable[..., float] = fresh_process) -> Iterator[str]:
    """Import and calls, by backend; an empty cache folder for every process that is to compile."""
    with tempfile.TemporaryDirectory() as folder:
        numbers = iter(range(1000))

        def median(code: str, rounds: int = ROUNDS, cache: str = "kept") -> str:
            folders = [cache or str(next(numbers)) for _ in range(rounds)]
            seconds = statistics.median(process(code, NUMBA_CACHE_DIR=str(Path(folder) / name)) for name in folders)
            return f"{seconds:.1f} s" if seconds >= 1 else f"{1e3 * seconds:.{0 if seconds >= 0.01 else 1}f} ms"

        yield "| | `import cpunorm` | first call, nothing in the cache | first call, kernels in the cache | second call |"
        yield "|---|--:|--:|--:|--:|"
        process(IMPORT)  # the first one writes .pyc files
        loading = median(IMPORT)
        for backend in reversed(check.BACKENDS):
            call = CALL.format(backend=backend)
            empty = median(call, COLD_ROUNDS, "") if backend == "numba" else ""
            process(call, NUMBA_CACHE_DIR=str(Path(folder) / "kept"))
            yield f"| `{backend}` | {loading} | {empty} | {median(call)} | {median(WARM.format(backend=backend))} |"


if __name__ == "__main__":
    for line in table():
        print(line, flush=True)
