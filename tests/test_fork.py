"""Forks and threads, each in a process of its own: a hang ends by its timeout (of a forked child: by its alarm), and is a failure."""

import importlib.metadata
import os

import pytest

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")

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


def test_forks_while_threads_compute(run, pool):
    """From the main thread and from another one, while two more are in parallel kernels."""
    backend, environment = pool
    assert (
        run(f"BACKEND = {backend!r}\n" + FROM_A_THREAD, **environment).splitlines()[-1] == "done"
    )  # Numba's TBB says that it could not join threads


# Another one holds TBB while we fork, as a thread does that is about to end, so that Numba cannot shut it down; in the child nobody does.
HELD = """
import ctypes
compute("numba")
from numba.np.ufunc import tbbpool
tbb = ctypes.CDLL(tbbpool.__file__)
handle = ctypes.c_void_p()

def let_go():
    tbb._ZN3tbb6detail2r18finalizeERNS0_2d121task_scheduler_handleEl(ctypes.byref(handle), ctypes.c_long(0))

for number in range(8):
    tbb._ZN3tbb6detail2r13getERNS0_2d121task_scheduler_handleE(ctypes.byref(handle))
    compute("numba")  # whose threads are about to go to sleep
    pid = os.fork()
    if not pid:
        signal.alarm(20)
        let_go()
        if number % 2:
            sys.exit()  # as a child does that goes on to the end of its program
        os._exit(0 if serially("numba") and ended(child(lambda: serially("numba"))) else 3)
    let_go()
    assert ended(pid), number
print("done")
"""


def test_a_child_ends_where_tbb_was_at_work(run):
    """Numba shuts TBB down before the child forks, and when it exits, and would wait for threads that the child does not have."""
    pytest.importorskip("numba")
    try:
        importlib.metadata.version("tbb")
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("no tbb here")
    assert run(HELD, NUMBA_THREADING_LAYER="tbb").splitlines()[-1] == "done"


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

def call():  # one small kernel
    import ctypes
    from cpunorm.jit import backend
    y = np.empty_like(small)
    store_plain = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_ssize_t)(backend.address("store_plain", "float32"))
    store_plain(y.ctypes.data, (small - 5).ctypes.data, small.size)
    return np.array_equal(y, small - 5)

def busy(lock):  # whether another thread holds it
    if lock.acquire(blocking=False):
        lock.release()
        return False
    return True

children = []
first = threading.Thread(target=call)
first.start()
while first.is_alive():
    if busy(forks.lock) and len(children) < 2:
        children.append(child(call))
    time.sleep(0.1)
first.join()
assert children

import numba
from numba.core.compiler_lock import global_compiler_lock

def somebody():
    for _ in range(2):
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
