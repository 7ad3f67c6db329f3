"""The two drivers of all Numba kernels: serial, and one ``prange`` over the blocks of a phase.

Arrays come as ``id(array)`` (0 for none): `data_of` reads their address, whatever their rank, dtype and strides, in nothing.
"""

# ruff: noqa: ANN001, ANN201, D103  (typed by the signature in `cpunorm.jit.backend`)

from __future__ import annotations

from numba import njit, prange, types

from cpunorm.jit.lowlevel import (
    PHASE_RECORD,
    PROGRAM_RECORD,
    STEP_RECORD,
    address,
    call_kernel,
    data_of,
    record,
    size_of,
    stack,
    to_pointer,
)

SLOT_COUNT = 13  # len(program.SLOTS)
INTEGERS = types.CPointer(types.intp)
PROGRAMS = types.CPointer(PROGRAM_RECORD)
PHASES = types.CPointer(PHASE_RECORD)
STEPS = types.CPointer(STEP_RECORD)

# set_num_threads and its kin call through addresses of this process, so that a function that uses them cannot be cached (2 s a
# process). The same functions by the names that the threading layer registers when it is launched:
get_num_threads = types.ExternalFunction("get_num_threads", types.intp())
set_num_threads = types.ExternalFunction("set_num_threads", types.void(types.intc))
get_parallel_chunksize = types.ExternalFunction("get_parallel_chunksize", types.uintp())
set_parallel_chunksize = types.ExternalFunction("set_parallel_chunksize", types.void(types.uintp))

one = njit(nogil=True, error_model="numpy")


@one
def fill(buffers, x, second, y, total, weight, bias, running_mean, running_var, mean, rstd, grad_weight, grad_bias, scratch):
    buffers[0] = data_of(x)
    buffers[1] = data_of(second)
    buffers[2] = data_of(y)
    buffers[3] = data_of(total)
    buffers[4] = data_of(weight)
    buffers[5] = data_of(bias)
    buffers[6] = data_of(running_mean)
    buffers[7] = data_of(running_var)
    buffers[8] = data_of(mean)
    buffers[9] = data_of(rstd)
    buffers[10] = data_of(grad_weight)
    buffers[11] = data_of(grad_bias)
    buffers[12] = data_of(scratch)


@one
def run_block(phase, steps, k, buffers):
    """All steps of a phase over its block k, a part at a time."""
    p = record(to_pointer(phase, PHASES))
    lo = k * p.block
    end = min(p.items, lo + p.block)
    while lo < end:
        hi = min(end, lo + p.part)
        for i in range(p.first, p.first + p.count):
            where = steps + i * size_of(to_pointer(steps, STEPS))
            s = record(to_pointer(where, STEPS))
            call_kernel(s.kernel, where, buffers, lo * s.scale, min(hi * s.scale, s.items))
        lo = hi


def run_serial(program, threads, x, second, y, total, weight, bias, running_mean, running_var, mean, rstd, grad_weight, grad_bias, scratch):
    memory = stack(SLOT_COUNT, to_pointer(program, INTEGERS))
    fill(memory, x, second, y, total, weight, bias, running_mean, running_var, mean, rstd, grad_weight, grad_bias, scratch)
    buffers = address(memory)
    head = record(to_pointer(program, PROGRAMS))
    for f in range(head.phase_count):
        phase = head.phases + f * size_of(to_pointer(program, PHASES))
        p = record(to_pointer(phase, PHASES))
        for k in range((p.items + p.block - 1) // p.block):
            run_block(phase, head.steps, k, buffers)


def run_parallel(
    program, threads, x, second, y, total, weight, bias, running_mean, running_var, mean, rstd, grad_weight, grad_bias, scratch
):
    memory = stack(SLOT_COUNT, to_pointer(program, INTEGERS))
    fill(memory, x, second, y, total, weight, bias, running_mean, running_var, mean, rstd, grad_weight, grad_bias, scratch)
    buffers = address(memory)
    head = record(to_pointer(program, PROGRAMS))
    steps = head.steps
    before = get_num_threads()
    set_num_threads(threads)
    chunk = get_parallel_chunksize()
    set_parallel_chunksize(1)  # a block at a time: faster than equal shares beside a busy core (benchmarks/chunks.py)
    for f in range(head.phase_count):
        phase = head.phases + f * size_of(to_pointer(program, PHASES))
        p = record(to_pointer(phase, PHASES))
        blocks = (p.items + p.block - 1) // p.block
        if blocks == 1:
            run_block(phase, steps, 0, buffers)
        else:
            for k in prange(blocks):
                run_block(phase, steps, k, buffers)
    set_parallel_chunksize(chunk)
    set_num_threads(before)
