"""What ``import cpunorm`` costs beyond ``import numpy``, in milliseconds: the median and the least of fresh interpreters.

Run it on an idle machine: ``python benchmarks/import_time.py [repeats]``.
"""

import statistics
import subprocess
import sys

LIMIT = 80
CODE = """
import time
import numpy
start = time.perf_counter()
import cpunorm
print((time.perf_counter() - start) * 1e3)
"""


def milliseconds(repeats: int) -> list[float]:
    return [float(subprocess.run([sys.executable, "-c", CODE], capture_output=True, check=True).stdout) for _ in range(repeats)]


def main() -> None:
    repeats = int(sys.argv[1]) if len(sys.argv) > 1 else 15
    measured = milliseconds(repeats + 1)[1:]  # the first one writes .pyc files
    print(f"import cpunorm: median {statistics.median(measured):.1f} ms, least {min(measured):.1f} ms beyond NumPy (limit {LIMIT} ms)")


if __name__ == "__main__":
    main()
