"""Stages: ``stage(target, source, count)``, called by address once a tile: an activation that is no clip, and local response norm's dtypes.

bfloat16 is converted by integer arithmetic on its bits; float16 by F16C's instructions, and where the CPU lacks these, in the same way.
"""

# ruff: noqa: ANN001, ANN201  (typed by the signatures in `cpunorm.jit.backend`)

from __future__ import annotations

import numpy as np

from cpunorm.jit.lowlevel import (
    HALVES,
    VECTOR_BYTES,
    address,
    as_uint8,
    as_uint16,
    as_uint32,
    bits_of,
    float_of,
    inline,
    narrow_halves,
    offset,
    power_of_two,
    size_of,
    stream,
    view,
    widen_halves,
)

U = np.uint32
ROUND = np.float32(1.5 * 2.0**23)  # added to a small number, it leaves the nearest whole one in the sum's last bits, ties to even
LOG2_E = 1.4426950408889634
LN2_HIGH = 0.693145751953125  # 16 bits: whole multiples of it are exact in float32
LN2_LOW = 1.4286068203094173e-06


# ---------------------------------------------------------------- load: to T


@inline
def float16_to_float32(tile, x, count):
    """Shift the bits into float32's fields, then multiply by 2^112, which mends the exponent, of subnormals too."""
    v = view(x, 0, count)
    z = view(tile, 0, count)
    scale = np.float32(2.0**112)
    for q in range(count):
        h = U(v[q])
        m = (h & U(0x7FFF)) << U(13)
        special = U(0x7F800000) if (h & U(0x7C00)) == U(0x7C00) else U(0)
        f = bits_of(float_of(m) * scale)
        z[q] = float_of(f | special | ((h & U(0x8000)) << U(16)))


def load_float16_bits(tile, x, count):
    """By their bits."""
    float16_to_float32(tile, as_uint16(x), count)


def load_float16_f16c(tile, x, count):
    """By vectors; the values that fill none by their bits."""
    vectors = count // HALVES
    widen_halves(tile, as_uint16(x), vectors)
    done = vectors * HALVES
    float16_to_float32(offset(tile, done), offset(as_uint16(x), done), count - done)


def load_bfloat16(tile, x, count):
    """The upper half of a float32."""
    v = view(as_uint16(x), 0, count)
    z = view(as_uint32(tile), 0, count)
    for q in range(count):
        z[q] = U(v[q]) << U(16)


def load_uint8(tile, x, count):
    """Exact."""
    v = view(as_uint8(x), 0, count)
    z = view(tile, 0, count)
    for q in range(count):
        z[q] = v[q]


def load_uint16(tile, x, count):
    """Exact."""
    v = view(as_uint16(x), 0, count)
    z = view(tile, 0, count)
    for q in range(count):
        z[q] = v[q]


# ---------------------------------------------------------------- activation


@inline
def clip6(u, zero, six):
    """min(max(u, 0), 6); NaN stays."""
    u = zero if u < zero else u
    return six if u > six else u


def hardswish(target, source, count):
    """x * min(max(x + 3, 0), 6) / 6"""
    z = view(target, 0, count)
    v = view(source, 0, count)
    zero = v.dtype.type(0)
    three = v.dtype.type(3)
    six = v.dtype.type(6)
    for q in range(count):
        z[q] = v[q] * clip6(v[q] + three, zero, six) / six


def silu(target, source, count):
    """x / (1 + exp(-x)); exp(y) = exp(r) 2^n with |r| <= ln(2) / 2, exp(r) by its Taylor polynomial to r^13."""
    z = view(target, 0, count)
    v = view(source, 0, count)
    t = v.dtype.type
    one = t(1)
    lowest = t(-120.0) if size_of(source) == 4 else t(-1000.0)  # beyond where exp leaves the numbers, on either side
    for q in range(count):
        y = -v[q]
        y = lowest if y < lowest else y
        y = -lowest if y > -lowest else y
        n = np.rint(y * t(LOG2_E))
        r = (y - n * t(LN2_HIGH)) - n * t(LN2_LOW)
        e = t(1 / 6227020800)
        e = e * r + t(1 / 479001600)
        e = e * r + t(1 / 39916800)
        e = e * r + t(1 / 3628800)
        e = e * r + t(1 / 362880)
        e = e * r + t(1 / 40320)
        e = e * r + t(1 / 5040)
        e = e * r + t(1 / 720)
        e = e * r + t(1 / 120)
        e = e * r + t(1 / 24)
        e = e * r + t(1 / 6)
        e = e * r + t(1 / 2)
        e = e * r + one
        e = e * r + one
        half = np.rint(n * t(0.5))  # in two steps, so that each is a number: exp overflows and underflows as it should
        z[q] = v[q] / (one + e * power_of_two(half) * power_of_two(n - half))


