"""Pictures in, tensors out: `preprocess`, and `Preprocessor` for what is done often. docs/preprocessing.md has the meaning in full."""

from __future__ import annotations

from functools import lru_cache
from typing import Any, cast

import numpy as np

from cpunorm import call as calls
from cpunorm import check, check_pictures, settings
from cpunorm.pictures import Options, Prepared

Array = np.ndarray[Any, Any]

OPTIONS = (  # of a plan beside mean and std, in the order of `preprocess`
    *("scale", "input_layout", "output_layout", "dtype", "quant", "swap_rb"),
    *("size", "crop", "mirror", "pad_channels", "backend", "threads"),
)


class Preprocessor:
    """`preprocess` prepared once: ``plan(images, out=buffer)``. Arguments and errors are those of `preprocess`.

    A call whose arrays have shapes, strides and dtypes seen before allocates only its result, and with `out` nothing beyond a table of 80
    bytes a picture; where `size` is given, some rows for each thread besides. Objects pickle, and may be called from several threads.

    >>> import numpy as np
    >>> plan = Preprocessor((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    >>> plan(np.zeros((224, 224, 3), np.uint8)).shape
    (1, 3, 224, 224)
    """

    def __init__(
        self,
        mean: Any,
        std: Any,
        *,
        scale: float | str = "auto",
        input_layout: str = "NHWC",
        output_layout: str = "NCHW",
        dtype: Any = np.float32,
        quant: tuple[float, int] | None = None,
        swap_rb: bool = False,
        size: tuple[Any, int] | None = None,
        crop: tuple[Any, ...] | None = None,
        mirror: Any = False,
        pad_channels: int | None = None,
        backend: str | None = None,
        threads: int | None = None,
    ) -> None:
        call = "preprocess"
        check.backend(call, backend)
        check.threads(call, threads)
        check.flag(call, "swap_rb", swap_rb)
        found, quantized = check_pictures.result_dtype(call, dtype, quant)
        self._options = Options(
            check_pictures.coefficients(call, "mean", mean, positive=False),
            check_pictures.coefficients(call, "std", std, positive=True),
            check_pictures.picture_scale(call, scale),
            check_pictures.picture_layout(call, "input_layout", input_layout),
            check_pictures.picture_layout(call, "output_layout", output_layout),
            found,
            quantized,
            bool(swap_rb),
            check_pictures.picture_size(call, size),
            check_pictures.picture_crop(call, crop),
            check_pictures.mirrors(call, mirror),
            None if pad_channels is None else check.positive(call, "pad_channels", pad_channels),
            backend,
            threads,
        )

    def __call__(self, images: Any, out: Any = None) -> Array:
        """The pictures as one array of rank 4, `out` if it is given."""
        call, options = "preprocess", self._options
        arrays, single = check_pictures.pictures(call, images)
        out = calls.array(call, "out", out)
        key = (call, options, single, tuple(map(calls.of, arrays)), calls.of(out), settings.current())
        prepared = calls.find(key)
        if prepared is None:
            prepared = calls.remember(key, Prepared(call, options, arrays, single, out))
        if out is None:
            out = np.empty(prepared.shape, prepared.dtype)
        else:
            check.out_free(call, out, [("images", x) for x in arrays], ())
        prepared(arrays, out)
        return cast(Array, out)

    def __repr__(self) -> str:
        options = self._options
        return f"Preprocessor(mean={options.mean}, std={options.std}, {options.input_layout} -> {options.output_layout} {options.dtype})"


