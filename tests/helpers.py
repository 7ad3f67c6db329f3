"""Inputs, arrangements in memory, and the one comparison that all tests use."""

import os
import subprocess
import sys

import numpy as np
import pytest

import cpunorm as cn
from cpunorm import ops, reference
from cpunorm.layout import parse_layout

BACKENDS = ("numba", "c", "numpy")
COMPILED = ("numba", "c")
LAYOUTS = ("NC", "CN", "NCL", "NLC", "NCHW", "NHWC", "CHWN", "HWNC", "HNCW", "NCDHW", "NDHWC", "channels_first", "channels_last")
DTYPES = ("float32", "float64", "float16", "bfloat16")
ACTIVATIONS = (None, "relu", "relu6", "silu", "hardswish")
PARAMETERS = ("running_mean", "running_var", "weight", "bias")


def present(dtype):
    """The name of a dtype; the test is skipped where bfloat16 has no library."""
    if dtype == "bfloat16":
        pytest.importorskip("ml_dtypes")
    return dtype


# ---------------------------------------------------------------- comparisons


def assert_close(actual, expected, *, rtol, atol=0.0):
    """abs(actual - expected) <= atol + rtol * abs(expected), in float64; NaN and infinities at the same places."""
    actual, expected = np.asarray(actual), np.asarray(expected)
    assert actual.shape == expected.shape
    np.testing.assert_allclose(actual.astype(np.float64), expected.astype(np.float64), rtol=rtol, atol=atol, equal_nan=True)


def assert_same_bits(actual, expected):
    """The same shape, dtype and bits; a NaN equals a NaN."""
    actual, expected = np.asarray(actual), np.asarray(expected)
    assert actual.shape == expected.shape
    assert actual.dtype == expected.dtype
    mine, theirs = (np.ascontiguousarray(value).view(f"u{value.dtype.itemsize}") for value in (actual, expected))
    with np.errstate(invalid="ignore"):  # signalling ones
        differ = (mine != theirs) & ~(np.isnan(actual) & np.isnan(expected))
    assert not differ.any(), f"{differ.sum()} of {differ.size} values differ, first at {tuple(np.argwhere(differ)[0])}"


def assert_all(check, actual, expected, **options):
    """`check` of each of two tuples of arrays."""
    assert len(actual) == len(expected)
    for one, other in zip(actual, expected, strict=True):
        check(one, other, **options)


# ---------------------------------------------------------------- inputs


def shape_for(layout, large=False):
    """A shape, channels first, of the rank of `layout`."""
    rank = {"channels_first": 4, "channels_last": 5}.get(layout, len(layout))
    small = {2: (11, 7), 3: (4, 3, 11), 4: (2, 5, 7, 6), 5: (2, 3, 4, 5, 3)}
    big = {2: (300, 1030), 3: (3, 5, 20_000), 4: (6, 33, 31, 30), 5: (2, 37, 8, 15, 17)}
    return (big if large else small)[rank]


def exact_shape_for(layout, large=False, channels=True):
    """The same with a power of two of values a channel, so that means of halves, quarters and so on are exact too.

    With `channels` false these may be anything; else they are a power of two as well, for statistics over them.
    """
    rank = {"channels_first": 4, "channels_last": 5}.get(layout, len(layout))
    small = {2: (16, 7), 3: (4, 3, 16), 4: (2, 5, 8, 4), 5: (2, 3, 4, 4, 2)}
    big = {2: (256, 1030), 3: (4, 3, 1 << 15), 4: (8, 24, 32, 32), 5: (2, 37, 8, 16, 16)}
    shape = (big if large else small)[rank]
    return (shape[0], 1 << (shape[1].bit_length() - 1), *shape[2:]) if channels else shape


def copied(inputs):
    """The same inputs in memory of their own, so that calls that update some of them start alike."""
    return {name: value.copy(order="K") if isinstance(value, np.ndarray) else value for name, value in inputs.items()}


def arguments(channels, dtype, seed=0, given=PARAMETERS):
    """The per-channel arrays named in `given`, None for the others."""
    rng = np.random.default_rng(seed)
    made = {
        "running_mean": rng.normal(0, 1, channels),
        "running_var": rng.uniform(0.5, 2, channels),
        "weight": rng.normal(1, 0.3, channels),
        "bias": rng.normal(0, 1, channels),
    }
    return {name: value.astype(dtype) if name in given else None for name, value in made.items()}


def normal(shape, dtype, seed=1, mean=3.0, std=2.0):
    return np.random.default_rng(seed).normal(mean, std, shape).astype(dtype)


def expected(x, parameters, *, training=False, momentum=0.1, eps=1e-5, layout="channels_first"):
    """(y, mean, rstd, running_mean, running_var) by the reference, in float64; `parameters` stay as they are."""
    running = [None if parameters[name] is None else parameters[name].astype(np.float64) for name in PARAMETERS[:2]]
    axis = parse_layout(layout, x.ndim).channel
    rest = [parameters[name] for name in PARAMETERS[2:]]
    results = reference.batch_norm(x, *running, *rest, training=training, momentum=momentum, eps=eps, channel=axis)
    return (*results, *running)


