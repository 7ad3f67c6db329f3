"""Memory: many calls, none left, arrays beyond 2^31 elements."""

import os

import numpy as np
import pytest
from helpers import assert_close, assert_same_bits
from numpy.lib.stride_tricks import as_strided

import cpunorm as cn

GROWTH = """
import gc
from pathlib import Path
from cpunorm import call

def resident():
    gc.collect()
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

one = np.ones((1, 8, 4, 4), np.float32)
running = np.zeros(8, np.float32), np.ones(8, np.float32)

def small(count):
    for _ in range(count):
        cn.batch_norm(one, *running, training=True, backend=BACKEND)

def changing(first, last):  # a shape of its own each: what is prepared for them has to go again
    for width in range(first, last):
        cn.batch_norm(x.reshape(-1)[: 8 * width].reshape(8, width), None, None, training=True, backend=BACKEND)

def refused(count):
    for _ in range(count):
        try:
            cn.batch_norm(one, running[0][:3], running[1], backend=BACKEND)
        except ValueError:
            pass

call._PREPARED_LIMIT = 100
small(5000), changing(500, 3000), refused(500)  # all shapes once: the heap has its size then
before = resident()
small(50_000)
after = resident()
changing(500, 2500), refused(2000)
assert len(call._PREPARED) <= 100
print((after - before) // 1024, (resident() - after) // 1024)
"""


@pytest.mark.skipif(not os.path.exists("/proc/self/statm"), reason="reads the resident size in /proc")
def test_calls_leave_nothing_behind(run, compiled):
    """Kilobytes after 50,000 small calls, two bytes each; after 2,000 shapes seen before and as many refusals, less than a plan each."""
    calls, shapes = map(int, run(f"BACKEND = {compiled!r}\n" + GROWTH).split())
    assert calls < 100
    assert shapes < 200


NONE_LEFT = """
import resource
from pathlib import Path
large = np.random.default_rng(1).normal(size=(8, 8, 1024, 256)).astype(np.float32)  # 64 MB
swapped = large.astype(">f4")  # which needs a copy
running = np.zeros(8, np.float32), np.ones(8, np.float32)
out = np.empty_like(large)

def call(**options):
    return cn.batch_norm(options.pop("x", large), *running, training=True, backend=BACKEND, threads=2, **options)

plain = call(out=out).copy()
assert right(compute(BACKEND))
running[0][:], running[1][:] = 0, 1
size = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
limits = resource.getrlimit(resource.RLIMIT_AS)
resource.setrlimit(resource.RLIMIT_AS, (size + (32 << 20), limits[1]))
jobs = [
    call,
    lambda: call(return_stats=True),
    lambda: call(x=swapped),
    lambda: cn.layer_norm(large, 256, residual=large, return_sum=True, backend=BACKEND),
    lambda: cn.mean_var(swapped, 1, backend=BACKEND),
    lambda: cn.batch_norm_backward(large, large, *running, backend=BACKEND),
]
for job in jobs:
    try:
        job()
        raise SystemExit("there was enough")
    except MemoryError:
        pass
    assert (running[0] == 0).all() and (running[1] == 1).all()  # nothing was written
    assert right(compute(BACKEND))
assert np.array_equal(call(out=out), plain)  # what needs no memory still works
resource.setrlimit(resource.RLIMIT_AS, limits)
assert np.array_equal(call(), plain)
print("done")
"""


