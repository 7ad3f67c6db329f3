"""What PyTorch refuses is refused, by an error that names the call and what came; nothing is written."""

import numpy as np
import pytest
from test_errors import refused

import cpunorm as cn
from cpunorm import samples

SHAPE = (2, 6, 4, 5)


def values(*shape, dtype="float32"):
    return np.ones(shape, dtype)


STATS = {"batch_norm": (6,), "instance_norm": (2, 6), "group_norm": (2, 3), "layer_norm": (2, 6, 1, 1), "rms_norm": (2, 6, 1, 1)}
OWN = {
    "batch_norm": {"running_mean": np.zeros(6, "float32"), "running_var": np.ones(6, "float32")},
    "group_norm": {"num_groups": 3},
    "layer_norm": {"normalized_shape": (4, 5)},
    "rms_norm": {"normalized_shape": (4, 5)},
    "local_response_norm": {"size": 5},
}
FUSED = tuple(STATS)
ALL = (*FUSED, "local_response_norm", "normalize")
OF = {"layer_norm": (4, 5), "rms_norm": (4, 5)}


def forward(name):
    return {
        "x": values(*SHAPE),
        "out": values(*SHAPE),
        **{k: v.copy() if isinstance(v, np.ndarray) else v for k, v in OWN.get(name, {}).items()},
    }


def backward(name):
    given = {"grad": values(*SHAPE), "x": values(*SHAPE), "out": values(*SHAPE)}
    given |= {key: value for key, value in OWN.get(name, {}).items() if not key.startswith("running")}
    if name in STATS:
        given |= {key: values(*STATS[name]) for key in (("rstd",) if name == "rms_norm" else ("mean", "rstd"))}
    return given


