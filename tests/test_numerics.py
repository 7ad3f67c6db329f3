"""Where sums go wrong: constants, means far from zero, NaN and infinity, the ends of the range."""

import numpy as np
import pytest
from helpers import arguments, assert_all, assert_close, assert_same_bits, expected, normal, run

import cpunorm as cn
from cpunorm import ops, samples

pytestmark = pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
AXES = {"NCHW": (0, 2, 3), "NHWC": (0, 1, 2)}


@pytest.mark.parametrize("shape", [(1, 3, 57, 57), (9, 3, 19, 19), (3249, 3, 1, 1), (1, 70, 57, 57)], ids=str)
@pytest.mark.parametrize("threads", [1, 2])
def test_constant_channels_give_bias(shape, layout, dtype, threads, backend):
    """3249 values of 14, 0.1 or 100000.1: the mean is that constant, not nearly."""
    constants = np.resize(np.array([14, 0.1, 100000.1], dtype), shape[1])
    x = samples.arrange(np.broadcast_to(constants.reshape(-1, 1, 1), shape), layout)
    parameters = arguments(shape[1], dtype)
    y, mean, _, _, _ = run(x, parameters, training=True, layout=layout, threads=threads, backend=backend)
    assert_same_bits(samples.channels_first(y, layout), np.broadcast_to(parameters["bias"].reshape(-1, 1, 1), shape))
    assert_same_bits(mean, constants)
    means, variances = cn.mean_var(x, AXES[layout], threads=threads, backend=backend)
    assert_same_bits(means, constants.astype(np.float64))
    assert_same_bits(variances, np.zeros(shape[1]))


@pytest.mark.parametrize("shape", [(4, 3, 64, 64), (1, 5, 300, 301), (64, 130, 3, 3)], ids=str)
def test_mean_far_from_zero(shape, layout, backend):
    x = samples.arrange(normal(shape, "float32", mean=1e5, std=1), layout)
    mean, var = cn.mean_var(x, AXES[layout], backend=backend)
    wide = x.astype(np.float64)
    assert_close(mean, wide.mean(AXES[layout]), rtol=1e-9)
    assert_close(var, wide.var(AXES[layout]), rtol=1e-6)
    parameters = arguments(shape[1], "float32")
    results = run(x, parameters, training=True, layout=layout, backend=backend)
    assert_all(assert_close, results, expected(x, parameters, training=True, layout=layout), rtol=1e-5, atol=3e-6)


@pytest.mark.parametrize("guest", [np.nan, -np.inf, 1e30])
@pytest.mark.parametrize("shape", [(2, 6, 9, 11), (4, 70, 20, 20), (2, 600, 5, 5)], ids=str)
def test_a_guest_stays_in_its_channel(shape, layout, dtype, training, guest, backend):
    """All other channels have the bits of the run without it, statistics included."""
    x = normal(shape, dtype)
    parameters = arguments(shape[1], dtype)
    options = {"training": training, "layout": layout, "backend": backend}
    clean = run(samples.arrange(x, layout), parameters, **options)
    x[-1, 2, 1, 3] = guest
    touched = run(samples.arrange(x, layout), parameters, **options)
    others = np.arange(shape[1]) != 2
    assert_same_bits(samples.channels_first(touched[0], layout)[:, others], samples.channels_first(clean[0], layout)[:, others])
    assert_all(assert_same_bits, [value[others] for value in touched[1:]], [value[others] for value in clean[1:]])
    with np.errstate(all="ignore"):
        wanted = [value.astype(dtype) for value in expected(samples.arrange(x, layout), parameters, training=training, layout=layout)]
    assert_all(assert_close, touched, wanted, rtol=2e-5 if dtype == "float32" else 1e-12, atol=1e-5 if dtype == "float32" else 1e-12)


@pytest.mark.parametrize("size", [1e30, 1e37])
@pytest.mark.parametrize("shape", [(2, 3, 5, 7), (3, 40, 30, 30)], ids=str)
def test_large_values(shape, layout, dtype, size, backend):
    """Sums of float32 leave its range; results do not."""
    x = (normal(shape, "float64", mean=0, std=1) * size).astype(dtype)
    x = samples.arrange(x, layout)
    parameters = arguments(shape[1], dtype, given=("weight", "bias"))
    y, mean, rstd, _, _ = run(x, parameters, training=True, layout=layout, backend=backend)
    assert np.isfinite(y).all()
    wanted = expected(x, parameters, training=True, layout=layout)
    tolerance = {"float32": 1e-5, "float64": 1e-12}[dtype]
    assert_close(y, wanted[0], rtol=tolerance, atol=tolerance)
    assert_close(mean, wanted[1], rtol=tolerance, atol=tolerance * size)
    assert_close(rstd, wanted[2], rtol=tolerance, atol=1e-44)
    means, variances = cn.mean_var(x, AXES[layout], backend=backend)
    wide = x.astype(np.float64)
    assert_close(means, wide.mean(AXES[layout]), rtol=tolerance, atol=tolerance * size)
    assert_close(variances, wide.var(AXES[layout]), rtol=tolerance)


@pytest.mark.parametrize("size", [1e-12, 1e-25, 1e-37])
def test_small_values(layout, size, backend):
    """Squares of float32 leave its range at the lower end too."""
    x = samples.arrange((normal((2, 3, 25, 27), "float64") * size).astype(np.float32), layout)
    mean, var = cn.mean_var(x, AXES[layout], backend=backend)
    wide = x.astype(np.float64)
    assert_close(mean, wide.mean(AXES[layout]), rtol=1e-6)
    assert_close(var, wide.var(AXES[layout]), rtol=1e-5)


