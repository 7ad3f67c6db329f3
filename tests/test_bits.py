"""The same bits for any number of threads and at every call; in place as out of place."""

import numpy as np
import pytest
from helpers import assert_all, assert_same_bits, copied, normal, run, training_options

import cpunorm as cn
from cpunorm import call, dispatch, machine, ops, plan

# From one block of a thread to far more than 2 MB; NHWC with few channels (widened rows), many (several strips) and cut rows.
SHAPES = [(2, 3, 5, 7), (3, 64, 14, 14), (8, 33, 61, 60), (2, 3, 340, 341), (1, 600, 31, 37)]
LAYOUTS = ["NCHW", "NHWC", "CHWN"]
by_shape = pytest.mark.parametrize("shape", SHAPES, ids=str)
by_layout = pytest.mark.parametrize("layout", LAYOUTS)


@by_shape
@by_layout
def test_any_number_of_threads(shape, layout, dtype, training, compiled):
    inputs = training_options(layout, dtype, shape)
    x, parameters = inputs.pop("x"), {name: value for name, value in inputs.items() if isinstance(value, np.ndarray)}
    options = {"training": training, "layout": layout, "backend": compiled}
    first = run(x, parameters, threads=1, **options)
    for threads in (1, 2, 2, 3):
        assert_all(assert_same_bits, run(x, parameters, threads=threads, **options), first)


@by_shape
@pytest.mark.parametrize("axis", [None, 0, (1,), -1, (0, 2), (0, 2, 3), (1, 3), (1, 2, 3)], ids=str)
def test_mean_var(shape, axis, dtype, compiled):
    x = normal(shape, dtype)
    first = cn.mean_var(x, axis, threads=1, backend=compiled)
    for threads in (1, 2, 2, 3):
        assert_all(assert_same_bits, cn.mean_var(x, axis, threads=threads, backend=compiled), first)


@pytest.mark.parametrize("residual", [False, True], ids=["", "residual"])
@pytest.mark.parametrize("norm", [cn.layer_norm, cn.rms_norm])
@pytest.mark.parametrize("values", [1, 3, 8, 49, 64, 511, 513, 5000])
def test_a_row_alone(values, norm, residual, any_dtype, compiled):
    """Short rows are reduced a vector's lanes of them at once: whatever the others are, and however many, each is as if it were alone."""
    x = normal((21, values), any_dtype)
    x[3] = 2.5  # constant: its sum of squares is 0
    x[7, 0] = np.nan
    x[8, -1] = np.inf
    x[11] *= np.asarray(1e-4, x.dtype)
    x[17, 0] = 250  # far from the others: its block is read again
    other = normal((21, values), any_dtype) if residual else None
    options = {"backend": compiled, "eps": 1e-30}
    whole = norm(x, values, residual=other, **options)
    for row in range(21):
        alone = norm(x[row : row + 1], values, residual=None if other is None else other[row : row + 1], **options)
        assert_same_bits(alone, whole[row : row + 1])


@by_shape
@by_layout
def test_in_place(shape, layout, dtype, training, compiled):
    """x itself, and another array at the same place, give what out=None gives."""
    inputs = {**training_options(layout, dtype, shape), "training": training, "backend": compiled}
    wanted = copied(inputs)
    y = cn.batch_norm(**wanted)
    for again in (lambda x: x, lambda x: x.view()):
        mine = copied(inputs)
        cn.batch_norm(**mine, out=again(mine["x"]))
        assert_same_bits(mine["x"], y)
        assert_all(assert_same_bits, *([of["running_mean"], of["running_var"]] for of in (mine, wanted)))


@pytest.mark.parametrize("l3", [1 << 12, 1 << 40], ids=["beyond the caches", "in the caches"])
@pytest.mark.parametrize("l2", [1 << 10, 1 << 30], ids=["small blocks", "large blocks"])
@by_layout
def test_any_schedule(l2, l3, layout, dtype, training, compiled, monkeypatch):
    """Streaming or not, depth or breadth first: cache sizes change the schedule, never a bit."""
    inputs = {**training_options(layout, dtype, (3, 24, 29, 31)), "training": training, "backend": compiled}
    results = []
    for caches in (machine.caches(), machine.Caches(l2, l3)):
        monkeypatch.setattr(dispatch, "resources", lambda threads, caches=caches: plan.Resources(threads or 2, caches))
        for offset in range(3):  # of the result in its cache line
            mine = copied(inputs)
            x = mine["x"]
            out = np.empty(x.size + offset, dtype)[offset:].reshape(x.shape)
            call._PREPARED.clear()
            cn.batch_norm(**mine, out=out)
            results.append((out, mine["running_mean"], mine["running_var"]))
    call._PREPARED.clear()
    for result in results[1:]:
        assert_all(assert_same_bits, result, results[0])


@pytest.mark.parametrize("threads", [1, 2])
def test_concurrent_python_threads(threads, compiled):
    """Several Python threads call at once, the same and different shapes."""
    from concurrent.futures import ThreadPoolExecutor

    rows = [training_options(layout, "float32", shape) for layout in LAYOUTS for shape in SHAPES[1:4]]
    wanted = [cn.batch_norm(**copied(row), backend=compiled, threads=1) for row in rows]
    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(lambda row: cn.batch_norm(**copied(row), backend=compiled, threads=threads), rows * 3))
    assert_all(assert_same_bits, results, wanted * 3)


@by_layout
def test_rows_of_the_table_repeat(layout, compiled):
    """A repeated call finds its prepared plan; it gives the same bits."""
    for row in ops.OPERATIONS.values():
        inputs = row.inputs((4, 6, 31, 17), layout, "float32", np.random.default_rng(0))
        first = row.call(copied(inputs), backend=compiled)
        assert_all(assert_same_bits, row.call(copied(inputs), backend=compiled), first)


@pytest.mark.parametrize("row", ops.OPERATIONS.values(), ids=list(ops.OPERATIONS))
def test_whoever_drives(row, monkeypatch):
    """Numba's kernels give the same bits under its own drivers, serial and parallel, as under the C part's."""
    jit = pytest.importorskip("cpunorm.jit.backend", reason="needs Numba", exc_type=ImportError)
    if not jit.threads.native():
        pytest.skip("the C part, or its OpenMP, is not here: all other tests run on Numba's own drivers")
    monkeypatch.setattr("cpunorm.plan.SERIAL_BYTES", 1 << 14)
    inputs = row.inputs((4, 24, 40, 41), "NCHW", "float32", np.random.default_rng(0))
    results, driver, drivers = [], jit.driver, set()

    def spy(count):
        drivers.add(driver(count))
        return driver(count)

    monkeypatch.setattr(jit, "driver", spy)
    for native in (jit.threads.native(), None):
        monkeypatch.setattr(jit.threads, "native", lambda native=native: native)
        for threads in (1, 2):
            call._PREPARED.clear()
            results.append(row.call(copied(inputs), backend="numba", threads=threads))
    call._PREPARED.clear()
    most = min(2, jit.threads.pool_size())
    assert {threads for _, threads in drivers} == {1, most}
    assert len(drivers) == 2 * most  # the C part's and our own, each for one thread and for two
    for result in results[1:]:
        assert_all(assert_same_bits, result, results[0])