# With a little more memory each time, from none to enough: whichever allocation it is that fails, nothing was written before it.
LITTLE_BY_LITTLE = """
import resource
from pathlib import Path
BIG = 1 << 19  # channels, samples or rows: 2 MB of float32 each, so that whatever is of their number is seen
STEP = 1 << (22 if BACKEND == "numpy" else 20)
rng = np.random.default_rng(0)
planes = rng.normal(size=(2, BIG, 2)).astype(np.float32)
rows = rng.normal(size=(BIG // 2, 4)).astype(">f4")
narrow = planes.astype(np.float16)

def running(dtype):
    return np.zeros(BIG, dtype), np.ones(BIG, dtype)

def of_planes(function, x, **options):
    return lambda out, *running: function(x, *running, out=out, backend=BACKEND, threads=1, **options)

jobs = {  # (what is called with out and running statistics, these)
    "batch_norm": (of_planes(cn.batch_norm, planes, training=True, return_stats=True), planes, running(np.float32)),
    "batch_norm of 16 bits": (of_planes(cn.batch_norm, narrow, training=True), narrow, running(np.float16)),
    "instance_norm": (of_planes(cn.instance_norm, planes), planes, running(np.float32)),
    "the sum of byte-swapped rows": (
        lambda out: cn.layer_norm(rows, 4, residual=rows, return_sum=True, out=out, backend=BACKEND, threads=1), rows, ()),
    "gradients of 16 bits": (
        lambda out, mean, rstd: cn.batch_norm_backward(
            narrow, narrow, mean, rstd, np.ones(BIG, np.float16), out=out, backend=BACKEND, threads=1), narrow, running(np.float32)),
}
soft, hard = resource.getrlimit(resource.RLIMIT_AS)
for name, (job, x, others) in jobs.items():
    outs = np.full_like(x, 7), *others
    job(*(value.copy() for value in outs))  # compiled, prepared
    before = [value.copy() for value in outs]
    size = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    failed = 0
    while True:
        resource.setrlimit(resource.RLIMIT_AS, (size + failed * STEP, hard))
        try:
            job(*outs)
            break
        except MemoryError:
            failed += 1
        finally:
            resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
        assert all(np.array_equal(value, old) for value, old in zip(outs, before)), f"{name}: written, then no memory"
    assert failed > 3, (name, failed)
    assert not np.array_equal(outs[0], before[0])
print("done")
"""


@pytest.mark.skipif(not os.path.exists("/proc/self/statm"), reason="reads the size in /proc")
@pytest.mark.parametrize("backend", ["c", *(pytest.param(name, marks=pytest.mark.slow) for name in ("numba", "numpy"))], indirect=True)
def test_nothing_is_written_before_memory_is_there(run, backend):
    assert run(f"BACKEND = {backend!r}\n" + LITTLE_BY_LITTLE, MALLOC_MMAP_THRESHOLD_="65536", MALLOC_TRIM_THRESHOLD_="65536") == "done"


@pytest.mark.skipif(not os.path.exists("/proc/self/statm"), reason="reads the size in /proc")
@pytest.mark.parametrize("compiled", ["c", pytest.param("numba", marks=pytest.mark.slow)], indirect=True)  # what allocates is Python
def test_out_of_memory(run, compiled):
    assert run(f"BACKEND = {compiled!r}\n" + NONE_LEFT) == "done"


SMALL_STACK = """
import threading
x = np.random.default_rng(0).normal(size=(8, 64, 56, 56)).astype(np.float32)
results = []

def call():
    results.append(cn.batch_norm(x, None, None, training=True, backend=BACKEND, threads=2))

call()  # compiled
threading.stack_size(64 << 10)
thread = threading.Thread(target=call)
thread.start()
thread.join()
assert np.array_equal(*results)
print("done")
"""


def test_a_small_stack(run, compiled):
    """Of the Python thread that calls."""
    assert run(f"BACKEND = {compiled!r}\n" + SMALL_STACK) == "done"


# ---------------------------------------------------------------- beyond 2^31 elements

FAR = (1 << 31) + 4096  # elements, as far apart as two samples, channels or rows lie below: offsets and their bytes pass 32 bits


@pytest.fixture(scope="module")
def space():
    """More than 2^31 float16, of which the system gives only the pages that are touched."""
    try:
        return np.empty(FAR + (1 << 16), np.float16)
    except MemoryError as problem:
        pytest.skip(f"this system gives no memory that it may not have: {problem}")


def far(space, x, axis, backwards=False):
    """A copy of `x` (two long in `axis`) whose two halves lie `FAR` elements apart."""
    strides = list(np.empty(x.shape, space.dtype).strides)
    strides[axis] = FAR * space.itemsize
    view = as_strided(space, x.shape, strides)
    if backwards:
        view = np.flip(view, axis)
    view[...] = x
    return view