def run(x, parameters, **options):
    """(y, mean, rstd, running_mean, running_var) by us; `parameters` stay as they are."""
    mine = copied(parameters)
    return (*cn.batch_norm(x, **mine, return_stats=True, **options), mine["running_mean"], mine["running_var"])


def training_options(layout, dtype, shape, seed=0):
    """Inputs of a training row of the operation table."""
    return ops.OPERATIONS["batch_norm training"].inputs(shape, layout, dtype, np.random.default_rng(seed))


# ---------------------------------------------------------------- arrangements: an array of x's shape, somewhere in memory


def _inside(x, where, room):
    space = np.zeros([size * factor + extra for size, (factor, extra) in zip(x.shape, room, strict=True)], x.dtype)
    view = space[where]
    view[...] = x
    return view


def _outer_slice(x):
    return _inside(x, np.s_[1 : 2 * x.shape[0] : 2], [(2, 1)] + [(1, 0)] * (x.ndim - 1))


def _inner_slice(x):
    return _inside(x, np.s_[..., 1:-1], [(1, 0)] * (x.ndim - 1) + [(1, 2)])


def _inner_step(x):
    return _inside(x, np.s_[..., ::2], [(1, 0)] * (x.ndim - 1) + [(2, 0)])


def _unaligned(x):
    buffer = np.zeros(x.nbytes + 1, np.uint8)
    view = np.ndarray(x.shape, x.dtype, buffer, 1)
    view[...] = x
    return view


ARRANGEMENTS = {
    "contiguous": np.ascontiguousarray,
    "fortran": np.asfortranarray,
    "outer slice": _outer_slice,
    "inner slice": _inner_slice,
    "inner step": _inner_step,
    "negative outer": lambda x: np.flip(np.flip(x, 0).copy(), 0),
    "negative inner": lambda x: np.flip(np.flip(x, -1).copy(), -1),
    "all negative": lambda x: np.flip(np.flip(x).copy()),
    "other axis last": lambda x: np.moveaxis(np.moveaxis(x, 1, -1).copy(), -1, 1),
    "other axis first": lambda x: np.moveaxis(np.moveaxis(x, -1, 1).copy(), 1, -1),
    "broadcast batch": lambda x: np.broadcast_to(x[:1], x.shape),
    "broadcast inner": lambda x: np.broadcast_to(x[..., :1], x.shape),
    "unaligned": _unaligned,
    "byte-swapped": lambda x: x.astype(x.dtype.newbyteorder()),
}
# Those whose elements may be written each by itself.
WRITABLE = {name: make for name, make in ARRANGEMENTS.items() if not name.startswith(("broadcast", "byte"))}


# ---------------------------------------------------------------- other processes

TWO_THREADS = {
    "NUMBA_NUM_THREADS": "2",
    "OMP_NUM_THREADS": "2",
    "OPENBLAS_NUM_THREADS": "1",
}  # (numba imports SciPy, which has threads of its own)

# compute(backend): results of a call large enough for two threads; right(results): by the serial NumPy reference, computed once;
# child(job): a forked child that has to end well within a minute.
SCRIPT = """
import faulthandler, os, signal, sys, threading, time, warnings
import numpy as np, cpunorm as cn
from cpunorm import forks
warnings.filterwarnings("ignore", category=DeprecationWarning)  # of forks beside threads: what this is about
x = np.random.default_rng(0).normal(size=(4, 8, 96, 96)).astype(np.float32)

def compute(backend, x=x, threads=2):
    return cn.batch_norm(x, None, None, training=True, backend=backend, threads=threads, return_stats=True)

wanted = compute("numpy")

def right(results, wanted=wanted):
    return all(np.allclose(a, b, rtol=1e-4, atol=1e-5) for a, b in zip(results, wanted, strict=True))

def own_threads():
    return len(os.listdir("/proc/self/task")) if os.path.exists("/proc/self/task") else 1

def child(job):
    pid = os.fork()
    if pid:
        return pid
    faulthandler.register(signal.SIGALRM, chain=True)  # says where, and ends
    signal.alarm(50)
    try:
        os._exit(0 if job() else 3)
    except BaseException as problem:
        print(repr(problem), file=sys.stderr, flush=True)
        os._exit(4)

def ended(pid):
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0

def serially(backend):
    return right(compute(backend)) and forks.forked() and own_threads() == 1
"""


def python(code, timeout=120, **environment):
    """What a fresh interpreter prints that runs `code` (or a file, given as a Path), warnings being errors there too."""
    result = subprocess.run(
        [sys.executable, "-W", "error", *(["-c", code] if isinstance(code, str) else [str(code)])],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    return result.stdout.strip()
