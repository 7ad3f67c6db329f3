"""Vectors for Numba: a value of several lanes that lives in registers, and what the kernels do with it.

LLVM turns a loop over arrays into vectors by itself, but only where it can show that nothing overlaps, only for runs long enough to pay
for that check, and never into streaming stores. Here the vector is in the source. Its type is `Vector`, LLVM's ``<lanes x T>``, of two
sizes:

* a *vector* is one register of `REGISTER` bytes: 8 lanes of float32, 4 of float64;
* a *group* is `GROUP` of them. LLVM splits it into the registers that the CPU has: ``stream(y, i, affine(load_group(x, i)))`` is four
  loads, four computations and four streaming stores, two cache lines in one go, with no tile between. (benchmarks/vectors.py)

Memory is read and written by element pointers; E is the element's dtype, T the computing dtype, which the lanes have:

=====================  ========  =======  ==============================================================
pointer                E         T        between the two
=====================  ========  =======  ==============================================================
``CPointer(float32)``  float32   float32
``CPointer(float64)``  float64   float64
``CPointer(uint16)``   float16   float32  F16C's instructions; without them integer arithmetic on the bits
``CPointer(int16)``    bfloat16  float32  integer arithmetic on the bits
=====================  ========  =======  ==============================================================

Both 16-bit dtypes are rounded to nearest, ties to even, and NaN stays NaN, as in csrc/stages.inc. A 16-bit vector has the lanes of T.

``+``, ``-``, ``*`` take two vectors of one size, or a vector and a T. All arithmetic here has flags of its own, whatever the function's:
a*b+c may be one rounding, the sign of a zero is nobody's business, and nothing is regrouped: a sum of lanes keeps its order. Everything
is generated in place: the machine code has no call, and a kernel pays for no further function to compile.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.core.datamodel import models
from numba.core.typing.templates import AbstractTemplate, infer_global, signature
from numba.extending import intrinsic, lower_builtin, register_model

from cpunorm.jit.lowlevel import COMPUTING, VECTOR_BYTES, has_f16c

REGISTER = VECTOR_BYTES  # bytes of a vector: one AVX register, two SSE or NEON ones
GROUP = 4  # vectors of a group: two cache lines of float32
FLAGS = ("contract", "nsz")  # an instruction with flags of its own gets no others
LINE = 64  # bytes
LOCALITY = 2  # of a prefetch: into L2

I16, I32, I64 = (ir.IntType(bits) for bits in (16, 32, 64))


class Vector(types.Type):
    """`lanes` values of `dtype`, float32 or float64."""

    def __init__(self, dtype: Any, lanes: int) -> None:
        self.dtype = dtype
        self.lanes = lanes
        super().__init__(name=f"Vector({dtype}, {lanes})")


@register_model(Vector)
class VectorModel(models.PrimitiveModel):
    """LLVM's vector, in memory as in registers."""

    def __init__(self, manager: Any, vector: Any) -> None:
        super().__init__(manager, vector, ir.VectorType(manager[vector.dtype].get_value_type(), vector.lanes))


# ---------------------------------------------------------------- how it is generated


