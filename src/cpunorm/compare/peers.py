"""The other libraries, for rows of the operation table: those that are installed, and have the operation in this layout and dtype.

`cpunorm compare` and the benchmarks take them from here; those of preprocessing are in `cpunorm.compare.preprocessing`. Each computes the
same thing (it is checked), as its users would write it for speed: PyTorch with and without memory for its result, ONNX Runtime with bound
inputs and outputs and constant parameters, scikit-learn and OpenCV where arrays of theirs are what ours is.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from typing import Any, NamedTuple

import numpy as np

from cpunorm import samples
from cpunorm.compare import contestants
from cpunorm.compare.contestants import PEER_TOLERANCE, Contestant, Run, fresh
from cpunorm.compare.preprocessing import OPENCV
from cpunorm.ops import Inputs, Operation

Array = np.ndarray[Any, Any]

TORCH_OUT, ONNX, SKLEARN = "PyTorch out=", "ONNX Runtime", "scikit-learn"
SERIAL = (contestants.NUMPY, "numpy", SKLEARN)  # one thread, whatever is asked for


class Library(NamedTuple):
    """A library that can be a peer: its module and its package."""

    module: str
    package: str


LIBRARIES = {  # by their names for --peers
    "numpy": Library("numpy", "numpy"),
    "torch": Library("torch", "torch"),
    "torch_out": Library("torch", "torch"),  # into memory that it has, where it can
    "onnxruntime": Library("onnxruntime", "onnxruntime"),
    "opencv": Library("cv2", "opencv-python-headless"),
    "albucore": Library("albucore", "albucore"),
    "sklearn": Library("sklearn", "scikit-learn"),
}


def installed() -> tuple[str, ...]:
    """The names of those that are here."""
    return tuple(name for name, library in LIBRARIES.items() if find_spec(library.module) is not None)


def use_threads(threads: int, libraries: tuple[str, ...]) -> None:
    """For all later calls of these libraries; ONNX Runtime has a number a session."""
    if "torch" in libraries or "torch_out" in libraries:
        contestants.set_torch_threads(threads)
    if "opencv" in libraries or "albucore" in libraries:
        import cv2

        cv2.setNumThreads(threads)


def found(row: Operation, inputs: Inputs, threads: int, libraries: tuple[str, ...], *, serial: bool = True) -> list[Contestant]:
    """Those of `libraries` that have the operation; without the ones that have one thread, where they are not asked for."""
    made: list[Contestant | None] = []
    if serial and "numpy" in libraries:
        made.append(contestants.numpy(row, inputs))
    if "torch" in libraries:
        made.append(contestants.torch(row, inputs))
    if "torch_out" in libraries:
        made.append(torch_out(row, inputs))
    if "onnxruntime" in libraries:
        made.append(onnx(row, inputs, threads))
    if "opencv" in libraries:
        made.append(opencv(row, inputs))
    if serial and "sklearn" in libraries:
        made.append(sklearn(row, inputs))
    return [contestant for contestant in made if contestant is not None]


def _tolerance(inputs: Inputs) -> dict[str, float]:
    return PEER_TOLERANCE[inputs["x"].dtype.name]


# ---------------------------------------------------------------- PyTorch, into memory that it has


def torch_out(row: Operation, inputs: Inputs) -> Contestant | None:
    """Where PyTorch has a kernel that takes `out`: batch norm and Lp norm. What it offers for the others computes, then copies."""
    if find_spec("torch") is None or row.function.__name__ not in ("batch_norm", "normalize") or inputs["x"].dtype == np.float16:
        return None
    import torch

    original, inputs = inputs, fresh(inputs, row)
    given = {name: samples.tensor_of(value) for name, value in inputs.items()}
    x, layout = given["x"], inputs.get("layout")
    if layout is not None:
        x = x.permute([int(axis) for axis in np.argsort(samples.layout_axes(layout, x.ndim))])
    out = torch.zeros_like(x)

    run: Run  # nothing requires a gradient: no_grad would cost PyTorch 2 us
    if layout is None:
        run = partial(torch.nn.functional.normalize, x, dim=given["dim"], out=out)
    else:
        training = bool(inputs["training"])
        saved = [torch.zeros(x.shape[1] if training else 0, dtype=given["weight"].dtype) for _ in range(2)]
        parameters = [given[name] for name in ("weight", "bias", "running_mean", "running_var")]
        run = partial(torch.native_batch_norm, x, *parameters, training, 0.1, 1e-5, out=(out, *saved))

    def results(_: Any) -> tuple[Array, ...]:
        y = contestants.array_of(out)
        if layout is not None:
            y = y.transpose(samples.layout_axes(layout, y.ndim))
        return (y, *(inputs[name] for name in row.updates))

    try:
        run()
    except (NotImplementedError, RuntimeError):
        return None
    for name in row.updates:
        inputs[name][...] = original[name]
    return Contestant(TORCH_OUT, run, results, _tolerance(inputs))


# ---------------------------------------------------------------- ONNX Runtime


def _nodes(name: str, inputs: Inputs) -> tuple[str, dict[str, Any], tuple[str, ...]] | None:
    """Operator, attributes, and the inputs that are its constants; None where ONNX has none that ONNX Runtime runs on a CPU."""
    match name:
        case "batch_norm":
            return "BatchNormalization", {"epsilon": 1e-5}, ("weight", "bias", "running_mean", "running_var")
        case "instance_norm":
            return "InstanceNormalization", {"epsilon": 1e-5}, ("weight", "bias")
        case "group_norm":
            return "GroupNormalization", {"epsilon": 1e-5, "num_groups": inputs["num_groups"]}, ("weight", "bias")
        case "layer_norm":
            return "LayerNormalization", {"epsilon": 1e-5, "axis": -1}, ("weight", "bias")
        case "rms_norm":
            return "RMSNormalization", {"epsilon": inputs["eps"], "axis": -1}, ("weight",)
        case "local_response_norm":
            parameters = {"size": inputs["size"], "alpha": inputs["alpha"], "beta": inputs["beta"], "bias": inputs["k"]}
            return "LRN", parameters, ()
        case "normalize":
            return "LpNormalization", {"axis": -1, "p": 2}, ()
    return None


def onnx(row: Operation, inputs: Inputs, threads: int) -> Contestant | None:
    """A model of one operator, channels first, in inference; x and the result are bound to arrays."""
    node = _nodes(row.function.__name__, inputs)
    layout = inputs.get("layout")
    if node is None or find_spec("onnxruntime") is None or find_spec("onnx") is None:
        return None
    if row.function.__name__ == "group_norm" and inputs["x"].dtype != np.float32:  # computed in float32 whatever it is
        return None
    if inputs.get("training") or (layout is not None and not layout.startswith(("NC", "channels_first"))):
        return None
    import onnxruntime
    from onnx import helper, numpy_helper

    operator, attributes, names = node
    x, out = inputs["x"], np.zeros_like(inputs["x"])
    constants = [numpy_helper.from_array(inputs[name].astype(x.dtype), name) for name in names]
    kind = helper.np_dtype_to_tensor_dtype(x.dtype)
    value = [helper.make_tensor_value_info(name, kind, x.shape) for name in ("x", "y")]
    graph = helper.make_graph([helper.make_node(operator, ["x", *names], ["y"], **attributes)], operator, value[:1], value[1:], constants)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = threads, 4
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # its threads would slow whoever is timed next
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 23)], ir_version=10)
    try:
        session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        binding = session.io_binding()
        binding.bind_ortvalue_input("x", onnxruntime.OrtValue.ortvalue_from_numpy(x))
        binding.bind_ortvalue_output("y", onnxruntime.OrtValue.ortvalue_from_numpy(out))
        session.run_with_iobinding(binding)
    except Exception:  # it has not every operator in every dtype, and its errors have no class in common
        return None
    return Contestant(ONNX, lambda: session.run_with_iobinding(binding), lambda _: (out,), _tolerance(inputs))


# ---------------------------------------------------------------- libraries of pictures and of tables


def _table(inputs: Inputs) -> Array | None:
    """x as (samples, channels); None where channels are not last."""
    x, axes = inputs["x"], inputs.get("axis")
    last = inputs["layout"].endswith("C") if "layout" in inputs else axes == tuple(range(x.ndim - 1))
    return x.reshape(-1, x.shape[-1]) if last and x.dtype in (np.float32, np.float64) else None


def sklearn(row: Operation, inputs: Inputs) -> Contestant | None:
    """StandardScaler for channels-last batch norm (the affine in its mean and scale) and statistics; `normalize` for rows."""
    if find_spec("sklearn") is None:
        return None
    from sklearn import preprocessing

    x, name = inputs["x"], row.function.__name__
    run: Callable[[], Any]
    results: Callable[[Any], tuple[Array, ...]]
    if name == "normalize" and x.dtype in (np.float32, np.float64):
        rows = x.reshape(-1, x.shape[-1])
        run, results = lambda: preprocessing.normalize(rows), lambda y: (y.reshape(x.shape),)
    elif (table := _table(inputs)) is None:
        return None
    elif name == "batch_norm" and not inputs["training"]:
        scaler = preprocessing.StandardScaler()
        scaler.scale_ = np.sqrt(inputs["running_var"] + 1e-5) / inputs["weight"]
        scaler.mean_ = inputs["running_mean"] - inputs["bias"] * scaler.scale_
        scaler.var_, scaler.n_features_in_, scaler.n_samples_seen_ = scaler.scale_**2, table.shape[1], len(table)
        run, results = lambda: scaler.transform(table), lambda y: (y.reshape(x.shape),)
    elif name == "mean_var":
        run, results = lambda: preprocessing.StandardScaler().fit(table), lambda fitted: (fitted.mean_, fitted.var_)
    else:
        return None
    return Contestant(SKLEARN, run, results, _tolerance(inputs))


def opencv(row: Operation, inputs: Inputs) -> Contestant | None:
    """meanStdDev of pictures of up to four channels."""
    x = inputs["x"]
    if row.function.__name__ != "mean_var" or find_spec("cv2") is None:
        return None
    if x.ndim != 4 or x.shape[3] > 4 or inputs["axis"] != (0, 1, 2) or x.dtype not in (np.float32, np.float64):
        return None
    import cv2

    picture = x.reshape(-1, *x.shape[2:])

    def results(found: Any) -> tuple[Array, ...]:
        mean, std = found
        return mean.reshape(-1), std.reshape(-1) ** 2

    return Contestant(OPENCV, lambda: cv2.meanStdDev(picture), results, _tolerance(inputs))
