"""Every refusal: its type, what its message names, and that nothing was written."""

import numpy as np
import pytest
from helpers import arguments, normal

import cpunorm as cn

SHAPE = (2, 3, 4, 4)


def ones(*shape, dtype="float32"):
    return np.ones(shape, dtype)


def read_only(array):
    array.flags.writeable = False
    return array


def good():
    return {"x": normal(SHAPE, "float32"), **arguments(3, "float32"), "out": np.full(SHAPE, 7, "float32")}


def _overlap_with_x():
    space = np.zeros(SHAPE[0] * 48 + 1, "float32")
    return {"x": space[1:].reshape(SHAPE), "out": space[:-1].reshape(SHAPE)}


def _flipped_x():
    x = normal(SHAPE, "float32")
    return {"x": x, "out": x[::-1]}


def _overlap_with(name):
    space = np.ones(96 + 2, "float32")
    return {"out": space[:96].reshape(SHAPE), name: space[95:98]}


def _sliding():
    space = np.zeros(200, "float32")
    return {"out": np.lib.stride_tricks.as_strided(space, SHAPE, (4, 4, 4, 4))}


STATISTICS = {"running_mean": None, "running_var": None}
TRAINING = {"training": True}
# what changes, the exception, what its message names
CASES = {
    "weight too long": ({"weight": ones(4)}, ValueError, "weight", "(3,)", "(4,)", "axis 1", "(2, 3, 4, 4)"),
    "bias too short": ({"bias": ones(2)}, ValueError, "bias", "(3,)", "(2,)"),
    "weight 2-D": ({"weight": ones(3, 1)}, ValueError, "weight", "(3,)", "(3, 1)"),
    "weight 0-D": ({"weight": ones()}, ValueError, "weight", "(3,)", "()"),
    "running_mean too long": ({"running_mean": ones(4)}, ValueError, "running_mean", "(3,)", "(4,)"),
    "running_var too long": ({"running_var": ones(4), **TRAINING}, ValueError, "running_var", "(3,)", "(4,)"),
    "channels elsewhere": ({"layout": "NHWC"}, ValueError, "(4,)", "axis 3", "(3,)"),
    "weight of another dtype": ({"weight": ones(3, dtype="float64")}, TypeError, "weight", "float32", "float64"),
    "bias of int": ({"bias": ones(3, dtype="int32")}, TypeError, "bias", "float32", "int32"),
    "running_mean of float64": ({"running_mean": ones(3, dtype="float64"), **TRAINING}, TypeError, "running_mean", "float32", "float64"),
    "running_var of float64": ({"running_var": ones(3, dtype="float64")}, TypeError, "running_var", "float32", "float64"),
    "layout of another rank": ({"layout": "NC"}, ValueError, "'NC'", "2 axes", "(2, 3, 4, 4)"),
    "layout too long": ({"layout": "NCDHW"}, ValueError, "'NCDHW'", "5 axes", "(2, 3, 4, 4)"),
    "layout without C": ({"layout": "NDHW"}, ValueError, "layout", "'NDHW'", "N and C"),
    "layout without N": ({"layout": "CDHW"}, ValueError, "layout", "'CDHW'", "N and C"),
    "layout with a letter twice": ({"layout": "NCHH"}, ValueError, "'NCHH'", "none twice"),
    "layout in small letters": ({"layout": "nchw"}, ValueError, "'nchw'", "channels_last"),
    "layout misspelt": ({"layout": "channel_last"}, ValueError, "'channel_last'", "'channels_last'"),
    "layout with a space": ({"layout": "NCH "}, ValueError, "'NCH '"),
    "layout empty": ({"layout": ""}, ValueError, "layout", "''"),
    "layout None": ({"layout": None}, TypeError, "layout", "string", "NoneType"),
    "layout a tuple": ({"layout": ("N", "C", "H", "W")}, TypeError, "layout", "string", "tuple"),
    "layout a list": ({"layout": ["N", "C", "H", "W"]}, TypeError, "layout", "string", "list"),
    "x of rank 1": ({"x": ones(3), "out": None}, ValueError, "2 axes", "(3,)"),
    "x of rank 0": ({"x": ones(), "out": None}, ValueError, "2 axes", "()"),
    **{
        f"x of {dtype}": ({"x": np.zeros(SHAPE, dtype)}, TypeError, "x of dtype", "float32 or float64", dtype)
        for dtype in ("int64", "uint8", "bool", "complex64", "complex128", "object", "datetime64[s]")
    },
    "x of longdouble": ({"x": np.zeros(SHAPE, "longdouble")}, TypeError, "x of dtype", "float32 or float64"),
    "x of text": ({"x": np.full(SHAPE, "a")}, TypeError, "x of dtype", "float32 or float64", "<U1"),
    "x a list": ({"x": [[1.0, 2.0, 3.0]], "out": None}, TypeError, "x to be an array", "list"),
    "x None": ({"x": None, "out": None}, TypeError, "x to be an array", "NoneType"),
    "x a number": ({"x": 3.5, "out": None}, TypeError, "x to be an array", "float"),
    "weight a list": ({"weight": [1.0, 1.0, 1.0]}, TypeError, "weight to be an array", "list"),
    "running_mean a list": ({"running_mean": [0.0] * 3}, TypeError, "running_mean to be an array", "list"),
    "out a list": ({"out": [0.0]}, TypeError, "out to be an array", "list"),
    "no statistics": (STATISTICS, ValueError, "running_mean and running_var", "None"),
    "no running_mean": ({"running_mean": None}, ValueError, "both or neither", "no running_mean"),
    "no running_var": ({"running_var": None}, ValueError, "both or neither", "no running_var"),
    "no running_mean in training": ({"running_mean": None, **TRAINING}, ValueError, "both or neither", "no running_mean"),
    "no running_var in training": ({"running_var": None, **TRAINING}, ValueError, "both or neither", "no running_var"),
    "one value a channel": ({"x": ones(1, 3, 1, 1), "out": None, **TRAINING}, ValueError, "more than 1 value", "(1, 3, 1, 1)"),
    "out of another shape": ({"out": ones(2, 3, 4, 5)}, ValueError, "out of shape (2, 3, 4, 4)", "(2, 3, 4, 5)"),
    "out of another rank": ({"out": ones(96)}, ValueError, "out of shape (2, 3, 4, 4)", "(96,)"),
    "out of another dtype": ({"out": ones(*SHAPE, dtype="float64")}, TypeError, "out of dtype float32", "float64"),
    "out read-only": ({"out": read_only(ones(*SHAPE))}, ValueError, "out to be writeable", "read-only"),
    "out with zero strides": (
        {"out": np.lib.stride_tricks.as_strided(ones(4), SHAPE, (0, 0, 0, 4))},
        ValueError,
        "element of out",
        "strides (0, 0, 0, 4)",
    ),
    "out overlapping itself": (_sliding(), ValueError, "element of out", "strides (4, 4, 4, 4)"),
    "out overlapping x": (_overlap_with_x(), ValueError, "out", "overlaps x"),
    "out a flipped x": (_flipped_x(), ValueError, "out", "overlaps x"),
    **{
        f"out overlapping {name}": (_overlap_with(name), ValueError, "out", f"overlaps {name}")
        for name in ("weight", "bias", "running_mean", "running_var")
    },
    "x in place, read-only": ((lambda x: {"x": x, "out": x})(read_only(ones(*SHAPE))), ValueError, "out to be writeable"),
    "backend unknown": ({"backend": "cuda"}, ValueError, "backend", "'numba', 'c', 'numpy'", "'cuda'"),
    "backend a number": ({"backend": 3}, ValueError, "backend", "3"),
    "backend a list": ({"backend": ["numba"]}, ValueError, "backend", "['numba']"),
    "threads 0": ({"threads": 0}, ValueError, "threads", "at least 1", "0"),
    "threads negative": ({"threads": -2}, ValueError, "threads", "at least 1", "-2"),
    "threads a fraction": ({"threads": 1.0}, TypeError, "threads", "whole number", "1.0"),
    "threads True": ({"threads": True}, TypeError, "threads", "whole number", "True"),
    "threads text": ({"threads": "2"}, TypeError, "threads", "whole number", "'2'"),
    "eps text": ({"eps": "1e-5"}, TypeError, "eps", "real number", "'1e-5'"),
    "eps None": ({"eps": None}, TypeError, "eps", "real number", "None"),
    "eps True": ({"eps": True}, TypeError, "eps", "real number", "True"),
    "eps an array": ({"eps": ones(3)}, TypeError, "eps", "real number"),
    "eps negative": ({"eps": -1e-5}, ValueError, "eps", "not negative", "-1e-05"),
    "eps NaN": ({"eps": float("nan")}, ValueError, "eps", "nan"),
    "eps infinite": ({"eps": float("inf")}, ValueError, "eps", "inf"),
    "eps 0 in training": ({"eps": 0.0, **TRAINING}, ValueError, "eps", "positive in training", "0.0"),
    "eps negative in training": ({"eps": -1.0, **TRAINING}, ValueError, "eps", "positive in training", "-1.0"),
    "momentum text": ({"momentum": "0.1"}, TypeError, "momentum", "real number", "'0.1'"),
    "momentum None": ({"momentum": None, **TRAINING}, TypeError, "momentum", "real number", "None"),
    "momentum True": ({"momentum": True, **TRAINING}, TypeError, "momentum", "real number", "True"),
    "momentum complex": ({"momentum": 0.1j}, TypeError, "momentum", "real number", "0.1j"),
    "training text": ({"training": "yes"}, TypeError, "training", "'yes'"),
    "training None": ({"training": None}, TypeError, "training", "None"),
    "running_mean read-only": ({"running_mean": read_only(ones(3)), **TRAINING}, ValueError, "running", "read-only"),
    "running_var read-only": ({"running_var": read_only(ones(3)), **TRAINING}, ValueError, "running", "read-only"),
}


