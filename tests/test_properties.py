"""Any shape, layout, strides, values and options, against the float64 reference."""

import warnings

import numpy as np
from helpers import PARAMETERS, assert_all, assert_close, assert_same_bits, expected, run
from hypothesis import event, given
from hypothesis import strategies as st

import cpunorm as cn
from cpunorm.layout import parse_layout

SIZES = st.sampled_from([0, 1, 1, 2, 2, 3, 3, 4, 5, 6, 7, 7, 37, 1027])
LARGEST = 60_000  # elements
KINDS = {
    "normal": lambda rng, shape: rng.normal(rng.normal(0, 5), 1, shape),
    "far": lambda rng, shape: rng.normal(1e4, 1, shape),
    "constant": lambda rng, shape: np.full(shape, rng.normal(0, 1e3)),
    "subnormal": lambda rng, shape: rng.normal(0, 1e-40, shape),
    "large": lambda rng, shape: rng.normal(0, 1e30, shape),
    "integers": lambda rng, shape: rng.integers(-5, 6, shape),
    "outliers": lambda rng, shape: rng.normal(0, 1, shape) * 10.0 ** rng.integers(-6, 7, shape),
}


@st.composite
def arrays(draw, rank=None):
    """(x, rng): an array with any order of axes in memory, steps, gaps and broadcasts."""
    rank = rank or draw(st.integers(2, 5))
    shape = draw(st.lists(SIZES, min_size=rank, max_size=rank))
    while np.prod(shape) > LARGEST:
        shape[int(np.argmax(shape))] //= 8
    dtype = draw(st.sampled_from(["float32", "float64"]))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    kind = draw(st.sampled_from(sorted(KINDS)))
    values = np.asarray(KINDS[kind](rng, shape)).astype(dtype)
    order = draw(st.permutations(range(rank)))
    steps = draw(st.lists(st.sampled_from([1, 1, 1, 1, 2, -1, -2]), min_size=rank, max_size=rank))
    gaps = draw(st.lists(st.sampled_from([0, 0, 0, 1, 3]), min_size=rank, max_size=rank))
    space = np.zeros([shape[axis] * abs(steps[axis]) + gaps[axis] for axis in order], dtype).transpose(np.argsort(order))
    x = space[tuple(slice(0, size * abs(step), abs(step)) for size, step in zip(shape, steps, strict=True))]
    x = x[tuple(slice(None, None, -1 if step < 0 else 1) for step in steps)]
    x[...] = values
    assert x.shape == tuple(shape)
    event(kind)
    return x, rng


@st.composite
def calls(draw):
    """Arguments of a batch norm, `parameters` and the others."""
    x, rng = draw(arrays())
    letters = "".join(draw(st.permutations("NC" + "DHW"[5 - x.ndim :])))
    layout = draw(st.sampled_from([letters, "channels_first", "channels_last"]))
    axis = parse_layout(layout, x.ndim).channel
    channels = x.shape[axis]
    training = draw(st.booleans()) and x.size != channels
    running = not training or draw(st.booleans())
    given = {name: running if name.startswith("running") else draw(st.booleans()) for name in PARAMETERS}
    made = {
        "running_mean": rng.normal(0, 1, channels),
        "running_var": rng.uniform(0.1, 2, channels),
        "weight": rng.normal(1, 0.5, channels),
        "bias": rng.normal(0, 1, channels),
    }
    parameters = {name: value.astype(x.dtype) if given[name] else None for name, value in made.items()}
    options = {
        "training": training,
        "layout": layout,
        "eps": draw(st.sampled_from([1e-5, 1e-3, 1.0])),
        "momentum": draw(st.sampled_from([0.1, 0.0, 1.0, 0.5])),
    }
    return x, parameters, options, axis


def assert_right(results, x, parameters, options, axis):
    """Each channel within 1e-5 (1e-12) of what it adds up: a large value lends its rounding to the small ones of its channel."""
    names = ("training", "layout", "eps", "momentum")
    wanted = expected(x, parameters, **{name: options[name] for name in names})
    tolerance = {"float32": 1e-5, "float64": 1e-12}[x.dtype.name]
    for one, other in zip(results, wanted, strict=True):
        if other is None:
            assert one is None
            continue
        if x.size == 0 and options["training"] and other.shape == (x.shape[axis],):
            continue  # tested in test_arrays: PyTorch's conventions, not the reference's NaN
        with np.errstate(over="ignore"):
            other = other.astype(x.dtype)
        scale = 1 + np.abs(other[np.isfinite(other)]).max(initial=0)
        assert_close(one, other, rtol=tolerance, atol=tolerance * min(scale, 1e3))


@given(calls(), st.sampled_from([1, 2]))
def test_batch_norm(backend, call, threads):
    x, parameters, options, axis = call
    assert_right(run(x, parameters, **options, threads=threads, backend=backend), x, parameters, options, axis)


@given(calls(), arrays())
def test_out(backend, call, other):
    """Into itself, and into memory of any other strides."""
    x, parameters, options, _ = call
    wanted = run(x, parameters, **options, backend=backend)
    out = np.full_like(x, 7)
    if other[0].ndim == x.ndim:
        order = sorted(range(x.ndim), key=lambda axis: -abs(other[0].strides[axis]))
        out = np.full([x.shape[axis] for axis in order], 7, x.dtype).transpose(np.argsort(order))
    assert_all(assert_close, run(x, parameters, **options, out=out, backend=backend)[:1], wanted[:1], rtol=1e-5, atol=1e-6)
    assert_all(assert_same_bits, run(x, parameters, **options, out=x, backend=backend)[:1], wanted[:1])


@given(arrays(), st.data())
def test_mean_var(backend, array, data):
    x, _ = array
    axis = data.draw(st.none() | st.sets(st.integers(-x.ndim, -1)).map(tuple))
    ddof, keepdims = data.draw(st.sampled_from([0, 1, 0.5])), data.draw(st.booleans())
    mean, var = cn.mean_var(x, axis, ddof=ddof, keepdims=keepdims, backend=backend)
    wide = x.astype(np.float64)
    with np.errstate(all="ignore"), warnings.catch_warnings(action="ignore"):  # of empty slices
        wanted = wide.mean(axis, keepdims=keepdims), wide.var(axis, ddof=ddof, keepdims=keepdims)
    size = np.abs(wide).max(initial=0)
    assert_close(mean, wanted[0], rtol=1e-6, atol=1e-7 * size)
    assert_close(var, wanted[1], rtol=1e-5, atol=1e-12 * size**2)
