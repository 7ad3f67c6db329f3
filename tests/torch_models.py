"""Networks of the structure that people use, with random weights: a ResNet-50, a ViT-B encoder, a block of Stable Diffusion's UNet."""

import itertools

import torch
from torch import nn
from torch.nn import functional


class Bottleneck(nn.Module):
    """As torchvision's: one ReLU used three times, the sum in place."""

    def __init__(self, inputs, planes, stride):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(inputs, planes, 1, bias=False), nn.BatchNorm2d(planes)
        self.conv2, self.bn2 = nn.Conv2d(planes, planes, 3, stride, 1, bias=False), nn.BatchNorm2d(planes)
        self.conv3, self.bn3 = nn.Conv2d(planes, 4 * planes, 1, bias=False), nn.BatchNorm2d(4 * planes)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = None
        if stride != 1 or inputs != 4 * planes:
            self.downsample = nn.Sequential(nn.Conv2d(inputs, 4 * planes, 1, stride, bias=False), nn.BatchNorm2d(4 * planes))

    def forward(self, x):
        identity = x
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.relu(self.bn2(self.conv2(out)))
        out = self.bn3(self.conv3(out))
        if self.downsample is not None:
            identity = self.downsample(x)
        out += identity
        return self.relu(out)


class ResNet50(nn.Module):
    """Pictures (N, 3, H, W) to 1000 classes."""

    def __init__(self, depths=(3, 4, 6, 3), classes=1000):
        super().__init__()
        self.conv1, self.bn1, self.relu = nn.Conv2d(3, 64, 7, 2, 3, bias=False), nn.BatchNorm2d(64), nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, 2, 1)
        stages, inputs = [], 64
        for stage, depth in enumerate(depths):
            planes = 64 << stage
            blocks = [Bottleneck(inputs if i == 0 else 4 * planes, planes, 2 if stage and i == 0 else 1) for i in range(depth)]
            stages.append(nn.Sequential(*blocks))
            inputs = 4 * planes
        self.layers = nn.Sequential(*stages)
        self.fc = nn.Linear(inputs, classes)

    def forward(self, x):
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        return self.fc(self.layers(x).mean((2, 3)))


class EncoderLayer(nn.Module):
    """Pre-norm, as in ViT."""

    def __init__(self, width, heads):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width, eps=1e-6), nn.LayerNorm(width, eps=1e-6)
        self.heads, self.qkv, self.proj = heads, nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def attend(self, x):
        batch, tokens, width = x.shape
        q, k, v = self.qkv(x).reshape(batch, tokens, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4).unbind(0)
        y = functional.scaled_dot_product_attention(q, k, v)
        return self.proj(y.transpose(1, 2).reshape(batch, tokens, width))

    def forward(self, x):
        x = x + self.attend(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class ViTB(nn.Module):
    """Pictures (N, 3, H, W) to 1000 classes, H and W multiples of 16."""

    def __init__(self, depth=12, width=768, heads=12, classes=1000, tokens=197):
        super().__init__()
        self.patches = nn.Conv2d(3, width, 16, 16)
        self.token, self.position = nn.Parameter(torch.zeros(1, 1, width)), nn.Parameter(0.02 * torch.randn(1, tokens, width))
        self.layers = nn.Sequential(*(EncoderLayer(width, heads) for _ in range(depth)))
        self.norm, self.head = nn.LayerNorm(width, eps=1e-6), nn.Linear(width, classes)

    def forward(self, x):
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], 1)
        x = self.layers(x + self.position[:, : x.shape[1]])
        return self.head(self.norm(x)[:, 0])


class ResnetBlock(nn.Module):
    """As diffusers' ResnetBlock2D: group norm, SiLU, convolution, twice, the time in between."""

    def __init__(self, inputs, outputs, time):
        super().__init__()
        self.norm1, self.conv1 = nn.GroupNorm(32, inputs), nn.Conv2d(inputs, outputs, 3, padding=1)
        self.time = nn.Linear(time, outputs)
        self.norm2, self.dropout, self.conv2 = nn.GroupNorm(32, outputs), nn.Dropout(0.0), nn.Conv2d(outputs, outputs, 3, padding=1)
        self.act = nn.SiLU()
        self.shortcut = nn.Conv2d(inputs, outputs, 1) if inputs != outputs else None

    def forward(self, x, time=None):
        h = self.conv1(self.act(self.norm1(x)))
        if time is not None:
            h = h + self.time(self.act(time))[:, :, None, None]
        h = self.conv2(self.dropout(self.act(self.norm2(h))))
        return (x if self.shortcut is None else self.shortcut(x)) + h


