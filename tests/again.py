"""Calls that follow a call of the same shape: with one argument that is something else, with none, and any of a sequence.

Each is given twice, to `cpunorm.ready` after calls that it was prepared by, and as the first one, which goes the usual way.
"""

import pickle
from typing import NamedTuple

import numpy as np
from helpers import ARRANGEMENTS, normal
from hypothesis import strategies as st

from cpunorm import samples

SHAPE = (2, 8, 4, 4)
BATCH, BACK, LAYER = "batch_norm", "batch_norm_backward", "layer_norm"


def spaced(values):
    """These values in memory that goes on for as many elements on both sides."""
    space = np.full(3 * values.size, 3, values.dtype)
    view = space[values.size : 2 * values.size].reshape(values.shape)
    view[...] = values
    return view


def arguments(name, dtype="float32"):
    shape = (8,) if name == LAYER else SHAPE
    own, kind = samples.dtype_of(dtype), samples.statistics_dtype(dtype)
    made = {"x": normal(shape, own, 0), "weight": normal(8, kind, 1)}
    if name == BACK:
        made |= {"grad": normal(shape, own, 2), "mean": normal(8, kind, 3), "rstd": normal(8, kind, 4)}
    else:
        made |= {"bias": normal(8, kind, 2)}
    if name == BATCH:
        made |= {"running_mean": normal(8, kind, 3), "running_var": normal(8, kind, 4)}
    options = {BATCH: {"training": True}, LAYER: {"normalized_shape": 8}, BACK: {}}[name]
    return {key: spaced(value) for key, value in made.items()} | options


def made(name, *changes):
    """Arguments with these changes, one after another: new values, or functions of the arguments so far."""
    dtype = [change["dtype"] for change in changes if "dtype" in change] or ["float32"]
    given = arguments(name, dtype[0])
    for key, value in (item for change in changes for item in change.items() if item[0] != "dtype"):
        given[key] = value(given) if callable(value) else value
    return given


def of(name, change):
    """A change of one argument, from its own value."""
    return {name: lambda given: change(given[name])}


def start(x):
    """Bytes from the start of the memory of x."""
    return x.__array_interface__["data"][0] - x.base.__array_interface__["data"][0]


def shifted(x, elements):
    """As x, in the same memory so many elements further."""
    return np.ndarray(x.shape, x.dtype, x.base, start(x) + elements * x.itemsize, x.strides)


def stretched(x):
    """As x, with 8 elements between its first indices."""
    return np.ndarray(x.shape, x.dtype, x.base, start(x), (x.strides[0] + 8 * x.itemsize, *x.strides[1:]))


def read_only(x):
    view = x.view()
    view.flags.writeable = False
    return view


def copy_of(name):
    return lambda given: spaced(given[name])


def at(name, elements=0, function=lambda x: x):
    return lambda given: function(shifted(given[name], elements))


class Subclass(np.ndarray):
    pass


GAPS, BACKWARDS, FLAT, ODD, SWAPPED = (
    ARRANGEMENTS[name] for name in ("inner step", "negative inner", "broadcast batch", "unaligned", "byte-swapped")
)
OUT = {"out": copy_of("x")}
BOTH = OUT | {"residual": copy_of("x")}
NARROW = {"dtype": "float16"}
MINE = ("x", "residual", "out", "weight", "bias", "running_mean", "running_var")
BACKS = ("grad", "x", "out", "mean", "rstd", "weight")


def each(what, change, error="", of_batch=MINE, of_back=BACKS):
    """This change of each of these arguments; of a gradient's too."""
    rows = {f"{what} {name}": (BATCH, BOTH, of(name, change), error.format(name)) for name in of_batch}
    return rows | {f"{what} {name} of a gradient": (BACK, OUT, of(name, change), error.format(name)) for name in of_back}


