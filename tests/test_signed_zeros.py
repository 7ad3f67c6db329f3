"""Zeros keep their sign where PyTorch's do: a product keeps it, a sum with +0.0 does not.

Group norm with neither weight nor bias is none of these: there PyTorch multiplies only, and with a weight it adds +0.0; we always do.
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


def rows(name, **parameters):
    """RMS or layer norm over rows of 67, in ours and PyTorch's."""

    def theirs(torch):
        tensors = {key: torch.from_numpy(value) for key, value in parameters.items()}
        return lambda x: getattr(torch.nn.functional, name)(x, (67,), eps=1e-5, **tensors)

    def ours(x, **options):
        kept = samples.statistics_dtype(x.dtype.name)
        return getattr(cn, name)(x, 67, eps=1e-5, **{key: value.astype(kept) for key, value in parameters.items()}, **options)

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
    "RMS norm": (*rows("rms_norm"), True),
    "RMS norm, a weight": (*rows("rms_norm", weight=np.full(67, 2, np.float32)), True),
    **{f"a bias of -0.0, {name}": (*affine(NEGATIVE, name), True) for name in ("relu", "relu6", "silu", "hardswish")},
}


def zeros(dtype, others):
    """Zeros of either sign, in vectors and beside them; with `others`, every second element is a number."""
    rng = np.random.default_rng(0)
    x = rng.choice([0.0, -0.0], (2, 5, 67))
    if others:
        x[..., ::2] = rng.normal(0, 1, x[..., ::2].shape)
    return x.astype(samples.dtype_of(dtype))


LAYER_NORMS = {  # of rows whose mean is 0 only where they are zeros
    "layer norm": (*rows("layer_norm"), False),
    "layer norm, a bias of -0.0": (*rows("layer_norm", bias=np.full(67, -0.0, np.float32)), True),
}
CASES = [*((name, others) for name in CALLS for others in (False, True)), *((name, False) for name in LAYER_NORMS)]
IDS = [f"{name}, {'among numbers' if others else 'zeros'}" for name, others in CASES]
by_case = pytest.mark.parametrize(("name", "others"), CASES, ids=IDS)


@by_case
def test_signs_of_zeros(name, others, any_dtype, backend):
    x = zeros(any_dtype, others)
    ours, _, kept = (CALLS | LAYER_NORMS)[name]
    y = ours(x, backend=backend)
    zero = x == 0
    assert (y[zero] == 0).all()
    assert np.array_equal(np.signbit(y[zero]), np.signbit(x[zero]) & kept)


@pytest.mark.peer
@by_case
def test_signs_of_zeros_are_pytorchs(name, others):
    torch = pytest.importorskip("torch")
    x = zeros("float32", others)
    _, theirs, kept = (CALLS | LAYER_NORMS)[name]
    y = theirs(torch)(torch.from_numpy(x)).numpy()
    assert np.array_equal(np.signbit(y[x == 0]), np.signbit(x[x == 0]) & kept)
