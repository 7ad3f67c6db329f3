"""The operation table: one row an operation, walked by the tests, ``cpunorm compare``, the benchmarks and the README.

A row knows how to make inputs of any shape, layout and dtype (ordinary ones, and exact ones whose result has the same bits however it is
summed), how to call us, the float64 reference, and PyTorch as a peer, and which bytes cannot but move. A public function that has no row
fails a test.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from cpunorm import functional, samples

Array = np.ndarray[Any, Any]
Inputs = dict[str, Any]
Shape = tuple[int, ...]
Make = Callable[[Shape, str, str, np.random.Generator], Inputs]

# Shapes are given channels first, (N, C, *spatial), whatever the layout.
SHAPES = {
    "ResNet-50 conv1, batch 32": (32, 64, 112, 112),
    "ResNet-50 stage 3, batch 32": (32, 512, 28, 28),
    "ResNet-50 stage 5, batch 32": (32, 2048, 7, 7),
    "ResNet-50 stage 2, batch 1": (1, 256, 56, 56),
    "MobileNetV2 block 2, batch 8": (8, 96, 56, 56),
}


@dataclass(frozen=True)
class Operation:
    """One row. Inputs are the keyword arguments of the public function."""

    name: str
    function: Callable[..., Any]
    inputs: Make
    reference: Callable[[Inputs], tuple[Array, ...]]
    torch: Callable[[Inputs], Callable[[], Any]]
    reads: int  # trips over x that no implementation avoids once x is larger than the caches
    writes: int
    exact_inputs: Make | None = None
    updates: tuple[str, ...] = ()  # inputs that the call changes; the reference returns their new values last
    layouts: bool = True  # takes a layout; else the last axis is normalized, or what the inputs say
    dtypes: tuple[str, ...] = ("float32", "float64", "float16", "bfloat16")
    data: str = "x"  # the argument that is read and written
    takes_out: bool = True
    least_rank: int = 2  # axes of x

    def call(self, inputs: Inputs, **options: Any) -> tuple[Array, ...]:
        """Our results, then what the call changed."""
        return self.results(self.function(**inputs, **options), inputs)

    def results(self, given: Any, inputs: Inputs) -> tuple[Array, ...]:
        """What the function returned as a tuple, then what the call changed."""
        results = given if isinstance(given, tuple) else (given,)
        return (*results, *(inputs[name] for name in self.updates if inputs.get(name) is not None))

    def tolerance(self, inputs: Inputs) -> dict[str, float]:
        """How far from the reference a result may be."""
        x = inputs["x"]
        if self.data == "x":
            return tolerance(x.dtype.name)
        return gradient_tolerance(x.dtype.name, x.size // inputs["weight"].size if "weight" in inputs else 1)

    def bytes_moved(self, x: Array) -> int:
        """What has to be read and written for `x`."""
        return (self.reads + self.writes) * x.nbytes


def tolerance(dtype: str) -> dict[str, float]:
    """How far from the float64 reference a result may be: ``abs(y - r) <= atol + rtol * abs(r)`` for data of ordinary size.

    For 16 bits that is one unit in the last place; 1e-5 near zero, where the terms of a sum are rounded to float32.
    """
    return {
        "float16": {"rtol": 2.0**-10, "atol": 1e-5},
        "bfloat16": {"rtol": 2.0**-7, "atol": 1e-5},
        "float32": {"rtol": 1e-5, "atol": 1e-6},
        "float64": {"rtol": 1e-12, "atol": 1e-12},
    }[dtype]


def gradient_tolerance(dtype: str, terms: int) -> dict[str, float]:
    """The same for a gradient, whose sums of `terms` products around 1 are rounded relative to their size, not to their result's."""
    limits = tolerance(dtype)
    return {"rtol": 4 * limits["rtol"], "atol": 4 * limits["atol"] * max(1.0, math.sqrt(terms) / 8)}