# what: (function, what it was called with before, what is changed then, a part of the message if it is refused)
OTHERS = {
    **{f"no {name}": (BATCH, BOTH, {name: None}, "") for name in ("weight", "bias", "residual")},
    "a residual": (BATCH, {}, BOTH, ""),
    "a bias": (BATCH, {"bias": None}, {"bias": copy_of("weight")}, ""),
    "no running statistics": (BATCH, {}, {"running_mean": None, "running_var": None}, ""),
    "half of them": (BATCH, {}, {"running_var": None}, "running_var"),
    "no weight of a gradient": (BACK, {}, {"weight": None}, ""),
    **{f"no {name}": (BACK, {}, {name: None}, f"expected {name} of") for name in ("mean", "rstd")},
    **each("a subclass,", lambda x: x.view(Subclass)),
    **each("a list,", lambda x: x.tolist(), "expected {} to be an array"),
    **each("integers in", lambda x: x.view(np.int32), "dtype"),
    **each("byte-swapped", SWAPPED, "dtype", MINE[1:], BACKS[1:]),
    "byte-swapped x": (BATCH, {}, of("x", SWAPPED), ""),
    "other 16 bits in x": (BATCH, NARROW, of("x", lambda x: x.view(samples.dtype_of("bfloat16"))), ""),
    "other 16 bits in residual": (BATCH, NARROW | BOTH, of("residual", lambda x: x.view(samples.dtype_of("bfloat16"))), "dtype"),
    "weight of 16 bits": (BATCH, NARROW, of("weight", lambda x: x.astype(np.float16)), ""),
    "weight of 16 bits of a gradient": (BACK, NARROW, of("weight", lambda x: x.astype(np.float16)), ""),
    **each("one axis more of", lambda x: x[..., None], "shape", MINE[1:], BACKS),
    **each("one value less of", lambda x: x[:-1], "shape", MINE[1:], BACKS),
    **each("odd", ODD),
    **each("gaps in", GAPS),
    **each("backwards", BACKWARDS),
    **each("flat", FLAT, "", ("x", "residual", "weight", "bias"), ("grad", "x", "mean", "rstd", "weight")),
    "flat out": (BATCH, OUT, of("out", lambda x: np.ndarray(x.shape, x.dtype, x.base, 0, (0, *x.strides[1:]))), "own place"),
    **each("read-only", read_only, "expected {} to be writeable", ("out", "running_mean", "running_var"), ["out"]),
    **{f"another {name}": (BATCH, {}, {name: value}, "") for name, value in (("eps", 0.1), ("activation", "relu"), ("threads", 1))},
    **{f"another {name} of a gradient": (BACK, {}, {name: value}, "") for name, value in (("training", False), ("threads", 1))},
    # memory that out shares
    **{f"out {n} further than x": (BATCH, OUT, {"out": at("x", n)}, "overlaps x") for n in (1, 255, -255)},
    "out near residual": (BATCH, BOTH, {"out": at("residual", 1)}, "overlaps residual"),
    "out near grad": (BACK, OUT, {"out": at("grad", 1)}, "overlaps grad"),
    "out at the end of x, which runs backwards": (
        BATCH,
        OUT | of("x", lambda x: x[::-1]),
        {"out": lambda given: np.ndarray(SHAPE, "f4", given["x"].base, 4)},
        "overlaps x",
    ),
    "out in the last bytes of weight": (
        BATCH,
        NARROW | {"out": lambda given: shifted(copy_of("x")(given), 1)},
        {"weight": lambda given: np.ndarray(8, "f4", given["out"].base, start(given["out"]) - 30)},
        "overlaps weight",
    ),
    "out starts as x and goes on in larger steps": (
        BATCH,
        {"residual": lambda given: stretched(spaced(given["x"])), "out": at("residual")},
        {"out": at("x", 0, stretched)},
        "overlaps x",
    ),
    **{f"out is x and {name}": (LAYER, {"out": at("x")}, {name: at("x")}, f"overlaps {name}") for name in ("weight", "bias")},
    "residual within x, which is out": (
        BATCH,
        {name: at("x") for name in ("residual", "out")},
        {"residual": at("x", 1)},
        "overlaps residual",
    ),
    **{f"{name} in out": (BATCH, OUT, {name: at("out", 0, lambda x: x[1, 7, 2:].reshape(8))}, f"overlaps {name}") for name in MINE[3:]},
    **{f"{name} in grad_x": (BACK, OUT, {name: at("out", 0, lambda x: x[0, 0, :2].reshape(8))}, f"overlaps {name}") for name in BACKS[3:]},
    **{f"out is {name}": (LAYER, OUT, {"out": lambda given, name=name: given[name]}, f"out is also {name}") for name in ("weight", "bias")},
    **{f"over {name}": (BATCH, BOTH, {"out": at(name)}, "") for name in ("x", "residual")},
    **{f"over {name} of a gradient": (BACK, OUT, {"out": at(name)}, "") for name in ("x", "grad")},
    **{f"no more over x of {name}": (name, {"out": at("x")}, OUT, "") for name in (BATCH, BACK)},
}


