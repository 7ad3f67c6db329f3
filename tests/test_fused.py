"""Activation and residual in the same pass: the bits of the separate steps; SiLU to the last bits."""

import numpy as np
import pytest
from cases import CALLS, FUSED, arguments_of, call, takes
from helpers import ACTIVATIONS, assert_all, assert_same_bits, copied, present

from cpunorm import reference, samples

NAMES = [name for name in ACTIVATIONS if name]


@pytest.mark.parametrize("name", FUSED)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_equals_the_steps(name, dtype, compiled):
    for number, shape in ((0, (3, 6, 5, 7)), (1, (2, 8, 300))):
        if number >= len(CALLS[name]) or not takes(name, CALLS[name][number][1], shape):
            continue
        rng = np.random.default_rng(number)
        arguments = arguments_of(name, number, shape, dtype, rng)
        x, residual = rng.normal(3, 2, shape).astype(dtype), rng.normal(0, 1, shape).astype(dtype)
        plain = call(name, x, copied(arguments), backend=compiled)
        by_row = name in ("layer_norm", "rms_norm")
        with_residual = call(name, x + residual, copied(arguments), backend=compiled) if by_row else plain + residual
        fused = call(name, x, copied(arguments), residual=residual, backend=compiled)
        if by_row:
            assert_same_bits(fused, with_residual)
            *_, total = call(name, x, copied(arguments), residual=residual, return_sum=True, backend=compiled)
            assert_same_bits(total, x + residual)
        else:
            assert_same_bits(fused, with_residual)
        for activation in ("relu", "relu6"):
            clipped = reference.activate(fused, activation)
            assert_same_bits(call(name, x, copied(arguments), residual=residual, activation=activation, backend=compiled) + 0, clipped + 0)
            assert_same_bits(
                call(name, x, copied(arguments), activation=activation, backend=compiled) + 0, reference.activate(plain, activation) + 0
            )


@pytest.mark.parametrize("activation", NAMES)
@pytest.mark.parametrize("name", FUSED)
def test_16_bits_are_rounded_once(name, activation, backend):
    """Not after the normalization and again after the activation: exactly what float32 data gives, rounded."""
    for dtype in ("float16", "bfloat16"):
        kind = samples.dtype_of(present(dtype))
        rng = np.random.default_rng(0)
        arguments = arguments_of(name, 0, (2, 6, 5), dtype, rng)
        x, residual = (rng.normal(size=(2, 6, 5)).astype(kind) for _ in range(2))
        options = {"activation": activation, "backend": backend}
        if name == "rms_norm":
            arguments["eps"] = 1e-6
        narrow = call(name, x, copied(arguments), residual=residual, **options)
        wide = call(name, x.astype(np.float32), copied(arguments), residual=residual.astype(np.float32), **options)
        assert_same_bits(narrow, wide.astype(kind))


def silu(x, backend):
    channels = np.ones(1, x.dtype)
    from cpunorm import batch_norm

    return batch_norm(x.reshape(1, 1, -1), channels * 0, channels, eps=0.0, activation="silu", backend=backend).reshape(-1)


@pytest.mark.parametrize(("dtype", "lowest", "ulps"), [("float32", -87.0, 2), ("float64", -700.0, 4)])
def test_silu(dtype, lowest, ulps, backend):
    rng = np.random.default_rng(0)
    x = np.concatenate(
        [np.linspace(lowest, -lowest, 20001), rng.normal(0, 1, 20000), rng.normal(0, 1e-3, 1000), [1e4, 1e30, -1e-30, 1e-38]]
    )
    x = x.astype(dtype)
    wide = x.astype(np.longdouble)
    with np.errstate(all="ignore"):
        wanted = wide / (1 + np.exp(-wide))
    off = np.abs(silu(x, backend).astype(np.longdouble) - wanted) / np.spacing(np.abs(wanted.astype(dtype)))
    assert off.max() <= ulps, f"{off.max()} units at {x[off.argmax()]}"


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_silu_far_out(dtype, backend):
    """As PyTorch: no overflow, nothing left of large negative values, and what infinity times zero is."""
    x = np.array([-1e4, -1e30, np.inf, -np.inf, np.nan, 1e4, 0.0], dtype)
    y = silu(x, backend)
    assert (y[:2] == 0).all(), y
    assert y[2] == np.inf
    assert np.isnan(y[3]), y[3]
    assert np.isnan(y[4])
    assert (y[5], y[6]) == (1e4, 0)


@pytest.mark.parametrize("activation", NAMES)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_nan_stays(activation, dtype, backend):
    from cpunorm import batch_norm

    x = np.full((2, 3, 40), np.nan, dtype)
    x[0, :, 1:] = 1
    one = np.ones(3, dtype)
    y = batch_norm(x, one * 0, one, activation=activation, backend=backend)
    assert (np.isnan(y) == np.isnan(x)).all()


@pytest.mark.parametrize("name", FUSED)
def test_in_place_over_either(name, any_dtype, backend):
    """x or the residual: the bits of a call without out."""
    for shape in ((3, 6, 5, 7), (4, 64, 600)):
        rng = np.random.default_rng(0)
        arguments = arguments_of(name, 0, shape, any_dtype, rng)
        mine = {key: rng.normal(size=shape).astype(samples.dtype_of(any_dtype)) for key in ("x", "residual")}
        options = {"activation": "silu", "return_stats": True, "backend": backend}
        wanted = call(name, mine["x"], copied(arguments), residual=mine["residual"], **options)
        for into in mine:
            given = copied(mine)
            results = call(name, given["x"], copied(arguments), residual=given["residual"], out=given[into], **options)
            assert results[0] is given[into]
            assert_all(assert_same_bits, results, wanted)
