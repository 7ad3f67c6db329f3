"""Other libraries' batch norm, written down from their formulas, against ours with the converted arguments."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import cpunorm as cn
from cpunorm import conventions, nn


class Keras:
    """``keras.layers.BatchNormalization`` by its documentation: channels last, biased moving variance, momentum of the old value.

    MXNet and ONNX have the same formulas with other defaults and the channels on axis 1.
    """

    def __init__(self, state: dict[str, np.ndarray], momentum: float = 0.99, epsilon: float = 1e-3, axis: int = -1) -> None:
        self.state = {name: value.astype(np.float64) for name, value in state.items()}
        self.momentum, self.epsilon, self.axis = momentum, epsilon, axis

    def __call__(self, x: np.ndarray, training: bool = False) -> np.ndarray:
        x = np.moveaxis(x.astype(np.float64), self.axis, -1)
        mean, variance = self.state["mean"], self.state["variance"]
        if training:
            over = tuple(range(x.ndim - 1))
            mean, variance = x.mean(axis=over), x.var(axis=over)
            self.state["mean"] = self.state["mean"] * self.momentum + mean * (1 - self.momentum)
            self.state["variance"] = self.state["variance"] * self.momentum + variance * (1 - self.momentum)
        y = self.state["gamma"] * (x - mean) / np.sqrt(variance + self.epsilon) + self.state["beta"]
        return np.moveaxis(y, -1, self.axis)


LIBRARIES = {"keras": (0.99, 1e-3, -1), "mxnet": (0.9, 1e-5, 1), "onnx": (0.9, 1e-5, 1)}


def state(rng: np.random.Generator, dtype: str) -> dict[str, np.ndarray]:
    return {
        name: value.astype(dtype)
        for name, value in (
            ("gamma", rng.normal(1, 0.3, 5)),
            ("beta", rng.normal(size=5)),
            ("mean", rng.normal(size=5)),
            ("variance", rng.uniform(0.5, 2, 5)),
        )
    }


@pytest.mark.parametrize("library", LIBRARIES)
@pytest.mark.parametrize(("dtype", "close"), [("float32", 1e-5), ("float64", 1e-12)])
@pytest.mark.parametrize("rank", [2, 4])
@pytest.mark.parametrize("options", [{}, {"momentum": 0.6, "eps": 0.1}])
def test_inference_and_training(library: str, dtype: str, close: float, rank: int, options: dict[str, Any]):
    rng = np.random.default_rng(0)
    momentum, epsilon, axis = LIBRARIES[library]
    given = state(rng, dtype)
    theirs = Keras(given, options.get("momentum", momentum), options.get("eps", epsilon), axis)
    arguments = conventions.batch_norm_arguments(library, **given, **options)
    assert arguments["running_var"] is given["variance"]
    shape = {2: (8, 5), 4: (4, 5, 3, 2)}[rank]
    for _ in range(5):
        x = np.moveaxis(rng.normal(2, 3, shape), 1, axis).astype(dtype)
        np.testing.assert_allclose(cn.batch_norm(x, **arguments), theirs(x), rtol=close, atol=close)
        before = arguments["running_var"].copy()
        y = cn.batch_norm(x, **arguments, training=True)
        np.testing.assert_allclose(y, theirs(x, training=True), rtol=close, atol=close)
        count = x.size // 5
        arguments["running_var"][...] = conventions.biased_running_var(before, arguments["running_var"], arguments["momentum"], count)
        np.testing.assert_allclose(arguments["running_mean"], theirs.state["mean"], rtol=close, atol=close)
        np.testing.assert_allclose(arguments["running_var"], theirs.state["variance"], rtol=close, atol=close)


def test_without_the_correction_the_variance_differs():
    rng = np.random.default_rng(0)
    given = state(rng, "float64")
    theirs = Keras(given)
    arguments = conventions.batch_norm_arguments("keras", **given)
    x = rng.normal(0, 10, (4, 5))
    cn.batch_norm(x, **arguments, training=True)
    theirs(x, training=True)
    excess = arguments["running_var"] - theirs.state["variance"]
    np.testing.assert_allclose(excess, 0.01 * x.var(axis=0) / 3, rtol=1e-9)


def test_a_layer_from_keras():
    rng = np.random.default_rng(0)
    given = state(rng, "float32")
    arguments = conventions.batch_norm_arguments("keras", **given)
    settings = {name: arguments.pop(name) for name in ("momentum", "eps", "layout")}
    layer = nn.BatchNorm2d(5, **settings).eval()
    layer.load_state_dict(arguments)
    x = rng.normal(size=(2, 4, 4, 5)).astype(np.float32)
    np.testing.assert_allclose(layer(x), Keras(given)(x), rtol=1e-5, atol=1e-5)


def test_torch_is_ours():
    ones = np.ones(3)
    arguments = conventions.batch_norm_arguments("torch", None, None, ones, ones)
    assert arguments["weight"] is arguments["bias"] is None
    assert (arguments["momentum"], arguments["eps"], arguments["layout"]) == (0.1, 1e-5, "channels_first")
    layer = nn.BatchNorm1d(3)
    assert (layer.momentum, layer.eps, layer.layout) == (0.1, 1e-5, "channels_first")


def test_convert_momentum():
    assert conventions.convert_momentum("torch", 0.1) == 0.1
    for library in LIBRARIES:
        assert conventions.convert_momentum(library, 0.75) == 0.25
        assert conventions.convert_momentum(library, conventions.convert_momentum(library, 0.75)) == 0.75


def test_table_of_the_docs_is_the_code():
    for name, (momentum, eps, axis) in LIBRARIES.items():
        row = conventions.CONVENTIONS[name]
        assert (row.momentum, row.eps, row.unbiased, row.momentum_of_new) == (momentum, eps, False, False)
        assert row.layout == ("channels_last" if axis == -1 else "channels_first")


@pytest.mark.parametrize(
    ("call", "error"),
    [
        (lambda: conventions.convert_momentum("caffe", 0.9), ValueError),
        (lambda: conventions.convert_momentum("keras", "large"), TypeError),
        (lambda: conventions.batch_norm_arguments("keras", [1.0], None, np.ones(1), np.ones(1)), TypeError),
        (lambda: conventions.biased_running_var(np.ones(3), np.ones(4), 0.1, 5), ValueError),
        (lambda: conventions.biased_running_var(np.ones(3), np.ones(3, np.float32), 0.1, 5), TypeError),
        (lambda: conventions.biased_running_var(np.ones(3), np.ones(3), 0.1, 0), ValueError),
        (lambda: conventions.biased_running_var(np.ones(3), np.ones(3), 0.1, 2.5), TypeError),
    ],
)
def test_refused(call: Any, error: type[Exception]):
    with pytest.raises(error, match="expected"):
        call()
