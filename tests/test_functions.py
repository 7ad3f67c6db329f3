"""Every function and optional argument against torch.nn.functional in float64, rounded once."""

import numpy as np
import pytest
from cases import (
    ALL,
    BY_CHANNEL,
    BY_ROW,
    CALLS,
    FUSED,
    LAYOUTS,
    arguments_of,
    call,
    peer,
    rotate,
    shapes_of,
    spread,
    statistics,
    takes,
    tensor,
    ulp,
)
from helpers import ACTIVATIONS, ARRANGEMENTS, WRITABLE, assert_close, assert_same_bits, copied

import cpunorm as cn
from cpunorm import ops, samples

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.peer
torch.set_num_threads(1)  # small arrays
by_call = pytest.mark.parametrize(("name", "number"), ALL, ids=lambda value: str(value))


def assert_near(actual, wanted, dtype, enlarged=1.0):
    """Of the dtype; 16 bits within one unit in the last place, 1e-5 near zero."""
    assert actual.dtype == samples.dtype_of(dtype)
    assert actual.shape == wanted.shape
    if dtype in ("float32", "float64"):
        limits = ops.tolerance(dtype)
        assert_close(actual, wanted, rtol=limits["rtol"], atol=limits["atol"] * enlarged)
        return
    with np.errstate(over="ignore"):
        rounded = wanted.astype(actual.dtype).astype(np.float64)
    off = np.abs(actual.astype(np.float64) - rounded)
    assert (off <= ulp(rounded, dtype) + 1e-5 * enlarged).all(), f"off by {off.max()}"


def assert_call(name, number, shape, dtype, backend, choice):
    layout, arrangement, activation, has_residual, stats, total, out, threads = choice
    rng = np.random.default_rng([number, *shape])
    arguments = arguments_of(name, number, shape, dtype, rng)
    layout = LAYOUTS[len(shape)][layout % len(LAYOUTS[len(shape)])] if name in BY_CHANNEL else None
    fused = name in FUSED

    def operand(mean, std):
        value = rng.normal(mean, std, shape).astype(samples.dtype_of(dtype))
        return ARRANGEMENTS[arrangement](value if layout is None else samples.arrange(value, layout))

    def first(value):
        return value if layout is None else samples.channels_first(value, layout)

    x = operand(3, 2)
    residual = operand(0, 1) if fused and has_residual else None
    native = x.dtype.newbyteorder("=")
    options = {"backend": backend, "threads": threads} | ({} if layout is None else {"layout": layout})
    if fused:
        options |= {"activation": activation, "residual": residual, "return_stats": stats}
        if name in BY_ROW:
            options["return_sum"] = total = total and residual is not None
    tensors = {key: tensor(value) for key, value in arguments.items()}
    if tensors.get("eps", 1) is None or (name == "rms_norm" and "eps" not in tensors):
        tensors["eps"] = float(np.finfo(np.float64 if dtype == "float64" else np.float32).eps)
    wide = None if residual is None else tensor(first(residual).astype(np.float64))
    wanted, h = peer(name, tensor(first(x).astype(np.float64)), tensors, activation if fused else None, wide)
    before = x.astype(native), None if residual is None else residual.astype(native)
    x_is_free = arrangement in WRITABLE
    if out == "x" and x_is_free:
        options["out"] = x
    elif out == "residual" and residual is not None and x_is_free:
        options["out"] = residual
    elif out == "own":
        options["out"] = WRITABLE["outer slice"](np.zeros(x.shape, native)) if x.dtype.isnative else None
    mine = copied(arguments)
    results = call(name, x, mine, **options)
    results = list(results) if isinstance(results, tuple) else [results]
    y = results.pop(0)
    if options.get("out") is not None:
        assert y is options["out"]
    if options.get("out") is not x:
        assert_same_bits(x.astype(native), before[0])
    if residual is not None and options.get("out") is not residual:
        assert_same_bits(residual.astype(native), before[1])
    enlarged = spread(name, h.numpy(), arguments)
    if x.dtype.isnative:
        assert_near(first(y), wanted.numpy(), dtype, enlarged)
    else:
        assert_near(first(y.astype(native)), wanted.numpy(), dtype, enlarged)
    if fused and total and name in BY_ROW:
        assert_near(results.pop().astype(native), h.numpy(), dtype)  # of x's byte order, as y is
    if fused and stats:
        kind = samples.statistics_dtype(dtype)
        limits = ops.tolerance(kind.name)
        wanted_stats = statistics(name, h.numpy().astype(kind), arguments)
        assert len(results) == len(wanted_stats)
        for one, other in zip(results, wanted_stats, strict=True):
            assert one.dtype == kind
            assert_close(one, other, rtol=4 * limits["rtol"], atol=4 * limits["atol"])
    else:
        assert not results
    for key in ("running_mean", "running_var"):
        if mine.get(key) is not None:
            assert_near(mine[key], tensors[key].numpy(), samples.statistics_dtype(dtype).name)


