"""Each operation of cpunorm.jit.vectors, against NumPy, for the four dtypes, on a vector and on a group."""

import ctypes
import mmap
import platform
import re

import numpy as np
import pytest
from helpers import assert_same_bits

numba = pytest.importorskip("numba")
ml_dtypes = pytest.importorskip("ml_dtypes")

from llvmlite.binding import get_host_cpu_features  # noqa: E402
from numba import njit, types  # noqa: E402

from cpunorm.jit import vectors  # noqa: E402
from cpunorm.jit.lowlevel import FASTMATH, SUMMING, has_f16c, to_pointer  # noqa: E402

ELEMENTS = {"float32": types.float32, "float64": types.float64, "float16": types.uint16, "bfloat16": types.int16}
DTYPES = pytest.mark.parametrize("dtype", ELEMENTS)
SIZES = pytest.mark.parametrize("size", [1, vectors.GROUP])
NARROW = pytest.mark.parametrize("narrow", ["float16 by F16C", "float16 by its bits", "bfloat16"])


def dtype_of(name):
    return np.dtype(ml_dtypes.bfloat16 if name == "bfloat16" else name)


def computing(name):
    return np.dtype("float64" if name == "float64" else "float32")


def lanes_of(name, size=1):
    return size * vectors.REGISTER // computing(name).itemsize


def compiled(body, *dtypes, fastmath=FASTMATH):
    """body(pointer, ..., the rest), called with arrays for the pointers."""
    kinds = [types.CPointer(ELEMENTS[name]) for name in dtypes]
    inner = njit(fastmath=fastmath, error_model="numpy")(body)
    if len(kinds) == 2:
        one, two = kinds
        run = njit(lambda a, b, *rest: inner(to_pointer(a, one), to_pointer(b, two), *rest))
    else:
        one, two, three = kinds
        run = njit(lambda a, b, c, *rest: inner(to_pointer(a, one), to_pointer(b, two), to_pointer(c, three), *rest))
    return lambda *args: run(*(arg.ctypes.data if isinstance(arg, np.ndarray) else arg for arg in args))


