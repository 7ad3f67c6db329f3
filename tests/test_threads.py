"""Threads, each test in a process of its own: Python's, ours beside those of other libraries, their limits, interrupts."""

import importlib.metadata
import json
import os

import pytest

EIGHT = """
together = threading.Barrier(8)
results = [[] for _ in range(8)]
shapes = [x, x[:3], x[:, :5].copy(), x.astype(np.float64)]

def work(number):
    together.wait()
    for turn in range(12):  # the first one loads or compiles what it needs
        results[number].append(compute(BACKEND, shapes[(number + turn) % 4], threads=1 + (number + turn) % 2))

threads = [threading.Thread(target=work, args=[number]) for number in range(8)]
[thread.start() for thread in threads]
[thread.join() for thread in threads]
for number in range(8):
    assert len(results[number]) == 12
    for turn in range(12):
        shape = shapes[(number + turn) % 4]
        serial = compute(BACKEND, shape, threads=1)
        assert right(serial, compute("numpy", shape))
        assert all(np.array_equal(a, b) for a, b in zip(results[number][turn], serial))
print("done")
"""


def test_eight_threads(run, pool):
    backend, environment = pool
    assert run(f"BACKEND = {backend!r}\n" + EIGHT, **environment) == "done"


# SIGINT at many moments of the first call (import, compilation, launch of threads) and of later ones.
INTERRUPTED = """
import random
signal.signal(signal.SIGINT, signal.default_int_handler)
random.seed(0)
sys.unraisablehook = lambda problem: None  # an interrupt inside a destructor, which Python reports and drops

def interrupted(delay, job):
    timer = threading.Timer(delay, os.kill, (os.getpid(), signal.SIGINT))
    try:
        try:
            timer.start()  # in here: the signal may come before this returns
            job()
            timer.join()
        finally:
            timer.join()
        time.sleep(0.001)
    except KeyboardInterrupt:
        return True
    return False

hits = sum(interrupted(delay, lambda: compute(BACKEND)) for delay in DELAYS)
assert hits >= len(DELAYS) // 2, hits
assert right(compute(BACKEND))
running = np.zeros(8, np.float32), np.ones(8, np.float32)
for _ in range(40):
    def job():
        for _ in range(1000):
            cn.batch_norm(x, *running, training=True, backend=BACKEND, threads=2)
    assert interrupted(random.uniform(0.0005, 0.01), job)
    assert right(compute(BACKEND)) and np.isfinite(running).all()
assert ended(child(lambda: serially(BACKEND)))  # no lock is held
print("done", hits)
"""


def test_interrupts(run, compiled):
    """Ctrl-C: the next call is right, and locks are free."""
    delays = [0.1, 0.3, 0.5] if compiled == "numba" else [0.002 * i for i in range(1, 10)]
    assert run(f"BACKEND, DELAYS = {compiled!r}, {delays}\n" + INTERRUPTED).startswith("done")


@pytest.mark.slow
def test_interrupts_of_compilations(run, tmp_path):
    pytest.importorskip("numba")
    code = f"BACKEND, DELAYS = 'numba', {[0.1, 0.3, 0.5, 0.7, 0.9, 1.2]}\n" + INTERRUPTED
    assert run(code, NUMBA_CACHE_DIR=str(tmp_path)).startswith("done")


# Another user of Numba set or launched a threading layer before us, or between our choice and our first parallel call.
LAYERS = """
import numba
from cpunorm.jit import threads

@numba.njit(parallel=True)
def somebody(n):
    total = 0
    for i in numba.prange(n):
        total += i
    return total

with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    for step in STEPS:
        if step == "launch":
            assert somebody(10) == 45
        elif step == "compute":
            assert right(compute("numba"))
        elif step == "choose":
            threads.choose()
        else:
            numba.config.THREADING_LAYER = step
messages = [str(w.message) for w in caught]
assert somebody(10) == 45
if hasattr(os, "fork"):
    assert ended(child(lambda: serially("numba")))
print(numba.threading_layer(), len(messages), *messages)
"""


@pytest.mark.parametrize(
    ("steps", "layer", "warned"),
    [
        (["omp", "launch", "compute", "compute"], "omp", None),
        pytest.param(["omp", "compute", "compute"], "omp", None, marks=pytest.mark.slow),
        pytest.param(["workqueue", "compute", "compute"], "workqueue", "'workqueue'", marks=pytest.mark.slow),
        (["threadsafe", "choose", "workqueue", "launch", "compute", "compute"], "workqueue", "another user"),
        pytest.param(["safe", "compute"], "tbb", None, marks=pytest.mark.slow),
    ],
    ids=["omp launched", "omp set", "workqueue set", "workqueue launched late", "safe set"],
)
def test_other_users_of_numba(steps, layer, warned, run):
    """Where theirs is not safe we run serially, and say so once. (Launched workqueue before us: tests/test_processes.py.)"""
    pytest.importorskip("numba")
    if layer == "tbb":
        try:
            importlib.metadata.version("tbb")
        except importlib.metadata.PackageNotFoundError:
            pytest.skip("no tbb here")
    running, count, *message = run(f"STEPS = {steps}\n" + LAYERS).split(" ", 2)
    assert (running, count) == (layer, "1" if warned else "0"), message
    if warned:
        assert warned in message[0]


LIMITS = """
import json
from pathlib import Path
from cpunorm import machine
START
seen = []
def count():
    for backend in BACKENDS:
        assert right(cn.batch_norm(x, None, None, training=True, backend=backend, return_stats=True))
        seen.append(own_threads())
count()
AGAIN
print(json.dumps(seen))
"""
ONE_CPU = "allowed = os.sched_getaffinity(0); os.sched_setaffinity(0, [min(allowed)])"
FAKED = """
machine.quota.__defaults__ = (Path(FOLDER), Path(FOLDER) / "cgroup")
def write(name, text):
    (Path(FOLDER) / name).parent.mkdir(parents=True, exist_ok=True)
    (Path(FOLDER) / name).write_text(text)
"""


