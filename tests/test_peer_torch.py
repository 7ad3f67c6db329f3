"""Against PyTorch: torch.nn.functional.batch_norm of x.double(), rounded once, and everything that it refuses."""

import itertools

import numpy as np
import pytest
from helpers import ARRANGEMENTS, LAYOUTS, PARAMETERS, arguments, assert_close, normal, run, shape_for

import cpunorm as cn
from cpunorm import samples

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.peer
torch.set_num_threads(1)  # small arrays
TOLERANCE = {"float32": {"rtol": 1e-5, "atol": 1e-6}, "float64": {"rtol": 1e-12, "atol": 1e-12}}
RUNNING = PARAMETERS[:2]
GIVEN = [rest for count in range(3) for rest in itertools.combinations(PARAMETERS[2:], count)]


def theirs(x, parameters, **options):
    """y, running_mean and running_var of PyTorch in x's dtype, computed in float64; x is channels first."""
    tensors = {name: None if value is None else torch.from_numpy(value.astype(np.float64)) for name, value in parameters.items()}
    y = torch.nn.functional.batch_norm(torch.from_numpy(np.ascontiguousarray(x, dtype=np.float64)), **tensors, **options)
    running = [None if tensors[name] is None else tensors[name].numpy() for name in PARAMETERS[:2]]
    return [None if value is None else value.astype(x.dtype.newbyteorder("=")) for value in (y.numpy(), *running)]


def assert_agrees(x, parameters, *, layout, backend, **options):
    y, _, _, *running = run(x, parameters, layout=layout, backend=backend, **options)
    peer = theirs(samples.channels_first(x, layout), parameters, **options)
    for one, other in zip((samples.channels_first(y, layout), *running), peer, strict=True):
        if other is None:
            assert one is None
        else:
            assert_close(one, other, **TOLERANCE[x.dtype.name])


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts_and_strides(layout, dtype, training, backend):
    shape = shape_for(layout)
    for name, arrange in ARRANGEMENTS.items():
        x = arrange(samples.arrange(normal(shape, dtype), layout))
        try:
            assert_agrees(x, arguments(shape[1], dtype), layout=layout, backend=backend, training=training)
        except AssertionError as problem:
            problem.add_note(f"x: {name}")
            raise


@pytest.mark.parametrize("given", GIVEN, ids="+".join)
@pytest.mark.parametrize("layout", ["NC", "NCL", "NHWC"])
@pytest.mark.parametrize(
    ("training", "running"), [(False, RUNNING), (True, RUNNING), (True, ())], ids=["inference", "training", "batch only"]
)
def test_optional_parameters(given, layout, dtype, training, running, backend):
    shape = shape_for(layout)
    options = {"training": training, "momentum": 0.3, "eps": 1e-3}
    x = samples.arrange(normal(shape, dtype), layout)
    assert_agrees(x, arguments(shape[1], dtype, given=(*running, *given)), layout=layout, backend=backend, **options)


@pytest.mark.parametrize(
    "shape", [(0, 3, 4, 5), (2, 3, 0, 5), (0, 3), (3, 1, 2), (1, 3, 2, 1), (1, 1, 5), (2, 1), (2, 3, 1, 1, 1)], ids=str
)
@pytest.mark.parametrize("layout", ["channels_first", "channels_last"])
def test_empty_and_small(shape, layout, dtype, training, backend):
    x = samples.arrange(normal(shape, dtype), layout)
    assert_agrees(x, arguments(shape[1], dtype), layout=layout, backend=backend, training=training)


@pytest.mark.parametrize("momentum", [0.0, 1.0, -0.5, 1.5, 1])
def test_momentum(momentum, dtype, backend):
    assert_agrees(normal((3, 4, 5), dtype), arguments(4, dtype), layout="NCL", backend=backend, training=True, momentum=momentum)


@pytest.mark.parametrize("eps", [0.0, 1e-12, 1.0, 1e3])
def test_eps_of_inference(eps, dtype, backend):
    assert_agrees(normal((3, 4, 5), dtype), arguments(4, dtype), layout="NCL", backend=backend, eps=eps)


def test_negative_running_variance_gives_nan(dtype, backend):
    parameters = {**arguments(4, dtype), "running_var": -np.ones(4, dtype)}
    assert_agrees(normal((3, 4, 5), dtype), parameters, layout="NCL", backend=backend)


def test_zero_weight_and_large_bias(dtype, backend, training):
    parameters = {**arguments(4, dtype), "weight": np.zeros(4, dtype), "bias": np.full(4, 1e6, dtype)}
    assert_agrees(normal((3, 4, 5), dtype), parameters, layout="NCL", backend=backend, training=training)


def _x(*shape, dtype=np.float32):
    return np.ones(shape, dtype)


REFUSED = {
    "rank 0": {"x": _x()},
    "rank 1": {"x": _x(3)},
    "x int": {"x": _x(2, 3, 4, dtype=np.int32)},
    "x bool": {"x": _x(2, 3, 4, dtype=np.bool_)},
    "x complex": {"x": _x(2, 3, 4, dtype=np.complex64)},
    "x list": {"x": [[1.0, 2.0, 3.0]]},
    "x float64, parameters float32": {"x": _x(2, 3, 4, dtype=np.float64)},
    "running statistics float64": {"running_mean": _x(3, dtype=np.float64), "running_var": _x(3, dtype=np.float64)},
    "running_var float64": {"running_var": _x(3, dtype=np.float64)},
    "weight float64": {"weight": _x(3, dtype=np.float64)},
    "bias int": {"bias": _x(3, dtype=np.int64)},
    "running_mean short": {"running_mean": _x(2)},
    "running_var long": {"running_var": _x(4)},
    "weight long": {"weight": _x(4)},
    "weight of one": {"weight": _x(1)},
    "bias empty": {"bias": _x(0)},
    "running statistics 2-D": {"running_mean": _x(3, 1), "running_var": _x(3, 1)},
    "no statistics": {"running_mean": None, "running_var": None},
    "no running_var": {"running_var": None},
    "no running_mean, training": {"running_mean": None, "training": True},
    "no running_var, training": {"running_var": None, "training": True},
    "one value a channel": {"x": _x(1, 3, 1, 1), "training": True},
    "one value a channel, rank 2": {"x": _x(1, 3), "training": True},
    "eps negative": {"eps": -1.0},
    "eps 0, training": {"eps": 0.0, "training": True},
    "eps negative, training": {"eps": -1e-5, "training": True},
    "eps text": {"eps": "1e-5"},
    "eps None": {"eps": None},
    "momentum text": {"momentum": "0.1"},
    "momentum None": {"momentum": None},
    "momentum None, training": {"momentum": None, "training": True},
    "momentum complex": {"momentum": 0.1j},
    "training text": {"training": "yes"},
    "training None": {"training": None},
    "weight a number": {"weight": 1.0},
}


@pytest.mark.parametrize("change", REFUSED.values(), ids=REFUSED)
def test_what_pytorch_refuses_is_refused(change, backend):
    given = {"x": normal((2, 3, 4), "float32"), **arguments(3, "float32"), **change}
    tensors = {name: torch.from_numpy(value) if isinstance(value, np.ndarray) else value for name, value in given.items()}
    with pytest.raises((RuntimeError, ValueError, TypeError)):  # NotImplementedError is a RuntimeError
        torch.nn.functional.batch_norm(tensors.pop("x"), **tensors)
    with pytest.raises((ValueError, TypeError), match="batch_norm: "):
        cn.batch_norm(**given, backend=backend)
