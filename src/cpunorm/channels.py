"""Batch, instance and group norm, forward and backward: statistics of channels or groups of them. See `cpunorm.functional`."""

from __future__ import annotations

from typing import Any, cast

import numpy as np

from cpunorm import call, check, recipes, reference
from cpunorm.call import Array, Prepared, Request, empty_results, or_zeros, statistics_of, write
from cpunorm.dispatch import Run
from cpunorm.layout import CHANNELS_FIRST, View, batch_norm_roles, group_norm_roles
from cpunorm.plan import Data, Plan, Resources


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
    activation: str | None = None,
    residual: Any = None,
    return_stats: bool = False,
    backend: str | None = None,
    threads: int | None = None,
) -> Any:
    """Batch normalization: y = act((x - mean) * (rstd * weight) + bias + residual), rstd = 1 / sqrt(var + eps), a channel at a time.

    In training mean and (biased) var are those of x over all axes but C; in inference they are `running_mean` and `running_var`.
    As ``torch.nn.functional.batch_norm`` (Ioffe and Szegedy 2015, arXiv:1502.03167).

    Parameters
    ----------
    x : array, rank >= 2
        See the module's text for dtypes, strides and the keywords that all functions share.
    running_mean, running_var : arrays of shape (C,), or None
        In training updated in place, where given: ``running = (1 - momentum) * running + momentum * new``, with the unbiased variance.
        Required in inference.
    weight, bias : arrays of shape (C,), or None
        None is 1 and 0.
    training : bool
        Which statistics normalize.
    momentum : float
        The weight of the new batch (PyTorch's meaning; Keras and ONNX mean the weight of the old one).
    eps : float
        Added to the variance.

    Returns
    -------
    y : array of x's shape, dtype and memory order; or (y, mean, rstd), the latter of shape (C,)
        Empty batches leave running statistics as they are.
    """
    return call.normalize(
        "batch_norm",
        _prepare_batch_norm,
        (training, momentum, eps, layout),
        x,
        residual,
        weight,
        bias,
        running_mean,
        running_var,
        out=out,
        activation=activation,
        return_stats=return_stats,
        updates=training,
        backend=backend,
        threads=threads,
    )


def _prepare_batch_norm(request: Request, training: bool, momentum: float, eps: float, layout: str) -> Prepared:
    name, x = request.call, request.x
    request.check()
    request.check_residual()
    check.flag(name, "training", training)
    axes = check.axes(name, layout, x.shape)
    channels = x.shape[axes.channel]
    momentum = check.number(name, "momentum", momentum)
    eps = check.epsilon(name, eps, training=training)
    check.running(name, request.running_mean, request.running_var, needed=not training)
    for parameter in ("running_mean", "running_var", "weight", "bias"):
        check.parameter(name, parameter, getattr(request, parameter), (channels,), x, f"one value for each index of axis {axes.channel}")
    if training:
        check.several_values(name, x.shape, axes.channel)

    def make(view: View, data: Data, resources: Resources) -> Plan:
        return recipes.batch_norm(view, data, resources, training=training, eps=eps, momentum=momentum)

    def run_reference(x: Array, r: Any, y: Array, _: Any, w: Any, b: Any, running_mean: Any, running_var: Any, *stats: Any) -> None:
        result = reference.batch_norm(
            x,
            running_mean,
            running_var,
            w,
            b,
            training=training,
            momentum=momentum,
            eps=eps,
            channel=axes.channel,
            residual=r,
            activation=request.activation,
        )
        write(result, y, *stats)

    run = empty_results if x.size == 0 and training else request.build(batch_norm_roles(axes), make, run_reference, written=training)
    return Prepared(run, (channels,))


def instance_norm(
    x: Any,
    running_mean: Any = None,
    running_var: Any = None,
    weight: Any = None,
    bias: Any = None,
    use_input_stats: bool = True,
    momentum: float = 0.1,
    eps: float = 1e-5,
    *,
    layout: str = CHANNELS_FIRST,
    out: Any = None,
    activation: str | None = None,
    residual: Any = None,
    return_stats: bool = False,
    backend: str | None = None,
    threads: int | None = None,
) -> Any:
    """Instance normalization: as `batch_norm`, with the statistics of each channel of each sample.

    As ``torch.nn.functional.instance_norm`` (Ulyanov, Vedaldi and Lempitsky 2016, arXiv:1607.08022).

    Parameters
    ----------
    x : array, rank >= 3, with more than one spatial element
    running_mean, running_var : arrays of shape (C,), or None
        With `use_input_stats` updated in place by the mean over the samples of their means and unbiased variances; without it, what
        normalizes.
    weight, bias : arrays of shape (C,), or None
    use_input_stats : bool
        Normalize by x's own statistics, else by the running ones, which is batch norm in inference.
    momentum, eps : float
        As in `batch_norm`.

    Returns
    -------
    y; or (y, mean, rstd), the latter of shape (N, C), or (C,) without `use_input_stats`
    """
    return call.normalize(
        "instance_norm",
        _prepare_instance_norm,
        (use_input_stats, momentum, eps, layout),
        x,
        residual,
        weight,
        bias,
        running_mean,
        running_var,
        out=out,
        activation=activation,
        return_stats=return_stats,
        updates=use_input_stats,
        backend=backend,
        threads=threads,
    )


