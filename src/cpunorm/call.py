"""What all public functions share: arguments to arrays, the look-up of prepared calls, results allocated, `out` checked.

A call is looked up by all that its checks and its plan depend on (shapes, strides, dtypes, options, settings); what that finds is ready to
run. Only what may change between such calls is checked every time: that `out` may be written and does not overlap an input.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from cpunorm import backends, check, dispatch, ready, settings
from cpunorm.dispatch import Run
from cpunorm.layout import View
from cpunorm.parts import in_parts
from cpunorm.plan import Data, Plan, Resources
from cpunorm.program import OURS
from cpunorm.ready import Slots

Array = np.ndarray[Any, Any]

_PREPARED: dict[Any, Any] = {}
_PREPARED_LIMIT = 4096  # calls remembered; a program whose shapes never repeat starts anew then
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_PREPARED.clear)  # a forked child has no threads: its plans are serial
settings.when_limits_change.append(_PREPARED.clear)


class Prepared(NamedTuple):
    """What runs on the slots of `program.SLOTS`, and the shape of the statistics (None where there are none)."""

    run: Run
    stats: tuple[int, ...] | None = None
    centred: bool = True
    parameters: tuple[int, ...] = ()  # a gradient: the shape of grad_weight and grad_bias


@dataclass(frozen=True)
class Request:
    """The arrays of a call that has not been prepared yet. In a gradient x is the gradient and second what was normalized."""

    call: str
    x: Array
    second: Array | None
    like: Array  # without out, the result lies in memory as this does
    weight: Array | None
    bias: Array | None
    running_mean: Array | None
    running_var: Array | None
    mean: Array | None
    rstd: Array | None
    out: Array | None
    in_place: bool
    activation: str | None
    backend: str | None
    threads: int | None

    def check(self, dtypes: tuple[str, ...] = check.FLOATS) -> None:
        """What every call checks."""
        check.backend(self.call, self.backend)
        check.threads(self.call, self.threads)
        check.float_dtype(self.call, "x" if self.mean is self.rstd is None else "grad", self.x.dtype, dtypes)
        check.activation(self.call, self.activation)
        if self.out is not None:
            check.out_like(self.call, self.out, self.x.shape, self.x.dtype)

    def check_residual(self) -> None:
        """x's shape and dtype."""
        if self.second is not None:
            check.like(self.call, "residual", self.second, self.x)

    def build(
        self,
        roles: str,
        make: Callable[[View, Data, Resources], Plan],
        reference: Run,
        *,
        written: bool = False,
        ordered: bool = False,
        apart: bool = False,
        finish: Callable[[Run], Run] | None = None,
    ) -> Run:
        """The compiled program, with what copies it needs, or the reference. `finish` wraps the former; see `dispatch.prepare`."""
        name = backends.choose(self.backend)
        if name == "numpy" or self.x.size == 0:
            return reference
        data = Data(self.x.dtype.newbyteorder("=").name, self.second is not None, self.activation)

        def prepare(x: Array, second: Array | None, out: Array, count: int) -> Run:
            def plan(view: View, in_place: bool, resources: Resources) -> Plan:
                return make(view, Data(data.dtype, data.second, data.activation, in_place), resources.of_one(count))

            return dispatch.prepare(
                x,
                second,
                out,
                roles,
                plan,
                backend=name,
                threads=self.threads,
                in_place=self.in_place,
                ordered=ordered,
                apart=apart,
            )

        out = np.empty_like(self.like) if self.out is None else self.out
        run, gradients = prepare(self.x, self.second, out, 1), self.rstd is not None
        # what finishes reads the tables of all
        run = in_parts(run, prepare, self.x, self.second, out, roles, gradients=gradients) if finish is None else finish(run)
        parameters = (self.weight, self.bias, self.running_mean, self.running_var)
        return dispatch.with_parameters(run, parameters, dispatch.compute_dtype(self.x.dtype), written=written)


def array(call: str, name: str, value: Any) -> Any:
    """An ndarray, or None as it is."""
    return value if value is None or type(value) is np.ndarray else check.array(call, name, value)


def of(value: Array | None) -> Any:
    """What a check or a plan may depend on."""
    return None if value is None else (value.shape, value.strides, value.dtype, value.flags.aligned)


def find(key: Any) -> Any:
    """What was prepared for this key; None if nothing was, or if an option cannot be hashed (the checks will refuse it)."""
    try:
        return _PREPARED.get(key)
    except TypeError:
        return None


def remember(key: Any, prepared: Any) -> Any:
    """Keep and return `prepared`."""
    if len(_PREPARED) >= _PREPARED_LIMIT:
        _PREPARED.clear()
    _PREPARED[key] = prepared
    return prepared