V, T = ValueError, TypeError
# functions, what changes, the exception, what its message names
FORWARD = [
    (ALL, {"x": np.ones(SHAPE, "int32")}, T, "x of dtype", "int32"),
    (ALL, {"x": np.ones(SHAPE, "bool")}, T, "x of dtype", "bool"),
    (ALL, {"x": np.ones(SHAPE, "complex64")}, T, "x of dtype", "complex64"),
    (ALL, {"x": [[1.0]], "out": None}, T, "x to be an array", "list"),
    (ALL, {"out": values(2, 6, 4)}, V, "out of shape", "(2, 6, 4)"),
    (ALL, {"out": values(*SHAPE, dtype="float64")}, T, "out of dtype float32", "float64"),
    (ALL, {"backend": "cuda"}, V, "'cuda'"),
    (ALL, {"threads": 0}, V, "threads", "at least 1"),
    (FUSED, {"residual": values(2, 6, 4, 1)}, V, "residual", "(2, 6, 4, 5)", "(2, 6, 4, 1)"),
    (FUSED, {"residual": values(5)}, V, "residual", "(5,)"),
    (FUSED, {"residual": values(*SHAPE, dtype="float64")}, T, "residual", "float32", "float64"),
    (FUSED, {"activation": "gelu"}, V, "activation", "'relu'", "'gelu'"),
    (FUSED, {"activation": 3}, V, "activation", "3"),
    (FUSED, {"weight": values(7)}, V, "weight of shape", "(7,)"),
    (FUSED, {"weight": values(1)}, V, "weight of shape", "(1,)"),
    (FUSED[:4], {"bias": values(7)}, V, "bias of shape", "(7,)"),
    (FUSED[:4], {"bias": np.ones(6, "int64")}, (T, V), "bias"),
    (FUSED[:4], {"eps": "1"}, T, "eps", "real number", "'1'"),
    (FUSED[:4], {"eps": None}, T, "eps", "None"),
    (("batch_norm", "instance_norm", "group_norm"), {"x": values(6), "out": None}, V, "2 axes", "(6,)"),
    (("batch_norm", "instance_norm", "group_norm", "local_response_norm"), {"layout": "NC"}, V, "'NC'", "2 axes"),
    (("batch_norm", "instance_norm", "group_norm"), {"weight": values(6, dtype="float64")}, T, "weight of dtype float32", "float64"),
    (("layer_norm", "rms_norm"), {"weight": values(4, 5, dtype="float64")}, T, "weight of dtype float32", "float64"),
    (("layer_norm", "rms_norm"), {"weight": values(20)}, V, "weight of shape (4, 5)", "(20,)"),
    (("layer_norm", "rms_norm"), {"normalized_shape": (4, 6)}, V, "normalized_shape", "(2, 6, 4, 5)", "(4, 6)"),
    (("layer_norm", "rms_norm"), {"normalized_shape": (5, 4)}, V, "normalized_shape", "(5, 4)"),
    (("layer_norm", "rms_norm"), {"normalized_shape": 4}, V, "normalized_shape", "4"),
    (("layer_norm", "rms_norm"), {"normalized_shape": ()}, V, "normalized_shape", "()"),
    (("layer_norm", "rms_norm"), {"normalized_shape": (1, 2, 6, 4, 5)}, V, "normalized_shape", "(1, 2, 6, 4, 5)"),
    (("layer_norm", "rms_norm"), {"normalized_shape": 5.0}, T, "normalized_shape", "5.0"),
    (("layer_norm", "rms_norm"), {"normalized_shape": (5.0,)}, T, "normalized_shape", "5.0"),
    (("layer_norm", "rms_norm"), {"normalized_shape": None}, T, "normalized_shape", "None"),
    (("layer_norm", "rms_norm"), {"normalized_shape": True}, T, "normalized_shape", "True"),
    (("layer_norm", "rms_norm"), {"return_sum": True}, V, "return_sum", "residual", "None"),
    (("group_norm",), {"num_groups": 4}, V, "num_groups", "6 channels", "4"),
    (("group_norm",), {"num_groups": 12}, V, "num_groups", "6 channels", "12"),
    (("group_norm",), {"num_groups": 0}, V, "num_groups", "0"),
    (("group_norm",), {"num_groups": -3}, V, "num_groups", "-3"),
    (("group_norm",), {"num_groups": 3.0}, T, "num_groups", "3.0"),
    (("group_norm",), {"num_groups": True}, T, "num_groups", "True"),
    (("group_norm",), {"x": values(1, 6), "num_groups": 6, "out": None}, V, "more than 1 value", "(1, 6)"),
    (("instance_norm",), {"x": values(2, 6, 1, 1), "out": None}, V, "more than 1 spatial element", "(2, 6, 1, 1)"),
    (("instance_norm",), {"x": values(2, 6), "out": None}, V, "(2, 6)"),
    (("instance_norm",), {"use_input_stats": False}, V, "running_mean and running_var"),
    (("instance_norm",), {"use_input_stats": None}, T, "use_input_stats", "None"),
    (("instance_norm",), {"running_mean": values(6)}, V, "both or neither", "no running_var"),
    (("instance_norm",), {"running_mean": values(5), "running_var": values(5)}, V, "running_mean of shape (6,)", "(5,)"),
    (("instance_norm",), {"momentum": None}, T, "momentum", "None"),
    (("local_response_norm",), {"x": values(2, 6), "out": None}, V, "3 axes", "(2, 6)"),
    (("local_response_norm",), {"size": 0}, V, "size", "at least 1", "0"),
    (("local_response_norm",), {"size": 2.0}, T, "size", "2.0"),
    (("local_response_norm",), {"alpha": "1"}, T, "alpha", "'1'"),
    (("local_response_norm",), {"k": None}, T, "k", "None"),
    (("normalize",), {"dim": 4}, np.exceptions.AxisError, "dim", "from -4 to 3", "4"),
    (("normalize",), {"dim": (1, 1)}, V, "different axes", "(1, 1)"),
    (("normalize",), {"dim": 1.0}, T, "dim", "1.0"),
    (("normalize",), {"p": "2"}, T, "p", "'2'"),
    (("normalize",), {"eps": None}, T, "eps", "None"),
    (("normalize",), {"x": values(3, 0), "p": float("inf"), "out": None}, V, "(3, 0)"),
]
BACKWARD = [
    (ALL, {"grad": values(2, 6, 4, 4)}, V, "grad", "(2, 6, 4, 5)", "(2, 6, 4, 4)"),
    (ALL, {"grad": values(*SHAPE, dtype="float64")}, T, "grad", "float32", "float64"),
    (ALL, {"x": np.ones(SHAPE, "int32"), "grad": np.ones(SHAPE, "int32"), "out": None}, T, "of dtype", "int32"),
    (ALL, {"out": values(2, 6, 4)}, V, "out of shape", "(2, 6, 4)"),
    (FUSED, {"rstd": None}, V, "rstd", "None"),
    (FUSED, {"rstd": values(3, 3)}, V, "rstd of shape", "(3, 3)"),
    (FUSED, {"weight": values(7)}, V, "weight of shape", "(7,)"),
    (FUSED[:4], {"mean": None}, V, "mean", "None"),
    (FUSED[:4], {"mean": values(1)}, V, "mean of shape", "(1,)"),
    *(((name,), {"rstd": values(*shape, dtype="float64")}, T, "rstd of dtype float32", "float64") for name, shape in STATS.items()),
    *(((name,), {"mean": values(*STATS[name], dtype="float16")}, T, "mean of dtype float32", "float16") for name in FUSED[:4]),
    (("batch_norm",), {"training": None}, T, "training", "None"),
    (("instance_norm",), {"use_input_stats": "no"}, T, "use_input_stats", "'no'"),
    (("instance_norm",), {"use_input_stats": False}, V, "mean of shape (6,)", "(2, 6)"),
    (("group_norm",), {"num_groups": 4}, V, "num_groups", "6 channels", "4"),
    (("layer_norm", "rms_norm"), {"normalized_shape": (6,)}, V, "normalized_shape", "(6,)"),
    (("local_response_norm",), {"size": 0}, V, "size", "0"),
    (("normalize",), {"dim": 7}, np.exceptions.AxisError, "dim", "7"),
]


