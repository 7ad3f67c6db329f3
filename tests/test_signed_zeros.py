"""Zeros keep their sign where PyTorch's do: a product keeps it, a sum with +0.0 does not.

RMS norm is none of these: PyTorch multiplies only, we add a bias of +0.0, and the sign goes.
"""

import numpy as np
import pytest

import cpunorm as cn
from cpunorm import samples

MEAN, VAR, WEIGHT = np.zeros(5, np.float32), np.ones(5, np.float32), np.full(5, 2, np.float32)
NEGATIVE = np.full(5, -0.0, np.float32)


def affine(bias, activation=None):
    """Batch norm with mean 0 in ours, and what PyTorch calls the activation."""

    def theirs(torch):
        functional = torch.nn.functional
        apply = getattr(functional, activation or "", lambda y: y)
        return lambda x: apply(functional.batch_norm(x, *map(torch.from_numpy, (MEAN, VAR, WEIGHT, bias))))

    def ours(x, **options):
        kept = samples.statistics_dtype(x.dtype.name)
        return cn.batch_norm(x, *(value.astype(kept) for value in (MEAN, VAR, WEIGHT, bias)), activation=activation, **options)

    return ours, theirs


CALLS = {  # ours, PyTorch's, whether -0.0 stays one
    **{
        f"normalize, dim {dim}": (
            lambda x, dim=dim, **options: cn.normalize(x, 2.0, dim, **options),
            lambda torch, dim=dim: lambda x: torch.nn.functional.normalize(x, 2.0, dim),
            True,
        )
        for dim in (0, 1, -1)
    },
    "local response": (
        lambda x, **options: cn.local_response_norm(x, 3, **options),
        lambda torch: lambda x: torch.nn.functional.local_response_norm(x, 3),
        True,
    ),
    "a bias of -0.0": (*affine(NEGATIVE), True),
    "a bias of 0.0": (*affine(MEAN), False),
    **{f"a bias of -0.0, {name}": (*affine(NEGATIVE, name), True) for name in ("relu", "relu6", "silu", "hardswish")},
}


def zeros(dtype, others):
    """Zeros of either sign, in vectors and beside them; with `others`, every second element is a number."""
    rng = np.random.default_rng(0)
    x = rng.choice([0.0, -0.0], (2, 5, 67))
    if others:
        x[..., ::2] = rng.normal(0, 1, x[..., ::2].shape)
    return x.astype(samples.dtype_of(dtype))


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize("others", [False, True], ids=["zeros", "among numbers"])
def test_signs_of_zeros(name, others, any_dtype, backend):
    x = zeros(any_dtype, others)
    ours, _, kept = CALLS[name]
    y = ours(x, backend=backend)
    zero = x == 0
    assert (y[zero] == 0).all()
    assert np.array_equal(np.signbit(y[zero]), np.signbit(x[zero]) & kept)


@pytest.mark.peer
@pytest.mark.parametrize("name", CALLS)
def test_signs_of_zeros_are_pytorchs(name):
    torch = pytest.importorskip("torch")
    x = zeros("float32", True)
    y = CALLS[name][1](torch)(torch.from_numpy(x)).numpy()
    assert np.array_equal(np.signbit(y[x == 0]), np.signbit(x[x == 0]) & CALLS[name][2])