@by_call
def test_agrees_with_pytorch(name, number, any_dtype, backend):
    arrangements = [key for key in ARRANGEMENTS if any_dtype != "bfloat16" or not key.startswith("byte")]
    draws = rotate(range(12), arrangements, ACTIVATIONS, (0, 1), (0, 1), (0, 1), (None, "x", "residual", "own"), (1, 2), seed=number)
    for shape, choice in zip(shapes_of(name, number, any_dtype), draws, strict=False):
        try:
            assert_call(name, number, shape, any_dtype, backend, (*choice[:3], *map(bool, choice[3:6]), *choice[6:]))
        except AssertionError as problem:
            problem.add_note(f"{shape}, {choice}")
            raise


def takes_empty(name, number, shape):
    """No channels have no groups and no largest value: these are refused."""
    options = CALLS[name][number][1]
    refused = name == "group_norm" or options.get("p") == float("inf")
    return takes(name, options, (*shape[:2], *[size or 2 for size in shape[2:]])) and not (refused and shape[1] == 0)


EMPTY = [(0, 6), (0, 6, 4), (2, 6, 0, 5), (0, 6, 2, 3, 1), (3, 0), (2, 0, 4), (0, 0, 3)]
TAKEN = [(*one, shape) for one in ALL for shape in EMPTY if takes_empty(*one, shape)]


@pytest.mark.parametrize(("name", "number", "shape"), TAKEN, ids=str)
def test_empty(name, number, shape, any_dtype, backend):
    """An empty result where PyTorch gives one or knows no such thing; running statistics as they were."""
    arguments = arguments_of(name, number, shape, any_dtype, np.random.default_rng(0))
    before = copied(arguments)
    y = call(name, np.zeros(shape, samples.dtype_of(any_dtype)), arguments, backend=backend)
    assert (y.shape, y.dtype) == (shape, samples.dtype_of(any_dtype))
    for key in ("running_mean", "running_var"):
        if arguments.get(key) is not None:
            assert_same_bits(arguments[key], before[key])


@pytest.mark.parametrize(
    ("name", "x", "arguments", "shape"),
    [
        ("batch_norm", (0, 3, 2), {"running_mean": None, "running_var": None, "training": True}, (3,)),
        ("instance_norm", (0, 3, 2), {}, (0, 3)),
        ("instance_norm", (2, 3, 0), {}, (2, 3)),
        ("group_norm", (0, 4, 2), {"num_groups": 2}, (0, 2)),
        ("group_norm", (2, 4, 0), {"num_groups": 2}, (2, 2)),
        ("layer_norm", (0, 3, 2), {"normalized_shape": (3, 2)}, (0, 1, 1)),
        ("layer_norm", (3, 0), {"normalized_shape": 0}, (3, 1)),
        ("rms_norm", (2, 0), {"normalized_shape": (0,)}, (2, 1)),
    ],
)
def test_statistics_of_nothing(name, x, arguments, shape, any_dtype, backend):
    """Mean 0 and rstd NaN."""
    _, *stats = call(name, np.zeros(x, samples.dtype_of(any_dtype)), arguments, return_stats=True, backend=backend)
    kind = samples.statistics_dtype(any_dtype)
    assert_same_bits(stats[-1], np.full(shape, np.nan, kind))
    assert_same_bits(np.zeros(shape, kind) if name == "rms_norm" else stats[0], np.zeros(shape, kind))


def test_a_whole_number_is_a_shape(any_dtype, backend):
    """Unlike PyTorch."""
    x = np.random.default_rng(0).normal(size=(3, 7)).astype(samples.dtype_of(any_dtype))
    for function in (cn.layer_norm, cn.rms_norm):
        assert_same_bits(function(x, 7, backend=backend), function(x, (7,), backend=backend))
        assert_same_bits(function(x, [7], backend=backend), function(x, (7,), backend=backend))


def test_eps_of_rms_norm_is_that_of_the_computing_dtype(any_dtype, backend):
    x = np.zeros((2, 5), samples.dtype_of(any_dtype))
    _, rstd = cn.rms_norm(x, 5, return_stats=True, backend=backend)
    eps = np.finfo(samples.statistics_dtype(any_dtype)).eps
    assert_close(rstd, np.full((2, 1), 1 / np.sqrt(float(eps))), rtol=1e-6)
