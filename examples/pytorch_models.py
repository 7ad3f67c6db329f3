"""Three blocks in PyTorch before and after `cpunorm.torch.convert`: trained for some steps each, compared and timed.

python examples/pytorch_models.py --steps 5
"""

import argparse
import time

import torch
from torch import nn
from torch.nn import functional

import cpunorm.torch


class ResNetBlock(nn.Module):
    """Convolution, batch norm, ReLU; the same with the input added before the ReLU."""

    def __init__(self, channels=64):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(channels, channels, 3, padding=1, bias=False), nn.BatchNorm2d(channels)
        self.conv2, self.bn2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False), nn.BatchNorm2d(channels)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, C, H, W)."""
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        out += x
        return self.relu(out)


class TransformerBlock(nn.Module):
    """Pre-norm: the sum of the first half goes into the second layer norm, and past it."""

    def __init__(self, width=256, heads=4):
        super().__init__()
        self.norm1, self.attention = nn.LayerNorm(width), nn.MultiheadAttention(width, heads, batch_first=True)
        self.norm2, self.mlp = nn.LayerNorm(width), nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, tokens, width)."""
        h = self.norm1(x)
        x = x + self.attention(h, h, h, need_weights=False)[0]
        return x + self.mlp(self.norm2(x))


class DiffusionBlock(nn.Module):
    """Of a UNet: group norm and SiLU before each convolution, the time step in between."""

    def __init__(self, channels=64, time=128):
        super().__init__()
        self.norm1, self.conv1 = nn.GroupNorm(32, channels), nn.Conv2d(channels, channels, 3, padding=1)
        self.norm2, self.conv2 = nn.GroupNorm(32, channels), nn.Conv2d(channels, channels, 3, padding=1)
        self.time = nn.Linear(time, channels)

    def forward(self, x: torch.Tensor, time: torch.Tensor) -> torch.Tensor:
        """(N, C, H, W) and (N, time)."""
        h = self.conv1(functional.silu(self.norm1(x)))
        h = h + self.time(time)[:, :, None, None]
        return x + self.conv2(functional.silu(self.norm2(h)))


def train(model, inputs, steps):
    """Adam towards zero; the last loss, the output, and the best ms a step."""
    optimizer, best = torch.optim.Adam(model.parameters(), 1e-4), float("inf")
    for _ in range(steps):
        start = time.perf_counter()
        y = model(*inputs)
        loss = y.square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        best = min(best, 1e3 * (time.perf_counter() - start))
    return loss.item(), y.detach(), best


def main():
    """Each block trained twice from the same start."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--side", type=int, default=32)
    parser.add_argument("--steps", type=int, default=5)
    arguments = parser.parse_args()
    batch, side = arguments.batch, arguments.side
    torch.manual_seed(0)
    cases = (
        (ResNetBlock(), (torch.randn(batch, 64, side, side),)),
        (TransformerBlock(), (torch.randn(batch, side * side // 4, 256),)),
        (DiffusionBlock(), (torch.randn(batch, 64, side, side), torch.randn(batch, 128))),
    )
    for model, inputs in cases:
        start = {key: value.clone() for key, value in model.state_dict().items()}
        _, wanted, slow = train(model, inputs, arguments.steps)
        model.load_state_dict(start)
        model = cpunorm.torch.convert(model, inplace=True)
        loss, got, fast = train(model, inputs, arguments.steps)
        difference = ((got - wanted).norm() / wanted.norm()).item()
        name = type(model).__name__
        print(f"{name:<17} loss {loss:.4f}   before {slow:7.1f} ms   after {fast:7.1f} ms a step   difference {difference:.1e}")
        if not difference < 1e-3:
            raise SystemExit(f"{name}: expected the same output after {arguments.steps} steps")
        cpunorm.torch.revert(model, inplace=True)


if __name__ == "__main__":
    main()