def preprocess(
    images: Any,
    mean: Any,
    std: Any,
    *,
    scale: float | str = "auto",
    input_layout: str = "NHWC",
    output_layout: str = "NCHW",
    dtype: Any = np.float32,
    quant: tuple[float, int] | None = None,
    swap_rb: bool = False,
    size: tuple[Any, int] | None = None,
    crop: tuple[Any, ...] | None = None,
    mirror: Any = False,
    pad_channels: int | None = None,
    out: Any = None,
    backend: str | None = None,
    threads: int | None = None,
) -> Array:
    """Normalized pictures as one array of rank 4: ``y = (x * scale - mean) / std``, in one pass over the pixels.

    In this order: `swap_rb`, `size`, `crop`, `mirror`, the formula, `dtype`, `pad_channels`.

    Parameters
    ----------
    images : array or list of arrays
        A picture (HWC), a batch of them (NHWC), or a list of pictures; with ``input_layout="NCHW"`` CHW or NCHW. uint8, uint16, float16 or
        float32, any number of channels, any strides: crops, flips and transposes of arrays are read as they are. (What is byte-swapped or
        not aligned is copied.)
    mean, std : sequence of float, or float
        A value a channel, in the order of the output's channels, or one for all. See `cpunorm.constants`.
    scale : float or "auto"
        "auto" is 1/255 for uint8, 1/65535 for uint16 and 1 for floats.
    input_layout, output_layout : str
        "NHWC" or "NCHW".
    dtype : dtype
        Of the result: float32, float16, bfloat16 (or "bfloat16"), or int8 and uint8 with `quant`.
    quant : (float, int) or None
        ``(s, z)``: the result is ``clip(rint(y / s) + z)``, as ONNX QuantizeLinear; NaN becomes the lowest number.
    swap_rb : bool
        BGR to RGB and back, a fourth channel stays.
    size : (height, width), ("short", n) or None
        Bilinear with antialias, as Pillow's ``resize(..., BILINEAR)``; "short" makes the shorter side n and the longer
        ``int(n * longer / shorter)``. Pictures of unequal size need it.
    crop : (top, left, height, width), ("center", height, width) or None
        After the resize. Half the margin is rounded down.
    mirror : bool or sequence of bool
        Left to right, all pictures or those that say so.
    pad_channels : int or None
        Zeros (quantized, z) up to so many channels.
    out : array or None
        To be written and returned: of the result's shape and dtype. Gaps within a plane (NCHW) or a picture (NHWC) cost a copy.
    backend : {"numba", "c", "numpy"} or None
        None is the configured one.
    threads : int or None
        None is the configured number.

    Returns
    -------
    y : array of shape (N, C, H, W) or (N, H, W, C), of `dtype`; `out` where it is given
        Always of rank 4, of a single picture too.

    Raises
    ------
    ValueError, TypeError
        For pictures of another rank, dtype or number of channels than the rest asks for; unequal sizes without `size`, or left by it
        without `crop`; a crop outside a picture; a `std` that is not positive; `quant` missing or unneeded; an `out` of another shape or
        dtype, read-only or overlapping a picture. Nothing is written then.

    Examples
    --------
    >>> import numpy as np
    >>> x = np.full((2, 4, 4, 3), 255, np.uint8)
    >>> y = preprocess(x, mean=0.5, std=(0.5, 0.25, 0.1))
    >>> y.shape
    (2, 3, 4, 4)
    >>> y[0, :, 0, 0].round(6).tolist()
    [1.0, 2.0, 5.0]
    """
    options = (scale, input_layout, output_layout, dtype, quant, swap_rb, size, crop, _frozen(mirror), pad_channels, backend, threads)
    try:
        plan = _plan(_frozen(mean), _frozen(std), options, tuple(map(type, options)))
    except TypeError as problem:
        if "unhashable" not in str(problem):
            raise
        plan = _plan.__wrapped__(mean, std, options, ())
    return plan(images, out)


def _frozen(values: Any) -> Any:
    return tuple(np.asarray(values).tolist()) if isinstance(values, (list, np.ndarray)) and np.ndim(values) == 1 else values


@lru_cache(256)
def _plan(mean: Any, std: Any, options: tuple[Any, ...], types: Any) -> Preprocessor:
    """The plan of these arguments, kept. `types` tells True from 1."""
    return Preprocessor(mean, std, **dict(zip(OPTIONS, options, strict=True)))