@pytest.mark.parametrize("offset", [1e4, 1e6])
def test_running_mean_far_from_zero(layout, dtype, offset, backend):
    """x - mean before the product: x * scale + shift would lose the digits of the offset."""
    x = samples.arrange(normal((2, 5, 6, 7), dtype, mean=offset, std=1), layout)
    parameters = {**arguments(5, dtype), "running_mean": np.full(5, offset, dtype)}
    y = cn.batch_norm(x, **parameters, layout=layout, backend=backend)
    assert_close(y, expected(x, parameters, layout=layout)[0], **ops.tolerance(dtype))


# ---------------------------------------------------------------- groups, rows

ROWWISE = {
    "instance_norm": lambda shape: {},
    "group_norm": lambda shape: {"num_groups": 2},
    "layer_norm": lambda shape: {"normalized_shape": shape[1:]},
    "rms_norm": lambda shape: {"normalized_shape": shape[1:]},
}
by_name = pytest.mark.parametrize("name", ROWWISE)


def by_sample(name, x, layout, backend, bias=None, **options):
    """Statistics of x (channels first) within each sample; results channels first."""
    own = ROWWISE[name](x.shape)
    if "normalized_shape" not in own:
        options["layout"] = layout
        results = getattr(cn, name)(samples.arrange(x, layout), **own, bias=bias, **options, backend=backend)
        results = results if isinstance(results, tuple) else (results,)
        return samples.channels_first(results[0], layout), *results[1:]
    if bias is not None:
        own["bias"] = np.broadcast_to(bias.reshape(-1, *[1] * (x.ndim - 2)), x.shape[1:]).copy()
    results = getattr(cn, name)(x, **own, **options, backend=backend)
    return results if isinstance(results, tuple) else (results,)


@pytest.mark.parametrize("name", [name for name in ROWWISE if name != "rms_norm"])  # which has no mean
@pytest.mark.parametrize("shape", [(2, 4, 57, 57), (3, 6, 5, 7)], ids=str)
def test_constant_groups_and_rows_give_bias(name, shape, layout, dtype, backend):
    constants = np.resize(np.array([14, 0.1, 100000.1], dtype), shape[0])
    x = np.broadcast_to(constants.reshape(-1, 1, 1, 1), shape).copy()
    bias = arguments(shape[1], dtype)["bias"]
    y, mean, _ = by_sample(name, x, layout, backend, bias, return_stats=True)
    assert_same_bits(y, np.broadcast_to(bias.reshape(-1, 1, 1), shape))
    assert_same_bits(mean.reshape(shape[0], -1), np.broadcast_to(constants[:, None], mean.reshape(shape[0], -1).shape))


@by_name
@pytest.mark.parametrize("guest", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("shape", [(3, 4, 9, 11), (5, 64, 20, 20)], ids=str)
def test_a_guest_stays_in_its_sample(name, guest, shape, layout, any_dtype, backend):
    """Or in its group or channel of that sample."""
    x = normal(shape, "float32").astype(samples.dtype_of(any_dtype))
    clean = by_sample(name, x, layout, backend, return_stats=True)
    x[1, 1, 2, 3] = guest
    touched = by_sample(name, x, layout, backend, return_stats=True)
    mine = np.zeros(shape, bool)
    mine[1, {"instance_norm": slice(1, 2), "group_norm": slice(0, shape[1] // 2)}.get(name, slice(None))] = True
    assert_same_bits(touched[0][~mine], clean[0][~mine])
    assert np.isnan(touched[0][mine].astype(np.float32)).any()
    for one, other in zip(touched[1:], clean[1:], strict=True):
        one, other = one.reshape(shape[0], -1), other.reshape(shape[0], -1)
        assert_same_bits(one[[0, 2]], other[[0, 2]])


@by_name
@pytest.mark.parametrize("size", [1e30, 1e37])
def test_large_values_by_sample(name, size, layout, backend):
    for shape in ((2, 4, 5, 7), (3, 40, 30, 30)):
        x = (normal(shape, "float64", mean=0, std=1).clip(-3, 3) * size).astype(np.float32)
        (y,) = by_sample(name, x, layout, backend)
        wide = x.astype(np.float64)
        split = wide.reshape(shape[0], {"instance_norm": shape[1], "group_norm": 2}.get(name, 1), -1)
        mean = 0 if name == "rms_norm" else split.mean(-1, keepdims=True)
        wanted = (split - mean) / np.sqrt(np.square(split - mean).mean(-1, keepdims=True))
        assert np.isfinite(y).all()
        assert_close(y, wanted.reshape(shape), rtol=1e-5, atol=1e-5)


def test_lp_norms_at_the_ends_of_the_range(layout, backend):
    """The L2 norm of values whose squares leave float32."""
    axis = AXES[layout][-1]
    for size in (1e37, 1e30, 1e-25, 1e-30):
        x = (normal((2, 5, 6, 7), "float64", mean=0, std=1) * size).astype(np.float32)
        wide = x.astype(np.float64)
        wanted = wide / np.maximum(np.sqrt(np.square(wide).sum(axis, keepdims=True)), 1e-40)
        assert_close(cn.normalize(x, dim=axis, eps=1e-40, backend=backend), wanted, rtol=1e-5, atol=1e-7)
