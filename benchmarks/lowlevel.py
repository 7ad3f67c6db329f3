"""What the low-level choices of `cpunorm.jit.lowlevel` gain: forms of a loop, calls through an address, an array's address by its id.

python benchmarks/lowlevel.py
"""

import timeit

import numpy as np
from numba import cfunc, njit, types
from race import race

from cpunorm.jit.lowlevel import FASTMATH, call_kernel, data_of, view

options = {"fastmath": FASTMATH, "error_model": "numpy"}
F32 = types.Array(types.float32, 1, "C")
POINTER = types.CPointer(types.float32)
N = 4096


def by_slice(x, y, start, count):
    v = x[start : start + count]
    z = y[start : start + count]
    for q in range(v.size):
        z[q] = v[q] * np.float32(2)


def by_base(x, y, start, count):
    for q in range(count):
        y[start + q] = x[start + q] * np.float32(2)


def by_range(x, y, start, count):
    for q in range(start, start + count):
        y[q] = x[q] * np.float32(2)


def loops():
    x, y = np.ones(2 * N, np.float32), np.zeros(2 * N, np.float32)
    signature = types.void(F32, F32, types.intp, types.intp)
    compiled = {f.__name__: njit(signature, **options)(f) for f in (by_slice, by_base, by_range)}
    best = race({name: lambda f=f: [f(x, y, 7, N) for _ in range(100)] for name, f in compiled.items()})
    for name, seconds in best.items():
        print(f"loop {name:<10} {seconds / 100 / N * 1e9:6.3f} ns an element")


def calls():
    def nothing(step, buffers, lo, hi):
        view(step, 0, 1)[0] += 1

    kernel = cfunc(types.void(POINTER, POINTER, types.intp, types.intp), **options)(nothing)
    count = np.zeros(1, np.float32)

    @njit(types.void(types.intp, types.intp, types.intp))
    def many(address, where, times):
        for _ in range(times):
            call_kernel(address, where, where, 0, 0)

    seconds = min(timeit.repeat(lambda: many(kernel.address, count.ctypes.data, 10**6), number=1, repeat=7))
    print(f"call through an address {seconds / 1e6 * 1e9:6.1f} ns")


def addresses():
    x = np.zeros((2, 3, 4))

    @njit(types.intp(types.intp))
    def where(identity):
        return data_of(identity)

    assert where(id(x)) == x.ctypes.data
    for name, run in (("x.ctypes.data", lambda: x.ctypes.data), ("id(x)", lambda: id(x))):
        print(f"{name:<24}{min(timeit.repeat(run, number=10**5, repeat=7)) / 1e5 * 1e9:6.0f} ns")


if __name__ == "__main__":
    loops()
    calls()
    addresses()