@pytest.mark.parametrize("backwards", [False, True], ids=["forwards", "backwards"])
@pytest.mark.parametrize(
    ("shape", "axis", "call"),
    [
        ((2, 3, 16, 9), 0, lambda x, **o: cn.batch_norm(x, None, None, training=True, return_stats=True, **o)),
        ((3, 2, 16, 9), 1, lambda x, **o: cn.batch_norm(x, None, None, training=True, return_stats=True, **o)),
        ((2, 16, 9, 3), 0, lambda x, **o: cn.batch_norm(x, None, None, training=True, layout="NHWC", return_stats=True, **o)),
        ((2, 3), 0, lambda x, **o: cn.batch_norm(x, np.zeros(3, np.float32), np.ones(3, np.float32), **o)),
        ((2, 4, 40), 0, lambda x, **o: cn.group_norm(x, 2, return_stats=True, **o)),
        ((2, 300), 0, lambda x, **o: cn.layer_norm(x, 300, return_stats=True, **o)),
        ((2, 300), 0, lambda x, **o: cn.rms_norm_backward(x, x, 300, np.ones((2, 1), np.float32), **o)),
        ((2, 6, 20), 0, lambda x, **o: cn.local_response_norm(x, 3, **o)),
        ((2, 6, 20), 0, lambda x, **o: cn.normalize(x, **o)),
    ],
)
def test_far_apart(shape, axis, call, backwards, space, compiled):
    x = np.random.default_rng(0).normal(size=shape).astype(np.float16)
    there = far(space, x, axis, backwards)
    for out in (None, there):
        results, wanted = (call(value, out=out, backend=compiled) for value, out in ((there, out), (x, None)))
        if not isinstance(wanted, tuple):
            results, wanted = (results,), (wanted,)
        for result, want in zip(results, wanted, strict=True):
            assert_same_bits(result, want)
        assert (out is None) != np.shares_memory(results[0], space, max_work=1)


def test_mean_var_of_values_far_apart(space, compiled):
    x = np.random.default_rng(0).normal(size=(2, 300)).astype(np.float16)
    for axis in (None, 0, 1):
        for result, want in zip(cn.mean_var(far(space, x, 0), axis, backend=compiled), cn.mean_var(x, axis, backend="numpy"), strict=True):
            assert_close(result, want, rtol=1e-6, atol=1e-7)


@pytest.mark.large
@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
def test_more_than_2_to_the_31_elements(layout, compiled):
    """257 pictures of eight channels, 4.3 GB of float16: inference in place, statistics in training, one run of all values."""
    shape, axis, where = ((8, 1024, 1024), 1, (8, 1, 1)) if layout == "NCHW" else ((1024, 1024, 8), 3, (8,))
    picture = np.random.default_rng(0).integers(-8, 8, shape).astype(np.float64)
    kinds = [(picture + shift).astype(np.float16) for shift in range(7)]
    x = np.empty((257, *shape), np.float16)
    assert x.size > 1 << 31
    for n in range(len(x)):
        x[n] = kinds[n % 7]
    # the exact statistics, from one picture's and the shifts
    rest = tuple(a - 1 for a in (1, 2, 3) if a != axis)
    shift = np.arange(len(x)) % 7
    mean, var = picture.mean(rest) + shift.mean(), picture.var(rest) + shift.var()

    total, spread = cn.mean_var(x.reshape(-1), backend=compiled)
    assert_close(total, mean.mean(), rtol=1e-6)
    assert_close(spread, (var + mean**2).mean() - mean.mean() ** 2, rtol=1e-6)

    running = np.zeros(8, np.float32), np.ones(8, np.float32)
    options = {"layout": layout, "backend": compiled, "eps": 1e-12, "out": x}
    y, *statistics = cn.batch_norm(x, *running, training=True, momentum=1.0, return_stats=True, **options)
    assert y is x
    count = x.size // 8
    for result, want in zip((*statistics, *running), (mean, var**-0.5, mean, var * count / (count - 1)), strict=True):
        assert_close(result, want, rtol=1e-6, atol=1e-6)
    wanted = [((kind - mean.reshape(where)) * (var**-0.5).reshape(where)) for kind in kinds]
    for divisor in (1, 2):
        if divisor == 2:
            cn.batch_norm(x, np.zeros(8, np.float32), np.full(8, 4, np.float32), **options)
        for n in range(len(x)):
            if n < 7:
                assert_close(x[n], wanted[n] / divisor, rtol=2**-10, atol=1e-4)
            assert np.array_equal(x[n].view(np.uint16), x[n % 7].view(np.uint16)), n
