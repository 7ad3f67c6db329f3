"""Any call of `preprocess`: as tests/fuzz.py, whose check it shares in what is not the operations' own."""

from typing import Any, NamedTuple

import numpy as np
from fuzz import CONSTANTS, noted, planned
from helpers import COMPILED, assert_same_bits
from hypothesis import strategies as st
from nasty import FLOATS, Held, Memory, memories, values
from oracle import Wanted, assert_within

import cpunorm as cn
from cpunorm import pictures, reference_pictures, resize, samples

KINDS = tuple(pictures.AUTO)


class Pictures(NamedTuple):
    """A call. `form` is "batch", "list" or "one"; `into` where the result goes."""

    shape: tuple[int, int, int, int]
    dtype: str = "uint8"
    kind: str = "normal"
    guests: str = ""
    seed: int = 0
    memory: Memory | None = None
    form: str = "batch"
    into: Memory | None = None
    options: tuple[tuple[str, Any], ...] = ()
    constants: str = "as they are"
    l3: int = 32 << 20


@st.composite
def specs(draw):
    layout = draw(st.sampled_from(["NHWC", "NCHW"]))
    count, channels = draw(st.sampled_from([0, 1, 1, 2, 3])), draw(st.sampled_from([1, 2, 3, 3, 3, 4, 4, 5, 13]))
    height, width = (draw(st.sampled_from([1, 2, 3, 7, 16, 31, 33, 64, 97])) for _ in range(2))
    options: dict[str, Any] = {"input_layout": layout, "output_layout": draw(st.sampled_from(["NHWC", "NCHW"]))}
    size = draw(st.sampled_from([None, None, "exact", "short"])) if count else None
    after = (height, width)
    if size == "exact":
        options["size"] = (draw(st.integers(1, 40)), draw(st.integers(1, 40)))
    elif size == "short":
        options["size"] = ("short", draw(st.integers(1, 40)))
    if size:
        after = resize.target(options["size"], height, width)
    if draw(st.booleans()):
        high, wide = draw(st.integers(1, after[0])), draw(st.integers(1, after[1]))
        corner = (draw(st.integers(0, after[0] - high)), draw(st.integers(0, after[1] - wide)))
        options["crop"] = draw(st.sampled_from([("center", high, wide), (*corner, high, wide)]))
    options["swap_rb"] = channels in (3, 4) and draw(st.booleans())
    options["mirror"] = draw(st.booleans() | st.lists(st.booleans(), min_size=count, max_size=count).map(tuple))
    options["pad_channels"] = draw(st.sampled_from([None, channels, channels + 1, 16]))
    options["dtype"] = draw(st.sampled_from(["float32", "float32", "float16", "bfloat16", "int8", "uint8"]))
    if options["dtype"].endswith("int8"):
        options["quant"] = (draw(st.sampled_from([0.01, 0.02, 1.0, 3.3])), draw(st.sampled_from([0, 1, 100])))
    options["scale"] = draw(st.sampled_from(["auto", "auto", 1.0, 0.25]))
    form = draw(st.sampled_from(["batch", "batch", "list", "one"]))
    if form == "one" or count == 0:
        options["mirror"] = bool(options["mirror"])
    if not count:
        form = "batch"
    shape = (count, height, width, channels) if layout == "NHWC" else (count, channels, height, width)
    into = draw(st.none() | memories(4, writable=True))
    return Pictures(
        shape,
        draw(st.sampled_from(KINDS)),
        draw(st.sampled_from(FLOATS)),
        draw(st.sampled_from(["", "", "n", "i", "niz"])),
        draw(st.integers(0, 2**16)),
        draw(memories(4)),
        form,
        into,
        tuple(options.items()),
        draw(st.sampled_from(sorted(CONSTANTS))),
        draw(st.sampled_from([1, 1 << 14, 32 << 20])),
    )


def wanted(spec, x, mean, std):
    """In float64, and docs/preprocessing.md's bounds; of integers what lies between them."""
    options = dict(spec.options)
    quant, dtype = options.get("quant"), samples.dtype_of(options["dtype"])
    scale = pictures.AUTO[spec.dtype] if options["scale"] == "auto" else options["scale"]
    x = x if options["input_layout"] == "NHWC" else np.moveaxis(x, 1, -1)
    channels = x.shape[-1]
    padded = options["pad_channels"] or channels
    size = resize.target(options["size"], *x.shape[1:3]) if options.get("size") else x.shape[1:3]
    crop = options.get("crop", (0, 0, *size))
    if crop[0] == "center":
        crop = ((size[0] - crop[1]) // 2, (size[1] - crop[2]) // 2, *crop[1:])
    mirror = options["mirror"] if isinstance(options["mirror"], tuple) else (options["mirror"],) * len(x)
    found = np.zeros((len(x), *crop[2:], padded))
    with np.errstate(all="ignore"):
        for i, picture in enumerate(x):
            found[i] = reference_pictures.preprocess(picture, mean, std, scale, options["swap_rb"], size, crop, mirror[i], padded)
        most = np.abs(np.where(np.isfinite(x), x, 0).astype(np.float64)).max(initial=0) * scale / min(std)
        off = 1e-6 * np.maximum(max(1, np.max(np.abs(np.array(mean) / std))), np.abs(found))
        off = off + (1e-6 * most if size != x.shape[1:3] and spec.dtype != "uint8" else 0)
        off[..., channels:] = 0
        off = np.where(np.isfinite(found), off, 0)
    if options["output_layout"] == "NCHW":
        found, off = np.moveaxis(found, -1, 1), np.moveaxis(off, -1, 1)
    if quant is None:
        return [Wanted("y", found, off, dtype)]
    low, high = (reference_pictures.quantized(found + sign * off, dtype, quant).astype(np.float64) for sign in (-1, 1))
    return [Wanted("y", (low + high) / 2, (high - low) / 2, dtype)]


def check(spec, backends=(*COMPILED, "numpy")):
    """The result is right, the same for any number of threads, and nothing else is written."""
    rng = np.random.default_rng(spec.seed)
    channels = spec.shape[-1 if dict(spec.options)["input_layout"] == "NHWC" else 1]
    mean, std = tuple(rng.uniform(0.1, 0.9, channels)), tuple(rng.uniform(0.05, 0.5, channels))
    x = values(spec.shape, spec.dtype, spec.kind, spec.guests, spec.seed, 0.9)
    x = x[:1] if spec.form == "one" else x
    memory = spec.memory or Memory((0, 1, 2, 3), (1,) * 4, (0,) * 4)
    with planned(spec):
        right = wanted(spec, np.array(Held(x, memory).array, x.dtype), mean, std)
        for backend in backends:
            first = None
            for threads in (1, 2, 3) if backend in COMPILED else (1,):
                with noted(spec, backend, threads):
                    held = Held(x, memory)
                    images = {"batch": held.array, "one": held.array[0] if spec.form == "one" else None, "list": list(held.array)}[
                        spec.form
                    ]
                    out = None if spec.into is None else Held(np.full(right[0].value.shape, 7).astype(right[0].dtype), spec.into)
                    options = {"backend": backend, "threads": threads, "out": None if out is None else out.array}
                    y = cn.preprocess(images, mean, std, **dict(spec.options), **options)
                    assert not held.changed(), "images were written"
                    assert out is None or (y is out.array and not out.changed(written=True))
                    if first is None:
                        assert_within(y, right[0])
                        first = y
                    assert_same_bits(y, first)
