"""cpunorm.torch: functions against torch.nn.functional in float64, and their gradients."""

import functools
import inspect
import itertools
import sys

import numpy as np
import pytest
from helpers import python
from torch_cases import CLOSE, FORMATS, NORMS, ROWS, SHAPE, ct, functional, inputs_of, off, torch, wide

import cpunorm as cn
from cpunorm.torch import arrays

pytestmark = [pytest.mark.peer, pytest.mark.usefixtures("one_torch_thread")]
ACTIVATIONS = (None, "relu", "relu6", "silu", "hardswish")


def expected(name, x, residual, parameters, activation):
    """PyTorch's, in float64: y and the leaves that gradients are of."""
    (x, residual), keys = wide(x, residual), list(parameters)
    leaves = dict(zip(keys, wide(*parameters.values()), strict=True))
    given, _, options = NORMS[name]
    given = [(value,) if name == "rms_norm" else value for value in given]
    h = x + residual if name in ROWS else x
    y = getattr(functional, name)(h, *given, **leaves, **options)
    y = y if name in ROWS else y + residual
    y = y if activation is None else getattr(functional, activation)(y)
    return y, [x, residual, *leaves.values()]


@pytest.mark.parametrize("memory", FORMATS.values(), ids=FORMATS)
@pytest.mark.parametrize("dtype", CLOSE, ids=str)
@pytest.mark.parametrize("name", NORMS)
def test_norms_and_their_gradients(name, dtype, memory):
    for activation in ACTIVATIONS:
        x, residual, parameters = inputs_of(name, dtype, memory)
        given, _, options = NORMS[name]
        wanted, leaves = expected(name, x, residual, parameters, activation)
        ours = {**parameters, **options, "residual": residual, "activation": activation}
        with torch.no_grad():
            alone = getattr(ct, name)(x, *given, **ours)
        y, *stats = getattr(ct, name)(x, *given, **ours, return_stats=True)
        assert y.dtype == dtype
        assert torch.allclose(y, alone, rtol=1e-2 if dtype.itemsize == 2 else 1e-5, atol=CLOSE[dtype])
        assert not any(value.requires_grad for value in stats)
        assert y.is_contiguous(memory_format=torch.contiguous_format if name in ROWS else memory)
        assert off(y, wanted) < CLOSE[dtype], activation
        if activation == "hardswish" and dtype.itemsize == 2:
            continue  # its derivative jumps at -3 and 3, to which values are rounded
        grad = torch.randn(SHAPE).to(dtype)
        y.backward(grad)
        wanted.backward(grad.double())
        for mine, other in zip((x, residual, *parameters.values()), leaves, strict=True):
            assert mine.grad.dtype == dtype
            scale = other.grad.abs().max()  # sums over a hundred values
            assert off(mine.grad / scale, other.grad / scale) < 8 * CLOSE[dtype], (activation, tuple(mine.shape))


