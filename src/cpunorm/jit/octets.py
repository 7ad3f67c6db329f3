"""Bytes of pictures in vectors: intrinsics for `cpunorm.jit.pictures` and `cpunorm.jit.resize`.

LLVM makes no vectors of loops over every third byte; here the shuffles are in the source. Each intrinsic is generated in place.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from cpunorm.jit.lowlevel import VECTOR_BYTES

PIXELS = 32  # pixels of three bytes that `split` takes apart at once
EIGHT = 8  # of these that `spread` has in a register
GROUP = 4  # such registers on their way at once
CYCLE = 3  # vectors after which the coefficients of 1, 2, 3, 4, ... channels repeat
DOT_LANES = 8  # products that `dot` adds up at once


def _integer(bits: int = 64) -> Any:
    return ir.IntType(bits)


@intrinsic
def pick(context: Any, target: Any, apart: Any, source: Any, stride: Any, count: Any) -> Any:
    """target[q * apart] = the value `q * stride` bytes after the address `source`, of `target`'s type, for `count` values."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        to, apart, source, stride, count = args
        start = builder.inttoptr(source, _integer(8).as_pointer())
        item = to.type.pointee
        size = ir.Constant(_integer(), context.get_abi_sizeof(item))

        def loop(move: Any) -> None:
            with cgutils.for_range(builder, count) as each:
                move(each.index)

        def from_here(index: Any, step: Any) -> Any:
            return builder.load(builder.bitcast(builder.gep(start, [builder.mul(index, step)]), item.as_pointer()))

        packed = builder.and_(builder.icmp_signed("==", stride, size), builder.icmp_signed("==", apart, ir.Constant(_integer(), 1)))
        with builder.if_else(packed) as (then, otherwise):  # the strides as constants, so that it is done in vectors
            with then:
                loop(lambda q: builder.store(from_here(q, size), builder.gep(to, [q])))
            with otherwise:
                loop(lambda q: builder.store(from_here(q, stride), builder.gep(to, [builder.mul(q, apart)])))
        return context.get_dummy_value()

    return types.void(target, types.intp, types.intp, types.intp, types.intp), generate


def _put(builder: Any, value: Any, pointer: Any, past_caches: bool) -> None:
    """A vector of float32 to memory; past the caches it is aligned to its size."""
    store = builder.store(value, builder.bitcast(pointer, value.type.as_pointer()))
    store.align = VECTOR_BYTES if past_caches else 4
    if past_caches:
        store.set_metadata("nontemporal", builder.module.add_metadata([ir.Constant(_integer(32), 1)]))


