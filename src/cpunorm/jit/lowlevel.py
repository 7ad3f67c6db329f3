"""The few things Numba does not offer, as intrinsics: pointers, stack memory, calls through an address, streaming stores.

The kernels read a *step* and find the addresses of a call in *buffers*, both C pointers:

* ``step`` is ``CPointer(STEP)``, a record of integers (`cpunorm.program`);
* ``buffers`` is ``CPointer(CPointer(E))``: its type carries E, the dtype of the elements, so that one Python function is the kernel of
  all dtypes, by signature alone. Tables and parameters are of the computing dtype: `as_computed`. Folds and windows have that for E.

`view` turns a pointer and an offset into a 1-D contiguous array. That is the shape of loop LLVM vectorizes: ``for q in range(v.size)``
over such arrays; ``range(lo, hi)`` or ``x[base + q]`` with signed indices does not (4 to 8 times slower).

A call through an address costs a few ns and lets one driver run every kernel, instead of compiling a parallel driver for each.
`benchmarks/lowlevel.py` has the figures.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from llvmlite.binding import get_host_cpu_features
from numba import carray, from_dtype, njit, types
from numba.core import cgutils
from numba.extending import intrinsic

from cpunorm.program import PHASE as PHASE_DTYPE
from cpunorm.program import PICTURE, PROGRAM, STEP

STEP_RECORD = from_dtype(STEP)
PHASE_RECORD = from_dtype(PHASE_DTYPE)
PROGRAM_RECORD = from_dtype(PROGRAM)
PICTURE_RECORD = from_dtype(PICTURE)

# contract: a*b+c in one rounding; nsz: no care for the sign of zero. NaN and infinity keep their meaning. reassoc, for sums in vector
# lanes, regroups all that it finds: only a function that sums in a loop has it.
FASTMATH = {"contract", "nsz"}
SUMMING = FASTMATH | {"reassoc"}
inline = njit(fastmath=FASTMATH, error_model="numpy", nogil=True)
inlined = njit(fastmath=FASTMATH, error_model="numpy", nogil=True, forceinline=True, no_cpython_wrapper=True, no_cfunc_wrapper=True)  # type: ignore[call-overload]
summing = njit(fastmath=SUMMING, error_model="numpy", nogil=True)

# ndarray's first field after the object header is its data pointer; it is part of NumPy's ABI (PyArray_DATA reads it so).
DATA_FIELD = object.__basicsize__
COMPUTING = {types.float32: types.float32, types.float64: types.float64, types.uint16: types.float32, types.int16: types.float32}
HALVES = 8  # values of float16 that F16C converts at once
VECTOR_BYTES = 32  # a streaming store: one AVX register, two SSE or NEON ones


def has_f16c() -> bool:
    """Whether this CPU converts float16 by an instruction. Without it LLVM's conversion calls a function that is not there."""
    return bool(get_host_cpu_features().get("f16c", False))


def _integer(bits: int = 64) -> Any:
    return ir.IntType(bits)


@intrinsic
def offset(context: Any, pointer: Any, count: Any) -> Any:
    """pointer + count"""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.gep(args[0], [args[1]])

    return pointer(pointer, types.intp), generate


@intrinsic
def at_byte(context: Any, pointer: Any, count: Any) -> Any:
    """pointer + count bytes"""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        start = builder.bitcast(args[0], _integer(8).as_pointer())
        return builder.bitcast(builder.gep(start, [args[1]]), args[0].type)

    return pointer(pointer, types.intp), generate


@intrinsic
def as_uint32(context: Any, pointer: Any) -> Any:
    """The same address as a pointer to uint32."""
    target = types.CPointer(types.uint32)

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.bitcast(args[0], context.get_value_type(target))

    return target(pointer), generate


@intrinsic
def as_uint8(context: Any, pointer: Any) -> Any:
    """The same address as a pointer to uint8."""
    target = types.CPointer(types.uint8)

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.bitcast(args[0], context.get_value_type(target))

    return target(pointer), generate


@intrinsic
def as_uint16(context: Any, pointer: Any) -> Any:
    """The same address as a pointer to uint16."""
    target = types.CPointer(types.uint16)

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.bitcast(args[0], context.get_value_type(target))

    return target(pointer), generate


@intrinsic
def as_uint64(context: Any, pointer: Any) -> Any:
    """The same address as a pointer to uint64."""
    target = types.CPointer(types.uint64)

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.bitcast(args[0], context.get_value_type(target))

    return target(pointer), generate


@intrinsic
def power_of_two(context: Any, exponent: Any) -> Any:
    """2 ** exponent for a whole float in the range of normal numbers, by its bits."""
    bits, fraction, bias = {types.float32: (32, 23, 127), types.float64: (64, 52, 1023)}[exponent]

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        whole = builder.fptosi(args[0], _integer(bits))
        field = builder.shl(builder.add(whole, ir.Constant(_integer(bits), bias)), ir.Constant(_integer(bits), fraction))
        return builder.bitcast(field, args[0].type)

    return exponent(exponent), generate


@intrinsic
def bits_of(context: Any, value: Any) -> Any:
    """The bits of a float32 as uint32."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.bitcast(args[0], _integer(32))

    return types.uint32(types.float32), generate


@intrinsic
def float_of(context: Any, value: Any) -> Any:
    """The float32 of these bits."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.bitcast(args[0], ir.FloatType())

    return types.float32(types.uint32), generate


@intrinsic
def as_float64(context: Any, pointer: Any) -> Any:
    """The same address as a pointer to float64."""
    target = types.CPointer(types.float64)

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.bitcast(args[0], context.get_value_type(target))

    return target(pointer), generate


