"""Layers against PyTorch's in float64: ten training steps, inference, gradients and state, for every constructor argument."""

from __future__ import annotations

import copy
import io
import pickle
from typing import Any

import numpy as np
import pytest

from cpunorm import nn
from cpunorm.nn.base import _through

try:
    import torch
except ImportError:
    torch = None  # type: ignore[assignment]

peer = [pytest.mark.peer, pytest.mark.skipif(torch is None, reason="PyTorch is not installed")]
# float32: ten steps of a few hundred values each, sums of gradients among them
TOLERANCE = {"float32": {"rtol": 2e-5, "atol": 2e-5}, "float64": {"rtol": 1e-11, "atol": 1e-11}}

CASES: list[tuple[str, dict[str, Any], tuple[int, ...]]] = [
    ("BatchNorm1d", {"num_features": 5}, (8, 5)),
    ("BatchNorm1d", {"num_features": 5, "momentum": 0.3, "eps": 0.1}, (4, 5, 7)),
    ("BatchNorm2d", {"num_features": 5}, (4, 5, 6, 7)),
    ("BatchNorm2d", {"num_features": 5, "momentum": None}, (4, 5, 6, 7)),
    ("BatchNorm2d", {"num_features": 5, "affine": False}, (4, 5, 6, 7)),
    ("BatchNorm2d", {"num_features": 5, "bias": False}, (4, 5, 6, 7)),
    ("BatchNorm2d", {"num_features": 5, "track_running_stats": False}, (4, 5, 6, 7)),
    ("BatchNorm2d", {"num_features": 5, "track_running_stats": False, "affine": False, "momentum": None}, (4, 5, 6, 7)),
    ("BatchNorm3d", {"num_features": 3}, (2, 3, 4, 5, 6)),
    ("InstanceNorm1d", {"num_features": 5}, (4, 5, 7)),
    ("InstanceNorm1d", {"num_features": 5, "affine": True}, (5, 7)),
    ("InstanceNorm2d", {"num_features": 5, "affine": True, "eps": 0.1}, (4, 5, 6, 7)),
    ("InstanceNorm2d", {"num_features": 5, "affine": True, "bias": False, "track_running_stats": True}, (4, 5, 6, 7)),
    ("InstanceNorm2d", {"num_features": 5, "track_running_stats": True, "momentum": 0.4}, (5, 6, 7)),
    ("InstanceNorm2d", {"num_features": 5, "track_running_stats": True, "momentum": None}, (4, 5, 6, 7)),
    ("InstanceNorm3d", {"num_features": 3, "affine": True, "track_running_stats": True}, (2, 3, 4, 5, 6)),
    ("InstanceNorm3d", {"num_features": 3}, (3, 4, 5, 6)),
    ("GroupNorm", {"num_groups": 3, "num_channels": 6}, (4, 6, 5, 7)),
    ("GroupNorm", {"num_groups": 1, "num_channels": 6, "eps": 0.1, "bias": False}, (4, 6, 5)),
    ("GroupNorm", {"num_groups": 2, "num_channels": 6, "affine": False}, (4, 6)),
    ("LayerNorm", {"normalized_shape": 7}, (4, 5, 7)),
    ("LayerNorm", {"normalized_shape": [5, 7], "eps": 0.1}, (4, 5, 7)),
    ("LayerNorm", {"normalized_shape": (7,), "elementwise_affine": False}, (4, 7)),
    ("LayerNorm", {"normalized_shape": 7, "bias": False}, (7,)),
    ("RMSNorm", {"normalized_shape": 7}, (4, 5, 7)),
    ("RMSNorm", {"normalized_shape": (5, 7), "eps": 0.1}, (4, 5, 7)),
    ("RMSNorm", {"normalized_shape": [7], "elementwise_affine": False}, (4, 7)),
    ("LocalResponseNorm", {"size": 3}, (4, 6, 5, 7)),
    ("LocalResponseNorm", {"size": 2, "alpha": 0.5, "beta": 0.6, "k": 2.0}, (4, 6, 5)),
]
IDS = [f"{name}-{'-'.join(map(str, shape))}-{i}" for i, (name, _, shape) in enumerate(CASES)]