def _normalize_bytes(past_caches: bool, cyclic: bool) -> Any:
    """An intrinsic: target[q] = (source[q] - center[q]) * scale[q] of float32, `turns` times so many vectors: one, or, `cyclic`, twice
    `CYCLE`, after which coefficients repeat: these stay in registers.

    By stages a tile goes through L1 three times, which costs a fifth of the memory's rate.
    """

    @intrinsic
    def normalize(context: Any, target: Any, source: Any, center: Any, scale: Any, turns: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            lanes = VECTOR_BYTES // 4
            vectors = 2 * CYCLE if cyclic else 1
            floats, numbers, few = (ir.VectorType(kind, lanes) for kind in (ir.FloatType(), _integer(32), _integer(8)))

            def load(pointer: Any, place: Any, kind: Any) -> Any:
                value = builder.load(builder.bitcast(builder.gep(pointer, [place]), kind.as_pointer()))
                value.align = 1 if kind is few else 4
                return value

            def at(place: Any, vector: int) -> Any:
                return builder.add(place, ir.Constant(_integer(), vector * lanes))

            first = ir.Constant(_integer(), 0)
            kept = [[load(args[i], at(first, v), floats) for i in (2, 3)] for v in range(CYCLE)] if cyclic else []
            with cgutils.for_range(builder, args[4]) as loop:
                place = builder.mul(loop.index, ir.Constant(_integer(), vectors * lanes))
                results = []
                for v in range(vectors):
                    value = builder.sitofp(builder.zext(load(args[1], at(place, v), few), numbers), floats)
                    m, s = kept[v % CYCLE] if cyclic else (load(args[i], place, floats) for i in (2, 3))
                    results.append(builder.fmul(builder.fsub(value, m), s))
                for v, result in enumerate(results):
                    _put(builder, result, builder.gep(args[0], [at(place, v)]), past_caches)
            return context.get_dummy_value()

        return types.void(target, source, center, scale, types.intp), generate

    return normalize


normalize_bytes = _normalize_bytes(past_caches=False, cyclic=False)
normalize_bytes_cyclic = _normalize_bytes(past_caches=False, cyclic=True)
stream_bytes = _normalize_bytes(past_caches=True, cyclic=False)
stream_bytes_cyclic = _normalize_bytes(past_caches=True, cyclic=True)


def _eight(builder: Any, start: Any, pixel: Any, backwards: bool, planes: int) -> list[Any]:
    """Eight pixels of three bytes, from `pixel` of those at `start` on or from it back: a vector of int32 for each of the three planes, or
    for one plane, that of the channel whose byte is at `start`.

    Two loads of four pixels each, which overlap, so that nothing beside the pixels is read. A byte goes straight to the lane of its float.
    """
    half, column = ir.VectorType(_integer(8), 16), -3 if backwards else 3
    place = builder.mul(pixel, ir.Constant(_integer(), column))
    starts = (-13 if planes > 1 else -15, -21) if backwards else (0, 8 if planes > 1 else 6)
    halves = []
    for first in starts:
        at = builder.gep(start, [builder.add(place, ir.Constant(_integer(), first))])
        halves.append(builder.load(builder.bitcast(at, half.as_pointer())))
        halves[-1].align = 1
    both = builder.shuffle_vector(*halves, ir.Constant(ir.VectorType(_integer(32), 32), list(range(32))))
    found = []
    for c in range(planes):
        order = []
        for q in range(EIGHT):
            order += [16 * (q // 4) + q * column - starts[q // 4] + c, 32, 32, 32]  # 32: a zero
        bytes_ = builder.shuffle_vector(both, ir.Constant(both.type, None), ir.Constant(ir.VectorType(_integer(32), 32), order))
        found.append(builder.bitcast(bytes_, ir.VectorType(_integer(32), EIGHT)))
    return found


def _spread(planes: int, past_caches: bool) -> Any:
    """An intrinsic that normalizes `count` (at least `EIGHT`) pixels of three bytes, from the address `source` on or `backwards`, to the
    three planes of `target`, `apart` values from one to the next, whose coefficients lie `further` apart; or, of one plane, the channel
    whose byte is at `source`. The last pixels are done together with some before them, a second time.
    """

    @intrinsic
    def spread(
        context: Any, target: Any, apart: Any, source: Any, backwards: Any, center: Any, scale: Any, further: Any, count: Any
    ) -> Any:
        def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            target, apart, source, backwards, center, scale, further, count = args
            floats = ir.VectorType(ir.FloatType(), EIGHT)
            start = builder.inttoptr(source, _integer(8).as_pointer())

            def number(value: int) -> Any:
                return ir.Constant(_integer(), value)

            def spread_out(table: Any, c: int) -> Any:
                one = builder.load(builder.gep(table, [builder.mul(further, number(c))]))
                some = builder.insert_element(ir.Constant(floats, ir.Undefined), one, ir.Constant(_integer(32), 0))
                return builder.shuffle_vector(some, some, ir.Constant(ir.VectorType(_integer(32), EIGHT), None))

            coefficients = [(spread_out(center, c), spread_out(scale, c)) for c in range(planes)]
            plane = [builder.gep(target, [builder.mul(apart, number(c))]) for c in range(planes)]

            def some(at: Any, vectors: int, backwards: bool, past_caches: bool) -> None:
                places = [builder.add(at, number(g * EIGHT)) for g in range(vectors)]
                pixels = [_eight(builder, start, place, backwards, planes) for place in places]
                for c, (m, s) in enumerate(coefficients):
                    results = [builder.fmul(builder.fsub(builder.sitofp(each[c], floats), m), s) for each in pixels]
                    for place, result in zip(places, results, strict=True):
                        _put(builder, result, builder.gep(plane[c], [place]), past_caches)

            def all_of_them(backwards: bool) -> None:
                groups = builder.sdiv(count, number(GROUP * EIGHT))
                with cgutils.for_range(builder, groups) as loop:
                    some(builder.mul(loop.index, number(GROUP * EIGHT)), GROUP, backwards, past_caches)
                done = builder.mul(groups, number(GROUP * EIGHT))
                last = builder.sub(count, number(EIGHT))
                rest = builder.sdiv(builder.add(builder.sub(count, done), number(EIGHT - 1)), number(EIGHT))
                with cgutils.for_range(builder, rest) as loop:
                    at = builder.add(done, builder.mul(loop.index, number(EIGHT)))
                    some(builder.select(builder.icmp_signed("<", at, last), at, last), 1, backwards, False)

            with builder.if_else(backwards) as (then, otherwise):
                with then:
                    all_of_them(True)
                with otherwise:
                    all_of_them(False)
            return context.get_dummy_value()

        return types.void(target, types.intp, types.intp, types.boolean, center, scale, types.intp, types.intp), generate

    return spread


spread_planes = _spread(3, past_caches=False)
spread_alone = _spread(1, past_caches=False)
stream_alone = _spread(1, past_caches=True)


def _split(backwards: bool) -> Any:
    """An intrinsic that takes `vectors` times `PIXELS` pixels of three bytes apart, from the address `source` on or from it back."""

    @intrinsic
    def take(context: Any, target: Any, apart: Any, source: Any, vectors: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            to, apart, source, vectors = args
            byte, all_of = _integer(8), ir.VectorType(_integer(8), 3 * PIXELS)
            part = ir.VectorType(byte, PIXELS)
            start = builder.inttoptr(source, byte.as_pointer())
            order = range(PIXELS - 1, -1, -1) if backwards else range(PIXELS)
            with cgutils.for_range(builder, vectors) as loop:
                pixel = builder.mul(loop.index, ir.Constant(_integer(), PIXELS))
                place = builder.mul(pixel, ir.Constant(_integer(), -3 if backwards else 3))
                if backwards:
                    place = builder.sub(place, ir.Constant(_integer(), 3 * PIXELS - 3))
                pixels = builder.load(builder.bitcast(builder.gep(start, [place]), all_of.as_pointer()))
                pixels.align = 1
                for c in range(3):
                    lanes = ir.Constant(ir.VectorType(_integer(32), PIXELS), [3 * q + c for q in order])
                    plane = builder.gep(to, [builder.add(builder.mul(apart, ir.Constant(_integer(), c)), pixel)])
                    values = builder.shuffle_vector(pixels, ir.Constant(all_of, ir.Undefined), lanes)
                    builder.store(values, builder.bitcast(plane, part.as_pointer())).align = 1
            return context.get_dummy_value()

        return types.void(target, types.intp, types.intp, types.intp), generate

    return take


split_forwards = _split(False)
split_backwards = _split(True)


@intrinsic
def dot(context: Any, weights: Any, values: Any, vectors: Any) -> Any:
    """The sum of weights[q] * values[q] of `vectors` times `DOT_LANES` values: bytes by int32 in integers, float32 by float32."""
    whole = isinstance(values.dtype, types.Integer)

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        item = _integer(32) if whole else ir.FloatType()
        vector = ir.VectorType(item, DOT_LANES)
        here = vector if not whole else ir.VectorType(_integer(8), DOT_LANES)
        weights = builder.bitcast(args[0], vector.as_pointer())
        values = builder.bitcast(args[1], here.as_pointer())
        total = cgutils.alloca_once_value(builder, ir.Constant(vector, [0] * DOT_LANES))
        with cgutils.for_range(builder, args[2]) as loop:
            weight, value = (builder.load(builder.gep(pointer, [loop.index])) for pointer in (weights, values))
            weight.align, value.align = 4, 1 if whole else 4
            before = builder.load(total)
            if whole:
                builder.store(builder.add(before, builder.mul(weight, builder.zext(value, vector))), total)
            else:
                builder.store(builder.fadd(before, builder.fmul(weight, value, flags=["contract"]), flags=["contract"]), total)
        sums = builder.load(total)
        half = DOT_LANES // 2
        while half:  # halves first, as in C
            lanes = ir.Constant(ir.VectorType(_integer(32), DOT_LANES), [(q + half) % DOT_LANES for q in range(DOT_LANES)])
            other = builder.shuffle_vector(sums, sums, lanes)
            sums = builder.add(sums, other) if whole else builder.fadd(sums, other)
            half //= 2
        return builder.extract_element(sums, ir.Constant(_integer(32), 0))

    return (types.int32 if whole else types.float32)(weights, values, types.intp), generate