unpickled = {name: lambda given, name=name: pickle.loads(pickle.dumps(given[name])) for name in ("x", "weight", "running_mean")}
SAME = {
    "other values": (BATCH, BOTH, of("x", BACKWARDS) | of("x", lambda x: spaced(-x))),
    "read-only inputs": (BATCH, BOTH, {name: at(name, 0, read_only) for name in ("x", "residual", "weight", "bias")}),
    "running statistics that are only read": (BATCH, {"training": False}, of("running_var", read_only)),
    "out right after x": (BATCH, OUT, {"out": at("x", 256)}),
    "out right before x": (BATCH, OUT, {"out": at("x", -256)}),
    "an out": (BATCH, {}, OUT),
    "no out": (BATCH, OUT, {"out": None}),
    "over another view of x": (BATCH, {"out": lambda given: given["x"]}, {"out": at("x")}),
    "over residual instead of x": (BATCH, BOTH | {"out": at("x")}, {"out": at("residual")}),
    "statistics returned": (BATCH, {}, {"return_stats": True}),
    "statistics no more": (BATCH, {"return_stats": True}, {"return_stats": False}),
    "the sum returned": (LAYER, {"residual": copy_of("x")}, {"return_sum": True}),
    "arrays from a pickle": (BATCH, {}, unpickled),
    "from no pickle any more": (BATCH, unpickled, {name: copy_of(name) for name in unpickled}),
}


# ---------------------------------------------------------------- sequences

DATA, ROOM = (2, 3, 4), 2048  # bytes that an array may lie in


class Place(NamedTuple):
    """Where an array lies: in whose room, how many elements further; its strides; what else is odd."""

    room: str
    shift: int = 0
    strides: str = "plain"
    odd: str = ""
    dtype: str = ""


STRIDES = {
    "plain": lambda plain: plain,
    "order": lambda plain: plain[::-1] if len(plain) == 1 else (plain[0], plain[2], plain[2] * DATA[2]) if len(plain) > 2 else plain,
    "gaps": lambda plain: (plain[0] + 2 * plain[-1], *plain[1:]) if len(plain) > 1 else (2 * plain[0],),
    "backwards": lambda plain: (-plain[0], *plain[1:]),
    "flat": lambda plain: (0, *plain[1:]),
}
OPERANDS = {
    "batch_norm": (("x", "residual", "out"), ("running_mean", "running_var", "weight", "bias"), {"training": True, "return_stats": True}),
    "layer_norm": (("x", "residual", "out"), ("weight", "bias"), {"normalized_shape": DATA[-1]}),
    "layer_norm_backward": (("grad", "x", "out"), ("weight",), {"normalized_shape": DATA[-1]}),
    "batch_norm_backward": (("grad", "x", "out"), ("mean", "rstd", "weight"), {}),
}
OPTIONAL = {"residual", "out", "weight", "bias"}


@st.composite
def sequences(draw):
    """A function, and calls of it that differ from the first one in a few arguments."""
    name = draw(st.sampled_from(sorted(OPERANDS)))
    data, vectors, _ = OPERANDS[name]
    names = (*data, *vectors)
    dtype = draw(st.sampled_from(["float32", "float64", "float16"]))
    first = {one: None if one in OPTIONAL and draw(st.booleans()) else Place(one) for one in names}
    places = st.builds(
        Place,
        st.sampled_from(names),
        st.sampled_from([0, 0, 0, 1, -1, 23, 24]),
        st.sampled_from(["plain", "plain", *STRIDES]),
        st.sampled_from(["", "", "", "unaligned", "read-only", "subclass", "swapped"]),
        st.sampled_from(["", "", "", "float32", "float16", "int32"]),
    )
    calls = [first]
    for _ in range(draw(st.integers(1, 4))):
        changed = draw(st.lists(st.sampled_from(names), min_size=1, max_size=2, unique=True))
        calls += [first, first | {one: draw(places | (st.none() if one in OPTIONAL else st.just(Place(one)))) for one in changed}]
    return name, dtype, draw(st.permutations(calls)) + calls


def placed(name, dtype, call):
    """The arguments of a call, and the one memory that all of them lie in."""
    data, _, options = OPERANDS[name]
    space = normal((len(call) + 1) * ROOM // np.dtype(dtype).itemsize, dtype).view(np.uint8)
    found = dict(options)
    rooms = {one: (number + 1) * ROOM - ROOM // 4 for number, one in enumerate(call)}
    for one, place in call.items():
        if place is None:
            found[one] = None
            continue
        shape = DATA if one in data else DATA[-1:] if name.startswith("layer") else DATA[1:2]
        kind = np.dtype(place.dtype or (dtype if one in data else samples.statistics_dtype(dtype)))
        kind = kind.newbyteorder() if place.odd == "swapped" else kind
        strides = STRIDES[place.strides](np.empty(shape, kind).strides)
        at = rooms[place.room] + place.shift * kind.itemsize + (place.odd == "unaligned")
        found[one] = np.ndarray(shape, kind, space, at - (place.strides == "backwards") * (shape[0] - 1) * strides[0], strides)
        if place.odd == "subclass":
            found[one] = found[one].view(Subclass)
        found[one].flags.writeable = place.odd != "read-only"
    if name == "layer_norm_backward":
        found["mean"], found["rstd"] = (np.full((*DATA[:-1], 1), 2, samples.statistics_dtype(dtype)) for _ in range(2))
    return found, space
