"""Programs: what a plan hands to a backend. C structs (csrc/program.h has the same), read by the kernels of every compiled backend.

A **step** is a kernel and the small view of the data that it works on; every number in it is fixed by shapes, strides and options, so it
is made once and called often. A **phase** is a few steps run over blocks of the same items, all steps over one block before the next:

* one step a phase, several phases: *breadth first*, each step over everything (a trip to memory a step);
* several steps in one phase: *depth first*, all steps over a few units, a `part` of a block, while they are in cache (one trip).

A kernel is ``void kernel(const step *, void *const *buffers, int64 lo, int64 hi)``. Addresses of a call are in ``buffers``, in the order
of `SLOTS`. All tables of intermediate results live in one float64 scratch array, at offsets that the step names.

The kernels of preprocessing read **pictures**, each somewhere else in memory: slot x is then a table of them, mean, rstd and bias the
coefficients of the affine.
"""

from __future__ import annotations

from typing import Any

import numpy as np

SLOTS = (
    "x",  # what is normalized; in a gradient, the gradient of the result
    "second",  # the residual; in a gradient, what was normalized
    "y",
    "sum",  # x + residual, where it is asked for
    "weight",
    "bias",
    "running_mean",
    "running_var",
    "mean",
    "rstd",
    "grad_weight",
    "grad_bias",
    "scratch",
)

STEP_INTEGERS = (
    "kernel",  # address
    "items",  # how many items the kernel has in all
    "scale",  # items of the kernel in one item of the phase
    # view: [repeat, outer, middle, last], strides in elements
    "repeat",
    "outer",
    "middle",
    "last",
    "x_repeat",
    "x_outer",
    "x_middle",
    "second_repeat",
    "second_outer",
    "second_middle",
    "y_repeat",
    "y_outer",
    "y_middle",
    "total",  # elements: reductions, of a unit (runs, rows) or of an outer index (columns); affine, of a repeat
    "item_size",  # bytes of an element of x, second, y and sum
    "load",  # windows: address of the stage that widens a tile of x or second; 0 where they are of the computing dtype
    "has_second",
    "ahead",  # bytes from what is read to what is fetched meanwhile
    "sparse",  # fetch every second group of vectors only
    # reductions
    "source",  # moments: the slot that is read, x or second
    "pieces",  # the total is cut into so many items
    "length",  # of so many elements each, the last one shorter
    "centred",  # differences from the mean; else mean 0 (RMS)
    # affine
    "grain",  # elements of an item
    "packed",  # y has no gaps: a tile may cross runs
    "activation",  # address of a stage; 0 for none, or one that is a clip
    "store",  # windows: address of the stage that writes a tile
    "streams",  # the result goes past the caches
    "tiled",  # the result goes through a tile
    # tables in scratch: [outer, entry, channel]
    "channels",
    "groups",  # units an outer index; each has channels / groups of the coefficients
    "weighted",  # weight and bias go into the coefficients (else into the affine, an element at a time)
    "training",  # gradient: the statistics depend on x
    "moments",  # offset of (count, mean, M2) or of (sum g, sum g (x - mean)), `entries` float64 each
    "entries",
    "unit_entries",  # entries that one unit merges
    "statistics",  # offset of the same of `units` units
    "units",
    "partials",  # offset of partial sums a column: [entry, 2, columns]
    "coefficients",  # offset of (center, scale, shift, second center, second scale), `coefficient_count` of the computing dtype each
    "coefficient_count",
    "coefficient_outer",  # from one outer index to the next; 0 where all share one row
    "period",  # columns: the row of coefficients repeats after so many values, a multiple of `channels`,
    "width",  # and goes on for a few more, so that a group of vectors may begin anywhere in a period
    # window
    "before",  # channels before and
    "after",  # after the one in the middle
    # pictures; `last` is the width of what is taken of one, `total` its pixels, `grain` the pixels of an item
    "out_size",  # bytes of an element of y
    "padded",  # channels of y; those from `channels` on have no picture's
    "bytes_to_floats",  # x is bytes, y float32: done in one go; `store` then only says that it is past the caches
    "swap",  # the first and the third channel change places
    "reach",  # resize: elements from one channel of a row to the next, before its columns are resized
    "ring",  # resize: rows kept after that
)
STEP_FLOATS = ("eps", "momentum", "size", "alpha", "beta", "k", "floor", "ceiling")  # the last two: bounds of the affine's result
ADDRESSES = ("kernel", "load", "activation", "store")  # fields that hold the address of a kernel or stage
PHASE_INTEGERS = (
    "items",
    "block",  # of the items, that a thread takes at a time
    "part",  # of the block, that goes through all steps before the next
    "first",  # the steps: `count` from this one on
    "count",
)
PROGRAM_INTEGERS = ("phases", "phase_count", "steps")  # addresses and a length
READY_INTEGERS = (
    "program",  # address
    "threads",
    "scratch",  # float64 values that the tables take
    "weight",  # addresses of what stands for a weight and a bias that are not there
    "bias",
    "in_place",  # y is x or second
    "expected",  # address: of each slot but scratch the number of axes (or ABSENT, OURS), type, flags, size of an element, shape, strides;
    "options",  # then the types of so many options, and of the number of threads
)
ABSENT, OURS = -1, -2  # no array; one that the caller has just made
PICTURE_INTEGERS = (
    "data",  # address of the first pixel that is read
    "row",  # bytes from one row to the next,
    "column",  # from one pixel to the next (negative where it is mirrored),
    "channel",  # from one channel to the next
    # resize
    "mirror",  # columns are written from the last to the first
    "width",  # columns that are read
    "across",  # address of the weights of a row: for each column written, first column read, count, and `across_taps` weights
    "across_taps",
    "down",  # the same of a column
    "down_taps",
)

STEP = np.dtype([(n, np.int64) for n in STEP_INTEGERS] + [(n, np.float64) for n in STEP_FLOATS])
PHASE = np.dtype([(n, np.int64) for n in PHASE_INTEGERS])
PROGRAM = np.dtype([(n, np.int64) for n in PROGRAM_INTEGERS])
READY = np.dtype([(n, np.int64) for n in READY_INTEGERS])
PICTURE = np.dtype([(n, np.int64) for n in PICTURE_INTEGERS])


class Program:
    """Phases and steps in memory that stays where it is: `address` is what a backend's driver takes."""

    __slots__ = ("address", "head", "kernels", "phases", "scratch", "steps")

    def __init__(self, phases: list[tuple[dict[str, int], list[dict[str, Any]]]], scratch: int) -> None:
        """`phases`: (items, block and part, its steps); a step names its fields."""
        steps = [step for _, block in phases for step in block]
        self.steps = np.zeros(len(steps), STEP)
        for row, step in enumerate(steps):
            for name, value in step.items():
                self.steps[name][row] = value
        self.phases = np.zeros(len(phases), PHASE)
        first = 0
        for row, (sizes, block) in enumerate(phases):
            self.phases[row] = (sizes["items"], sizes["block"], sizes["part"], first, len(block))
            first += len(block)
        self.head = np.array([(self.phases.ctypes.data, len(phases), self.steps.ctypes.data)], PROGRAM)
        self.address = int(self.head.ctypes.data)
        self.scratch = scratch  # float64 values
