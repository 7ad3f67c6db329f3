"""Folded layers against PyTorch's convolution and batch norm, one after the other."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from cpunorm.folding import fold_batch_norm

try:
    import torch
except ImportError:
    torch = None  # type: ignore[assignment]

LAYERS = [
    ("Linear", {"in_features": 5, "out_features": 6}, (7, 5)),
    ("Conv1d", {"in_channels": 4, "out_channels": 6, "kernel_size": 3}, (2, 4, 9)),
    ("Conv2d", {"in_channels": 4, "out_channels": 6, "kernel_size": 3}, (2, 4, 9, 8)),
    ("Conv2d", {"in_channels": 4, "out_channels": 6, "kernel_size": (3, 2), "groups": 2}, (2, 4, 9, 8)),
    ("Conv2d", {"in_channels": 6, "out_channels": 6, "kernel_size": 3, "groups": 6}, (2, 6, 9, 8)),
    ("Conv3d", {"in_channels": 4, "out_channels": 6, "kernel_size": 2}, (2, 4, 5, 6, 4)),
    ("ConvTranspose1d", {"in_channels": 4, "out_channels": 6, "kernel_size": 3}, (2, 4, 9)),
    ("ConvTranspose2d", {"in_channels": 4, "out_channels": 6, "kernel_size": 3, "stride": 2}, (2, 4, 9, 8)),
    ("ConvTranspose2d", {"in_channels": 4, "out_channels": 6, "kernel_size": 3, "groups": 2}, (2, 4, 9, 8)),
    ("ConvTranspose3d", {"in_channels": 4, "out_channels": 6, "kernel_size": 2, "groups": 2}, (2, 4, 5, 6, 4)),
]


@pytest.mark.peer
@pytest.mark.skipif(torch is None, reason="PyTorch is not installed")
@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(("name", "arguments", "shape"), LAYERS)
def test_equals_layer_and_batch_norm(name: str, arguments: dict[str, Any], shape: tuple[int, ...], bias: bool, affine: bool):
    torch.manual_seed(0)
    layer = getattr(torch.nn, name)(**arguments, bias=bias)
    norm = getattr(torch.nn, f"BatchNorm{max(len(shape) - 2, 1)}d")(6, eps=1e-3, affine=affine)
    with torch.no_grad():
        norm.running_mean.normal_()
        norm.running_var.uniform_(0.3, 3)
        if affine:
            norm.weight.normal_()
            norm.bias.normal_()
        x = torch.randn(shape)
        expected = norm.eval()(layer(x)).numpy()
        state, stats = layer.state_dict(), norm.state_dict()
        before = {key: value.clone() for key, value in state.items()}
        weight, shift = fold_batch_norm(
            state["weight"],
            state.get("bias"),
            stats["running_mean"],
            stats["running_var"],
            stats.get("weight"),
            stats.get("bias"),
            norm.eps,
            transposed="Transpose" in name,
        )
        assert all(torch.equal(value, before[key]) for key, value in state.items())
        folded = getattr(torch.nn, name)(**arguments, bias=True)
        folded.load_state_dict({"weight": torch.from_numpy(weight), "bias": torch.from_numpy(shift)})
        assert weight.dtype == shift.dtype == np.float32
        np.testing.assert_allclose(folded(x).numpy(), expected, rtol=1e-5, atol=1e-5 * np.abs(expected).max())


def test_formula_and_dtypes():
    rng = np.random.default_rng(0)
    weight = rng.normal(size=(3, 2)).astype(np.float32)[::-1]
    mean, gamma, beta, bias = (rng.normal(size=3) for _ in range(4))
    var = rng.uniform(0.5, 2, 3)
    new_weight, new_bias = fold_batch_norm(weight, bias, mean, var, gamma, beta, 0.25)
    scale = gamma / np.sqrt(var + 0.25)
    np.testing.assert_array_equal(new_weight, (weight * scale[:, None]).astype(np.float32))
    np.testing.assert_allclose(new_bias, (bias - mean) * scale + beta, rtol=1e-12)
    assert (new_weight.dtype, new_bias.dtype) == (np.float32, np.float64)
    assert fold_batch_norm(weight, None, mean, var, None, None)[1].dtype == np.float32


def test_sixteen_bit_weights():
    ml_dtypes = pytest.importorskip("ml_dtypes")
    weight = np.ones((2, 3), ml_dtypes.bfloat16)
    new, bias = fold_batch_norm(weight, None, np.zeros(2, np.float32), np.full(2, 3, np.float32), None, None, 1)
    assert new.dtype == bias.dtype == weight.dtype
    assert (new == 0.5).all()


ONES = np.ones(6, np.float32)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"weight": np.ones((5, 3), np.float32)}, ValueError, r"weight of shape \(6, ...\)"),
        ({"weight": np.ones(6, np.float32)}, ValueError, "at least 2 axes"),
        ({"weight": np.ones((6, 3), int)}, TypeError, "weight of dtype"),
        ({"weight": [[1.0]]}, TypeError, "weight to be an array"),
        ({"running_mean": None}, TypeError, "running_mean to be an array"),
        ({"running_var": ONES[:5]}, ValueError, "running_var of shape"),
        ({"gamma": ONES[:5]}, ValueError, "gamma of shape"),
        ({"beta": ONES.astype(complex)}, TypeError, "beta of dtype"),
        ({"bias": ONES[None]}, ValueError, "bias of shape"),
        ({"eps": -1}, ValueError, "eps"),
        ({"weight": np.ones((4, 4, 3), np.float32), "transposed": True}, ValueError, "transposed weight"),
        ({"weight": np.ones((5, 3, 3), np.float32), "transposed": True}, ValueError, "transposed weight"),
    ],
)
def test_refused(arguments: dict[str, Any], error: type[Exception], message: str):
    good = {"weight": np.ones((6, 3), np.float32), "bias": None, "running_mean": ONES, "running_var": ONES, "gamma": ONES, "beta": ONES}
    with pytest.raises(error, match=f"fold_batch_norm: .*{message}"):
        fold_batch_norm(**{**good, **arguments})
