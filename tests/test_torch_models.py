"""Whole models before and after `cpunorm.torch.convert`."""

import copy
import itertools

import pytest
from torch_cases import ct, nn, torch

models = pytest.importorskip("torch_models")
pytestmark = [pytest.mark.peer, pytest.mark.usefixtures("one_torch_thread")]

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
    """After 5 steps outputs, gradients, parameters and running statistics are the unconverted model's, to rounding.

    In float32 their distance from those of float64 is at most what PyTorch's own have, and what it changes in these to move each parameter
    to the next float32 at the start: the error of a model whose weights are off by one unit in the last place. In float64 it is at most
    that, in units of float64; the more so as errors larger than rounding do not shrink with it.
    """
    model, inputs = models.MODELS[name](*SIZES[name])
    if name == "ViT-B":
        model.layers = model.layers[:4]  # of 12 that are alike
    for module in model.modules():
        if isinstance(module, models.Bottleneck):  # else the network is chaotic
            nn.init.constant_(module.bn3.weight, 0.2)
    found = {}
    for dtype, kind in itertools.product((torch.float64, torch.float32), ("theirs", "ours", "moved")):
        if (dtype, kind) == (torch.float64, "moved"):
            continue
        one = copy.deepcopy(model).to(dtype)
        if kind == "ours":
            ct.convert(one, inplace=True)
        elif kind == "moved":
            with torch.no_grad():
                for value in one.parameters():
                    value.copy_(torch.nextafter(value, torch.full_like(value, torch.inf)))
        losses, y = models.train(one, tuple(x.to(dtype) for x in inputs), 5, rate=1e-4)
        running = [value for key, value in one.named_buffers() if "running" in key]
        grads = [p.grad for p in one.parameters()]
        found[dtype, kind] = {"output": [y], "running": running, "grads": grads, "parameters": list(one.parameters())}
        assert losses[-1] < losses[0]
        if (dtype, kind) == (torch.float32, "ours"):
            ours = one
    for key, reference in found[torch.float64, "theirs"].items():
        if reference:
            theirs = found[torch.float32, "theirs"][key]
            bound = distance(theirs, reference) + distance(found[torch.float32, "moved"][key], theirs)
            assert distance(found[torch.float32, "ours"][key], reference) <= bound, key
            units = torch.finfo(torch.float64).eps / torch.finfo(torch.float32).eps
            assert distance(found[torch.float64, "ours"][key], reference) <= bound * units, key
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