_ROWS = (
    Operation(
        "batch_norm inference",
        functional.batch_norm,
        samples.batch_norm_inputs(False),
        samples.batch_norm_reference,
        samples.torch_function("batch_norm"),
        reads=1,
        writes=1,
        exact_inputs=samples.batch_norm_exact(False),
    ),
    Operation(
        "batch_norm training",
        functional.batch_norm,
        samples.batch_norm_inputs(True),
        samples.batch_norm_reference,
        samples.torch_function("batch_norm"),
        reads=2,
        writes=1,
        exact_inputs=samples.batch_norm_exact(True),
        updates=("running_mean", "running_var"),
    ),
    Operation(
        "instance_norm",
        functional.instance_norm,
        samples.instance_norm_inputs,
        samples.group_norm_reference,
        samples.torch_function("instance_norm"),
        least_rank=3,
        reads=1,
        writes=1,
        exact_inputs=samples.instance_norm_exact,
    ),
    Operation(
        "group_norm",
        functional.group_norm,
        samples.group_norm_inputs,
        samples.group_norm_reference,
        samples.torch_function("group_norm"),
        reads=1,
        writes=1,
        exact_inputs=samples.group_norm_exact,
    ),
    Operation(
        "layer_norm",
        functional.layer_norm,
        samples.layer_norm_inputs,
        samples.row_reference(True),
        samples.torch_function("layer_norm"),
        reads=1,
        writes=1,
        exact_inputs=samples.layer_norm_exact,
        layouts=False,
    ),
    Operation(
        "rms_norm",
        functional.rms_norm,
        samples.rms_norm_inputs,
        samples.row_reference(False),
        samples.torch_function("rms_norm"),
        reads=1,
        writes=1,
        exact_inputs=samples.rms_norm_exact,
        layouts=False,
    ),
    Operation(
        "local_response_norm",
        functional.local_response_norm,
        samples.window_inputs,
        samples.window_reference,
        samples.torch_function("local_response_norm"),
        least_rank=3,
        reads=1,
        writes=1,
    ),
    Operation(
        "normalize",
        functional.normalize,
        samples.normalize_inputs,
        samples.normalize_reference,
        samples.torch_function("normalize"),
        reads=1,
        writes=1,
        layouts=False,
    ),
    Operation(
        "mean_var",
        functional.mean_var,
        samples.mean_var_inputs,
        samples.mean_var_reference,
        samples.mean_var_torch,
        reads=1,
        writes=0,
        exact_inputs=samples.mean_var_exact,
        takes_out=False,
    ),
    Operation(
        "batch_norm_backward",
        functional.batch_norm_backward,
        samples.gradient_inputs(
            samples.batch_norm_inputs(True), functional.batch_norm, ("running_mean", "running_var", "bias", "training")
        ),
        samples.batch_gradient_reference,
        samples.torch_gradient("batch_norm", samples.forward_of(running_mean=None, running_var=None, training=True)),
        reads=4,
        writes=1,
        data="grad",
    ),
    Operation(
        "instance_norm_backward",
        functional.instance_norm_backward,
        samples.gradient_inputs(samples.instance_norm_inputs, functional.instance_norm, ("bias",)),
        samples.group_gradient_reference,
        samples.torch_gradient("instance_norm", samples.forward_of()),
        least_rank=3,
        reads=2,
        writes=1,
        data="grad",
    ),
    Operation(
        "group_norm_backward",
        functional.group_norm_backward,
        samples.gradient_inputs(samples.group_norm_inputs, functional.group_norm, ("bias",)),
        samples.group_gradient_reference,
        samples.torch_gradient("group_norm", samples.forward_of()),
        reads=2,
        writes=1,
        data="grad",
    ),
    Operation(
        "layer_norm_backward",
        functional.layer_norm_backward,
        samples.gradient_inputs(samples.layer_norm_inputs, functional.layer_norm, ("bias",)),
        samples.row_gradient_reference,
        samples.torch_gradient("layer_norm", samples.forward_of()),
        reads=2,
        writes=1,
        layouts=False,
        data="grad",
    ),
    Operation(
        "rms_norm_backward",
        functional.rms_norm_backward,
        samples.gradient_inputs(samples.rms_norm_inputs, functional.rms_norm, ("eps",)),
        samples.row_gradient_reference,
        samples.torch_gradient("rms_norm", samples.forward_of(eps=1e-6)),
        reads=2,
        writes=1,
        layouts=False,
        data="grad",
    ),
    Operation(
        "local_response_norm_backward",
        functional.local_response_norm_backward,
        samples.gradient_inputs(samples.window_inputs, functional.local_response_norm, ()),
        samples.window_gradient_reference,
        samples.torch_gradient("local_response_norm", samples.forward_of()),
        least_rank=3,
        reads=2,
        writes=1,
        data="grad",
    ),
    Operation(
        "normalize_backward",
        functional.normalize_backward,
        samples.gradient_inputs(samples.normalize_inputs, functional.normalize, ()),
        samples.normalize_gradient_reference,
        samples.torch_gradient("normalize", samples.forward_of()),
        reads=2,
        writes=1,
        layouts=False,
        data="grad",
    ),
)

OPERATIONS = {row.name: row for row in _ROWS}