def refused(call, given, error, fragments):
    """The error, with a message that names the call and all fragments; no array of `given` has changed."""
    before = {name: value.tobytes() for name, value in given.items() if isinstance(value, np.ndarray) and value.dtype != object}
    with pytest.raises(error) as caught:
        getattr(cn, call)(**given)
    assert caught.type in (ValueError, TypeError, np.exceptions.AxisError)
    message = str(caught.value)
    missing = [fragment for fragment in (f"{call}: ", *fragments) if fragment not in message]
    assert not missing, f"{missing} not in: {message}"
    assert before == {name: given[name].tobytes() for name in before}


@pytest.mark.parametrize(("change", "error", "fragments"), [(c, e, f) for c, e, *f in CASES.values()], ids=CASES)
def test_batch_norm_refuses(change, error, fragments, backend):
    cn.batch_norm(
        **{**good(), "backend": backend, "training": change.get("training") is True}
    )  # what it leaves prepared must not let a bad one pass
    refused("batch_norm", {**good(), "backend": backend, **change}, error, fragments)


@pytest.mark.parametrize("name", ["momentum", "eps", "threads"])
@pytest.mark.parametrize("pair", [(1, True), (1.0, True)], ids=str)
def test_equal_is_not_the_same(name, pair, backend):
    """True == 1 == 1.0: a call with one must not vouch for a call with another."""
    fine, bad = pair
    if name == "threads" and isinstance(fine, float):
        fine, bad = 1, 1.0
    cn.batch_norm(**{**good(), "backend": backend, name: fine})
    refused("batch_norm", {**good(), "backend": backend, name: bad}, TypeError, [name, repr(bad)])


