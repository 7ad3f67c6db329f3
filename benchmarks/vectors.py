"""An affine of one long run, straight from registers and through a tile in L1, beside a copy: out of cache by all threads, in L2 by one.

python benchmarks/vectors.py        (needs the C part, for the copy)
"""

import numpy as np
from numba import njit, prange, types
from race import race

from cpunorm import native, settings
from cpunorm.jit import threads, vectors
from cpunorm.jit.lowlevel import address, fence, inline, offset, size_of, stack, to_pointer, view
from cpunorm.jit.lowlevel import stream as stream_tile
from cpunorm.jit.tile import LINE, TILE
from cpunorm.jit.vectors import GROUP, lanes, load, load_group, load_some, prefetch_group, store, store_some, stream

AHEAD = 768  # bytes
GRAIN = 1024  # values: threads' shares are whole pages
CENTER, SCALE, SHIFT = 1.0, 2.0, 3.0
ELEMENTS = {"float32": types.float32, "float64": types.float64, "float16": types.uint16, "bfloat16": types.int16}
SIZES = {"float32": 4, "float64": 8, "float16": 2, "bfloat16": 2}


@inline
def affine(v, center, scale, shift):
    return (v - center) * scale + shift


@inline
def ends(x, y, i, end, center, scale, shift):
    """What fills no group: vectors, and a part of one."""
    while i + lanes(x) <= end:
        store(y, i, affine(load(x, i), center, scale, shift))
        i += lanes(x)
    if i < end:
        store_some(y, i, affine(load_some(x, i, end - i, center), center, scale, shift), end - i)


@inline
def streamed(x, y, count, center, scale, shift):
    """y[:count] = (x[:count] - center) * scale + shift, from registers past the caches."""
    head = min(count, (-address(y) & (LINE - 1)) // size_of(y))
    ends(x, y, 0, head, center, scale, shift)
    group = GROUP * lanes(x)
    end = head + (count - head) // group * group
    for i in range(head, end, group):
        prefetch_group(x, i, AHEAD)
        stream(y, i, affine(load_group(x, i), center, scale, shift))
    ends(x, y, end, count, center, scale, shift)
    fence()


@inline
def plain(x, y, count, center, scale, shift):
    """The same through the caches."""
    group = GROUP * lanes(x)
    end = count // group * group
    for i in range(0, end, group):
        store(y, i, affine(load_group(x, i), center, scale, shift))
    ends(x, y, end, count, center, scale, shift)


@inline
def arrays(x, y, count, center, scale, shift):
    """The same as a loop that LLVM makes vectors of."""
    v = view(x, 0, count)
    z = view(y, 0, count)
    for q in range(count):
        z[q] = (v[q] - center) * scale + shift


@inline
def tiled(x, y, count, center, scale, shift):
    """The same, a tile in L1 at a time, which is then streamed."""
    tile = stack(TILE, x)
    z = view(tile, 0, TILE)
    for start in range(0, count, TILE):
        v = view(x, start, TILE)
        for q in range(TILE):
            z[q] = (v[q] - center) * scale + shift
        stream_tile(offset(y, start), tile, TILE * size_of(x) // vectors.REGISTER)
    fence()


def compiled(body, dtype, parallel):
    """run(x, y, count): both by address, in one share or in as many as there are threads."""
    pointer = types.CPointer(ELEMENTS[dtype])
    size = SIZES[dtype]
    center, scale, shift = (np.dtype(str(vectors.COMPUTING[ELEMENTS[dtype]])).type(c) for c in (CENTER, SCALE, SHIFT))
    shares = settings.default_threads() if parallel else 1

    @njit(fastmath=body.targetoptions["fastmath"], error_model="numpy")
    def share(x, y, count):
        body(to_pointer(x, pointer), to_pointer(y, pointer), count, center, scale, shift)

    @njit(parallel=parallel)
    def run(x, y, count):
        for i in prange(shares):
            lo = count // GRAIN * i // shares * GRAIN
            hi = count // GRAIN * (i + 1) // shares * GRAIN
            share(x + lo * size, y + lo * size, hi - lo)

    return run


def on_a_line(count, size):
    """`count` values of `size` bytes, as float32, which copies take."""
    memory = np.ones(count * size // 4 + LINE, np.float32)
    return memory[-memory.ctypes.data % LINE // 4 :][: count * size // 4]


def verify(run, x, y, dtype):
    """Small whole numbers: exact in all four dtypes."""
    numbers = (np.arange(16 * GRAIN) % 60).astype(np.float32)
    size = SIZES[dtype]
    part = np.s_[: numbers.size * size // 4]
    if dtype == "bfloat16":
        x[part].view(np.uint16)[:] = numbers.view(np.uint32) >> 16
    else:
        x[part].view(dtype)[:] = numbers
    run(x.ctypes.data, y.ctypes.data, numbers.size)
    result = (y[part].view(np.uint16).astype(np.uint32) << 16).view(np.float32) if dtype == "bfloat16" else y[part].view(dtype)
    assert np.array_equal(result, (numbers - CENTER) * SCALE + SHIFT)


def contestants(bodies, dtype, count, repeat, parallel):
    """By name what runs each `repeat` times; and the bytes that a run reads and writes."""
    size = SIZES[dtype]
    count_of_threads = settings.default_threads() if parallel else 1
    count = count // (GRAIN * count_of_threads) * GRAIN * count_of_threads
    x, y = on_a_line(count, size), on_a_line(count, size)
    runs = {}
    for body in bodies:
        if body in (tiled, arrays) and size == 2:
            continue  # it would need the stages
        run = compiled(body, dtype, parallel)
        verify(run, x, y, dtype)
        runs[body.__name__] = lambda run=run: [run(x.ctypes.data, y.ctypes.data, count) for _ in range(repeat)]
    runs["copy"] = lambda: [native.copy_limit(y, x, count_of_threads, stream=False) for _ in range(repeat)]
    runs["streaming copy"] = lambda: [native.copy_limit(y, x, count_of_threads, stream=True) for _ in range(repeat)]
    return runs, 2 * x.nbytes * repeat


def measure(title, megabytes, parallel, bodies, repeat):
    for dtype, size in SIZES.items():
        runs, moved = contestants(bodies, dtype, int(megabytes * 2**20 / size), repeat, parallel)
        for name, seconds in race(runs).items():
            print(f"{title:<14}{dtype:<10}{name:<16}{moved / seconds / 1e9:6.1f} GB/s", flush=True)


if __name__ == "__main__":
    threads.choose()
    threads.launch()
    measure("out of cache", 98, True, (streamed, tiled, plain), 1)
    measure("in L2", 0.125, False, (plain, arrays), 200)
