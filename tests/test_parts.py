"""Calls whose tables are too large at once run in parts."""

import tracemalloc

import numpy as np
import pytest
from helpers import assert_all, assert_close, assert_same_bits, copied

import cpunorm as cn
from cpunorm import call, dispatch, ops, plan

APART = [name for name in ops.OPERATIONS if not name.startswith(("batch_norm", "local_response_norm", "mean_var"))]  # statistics of parts
SHAPES = {"NCHW": (9, 16, 5, 7), "NHWC": (9, 5, 7, 16), "CHWN": (16, 5, 7, 9)}


@pytest.fixture
def in_tables_of(monkeypatch):
    """Sets the bytes of tables that a call may take, and forgets what was prepared with others."""

    def set_bytes(count):
        monkeypatch.setattr(plan, "TABLE_BYTES", count)
        call._PREPARED.clear()

    yield set_bytes
    call._PREPARED.clear()


def peak_of(call):
    """Bytes that a call takes."""
    tracemalloc.start()
    call()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return peak


@pytest.mark.parametrize("table_bytes", [6000, 600], ids=["several samples", "less than a sample"])
@pytest.mark.parametrize(
    ("name", "layout"), [(name, layout) for name in APART for layout in SHAPES if layout == "NCHW" or ops.OPERATIONS[name].layouts]
)
def test_results_are_those_of_the_whole(name, layout, table_bytes, compiled, in_tables_of):
    """Results of the size of the data have the same bits where units are runs; sums over all parts are right to rounding."""
    row = ops.OPERATIONS[name]
    inputs = row.inputs(SHAPES[layout], layout, "float32", np.random.default_rng(0))
    in_tables_of(1 << 40)
    whole = row.call(copied(inputs), backend=compiled, threads=2)
    in_tables_of(table_bytes)
    mine, again = (row.call(copied(inputs), backend=compiled, threads=threads) for threads in (1, 2))
    assert_all(assert_same_bits, again, mine)
    assert_all(assert_close, mine, row.reference(inputs), **row.tolerance(inputs))
    if layout != "NHWC" and not name.startswith("normalize"):
        assert_same_bits(mine[0], whole[0])


@pytest.mark.parametrize("options", [{}, {"out": "x"}, {"out": "residual"}], ids=["new", "over x", "over the residual"])
def test_everything_is_cut_alike(options, compiled, in_tables_of):
    """The residual, the sum, the statistics, what is written in place."""
    rng = np.random.default_rng(0)
    inputs = {name: rng.normal(size=(5, 40, 33)).astype(np.float32) for name in ("x", "residual")}
    inputs |= {name: rng.normal(size=33).astype(np.float32) for name in ("weight", "bias")}
    results = []
    for table_bytes in (1 << 40, 1000):
        in_tables_of(table_bytes)
        mine = copied(inputs)
        out = mine.get(options.get("out"))
        results.append(cn.layer_norm(normalized_shape=33, **mine, out=out, return_stats=True, return_sum=True, backend=compiled))
    assert_all(assert_same_bits, *results)


def field_of(x):
    """x as the field of records with one more byte each: its first axis may have any stride."""
    records = np.zeros(len(x), [("x", x.dtype, x.shape[1:]), ("flag", "u1")])
    records["x"][...] = x
    return records["x"]


@pytest.fixture
def called(monkeypatch):
    """Collects the arrays of each run of kernels, in their order."""
    run, found = dispatch.Runner.__call__, []

    def spy(self, *arrays):
        found.append([array for array in arrays if array is not None])
        return run(self, *arrays)

    monkeypatch.setattr(dispatch.Runner, "__call__", spy)
    return found


@pytest.mark.parametrize("operand", ["x", "residual", "out"])
def test_parts_that_lie_at_odd_addresses(operand, compiled, in_tables_of, called):
    """A part of one record is aligned, the next one is not."""
    rng = np.random.default_rng(0)
    arrays = {name: rng.normal(size=(3, 600, 64)).astype(np.float32) for name in ("x", "residual", "out")}
    in_tables_of(2000)
    wanted = cn.layer_norm(normalized_shape=64, **copied(arrays), backend=compiled)
    arrays[operand] = field_of(arrays[operand])
    called.clear()
    assert_same_bits(cn.layer_norm(normalized_shape=64, **arrays, backend=compiled), wanted)
    assert len(called) > 3
    assert all(array.flags.aligned for arrays in called for array in arrays)


@pytest.mark.parametrize("function", [cn.layer_norm, cn.rms_norm])
def test_memory(function, compiled):
    """100,000 rows have 3.6 MB of tables: a call takes what it may, not those."""
    x = np.zeros((100_000, 16), np.float32)
    function(x, 16, out=x, backend=compiled, threads=1)
    assert plan.TABLE_BYTES / 2 < peak_of(lambda: function(x, 16, out=x, backend=compiled, threads=1)) < 1.1 * plan.TABLE_BYTES


@pytest.mark.parametrize("shape", [(2, 4, 20_000), (8, 20_000), (40, 20_000)], ids=str)
def test_few_long_rows_stay_together(shape, compiled, in_tables_of, called):
    """The tables of their gradients are partial sums, which each part would have too, and adding these up takes longer than the rest."""
    x, rstd = np.ones(shape, np.float32), np.ones((*shape[:-1], 1), np.float32)
    in_tables_of(100_000)
    cn.rms_norm_backward(x, x, shape[-1], rstd, backend=compiled, threads=1)
    assert len(called) == 1


def test_all_memory_is_there_before_a_part_writes(compiled, in_tables_of, monkeypatch):
    """Gradients in parts of samples: the first one written, a part takes its tables alone, and no sums of its own."""
    x, stats = np.ones((2, 8192, 1024), np.float16), np.ones((2, 8192, 1), np.float32)
    in_tables_of(200_000)
    out, run, taken = np.empty_like(x), dispatch.Runner.__call__, []

    def spy(self, *arrays):
        taken.append(8 * self.scratch)
        result = run(self, *arrays)
        if len(taken) == 1:
            tracemalloc.start()
        return result

    monkeypatch.setattr(dispatch.Runner, "__call__", spy)
    cn.layer_norm_backward(x, x, 1024, stats, stats, out=out, backend=compiled, threads=1)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(taken) == 10  # five parts of each sample
    assert max(taken) <= peak < max(taken) + 8_000
