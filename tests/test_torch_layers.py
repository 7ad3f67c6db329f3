"""Layers of cpunorm.torch, and models converted to them: what is shared, what is fused, and what must not be."""

import copy
import itertools
import pickle

import pytest
from torch_cases import SHAPE, Small, ct, nn, torch

is_fused = ct.convert.__globals__["fuse"].__globals__["is_fused"]
pytestmark = [pytest.mark.peer, pytest.mark.usefixtures("one_torch_thread")]


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
    assert type(ct.convert(theirs)) is type(ours)
    assert type(ct.revert(ours)) is type(theirs)
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


class SharedSum(nn.Module):
    """A sum that is used again before the activation of its norm."""

    def __init__(self):
        super().__init__()
        self.norm = nn.LayerNorm(6)

    def forward(self, x, y):
        h = x + y
        z = self.norm(h)
        twice = 2 * h
        return torch.relu(z) + twice


def test_sum_used_before_the_activation():
    model, x = SharedSum(), torch.randn(SHAPE)
    assert torch.allclose(ct.convert(model)(x, x + 1), model(x, x + 1), atol=1e-5)


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
