"""cpunorm.torch: functions against torch.nn.functional in float64, gradients, operators, layers, whole models converted and back."""

import copy
import itertools
import pickle
import sys

import numpy as np
import pytest
from helpers import python

import cpunorm as cn

torch = pytest.importorskip("torch")
ct = pytest.importorskip("cpunorm.torch")
models = pytest.importorskip("torch_models")
is_fused = ct.convert.__globals__["fuse"].__globals__["is_fused"]
nn, functional = torch.nn, torch.nn.functional
pytestmark = pytest.mark.peer

FORMATS = {"contiguous": torch.contiguous_format, "channels last": torch.channels_last}
# of values around 1; of 16 bits one unit in the last place, and the rounding of what is compared with
CLOSE = {torch.float64: 1e-11, torch.float32: 2e-5, torch.float16: 4e-3, torch.bfloat16: 4e-2}
SHAPE = (3, 8, 5, 6)
NORMS = {  # name -> (positional arguments after x, sizes of parameters, whether statistics are by row)
    "batch_norm": ((None, None), 8, {"training": True}),
    "instance_norm": ((), 8, {}),
    "group_norm": ((4,), 8, {}),
    "layer_norm": (((5, 6),), (5, 6), {}),
    "rms_norm": ((6,), 6, {"eps": 1e-6}),
}
ROWS = ("layer_norm", "rms_norm")
ACTIVATIONS = (None, "relu", "relu6", "silu", "hardswish")