def on_a_line(count, dtype):
    memory = np.zeros(count + 64, dtype)
    return memory[-memory.ctypes.data % 64 // memory.itemsize :][:count]


def values(name, count, seed=0):
    """Normal ones with NaN, infinities, zeros, a subnormal and the largest number among them."""
    dtype = dtype_of(name)
    info = ml_dtypes.finfo(dtype)
    v = np.random.default_rng(seed).normal(size=count).astype(dtype)
    unusual = [np.nan, np.inf, -np.inf, 0.0, -0.0, float(info.smallest_subnormal), float(info.max)]
    v[1 : 1 + len(unusual)] = unusual[: count - 1]
    return np.random.default_rng(seed + 1).permutation(v)


def pair(name):
    """load and splat of one size, by `size`."""
    return {1: (vectors.load, vectors.splat), vectors.GROUP: (vectors.load_group, vectors.splat_group)}[name]


@DTYPES
@SIZES
def test_loads_and_stores_move_any_alignment(dtype, size):
    load, _ = pair(size)
    n = lanes_of(dtype, size)

    def body(x, y):
        vectors.store(y, 2, load(x, 1))

    x, y = values(dtype, n + 2), np.zeros(n + 4, dtype_of(dtype))
    compiled(body, dtype, dtype)(x, y)
    assert_same_bits(y[2 : 2 + n], x[1 : 1 + n])
    assert not y[:2].any()
    assert not y[2 + n :].any()


@DTYPES
@SIZES
def test_streaming_stores_write_the_same_past_the_caches(dtype, size):
    load, _ = pair(size)
    n = lanes_of(dtype, size)
    skip = vectors.REGISTER // computing(dtype).itemsize  # the least alignment that is promised, not a line's

    def body(x, y):
        vectors.stream(y, skip, load(x, 0))

    kind = types.CPointer(ELEMENTS[dtype])
    x, y = values(dtype, n), on_a_line(n + 2 * skip, dtype_of(dtype))
    compiled(body, dtype, dtype)(x, y)
    assert_same_bits(y[skip : skip + n], x)
    assert not y[:skip].any()
    assert not y[skip + n :].any()
    function = njit(types.void(kind, kind), fastmath=FASTMATH, error_model="numpy")(body)
    (code,) = function.inspect_llvm().values()
    assert "nontemporal" in code
    if platform.machine() == "x86_64":
        (machine,) = function.inspect_asm().values()
        widths = {"xmm": 16, "ymm": 32, "zmm": 64}
        streamed = sum(widths[register] for register in re.findall(r"movnt\w+\s+%(\wmm)", machine))
        assert streamed > 0
        assert streamed % x.nbytes == 0  # all of it, in the function and perhaps in its wrapper


@DTYPES
@SIZES
def test_arithmetic_of_vectors_and_scalars(dtype, size):
    load, splat = pair(size)
    n, t = lanes_of(dtype, size), computing(dtype).type

    def body(x, other, out, two):
        a, b = load(x, 0), load(other, 0)
        vectors.store(out, 0, a + b)
        vectors.store(out, n, a - b)
        vectors.store(out, 2 * n, a * b)
        vectors.store(out, 3 * n, two - a)
        vectors.store(out, 4 * n, a * two)
        vectors.store(out, 5 * n, splat(x, two))
        c = a
        c += b
        c -= two
        c *= two
        vectors.store(out, 6 * n, c)

    x, other = values(dtype, n), values(dtype, n, seed=5)
    out = np.zeros(7 * n, computing(dtype))
    compiled(body, dtype, dtype, computing(dtype).name)(x, other, out, t(2))
    a, b, two = x.astype(t), other.astype(t), t(2)
    with np.errstate(all="ignore"):
        expected = np.concatenate([a + b, a - b, a * b, two - a, a * two, np.full(n, two), (a + b - two) * two])
    assert_same_bits(out + 0.0, expected + 0.0)  # + 0: the sign of a zero is nobody's business


@DTYPES
def test_a_scalar_of_another_dtype_is_refused(dtype):
    def body(x, y, wrong):
        vectors.store(y, 0, vectors.load(x, 0) * wrong)

    wrong = np.float32(2) if dtype == "float64" else np.float64(2)
    with pytest.raises(numba.TypingError):
        compiled(body, dtype, dtype)(values(dtype, 8), values(dtype, 8), wrong)


@DTYPES
@SIZES
def test_clip_keeps_nan(dtype, size):
    load, _ = pair(size)
    n, t = lanes_of(dtype, size), computing(dtype).type

    def body(x, y, floor, ceiling):
        vectors.store(y, 0, vectors.clip(load(x, 0), floor, ceiling))

    x, y = values(dtype, n), np.zeros(n, dtype_of(dtype))
    run = compiled(body, dtype, dtype)
    run(x, y, t(-np.inf), t(np.inf))
    assert_same_bits(y, x)
    run(x, y, t(-0.5), t(0.25))
    assert_same_bits(y, np.clip(x.astype(t), t(-0.5), t(0.25)).astype(y.dtype))
    assert np.isnan(y.astype(t)).any()


@DTYPES
@SIZES
def test_total_adds_halves_in_a_fixed_order_even_where_sums_may_be_regrouped(dtype, size):
    load, _ = pair(size)
    n, t = lanes_of(dtype, size), computing(dtype).type

    def body(x, out):
        vectors.store(out, 0, vectors.splat(out, vectors.total(load(x, 0))))

    run = compiled(body, dtype, computing(dtype).name, fastmath=SUMMING)
    for seed in range(20):
        x = np.random.default_rng(seed).normal(size=n).astype(dtype_of(dtype))
        out = np.zeros(lanes_of(dtype), computing(dtype))
        run(x, out)
        v = x.astype(t).reshape(size, -1)
        v = v[0] if size == 1 else (v[0] + v[1]) + (v[2] + v[3])
        while v.size > 1:
            v = v[: v.size // 2] + v[v.size // 2 :]
        assert_same_bits(out, np.full_like(out, v[0]))


@DTYPES
def test_a_vector_is_added_to_one_of_a_group(dtype):
    n = lanes_of(dtype)

    def body(x, y, z):
        group, v = vectors.load_group(x, 0), vectors.load(y, 0)
        vectors.store(z, 0, vectors.add_to(group, 0, v))
        vectors.store(z, 4 * n, vectors.add_to(group, 1, v))
        vectors.store(z, 8 * n, vectors.add_to(group, 2, v))
        vectors.store(z, 12 * n, vectors.add_to(group, 3, v))

    t = computing(dtype)
    x, y, z = values(dtype, 4 * n), values(dtype, n, seed=5), np.zeros(16 * n, t)
    compiled(body, dtype, dtype, t.name)(x, y, z)
    for part in range(vectors.GROUP):
        expected = x.astype(t)
        with np.errstate(all="ignore"):
            expected[part * n : (part + 1) * n] += y.astype(t)
        assert_same_bits(z[part * 4 * n :][: 4 * n] + 0, expected + 0)


@DTYPES
@SIZES
def test_last_lanes(dtype, size):
    load, _ = pair(size)
    n = lanes_of(dtype, size)

    def body(x, y, count):
        vectors.store(y, 0, vectors.last_lanes(load(x, 0), count))

    x, run = values(dtype, n), compiled(body, dtype, dtype)
    for count in range(n + 1):
        y = np.ones(n, x.dtype)
        run(x, y, count)
        assert_same_bits(y, np.where(np.arange(n) < n - count, x.dtype.type(0), x))


@DTYPES
def test_a_part_of_a_vector_touches_nothing_else(dtype):
    n, t = lanes_of(dtype), computing(dtype).type

    def body(x, y, count, pad, all_):
        v = vectors.load_some(x, 0, count, pad)
        vectors.store_some(y, 1, v, all_)

    run = compiled(body, dtype, dtype)
    for count in range(n + 1):
        x, y = values(dtype, n), np.ones(n + 2, dtype_of(dtype))
        run(x, y, count, t(3), n)
        assert_same_bits(y[1:-1], np.where(np.arange(n) < count, x, x.dtype.type(3)))
        y = np.ones(n + 2, x.dtype)
        run(x, y, n, t(3), count)
        expected = np.ones(n + 2, x.dtype)
        expected[1 : 1 + count] = x[:count]
        assert_same_bits(y, expected)


@DTYPES
@pytest.mark.skipif(not hasattr(mmap, "MAP_ANONYMOUS"), reason="needs pages that may not be touched, as POSIX has them")
def test_a_part_of_a_vector_may_end_where_memory_ends(dtype):
    """A page, and after it one that may neither be read nor written."""
    t = computing(dtype).type
    memory = mmap.mmap(-1, 2 * mmap.PAGESIZE)
    bytes_ = np.frombuffer(memory, np.uint8)
    end = bytes_.ctypes.data + mmap.PAGESIZE
    protect = ctypes.CDLL(None, use_errno=True).mprotect
    assert protect(ctypes.c_void_p(end), ctypes.c_size_t(mmap.PAGESIZE), 0) == 0

    def body(x, y, pad):
        v = vectors.load_some(x, 0, 3, pad)
        vectors.store_some(y, 0, v + v, 3)

    x = bytes_[: mmap.PAGESIZE].view(dtype_of(dtype))[-3:]
    x[:] = [1, 2, 3]
    compiled(body, dtype, dtype)(x, x, t(0))
    assert x.tolist() == [2, 4, 6]


def narrow_dtype(narrow, monkeypatch):
    if narrow == "float16 by F16C" and not has_f16c():
        pytest.skip("this CPU has no F16C")
    if narrow == "float16 by its bits":
        monkeypatch.setattr(vectors, "has_f16c", lambda: False)
    return narrow.split(maxsplit=1)[0]


@NARROW
@SIZES
def test_all_16_bit_patterns_widen_exactly_and_come_back(narrow, size, monkeypatch):
    dtype = narrow_dtype(narrow, monkeypatch)
    load, _ = pair(size)
    n = lanes_of(dtype, size)

    def body(x, wide, back, count):
        for i in range(0, count, n):
            v = load(x, i)
            vectors.store(wide, i, v)
            vectors.store(back, i, v)

    x = np.arange(2**16, dtype=np.uint16).view(dtype_of(dtype))
    wide, back = np.zeros(2**16, np.float32), np.zeros_like(x)
    compiled(body, dtype, "float32", dtype)(x, wide, back, 2**16)
    with np.errstate(invalid="ignore"):
        assert_same_bits(wide, x.astype(np.float32))
    assert_same_bits(back, x)


@NARROW
@SIZES
def test_narrowing_rounds_to_nearest_with_ties_to_even(narrow, size, monkeypatch):
    dtype = narrow_dtype(narrow, monkeypatch)
    load, _ = pair(size)
    n = lanes_of(dtype, size)

    def body(x, y, count):
        for i in range(0, count, n):
            vectors.store(y, i, load(x, i))

    with np.errstate(all="ignore"):
        every = np.arange(2**16, dtype=np.uint16).view(dtype_of(dtype)).astype(np.float32)
        following = np.roll(every, -1)
        ties = np.where(np.isfinite(every) & np.isfinite(following), (every.astype(np.float64) + following) / 2, every).astype(np.float32)
        x = np.concatenate(
            [ties, np.nextafter(ties, np.float32(np.inf)), np.nextafter(ties, np.float32(-np.inf)), every * np.float32(1e30)]
        )
        y = np.zeros(x.size, dtype_of(dtype))
        compiled(body, "float32", dtype)(x, y, x.size)
        assert_same_bits(y, x.astype(y.dtype))


def test_prefetch_may_leave_the_array():
    def body(x, y):
        vectors.prefetch(x, 0, 1 << 40)
        vectors.prefetch_group(x, 0, -(1 << 40))
        vectors.store(y, 0, vectors.load(x, 0))

    x, y = values("float32", 8), np.zeros(8, np.float32)
    compiled(body, "float32", "float32")(x, y)
    assert_same_bits(y, x)


def test_a_product_and_a_sum_are_one_rounding():
    def body(x, y, s):
        v = vectors.load(x, 0)
        vectors.store(y, 0, v * v - s)

    t = np.float32(1 + 2**-12)
    x, y = np.full(8, t), np.zeros(8, np.float32)
    compiled(body, "float32", "float32", fastmath=False)(x, y, t * t)
    exact = np.float64(t) ** 2 - np.float64(t * t)
    features = get_host_cpu_features()
    assert y[0] == (exact if features.get("fma") or features.get("neon") else 0)
