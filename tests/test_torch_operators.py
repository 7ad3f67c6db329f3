"""The operators of cpunorm.torch, as torch.compile, torch.export and FakeTensor see them."""

import copy

import pytest
from torch_cases import NORMS, SHAPE, Small, ct, inputs_of, torch

pytestmark = [pytest.mark.peer, pytest.mark.usefixtures("one_torch_thread")]


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
    vectors = [torch.rand(6, requires_grad=True) for _ in range(5)]
    yield "fold_batch_norm", (torch.randn(6, 4, 3, requires_grad=True), *vectors, 1e-5, False)
    images = [torch.zeros(5, 6, 3, dtype=torch.uint8)] * 2
    yield (
        "preprocess",
        (images, False, [0.5], [0.5], None, "NHWC", "NCHW", torch.float32, [], True, [4], [3, 3], None, None, None, None),
    )
    yield "normalize", (x, 2.0, [1], 1e-12, None, None)
    yield "local_response_norm", (x, 3, 1.0, 0.75, 1.0, "channels_first", None, None)


def test_opcheck():
    tests = ("test_schema", "test_autograd_registration", "test_faketensor", "test_aot_dispatch_static")
    for name, arguments in operator_calls():
        done = torch.library.opcheck(getattr(torch.ops.cpunorm, name).default, arguments, test_utils=tests)
        assert set(done.values()) == {"SUCCESS"}


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