@pytest.mark.skipif(not os.path.exists("/proc/self/task"), reason="counts threads in /proc")
@pytest.mark.skipif(not hasattr(os, "sched_getaffinity") or len(os.sched_getaffinity(0)) < 2, reason="one CPU has one thread")
@pytest.mark.parametrize(
    ("start", "again", "environment"),
    [
        (ONE_CPU, "os.sched_setaffinity(0, allowed); cn.set_num_threads(None); count()", {}),
        ("", "", {"CPUNORM_NUM_THREADS": "1"}),
        ("", "", {"OMP_NUM_THREADS": "1"}),
        (FAKED + "write('cpu.max', '90000 100000')", "write('cpu.max', 'max 100000'); cn.set_num_threads(None); count()", {}),
        (FAKED + "write('cgroup', '0::/a/b'); write('a/cpu.max', '100000 100000'); write('a/b/cpu.max', 'max 100000')", "", {}),
        (FAKED + "write('cpu/cpu.cfs_quota_us', '100000'); write('cpu/cpu.cfs_period_us', '100000')", "", {}),
        ("cn.set_num_threads(1)", "cn.set_num_threads(2); count()", {}),
    ],
    ids=["affinity", "CPUNORM_NUM_THREADS", "OMP_NUM_THREADS", "cpu.max", "cpu.max of a parent", "cfs_quota", "set_num_threads"],
)
def test_limits(start, again, environment, run, present_backends, tmp_path):
    """No second thread is started below the limit, whatever sets it; a default that has changed is found anew when asked."""
    if start != ONE_CPU:
        present_backends = present_backends[-1:]  # the limit is read once for all of them
    code = f"BACKENDS, FOLDER = {present_backends}, {str(tmp_path)!r}\n" + LIMITS.replace("START", start).replace("AGAIN", again)
    seen = json.loads(run(code, **environment))
    assert seen[: len(present_backends)] == [1] * len(present_backends)
    if again:
        assert min(seen[len(present_backends) :]) > 1


def test_more_threads_than_the_driver_has_room_for(run, native):
    """It has shares for 1024; OpenMP's own limit holds as well."""
    code = "assert right(compute('c', threads=100_000)) and own_threads() <= 4, own_threads()\nprint('done')"
    assert run(code, OMP_THREAD_LIMIT="4") == "done"


THREADPOOLCTL = """
from threadpoolctl import threadpool_limits
from cpunorm import backends
assert backends.load("c")
with threadpool_limits(1):
    assert right(compute("c")) and own_threads() == 1, own_threads()
assert right(compute("c")) and own_threads() == 2, own_threads()
with threadpool_limits(4, user_api="openmp"):  # no limit below what there is
    assert right(compute("c")) and own_threads() == 2, own_threads()
print("done")
"""


@pytest.mark.peer
@pytest.mark.skipif(not os.path.exists("/proc/self/task"), reason="counts threads in /proc")
@pytest.mark.parametrize("usual", ["1", "2"])
def test_threadpoolctl(usual, run, native):
    """Its limit holds for the C pool; OMP_NUM_THREADS, which it starts from, is none for a call that says threads=2."""
    pytest.importorskip("threadpoolctl")
    if usual == "1":
        code = "from cpunorm import backends\nassert backends.load('c')\nassert right(compute('c')) and own_threads() == 2\nprint('done')"
        assert run(code, OMP_NUM_THREADS="1") == "done"
    else:
        assert run(THREADPOOLCTL) == "done"


# ---------------------------------------------------------------- beside PyTorch

TORCH = """
import torch
torch.set_num_threads(2)
tensor = torch.from_numpy(x)
theirs = torch.nn.functional.batch_norm(tensor, None, None, training=True).numpy()

class Pictures(torch.utils.data.Dataset):
    def __len__(self):
        return 8
    def __getitem__(self, index):
        signal.alarm(50)
        assert forks.forked() == (METHOD == "fork")
        return np.stack([compute(backend)[0] for backend in BACKENDS])

if __name__ == "__main__":
    stop = threading.Event()
    wrong = []
    def torch_too():
        while not stop.is_set():
            if not np.array_equal(torch.nn.functional.batch_norm(tensor, None, None, training=True).numpy(), theirs):
                wrong.append("torch")
    thread = threading.Thread(target=torch_too)
    thread.start()
    for _ in range(30):
        for backend in BACKENDS:
            if not right(compute(backend)):
                wrong.append(backend)
    stop.set()
    thread.join()
    assert not wrong and np.allclose(theirs, wanted[0], rtol=1e-4, atol=1e-5)
    for METHOD in ("fork", "spawn"):
        loader = torch.utils.data.DataLoader(Pictures(), batch_size=4, num_workers=2, multiprocessing_context=METHOD, timeout=60)
        batches = 0
        for batch in loader:
            assert all(np.allclose(y, wanted[0], rtol=1e-4, atol=1e-5) for pictures in batch.numpy() for y in pictures)
            batches += 1
        assert batches == 2
        METHOD = "spawn"
    assert all(right(compute(backend)) for backend in BACKENDS)
    print("done")
else:
    METHOD = "spawn"
"""


@pytest.mark.peer
def test_beside_pytorch(run, present_backends):
    """In one process at the same time, and in the workers of a DataLoader, forked after both have used their threads, and spawned."""
    pytest.importorskip("torch")
    assert run(f"BACKENDS = {present_backends}\n" + TORCH) == "done"