def random_state(layer: Any, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Parameters that are not 1 and 0."""
    return {name: value if value.ndim == 0 else rng.uniform(0.5, 1.5, value.shape).astype(value.dtype) for name, value in layer.items()}


def pair(name: str, arguments: dict[str, Any], dtype: str, rng: np.random.Generator, **options: Any) -> tuple[Any, Any]:
    """Our layer, and PyTorch's in float64, of one state."""
    if name != "LocalResponseNorm":
        options["dtype"] = dtype
    ours = getattr(nn, name)(**arguments, **options)
    theirs = getattr(torch.nn, name)(**arguments).double()
    state = random_state(ours.state_dict(), rng)
    ours.load_state_dict(state)
    theirs.load_state_dict({key: torch.from_numpy(value) for key, value in state.items()})
    return ours, theirs


def step(ours: Any, theirs: Any, x: np.ndarray, grad: np.ndarray, function: Any = None) -> None:
    """One forward and backward of both, compared."""
    close = TOLERANCE[x.dtype.name]
    t = torch.from_numpy(x).double().requires_grad_()
    expected = theirs(t) if function is None else function(theirs(t))
    expected.backward(torch.from_numpy(grad).double())
    y = ours(x)
    assert y.dtype == x.dtype
    np.testing.assert_allclose(y, expected.detach().numpy(), **close)
    grad_x = ours.backward(grad)
    assert grad_x.dtype == x.dtype
    np.testing.assert_allclose(grad_x, t.grad.numpy(), **close)
    for key, parameter in theirs.named_parameters():
        np.testing.assert_allclose(ours.grads[key], parameter.grad.numpy(), **close, err_msg=key)


def same_state(ours: Any, theirs: Any, dtype: str) -> None:
    expected = theirs.state_dict()
    found = ours.state_dict()
    assert list(found) == list(expected)
    for key, value in found.items():
        assert value.dtype == (np.int64 if key == "num_batches_tracked" else np.dtype(dtype))
        np.testing.assert_allclose(value, expected[key].numpy(), **TOLERANCE[dtype], err_msg=key)


class TestTorch:
    pytestmark = peer

    @pytest.mark.parametrize("dtype", ["float32", "float64"])
    @pytest.mark.parametrize(("name", "arguments", "shape"), CASES, ids=IDS)
    def test_ten_training_steps_and_inference(self, name: str, arguments: dict[str, Any], shape: tuple[int, ...], dtype: str, backend: str):
        rng = np.random.default_rng(1)
        ours, theirs = pair(name, arguments, dtype, rng, backend=backend)
        assert ours.training
        assert ours.train() is ours
        for number in range(10):
            step(ours, theirs, rng.normal(1, 2, shape).astype(dtype), rng.normal(size=shape).astype(dtype))
            if number % 3 == 2:  # gradients of three steps have added up
                for key, parameter in theirs.named_parameters():
                    getattr(ours, key)[...] -= (0.01 * ours.grads[key]).astype(dtype)
                    with torch.no_grad():
                        parameter -= 0.01 * parameter.grad
                ours.zero_grad()
                theirs.zero_grad()
            same_state(ours, theirs, dtype)
        assert ours.eval() is ours
        assert not ours.training
        theirs.eval()
        for _ in range(2):
            step(ours, theirs, rng.normal(1, 2, shape).astype(dtype), rng.normal(size=shape).astype(dtype))
            same_state(ours, theirs, dtype)

    @pytest.mark.parametrize("training", [True, False])
    @pytest.mark.parametrize("activation", ["relu", "relu6", "silu", "hardswish"])
    @pytest.mark.parametrize(
        ("name", "arguments", "shape"),
        [CASES[i] for i in (2, 4, 10, 12, 17, 20, 24)],
        ids=[IDS[i] for i in (2, 4, 10, 12, 17, 20, 24)],
    )
    def test_activation(self, name: str, arguments: dict[str, Any], shape: tuple[int, ...], activation: str, training: bool):
        rng = np.random.default_rng(2)
        for dtype in ("float32", "float64"):
            ours, theirs = pair(name, arguments, dtype, rng, activation=activation)
            for layer in (ours, theirs):
                layer.train(training)
            x = rng.normal(0, 3, shape).astype(dtype)
            step(ours, theirs, x, rng.normal(size=shape).astype(dtype), getattr(torch.nn.functional, activation))
            same_state(ours, theirs, dtype)

    @pytest.mark.parametrize("activation", ["relu", "relu6", "silu", "hardswish"])
    def test_derivative_at_the_corners(self, activation: str):
        z = np.array([-np.nan, -200, -3, -3 + 1e-6, -0.5, -0.0, 0, 0.5, 3, 3 + 1e-6, 6, 7, 1e30])
        t = torch.from_numpy(z).requires_grad_()
        getattr(torch.nn.functional, activation)(t).backward(torch.full_like(t, 2))
        np.testing.assert_allclose(_through(activation, np.full_like(z, 2), z), t.grad.numpy(), rtol=1e-12, atol=1e-12)

    @pytest.mark.parametrize("layout", ["channels_last", "NHWC", "CHWN"])
    @pytest.mark.parametrize(
        ("name", "arguments", "shape"),
        [CASES[i] for i in (2, 13, 15, 11, 17, 27)],
        ids=[IDS[i] for i in (2, 13, 15, 11, 17, 27)],
    )
    def test_layout(self, name: str, arguments: dict[str, Any], shape: tuple[int, ...], layout: str):
        rng = np.random.default_rng(3)
        spatial = len(shape) - 1 - (len(shape) != 3)
        letters = "NCDHW"[:2] + "DHW"[3 - spatial :]
        wanted = {"channels_last": letters[0] + letters[2:] + "C", "NHWC": "N" + letters[2:] + "C", "CHWN": "C" + letters[2:] + "N"}[layout]
        if len(shape) == 3:  # one sample
            letters, order_to = letters[1:], wanted.replace("N", "")
        else:
            order_to = wanted
        order = [letters.index(letter) for letter in order_to]
        ours, theirs = pair(name, arguments, "float64", rng, layout=layout if layout == "channels_last" else wanted)
        x, grad = rng.normal(size=shape), rng.normal(size=shape)
        back = np.argsort(order)
        for _ in range(2):
            t = torch.from_numpy(x).requires_grad_()
            expected = theirs(t)
            expected.backward(torch.from_numpy(grad))
            y = ours(np.ascontiguousarray(x.transpose(order))).transpose(back)
            grad_x = ours.backward(np.ascontiguousarray(grad.transpose(order))).transpose(back)
            np.testing.assert_allclose(y, expected.detach().numpy(), rtol=1e-11, atol=1e-11)
            np.testing.assert_allclose(grad_x, t.grad.numpy(), rtol=1e-11, atol=1e-11)
            same_state(ours, theirs, "float64")

    @pytest.mark.parametrize(("name", "arguments", "shape"), CASES, ids=IDS)
    def test_saved_state_loads_and_goes_back(self, name: str, arguments: dict[str, Any], shape: tuple[int, ...]):
        theirs = getattr(torch.nn, name)(**arguments)
        theirs(torch.randn(shape))
        file = io.BytesIO()
        torch.save(theirs.state_dict(), file)
        file.seek(0)
        saved = torch.load(file)
        ours = getattr(nn, name)(**arguments)
        assert ours.load_state_dict(saved) == ([], [])
        assert list(ours.state_dict()) == list(saved)
        again = getattr(torch.nn, name)(**arguments)
        assert str(again.load_state_dict({key: torch.from_numpy(value) for key, value in ours.state_dict().items()})).startswith(
            "<All keys"
        )
        for key, value in again.state_dict().items():
            assert torch.equal(value, saved[key])
            assert value.dtype == saved[key].dtype

    @pytest.mark.parametrize(("name", "arguments", "shape"), CASES[:9], ids=IDS[:9])
    def test_empty_batch(self, name: str, arguments: dict[str, Any], shape: tuple[int, ...]):
        rng = np.random.default_rng(4)
        ours, theirs = pair(name, arguments, "float32", rng)
        x = np.zeros((0, *shape[1:]), np.float32)
        assert ours(x).shape == x.shape
        assert ours.backward(x).shape == x.shape
        theirs(torch.from_numpy(x).double())
        if ours.num_batches_tracked is not None:
            assert ours.num_batches_tracked == theirs.num_batches_tracked == 1
        assert not any(grad.any() for grad in ours.grads.values())

    # what PyTorch's constructor, or its layer in training, refuses
    @pytest.mark.parametrize(
        ("name", "arguments", "shape"),
        [
            ("BatchNorm1d", {"num_features": 5}, (5,)),
            ("BatchNorm1d", {"num_features": 5}, (4, 5, 6, 7)),
            ("BatchNorm1d", {"num_features": 5}, (1, 5)),
            ("BatchNorm1d", {"num_features": 5}, (4, 6)),
            ("BatchNorm1d", {"num_features": -1}, (4, 6)),
            ("BatchNorm1d", {"num_features": 2.5}, (4, 6)),
            ("BatchNorm1d", {"num_features": 5, "nonsense": 1}, (4, 5)),
            ("BatchNorm2d", {"num_features": 5}, (5, 6, 7)),
            ("BatchNorm2d", {"num_features": 5}, (1, 5, 1, 1)),
            ("BatchNorm2d", {"num_features": 5, "affine": False}, (4, 6, 7, 8)),
            ("BatchNorm2d", {"num_features": 5, "track_running_stats": False}, (4, 6, 7, 8)),
            ("BatchNorm3d", {"num_features": 5}, (4, 5, 6, 7)),
            ("InstanceNorm1d", {"num_features": 5}, (5,)),
            ("InstanceNorm1d", {"num_features": 5}, (4, 5, 6, 7)),
            ("InstanceNorm1d", {"num_features": 5}, (4, 5, 1)),
            ("InstanceNorm1d", {"num_features": 5, "affine": True}, (4, 6, 7)),
            ("InstanceNorm2d", {"num_features": 5}, (5, 6)),
            ("InstanceNorm2d", {"num_features": 5, "affine": True}, (6, 7, 8)),
            ("InstanceNorm3d", {"num_features": 5}, (5, 6, 7)),
            ("GroupNorm", {"num_groups": 4, "num_channels": 6}, (4, 6)),
            ("GroupNorm", {"num_groups": 0, "num_channels": 6}, (4, 6)),
            ("GroupNorm", {"num_groups": 3, "num_channels": 6}, (6,)),
            ("GroupNorm", {"num_groups": 3, "num_channels": 6}, (4, 9)),
            ("GroupNorm", {"num_groups": 3, "num_channels": 3}, (1, 3)),
            ("LayerNorm", {"normalized_shape": 7}, (4, 5)),
            ("LayerNorm", {"normalized_shape": (5, 7)}, (7,)),
            ("LayerNorm", {"normalized_shape": 7.0}, (4, 7)),
            ("LayerNorm", {"normalized_shape": ()}, (4, 7)),
            ("RMSNorm", {"normalized_shape": 7}, (4, 5)),
            ("RMSNorm", {"normalized_shape": 7, "bias": True}, (4, 7)),
            ("LocalResponseNorm", {"size": 3}, (4, 5)),
            ("LocalResponseNorm", {"size": 0}, (4, 5, 6)),
        ],
    )
    def test_refused(self, name: str, arguments: dict[str, Any], shape: tuple[int, ...]):
        with pytest.raises((ValueError, TypeError, RuntimeError, ZeroDivisionError, IndexError)):
            getattr(torch.nn, name)(**arguments)(torch.zeros(shape))
        layer = None
        with pytest.raises((ValueError, TypeError)):  # noqa: PT012
            layer = getattr(nn, name)(**arguments)
            layer(np.zeros(shape, np.float32))
        if layer is not None and layer.num_batches_tracked is not None:
            assert layer.num_batches_tracked == 0
            assert not layer.running_mean.any()

    def test_other_number_of_channels_only_warns_instance_norm_without_affine(self):
        x = np.random.default_rng(0).normal(size=(2, 4, 5)).astype(np.float32)
        with pytest.warns(UserWarning, match="num_features"):
            expected = torch.nn.InstanceNorm1d(3)(torch.from_numpy(x))
        with pytest.warns(UserWarning, match="num_features"):
            y = nn.InstanceNorm1d(3)(x)
        np.testing.assert_allclose(y, expected.numpy(), rtol=1e-5, atol=1e-5)

    def test_sixteen_bit_layers(self):
        ml_dtypes = pytest.importorskip("ml_dtypes")
        rng = np.random.default_rng(5)
        for dtype, close in ((np.float16, 4e-3), (ml_dtypes.bfloat16, 4e-2)):
            layer = nn.BatchNorm2d(3, dtype=dtype, activation="silu")
            theirs = torch.nn.BatchNorm2d(3).double()
            x, grad = (rng.normal(size=(4, 3, 5, 5)).astype(dtype) for _ in range(2))
            t = torch.from_numpy(x.astype(np.float64)).requires_grad_()
            expected = torch.nn.functional.silu(theirs(t))
            expected.backward(torch.from_numpy(grad.astype(np.float64)))
            y = layer(x)
            assert y.dtype == dtype
            np.testing.assert_allclose(y.astype(np.float64), expected.detach().numpy(), atol=close)
            np.testing.assert_allclose(layer.backward(grad).astype(np.float64), t.grad.numpy(), atol=close)
            assert layer.grads["weight"].dtype == dtype
            layer.load_state_dict(theirs.state_dict())


def test_without_affine_there_are_no_parameters_and_no_gradients():
    layer = nn.BatchNorm1d(3, affine=False, track_running_stats=False)
    assert layer.state_dict() == {} == layer.grads
    assert layer.weight is layer.bias is layer.running_mean is None


def test_state_is_the_layers_own_and_is_loaded_by_copy():
    layer = nn.LayerNorm(3)
    state = layer.state_dict()
    state["weight"][...] = 5
    assert layer.weight is not None
    assert (layer.weight == 5).all()
    given = {"weight": np.full(3, 2.0), "bias": np.arange(3)}  # other dtypes are rounded
    layer.load_state_dict(given)
    given["weight"][...] = 7
    assert (layer.weight == 2).all()
    assert layer.weight.dtype == np.float32


def test_load_refuses_and_writes_nothing():
    layer = nn.BatchNorm2d(3)
    good = {key: value + 1 for key, value in layer.state_dict().items()}
    for bad, error in (
        ({**good, "running_mean": np.zeros(4)}, ValueError),
        ({**good, "bias": np.zeros(3, complex)}, TypeError),
        ({**good, "bias": [0.0, 0, 0]}, TypeError),
        ({**good, "other": np.zeros(3)}, ValueError),
        ({key: value for key, value in good.items() if key != "weight"}, ValueError),
    ):
        with pytest.raises(error, match=r"BatchNorm2d\.load_state_dict"):
            layer.load_state_dict(bad)
        assert (layer.weight == 1).all()
        assert layer.num_batches_tracked == 0
    assert layer.load_state_dict({"weight": good["weight"], "other": 1}, strict=False) == (
        ["bias", "running_mean", "running_var"],
        ["other"],
    )
    assert (layer.weight == 2).all()
    assert layer.load_state_dict({key: value for key, value in good.items() if key != "num_batches_tracked"}) == ([], [])


def test_backward_needs_a_call_before_and_a_like_gradient():
    layer = nn.InstanceNorm1d(3, affine=True)
    x = np.random.default_rng(0).normal(size=(3, 5)).astype(np.float32)
    with pytest.raises(ValueError, match=r"InstanceNorm1d\.backward: expected a call"):
        layer.backward(x)
    layer(x)
    with pytest.raises(ValueError, match=r"x's shape \(3, 5\)"):
        layer.backward(x[None])
    with pytest.raises(TypeError, match="dtype"):
        layer.backward(x.astype(np.float64))
    assert not layer.grads["weight"].any()
    layer.backward(x)
    once = layer.grads["weight"].copy()
    assert once.any()
    layer.backward(x)
    np.testing.assert_array_equal(layer.grads["weight"], 2 * once)
    layer.zero_grad()
    assert not layer.grads["weight"].any()


@pytest.mark.parametrize(("name", "arguments", "shape"), CASES, ids=IDS)
def test_pickle_and_copy(name: str, arguments: dict[str, Any], shape: tuple[int, ...]):
    layer = getattr(nn, name)(**arguments)
    x = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    layer(x)
    layer.backward(x)
    for other in (pickle.loads(pickle.dumps(layer)), copy.deepcopy(layer)):
        assert repr(other) == repr(layer)
        for ours, theirs in ((other.state_dict(), layer.state_dict()), (other.grads, layer.grads)):
            assert list(ours) == list(theirs)
            for key in ours:
                np.testing.assert_array_equal(ours[key], theirs[key])
                assert not np.shares_memory(ours[key], theirs[key])
        np.testing.assert_array_equal(other.eval()(x), layer.eval()(x))
        layer.train()
        with pytest.raises(ValueError, match="expected a call"):  # the last x is not pickled
            copy.copy(layer).backward(x)


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({"dtype": "int32"}, TypeError),
        ({"dtype": "nonsense"}, TypeError),
        ({"activation": "gelu"}, ValueError),
        ({"backend": "cuda"}, ValueError),
        ({"layout": "HWC"}, ValueError),
        ({"layout": 3}, ValueError),
        ({"eps": "small"}, TypeError),
        ({"momentum": "large"}, TypeError),
        ({"device": "cpu"}, TypeError),
    ],
)
def test_constructor_refuses(arguments: dict[str, Any], error: type[Exception]):
    with pytest.raises(error, match=r"BatchNorm2d|unexpected keyword"):
        nn.BatchNorm2d(3, **arguments)


def test_rows_have_no_layout():
    with pytest.raises(TypeError, match="no layout"):
        nn.LayerNorm(3, layout="NC")


def test_input_of_other_dtype_is_refused_and_counts_as_no_batch():
    layer = nn.BatchNorm1d(3)
    with pytest.raises(TypeError, match="dtype"):
        layer(np.zeros((4, 3)))
    with pytest.raises(TypeError, match="array"):
        layer([[1.0, 2, 3]])
    assert layer.num_batches_tracked == 0


def test_reset_running_stats():
    layer = nn.BatchNorm1d(3)
    layer(np.random.default_rng(0).normal(size=(4, 3)).astype(np.float32))
    layer.reset_running_stats()
    for key, value in nn.BatchNorm1d(3).state_dict().items():
        np.testing.assert_array_equal(layer.state_dict()[key], value)
