"""Forks and threads, each in a process of its own: a hang ends by its timeout (of a forked child: by its alarm), and is a failure."""

import os

import pytest
from helpers import COMPILED, python

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")

TWO = {"NUMBA_NUM_THREADS": "2", "OMP_NUM_THREADS": "2", "OPENBLAS_NUM_THREADS": "1"}  # (numba imports SciPy, which has threads of its own)

# compute(backend): results of a call large enough for two threads; right(results): by the serial NumPy reference, computed once;
# child(job): a forked child that has to end well within a minute.
COMMON = """
import faulthandler, os, signal, sys, threading, time, warnings
import numpy as np, cpunorm as cn
from cpunorm import forks
warnings.filterwarnings("ignore", category=DeprecationWarning)  # of forks beside threads: what this is about
x = np.random.default_rng(0).normal(size=(4, 8, 96, 96)).astype(np.float32)

def compute(backend, x=x, threads=2):
    return cn.batch_norm(x, None, None, training=True, backend=backend, threads=threads, return_stats=True)

wanted = compute("numpy")

def right(results, wanted=wanted):
    return all(np.allclose(a, b, rtol=1e-4, atol=1e-5) for a, b in zip(results, wanted, strict=True))

def own_threads():
    return len(os.listdir("/proc/self/task")) if os.path.exists("/proc/self/task") else 1

def child(job):
    pid = os.fork()
    if pid:
        return pid
    signal.alarm(50)
    faulthandler.dump_traceback_later(40)
    try:
        os._exit(0 if job() else 3)
    except BaseException as problem:
        print(repr(problem), file=sys.stderr, flush=True)
        os._exit(4)

def ended(pid):
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0

def serially(backend):
    return right(compute(backend)) and forks.forked() and own_threads() == 1
"""


@pytest.fixture
def run(tmp_path):
    """Run a script that starts with `COMMON`, from a file (spawned children read it again)."""

    def run(code, timeout=100, **environment):
        file = tmp_path / "script.py"
        file.write_text(COMMON + code)
        return python(file, timeout=timeout, **TWO | environment)

    return run


METHODS = """
import multiprocessing

def work(number):
    signal.alarm(50)
    return [right(compute(backend)) for backend in BACKENDS], forks.forked(), own_threads()

if __name__ == "__main__":
    assert all(right(compute(backend)) for backend in BACKENDS)
    for method in ("fork", "forkserver", "spawn"):
        context = multiprocessing.get_context(method)
        context.set_forkserver_preload(["cpunorm"])
        with context.Pool(2) as pool:
            for results, forked, threads in pool.map(work, range(2), chunksize=1):
                assert all(results) and forked == (method != "spawn") and (not forked or threads <= 2), (method, results, forked, threads)
    assert all(right(compute(backend)) for backend in BACKENDS)
    print("done")
"""


def test_multiprocessing(run, present_backends):
    """Pools of all start methods, after both backends have started their threads here.

    (A forkserver forks from a process that has only imported the package; a fork's own threads are 1, and 1 that feeds the pool's queue.)
    """
    assert run(f"BACKENDS = {present_backends}\n" + METHODS) == "done"


FROM_A_THREAD = """
assert right(compute(BACKEND))
stop = threading.Event()
seen = []

def busy():
    while not stop.is_set():
        seen.append(right(compute(BACKEND)))

def fork_and_wait():
    seen.append(ended(child(lambda: serially(BACKEND))))

threads = [threading.Thread(target=busy) for _ in range(2)]
[thread.start() for thread in threads]
for _ in range(4):
    fork_and_wait()  # from the main thread, while others compute
    one = threading.Thread(target=fork_and_wait)
    one.start()
    one.join()
stop.set()
[thread.join() for thread in threads]
assert right(compute(BACKEND)) and all(seen) and len(seen) > 10
# a child of a child
assert ended(child(lambda: serially(BACKEND) and ended(child(lambda: serially(BACKEND)))))
print("done")
"""


def test_forks_while_threads_compute(run, compiled):
    """From the main thread and from another one, while two more are in parallel kernels."""
    assert run(f"BACKEND = {compiled!r}\n" + FROM_A_THREAD).splitlines()[-1] == "done"  # Numba's TBB says that it could not join threads