def keep(
    asked: Any,
    shape: tuple[int, ...],
    types: tuple[type, ...],
    prepared: Prepared,
    arrays: Slots,
    written: Collection[str],
    *,
    in_place: bool,
) -> None:
    """This call, for the next time, if C can make it. (Before it runs: what fails here fails before anything is written.)"""
    made = ready.make(prepared, arrays, types, written, in_place=in_place)
    if made is None:
        return
    key = (asked, shape)
    before = find(key) or remember(key, [])
    if len(before) < ready.MOST:
        before.append(made)


def results(prepared: Prepared, x: Array, out: Array | None, stats: bool, total: bool) -> tuple[Any, Any, Any, Any]:
    """y, mean, rstd and the sum of a forward call; None for what is not asked for."""
    dtype = dispatch.compute_dtype(x.dtype) if stats else None
    return (
        np.empty_like(x) if out is None else out,
        np.empty(prepared.stats, dtype) if stats and prepared.centred else None,
        np.empty(prepared.stats, dtype) if stats else None,
        np.empty(x.shape, x.dtype.newbyteorder("=")) if total else None,
    )


def normalize(
    call: str,
    prepare: Callable[..., Prepared],
    options: tuple[Any, ...],
    x: Any,
    residual: Any = None,
    weight: Any = None,
    bias: Any = None,
    running_mean: Any = None,
    running_var: Any = None,
    *,
    out: Any = None,
    activation: str | None = None,
    return_stats: bool = False,
    return_sum: bool = False,
    updates: bool = False,
    backend: str | None = None,
    threads: int | None = None,
) -> Any:
    """A forward call: y, or (y, mean, rstd), or (y, rstd), and the sum last where it is asked for."""
    asked = (call, options, activation, backend, threads, settings.current())
    if type(x) is np.ndarray and (before := find((asked, x.shape))):
        y, mean, rstd, total = results(before[0].prepared, x, out, return_stats, return_sum)  # of the same shapes in all
        arguments = (x, residual, y, total, weight, bias, running_mean, running_var, mean, rstd, None, None, options, threads)
        for run, address, _, _ in before:
            if run(address, id(arguments)):
                return _present(y, mean, rstd, total) if return_stats or return_sum else y
        del y, mean, rstd, total, arguments
    if type(x) is not np.ndarray:
        x = check.array(call, "x", x)
    residual, weight, bias = array(call, "residual", residual), array(call, "weight", weight), array(call, "bias", bias)
    running_mean, running_var = array(call, "running_mean", running_mean), array(call, "running_var", running_var)
    in_place = False
    if out is not None:
        out = array(call, "out", out)
        in_place = check.same_place(out, x) or (residual is not None and check.same_place(out, residual))
    types = (*map(type, options), type(threads))  # True, 1 and 1.0 are one key otherwise
    key = (asked, types, of(x), of(weight), of(bias), of(running_mean), of(running_var), of(residual), of(out), in_place)
    prepared = find(key)
    new = prepared is None
    if new:
        request = Request(
            call, x, residual, x, weight, bias, running_mean, running_var, None, None, out, in_place, activation, backend, threads
        )
        prepared = prepare(request, *options)
    if updates and running_mean is not None:
        check.writeable(call, running_mean=running_mean, running_var=running_var)
    if out is not None:
        given = (("weight", weight), ("bias", bias), ("running_mean", running_mean), ("running_var", running_var))
        check.out_free(call, out, (("x", x), ("residual", residual), *given), ("x", "residual"))
    y, mean, rstd, total = results(prepared, x, out, return_stats, return_sum)
    if new:
        written = ("y", "running_mean", "running_var") if updates else ("y",)
        arrays = (x, residual, y, OURS, weight, bias, running_mean, running_var, OURS, OURS, None, None)
        keep(asked, x.shape, types, remember(key, prepared), arrays, written, in_place=in_place)
    prepared.run(x, residual, y, total, weight, bias, running_mean, running_var, mean, rstd, None, None)
    if total is not None and not x.dtype.isnative:
        total = total.byteswap(inplace=True).view(x.dtype)  # no memory: results are written by now
    return _present(y, mean, rstd, total)


def parameter_gradients(prepared: Prepared, x: Array, mean: Array | None, rstd: Array | None) -> tuple[Array | None, Array | None]:
    """grad_weight where there is an rstd, grad_bias where there is a mean."""
    dtype = dispatch.compute_dtype(x.dtype)
    return (
        None if rstd is None else np.empty(prepared.parameters, dtype),
        None if mean is None else np.empty(prepared.parameters, dtype),
    )


