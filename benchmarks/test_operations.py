"""pytest-benchmark over the operation table: every operation, layout and backend on a shape in the caches and one beyond them.

python -m pytest benchmarks            (-k to choose; --benchmark-json and --benchmark-compare as pytest-benchmark's)

Each result is compared with the reference before it is timed. ``extra_info`` has the bytes that have to move and GB/s of the fastest round.
"""

import numpy as np
import pytest

from cpunorm import backends, ops, settings
from cpunorm.compare.contestants import backend as contestant
from cpunorm.compare.contestants import deviation

SHAPES = {"in cache": (4, 64, 28, 28), "beyond the caches": (32, 64, 112, 112)}


@pytest.mark.parametrize("name", ["numba", "c"])
@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("operation", ops.OPERATIONS)
def test_operation(benchmark, operation, shape, layout, name):
    row = ops.OPERATIONS[operation]
    if not row.layouts and layout != "NCHW":
        pytest.skip(f"{operation} takes no layout")
    try:
        backends.load(name)
    except ImportError as problem:
        pytest.skip(str(problem))
    inputs = row.inputs(SHAPES[shape], layout, "float32", np.random.default_rng(0))
    expected = row.reference({key: value.copy() if key in row.updates else value for key, value in inputs.items()})
    ours = contestant(row, inputs, name, settings.default_threads(), np.zeros_like(inputs["x"]))
    good, error = deviation(ours.results(ours.run()), expected, **ours.tolerance)
    assert good, f"differs from the reference by {error:.2g}"
    benchmark.group = f"{operation}, {shape}, {layout}"
    benchmark(ours.run)
    moved = row.bytes_moved(inputs["x"])
    benchmark.extra_info |= {
        "bytes": moved,
        "gb_per_second": moved / benchmark.stats.stats.min / 1e9,
        "threads": settings.default_threads(),
    }