def flat(table, suffix=""):
    rows = [(name, *row[1:3], list(row[3:])) for row in table for name in row[0]]
    ids = [
        f"{name}{suffix}: " + ", ".join(f"{key} {getattr(value, 'shape', value)}" for key, value in change.items())
        for name, change, *_ in rows
    ]
    return pytest.mark.parametrize(("name", "change", "error", "fragments"), rows, ids=ids)


@flat(FORWARD)
def test_forward_refuses(name, change, error, fragments, backend):
    good = {**forward(name), "backend": backend}
    getattr(cn, name)(**good)  # what it leaves prepared must not let a bad one pass
    refused(name, {**good, **change}, error, fragments)


@flat(BACKWARD, "_backward")
def test_backward_refuses(name, change, error, fragments, backend):
    call = f"{name}_backward"
    good = {**backward(name), "backend": backend}
    getattr(cn, call)(**good)
    refused(call, {**good, **change}, error, fragments)


@pytest.mark.parametrize("name", ALL)
def test_out_overlaps_an_input(name, backend):
    space = np.ones(480 + 240, "float32")
    given = {**forward(name), "backend": backend, "x": space[240:480].reshape(SHAPE)}
    getattr(cn, name)(**{**given, "out": space[480:].reshape(SHAPE)})
    refused(name, {**given, "out": space[120:360].reshape(SHAPE)}, ValueError, ["overlaps x"])
    if name in FUSED:
        given["residual"], given["x"] = given["x"], values(*SHAPE)
        refused(name, {**given, "out": space[120:360].reshape(SHAPE)}, ValueError, ["overlaps residual"])
    if name in OF:
        refused(name, {**given, "weight": space[:20].reshape(4, 5), "out": space[:240].reshape(SHAPE)}, ValueError, ["overlaps weight"])


@pytest.mark.parametrize("name", ALL)
def test_out_of_a_gradient_overlaps_an_input(name, backend):
    space = np.ones(480 + 240, "float32")
    call = f"{name}_backward"
    for key in ("grad", "x"):
        given = {**backward(name), "backend": backend, key: space[240:480].reshape(SHAPE)}
        refused(call, {**given, "out": space[120:360].reshape(SHAPE)}, ValueError, [f"overlaps {key}"])


def test_local_response_norm_of_16_bits_works(any_dtype, backend):
    """PyTorch refuses it on the CPU in older versions."""

    assert cn.local_response_norm(np.ones((1, 2, 3), samples.dtype_of(any_dtype)), 2, backend=backend).dtype == samples.dtype_of(any_dtype)