def _prepare_instance_norm(request: Request, use_input_stats: bool, momentum: float, eps: float, layout: str) -> Prepared:
    name, x = request.call, request.x
    check.flag(name, "use_input_stats", use_input_stats)
    if not use_input_stats:
        return _prepare_batch_norm(request, False, momentum, eps, layout)
    request.check()
    axes = check.axes(name, layout, x.shape)
    channels = x.shape[axes.channel]
    momentum = check.number(name, "momentum", momentum)
    check.running(name, request.running_mean, request.running_var, needed=False)
    for parameter in ("running_mean", "running_var"):
        check.parameter(name, parameter, getattr(request, parameter), (channels,), x, f"one value for each index of axis {axes.channel}")
    check.several_spatial(name, x.shape, axes)
    return _prepare_group_norm(request, channels, eps, layout, momentum)


def group_norm(
    x: Any,
    num_groups: int,
    weight: Any = None,
    bias: Any = None,
    eps: float = 1e-5,
    *,
    layout: str = CHANNELS_FIRST,
    out: Any = None,
    activation: str | None = None,
    residual: Any = None,
    return_stats: bool = False,
    backend: str | None = None,
    threads: int | None = None,
) -> Any:
    """Group normalization: as `batch_norm`, with the statistics of each group of C / num_groups channels of each sample.

    As ``torch.nn.functional.group_norm`` (Wu and He 2018, arXiv:1803.08494).

    Parameters
    ----------
    x : array, rank >= 2
    num_groups : int
        Divides the number of channels.
    weight, bias : arrays of shape (C,), or None
    eps : float

    Returns
    -------
    y; or (y, mean, rstd), the latter of shape (N, num_groups)
    """
    return call.normalize(
        "group_norm",
        _prepare_group_norm,
        (num_groups, eps, layout),
        x,
        residual,
        weight,
        bias,
        out=out,
        activation=activation,
        return_stats=return_stats,
        backend=backend,
        threads=threads,
    )


def _prepare_group_norm(request: Request, num_groups: int, eps: float, layout: str, momentum: float = 0.0) -> Prepared:
    name, x = request.call, request.x
    request.check()
    request.check_residual()
    axes = check.axes(name, layout, x.shape)
    channels = x.shape[axes.channel]
    eps = check.number(name, "eps", eps)
    groups = check.groups(name, num_groups, channels, axes.channel, x.shape)
    for parameter in ("weight", "bias"):
        check.parameter(name, parameter, getattr(request, parameter), (channels,), x, f"one value for each index of axis {axes.channel}")
    if name == "group_norm":
        check.several_in_group(name, x.shape, groups)

    def make(view: View, data: Data, resources: Resources) -> Plan:
        return recipes.group_norm(view, data, resources, groups=groups, eps=eps)

    def run_reference(x: Array, r: Any, y: Array, _: Any, w: Any, b: Any, running_mean: Any, running_var: Any, *stats: Any) -> None:
        z, mean, rstd, unbiased = reference.group_norm(
            x, groups, w, b, eps=eps, batch=axes.batch, channel=axes.channel, residual=r, activation=request.activation
        )
        if running_mean is not None:
            with np.errstate(all="ignore"):  # infinities of either sign in two samples
                reference.update_running(running_mean, running_var, mean.mean(axis=0), unbiased.mean(axis=0), momentum)
        write((z, mean, rstd), y, *stats)

    def with_running(run: Run) -> Run:
        """The units' statistics are in the tables; a running one takes their mean over the samples."""

        def updating(x: Array, r: Any, y: Array, t: Any, w: Any, b: Any, running_mean: Any, running_var: Any, *rest: Any) -> Array:
            new = np.empty((2, channels))  # all memory that it takes, before anything is written
            with np.errstate(all="ignore"):
                old = np.array((running_mean, running_var), np.float64)
                old *= 1 - momentum
                tables = run(x, r, y, t, w, b, None, None, *rest)
                count, mean, m2 = statistics_of(run, tables).reshape(3, -1, channels)
                mean.mean(axis=0, out=new[0])
                m2.mean(axis=0, out=new[1])
                new[1] /= count[0, 0] - 1  # a plane has as many values as any other
                new *= momentum
                new += old
                running_mean[...], running_var[...] = new
            return cast(Array, tables)

        return updating

    run = (
        empty_results
        if x.size == 0
        else request.build(
            group_norm_roles(axes), make, run_reference, finish=None if request.running_mean is None else with_running, written=True
        )
    )
    return Prepared(run, (x.shape[axes.batch], groups))


# ---------------------------------------------------------------- backward


