"""The `fuzz.Spec` that hypothesis draws: any call that is valid."""

from typing import Any

import numpy as np
from fuzz import CONSTANTS, DTYPES, FUSED, NAMES, ROWS, Spec
from hypothesis import assume
from hypothesis import strategies as st
from nasty import FLOATS, memories

from cpunorm import samples

SIZES = st.sampled_from([0, *(1, 2, 3, 4, 5, 7, 8, 9, 16, 17, 31, 33) * 3, 1, 1, 1, 37, 63, 65, 129, 257, 1027])
MOST = 6_000  # elements, but for a few
LARGE = 400_000


@st.composite
def shapes(draw, least, most):
    rank = draw(st.integers(least, most))
    shape = draw(st.lists(SIZES, min_size=rank, max_size=rank))
    if draw(st.integers(0, 99)) == 37:
        limit = LARGE
        shape[draw(st.integers(0, rank - 1))] *= draw(st.sampled_from([16, 64, 500]))
    else:
        limit = MOST
    while np.prod(shape) > limit:
        shape[int(np.argmax(shape))] //= 2
    return tuple(shape)


def _layout(draw, rank):
    letters = "".join(draw(st.permutations("NC" + "DHW"[5 - rank :])))
    return draw(st.sampled_from([letters, "channels_first", "channels_last", "channels_last"]))


@st.composite
def specs(draw, names=NAMES):
    name = draw(st.sampled_from(names))
    base = name.removesuffix("_backward")
    backward = base != name
    rank = {"instance_norm": (3, 5), "local_response_norm": (3, 5), "batch_norm": (2, 5), "group_norm": (2, 5)}.get(base, (1, 4))
    shape = draw(shapes(*rank))
    dtype = draw(st.sampled_from(DTYPES))
    if base == "mean_var":
        dtype = draw(st.sampled_from((*DTYPES, "uint8", "uint16", "int8", "int32")))
    options, given_names = _options(draw, base, backward, shape)
    memory = draw(memories(len(shape)))
    memory = memory._replace(swapped=False) if dtype == "bfloat16" else memory
    second = None
    into = None
    if base != "mean_var":
        takes_second = backward or (base in FUSED and draw(st.booleans()))
        second = draw(memories(len(shape), writable=draw(st.booleans()))) if takes_second else None
        if base in ROWS and not backward:
            options["return_sum"] = takes_second and draw(st.booleans())
        into = draw(st.sampled_from([None, None, "own", "own", "x", "second"]))
        if into == "own":
            into = draw(memories(len(shape), writable=True))
        elif (into == "x" and memory.flat) or (into == "second" and (second is None or second.flat)):
            into = None
    given = tuple(sorted(draw(st.sets(st.sampled_from(sorted(given_names)))))) if given_names else ()
    if "running_mean" in given_names:
        needed = options.get("training") is False or options.get("use_input_stats") is False
        pair = {"running_mean", "running_var"}
        given = tuple(sorted((set(given) | pair) if needed or "running_mean" in given else set(given) - pair))
    return Spec(
        name,
        shape,
        dtype,
        draw(st.sampled_from(FLOATS)),
        draw(st.sampled_from(["", "", "", "n", "i", "z", "niz"])),
        draw(st.integers(0, 2**16)),
        memory,
        second,
        into,
        given,
        draw(st.sampled_from(["normal", "normal", "normal gaps", "narrow", "narrow gaps", "nasty", "nasty narrow"])),
        tuple(options.items()),
        draw(st.sampled_from(sorted(CONSTANTS))),
        draw(st.sampled_from([1, 1 << 11, 1 << 14, 32 << 20])),
    )


def _options(draw, base, backward, shape):
    """Keyword arguments, and the parameters that may be given."""
    options: dict[str, Any] = {}
    rank = len(shape)
    weights = {"weight"} if backward or base == "rms_norm" else {"weight", "bias"}
    if base in ROWS:
        options["normalized_shape"] = shape[draw(st.integers(0, rank - 1)) :]
        if not backward:
            options["eps"] = draw(st.sampled_from([1e-5, 1e-3, 1.0, 0.0, 1e-30, *([None] if base == "rms_norm" else [])]))
    elif base == "normalize":
        dims = st.sets(st.integers(-rank, -1), min_size=0).map(tuple) | st.integers(0, rank - 1)
        options = {"p": draw(st.sampled_from([2.0, 2.0, 2.0, 2.0, 1.0, float("inf"), 3, 0.5, 0])), "dim": draw(dims)}
        options["eps"] = draw(st.sampled_from([1e-12, 1e-12, 1e-3, 10.0]))
        if options["p"] == float("inf") and 0 in shape:
            options["p"] = 2.0
        return options, set()
    elif base == "mean_var":
        options["axis"] = draw(st.none() | st.sets(st.integers(-rank, -1)).map(tuple) | st.integers(0, rank - 1))
        return options | {"ddof": draw(st.sampled_from([0, 1, 0.5])), "keepdims": draw(st.booleans())}, set()
    else:
        options["layout"] = _layout(draw, rank)
        axes = samples.axes_of(options["layout"], rank)
        channels = shape[axes.channel]
    if base == "local_response_norm":
        options |= {"size": draw(st.sampled_from([1, 2, 3, 5, 8, 99, 3000])), "alpha": draw(st.sampled_from([1e-4, 0.1, 1.0]))}
        return options | {"beta": draw(st.sampled_from([0.75, 0.5, 1.0, 0.3])), "k": draw(st.sampled_from([1.0, 2.0, 0.5, 0.0]))}, set()
    size = int(np.prod(shape))
    if base == "batch_norm":
        options["training"] = draw(st.booleans()) and size != channels
    if base == "instance_norm":
        spatial = int(np.prod([n for axis, n in enumerate(shape) if axis not in axes[:2]]))
        options["use_input_stats"] = draw(st.booleans()) and spatial != 1
    if base == "group_norm":
        divisors = [n for n in range(1, max(channels, 1) + 1) if channels % n == 0 and n != size]
        assume(divisors)
        options["num_groups"] = draw(st.sampled_from(divisors))
    if not backward:
        if base in ("batch_norm", "instance_norm"):
            options["momentum"] = draw(st.sampled_from([0.1, 0.0, 1.0, 0.3]))
            weights |= {"running_mean", "running_var"}
        options["eps"] = draw(st.sampled_from([1e-5, 1e-5, 1e-3, 1.0, 1e-30, *([] if options.get("training") else [0.0])]))
    if not backward and base in FUSED:
        options["activation"] = draw(st.sampled_from([None, None, "relu", "relu6", "silu", "hardswish"]))
        options["return_stats"] = draw(st.booleans())
    return options, weights
