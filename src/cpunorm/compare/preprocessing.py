"""Who is compared in preprocessing: ours, NumPy as one would write it, PyTorch at its best, OpenCV; and the limit of its bytes.

uint8 pictures NHWC in, normalized float32 out, channels first or last. ``cpunorm compare`` and benchmarks/preprocess.py time these.
"""

from __future__ import annotations

import time
from functools import cached_property
from importlib.util import find_spec
from typing import Any

import numpy as np

from cpunorm import constants
from cpunorm.compare.contestants import NUMPY, TORCH, Contestant, Run, core_part, set_torch_threads
from cpunorm.preprocessing import Preprocessor

Array = np.ndarray[Any, Any]

NAME, OPENCV, ALBUCORE = "preprocess", "OpenCV", "albucore"
LAYOUTS = ("NCHW", "NHWC")  # of the result
MEAN, STD = np.array(constants.IMAGENET_MEAN), np.array(constants.IMAGENET_STD)
CHANNELS = len(MEAN)
# Everybody's: a few roundings of float32, relative to the result or to mean / std, whichever is larger (docs/preprocessing.md).
TOLERANCE = {"rtol": 1e-6, "atol": 1e-6 * float((MEAN / STD).max())}


def reference(x: Array, layout: str) -> Array:
    """The formula in float64."""
    return arranged((x.astype(np.float64) / 255 - MEAN) / STD, layout)


def arranged(y: Array, layout: str) -> Array:
    """NHWC as `layout`."""
    return np.ascontiguousarray(y.transpose(0, 3, 1, 2)) if layout == "NCHW" else y


def ours(x: Array, layout: str, backend: str, threads: int, out: Array, size: tuple[int, int] | None = None) -> Run:
    """Into `out`."""
    plan = Preprocessor(MEAN, STD, output_layout=layout, size=size, backend=backend, threads=threads)
    return lambda: plan(x, out=out)


def numpy(x: Array, layout: str) -> Run:
    """As one would write it: five passes."""
    mean, std = MEAN.astype(np.float32), STD.astype(np.float32)
    return lambda: arranged((x.astype(np.float32) / np.float32(255) - mean) / std, layout)


def torch(x: Array, layout: str, threads: int) -> dict[str, Run]:
    """Three ways, into memory that is there; none where it is not installed."""
    if find_spec("torch") is None:
        return {}
    import torch

    set_torch_threads(threads)
    source = torch.from_numpy(x).permute(0, 3, 1, 2)
    memory = torch.contiguous_format if layout == "NCHW" else torch.channels_last
    out = torch.zeros(source.shape).to(memory_format=memory)
    wide = torch.zeros(source.shape).to(memory_format=memory)
    center, scale = (torch.tensor(v, dtype=torch.float32).reshape(1, CHANNELS, 1, 1) for v in (255 * MEAN, 1 / (255 * STD)))
    shift = -center * scale

    def result() -> Any:
        return (out if layout == "NCHW" else out.permute(0, 2, 3, 1)).numpy()

    def subtract() -> Any:
        torch.sub(source, center, out=out).mul_(scale)
        return result()

    def copy() -> Any:
        out.copy_(source).sub_(center).mul_(scale)
        return result()

    def fused() -> Any:
        wide.copy_(source)
        torch.addcmul(shift, wide, scale, out=out)
        return result()

    return {f"{TORCH} sub, mul": subtract, f"{TORCH} copy, sub, mul": copy, f"{TORCH} copy, addcmul": fused}


def opencv(x: Array, layout: str, threads: int) -> Run | None:
    """blobFromImagesWithParams; None where it is not installed, or too old for it."""
    if find_spec("cv2") is None:
        return None
    import cv2

    if not hasattr(cv2.dnn, "blobFromImagesWithParams"):
        return None
    cv2.setNumThreads(threads)
    params = cv2.dnn.Image2BlobParams()
    params.scalefactor = (*(1 / (255 * STD)), 1.0)
    params.mean = (*(255 * MEAN), 0.0)
    params.ddepth = cv2.CV_32F
    params.datalayout = cv2.DATA_LAYOUT_NCHW if layout == "NCHW" else cv2.DATA_LAYOUT_NHWC
    pictures = list(x)
    return lambda: cv2.dnn.blobFromImagesWithParams(pictures, params)


def albucore(x: Array, layout: str) -> Run | None:
    """`normalize`, a picture at a time, as albumentations calls it; None where it is not installed, or too old. Its result is NHWC."""
    if layout != "NHWC" or find_spec("albucore") is None:
        return None
    import albucore

    mean, denominator = (255 * MEAN).astype(np.float32), (1 / (255 * STD)).astype(np.float32)
    try:
        albucore.normalize(x[0], mean, denominator)
    except (AttributeError, TypeError):
        return None
    return lambda: [albucore.normalize(picture, mean, denominator) for picture in x]


def limit(x: Array, out: Array, threads: int) -> dict[str, Run]:
    """The bytes of `x` read and those of `out` written, by ordinary and by streaming stores: the faster one is the limit."""
    from cpunorm import native

    source, to = x.reshape(-1)[: x.nbytes // 4 * 4].view(np.float32), out.reshape(-1)
    return {
        "read and write": lambda: native.expand_limit(to, source, threads, stream=False),
        "read and write past the caches": lambda: native.expand_limit(to, source, threads, stream=True),
    }


class Work:
    """What `cpunorm.compare.measure` times in one layout, with any number of threads."""

    def __init__(self, x: Array, layout: str) -> None:
        self._x, self._layout = x, layout
        shape = x.shape if layout == "NHWC" else (x.shape[0], x.shape[3], *x.shape[1:3])
        self._out = np.zeros(shape, np.float32)
        self.bytes = self.array_bytes = x.nbytes + self._out.nbytes

    @cached_property
    def expected(self) -> tuple[Array, ...]:
        """By the formula."""
        return (reference(self._x, self._layout),)

    def ours(self, backend: str, threads: int) -> Contestant:
        """One of our backends."""
        return _contestant(backend, ours(self._x, self._layout, backend, threads, self._out))

    def peers(self, threads: int, libraries: tuple[str, ...], *, serial: bool) -> list[Contestant]:
        """NumPy, PyTorch by the way that is the fastest here, OpenCV, albucore."""
        found = []
        if serial and "numpy" in libraries:
            found.append(_contestant(NUMPY, numpy(self._x, self._layout)))
        if "torch" in libraries and (ways := torch(self._x, self._layout, threads)):
            found.append(_contestant(TORCH, min(ways.values(), key=_seconds)))
        if "opencv" in libraries and (run := opencv(self._x, self._layout, threads)) is not None:
            found.append(_contestant(OPENCV, run))
        if "albucore" in libraries and (run := albucore(self._x, self._layout)) is not None:
            found.append(_contestant(ALBUCORE, run))
        return found

    def limit_parts(self, threads: int) -> dict[str, Run]:
        """Either of them; and what a core does without memory."""
        return limit(self._x, self._out, threads) | {"copy within L1": core_part(threads)}


def _contestant(name: str, run: Run) -> Contestant:
    return Contestant(name, run, lambda y: (np.asarray(y),), TOLERANCE)


def _seconds(run: Run) -> float:
    """Of the second call."""
    run()
    start = time.perf_counter()
    run()
    return time.perf_counter() - start