LOADED_IN_THE_CHILD = """
other = next(backend for backend in BACKENDS if backend != BACKEND)
assert right(compute(other))  # with threads, perhaps of a library that both use
assert f"cpunorm.{'native' if BACKEND == 'c' else 'jit'}" not in sys.modules
assert ended(child(lambda: serially(BACKEND)))
print("done")
"""


def test_a_backend_that_only_the_child_loads(run, compiled, present_backends):
    if len(present_backends) < 2:
        pytest.skip("needs both compiled backends")
    code = f"BACKEND, BACKENDS = {compiled!r}, {present_backends}\n" + LOADED_IN_THE_CHILD
    assert run(code, NUMBA_THREADING_LAYER="omp") == "done"


# Forks at moments of the first call: while numba is imported, while a kernel is compiled, while another user of numba compiles.
WHILE_COMPILING = """
small = np.arange(12, dtype=np.float32).reshape(4, 3)

def call():
    y = cn.batch_norm(small, np.full(3, 1, np.float32), np.full(3, 4, np.float32), eps=0, backend="numba", threads=1)
    return np.array_equal(y, (small - 1) / 2)

def busy(lock):  # whether another thread holds it
    if lock.acquire(blocking=False):
        lock.release()
        return False
    return True

children = []
first = threading.Thread(target=call)
first.start()
while first.is_alive():
    if busy(forks.lock) and len(children) < 3:
        children.append(child(call))
    time.sleep(0.05)
first.join()
assert len(children) > 1

import numba
from numba.core.compiler_lock import global_compiler_lock

def somebody():
    for _ in range(4):
        numba.njit(lambda x: np.sort(np.abs(x)).sum())(small)

thread = threading.Thread(target=somebody)
thread.start()
forked = 0
while thread.is_alive():
    if busy(global_compiler_lock._lock):
        children.append(child(lambda: numba.njit(lambda v: v + 1)(1) == 2))
        forked += 1
        break
thread.join()
assert forked
assert call() and all([ended(pid) for pid in children])
print("done")
"""


def test_forks_while_another_thread_compiles(run, tmp_path):
    pytest.importorskip("numba")
    assert run(WHILE_COMPILING, NUMBA_CACHE_DIR=str(tmp_path)) == "done"


@pytest.fixture
def present_backends():
    from cpunorm import backends

    found = []
    for name in COMPILED:
        try:
            backends.load(name)
        except ImportError:
            continue
        found.append(name)
    return found or pytest.skip("no compiled backend")


# ---------------------------------------------------------------- threads

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


def test_eight_threads(run, compiled):
    assert run(f"BACKEND = {compiled!r}\n" + EIGHT) == "done"


# SIGINT at many moments of the first call (import, compilation, launch of threads) and of later ones.
INTERRUPTED = """
import random
signal.signal(signal.SIGINT, signal.default_int_handler)
random.seed(0)
sys.unraisablehook = lambda problem: None  # an interrupt inside a destructor, which Python reports and drops

def interrupt(seconds):
    timer = threading.Timer(seconds, os.kill, (os.getpid(), signal.SIGINT))
    timer.start()
    return timer

def interrupted(delay, job):
    timer = interrupt(delay)
    try:
        try:
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
for _ in range(60):
    def job():
        for _ in range(1000):
            cn.batch_norm(x, *running, training=True, backend=BACKEND, threads=2)
    assert interrupted(random.uniform(0.0005, 0.01), job)
    assert right(compute(BACKEND)) and np.isfinite(running).all()
assert ended(child(lambda: serially(BACKEND)))  # no lock is held
print("done", hits)
"""


def test_interrupts(run, compiled, tmp_path):
    """Ctrl-C: the next call is right, and locks are free."""
    delays = [0.05 * i for i in range(1, 30)] if compiled == "numba" else [0.002 * i for i in range(1, 10)]
    code = f"BACKEND = {compiled!r}\nDELAYS = {delays}\n" + INTERRUPTED
    assert run(code, NUMBA_CACHE_DIR=str(tmp_path)).startswith("done")
