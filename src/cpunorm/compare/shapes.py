"""Shapes by the networks that they come from; channels first, (N, C, H, W), whatever the layout. Rows have their own, (..., length)."""

from __future__ import annotations

from cpunorm import ops

Shape = tuple[int, ...]

PHOTOGRAPHS = "photographs, batch 8"
# What is compared where nothing else is asked for.
DEFAULT: dict[str, Shape] = {PHOTOGRAPHS: (8, 3, 512, 512), **ops.SHAPES}
QUICK = (PHOTOGRAPHS, "ResNet-50 stage 5, batch 32", "MobileNetV2 block 2, batch 8")

IMAGES: dict[str, Shape] = {
    "MobileNetV2 block 1, batch 8": (8, 32, 112, 112),
    "MobileNetV2 block 17, batch 1": (1, 960, 7, 7),
    "YOLO stem, batch 1": (1, 32, 320, 320),
    "YOLO neck, batch 16": (16, 256, 40, 40),
    "Stable Diffusion UNet 64x64, batch 2": (2, 320, 64, 64),
    "Stable Diffusion UNet 16x16, batch 2": (2, 1280, 16, 16),
    "camera frame 1080p": (1, 3, 1080, 1920),
    "camera frames VGA, batch 8": (8, 3, 480, 640),
    "odd": (7, 37, 45, 83),
    "odd, of 3 channels": (4, 3, 513, 511),
}
ROWS: dict[str, Shape] = {
    "ViT-B, batch 32": (32, 197, 768),
    "ViT-B, batch 1": (1, 197, 768),
    "BERT, batch 8 of 512": (8, 512, 768),
    "LLM rows, 4096 of 4096": (4096, 4096),
    "LLM rows, one token": (1, 4096),
    "odd rows": (3, 1000003),
}
NAMED: dict[str, Shape] = {**DEFAULT, **IMAGES, **ROWS}


def fits(operation: str, shape: Shape) -> bool:
    """Rows go to operations over the last axis, pictures to all but those that a table has for rows."""
    if operation == "preprocess":
        return len(shape) == 4 and shape[1] == 3
    return len(shape) == 4 or not (ops.OPERATIONS[operation].layouts or operation == "mean_var")