class Attention(nn.Module):
    def __init__(self, width, heads, context):
        super().__init__()
        self.heads, self.q = heads, nn.Linear(width, width, bias=False)
        self.k, self.v, self.out = nn.Linear(context, width, bias=False), nn.Linear(context, width, bias=False), nn.Linear(width, width)

    def forward(self, x, context=None):
        context = x if context is None else context
        q, k, v = (y.unflatten(-1, (self.heads, -1)).transpose(1, 2) for y in (self.q(x), self.k(context), self.v(context)))
        return self.out(functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class TransformerBlock(nn.Module):
    """As diffusers' BasicTransformerBlock: self-attention, attention to the text, GEGLU."""

    def __init__(self, width, heads, context):
        super().__init__()
        self.norm1, self.norm2, self.norm3 = (nn.LayerNorm(width) for _ in range(3))
        self.attn1, self.attn2 = Attention(width, heads, width), Attention(width, heads, context)
        self.up, self.down = nn.Linear(width, 8 * width), nn.Linear(4 * width, width)

    def forward(self, x, context):
        x = self.attn1(self.norm1(x)) + x
        x = self.attn2(self.norm2(x), context) + x
        h, gate = self.up(self.norm3(x)).chunk(2, -1)
        return self.down(h * functional.gelu(gate)) + x


class UNetBlock(nn.Module):
    """The first down block of Stable Diffusion's UNet: (ResnetBlock, transformer) twice, and a strided convolution."""

    def __init__(self, width=320, heads=8, time=1280, context=768):
        super().__init__()
        self.resnets = nn.ModuleList([ResnetBlock(width, width, time) for _ in range(2)])
        self.norms = nn.ModuleList([nn.GroupNorm(32, width, eps=1e-6) for _ in range(2)])
        self.inputs = nn.ModuleList([nn.Conv2d(width, width, 1) for _ in range(2)])
        self.blocks = nn.ModuleList([TransformerBlock(width, heads, context) for _ in range(2)])
        self.outputs = nn.ModuleList([nn.Conv2d(width, width, 1) for _ in range(2)])
        self.down = nn.Conv2d(width, width, 3, 2, 1)

    def forward(self, x, time, context):
        for resnet, norm, first, block, last in zip(self.resnets, self.norms, self.inputs, self.blocks, self.outputs, strict=True):
            x = resnet(x, time)
            h = first(norm(x))
            tokens = block(h.flatten(2).transpose(1, 2), context)
            x = last(tokens.transpose(1, 2).reshape(h.shape)) + x
        return self.down(x)


def resnet50(side=224, batch=4):
    """A model and its inputs."""
    return ResNet50(), (torch.randn(batch, 3, side, side),)


def vit_b(side=224, batch=4):
    return ViTB(), (torch.randn(batch, 3, side, side),)


def unet_block(side=64, batch=2):
    return UNetBlock(), (torch.randn(batch, 320, side, side), torch.randn(batch, 1280), torch.randn(batch, 77, 768))


MODELS = {"ResNet-50": resnet50, "ViT-B": vit_b, "SD UNet block": unet_block}


def steps(model, inputs, rate=1e-3):
    """SGD with momentum towards fixed random targets, for ever: the loss and the output of each step."""
    optimizer = torch.optim.SGD(model.parameters(), rate, momentum=0.9)
    target = None
    while True:
        y = model(*inputs)
        if target is None:
            target = torch.randn(y.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float32).to(y)
        loss = functional.mse_loss(y, target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        yield loss.item(), y.detach()


def train(model, inputs, count, rate=1e-3):
    """The losses of so many steps, and the last output."""
    losses, outputs = zip(*itertools.islice(steps(model, inputs, rate), count), strict=True)
    return list(losses), outputs[-1]
