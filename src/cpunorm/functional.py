"""The public functions: check, plan, run. Names, order and defaults of arguments are those of ``torch.nn.functional``.

A call is looked up by all that its checks and its plan depend on (shapes, strides, dtypes, options, settings); what that finds is ready to
run. Only what may change between such calls is checked every time: that `out` may be written and does not overlap an input.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any, cast

import numpy as np

from cpunorm import backends, check, dispatch, plan, reference, settings
from cpunorm.dispatch import Prepared
from cpunorm.layout import CHANNELS_FIRST, KEPT, REDUCED, batch_norm_roles, find_view, memory_order

Array = np.ndarray[Any, Any]
Stats = tuple[Array, Array]

_PREPARED: dict[Any, Any] = {}
_PREPARED_LIMIT = 4096  # calls remembered; a program whose shapes never repeat starts anew then
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_PREPARED.clear)  # a forked child has no threads: its plans are serial


def _remember(key: Any, prepared: Any) -> Any:
    if len(_PREPARED) >= _PREPARED_LIMIT:
        _PREPARED.clear()
    _PREPARED[key] = prepared
    return prepared


def _of(array: Array | None) -> Any:
    """What a check or a plan may depend on."""
    return None if array is None else (array.shape, array.strides, array.dtype)


def batch_norm(
    x: Any,
    running_mean: Any,
    running_var: Any,
    weight: Any = None,
    bias: Any = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
    *,
    layout: str = CHANNELS_FIRST,
    out: Any = None,
    return_stats: bool = False,
    backend: str | None = None,
    threads: int | None = None,
) -> Any:
    """Batch normalization: y = (x - mean) * (rstd * weight) + bias, with rstd = 1 / sqrt(var + eps), a channel at a time.

    In training mean and (biased) var are those of x over all axes but C, in one blocked pass (Chan, Golub and LeVeque 1983); in
    inference they are `running_mean` and `running_var`. As ``torch.nn.functional.batch_norm`` (Ioffe and Szegedy 2015, arXiv:1502.03167).

    Parameters
    ----------
    x : array of float32 or float64, rank >= 2
        Any strides. Where these are no view of `layout` (a slice along an inner axis), x is copied once.
    running_mean, running_var : arrays of shape (C,), of x's dtype, or None
        In training updated in place, where given: ``running = (1 - momentum) * running + momentum * new``, with the unbiased variance.
        Required in inference.
    weight, bias : arrays of shape (C,), of x's dtype, or None
        None is 1 and 0.
    training : bool
        Which statistics normalize.
    momentum : float
        The weight of the new batch (PyTorch's meaning; Keras and ONNX mean the weight of the old one).
    eps : float
        Added to the variance.
    layout : str
        One letter an axis, such as ``"NCHW"``, ``"NHWC"``, ``"NC"``, ``"NLC"``, ``"NDHWC"``; or ``"channels_first"``, ``"channels_last"``.
    out : array, optional
        Written and returned: x's shape and dtype, any strides; x itself, or apart from all inputs.
    return_stats : bool
        Return (y, mean, rstd), the latter of shape (C,) and x's dtype: what normalized, for the gradients.
    backend : {"numba", "c", "numpy"}, optional
        None takes the configured one.
    threads : int, optional
        None takes the configured number. The result has the same bits for any number.

    Returns
    -------
    y : array of x's shape, dtype and memory order; or (y, mean, rstd)
        Empty batches give empty results, mean 0 and rstd NaN, and leave running statistics as they are.

    Raises
    ------
    ValueError, TypeError
        Before anything is written; the message says what was expected and what came.
    ImportError
        A backend that is not installed; the message says what mends it.
    """
    if type(x) is not np.ndarray:
        x = check.array("batch_norm", "x", x)
    if running_mean is not None and type(running_mean) is not np.ndarray:
        running_mean = check.array("batch_norm", "running_mean", running_mean)
    if running_var is not None and type(running_var) is not np.ndarray:
        running_var = check.array("batch_norm", "running_var", running_var)
    if weight is not None and type(weight) is not np.ndarray:
        weight = check.array("batch_norm", "weight", weight)
    if bias is not None and type(bias) is not np.ndarray:
        bias = check.array("batch_norm", "bias", bias)
    if out is None:
        in_place = False
    else:
        if type(out) is not np.ndarray:
            out = check.array("batch_norm", "out", out)
        in_place = check.same_place(out, x)
    key = (
        "batch_norm",
        _of(x),
        _of(running_mean),
        _of(running_var),
        _of(weight),
        _of(bias),
        _of(out),
        in_place,
        bool(training),
        momentum,
        eps,
        layout,
        backend,
        threads,
        settings.current(),
    )
    try:
        prepared = _PREPARED.get(key)
    except TypeError:  # an option that cannot be hashed is none that the checks let pass
        prepared = None
    if prepared is None:
        prepared = _prepare_batch_norm(
            key, x, running_mean, running_var, weight, bias, training, momentum, eps, layout, out, in_place, backend, threads
        )
    if training and running_mean is not None and not (running_mean.flags.writeable and running_var.flags.writeable):
        check.fail(ValueError, "batch_norm", "expected running statistics that training may update, got a read-only array")
    if out is None:
        y = np.empty_like(x)
    else:
        inputs = (("x", x), ("weight", weight), ("bias", bias), ("running_mean", running_mean), ("running_var", running_var))
        check.out_free("batch_norm", out, inputs)
        y = out
    mean = rstd = None
    if return_stats:
        channels = prepared.channels
        mean, rstd = np.empty(channels, x.dtype), np.empty(channels, x.dtype)
    prepared(x, y, weight, bias, running_mean, running_var, mean, rstd)
    return (y, mean, rstd) if return_stats else y


class _BatchNorm:
    """A prepared batch norm: the compiled program, or the reference, or what an empty batch gives."""

    __slots__ = ("_run", "channels")

    def __init__(self, run: Callable[..., None], channels: int) -> None:
        self._run = run
        self.channels = channels

    def __call__(self, *arrays: Array | None) -> None:
        self._run(*arrays)


def _prepare_batch_norm(
    key: Any,
    x: Array,
    running_mean: Array | None,
    running_var: Array | None,
    weight: Array | None,
    bias: Array | None,
    training: bool,
    momentum: float,
    eps: float,
    layout: str,
    out: Array | None,
    in_place: bool,
    backend: str | None,
    threads: int | None,
) -> Any:
    """All checks of a batch norm, then its plan."""
    call = "batch_norm"
    training = bool(training)
    check.backend(call, backend)
    check.threads(call, threads)
    check.float_dtype(call, "x", x.dtype)
    axes = check.axes(call, layout, x.shape)
    channels = x.shape[axes.channel]
    momentum = check.number(call, "momentum", momentum)
    eps = check.epsilon(call, eps, training=training)
    check.running(call, running_mean, running_var, needed=not training)
    for name, value in (("running_mean", running_mean), ("running_var", running_var), ("weight", weight), ("bias", bias)):
        check.parameter(call, name, value, channels, x, axes.channel)
    if training:
        check.several_values(call, x.shape, axes.channel)
    if out is not None:
        check.out_like(call, out, x.shape, x.dtype)
    name = backends.choose(backend)

    run: Callable[..., None]
    if x.size == 0 and training:
        run = _empty_training
    elif name == "numpy" or x.size == 0:
        run = _reference_batch_norm(axes.channel, training, momentum, eps)
    else:
        backends.load(name)

        def make(view: Any, itemsize: int, in_place: bool, resources: plan.Resources) -> plan.Plan:
            if training:
                return plan.batch_norm_training(view, itemsize, eps=eps, momentum=momentum, in_place=in_place, resources=resources)
            return plan.batch_norm_inference(view, itemsize, eps=eps, in_place=in_place, resources=resources)

        prepared = dispatch.prepare(x, out, batch_norm_roles(axes), make, in_place=in_place, backend=name, threads=threads)
        parameters = (weight, bias, running_mean, running_var)
        run = prepared if all(_readable(value) for value in parameters) else _with_copied_parameters(prepared, written=training)
    return _remember(key, _BatchNorm(run, channels))


def _readable(parameter: Array | None) -> bool:
    """Whether a kernel can read (and write) this parameter where it is."""
    return parameter is None or (parameter.flags.c_contiguous and parameter.flags.aligned and parameter.dtype.isnative)


def _with_copied_parameters(prepared: Prepared, *, written: bool) -> Callable[..., None]:
    """For parameters with gaps: a few values are copied there, and running statistics back."""

    def run(x: Array, y: Array, weight: Any, bias: Any, running_mean: Any, running_var: Any, mean: Any, rstd: Any) -> None:
        given = (weight, bias, running_mean, running_var)
        copies = [None if value is None else np.array(value, dtype=value.dtype.newbyteorder("="), order="C") for value in given]
        prepared(x, y, *copies, mean, rstd)
        if written and running_mean is not None:
            running_mean[...], running_var[...] = copies[2], copies[3]

    return run


def _reference_batch_norm(channel: int, training: bool, momentum: float, eps: float) -> Callable[..., None]:
    """Rounded once, from float64."""

    def run(x: Array, y: Array, weight: Any, bias: Any, running_mean: Any, running_var: Any, mean: Any, rstd: Any) -> None:
        wide, wide_mean, wide_rstd = reference.batch_norm(
            x, running_mean, running_var, weight, bias, training=training, momentum=momentum, eps=eps, channel=channel
        )
        with np.errstate(all="ignore"):
            y[...] = wide
            if mean is not None:
                mean[...], rstd[...] = wide_mean, wide_rstd

    return run


def _empty_training(x: Array, y: Array, weight: Any, bias: Any, running_mean: Any, running_var: Any, mean: Any, rstd: Any) -> None:
    """No values: mean 0, rstd NaN, running statistics as they were."""
    if mean is not None:
        mean[...], rstd[...] = 0, np.nan


def mean_var(
    x: Any,
    axis: int | tuple[int, ...] | None = None,
    *,
    ddof: float = 0,
    keepdims: bool = False,
    backend: str | None = None,
    threads: int | None = None,
) -> Stats:
    """Mean and variance over `axis`, in one pass over memory: blocks in cache, merged in float64 (Chan, Golub and LeVeque 1983).

    ``var = sum((x - mean)**2) / (n - ddof)``, as ``numpy.mean`` and ``numpy.var`` of ``x.astype(float64)``, without that copy for
    float32 and float64. Other dtypes are converted first.

    Parameters
    ----------
    x : array of a real or integer dtype
        Any rank and strides. Where the strides are no view for these axes, x is copied once.
    axis : int, tuple of int or None
        As NumPy's: None is all of them.
    ddof : float
        Taken from the count: 0 gives the population's variance, 1 the unbiased one. Where nothing remains it is NaN or infinite.
    keepdims : bool
        Keep the reduced axes with size 1.
    backend, threads
        As in `batch_norm`.

    Returns
    -------
    mean, var : float64 arrays of the kept axes (scalars if none is kept)
        NaN where there is no value.

    Raises
    ------
    ValueError, TypeError
        A complex or object array, an axis out of range or named twice, a bad ddof, backend or number of threads.
    """
    call = "mean_var"
    x = check.array(call, "x", x)
    check.statistics_dtype(call, x.dtype)
    axes = check.reduced_axes(call, axis, x.ndim)
    ddof = check.number(call, "ddof", ddof)
    check.backend(call, backend)
    check.threads(call, threads)
    name = backends.choose(backend)
    if x.dtype.name not in check.FLOATS:
        x = x.astype(np.float32 if x.dtype.kind == "f" and x.itemsize == 2 else np.float64)
    count = int(np.prod([x.shape[a] for a in axes], dtype=np.int64))
    shape = tuple(1 if a in axes else size for a, size in enumerate(x.shape))
    if x.size == 0:
        mean = np.full(shape, np.nan)
        m2 = np.full(shape, np.nan)
    elif name == "numpy":
        _, mean, m2 = reference.moments(x, axes)
    else:
        mean, m2 = _moments(x, axes, name, threads)
    with np.errstate(all="ignore"):
        var = m2 / np.float64(max(count - ddof, 0))
    if not keepdims:
        mean, var = (cast(Array, value.squeeze(axes)[()]) for value in (mean, var))
    return mean, var


def _moments(x: Array, axes: tuple[int, ...], backend: str, threads: int | None) -> Stats:
    """Mean and M2 by the kernels, the reduced axes kept with size 1."""
    roles = "".join(REDUCED if a in axes else KEPT for a in range(x.ndim))
    strides = dispatch.element_strides(x)
    view = None if strides is None else find_view(x.shape, (strides,), roles)
    if view is None:  # kept axes first, reduced ones last: always a view
        order = [a for a in range(x.ndim) if a not in axes] + list(axes)
        copy = np.empty([x.shape[a] for a in order], x.dtype.newbyteorder("="))
        copy[...] = x.transpose(order)
        x = copy.transpose(np.argsort(order))
        strides = cast(tuple[int, ...], dispatch.element_strides(x))
        view = find_view(x.shape, (strides,), roles)
        assert view is not None
    assert strides is not None
    key = ("moments", view, x.dtype, backend, threads, settings.current())
    runner = _PREPARED.get(key)
    if runner is None:
        made = plan.moments(view, x.itemsize, resources=dispatch.resources(threads))
        runner = _remember(key, dispatch.Runner(made, backend, dispatch.compute_dtype(x.dtype)))
    tables = runner(x)
    start, units = runner.plan.tables["statistics"], runner.plan.tables["units"]
    _, mean, m2 = tables[start : start + 3 * units].reshape(3, units)
    kept = [a for a in memory_order(x.shape, strides) if a not in axes]  # units are in memory order
    back = np.argsort(kept)
    shape = tuple(1 if a in axes else size for a, size in enumerate(x.shape))
    order_shape = [x.shape[a] for a in kept]
    return mean.reshape(order_shape).transpose(back).reshape(shape), m2.reshape(order_shape).transpose(back).reshape(shape)
