"""Pictures as tensors in, tensors out: `cpunorm.preprocess` on CPU tensors. docs/preprocessing.md has the meaning in full."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cpunorm import check, pictures, preprocessing
from cpunorm.torch.arrays import array, eager, refuse_grad, tensor, tracked
from cpunorm.torch.arrays import backend as chosen

_CALL = "preprocess"


class Preprocessor:
    """`preprocess` with its arguments but for the pictures, checked once: ``plan(images, out=buffer)``.

    >>> plan = Preprocessor((0.485, 0.456, 0.406), (0.229, 0.224, 0.225), dtype=torch.bfloat16)
    >>> plan(torch.zeros(224, 224, 3, dtype=torch.uint8)).shape
    torch.Size([1, 3, 224, 224])
    """

    def __init__(self, mean: Any, std: Any, *, dtype: torch.dtype = torch.float32, **options: Any) -> None:
        preprocessing.Preprocessor(mean, std, dtype=_name(dtype), **options)
        self._given = (mean, std)
        self._options = {"dtype": dtype, **options}

    def __call__(self, images: Tensor | Sequence[Tensor], out: Tensor | None = None) -> Tensor:
        """The pictures as one tensor of rank 4, `out` if it is given."""
        return preprocess(images, *self._given, out=out, **self._options)

    def __repr__(self) -> str:
        mean, std = self._given
        return f"Preprocessor(mean={mean}, std={std}, {', '.join(f'{key}={value}' for key, value in self._options.items())})"


def preprocess(
    images: Tensor | Sequence[Tensor],
    mean: Any,
    std: Any,
    *,
    scale: float | str = "auto",
    input_layout: str = "NHWC",
    output_layout: str = "NCHW",
    dtype: torch.dtype = torch.float32,
    quant: tuple[float, int] | None = None,
    swap_rb: bool = False,
    size: tuple[Any, int] | None = None,
    crop: tuple[Any, ...] | None = None,
    mirror: Any = False,
    pad_channels: int | None = None,
    out: Tensor | None = None,
    backend: str | None = None,
    threads: int | None = None,
) -> Tensor:
    """`cpunorm.preprocess` of a tensor (a picture or a batch of them) or a list of tensors, which are read where they are.

    `dtype` is PyTorch's. There are no gradients: pictures that require grad are a RuntimeError.
    """
    single = not isinstance(images, (list, tuple))
    given: list[Any] = [images] if single else list(images)
    refuse_grad(_CALL, *given, out)
    name = _name(dtype)
    if given and not eager(given[0]):
        found = torch.ops.cpunorm.preprocess(
            given,
            single,
            _listed(mean),
            _listed(std),
            None if scale == "auto" else scale,
            input_layout,
            output_layout,
            dtype,
            list(quant or ()),
            swap_rb,
            _sizes(size),
            _sizes(crop),
            None if mirror is False else [] if mirror is True else list(mirror),
            pad_channels,
            backend,
            threads,
        )
        return found if out is None else out.copy_(found)  # type: ignore[no-any-return]
    seen = [array(_CALL, "images" if single else f"images[{i}]", image) for i, image in enumerate(given)]
    y = preprocessing.preprocess(
        seen[0] if single else seen,
        *(value.tolist() if isinstance(value, Tensor) else value for value in (mean, std)),
        scale=scale,
        input_layout=input_layout,
        output_layout=output_layout,
        dtype=name,
        quant=quant,
        swap_rb=swap_rb,
        size=size,
        crop=crop,
        mirror=mirror,
        pad_channels=pad_channels,
        out=array(_CALL, "out", out),
        backend=chosen(backend),
        threads=threads,
    )
    if out is None:
        return tensor(y)
    tracked(out)
    return out


def _name(dtype: Any) -> str:
    """As NumPy and ml_dtypes call it."""
    if not isinstance(dtype, torch.dtype):
        check.fail(TypeError, _CALL, f"expected dtype to be a torch.dtype, got {dtype!r}")
    return str(dtype).removeprefix("torch.")


# ---------------------------------------------------------------- the operator

_SCHEMA = (
    "(Tensor[] images, bool single, float[] mean, float[] std, float? scale, str input_layout, str output_layout, ScalarType dtype, "
    "float[] quant, bool swap_rb, int[] size, int[] crop, bool[]? mirror, int? pad_channels, str? backend, int? threads) -> Tensor"
)
_NAMES = (
    *("scale", "input_layout", "output_layout", "dtype", "quant", "swap_rb"),
    *("size", "crop", "mirror", "pad_channels", "backend", "threads"),
)


def _listed(values: Any) -> list[float]:
    return list(values) if isinstance(values, (list, tuple)) else [values]


def _sizes(values: tuple[Any, ...] | None) -> list[int]:
    """Numbers alone: "short" and "center" are seen from how many there are."""
    return [] if values is None else [value for value in values if not isinstance(value, str)]


def _arguments(given: tuple[Any, ...]) -> dict[str, Any]:
    """`preprocess`' from the operator's."""
    found = dict(zip(_NAMES, given, strict=True))
    quant, size, crop, mirror = (found[name] for name in ("quant", "size", "crop", "mirror"))
    found["scale"] = "auto" if found["scale"] is None else found["scale"]
    found["quant"] = (quant[0], int(quant[1])) if quant else None
    found["size"] = None if not size else ("short", *size) if len(size) == 1 else tuple(size)
    found["crop"] = None if not crop else ("center", *crop) if len(crop) == 2 else tuple(crop)
    found["mirror"] = mirror is not None if not mirror else tuple(mirror)
    return found


def _forward(images: Sequence[Tensor], single: bool, mean: Sequence[float], std: Sequence[float], *given: Any) -> Tensor:
    return preprocess(images[0] if single else list(images), tuple(mean), tuple(std), **_arguments(given))


def _shapes(images: Sequence[Tensor], single: bool, mean: Sequence[float], std: Sequence[float], *given: Any) -> Tensor:
    """Found as the call itself finds it, on arrays of these shapes without memory."""
    options = _arguments(given)
    dtype = options["dtype"]
    plan = preprocessing.Preprocessor(tuple(mean), tuple(std), **options | {"dtype": _name(dtype), "backend": "numpy"})
    arrays = [np.broadcast_to(np.zeros((), _name(image.dtype)), [int(size) for size in image.shape]) for image in images]
    return images[0].new_empty(pictures.Prepared(_CALL, plan._options, arrays, single, None).shape, dtype=dtype)


torch.library.custom_op("cpunorm::preprocess", _forward, mutates_args=(), schema=_SCHEMA).register_fake(_shapes)
