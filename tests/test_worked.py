"""Values worked by hand: batch 2, 3 channels, 2x2 pixels, holding 0..23 in order."""

import doctest
import math

import numpy as np
import pytest
from helpers import assert_close, assert_same_bits

import cpunorm as cn
from cpunorm import ops, samples, settings

# Channel c holds 4c, .., 4c + 3 and 12 more than these: the mean is 4c + 7.5; the differences from it are -+6 -+0.5, -+1.5, so
# M2 = 8 * 36 + 4 * (0.25 + 2.25) = 298, and the variance 298 / 8.
MEANS = [7.5, 11.5, 15.5]
M2 = 298.0


@pytest.fixture
def x(dtype):
    return np.arange(24, dtype=dtype).reshape(2, 3, 2, 2)


def test_mean_var(x, backend):
    mean, var = cn.mean_var(x, axis=(0, 2, 3), backend=backend)
    assert mean.tolist() == MEANS
    assert var.tolist() == [M2 / 8] * 3
    mean, var = cn.mean_var(x, axis=(0, 2, 3), ddof=1, keepdims=True, backend=backend)
    assert mean.shape == var.shape == (1, 3, 1, 1)
    assert_close(var, np.full((1, 3, 1, 1), M2 / 7), rtol=1e-15)


def test_mean_var_of_everything_is_a_scalar(x, backend):
    mean, var = cn.mean_var(x, backend=backend)
    assert (mean, var) == (11.5, (24**2 - 1) / 12)
    assert isinstance(mean, np.float64)


@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
def test_training(x, dtype, backend, layout):
    running_mean, running_var = np.zeros(3, dtype), np.ones(3, dtype)
    y, mean, rstd = cn.batch_norm(
        samples.arrange(x, layout), running_mean, running_var, training=True, eps=0.75, layout=layout, return_stats=True, backend=backend
    )
    tolerance = ops.tolerance(dtype)
    assert_close(mean, np.array(MEANS), **tolerance)
    assert_close(rstd, np.full(3, 1 / math.sqrt(M2 / 8 + 0.75)), **tolerance)  # 1 / sqrt(38)
    assert_close(samples.channels_first(y, layout)[0, 0, 0, 0], np.array(-7.5 / math.sqrt(38)), **tolerance)
    assert_close(samples.channels_first(y, layout)[1, 2, 1, 1], np.array(7.5 / math.sqrt(38)), **tolerance)
    # one step: 0.9 * 0 + 0.1 * mean; 0.9 * 1 + 0.1 * 298 / 7, the unbiased variance
    assert_close(running_mean, np.array([0.75, 1.15, 1.55]), **tolerance)
    assert_close(running_var, np.full(3, 0.9 + 29.8 / 7), **tolerance)


def test_inference(x, dtype, backend):
    """(x - 1) / sqrt(3.75 + 0.25) * 4 + 0.5: exact."""
    of = {"running_mean": 1, "running_var": 3.75, "weight": 4, "bias": 0.5}
    y = cn.batch_norm(x, **{name: np.full(3, value, dtype) for name, value in of.items()}, eps=0.25, backend=backend)
    assert_same_bits(y, (x - 1) * 2 + np.array(0.5, dtype))


@pytest.mark.parametrize("module", [cn, settings])
def test_docstrings(module):
    assert doctest.testmod(module).attempted
    assert not doctest.testmod(module).failed