@pytest.mark.parametrize("memory", FORMATS.values(), ids=FORMATS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_running_statistics(dtype, memory):
    for name, flag in (("batch_norm", "training"), ("instance_norm", "use_input_stats")):
        x = torch.randn(SHAPE, dtype=dtype).to(memory_format=memory)
        for own in (True, False):
            mine = [torch.full((8,), 0.5, dtype=dtype), torch.full((8,), 2.0, dtype=dtype)]
            theirs = [value.clone() for value in mine]
            version = mine[0]._version
            y = getattr(ct, name)(x, *mine, **{flag: own})
            wanted = getattr(functional, name)(x, *theirs, **{flag: own})
            assert mine[0]._version == version + own
            for one, other in zip((y, *mine), (wanted, *theirs), strict=True):
                assert off(one, other.double()) < CLOSE[dtype]


@pytest.mark.parametrize("dtype", [*CLOSE, torch.uint8], ids=str)
def test_functions_of_x_alone(dtype):
    x = (torch.rand(2, 7, 5, 4) * 9).to(dtype)
    mean, var = ct.mean_var(x, (0, 2), ddof=1)
    assert off(mean, x.double().mean((0, 2))) < 1e-6
    assert off(var, x.double().var((0, 2))) < 1e-6
    if not dtype.is_floating_point:
        return
    for name, given in (("normalize", ()), ("normalize", (3.0, -1)), ("local_response_norm", (3, 0.5, 0.75, 1.0))):
        for memory in FORMATS.values():
            mine = x.detach().clone(memory_format=memory).requires_grad_()
            (theirs,) = wide(mine)
            y, wanted = getattr(ct, name)(mine, *given), getattr(functional, name)(theirs, *given)
            assert y.is_contiguous(memory_format=memory)
            assert off(y, wanted) < CLOSE[dtype]
            grad = torch.randn(y.shape).to(dtype)
            y.backward(grad)
            wanted.backward(grad.double())
            assert off(mine.grad, theirs.grad) < 4 * CLOSE[dtype]


def test_no_copy_and_in_place():
    """The kernels read and write the tensors' memory."""
    x = torch.randn(SHAPE).to(memory_format=torch.channels_last)
    wanted = ct.group_norm(x, 4)
    pointer = x.data_ptr()
    assert ct.group_norm(x, 4, out=x) is x
    assert x.data_ptr() == pointer
    assert torch.equal(x, wanted)
    for dtype in CLOSE:
        value = torch.zeros(2, 3, dtype=dtype).t()
        seen = arrays.array("test", "x", value)
        assert seen.ctypes.data == value.data_ptr()
        assert [step // seen.itemsize for step in seen.strides] == list(value.stride())
        seen[...] = 1.5
        assert (value == 1.5).all()


def test_out_is_seen_by_autograd():
    """Who saved a buffer for his gradient learns that it was overwritten."""
    x = torch.randn(SHAPE)
    _, mean, rstd = ct.group_norm(x, 4, return_stats=True)
    for write in (
        lambda out: ct.group_norm(x, 4, out=out),
        lambda out: ct.normalize(x, out=out),
        lambda out: ct.normalize_backward(x, x, out=out),
        lambda out: ct.group_norm_backward(x, x, 4, mean, rstd, out=out),
    ):
        buffer, factor = torch.randn(SHAPE), torch.ones(SHAPE, requires_grad=True)
        y = (factor * buffer).sum()
        write(buffer)
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            y.backward()


@pytest.mark.parametrize("name", NORMS)
def test_gradcheck(name):
    given, _, options = NORMS[name]
    for memory, activation in itertools.product(FORMATS.values(), (None, "relu", "silu")):
        x, residual, parameters = inputs_of(name, torch.float64, memory)
        x, residual = (value.detach()[:2, :, :2].to(memory_format=memory).requires_grad_() for value in (x, residual))
        if name == "layer_norm":
            given, parameters = ((2, 6),), {key: value.detach()[:2].requires_grad_() for key, value in parameters.items()}

        def call(x, residual, *values, given=given, parameters=parameters, activation=activation):
            more = {"return_sum": True} if name in ROWS else {}
            named = dict(zip(parameters, values, strict=True))
            found = getattr(ct, name)(x, *given, **named, **options, **more, residual=residual, activation=activation)
            return (*found, found[0] * found[1]) if more else found  # each alone, and both in one

        assert torch.autograd.gradcheck(call, (x, residual, *parameters.values()))


def test_gradcheck_of_x_alone():
    x = torch.randn(2, 5, 3, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: ct.local_response_norm(x, 3, 1.0, 0.75, 1.0), (x,))
    assert torch.autograd.gradcheck(ct.normalize, (x,))
    assert torch.autograd.gradcheck(lambda x: ct.mean_var(x, (0, 2), ddof=1), (x,))
    assert torch.autograd.gradcheck(lambda x: ct.mean_var(x, keepdims=True), (x,))


@pytest.mark.parametrize("memory", FORMATS.values(), ids=FORMATS)
@pytest.mark.parametrize("name", NORMS)
def test_addresses_and_arrays_give_the_same_bits(name, memory):
    """The way by addresses takes what has no gaps; what changes after it was prepared goes by arrays."""
    straight = pytest.importorskip("cpunorm.torch.straight")
    pytest.importorskip("cpunorm.native")
    given, _, options = NORMS[name]
    taken = []

    def run(by_arrays, change=lambda *values: values):
        torch.manual_seed(1)
        x, residual, parameters = change(*inputs_of(name, torch.float32, memory))
        with pytest.MonkeyPatch.context() as patch:
            for way in ("forward", "backward"):
                kept = getattr(straight, way)

                def watched(*arguments, kept=kept):
                    taken.append(None if by_arrays else kept(*arguments))
                    return taken[-1]

                patch.setattr(straight, way, watched)
            y = getattr(ct, name)(x, *given, **parameters, **options, residual=residual, activation="relu", backend="c")
            y.backward(torch.randn(SHAPE, generator=torch.Generator().manual_seed(2)))
        return [y, *(value.grad for value in (x, residual, *parameters.values()))]

    def wider(x, residual, parameters):  # the same values, parameters of which every second is one
        wide_ones = {k: v.detach().repeat_interleave(2, -1)[..., ::2].requires_grad_() for k, v in parameters.items()}
        return x, residual, wide_ones

    def apart(x, residual, parameters):
        return x, residual.detach().repeat_interleave(2, -1)[..., ::2].requires_grad_(), parameters

    def same(*values):
        return values

    wanted = run(True)
    straight._calls.clear()
    for change in (wider, apart, same, wider):  # what came first does not decide for what comes later
        taken.clear()
        assert all(torch.equal(a, b) for a, b in zip(run(False, change), wanted, strict=True))
        straightly = [value is not None for value in taken]
        assert straightly == ([False, False] if change is wider else [True, True]), change


def test_gradients_by_hand():
    """The backward functions on tensors are what autograd calls."""
    for name, (given, _, options) in NORMS.items():
        x, _, parameters = inputs_of(name, torch.float32)
        y, *stats = getattr(ct, name)(x, *given, **parameters, **options, return_stats=True)
        grad = torch.randn(SHAPE)
        y.backward(grad)
        sizes = given if name in ("group_norm", *ROWS) else ()
        found = getattr(ct, f"{name}_backward")(grad, x.detach(), *sizes, *stats, parameters["weight"].detach())
        for mine, wanted in zip(found, (x, *parameters.values()), strict=True):
            assert torch.equal(mine, wanted.grad)
        with pytest.raises(RuntimeError, match="detach"):
            getattr(ct, f"{name}_backward")(grad, x, *sizes, *stats)


@pytest.mark.filterwarnings("ignore:.torch.jit.script:DeprecationWarning")  # forward mode's own
def test_refused():
    x = torch.randn(SHAPE, requires_grad=True)
    y = ct.group_norm(x, 4).sum()
    (grad,) = torch.autograd.grad(y, x, create_graph=True)
    with pytest.raises(RuntimeError, match="second derivatives"):
        grad.sum().backward()
    with pytest.raises(RuntimeError, match="out="):
        ct.group_norm(x, 4, out=torch.empty(SHAPE))
    with pytest.raises(TypeError, match=r"dense CPU tensor.*ndarray"):
        ct.batch_norm(np.ones(SHAPE, np.float32), None, None, training=True)
    with pytest.raises(TypeError, match="meta"):
        ct.group_norm(torch.empty(SHAPE, device="meta"), 4)
    with pytest.raises(ValueError, match="num_groups"):
        ct.group_norm(x, 3)
    with pytest.raises(ValueError, match="activation"):
        ct.group_norm(x, 4, activation="gelu")
    for wrong in ({"residual": x.double()}, {"residual": x[1:]}, {"weight": torch.ones(7)}, {"weight": torch.ones(8).int()}):
        fitting = {"residual": x, "weight": torch.ones(8)}
        ct.group_norm(x, 4, **{key: fitting[key] for key in wrong})  # what was prepared for this does not take the other
        with pytest.raises((ValueError, TypeError), match=r"residual|weight"):
            ct.group_norm(x, 4, **wrong)
    with pytest.raises(TypeError, match="float"):
        ct.layer_norm(torch.ones(2, 3, dtype=torch.int64), 3)
    with torch.autograd.forward_ad.dual_level(), pytest.raises((RuntimeError, NotImplementedError), match=r"jvp|forward"):
        ct.group_norm(torch.autograd.forward_ad.make_dual(x.detach(), torch.ones(SHAPE)), 4)


# ---------------------------------------------------------------- pictures, folding


@pytest.mark.parametrize("name", [name for name in cn.__all__ if name[0].islower() and name in ct.__all__])
def test_arguments_are_those_of_the_functions_on_arrays(name):
    mine, theirs = (inspect.signature(getattr(module, name)).parameters for module in (ct, cn))
    assert list(mine) == list(theirs)
    for key, value in mine.items():
        assert value.kind == theirs[key].kind
        assert key == "dtype" or value.default == theirs[key].default


def test_no_function_is_missing():
    settings = {"config", "set_backend", "set_num_threads", "show_config"}
    assert {name for name in cn.__all__ if name[0].islower()} - settings <= set(ct.__all__)


PICTURES = torch.randint(0, 256, (2, 9, 12, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
HOW = (
    {},
    {"size": (5, 6), "swap_rb": True, "mirror": (True, False), "pad_channels": 4, "output_layout": "NHWC"},
    {"size": ("short", 6), "crop": ("center", 4, 5), "mirror": True, "dtype": torch.bfloat16},
    {"crop": (1, 2, 5, 6), "scale": 0.5, "dtype": torch.int8, "quant": (0.1, 3)},
)


@pytest.mark.parametrize("how", HOW, ids=str)
def test_pictures(how):
    """The bits of `cpunorm.preprocess`, at once and compiled; read and written where they are."""
    mean, std = (0.1, 0.2, 0.3), torch.tensor([0.5, 0.25, 0.125])
    on_arrays = how | {"dtype": str(how.get("dtype", torch.float32)).removeprefix("torch."), "backend": arrays.backend(None)}
    wanted = cn.preprocess(PICTURES.numpy(), mean, std.numpy(), **on_arrays)
    y = ct.preprocess(PICTURES, mean, std, **how)
    assert y.dtype == how.get("dtype", torch.float32)
    assert arrays.array("test", "y", y).tobytes() == wanted.tobytes()
    plan, out = ct.Preprocessor(mean, std, **how), torch.empty_like(y)
    version = out._version
    assert plan([*PICTURES], out=out) is out
    assert out._version == version + 1
    assert torch.equal(out, y)
    numbers = std.tolist()
    compiled = torch.compile(lambda *images: ct.preprocess(list(images), mean, numbers, **how), backend="aot_eager", fullgraph=True)
    assert torch.equal(compiled(*PICTURES), y)
    crop = PICTURES[:, 1:, :-2].permute(0, 3, 1, 2)
    assert torch.equal(*(ct.preprocess(x, mean, std, **{**how, "crop": None, "input_layout": "NCHW"}) for x in (crop, crop.contiguous())))


def test_pictures_refused():
    with pytest.raises(RuntimeError, match="detach"):
        ct.preprocess(torch.zeros(4, 4, 3, requires_grad=True), 0.5, 0.5)
    with pytest.raises(TypeError, match=r"images\[1\] to be a dense CPU tensor.*ndarray"):
        ct.preprocess([PICTURES[0], PICTURES[1].numpy()], 0.5, 0.5)
    with pytest.raises(TypeError, match=r"torch\.dtype"):
        ct.Preprocessor(0.5, 0.5, dtype=np.float32)
    with pytest.raises(ValueError, match="std"):
        ct.Preprocessor(0.5, -1.0)


FOLDED = (((6, 4, 3), False), ((6, 4), False), ((4, 3, 2), True), ((4, 6, 2, 1), True))  # (shape of a weight of 6 channels, transposed)


def batch_norm_and_layer(shape, full):
    torch.manual_seed(0)
    given = [torch.randn(shape, dtype=torch.float64), *(torch.rand(6, dtype=torch.float64) + 0.3 for _ in range(5))]
    return [value.requires_grad_() if full or i in (0, 2, 3) else None for i, value in enumerate(given)]


@pytest.mark.parametrize("full", [True, False], ids=["all", "no affine, no bias"])
@pytest.mark.parametrize(("shape", "transposed"), FOLDED, ids=str)
def test_folding(shape, transposed, full):
    given = batch_norm_and_layer(shape, full)
    found = ct.fold_batch_norm(*given, 1e-3, transposed=transposed)
    wanted = cn.fold_batch_norm(*(None if value is None else value.detach().numpy() for value in given), 1e-3, transposed=transposed)
    for mine, other in zip(found, wanted, strict=True):
        assert np.array_equal(mine.detach().numpy(), other)
    call = functools.partial(ct.fold_batch_norm, eps=1e-3, transposed=transposed)
    assert torch.autograd.gradcheck(call, given)
    assert torch.autograd.gradgradcheck(call, given)


def test_folding_keeps_the_memory_format():
    given = batch_norm_and_layer((6, 4, 3, 2), True)
    with torch.no_grad():
        weight, bias = ct.fold_batch_norm(given[0].half().to(memory_format=torch.channels_last), *given[1:])
    assert weight.is_contiguous(memory_format=torch.channels_last)
    assert (weight.dtype, bias.dtype) == (torch.float16, torch.float64)
    with pytest.raises(TypeError, match="running_mean to be a tensor"):
        ct.fold_batch_norm(given[0], None, given[2].detach().numpy(), *given[3:])


# ---------------------------------------------------------------- imports


def test_cpunorm_does_not_import_torch():
    assert python("import sys, cpunorm; print('torch' in sys.modules)") == "False"


def test_without_torch_it_is_named():
    code = "import sys; sys.modules['torch'] = None\ntry:\n import cpunorm.torch\nexcept ImportError as e: print(e)"
    assert "pip install 'cpunorm[torch]'" in python(code)


def test_backend_is_c_unless_configured():
    from cpunorm import backends

    try:
        backends.load("c")
    except ImportError as problem:
        pytest.skip(str(problem))
    assert arrays.backend("numpy") == "numpy"
    with cn.config(backend="numpy"):
        assert arrays.backend(None) == "numpy"
    if not sys.flags.ignore_environment and not __import__("os").environ.get("CPUNORM_BACKEND"):
        assert arrays.backend(None) == "c"
