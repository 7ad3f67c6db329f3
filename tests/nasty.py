"""Arrays that look for trouble: values at the ends of every range, in memory of any strides, between guards.

Memory that belongs to no element is full of `CANARY`, which is NaN in every float dtype: what reads it shows in a result, what writes it in
`Held.changed`. With an `edge` the memory ends (or starts) at a page that nobody may touch: reading one byte further ends the process.
"""

import ctypes
import mmap
import sys
from typing import NamedTuple

import numpy as np
from hypothesis import strategies as st

from cpunorm import samples

CANARY = 0xFF
MARGIN = 64  # bytes on either side

# ---------------------------------------------------------------- values

# Up to which the statistics of a dtype are promised; beyond it squares leave float64, or sums float32.
LARGEST = {"float16": 65504.0, "bfloat16": 1e37, "float32": 1e37, "float64": 1e150}
SMALLEST = {"float16": 2.0**-24, "bfloat16": 2.0**-133, "float32": 2.0**-149, "float64": 2.0**-1074}  # subnormal
STEP = {"float16": 2.0**-10, "bfloat16": 2.0**-7, "float32": 2.0**-23, "float64": 2.0**-52}  # from 1 to what follows


def borders(dtype, most):
    """Where something happens: the ends of this dtype and of the 16-bit ones, halves between their numbers, zeros of either sign."""
    ends = [most, SMALLEST[dtype], 1.0, 1 + STEP[dtype], 0.0, 6.0, 3.0]
    narrow = [65504.0, 65519.99, 65520.0, 2.0**-24, 2.0**-25, 2.0**-14, 1 + 2.0**-11, 1 + 3 * 2.0**-11, 1 + 2.0**-8, 2.0**-126, 2.0**-134]
    values = np.array([*ends, *(value for value in narrow if value <= most)])
    return np.concatenate([values, -values])


KINDS = {
    "normal": lambda rng, shape, dtype, most: rng.normal(rng.normal(0, 5), 2, shape),
    "far": lambda rng, shape, dtype, most: rng.normal(1, 1, shape) + min(0.02 / STEP[dtype], most / 100) * rng.choice([-1, 1]),
    "constant": lambda rng, shape, dtype, most: np.full(shape, rng.choice([14, 0.1, 1003.1, -0.0, rng.normal(0, 1e3)])),
    "stripes": lambda rng, shape, dtype, most: (
        rng.normal(0, 9, [size if i == rng.integers(len(shape)) else 1 for i, size in enumerate(shape)]) + np.zeros(shape)
    ),
    "subnormal": lambda rng, shape, dtype, most: SMALLEST[dtype] * rng.integers(-99, 100, shape),
    "huge": lambda rng, shape, dtype, most: most * rng.uniform(-1, 1, shape),
    "scales": lambda rng, shape, dtype, most: rng.normal(0, 1, shape) * 10.0 ** rng.integers(-4, 4, shape),
    "all scales": lambda rng, shape, dtype, most: (
        np.exp2(rng.uniform(np.log2(SMALLEST[dtype]), np.log2(most), shape)) * rng.choice([-1, 1], shape)
    ),
    "integers": lambda rng, shape, dtype, most: rng.integers(-5, 6, shape),
    "zeros": lambda rng, shape, dtype, most: rng.choice([0.0, -0.0], shape),
    "spike": lambda rng, shape, dtype, most: (rng.random(shape) < 0.01) * most / 1e3,
    "borders": lambda rng, shape, dtype, most: rng.choice(borders(dtype, most), shape),
    "first apart": lambda rng, shape, dtype, most: (
        rng.normal(0, 1, shape) + 1e4 * (np.arange(np.prod(shape, dtype=int)).reshape(shape) == 0)
    ),
}
FLOATS = (*KINDS, "bits")
_NANS = {  # quiet, with a payload, signalling, negative; of 16 bits those that rounding as a number would carry over
    "float16": (0x7E00, 0x7FFF, 0x7D01, 0xFFFF),
    "bfloat16": (0x7FC0, 0x7FFF, 0x7F81, 0xFFFF),
    "float32": (0x7FC00000, 0x7FFFFFFF, 0x7F800001, 0xFFFFFFFF),
    "float64": (0x7FF8 << 48, (1 << 63) - 1, (0x7FF0 << 48) + 1, (1 << 64) - 1),
}


