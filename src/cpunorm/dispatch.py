"""From checked arrays to a prepared call: the view and plan that fit their strides, the backend's driver, copies where no view fits.

Preparing is done once for each combination of shapes, strides, dtypes, options and settings; what it returns holds no array.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import combinations
from typing import Any, cast

import numpy as np

from cpunorm import backends, machine, settings
from cpunorm.layout import CHANNEL, KEPT, REDUCED, View, find_view, memory_order
from cpunorm.plan import Plan, Resources

Array = np.ndarray[Any, Any]
Run = Callable[..., Any]  # the slots of `program.SLOTS` but scratch -> the scratch array

PARAMETERS = slice(4, 8)  # of the slots: weight, bias, running_mean, running_var


class Runner:
    """A plan linked with a backend: runs on arrays as they are."""

    __slots__ = ("_bias", "_filled", "_threads", "_weight", "address", "driver", "plan", "program", "room", "scratch")

    def __init__(self, plan: Plan, backend: str, dtype: str) -> None:
        module = backends.compiled(backend)
        self.plan = plan
        # Tables are float64 whatever the data is: their kernels have one dtype.
        self.program = plan.link(lambda name: module.address(name, "float64" if name in ("fold_moments", "fold_sums") else dtype))
        self.driver, self._threads = module.driver(plan.threads)
        self.address = self.program.address
        self.scratch = plan.scratch
        self.room = 8 * plan.scratch  # bytes that a call allocates
        kind = np.float64 if dtype == "float64" else np.float32
        self._filled = (np.ones(plan.affine, kind), np.full(plan.affine, plan.bias, kind)) if plan.affine else ()
        self._weight, self._bias = (id(array) for array in self._filled) if plan.affine else (0, 0)

    def __call__(
        self,
        x: Array,
        second: Array | None = None,
        y: Array | None = None,
        total: Array | None = None,
        weight: Array | None = None,
        bias: Array | None = None,
        running_mean: Array | None = None,
        running_var: Array | None = None,
        mean: Array | None = None,
        rstd: Array | None = None,
        grad_weight: Array | None = None,
        grad_bias: Array | None = None,
    ) -> Array:
        """Run on these arrays; returns the scratch array with the tables."""
        scratch = np.empty(self.scratch)
        self.driver(
            self.address,
            self._threads,
            id(x),
            0 if second is None else id(second),
            0 if y is None else id(y),
            0 if total is None else id(total),
            self._weight if weight is None else id(weight),
            self._bias if bias is None else id(bias),
            0 if running_mean is None else id(running_mean),
            0 if running_var is None else id(running_var),
            0 if mean is None else id(mean),
            0 if rstd is None else id(rstd),
            0 if grad_weight is None else id(grad_weight),
            0 if grad_bias is None else id(grad_bias),
            id(scratch),
        )
        return scratch

    def addressed(self) -> tuple[int, int, int, int, int]:
        """What C takes that finds the arrays itself: program, threads, scratch; and where a weight and a bias are for who has none."""
        weight, bias = (array.ctypes.data for array in self._filled) if self._filled else (0, 0)
        return self.address, self._threads, self.scratch, weight, bias


def resources(threads: int | None) -> Resources:
    """What a call that asked for `threads` may use."""
    return Resources(settings.resolve_threads(threads), machine.caches())


def resources_of(backend: str, threads: int | None) -> Resources:
    """The same for the kernels of a backend."""
    return replace(resources(threads), waking=backends.compiled(backend).waking())


def compute_dtype(dtype: np.dtype[Any]) -> np.dtype[Any]:
    """The dtype that kernels compute in, and that statistics and parameters have."""
    return np.dtype(np.float64 if dtype.itemsize == 8 else np.float32)


def packed_like(shape: Sequence[int], order: Sequence[int], dtype: np.dtype[Any]) -> Array:
    """An array of `shape` without gaps whose axes lie in memory in this order."""
    return cast(Array, np.empty([shape[axis] for axis in order], dtype).transpose(np.argsort(order)))


def element_strides(x: Array) -> tuple[int, ...] | None:
    """Strides in elements; None for data that kernels cannot read in place: byte-swapped, or not aligned, its strides included.

    (Of an axis of one value any stride is; what it is rounded to here is not used.)
    """
    if not x.dtype.isnative or not x.flags.aligned:
        return None
    return tuple(stride // x.itemsize for stride in x.strides)


def canonical_order(roles: str) -> list[int]:
    """Kept axes first, then the channel, then the reduced ones: in this order a packed array always has a view."""
    return sorted(range(len(roles)), key=lambda axis: (KEPT, CHANNEL, REDUCED).index(roles[axis]))


def prepare(
    x: Array,
    second: Array | None,
    out: Array,
    roles: str,
    make: Callable[[View, bool, Resources], Plan],
    *,
    backend: str,
    threads: int | None,
    in_place: bool = False,
    ordered: bool = False,
    apart: bool = False,
) -> Run:
    """A runner for arrays like these. Where their strides share no view, the fewest of them are copied (into a packed temporary).

    `in_place`: out is x or second. `ordered`: the axes must lie in memory in their own order (their elements belong to those of a weight).
    `apart`: the kernels cannot write over what they read.
    """
    operands = [x, *([] if second is None else [second]), out]
    orders = [canonical_order(roles)]
    if not ordered:
        orders.insert(0, sorted(range(x.ndim), key=lambda axis: -abs(x.strides[axis])))
    strides = [element_strides(operand) for operand in operands]
    for count in range(len(operands) + 1):
        for copied in combinations(range(len(operands)), count):
            if apart and in_place and len(operands) - 1 not in copied:
                continue
            for order in orders:
                packed = element_strides(packed_like(x.shape, order, x.dtype.newbyteorder("=")))
                tried = [packed if i in copied else own for i, own in enumerate(strides)]
                if None in tried or (ordered and memory_order(x.shape, cast(Any, tried[0])) != _long_axes(x.shape)):
                    continue
                view = find_view(x.shape, tuple(cast(Any, tried)), roles)
                if ordered and view is not None and view.outer > 1 and not view.kept_outer:
                    continue  # one row in pieces that lie apart
                if view is not None:
                    plan = make(view, in_place and not copied, resources_of(backend, threads))
                    runner = Runner(plan, backend, x.dtype.name)
                    return _with_copies(runner, copied, order, second is not None, x.nbytes) if copied else runner
    raise AssertionError(f"no view of packed copies: {x.shape}, {roles}")


def _long_axes(shape: tuple[int, ...]) -> list[int]:
    return [axis for axis, size in enumerate(shape) if size != 1]


def _with_copies(runner: Runner, copied: tuple[int, ...], order: Sequence[int], has_second: bool, nbytes: int) -> Run:
    """Run on packed copies of the operands numbered in `copied`."""

    def run(x: Array, second: Array | None, y: Array, *rest: Array | None) -> Array:
        operands: list[Any] = [x, *([second] if has_second else []), y]
        for i in copied:
            given = operands[i]
            operands[i] = packed_like(given.shape, order, given.dtype.newbyteorder("="))
            if i < len(operands) - 1:
                operands[i][...] = given
        scratch = runner(operands[0], operands[1] if has_second else None, operands[-1], *rest)
        if operands[-1] is not y:
            y[...] = operands[-1]
        return scratch

    run.plan = runner.plan  # type: ignore[attr-defined]
    run.room = runner.room + len(copied) * nbytes  # type: ignore[attr-defined]
    return run


def with_parameters(run: Run, parameters: Sequence[Array | None], dtype: np.dtype[Any], *, written: bool) -> Run:
    """`run` with parameters that kernels can read: those of another dtype or with gaps are copied, running statistics back."""
    if all(value is None or (value.dtype == dtype and _readable(value)) for value in parameters):
        return run

    def with_copies(*arrays: Array | None) -> Array:
        given = arrays[PARAMETERS]
        copies = [None if value is None else np.array(value, dtype, order="C") for value in given]
        scratch = run(*arrays[: PARAMETERS.start], *copies, *arrays[PARAMETERS.stop :])
        if written:
            with np.errstate(all="ignore"):
                for value, copy in zip(given[2:], copies[2:], strict=True):
                    if value is not None:
                        value[...] = copy
        return cast(Array, scratch)

    return with_copies


def _readable(parameter: Array) -> bool:
    return bool(parameter.flags.c_contiguous and parameter.flags.aligned and parameter.dtype.isnative)
