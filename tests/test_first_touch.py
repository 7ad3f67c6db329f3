"""Who computes a block of a result is the first to touch its pages, so that they lie in that core's memory on machines with several.

The page faults of each thread are counted (Linux: /proc/self/task), over a result of fresh pages of 4 KB.
"""

from pathlib import Path

import pytest

CODE = """
import mmap, pathlib
import numpy as np
import cpunorm as cn

def faults():
    # minor faults of each thread
    found = {}
    for task in pathlib.Path("/proc/self/task").iterdir():
        fields = (task / "stat").read_text().rpartition(")")[2].split()
        found[task.name] = int(fields[7])
    return found

shape = (16, 64, 128, 128)
x = np.ones(shape, np.float32)
mean, var = np.zeros(64, np.float32), np.ones(64, np.float32)
warm = np.zeros(shape, np.float32)
cn.batch_norm(x, mean, var, backend=BACKEND, threads=2, out=warm)  # compiled, threads started
for touched in (False, True):
    memory = mmap.mmap(-1, x.nbytes)
    memory.madvise(mmap.MADV_NOHUGEPAGE)
    y = np.frombuffer(memory, np.float32).reshape(shape)
    if touched:
        y.fill(0)
    before = faults()
    cn.batch_norm(x, mean, var, backend=BACKEND, threads=2, out=y)
    counts = [count - before.get(name, 0) for name, count in faults().items()]
    print(*sorted(counts, reverse=True))
print(x.nbytes // mmap.PAGESIZE)
"""


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="page faults of threads are counted on Linux")
def test_pages_are_touched_by_who_computes_their_block(compiled, run):
    lines = run(f"BACKEND = {compiled!r}\n" + CODE).splitlines()
    fresh, touched = (list(map(int, line.split())) for line in lines[:2])
    pages = int(lines[2])
    assert pages <= sum(fresh) < 1.02 * pages + 200  # every page once, in the call
    assert sum(touched) < 200  # and none where they were touched before: it is the result's pages that are counted
    block = 256  # pages: 2 MB are read and written by a block of the plan
    for count in fresh[:2]:
        assert min(count % block, -count % block) < 64  # whole blocks