def gradient(
    call: str,
    prepare: Callable[..., Prepared],
    options: tuple[Any, ...],
    grad: Any,
    x: Any,
    mean: Any = None,
    rstd: Any = None,
    weight: Any = None,
    *,
    out: Any = None,
    backend: str | None = None,
    threads: int | None = None,
) -> Any:
    """A backward call: (grad_x, grad_weight, grad_bias), (grad_x, grad_weight) where there is no mean, grad_x where there is no rstd."""
    asked = (call, options, backend, threads, settings.current())
    if type(x) is np.ndarray and (before := find((asked, x.shape))):
        y = np.empty_like(x) if out is None else out
        grad_weight, grad_bias = parameter_gradients(before[0].prepared, x, mean, rstd)  # of the same shapes in all
        arguments = (grad, x, y, None, weight, None, None, None, mean, rstd, grad_weight, grad_bias, options, threads)
        for run, address, _, _ in before:
            if run(address, id(arguments)):
                return _present(y, grad_weight, grad_bias)
        del y, grad_weight, grad_bias, arguments
    grad, x = check.array(call, "grad", grad), check.array(call, "x", x)
    mean, rstd, weight = array(call, "mean", mean), array(call, "rstd", rstd), array(call, "weight", weight)
    in_place = False
    if out is not None:
        out = array(call, "out", out)
        in_place = check.same_place(out, grad) or check.same_place(out, x)
    types = (*map(type, options), type(threads))
    key = (asked, types, of(grad), of(x), of(mean), of(rstd), of(weight), of(out), in_place)
    prepared = find(key)
    new = prepared is None
    if new:
        check.like(call, "grad", grad, x)
        request = Request(call, grad, x, x, weight, None, None, None, mean, rstd, out, in_place, None, backend, threads)
        prepared = prepare(request, *options)
    if out is not None:
        given = (("grad", grad), ("x", x), ("mean", mean), ("rstd", rstd), ("weight", weight))
        check.out_free(call, out, given, ("grad", "x"))
    y = np.empty_like(x) if out is None else out
    parts = parameter_gradients(prepared, x, mean, rstd)
    dtype = dispatch.compute_dtype(x.dtype)
    rounded = (
        []
        if weight is None or weight.dtype == dtype
        else [None if part is None else np.empty_like(part, weight.dtype.newbyteorder("=")) for part in parts]
    )
    stats = [None if value is None else _packed(value, dtype) for value in (mean, rstd)]
    if new:
        remember(key, prepared)
        if stats[0] is mean and stats[1] is rstd:  # (a weight that is rounded is copied, which C cannot)
            arrays = (grad, x, y, None, weight, None, None, None, mean, rstd, *(None if part is None else OURS for part in parts))
            keep(asked, x.shape, types, prepared, arrays, ("y",), in_place=in_place)
    prepared.run(grad, x, y, None, weight, None, None, None, *stats, *parts)
    if rounded:
        write(parts, *rounded)
    return _present(y, *(rounded or parts))


def _present(y: Array, *others: Array | None) -> Any:
    """y, or a tuple of it and those of the others that are there."""
    found = tuple(value for value in others if value is not None)
    return (y, *found) if found else y


def _packed(statistics: Array, dtype: np.dtype[Any]) -> Array:
    """As kernels read them. (What is contiguous may lie at an odd address.)"""
    return np.ascontiguousarray(statistics if statistics.flags.aligned else statistics.copy(), dtype)


def write(results: tuple[Array | None, ...], *targets: Array | None) -> None:
    """Each rounded once, where it is wanted."""
    with np.errstate(all="ignore"):
        for result, target in zip(results, targets, strict=False):
            if target is not None:
                target[...] = result


def empty_results(*arrays: Array | None) -> None:
    """No values: mean 0, rstd NaN, running statistics as they were."""
    write((np.zeros(()), np.full((), np.nan)), *arrays[8:10])


def zero_gradients(*arrays: Array | None) -> None:
    """Of an empty batch."""
    write((np.zeros(()), np.zeros(())), *arrays[10:12])


def statistics_of(run: Run, tables: Array) -> Array:
    """Count, mean and M2 of the units, from the scratch array that a run returns."""
    tables_of = run.plan.tables  # type: ignore[attr-defined]
    start, units = tables_of["statistics"], tables_of["units"]
    return tables[start : start + 3 * units].reshape(3, units)


def or_zeros(request: Request, roles: str, make: Any, run_reference: Any, *, ordered: bool = False) -> Any:
    """What runs; for an empty batch, zeros."""
    return zero_gradients if request.x.size == 0 else request.build(roles, make, run_reference, ordered=ordered)
