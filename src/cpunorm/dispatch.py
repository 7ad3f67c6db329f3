"""From checked arrays to a prepared call: the view and plan that fit their strides, the backend's driver, copies where no view fits.

Preparing is done once for each combination of shapes, strides, dtypes, options and settings; `Prepared` objects are kept by
`cpunorm.functional` and hold no array.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from cpunorm import backends, machine, settings
from cpunorm.layout import View, find_view
from cpunorm.plan import Plan, Resources

Array = np.ndarray[Any, Any]
PlanMaker = Callable[[View, int, bool, Resources], Plan]


class Runner:
    """A plan linked with a backend: runs on addresses."""

    __slots__ = ("_driver", "_threads", "address", "plan", "program", "scratch")

    def __init__(self, plan: Plan, backend: str, dtype: str) -> None:
        module = backends.compiled(backend)
        self.plan = plan
        # Tables are float64 whatever the data is: their kernel has one dtype.
        self.program = plan.link(lambda kernel: module.address(kernel, "float64" if kernel == "fold_moments" else dtype))
        self._driver, self._threads = module.driver(plan.threads)
        self.address = self.program.address
        self.scratch = plan.scratch

    def __call__(
        self,
        x: Array,
        y: Array | None = None,
        weight: Array | None = None,
        bias: Array | None = None,
        running_mean: Array | None = None,
        running_var: Array | None = None,
        mean: Array | None = None,
        rstd: Array | None = None,
    ) -> Array:
        """Run on these arrays; returns the scratch array with the tables."""
        scratch = np.empty(self.scratch)
        self._driver(
            self.address,
            self._threads,
            id(x),
            0 if y is None else id(y),
            0 if weight is None else id(weight),
            0 if bias is None else id(bias),
            0 if running_mean is None else id(running_mean),
            0 if running_var is None else id(running_var),
            0 if mean is None else id(mean),
            0 if rstd is None else id(rstd),
            id(scratch),
        )
        return scratch


class Prepared:
    """A `Runner` and the copies it needs: of an x or out whose strides, alignment or byte order have no view."""

    __slots__ = ("_copy_x", "_copy_y", "_runner")

    def __init__(self, runner: Runner, copy_x: bool, copy_y: bool) -> None:
        self._runner = runner
        self._copy_x = copy_x
        self._copy_y = copy_y

    def __call__(self, x: Array, y: Array, *rest: Array | None) -> None:
        """Run with y as output; `rest` are the further slots of `Runner`."""
        target = y
        if self._copy_y:
            y = np.empty_like(x, dtype=x.dtype.newbyteorder("="))
        if self._copy_x:
            x = packed_copy(x)
        self._runner(x, y, *rest)
        if self._copy_y:
            target[...] = y


def resources(threads: int | None) -> Resources:
    """What a call that asked for `threads` may use."""
    return Resources(settings.resolve_threads(threads), machine.caches())


def compute_dtype(dtype: np.dtype[Any]) -> str:
    """The dtype that kernels compute in."""
    return "float64" if dtype.itemsize == 8 else "float32"


def packed_copy(x: Array) -> Array:
    """A copy without gaps, in native byte order, in x's own order of axes."""
    copy = np.empty_like(x, dtype=x.dtype.newbyteorder("="))
    copy[...] = x
    return copy


def element_strides(x: Array) -> tuple[int, ...] | None:
    """Strides in elements; None for data that kernels cannot read in place (byte-swapped, unaligned)."""
    if not x.dtype.isnative or not x.flags.aligned or any(stride % x.itemsize for stride in x.strides):
        return None
    return tuple(stride // x.itemsize for stride in x.strides)


def prepare(x: Array, out: Array | None, roles: str, make: PlanMaker, *, in_place: bool, backend: str, threads: int | None) -> Prepared:
    """Find strides of x and of the result that share a view, copying neither, x, out or both, and plan for them."""
    result = np.empty_like(x) if out is None else out
    packed = element_strides(np.empty_like(x, dtype=x.dtype.newbyteorder("=")))
    for copy_x, copy_y in ((False, False), (True, False), (False, True), (True, True)):
        x_strides = packed if copy_x else element_strides(x)
        y_strides = packed if copy_y else element_strides(result)
        if x_strides is None or y_strides is None:
            continue
        view = find_view(x.shape, (x_strides, y_strides), roles)
        if view is not None:
            plan = make(view, x.itemsize, in_place and not (copy_x or copy_y), resources(threads))
            return Prepared(Runner(plan, backend, compute_dtype(x.dtype)), copy_x, copy_y)
    raise AssertionError(f"no view of a packed copy: {x.shape}, {roles}")