def test_read_only_is_checked_at_every_call(backend):
    given = {**good(), "backend": backend, "training": True}
    cn.batch_norm(**given)
    for name in ("out", "running_mean", "running_var"):
        given[name].flags.writeable = False
        refused("batch_norm", given, ValueError, ["read-only"])
        given[name].flags.writeable = True


def test_overlap_is_checked_at_every_call(backend):
    """The same shapes and strides, apart the first time."""
    space = np.ones(2 * 96, "float32")
    given = {**good(), "backend": backend, "x": space[96:].reshape(SHAPE)}
    cn.batch_norm(**{**given, "out": space[:96].reshape(SHAPE)})
    refused("batch_norm", {**given, "out": space[48 : 48 + 96].reshape(SHAPE)}, ValueError, ["overlaps x"])


MEAN_VAR = {
    "complex": ({"x": ones(3, dtype="complex64")}, TypeError, "real or integer", "complex64"),
    "object": ({"x": ones(3, dtype="object")}, TypeError, "real or integer", "object"),
    "text": ({"x": np.full(3, "a")}, TypeError, "real or integer", "<U1"),
    "dates": ({"x": np.zeros(3, "datetime64[s]")}, TypeError, "real or integer", "datetime64"),
    "a list": ({"x": [1.0, 2.0]}, TypeError, "x to be an array", "list"),
    "axis too large": ({"axis": 4}, np.exceptions.AxisError, "from -4 to 3", "4 axes", "4"),
    "axis too small": ({"axis": (0, -5)}, np.exceptions.AxisError, "from -4 to 3", "-5"),
    "axis twice": ({"axis": (1, 1)}, ValueError, "different axes", "(1, 1)"),
    "axis twice, once negative": ({"axis": (1, -3)}, ValueError, "different axes", "(1, -3)"),
    "axis a fraction": ({"axis": 1.0}, TypeError, "axis", "1.0"),
    "axis True": ({"axis": True}, TypeError, "axis", "True"),
    "axis a list": ({"axis": [0, 1]}, TypeError, "axis", "[0, 1]"),
    "ddof text": ({"ddof": "1"}, TypeError, "ddof", "real number", "'1'"),
    "ddof None": ({"ddof": None}, TypeError, "ddof", "real number", "None"),
    "backend unknown": ({"backend": "cuda"}, ValueError, "backend", "'cuda'"),
    "threads 0": ({"threads": 0}, ValueError, "threads", "at least 1"),
    "threads True": ({"threads": True}, TypeError, "threads", "True"),
}


@pytest.mark.parametrize(("change", "error", "fragments"), [(c, e, f) for c, e, *f in MEAN_VAR.values()], ids=MEAN_VAR)
def test_mean_var_refuses(change, error, fragments, backend):
    refused("mean_var", {"x": ones(*SHAPE), "backend": backend, **change}, error, fragments)
