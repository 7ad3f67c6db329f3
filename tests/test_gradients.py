"""Every gradient against PyTorch's autograd and central differences in float64, and what the results are."""

import numpy as np
import pytest
from cases import ALL, BY_CHANNEL, CALLS, FUSED, LAYOUTS, arguments_of, call, peer, rotate, shapes_of, spread, tensor
from helpers import ARRANGEMENTS, WRITABLE, assert_all, assert_close, assert_same_bits, copied

import cpunorm as cn
from cpunorm import ops, samples

FORWARD_ONLY = {"running_mean", "running_var", "bias", "eps", "momentum"}
by_call = pytest.mark.parametrize(("name", "number"), ALL, ids=lambda value: str(value))


def backward(name, grad, x, arguments, stats, **options):
    """Our gradients; `arguments` are the forward call's."""
    kept = {key: value for key, value in arguments.items() if key not in FORWARD_ONLY or name in ("local_response_norm", "normalize")}
    if name == "batch_norm":
        kept.setdefault("training", False)  # as forward; backward the default is another
    named = dict(zip(("rstd",) if name == "rms_norm" else ("mean", "rstd"), stats, strict=True)) if stats else {}
    results = getattr(cn, f"{name}_backward")(grad, x, **kept, **named, **options)
    return results if isinstance(results, tuple) else (results,)


def statistics_of(name, x, arguments, **options):
    """What the forward call returns; in inference the running ones."""
    if name not in FUSED:
        return ()
    _, *stats = call(
        name,
        x,
        copied(arguments),
        return_stats=True,
        **options,
    )
    return stats


def assert_call(name, number, shape, dtype, backend, choice):
    torch = pytest.importorskip("torch")
    layout, arrangement, other, out, threads = choice
    rng = np.random.default_rng([number, *shape])
    arguments = arguments_of(name, number, shape, dtype, rng)
    layout = LAYOUTS[len(shape)][layout % len(LAYOUTS[len(shape)])] if name in BY_CHANNEL else None
    place = {} if layout is None else {"layout": layout}

    def operand(mean, std, how):
        value = rng.normal(mean, std, shape).astype(samples.dtype_of(dtype))
        return ARRANGEMENTS[how](value if layout is None else samples.arrange(value, layout))

    def first(value):
        return value if layout is None else samples.channels_first(value, layout)

    x, grad = operand(3, 2, arrangement), operand(0, 1, other)
    wide = tensor(first(x).astype(np.float64)).requires_grad_()
    tensors = {key: tensor(value) for key, value in arguments.items()}
    if name == "rms_norm" and "eps" not in tensors:
        tensors["eps"] = float(np.finfo(samples.statistics_dtype(dtype)).eps)
    leaves = [wide]
    if name in FUSED:
        of = arguments.get("normalized_shape", shape[1:2])
        for key in ("weight", "bias")[: 1 if name == "rms_norm" else 2]:
            if tensors.get(key) is None:
                tensors[key] = torch.full(of, 1.0 if key == "weight" else 0.0, dtype=torch.float64)
            leaves.append(tensors[key].requires_grad_())
    y, _ = peer(name, wide, tensors)
    wanted = [value.numpy() for value in torch.autograd.grad(y, leaves, tensor(first(grad).astype(np.float64)))]
    stats = statistics_of(name, x, arguments, **place)
    options = {"backend": backend, "threads": threads, **place}
    enlarged = spread(name, first(x), arguments)
    if out == "grad" and other in WRITABLE:
        options["out"] = grad
    elif out == "x" and arrangement in WRITABLE:
        options["out"] = x
    elif out == "own":
        options["out"] = np.zeros(x.shape, x.dtype)
    before = x.copy(), grad.copy()
    results = backward(name, grad, x, arguments, stats, **options)
    if options.get("out") is not None:
        assert results[0] is options["out"]
    if options.get("out") is not x:
        assert_same_bits(x, before[0])
    if options.get("out") is not grad:
        assert_same_bits(grad, before[1])
    assert len(results) == len(wanted)
    kinds = [samples.dtype_of(dtype), samples.statistics_dtype(dtype), samples.statistics_dtype(dtype)]
    for one, other, kind in zip((first(results[0]), *results[1:]), wanted, kinds, strict=False):
        assert one.dtype == kind
        terms = x.size // max(other.size, 1) * 8
        limits = ops.gradient_tolerance(kind.name, max(terms, 8 * len(shape)))
        if dtype == "float64":
            limits = {"rtol": 1e-10, "atol": 1e-10}
        scale = enlarged**2 if dtype == "float64" else enlarged**2 * 4
        assert_close(one, other, rtol=limits["rtol"], atol=limits["atol"] * scale)