def values(shape, dtype, kind, guests, seed, power=1.0):
    """An array of this kind ("bits": any bits), some of its elements NaN ("n"), infinite ("i") or zeros of either sign ("z").

    `power` of the largest value is the largest here, for what multiplies several values.
    """
    most = LARGEST.get(dtype, 1.0) ** power
    rng = np.random.default_rng(seed)
    to = samples.dtype_of(dtype)
    if dtype not in LARGEST:
        span = np.iinfo(to)
        narrow = {
            "constant": lambda: np.full(shape, rng.integers(span.min, span.max, endpoint=True)),
            "integers": lambda: rng.integers(0, 6, shape),
        }
        return narrow.get(kind, lambda: rng.integers(span.min, span.max, shape, to, endpoint=True))().astype(to)
    bits = np.dtype(f"u{to.itemsize}")
    if kind == "bits":
        x = rng.integers(0, np.iinfo(bits).max, shape, bits, endpoint=True).view(to)
        with np.errstate(all="ignore"):
            x[(np.abs(x) > most) & (np.abs(x) < np.inf)] = 1
        return x
    with np.errstate(all="ignore"):
        x = np.asarray(KINDS[kind](rng, shape, dtype, most)).astype(to)
    flat = x.reshape(-1)
    for guest in guests if x.size else "":
        at = rng.integers(x.size, size=rng.integers(1, 3))
        if guest == "n":
            flat.view(bits)[at] = np.array(_NANS[dtype], bits)[rng.integers(4, size=at.size)]
        else:
            flat[at] = rng.choice([np.inf, -np.inf] if guest == "i" else [0.0, -0.0], at.size).astype(to)
    return x


# ---------------------------------------------------------------- memory


class Memory(NamedTuple):
    """Where an array lies: axes from the longest stride to the shortest, the step and the gap of each, and what is odd besides."""

    order: tuple[int, ...]
    steps: tuple[int, ...]
    gaps: tuple[int, ...]
    shift: int = 0  # bytes that it is off its alignment
    swapped: bool = False
    flat: tuple[int, ...] = ()  # axes of stride 0
    edge: str = ""  # "start", "end": a forbidden page there


@st.composite
def memories(draw, rank, *, writable=False):
    """Mostly plain ones; odd ones one thing at a time."""
    plain = tuple(range(rank))
    odd = draw(st.sampled_from(["", "", "order", "order", "steps", "gaps", "any", "shift", "swapped", "flat"]))
    order = tuple(draw(st.permutations(plain))) if odd in ("order", "any", "flat") else plain
    ones, none = (1,) * rank, (0,) * rank
    steps = tuple(draw(st.lists(st.sampled_from([1, 1, 2, -1, -3]), min_size=rank, max_size=rank))) if odd in ("steps", "any") else ones
    gaps = tuple(draw(st.lists(st.sampled_from([0, 0, 1, 5]), min_size=rank, max_size=rank))) if odd in ("gaps", "any") else none
    flat = () if odd != "flat" or writable else tuple(sorted(draw(st.sets(st.integers(0, rank - 1), min_size=1))))
    shift = draw(st.sampled_from([1, 2, 4])) if odd == "shift" else 0
    return Memory(order, steps, gaps, shift, odd == "swapped" and not writable, flat, draw(st.sampled_from(["", "start", "end"])))


class Held:
    """An array, and all the memory around it as it was."""

    def __init__(self, given, memory, dtype=None):
        kind = np.dtype(dtype or given.dtype)
        kind = kind.newbyteorder() if memory.swapped else kind
        strides, stride, offset = [0] * given.ndim, kind.itemsize, 0
        for axis in reversed(memory.order):
            size, step = given.shape[axis], memory.steps[axis]
            if axis in memory.flat:
                continue
            strides[axis] = stride * step
            offset += stride * (size - 1) * -step if step < 0 else 0
            stride *= size * abs(step) + memory.gaps[axis]
        length = max(stride, 0) + memory.shift
        self.raw, start = _room(length, memory.edge)
        at = start + memory.shift + offset
        self.array = np.ndarray(given.shape, kind, self.raw, at if given.size else 0, strides)
        if given.size:
            thin = tuple(slice(0, 1) if axis in memory.flat else slice(None) for axis in range(given.ndim))
            self.array[thin] = given[thin]
        self.before = self.raw.copy()

    def changed(self, *, written=False):
        """Whether a byte was changed; `written`: one that belongs to no element."""
        differs = self.raw != self.before
        if written and self.array.size:
            mine = np.zeros(self.raw.shape, bool)
            at = self.array.__array_interface__["data"][0] - self.raw.__array_interface__["data"][0]
            np.ndarray((*self.array.shape, self.array.itemsize), bool, mine, at, (*self.array.strides, 1))[...] = True
            differs &= ~mine
        return bool(differs.any())


def _room(length, edge):
    """(bytes full of `CANARY`, where `length` of them start)."""
    if not edge or not sys.platform.startswith("linux"):
        return np.full(length + 2 * MARGIN, CANARY, np.uint8), MARGIN
    page = mmap.PAGESIZE
    pages = -(-(length + MARGIN) // page)
    space = np.frombuffer(mmap.mmap(-1, (pages + 1) * page), np.uint8)
    forbidden = space.ctypes.data + (pages * page if edge == "end" else 0)
    if ctypes.CDLL(None).mprotect(ctypes.c_void_p(forbidden), ctypes.c_size_t(page), 0):
        raise OSError("mprotect")
    raw = space[: pages * page] if edge == "end" else space[page:]
    raw[...] = CANARY
    return raw, pages * page - length if edge == "end" else 0
