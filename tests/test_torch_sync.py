"""SyncBatchNorm on two processes of gloo: what one process gives with the joined batch."""

import pytest
from helpers import python

torch = pytest.importorskip("torch")
pytestmark = [pytest.mark.peer, pytest.mark.skipif(not torch.distributed.is_gloo_available(), reason="this PyTorch has no gloo")]

# Each process takes its share of x, runs forward and backward twice, and compares with the joined batch in float64.
CODE = """
import tempfile, sys, warnings
from pathlib import Path
import torch, torch.distributed as dist
from torch import nn
import cpunorm.torch as ct

SHARES = {"even": (3, 3), "uneven": (5, 1), "one alone": (0, 6), "one value": (1, 0)}

def work(rank, store):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    for name, shares in SHARES.items():
        for dtype, close in ((torch.float64, 1e-10), (torch.float32, 1e-5), (torch.bfloat16, 3e-2)):
            for activation in (None, "relu", "silu"):
                compare(rank, shares, dtype, close, activation, name)
    whole(rank)
    print("done", flush=True)

def compare(rank, shares, dtype, close, activation, name):
    torch.manual_seed(0)
    layer = ct.SyncBatchNorm(4, momentum=None if activation else 0.3)
    nn.init.normal_(layer.weight), nn.init.normal_(layer.bias)
    plain = nn.BatchNorm2d(4, momentum=layer.momentum)
    plain.load_state_dict(layer.state_dict())
    plain, layer = plain.double(), layer.double() if dtype == torch.float64 else layer
    memory = torch.channels_last if activation == "relu" else torch.contiguous_format
    mine = slice(0, shares[0]) if rank == 0 else slice(shares[0], None)
    for step in range(2):
        x, residual, grad = (torch.randn(sum(shares), 4, 1 if name == "one value" else 3, 1).mul(2).add(5).to(dtype) for _ in range(3))
        own = [value[mine].to(memory_format=memory).requires_grad_() for value in (x, residual)]
        if name == "one value":
            try:
                layer(own[0])
            except ValueError as problem:
                assert "more than 1 value" in str(problem)
                return
            raise AssertionError("one value was normalized")
        all_ = [value.double().requires_grad_() for value in (x, residual)]
        layer.zero_grad(), plain.zero_grad()
        y = layer(own[0], residual=own[1], activation=activation)
        wanted = plain(all_[0]) + all_[1]
        wanted = wanted if activation is None else getattr(nn.functional, activation)(wanted)
        y.backward(grad[mine])
        wanted.backward(grad.double())
        for p in layer.parameters():  # as DistributedDataParallel would
            dist.all_reduce(p.grad)
        pairs = [(y, wanted[mine]), *((a.grad, b.grad[mine]) for a, b in zip(own, all_))]
        pairs += [(a.grad, b.grad) for a, b in zip(layer.parameters(), plain.parameters())]
        pairs += list(zip(layer.buffers(), plain.buffers()))
        for number, (a, b) in enumerate(pairs):
            off = ((a.double() - b).abs() / (1 + b.abs())).max().item() if a.numel() else 0
            assert off < close * (8 if number > 2 else 2), (name, dtype, activation, number, off)
    # inference is plain, and no collective call
    if rank == 0 and dtype != torch.bfloat16:
        x = torch.randn(2, 4, 3, 1, dtype=dtype)
        assert torch.allclose(layer.eval()(x), plain.eval()(x.double()).to(dtype), rtol=1e-5, atol=1e-5)

def whole(rank):
    \"\"\"A model, converted, in DistributedDataParallel.\"\"\"
    torch.manual_seed(0)
    single = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 2, 1), nn.BatchNorm2d(2))
    synced = ct.convert(ct.SyncBatchNorm.convert_sync_batchnorm(__import__("copy").deepcopy(single)), inplace=True)
    assert type(synced[1]) is ct.SyncBatchNorm
    parallel = nn.parallel.DistributedDataParallel(synced)
    x = torch.randn(6, 3, 4, 4)
    (parallel(x[3 * rank : 3 * rank + 3]).square().mean()).backward()
    single(x).square().mean().backward()
    for a, b in zip(synced.parameters(), single.parameters()):
        assert torch.allclose(a.grad, b.grad, rtol=1e-4, atol=1e-6)
    for a, b in zip(synced.buffers(), single.buffers()):
        assert torch.allclose(a, b, rtol=1e-5, atol=1e-6)

if __name__ == "__main__":
    warnings.simplefilter("default")
    with tempfile.TemporaryDirectory() as folder:
        torch.multiprocessing.spawn(work, (str(Path(folder) / "store"),), nprocs=2)
"""


def test_two_processes_equal_one(tmp_path):
    file = tmp_path / "script.py"
    file.write_text(CODE)
    assert python(file, CPUNORM_BACKEND="c" if has_c() else "numpy").count("done") == 2


def has_c():
    from cpunorm import backends

    try:
        backends.load("c")
    except ImportError:
        return False
    return True


def test_without_a_group_it_is_batch_norm():
    import cpunorm.torch as ct

    torch.manual_seed(0)
    ours, theirs, x = ct.SyncBatchNorm(4), torch.nn.BatchNorm2d(4), torch.randn(3, 4, 5, 5)
    assert torch.allclose(ours(x), theirs(x), atol=1e-5)
    assert torch.allclose(ours.running_var, theirs.running_var)
