"""Recorded rounds of `cpunorm compare`, as rows of a result: nothing is timed."""

import dataclasses
import random

import numpy as np

from cpunorm.compare import measure, regress
from cpunorm.compare.results import Row, Timing

SHAPE = (8, 96, 56, 56)
BYTES = 2 * 4 * int(np.prod(SHAPE))
# Milliseconds of five passes, as this package's own machine gave them beside other work: the memory was up to twice as fast in some.
RECORDED = {
    "numba": (0.62, 0.71, 0.60, 0.98, 0.66),
    "c": (0.55, 0.60, 0.54, 0.86, 0.58),
    "copy": (0.48, 0.54, 0.46, 0.80, 0.50),
}


def timing(milliseconds):
    return Timing(tuple((value / 1e3, 1.1 * value / 1e3) for value in milliseconds))


def row(contestant="c", milliseconds=RECORDED["c"], layout="NCHW", threads=2, limits=RECORDED["copy"], peer=None, **more):
    given = {
        "operation": "batch_norm inference",
        "shape_name": "a shape",
        "shape": SHAPE,
        "layout": layout,
        "contestant": contestant,
        "threads": threads,
        "timing": timing(milliseconds),
        "bytes": BYTES,
        "largest_error": 1e-7,
        "case_threads": threads,
        "peers": {} if peer is None else {"PyTorch": timing(peer)},
        "limits": tuple(value / 1e3 for value in limits),
        "limit": min(limits) / 1e3 if limits else None,
    }
    return Row(**given | more)


def request(**more):
    given = measure.Request(
        operations=("batch_norm inference",),
        shapes={"a shape": SHAPE},
        layouts=("NCHW", "NHWC"),
        backends=("numba", "c"),
        threads=(1, 2),
        dtype="float32",
        peers=("numpy",),
        pictures=[],
        has_limit=True,
        seconds=0.0,
        least=1,
        passes=5,
    )
    return dataclasses.replace(given, **more)


KEY = ("batch_norm inference", "8x96x56x56", "NCHW", "c", 2)


def sample(contestant="c", factor=1.0, memory=1.0, own=0.0, noise=0.0, seed=0):
    """The recorded passes, with memory as many times as slow, and the kernel `factor` times or `own` milliseconds slower on top."""
    rng = random.Random(seed)
    jitter = [1 + rng.uniform(-noise, noise) for _ in range(5)]
    copies = [memory * value * rng.uniform(1 - noise, 1 + noise) / 1e3 for value in RECORDED["copy"]]
    computing = [kernel - copy for kernel, copy in zip(RECORDED[contestant], RECORDED["copy"], strict=True)]
    kernels = [factor * (copy + (part + own) / 1e3) * one for copy, part, one in zip(copies, computing, jitter, strict=True)]
    return regress.Sample(tuple(kernels), tuple(copies))