# ---------------------------------------------------------------- store: from T


def store_plain(y, tile, count):
    """Through the caches. For results written over their input: LLVM does not vectorize a loop whose ends may overlap."""
    to = view(y, 0, count)
    v = view(tile, 0, count)
    for q in range(count):
        to[q] = v[q]


def store_stream(y, tile, count):
    """Past the caches, for results larger than these; the ends that fill no vector go the ordinary way."""
    vectors = 0
    if address(y) & (VECTOR_BYTES - 1) == 0:
        vectors = count * size_of(y) // VECTOR_BYTES
        stream(y, tile, vectors)
    done = vectors * VECTOR_BYTES // size_of(y)
    to = view(y, done, count - done)
    v = view(tile, done, count - done)
    for q in range(v.size):
        to[q] = v[q]


@inline
def float32_to_float16(y, tile, count):
    """To nearest, ties to even. A subnormal is rounded by adding a number whose last bit is its unit; NaN becomes the quiet one."""
    v = view(as_uint32(tile), 0, count)
    z = view(y, 0, count)
    magic = U(((127 - 15) + (23 - 10) + 1) << 23)
    for q in range(count):
        bits = v[q]
        sign = (bits & U(0x80000000)) >> U(16)
        f = bits & U(0x7FFFFFFF)
        normal = (f + U(0xC8000FFF) + ((f >> U(13)) & U(1))) >> U(13)  # exponent moved by 15 - 127, then rounded
        small = bits_of(float_of(f) + float_of(magic)) - magic
        large = U(0x7E00) if f > U(0x7F800000) else U(0x7C00)
        h = small if f < U(0x38800000) else normal
        h = large if f >= U(0x47800000) else h
        z[q] = np.uint16(h | sign)


def store_float16_bits(y, tile, count):
    """By their bits."""
    float32_to_float16(as_uint16(y), tile, count)


def store_float16_f16c(y, tile, count):
    """By vectors, to nearest, ties to even; the values that fill none by their bits."""
    vectors = count // HALVES
    narrow_halves(as_uint16(y), tile, vectors)
    done = vectors * HALVES
    float32_to_float16(offset(as_uint16(y), done), offset(tile, done), count - done)


def store_bfloat16(y, tile, count):
    """To nearest, ties to even; NaN stays one."""
    v = view(as_uint32(tile), 0, count)
    z = view(as_uint16(y), 0, count)
    for q in range(count):
        f = v[q]
        rounded = (f + U(0x7FFF) + ((f >> U(16)) & U(1))) >> U(16)
        quiet = (f >> U(16)) | U(0x40)
        z[q] = np.uint16(quiet if (f & U(0x7FFFFFFF)) > U(0x7F800000) else rounded)


@inline
def rounded(value, low, high):
    """To nearest, ties to even, between `low` and `high`; NaN becomes `low`. As a number of 32 bits, two's complement."""
    inside = value if value > low else low
    inside = inside if inside < high else high
    return U(bits_of(inside + ROUND) - bits_of(ROUND))


def store_uint8(y, tile, count):
    """Rounded and clipped."""
    v = view(tile, 0, count)
    z = view(as_uint8(y), 0, count)
    for q in range(count):
        z[q] = np.uint8(rounded(v[q], np.float32(0), np.float32(255)))


def store_int8(y, tile, count):
    """Rounded and clipped; the last byte of the bits, two's complement as it is."""
    v = view(tile, 0, count)
    z = view(as_uint8(y), 0, count)
    for q in range(count):
        z[q] = np.uint8(rounded(v[q], np.float32(-128), np.float32(127)) & U(255))