def _vector(pointer: Any, size: int) -> Vector:
    """The type of `size` vectors, of the computing dtype of what `pointer` points at."""
    dtype = COMPUTING[pointer.dtype]
    return Vector(dtype, size * REGISTER * 8 // dtype.bitwidth)


def _same(kind: Any, value: Any) -> Any:
    """A constant, the same in all lanes."""
    return ir.Constant(kind, [value] * kind.count)


def _integers(kind: Any, item: Any = I32) -> Any:
    return ir.VectorType(item, kind.count)


def _floats(kind: Any) -> Any:
    return ir.VectorType(ir.FloatType(), kind.count)


def _lanes(builder: Any, value: Any, first: int, count: int) -> Any:
    """value[first : first + count]"""
    order = ir.Constant(ir.VectorType(I32, count), list(range(first, first + count)))
    return builder.shuffle_vector(value, ir.Constant(value.type, ir.Undefined), order)


def _spread(builder: Any, value: Any, kind: Any) -> Any:
    """A scalar in all lanes; a vector as it is."""
    if value.type == kind:
        return value
    one = builder.insert_element(ir.Constant(kind, ir.Undefined), value, I32(0))
    return builder.shuffle_vector(one, one, ir.Constant(_integers(kind), None))


def _below(builder: Any, count: Any, kind: Any) -> Any:
    """Which lanes have an index below `count`, compared as integers of the lanes' width: that is the width of a mask."""
    item = I64 if kind.element == ir.DoubleType() else I32
    index = ir.Constant(_integers(kind, item), list(range(kind.count)))
    return builder.icmp_signed("<", index, _spread(builder, builder.trunc(count, item) if item == I32 else count, index.type))


def _widen_float16(builder: Any, raw: Any) -> Any:
    """Shift the bits into float32's fields, then multiply by 2^112, which mends the exponent, of subnormals too."""
    kind, single = _integers(raw.type), _floats(raw.type)
    h = builder.zext(raw, kind)
    m = builder.shl(builder.and_(h, _same(kind, 0x7FFF)), _same(kind, 13))
    f = builder.bitcast(builder.fmul(builder.bitcast(m, single), _same(single, 2.0**112), flags=FLAGS), kind)
    unusual = builder.icmp_signed("==", builder.and_(h, _same(kind, 0x7C00)), _same(kind, 0x7C00))
    special = builder.select(unusual, _same(kind, 0x7F800000), _same(kind, 0))
    sign = builder.shl(builder.and_(h, _same(kind, 0x8000)), _same(kind, 16))
    return builder.bitcast(builder.or_(builder.or_(f, special), sign), single)


def _narrow_float16(builder: Any, value: Any) -> Any:
    """A subnormal is rounded by adding a number whose last bit is its unit; NaN becomes the quiet one.

    Magnitudes are compared as signed numbers, which they are below 2^31: SSE2 and AVX2 have no other comparison of integers.
    """
    kind, single = _integers(value.type), value.type
    magic = (127 - 15 + 23 - 10 + 1) << 23
    bits = builder.bitcast(value, kind)
    sign = builder.lshr(builder.and_(bits, _same(kind, 0x80000000)), _same(kind, 16))
    f = builder.and_(bits, _same(kind, 0x7FFFFFFF))
    odd = builder.and_(builder.lshr(f, _same(kind, 13)), _same(kind, 1))
    moved = builder.add(builder.add(f, _same(kind, 0xC8000FFF)), odd)  # exponent by 15 - 127, and rounded
    normal = builder.lshr(moved, _same(kind, 13))
    sum_ = builder.fadd(builder.bitcast(f, single), builder.bitcast(_same(kind, magic), single), flags=FLAGS)
    small = builder.sub(builder.bitcast(sum_, kind), _same(kind, magic))
    large = builder.select(builder.icmp_signed(">", f, _same(kind, 0x7F800000)), _same(kind, 0x7E00), _same(kind, 0x7C00))
    h = builder.select(builder.icmp_signed("<", f, _same(kind, 0x38800000)), small, normal)
    h = builder.select(builder.icmp_signed(">=", f, _same(kind, 0x47800000)), large, h)
    return builder.trunc(builder.or_(h, sign), _integers(kind, I16))


def _narrow_bfloat16(builder: Any, value: Any) -> Any:
    """The upper half, rounded; of a NaN the upper half, made quiet, as rounding could make it infinity."""
    kind = _integers(value.type)
    f = builder.bitcast(value, kind)
    odd = builder.and_(builder.lshr(f, _same(kind, 16)), _same(kind, 1))
    rounded = builder.add(builder.add(f, _same(kind, 0x7FFF)), odd)
    quiet = builder.or_(f, _same(kind, 0x400000))
    is_nan = builder.fcmp_unordered("uno", value, value, flags=FLAGS)
    # NaN is looked for once for all lanes: selecting in each takes a third of the time of a streamed affine.
    mask = builder.bitcast(is_nan, ir.IntType(kind.count))
    result = cgutils.alloca_once_value(builder, rounded)
    with builder.if_then(builder.icmp_unsigned("!=", mask, ir.Constant(mask.type, 0)), likely=False):
        builder.store(builder.select(is_nan, quiet, rounded), result)
    return builder.trunc(builder.lshr(builder.load(result), _same(kind, 16)), _integers(kind, I16))


def _widen(builder: Any, raw: Any, element: Any) -> Any:
    """Lanes as they are in memory to lanes of T."""
    if element == types.uint16 and has_f16c():
        return builder.fpext(builder.bitcast(raw, ir.VectorType(ir.HalfType(), raw.type.count)), _floats(raw.type))
    if element == types.uint16:
        return _widen_float16(builder, raw)
    if element == types.int16:
        kind = _integers(raw.type)
        return builder.bitcast(builder.shl(builder.zext(raw, kind), _same(kind, 16)), _floats(raw.type))
    return raw


def _narrow(builder: Any, value: Any, element: Any) -> Any:
    """Lanes of T to lanes as they are in memory."""
    if element == types.uint16 and has_f16c():
        half = builder.fptrunc(value, ir.VectorType(ir.HalfType(), value.type.count))
        return builder.bitcast(half, _integers(value.type, I16))
    if element == types.uint16:
        return _narrow_float16(builder, value)
    if element == types.int16:
        return _narrow_bfloat16(builder, value)
    return value


def _place(builder: Any, pointer: Any, index: Any, lanes: int) -> Any:
    """&pointer[index] as a pointer to a vector of what is there."""
    kind = ir.VectorType(pointer.type.pointee, lanes)
    return builder.bitcast(builder.gep(pointer, [index]), kind.as_pointer())


def _masked(builder: Any, name: str, result: Any, kind: Any, args: Any) -> Any:
    """A masked load or store: its name ends in the types of vector and pointer. No lane outside the mask is touched."""
    letters = {ir.FloatType(): "f32", ir.DoubleType(): "f64", I16: "i16"}
    function = ir.FunctionType(result, [arg.type for arg in args])
    full = f"llvm.masked.{name}.v{kind.count}{letters[kind.element]}.p0"
    return builder.call(cgutils.get_or_insert_function(builder.module, function, full), args)


# ---------------------------------------------------------------- memory


def _load(size: int) -> Any:
    @intrinsic
    def load(context: Any, pointer: Any, index: Any) -> Any:
        vector = _vector(pointer, size)

        def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            raw = builder.load(_place(builder, *args, vector.lanes))
            raw.align = pointer.dtype.bitwidth // 8
            return _widen(builder, raw, pointer.dtype)

        return vector(pointer, types.intp), generate

    return load


load = _load(1)
"""load(p, i): the vector p[i : i + lanes(p)], of T. No alignment is asked for."""
load_group = _load(GROUP)
"""load_group(p, i): the group p[i : i + GROUP * lanes(p)], of T. No alignment is asked for."""


@intrinsic
def store(context: Any, pointer: Any, index: Any, value: Any) -> Any:
    """p[i : i + lanes] = value, a vector or a group. No alignment is asked for."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        to = _place(builder, *args[:2], value.lanes)
        builder.store(_narrow(builder, args[2], pointer.dtype), to).align = pointer.dtype.bitwidth // 8
        return context.get_dummy_value()

    return types.void(pointer, types.intp, value), generate


@intrinsic
def stream(context: Any, pointer: Any, index: Any, value: Any) -> Any:
    """The same past the caches. p + i is aligned to a vector in memory, 16 bytes of a 16-bit dtype and 32 of others: else the CPU traps."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        one = REGISTER * pointer.dtype.bitwidth // value.dtype.bitwidth
        done = builder.store(_narrow(builder, args[2], pointer.dtype), _place(builder, *args[:2], value.lanes))
        done.align = one
        done.set_metadata("nontemporal", builder.module.add_metadata([I32(1)]))
        return context.get_dummy_value()

    return types.void(pointer, types.intp, value), generate


@intrinsic
def load_some(context: Any, pointer: Any, index: Any, count: Any, pad: Any) -> Any:
    """A vector of p[i : i + count], then lanes of `pad`. Nothing after these `count` is read."""
    vector = _vector(pointer, 1)

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        place = _place(builder, *args[:2], vector.lanes)
        kind, whole = place.type.pointee, context.get_value_type(vector)
        mask = _below(builder, args[2], whole)
        aligned = pointer.dtype.bitwidth // 8
        if pointer.dtype == vector.dtype:
            raw = _masked(builder, "load", kind, kind, [place, I32(aligned), mask, ir.Constant(kind, None)])
        else:  # AVX2 has no mask for 16 bits: all lanes at once, if all are asked for, else one by one
            with builder.if_else(builder.icmp_signed(">=", args[2], I64(vector.lanes))) as (all_, some):
                with all_:
                    every = builder.load(place)
                    every.align = aligned
                    after_all = builder.block
                with some:
                    few = _masked(builder, "load", kind, kind, [place, I32(aligned), mask, ir.Constant(kind, None)])
                    after_some = builder.block
            raw = builder.phi(kind)
            raw.add_incoming(every, after_all)
            raw.add_incoming(few, after_some)
        return builder.select(mask, _widen(builder, raw, pointer.dtype), _spread(builder, args[3], whole))

    return vector(pointer, types.intp, types.intp, vector.dtype), generate


@intrinsic
def store_some(context: Any, pointer: Any, index: Any, value: Any, count: Any) -> Any:
    """p[i : i + count] = the first lanes of a vector. Nothing after these `count` is written."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        narrow = _narrow(builder, args[2], pointer.dtype)
        aligned = pointer.dtype.bitwidth // 8
        with builder.if_else(builder.icmp_signed(">=", args[3], I64(value.lanes))) as (all_, some):
            with all_:
                builder.store(narrow, _place(builder, *args[:2], value.lanes)).align = aligned
            with some:  # by halves, a few predictable branches: a masked store takes 42 operations on AMD, and AVX2 has none for 16 bits
                rest, at = (cgutils.alloca_once_value(builder, first) for first in (narrow, args[1]))
                half = value.lanes // 2
                while half:
                    with builder.if_then(builder.icmp_signed("!=", builder.and_(args[3], I64(half)), I64(0))):
                        left, index = builder.load(rest), builder.load(at)
                        builder.store(_lanes(builder, left, 0, half), _place(builder, args[0], index, half)).align = aligned
                        turned = ir.Constant(ir.VectorType(I32, value.lanes), [(lane + half) % value.lanes for lane in range(value.lanes)])
                        builder.store(builder.shuffle_vector(left, left, turned), rest)
                        builder.store(builder.add(index, I64(half)), at)
                    half //= 2
        return context.get_dummy_value()

    return types.void(pointer, types.intp, value, types.intp), generate


def _prefetch(size: int) -> Any:
    @intrinsic
    def prefetch(context: Any, pointer: Any, index: Any, ahead: Any) -> Any:
        length = _vector(pointer, size).lanes * pointer.dtype.bitwidth // 8

        def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            byte = ir.IntType(8).as_pointer()
            function = ir.FunctionType(ir.VoidType(), [byte, I32, I32, I32])
            ask = cgutils.get_or_insert_function(builder.module, function, "llvm.prefetch.p0")
            start = builder.bitcast(builder.gep(args[0], [args[1]]), byte)
            for line in range(0, length, LINE):
                place = builder.gep(start, [builder.add(args[2], I64(line))])
                builder.call(ask, [place, I32(0), I32(LOCALITY), I32(1)])  # a read, of data
            return context.get_dummy_value()

        return types.void(pointer, types.intp, types.intp), generate

    return prefetch


prefetch = _prefetch(1)
"""prefetch(p, i, ahead): ask for the cache line `ahead` bytes after &p[i]. It may be anywhere: nothing traps."""
prefetch_group = _prefetch(GROUP)
"""prefetch_group(p, i, ahead): ask for all the lines that a group has there, two of float32 and float64, one of a 16-bit dtype."""


# ---------------------------------------------------------------- values


@intrinsic
def lanes(context: Any, pointer: Any) -> Any:
    """How many values of `pointer` a vector has."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return context.get_constant(types.intp, _vector(pointer, 1).lanes)

    return types.intp(pointer), generate


def _splat(size: int) -> Any:
    @intrinsic
    def splat(context: Any, pointer: Any, value: Any) -> Any:
        vector = _vector(pointer, size)

        def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            return _spread(builder, args[1], context.get_value_type(vector))

        return vector(pointer, vector.dtype), generate

    return splat


splat = _splat(1)
"""splat(p, value): a vector for data of `p`, `value` in all its lanes."""
splat_group = _splat(GROUP)
"""splat_group(p, value): a group for data of `p`, `value` in all its lanes."""


class Arithmetic(AbstractTemplate):
    """Vector with vector of one size, or with a scalar of its dtype, on either side."""

    def generic(self, args: Any, kws: Any) -> Any:
        """The types of an operator's call."""
        vectors = [arg for arg in args if isinstance(arg, Vector)]
        if len(args) == 2 and vectors and all(arg in (vectors[0], vectors[0].dtype) for arg in args):
            return signature(vectors[0], *args)
        return None


def _arithmetic(name: str) -> Callable[..., Any]:
    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        kind = context.get_value_type(signature.return_type)
        a, b = (_spread(builder, arg, kind) for arg in args)
        return getattr(builder, name)(a, b, flags=FLAGS)

    return generate


for _name, _symbols in {
    "fadd": (operator.add, operator.iadd),
    "fsub": (operator.sub, operator.isub),
    "fmul": (operator.mul, operator.imul),
}.items():
    for _symbol in _symbols:
        infer_global(_symbol)(Arithmetic)
        for _kinds in ((Vector, Vector), (Vector, types.Float), (types.Float, Vector)):
            lower_builtin(_symbol, *_kinds)(_arithmetic(_name))


@intrinsic
def clip(context: Any, value: Any, floor: Any, ceiling: Any) -> Any:
    """min(max(value, floor), ceiling), both scalars of T; NaN stays."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        v = args[0]
        low, high = (_spread(builder, arg, v.type) for arg in args[1:])
        v = builder.select(builder.fcmp_ordered("<", v, low, flags=FLAGS), low, v)
        return builder.select(builder.fcmp_ordered(">", v, high, flags=FLAGS), high, v)

    return value(value, value.dtype, value.dtype), generate


def _together(builder: Any, value: Any, one: int) -> Any:
    """The vectors of a group, of `one` lane each, added up: (v0 + v1) + (v2 + v3); a vector as it is."""
    parts = [_lanes(builder, value, first, one) for first in range(0, value.type.count, one)]
    while len(parts) > 1:
        parts = [builder.fadd(a, b, flags=FLAGS) for a, b in zip(parts[::2], parts[1::2], strict=True)]
    return parts[0]


@intrinsic
def together(context: Any, group: Any) -> Any:
    """The vectors of a group added up."""
    vector = _vector(types.CPointer(group.dtype), 1)

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return _together(builder, args[0], vector.lanes)

    return vector(group), generate


@intrinsic
def total(context: Any, value: Any) -> Any:
    """The sum of all lanes; of a group its vectors first, then halves: rounding grows with the logarithm of their number."""
    one = _vector(types.CPointer(value.dtype), 1).lanes

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        all_, half = _together(builder, args[0], one), one // 2
        while half:
            all_ = builder.fadd(_lanes(builder, all_, 0, half), _lanes(builder, all_, half, half), flags=FLAGS)
            half //= 2
        return builder.extract_element(all_, I32(0))

    return value.dtype(value), generate


@intrinsic
def first(context: Any, value: Any) -> Any:
    """The first lane."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.extract_element(args[0], I32(0))

    return value.dtype(value), generate


@intrinsic
def totals(context: Any, pointer: Any) -> Any:
    """The totals of lanes(p) vectors, which lie one after another at p, each in a lane of its own, by the additions of `total`."""
    vector = _vector(pointer, 1)

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        lanes = vector.lanes
        parts = [builder.load(_place(builder, args[0], I64(first * lanes), lanes)) for first in range(lanes)]
        half = lanes // 2
        while half:  # of two vectors, the lower and the upper halves of segments of 2 * half lanes in turn
            lower = [i // (2 * half) * 2 * half + i % half + (lanes if i % (2 * half) >= half else 0) for i in range(lanes)]
            orders = [ir.Constant(ir.VectorType(I32, lanes), [i + upper for i in lower]) for upper in (0, half)]
            halves = [[builder.shuffle_vector(parts[i], parts[i + half], order) for order in orders] for i in range(half)]
            parts = [builder.fadd(a, b, flags=FLAGS) for a, b in halves]
            half //= 2
        return parts[0]

    return vector(pointer), generate


@intrinsic(prefer_literal=True)
def add_to(context: Any, group: Any, part: Any, value: Any) -> Any:
    """The group with `value`, a vector, added to vector `part`, a literal, of it."""
    one = value.lanes
    first = part.literal_value * one

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        added = builder.fadd(_lanes(builder, args[0], first, one), args[2], flags=FLAGS)
        again = ir.Constant(ir.VectorType(I32, group.lanes), [i % one for i in range(group.lanes)])
        wide = builder.shuffle_vector(added, added, again)
        order = [i + group.lanes if first <= i < first + one else i for i in range(group.lanes)]
        return builder.shuffle_vector(args[0], wide, ir.Constant(ir.VectorType(I32, group.lanes), order))

    return group(group, part, value), generate


@intrinsic
def last_lanes(context: Any, value: Any, count: Any) -> Any:
    """The last `count` lanes, zero before them: of a tail that is loaded so that it ends where the data ends."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        v = args[0]
        before = _below(builder, builder.sub(I64(value.lanes), args[1]), v.type)
        return builder.select(before, ir.Constant(v.type, None), v)

    return value(value, types.intp), generate