@pytest.mark.peer
@by_call
def test_agrees_with_autograd(name, number, any_dtype, backend):
    arrangements = [key for key in ARRANGEMENTS if not key.startswith("byte")]
    draws = rotate(range(12), arrangements, arrangements, (None, "x", "grad", "own"), (1, 2), seed=number + 5)
    for shape, choice in zip(shapes_of(name, number, any_dtype), draws, strict=False):
        try:
            assert_call(name, number, shape, any_dtype, backend, choice)
        except AssertionError as problem:
            problem.add_note(f"{shape}, {choice}")
            raise


TINY = {
    "batch_norm": (3, 2, 3),
    "instance_norm": (2, 3, 4),
    "group_norm": (2, 4, 3),
    "layer_norm": (3, 5),
    "rms_norm": (3, 5),
    "local_response_norm": (2, 7, 2),
    "normalize": (3, 4, 2),
}


@by_call
def test_agrees_with_central_differences(name, number, backend):
    """d sum(g y) / dx, one element at a time; no PyTorch needed."""
    shape = TINY[name]
    rng = np.random.default_rng(number)
    arguments = arguments_of(name, number, shape, "float64", rng)
    x, grad = rng.normal(1, 2, shape), rng.normal(size=shape)
    step = 1e-6

    def loss(inputs):
        mine = {key: value.copy() if isinstance(value, np.ndarray) else value for key, value in inputs.items()}
        return float((grad * call(name, mine.pop("x"), mine, backend="numpy")).sum())

    results = backward(name, grad, x, arguments, statistics_of(name, x, arguments), backend=backend)
    inputs = {"x": x, **arguments}
    for key, result in zip(("x", "weight", "bias"), results, strict=False):
        if inputs.get(key) is None:
            continue
        for at in np.ndindex(inputs[key].shape):
            lower, upper = ({**inputs, key: inputs[key].copy()} for _ in range(2))
            lower[key][at] -= step
            upper[key][at] += step
            assert_close(result[at], (loss(upper) - loss(lower)) / (2 * step), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
@pytest.mark.parametrize("name", FUSED)
def test_the_number_of_threads_changes_no_bit(name, layout, any_dtype, compiled):
    for shape in ((8, 33, 31, 30), (3, 64, 14, 14), (300, 96)):
        rng = np.random.default_rng(3)
        of = shape[1:2] if name in BY_CHANNEL else shape[-1:]
        if name == "instance_norm" and len(shape) < 3:
            continue
        place = {"layout": layout if len(shape) == 4 else "channels_first"} if name in BY_CHANNEL else {}
        x, grad = (rng.normal(2, 2, shape).astype(samples.dtype_of(any_dtype)) for _ in range(2))
        if place.get("layout") == "NHWC":
            x, grad = samples.arrange(x, layout), samples.arrange(grad, layout)
        arguments = {"weight": rng.normal(1, 0.3, of).astype(samples.statistics_dtype(any_dtype))}
        if name == "batch_norm":
            arguments |= {"running_mean": None, "running_var": None, "training": True}
        if name == "group_norm":
            arguments["num_groups"] = next(n for n in (32, 11) if of[0] % n == 0)
        if name not in BY_CHANNEL:
            arguments["normalized_shape"] = of
        stats = statistics_of(name, x, arguments, **place)
        first = backward(name, grad, x, arguments, stats, threads=1, backend=compiled, **place)
        for threads in (1, 2, 2, 3):
            assert_all(assert_same_bits, backward(name, grad, x, arguments, stats, threads=threads, backend=compiled, **place), first)
        for into in ("grad", "x"):
            mine = {"grad": grad.copy(), "x": x.copy()}
            results = backward(name, mine["grad"], mine["x"], arguments, stats, out=mine[into], backend=compiled, **place)
            assert_all(assert_same_bits, results, first)


@pytest.mark.parametrize("name", FUSED)
@pytest.mark.parametrize("narrow", ["float16", "bfloat16", "float32"])
def test_parameters_gradients_have_the_weights_dtype(name, narrow, backend):
    """Else that of the statistics."""
    if narrow == "bfloat16":
        pytest.importorskip("ml_dtypes")
    kind = samples.dtype_of(narrow)
    rng = np.random.default_rng(0)
    x, grad = (rng.normal(size=(4, 6, 5)).astype(kind) for _ in range(2))
    arguments = {"batch_norm": {"running_mean": None, "running_var": None, "training": True}, "group_norm": {"num_groups": 3}}.get(name, {})
    of = (6,)
    if name not in BY_CHANNEL:
        arguments["normalized_shape"] = of = (5,)
    stats = statistics_of(name, x, arguments)
    wide = backward(name, grad, x, {**arguments, "weight": np.ones(of, np.float32)}, stats, backend=backend)
    own = backward(name, grad, x, {**arguments, "weight": np.ones(of, kind)}, stats, backend=backend)
    none = backward(name, grad, x, arguments, stats, backend=backend)
    for results, wanted in ((wide, np.float32), (own, kind), (none, np.float32)):
        assert results[0].dtype == kind
        assert {(value.dtype, value.shape) for value in results[1:]} == {(np.dtype(wanted), of)}
    assert_all(assert_same_bits, own, [wide[0], *(value.astype(kind) for value in wide[1:])])
    assert_all(assert_same_bits, none[1:], wide[1:])


@pytest.mark.parametrize("training", [False, True])
def test_a_gradient_of_another_order_of_axes(training, backend):
    """The result has memory of its own, whose order is that of neither argument by necessity."""
    rng = np.random.default_rng(0)
    x, grad = (rng.normal(size=(3, 4, 5, 6)) for _ in range(2))
    turned = np.asfortranarray(grad)
    mean, rstd = np.zeros(4), np.ones(4)
    wanted = cn.batch_norm_backward(grad, x, mean, rstd, training=training, backend=backend)
    results = cn.batch_norm_backward(turned, x, mean, rstd, training=training, backend=backend)
    assert_all(assert_close, results, wanted, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("shape", [(0, 6, 4), (2, 6, 0), (0, 6, 2, 2)], ids=str)
@pytest.mark.parametrize(("name", "number"), [(name, i) for name, i in ALL if CALLS[name][i][1].get("p", 2.0) == 2.0], ids=str)
def test_empty_batches_give_zeros(name, number, shape, any_dtype, backend):
    arguments = arguments_of(name, number, shape, any_dtype, np.random.default_rng(0))
    x = np.zeros(shape, samples.dtype_of(any_dtype))
    stats = statistics_of(name, x, arguments)
    grad_x, *parameters = backward(name, x, x, arguments, stats, backend=backend)
    assert (grad_x.shape, grad_x.dtype) == (shape, x.dtype)
    for value in parameters:
        assert_same_bits(value, np.zeros(arguments.get("normalized_shape", shape[1:2]), samples.statistics_dtype(any_dtype)))


def test_backends_agree_on_a_wide_window(compiled):
    """Wider than the ring of the kernels' gradient: computed otherwise, with the same meaning."""
    rng = np.random.default_rng(0)
    x, grad = (rng.normal(size=(1, 9000, 2)) for _ in range(2))
    wanted = cn.local_response_norm_backward(grad, x, 9500, 0.1, backend="numpy")
    assert_close(cn.local_response_norm_backward(grad, x, 9500, 0.1, backend=compiled), wanted, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("size", [1, 3])
def test_local_response_of_large_values(size, backend):
    """d^(-beta - 1) is 1e-45 where x is 1e13: the gradient is 1e-19 and more, and right."""
    x = np.random.default_rng(0).uniform(1e12, 1e13, (2, 5, 7)).astype(np.float32)
    grad = np.random.default_rng(1).uniform(1, 2, x.shape).astype(np.float32)
    wanted = cn.local_response_norm_backward(grad.astype(np.float64), x.astype(np.float64), size, 1.0, backend="numpy")
    result = cn.local_response_norm_backward(grad, x, size, 1.0, backend=backend)
    assert_close(result, wanted, rtol=1e-5, atol=1e-5 * np.abs(wanted).max())
