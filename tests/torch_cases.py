"""What the tests of cpunorm.torch share: its norms, with inputs for each."""

import pytest

torch = pytest.importorskip("torch")
ct = pytest.importorskip("cpunorm.torch")
nn, functional = torch.nn, torch.nn.functional

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


def off(actual, wanted):
    return ((actual.double() - wanted).abs() / (1 + wanted.abs())).max().item() if wanted.numel() else 0.0


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
