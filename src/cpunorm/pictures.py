"""Preprocessing from checked arguments to a prepared call: which part of each picture is taken, the plan, the table of pictures.

What depends on shapes and strides alone is made once (`Prepared`), and a call on one array uses it as it is. A call on a list adds the
addresses of its pictures to a copy of the table.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from cpunorm import backends, check, check_pictures, dispatch, program, resize
from cpunorm.plan import GRAIN, TILE, Phase, Plan, Resources, Step, Value, phase_of, threads_for

Array = np.ndarray[Any, Any]

PARTS_A_THREAD = 4  # shares of the rows of a resize that each thread gets; each starts with some that its neighbour has too
LINE = 64  # bytes
REACH = TILE + LINE  # values of a tile in the backends
DATA = program.PICTURE_INTEGERS.index("data")

AUTO = {"uint8": 1 / 255, "uint16": 1 / 65535, "float16": 1.0, "float32": 1.0}  # scale="auto"


@dataclass(frozen=True, eq=False)
class Options:
    """Checked arguments of `preprocess`. Equal only to themselves: they are a part of the key of prepared calls, which is found fast."""

    mean: tuple[float, ...]
    std: tuple[float, ...]
    scale: float | None
    input_layout: str
    output_layout: str
    dtype: np.dtype[Any]
    quant: tuple[float, int] | None
    swap_rb: bool
    size: tuple[Any, int] | None
    crop: tuple[Any, ...] | None
    mirror: bool | tuple[bool, ...]
    pad_channels: int | None
    backend: str | None
    threads: int | None


class Frame(NamedTuple):
    """What is taken of a picture of `height` and `width`: resized to `size`, of that `crop` = (top, left, height, width)."""

    height: int
    width: int
    size: tuple[int, int]
    crop: tuple[int, int, int, int]


class Source(NamedTuple):
    """Pictures with axes height, width and channels: `shape` and `strides` in bytes of each, and where it starts in its array."""

    shape: tuple[int, int, int]
    strides: tuple[int, int, int]
    array: int
    start: int


def frame(call: str, options: Options, index: int, height: int, width: int) -> Frame:
    """Of picture `index`."""
    size = resize.target(options.size, height, width) if options.size else (height, width)
    match options.crop:
        case None:
            crop = (0, 0, *size)
        case ("center", high, wide):
            crop = ((size[0] - high) // 2, (size[1] - wide) // 2, high, wide)
        case (top, left, high, wide):
            crop = (top, left, high, wide)
    check_pictures.crop_inside(call, crop, *size, index)
    return Frame(height, width, size, crop)


def sources(arrays: list[Array], layout: str) -> list[Source]:
    """The pictures of these arrays, which have one each, or are one array with several."""
    found = []
    for number, x in enumerate(arrays):
        batch = x.shape[0] if x.ndim == 4 else 1
        axes = np.array((0, 1, 2) if layout == "NHWC" else (1, 2, 0)) + (x.ndim - 3)
        shape, strides = (tuple(values[axis] for axis in axes) for values in (x.shape, x.strides))
        found += [Source(shape, strides, number, i * x.strides[0] if x.ndim == 4 else 0) for i in range(batch)]
    return found


def is_readable(x: Array) -> bool:
    """Whether kernels can read it as it is: neither byte-swapped nor off its alignment."""
    return x.dtype.isnative and x.flags.aligned


def readable(x: Array) -> Array:
    """The array, or a copy that kernels can read."""
    return x if is_readable(x) else np.array(x, x.dtype.newbyteorder("="), order="C")


class Prepared:
    """Runs on arrays like those it was prepared for: ``prepared(arrays, y)``. `shape` is the result's."""

    def __init__(self, call: str, options: Options, arrays: list[Array], single: bool, out: Array | None) -> None:
        channels = check_pictures.picture_arrays(call, arrays, single, options.input_layout)
        check_pictures.picture_channels(call, channels, options.mean, options.std, options.pad_channels, options.swap_rb)
        self._readable = all(map(is_readable, arrays))
        self._sources = sources([*map(readable, arrays)], options.input_layout)  # a copy has strides of its own
        count = len(self._sources)
        if not isinstance(options.mirror, bool) and len(options.mirror) != count:
            raise ValueError(f"{call}: expected mirror to be one an image of {count}, got {len(options.mirror)}")
        self._mirror = (options.mirror,) * count if isinstance(options.mirror, bool) else options.mirror
        axes = arrays[0].shape[-3:]
        shapes = [source.shape[:2] for source in self._sources] or [(axes if options.input_layout == "NHWC" else axes[1:])[:2]]
        if options.size and any(0 in shape for shape in shapes):
            raise ValueError(f"{call}: expected pictures with rows and columns, which size can resize, got {shapes[0]}")
        self._frames = [frame(call, options, i, *shape) for i, shape in enumerate(shapes)]
        check_pictures.same_sizes(call, shapes, [each.crop[2:] for each in self._frames], resized=options.size is not None)
        height, width = self._frames[0].crop[2:]
        padded = options.pad_channels or channels
        first = options.output_layout == "NCHW"
        self.shape = (count, padded, height, width) if first else (count, height, width, padded)
        self.dtype = options.dtype
        if out is not None:
            check.out_like(call, out, self.shape, self.dtype)
        self._options, self._channels, self._padded = options, channels, padded
        self._source_dtype = arrays[0].dtype.newbyteorder("=")
        self._backend = backends.choose(options.backend)
        self._empty = math.prod(self.shape) == 0
        self._center, self._scale, self._shift = self._coefficients()
        self._copied = False
        if self._backend != "numpy" and not self._empty:
            self._prepare(np.empty(self.shape, self.dtype) if out is None else out)

    def __call__(self, arrays: list[Array], y: Array) -> None:
        """Write the result to `y`."""
        if self._empty:
            return
        if not self._readable:
            arrays = [readable(x) for x in arrays]
        if self._backend == "numpy":
            self._reference(arrays, y)
            return
        if len(arrays) == 1:
            table, base = self._table, arrays[0]
        else:
            table, base = self._table.copy(), None
            table[:, DATA] += [x.__array_interface__["data"][0] for x in arrays]
        to = np.empty(self.shape, self.dtype) if self._copied else y
        self._run(table, base, to, None, None, self._shift, None, None, self._center, self._scale)
        if self._copied:
            y[...] = to

    def _reference(self, arrays: list[Array], y: Array) -> None:
        from cpunorm import reference_pictures

        options = self._options
        views = []
        for source in self._sources:
            x = arrays[source.array]
            x = x[source.start // x.strides[0] if x.strides[0] else 0] if x.ndim == 4 else x
            views.append(x if options.input_layout == "NHWC" else x.transpose(1, 2, 0))
        scale = AUTO[self._source_dtype.name] if options.scale is None else options.scale
        for i, (x, each, mirror) in enumerate(zip(views, self._frames, self._mirror, strict=True)):
            result = reference_pictures.preprocess(
                x, options.mean, options.std, scale, options.swap_rb, each.size, each.crop, mirror, self._padded, options.quant
            )
            result = result.transpose(2, 0, 1) if options.output_layout == "NCHW" else result
            with np.errstate(all="ignore"):
                y[i] = reference_pictures.quantized(result, self.dtype, options.quant) if options.quant else result

    # ---------------------------------------------------------------- compiled backends

    def _prepare(self, out: Array) -> None:
        strides = self._out_strides(out)
        self._copied = strides is None
        resources = dispatch.resources_of(self._backend, self._options.threads)
        make = self._resize if self._options.size else self._rearrange
        plan = make(resources, *(self._out_strides(np.empty(self.shape, self.dtype)) or ()) if strides is None else strides)
        self._run = dispatch.Runner(plan, self._backend, "float32")
        self._table = self._entries.view(np.int64).reshape(len(self._entries), len(program.PICTURE_INTEGERS))

    def _out_strides(self, out: Array) -> tuple[int, int] | None:
        """From one picture of `out` to the next and from plane to plane, in elements; None where kernels cannot write it as it is."""
        if not out.flags.aligned:
            return None
        inner = 2 if self._options.output_layout == "NCHW" else 1
        packed = out.itemsize
        for axis in range(3, inner - 1, -1):
            if out.shape[axis] > 1 and out.strides[axis] != packed:
                return None
            packed *= out.shape[axis]
        return out.strides[0] // out.itemsize, out.strides[1] // out.itemsize

    def _coefficients(self) -> list[Array]:
        """Center, scale and shift of ``(x - center) * scale + shift``, as rows of one value (planes) or of all channels (pixels)."""
        options = self._options
        factor = AUTO[self._source_dtype.name] if options.scale is None else options.scale
        mean, std = (np.resize(values, self._channels) for values in (options.mean, options.std))
        step, zero = options.quant or (1.0, 0)
        found = []
        for values, rest in ((mean / factor, 0), (factor / (std * step), 0), (np.full(self._channels, zero), zero)):
            each = np.full(self._padded, rest, np.float64)
            each[: self._channels] = values
            with np.errstate(over="ignore"):
                single = each.astype(np.float32)
            if not np.isfinite(single).all():
                raise ValueError(f"preprocess: expected mean, std and scale whose quotients float32 can hold, got {options.mean}")
            planes = options.output_layout == "NCHW"
            found.append(np.repeat(single, REACH) if planes else np.resize(single, self._padded + TILE))
        return found

    def _fields(self, y_outer: int, y_middle: int, resources: Resources) -> tuple[dict[str, Value], int]:
        """What all kernels read, and the number of threads."""
        source, result = self._source_dtype, self.dtype
        pixels = sum(each.crop[2] * each.crop[3] if self._options.size is None else each.height * each.width for each in self._frames)
        moved = pixels * self._channels * source.itemsize + math.prod(self.shape) * result.itemsize
        fields: dict[str, Value] = {
            "channels": self._channels,
            "padded": self._padded,
            "swap": int(self._options.swap_rb),
            "item_size": source.itemsize,
            "out_size": result.itemsize,
            "y_outer": y_outer,
            "y_middle": y_middle,
        }
        if source.name != "float32":
            fields["load"] = f"load_{source.name}"
        if result.name != "float32":
            fields["store"] = f"store_{result.name}"
        elif moved > resources.caches.l3 // 2:  # what reads it next finds little of it there, and the pictures are there no more
            fields["store"] = "store_stream"
        fields["bytes_to_floats"] = int(source.name == "uint8" and result.name == "float32")
        return fields, threads_for(moved, resources)

    def _rearrange(self, resources: Resources, y_outer: int, y_middle: int) -> Plan:
        """`planes` or `pixels`: items of `GRAIN` values, so that one picture has work for all threads."""
        fields, threads = self._fields(y_outer, y_middle, resources)
        height, width = self._frames[0].crop[2:]
        table = np.zeros(len(self._sources), program.PICTURE)
        for entry, source, each, mirror in zip(table, self._sources, self._frames, self._mirror, strict=True):
            row, column, channel = source.strides
            top, left = each.crop[:2]
            last = (width - 1) * column if mirror else 0
            entry["data"] = source.start + top * row + left * column + last
            entry["row"], entry["column"], entry["channel"] = row, -column if mirror else column, channel
        self._entries = table
        if (table["row"] == table["column"] * width).all():
            width *= height  # one long row
        pixels = math.prod(self._frames[0].crop[2:])
        grain = max(64, GRAIN // self._padded // 64 * 64)
        pieces = -(-pixels // grain)
        fields |= {"items": len(table) * pieces, "pieces": pieces, "grain": grain, "last": width, "total": pixels}
        kernel = "planes" if self._options.output_layout == "NCHW" else "pixels"
        item_bytes = grain * (self._channels * self._source_dtype.itemsize + self._padded * self.dtype.itemsize)
        return Plan((phase_of(Step(kernel, fields), item_bytes, threads),), 0, threads)

    def _resize(self, resources: Resources, y_outer: int, y_middle: int) -> Plan:
        """`resize_rows`: items are shares of all rows written, each with a ring of rows in scratch."""
        fields, threads = self._fields(y_outer, y_middle, resources)
        count, (height, width) = len(self._sources), self._frames[0].crop[2:]
        whole = self._source_dtype.itemsize == 1
        table = np.zeros(count, program.PICTURE)
        self._weights: dict[Any, tuple[Array, int, int, int, int]] = {}  # the table has their addresses
        ring = 0
        for entry, source, each, mirror in zip(table, self._sources, self._frames, self._mirror, strict=True):
            row, column, channel = source.strides
            (top, left), (high, wide) = each.crop[:2], each.size
            down, down_taps, top, down_most = self._axis(each.height, high, top, height, whole)[:4]
            across, across_taps, left, _, columns = self._axis(each.width, wide, left, width, whole)
            entry["data"] = source.start + top * row + left * column
            entry["row"], entry["column"], entry["channel"] = row, column, channel
            entry["mirror"], entry["width"] = mirror, columns
            entry["across"], entry["across_taps"] = across.ctypes.data, across_taps
            entry["down"], entry["down_taps"] = down.ctypes.data, down_taps
            ring = max(ring, down_most)
        self._entries = table
        planes = self._options.output_layout == "NCHW"
        size = 1 if whole else 4
        reach = -(-(int(table["width"].max()) + resize.LANES) // LINE) * LINE
        line = reach * self._channels * size // 8
        length = line + -(-ring * width * (self._channels if planes else self._padded) * size // LINE) * LINE // 8
        items = min(count * height, PARTS_A_THREAD * threads if threads > 1 else 1)
        fields |= {"items": items, "outer": count, "middle": height, "last": width, "reach": reach, "ring": ring}
        fields |= {"groups": self._padded if planes else 1, "period": width if planes else width * self._padded}
        fields |= {"length": length, "moments": line}
        return Plan((Phase(items, 1 if threads > 1 else items, (Step("resize_rows", fields),)),), items * length, threads)

    def _axis(self, before: int, after: int, start: int, count: int, whole: bool) -> tuple[Array, int, int, int, int]:
        """Table of weights, weights a row, first place read, most weights in use, places read; made once for equal axes."""
        key = (before, after, start, count)
        if key not in self._weights:
            found = resize.triangle(before, after, start, count)
            first = int(found.first.min())
            rows, taps = resize.table(found, first, whole=whole)
            self._weights[key] = (rows, taps, first, int(found.counts.max()), int((found.first + found.counts).max()) - first)
        return self._weights[key]