@intrinsic
def as_computed(context: Any, pointer: Any) -> Any:
    """The same address as a pointer to the dtype that what `pointer` points at is computed in (`cpunorm.jit.vectors` has the table)."""
    target = types.CPointer(COMPUTING[pointer.dtype])

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.bitcast(args[0], context.get_value_type(target))

    return target(pointer), generate


@intrinsic
def as_type_of(context: Any, pointer: Any, like: Any) -> Any:
    """The same address as a pointer of the type of `like`."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.bitcast(args[0], context.get_value_type(like))

    return like(pointer, like), generate


@intrinsic
def address(context: Any, pointer: Any) -> Any:
    """A pointer as an integer."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.ptrtoint(args[0], _integer())

    return types.intp(pointer), generate


@intrinsic
def size_of(context: Any, pointer: Any) -> Any:
    """Bytes of what `pointer` points at."""
    item = pointer.dtype

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return context.get_constant(types.intp, context.get_abi_sizeof(context.get_data_type(item)))

    return types.intp(pointer), generate


@intrinsic
def to_pointer(context: Any, number: Any, kind: Any) -> Any:
    """An integer as a pointer of the type `kind` (a literal type)."""
    target = kind.instance_type

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.inttoptr(args[0], context.get_value_type(target))

    return target(types.intp, kind), generate


@intrinsic(prefer_literal=True)
def stack(context: Any, count: Any, like: Any) -> Any:
    """A pointer, of the type of `like`, to `count` (a literal) values on the stack, on a cache line."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        item = context.get_value_type(like.dtype)
        with builder.goto_entry_block():
            memory = builder.alloca(ir.ArrayType(item, count.literal_value))
            memory.align = 64
        return builder.bitcast(memory, context.get_value_type(like))

    return like(count, like), generate


@inline
def view(pointer: Any, start: Any, count: Any) -> Any:
    """pointer[start : start + count] as an array"""
    return carray(offset(pointer, start), count)


@inline
def finite(value: Any) -> Any:
    """Neither NaN nor infinite. (np.isfinite is value - value == 0 in Numba, which `reassoc` may turn into true.)"""
    return abs(value) < np.inf


@inline
def record(pointer: Any) -> Any:
    """The record that a pointer points at, by reference"""
    return carray(pointer, 1)[0]


@intrinsic
def data_of(context: Any, identity: Any) -> Any:
    """The data address of the ndarray whose ``id`` is given; 0 for 0. (``.ctypes.data`` takes a microsecond or two.)"""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        result = cgutils.alloca_once_value(builder, args[0])
        with builder.if_then(cgutils.is_not_null(builder, args[0])):
            field = builder.add(args[0], ir.Constant(_integer(), DATA_FIELD))
            builder.store(builder.load(builder.inttoptr(field, _integer().as_pointer())), result)
        return builder.load(result)

    return types.intp(types.intp), generate


@intrinsic
def call_kernel(context: Any, kernel: Any, step: Any, buffers: Any, lo: Any, hi: Any) -> Any:
    """kernel(step, buffers, lo, hi), all five integers"""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        function = ir.FunctionType(ir.VoidType(), [_integer()] * 4)
        builder.call(builder.inttoptr(args[0], function.as_pointer()), args[1:])
        return context.get_dummy_value()

    return types.void(*[types.intp] * 5), generate


@intrinsic
def call_stage(context: Any, stage: Any, target: Any, source: Any, count: Any) -> Any:
    """stage(target, source, count): a tile of `count` values from the pointer `source` to the pointer `target`"""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        function = ir.FunctionType(ir.VoidType(), [args[1].type, args[2].type, _integer()])
        builder.call(builder.inttoptr(args[0], function.as_pointer()), args[1:])
        return context.get_dummy_value()

    return types.void(types.intp, target, source, types.intp), generate


@intrinsic
def stream(context: Any, target: Any, source: Any, vectors: Any) -> Any:
    """`vectors` times `VECTOR_BYTES` from `source` to `target`, past the caches. `target` must be aligned to them: else the CPU traps."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        vector = ir.VectorType(ir.FloatType(), VECTOR_BYTES // 4)
        to, of = (builder.bitcast(pointer, vector.as_pointer()) for pointer in args[:2])
        with cgutils.for_range(builder, args[2]) as loop:
            value = builder.load(builder.gep(of, [loop.index]))
            value.align = 4
            store = builder.store(value, builder.gep(to, [loop.index]))
            store.align = VECTOR_BYTES
            store.set_metadata("nontemporal", builder.module.add_metadata([ir.Constant(_integer(32), 1)]))
        return context.get_dummy_value()

    return types.void(target, source, types.intp), generate


def _convert_halves(widen: bool) -> Any:
    """An intrinsic that converts `vectors` times `HALVES` values between float16 and float32."""

    @intrinsic
    def convert(context: Any, target: Any, source: Any, vectors: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            half, single = (ir.VectorType(kind, HALVES) for kind in (ir.HalfType(), ir.FloatType()))
            to, of = (single, half) if widen else (half, single)
            targets, sources = (builder.bitcast(p, kind.as_pointer()) for p, kind in zip(args[:2], (to, of), strict=True))
            with cgutils.for_range(builder, args[2]) as loop:
                value = builder.load(builder.gep(sources, [loop.index]))
                value.align = 2
                converted = builder.fpext(value, to) if widen else builder.fptrunc(value, to)
                builder.store(converted, builder.gep(targets, [loop.index])).align = 2
            return context.get_dummy_value()

        return types.void(target, source, types.intp), generate

    return convert


widen_halves = _convert_halves(True)
narrow_halves = _convert_halves(False)


@intrinsic
def fence(context: Any) -> Any:
    """Streaming stores before this are seen by other threads before what comes after."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        builder.fence("seq_cst")
        return context.get_dummy_value()

    return types.void(), generate