def batch_norm_backward(
    grad: Any,
    x: Any,
    mean: Any,
    rstd: Any,
    weight: Any = None,
    *,
    training: bool = True,
    layout: str = CHANNELS_FIRST,
    out: Any = None,
    backend: str | None = None,
    threads: int | None = None,
) -> Any:
    """Gradients of `cpunorm.batch_norm`.

    ``grad_bias = sum(g)``, ``grad_weight = sum(g * xhat)`` with ``xhat = (x - mean) * rstd``, both over all axes but C; in training
    ``grad_x = rstd * weight * (g - mean(g) - xhat * mean(g * xhat))``, in inference ``grad_x = rstd * weight * g``.

    Parameters
    ----------
    grad, x : arrays of one shape and dtype
    mean, rstd : arrays of shape (C,)
        As returned forward; in inference the running mean and ``1 / sqrt(running_var + eps)``.
    weight : array of shape (C,), or None

    Returns
    -------
    grad_x, grad_weight, grad_bias
    """
    return call.gradient(
        "batch_norm_backward",
        _prepare_batch_gradient,
        (training, layout),
        grad,
        x,
        mean,
        rstd,
        weight,
        out=out,
        backend=backend,
        threads=threads,
    )


def _prepare_batch_gradient(request: Request, training: bool, layout: str) -> Prepared:
    name, x = request.call, request.x
    request.check()
    check.flag(name, "training", training)
    axes = check.axes(name, layout, x.shape)
    channels = x.shape[axes.channel]
    check.statistics(name, request.mean, request.rstd, (channels,), x.dtype)
    check.parameter(name, "weight", request.weight, (channels,), x, f"one value for each index of axis {axes.channel}")

    def make(view: View, data: Data, resources: Resources) -> Plan:
        return recipes.channel_gradients(view, data, resources, groups=channels, training=training)

    def run_reference(
        g: Array, x: Array, y: Array, _: Any, w: Any, __: Any, ___: Any, ____: Any, mean: Any, rstd: Any, *parts: Any
    ) -> None:
        write(reference.batch_norm_backward(g, x, mean, rstd, w, training=training, channel=axes.channel), y, *parts)

    return Prepared(or_zeros(request, batch_norm_roles(axes), make, run_reference), parameters=(channels,))


def instance_norm_backward(
    grad: Any,
    x: Any,
    mean: Any,
    rstd: Any,
    weight: Any = None,
    *,
    use_input_stats: bool = True,
    layout: str = CHANNELS_FIRST,
    out: Any = None,
    backend: str | None = None,
    threads: int | None = None,
) -> Any:
    """Gradients of `cpunorm.instance_norm`: as `batch_norm_backward`, with means over the spatial axes of each sample.

    Parameters
    ----------
    mean, rstd : arrays of shape (N, C), or (C,) without `use_input_stats`

    Returns
    -------
    grad_x, grad_weight, grad_bias
    """
    return call.gradient(
        "instance_norm_backward",
        _prepare_instance_gradient,
        (use_input_stats, layout),
        grad,
        x,
        mean,
        rstd,
        weight,
        out=out,
        backend=backend,
        threads=threads,
    )


def _prepare_instance_gradient(request: Request, use_input_stats: bool, layout: str) -> Prepared:
    check.flag(request.call, "use_input_stats", use_input_stats)
    if not use_input_stats:
        return _prepare_batch_gradient(request, False, layout)
    axes = check.axes(request.call, layout, request.x.shape)
    return _prepare_group_gradient(request, request.x.shape[axes.channel], layout)


def group_norm_backward(
    grad: Any,
    x: Any,
    num_groups: int,
    mean: Any,
    rstd: Any,
    weight: Any = None,
    *,
    layout: str = CHANNELS_FIRST,
    out: Any = None,
    backend: str | None = None,
    threads: int | None = None,
) -> Any:
    """Gradients of `cpunorm.group_norm`: ``grad_x = rstd * (h - mean(h) - xhat * mean(h * xhat))``, ``h = g * weight``, means over a group.

    Parameters
    ----------
    mean, rstd : arrays of shape (N, num_groups)

    Returns
    -------
    grad_x, grad_weight, grad_bias
    """
    return call.gradient(
        "group_norm_backward",
        _prepare_group_gradient,
        (num_groups, layout),
        grad,
        x,
        mean,
        rstd,
        weight,
        out=out,
        backend=backend,
        threads=threads,
    )


def _prepare_group_gradient(request: Request, num_groups: int, layout: str) -> Prepared:
    name, x = request.call, request.x
    request.check()
    axes = check.axes(name, layout, x.shape)
    channels = x.shape[axes.channel]
    groups = check.groups(name, num_groups, channels, axes.channel, x.shape)
    check.statistics(name, request.mean, request.rstd, (x.shape[axes.batch], groups), x.dtype)
    check.parameter(name, "weight", request.weight, (channels,), x, f"one value for each index of axis {axes.channel}")

    def make(view: View, data: Data, resources: Resources) -> Plan:
        return recipes.channel_gradients(view, data, resources, groups=groups, training=True)

    def run_reference(
        g: Array, x: Array, y: Array, _: Any, w: Any, __: Any, ___: Any, ____: Any, mean: Any, rstd: Any, *parts: Any
    ) -> None:
        write(reference.group_norm_backward(g, x, groups, mean, rstd, w, batch=axes.batch, channel=axes.channel), y, *parts)

    return Prepared(or_zeros(request, group_norm_roles(axes), make, run_reference), parameters=(channels,))