@pytest.fixture(autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    yield
    torch.set_num_threads(before)


def inputs_of(name, dtype, memory=torch.contiguous_format):
    """x, residual, and the parameters by name, all of which want gradients."""
    x, residual = ((torch.randn(SHAPE) * 2 + 1).to(dtype).to(memory_format=memory).requires_grad_() for _ in range(2))
    sizes = NORMS[name][1]
    parameters = {"weight": torch.randn(sizes).to(dtype).requires_grad_()}
    if name != "rms_norm":
        parameters["bias"] = torch.randn(sizes).to(dtype).requires_grad_()
    return x, residual, parameters


def wide(*tensors):
    return [tensor.detach().double().requires_grad_() for tensor in tensors]


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


def off(actual, wanted):
    return ((actual.double() - wanted).abs() / (1 + wanted.abs())).max().item() if wanted.numel() else 0.0


# ---------------------------------------------------------------- functions


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
    from cpunorm.torch import arrays

    for dtype in CLOSE:
        value = torch.zeros(2, 3, dtype=dtype).t()
        seen = arrays.array("test", "x", value)
        assert seen.ctypes.data == value.data_ptr()
        assert [step // seen.itemsize for step in seen.strides] == list(value.stride())
        seen[...] = 1.5
        assert (value == 1.5).all()


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
            return getattr(ct, name)(x, *given, **named, **options, **more, residual=residual, activation=activation)

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

    def run(by_arrays, change=lambda x, residual, parameters: (x, residual, parameters)):
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

    wanted = run(True)
    for change in (None, wider, apart):
        taken.clear()
        found = run(False, *([] if change is None else [change]))
        assert all(torch.equal(a, b) for a, b in zip(found, wanted, strict=True))
        straightly = [value is not None for value in taken]
        if change is None and (name not in ROWS or memory is torch.contiguous_format):
            assert all(straightly)
        if change is wider:
            assert not straightly[0]


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
    with pytest.raises(TypeError, match="float"):
        ct.layer_norm(torch.ones(2, 3, dtype=torch.int64), 3)
    with torch.autograd.forward_ad.dual_level(), pytest.raises((RuntimeError, NotImplementedError), match=r"jvp|forward"):
        ct.group_norm(torch.autograd.forward_ad.make_dual(x.detach(), torch.ones(SHAPE)), 4)


# ---------------------------------------------------------------- operators


def operator_calls():
    for name in NORMS:
        x, residual, parameters = inputs_of(name, torch.float32, torch.channels_last)
        tensors = (x, residual, *parameters.values())
        for activation in (None, "relu"):
            if name in ("batch_norm", "instance_norm"):
                running = torch.zeros(8), torch.ones(8)
                yield name, (*tensors, None, None, True, 1e-5, "NCHW", activation, None, None)
                yield name, (x, None, None, None, *running, False, 1e-5, "NCHW", activation, None, None)
            elif name == "group_norm":
                yield name, (*tensors, 4, 1e-5, "NCHW", activation, None, None)
            else:
                yield name, (*tensors, [5, 6] if name == "layer_norm" else [6], 1e-5, activation, None, None)
                yield name, (x, *[None] * (len(tensors) - 1), [6], 1e-5, activation, None, None)
    x = torch.randn(2, 6, 3, requires_grad=True)
    yield "update_running", (torch.zeros(3), torch.ones(3), torch.ones(3), torch.ones(3), 0.1)
    yield "mean_var", (x, [0, 2], 1.0, False, None, None)
    yield "normalize", (x, 2.0, [1], 1e-12, None, None)
    yield "local_response_norm", (x, 3, 1.0, 0.75, 1.0, "channels_first", None, None)


def test_opcheck():
    tests = ("test_schema", "test_autograd_registration", "test_faketensor", "test_aot_dispatch_static")
    for name, arguments in operator_calls():
        done = torch.library.opcheck(getattr(torch.ops.cpunorm, name).default, arguments, test_utils=tests)
        assert set(done.values()) == {"SUCCESS"}


class Small(nn.Module):
    """One of each, with what is fused."""

    def __init__(self):
        super().__init__()
        self.conv, self.bn, self.gn = nn.Conv2d(8, 8, 1), nn.BatchNorm2d(8), nn.GroupNorm(4, 8)
        self.norm, self.rms, self.instance = nn.LayerNorm(6), nn.RMSNorm(6), nn.InstanceNorm2d(8, affine=True)

    def forward(self, x):
        y = functional.relu(self.bn(self.conv(x)) + x)
        y = functional.silu(self.gn(y))
        z = self.instance(y) + x
        h = y + z
        return self.rms(self.norm(h) + h) * h


@pytest.mark.filterwarnings("ignore:.isinstance.treespec, LeafSpec:FutureWarning")  # torch.export's own
@pytest.mark.parametrize("training", [False, True], ids=["inference", "training"])
def test_compile_and_export_see_operators(training):
    """No graph breaks, and the same results, gradients and running statistics as at once."""
    x = torch.randn(SHAPE)
    model = ct.convert(Small().train(training))
    twin = copy.deepcopy(model)
    compiled = torch.compile(twin, backend="aot_eager", fullgraph=True)
    for one in (model, compiled):
        one(x).square().sum().backward()
    for mine, other in zip((*twin.parameters(), *twin.buffers()), (*model.parameters(), *model.buffers()), strict=True):
        assert torch.allclose(mine, other, rtol=1e-5, atol=1e-5)
        if mine.requires_grad:
            assert torch.allclose(mine.grad, other.grad, rtol=1e-4, atol=1e-4)
    program = torch.export.export(twin, (x,))
    called = {str(node.target) for node in program.graph.nodes if node.op == "call_function"}
    assert {f"cpunorm.{name}.default" for name in NORMS} <= called
    with torch.no_grad():
        assert torch.allclose(copy.deepcopy(program.module())(x), copy.deepcopy(twin)(x), atol=1e-5)


def test_fake_tensors():
    from torch._subclasses import FakeTensorMode

    with FakeTensorMode():
        x = torch.empty(2, 8, 6, 6).to(memory_format=torch.channels_last)
        y, mean, _ = ct.group_norm(x, 4, return_stats=True)
    assert y.is_contiguous(memory_format=torch.channels_last)
    assert mean.shape == (2, 4)


# ---------------------------------------------------------------- layers and models


def layers():
    for rank in (1, 2, 3):
        shape = (3, 4, *(5, 3, 2)[:rank])
        for options in ({}, {"momentum": None}, {"affine": False}, {"track_running_stats": False}):
            yield f"BatchNorm{rank}d", (4,), options, shape
            if options != {"affine": False}:
                yield f"InstanceNorm{rank}d", (4,), {"affine": True, "track_running_stats": True} | options, shape
        yield f"InstanceNorm{rank}d", (4,), {"affine": True}, shape[1:]
    yield "GroupNorm", (2, 4), {}, (3, 4, 5)
    yield "LayerNorm", ((4, 5),), {"bias": False}, (3, 4, 5)
    yield "RMSNorm", (5,), {}, (3, 4, 5)
    yield "LocalResponseNorm", (3,), {}, (3, 4, 5, 2)
    yield "SyncBatchNorm", (4,), {}, (3, 4, 5)


@pytest.mark.parametrize(("name", "arguments", "options", "shape"), list(layers()), ids=lambda value: str(value).replace(" ", ""))
def test_layers_are_pytorchs(name, arguments, options, shape):
    theirs = getattr(nn, name)(*arguments, **options)
    ours = getattr(ct, name)(*arguments, **options)
    ours.load_state_dict(theirs.state_dict())
    assert repr(ours) == repr(theirs)
    for mode in (True, True, False):
        x = torch.randn(shape)
        y, wanted = ours.train(mode)(x), theirs.train(mode)(x)
        assert torch.allclose(y, wanted, atol=1e-5)
    for key, value in theirs.state_dict().items():
        assert torch.allclose(ours.state_dict()[key], value, atol=1e-5), key
    assert torch.equal(pickle.loads(pickle.dumps(ours))(x), ours(x))


def test_convert_shares_and_keeps():
    model = Small()
    model.bn.eval()
    model.norm.weight.requires_grad_(False)
    seen = []
    handle = model.gn.register_forward_hook(lambda *_: seen.append(1))
    ours = ct.convert(model)
    assert type(model.bn) is nn.BatchNorm2d
    assert type(ours) is Small
    assert "forward" not in model.__dict__
    assert isinstance(ours.bn, nn.BatchNorm2d)
    assert not ours.bn.training
    for mine, other in zip((*ours.parameters(), *ours.buffers()), (*model.parameters(), *model.buffers()), strict=True):
        assert mine is other
    assert list(ours.state_dict()) == list(model.state_dict())
    x = torch.randn(SHAPE)
    assert torch.allclose(ours(x), model(x), atol=1e-5)
    assert seen == [1, 1]
    back = ct.revert(ours)
    assert [type(module) for module in back.modules()] == [type(module) for module in model.modules()]
    assert not is_fused(back)
    assert torch.equal(back(x), model(x))
    handle.remove()
    assert ct.convert(model, inplace=True) is model
    assert is_fused(model)
    assert torch.allclose(pickle.loads(pickle.dumps(model))(x), model(x), atol=1e-5)
    with pytest.raises(TypeError, match="Module"):
        ct.convert(3)


def fused_calls(model, x):
    """The keywords with which norms were called."""
    found = []
    model(x)  # (what has hooks is not fused when it is traced)
    for module in model.modules():
        if isinstance(module, (ct.BatchNorm2d, ct.LayerNorm)):
            module.register_forward_pre_hook(lambda _, args, kwargs: found.append(set(kwargs)), with_kwargs=True)
    model(x)
    return found


class Case(nn.Module):
    """A batch norm, and code that comes with it."""

    def __init__(self, code):
        super().__init__()
        self.bn, self.relu, self.code, self.flag, self.seen = nn.BatchNorm2d(8), nn.ReLU(), code, False, []

    def forward(self, x):
        return self.code(self, x)


def also_used(self, x):
    y = self.bn(x)
    return self.relu(y) + y


def changed_between(self, x):
    x = x * 1
    y = self.bn(x)
    x.add_(1)
    return self.relu(y) + x


def added_in_place_to_another(self, x):
    kept = x * 1
    kept += self.bn(x)
    return self.relu(kept)


def random_branch(self, x):
    y = self.relu(self.bn(x))
    return y if torch.rand(()) < 0.5 else -y


def remembers(self, x):
    self.seen.append(1)
    return self.relu(self.bn(x))


def asks_what_it_is(self, x):
    return self.relu(self.bn(x)) if isinstance(x, torch.Tensor) else x


def looks_at_values(self, x):
    return self.relu(self.bn(x)) if x.sum() > 0 else x


def scaled_sum(self, x):
    return torch.add(self.bn(x), x, alpha=2)


NOT_FUSED = (also_used, changed_between, random_branch, remembers, asks_what_it_is, looks_at_values, scaled_sum)


@pytest.mark.parametrize("code", NOT_FUSED, ids=lambda code: code.__name__)
def test_what_would_be_wrong_is_not_fused(code):
    model, x = Case(code), torch.randn(SHAPE)
    ours = ct.convert(copy.deepcopy(model))
    assert len(ours.seen) == len(model.seen) or code is remembers
    for _ in range(3):
        torch.manual_seed(1)
        wanted = model(x.clone())
        torch.manual_seed(1)
        assert torch.allclose(ours(x.clone()), wanted, atol=1e-5)
    assert not any(fused_calls(ours, x)), code


def test_sum_into_another_keeps_it():
    model, x = Case(added_in_place_to_another), torch.randn(SHAPE)
    ours = ct.convert(copy.deepcopy(model))
    assert torch.allclose(ours(x), model(x), atol=1e-5)


def flagged(self, x):
    y = self.relu(self.bn(x))
    return -y if self.flag else y if self.training else 2 * y


def test_flags_modes_and_other_residuals():
    """Flags that code looks at count when it runs; a residual that is broadcast or of another dtype is added by PyTorch."""
    model, x = Case(flagged), torch.randn(SHAPE)
    ours = ct.convert(copy.deepcopy(model))
    assert fused_calls(copy.deepcopy(ours), x) == [{"activation"}]
    for model.flag, mode in itertools.product((False, True), (True, False)):
        ours.flag = model.flag
        assert torch.allclose(ours.train(mode)(x), model.train(mode)(x), atol=1e-5)
    layer = ct.BatchNorm2d(8).eval()
    for residual in (torch.randn(8, 1, 1), torch.randn(SHAPE).double(), 2.0):
        wanted = torch.relu(layer(x) + residual)
        assert torch.allclose(layer(x, residual=residual, activation="relu"), wanted)
    norm = ct.LayerNorm(6)
    y, h = norm(x, residual=torch.randn(6), return_sum=True)
    assert torch.equal(y, norm(h))


SIZES = {"ResNet-50": (32, 4), "ViT-B": (32, 2), "SD UNet block": (8, 2)}
FUSED = {"ResNet-50": 49, "ViT-B": 4, "SD UNet block": 8}  # norms that take over something


def distance(values, wanted):
    """The largest relative distance of a tensor from its like."""
    return max(((a.double() - b).norm() / (b.norm() + 1e-9)).item() for a, b in zip(values, wanted, strict=True))


def test_autocast():
    """Convolutions give bfloat16 there, to norms whose parameters stay float32: ours round once where PyTorch's do."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(
        torch.nn.Conv2d(3, 8, 3, bias=False), torch.nn.BatchNorm2d(8), torch.nn.ReLU(), torch.nn.Conv2d(8, 8, 3), torch.nn.GroupNorm(2, 8)
    )
    ours = ct.convert(copy.deepcopy(model))
    x = torch.randn(4, 3, 12, 12)
    results = []
    for one in (model, ours):
        with torch.autocast("cpu", torch.bfloat16):
            y = one(x)
        (y.float() * torch.linspace(-1, 1, 8 * 64).view(8, 8, 8)).mean().backward()
        results.append((y.detach(), one[1].running_var, *(value.grad for value in one.parameters())))
    for theirs, mine in zip(*results, strict=True):
        assert mine.dtype == theirs.dtype
        assert torch.allclose(mine.float(), theirs.float(), rtol=2**-6, atol=2**-6 * float(theirs.abs().max()))


@pytest.mark.parametrize("name", models.MODELS)
def test_models_train_alike(name):
    """After 5 steps outputs, gradients, parameters and running statistics are the unconverted model's: in float64 to 1e-8; in float32 no
    further from those of float64 than PyTorch's own are, or four times that."""
    model, inputs = models.MODELS[name](*SIZES[name])
    if name == "ViT-B":
        model.layers = model.layers[:4]  # of 12 that are alike
    for module in model.modules():
        if isinstance(module, models.Bottleneck):  # else the network is chaotic
            nn.init.constant_(module.bn3.weight, 0.2)
    found = {}
    for dtype, converted in itertools.product((torch.float64, torch.float32), (False, True)):
        one = copy.deepcopy(model).to(dtype)
        one = ct.convert(one, inplace=True) if converted else one
        losses, y = models.train(one, tuple(x.to(dtype) for x in inputs), 5, rate=1e-4)
        running = [value for key, value in one.named_buffers() if "running" in key]
        grads = [p.grad for p in one.parameters()]
        found[dtype, converted] = {"output": [y], "running": running, "grads": grads, "parameters": list(one.parameters())}
        assert losses[-1] < losses[0]
        if converted and dtype == torch.float32:
            ours = one
    wanted = found.pop((torch.float64, False))
    for key, reference in wanted.items():
        if reference:
            mine, theirs = (distance(found[torch.float32, converted][key], reference) for converted in (True, False))
            assert mine <= 4 * theirs + 1e-6, key
            assert distance(found[torch.float64, True][key], reference) < 1e-8, key
    fresh = copy.deepcopy(model)
    for value in fresh.parameters():
        nn.init.zeros_(value)
    assert not any(fresh.load_state_dict(ours.state_dict()))
    again = ct.convert(fresh)
    assert not any(again.load_state_dict(fresh.state_dict()))
    with torch.no_grad():
        assert torch.allclose(again.eval()(*inputs), ct.revert(ours).eval()(*inputs), rtol=1e-3, atol=1e-4)
    taken = []
    for module in again.modules():
        if isinstance(module, (ct.BatchNorm2d, ct.LayerNorm, ct.GroupNorm)):
            module.register_forward_pre_hook(lambda _, args, kwargs: taken.append(bool(kwargs)), with_kwargs=True)
    with torch.no_grad():
        again(*inputs)
    assert sum(taken) == FUSED[name]


# ---------------------------------------------------------------- imports


def test_cpunorm_does_not_import_torch():
    assert python("import sys, cpunorm; print('torch' in sys.modules)") == "False"


def test_without_torch_it_is_named():
    code = "import sys; sys.modules['torch'] = None\ntry:\n import cpunorm.torch\nexcept ImportError as e: print(e)"
    assert "pip install torch" in python(code)


def test_backend_is_c_unless_configured():
    from cpunorm import backends
    from cpunorm.torch import arrays

    try:
        backends.load("c")
    except ImportError as problem:
        pytest.skip(str(problem))
    assert arrays.backend("numpy") == "numpy"
    with cn.config(backend="numpy"):
        assert arrays.backend(None) == "numpy"
    if not sys.flags.ignore_environment and not __import__("os").environ.get("CPUNORM_BACKEND"):
        assert arrays.backend(None) == "c"
