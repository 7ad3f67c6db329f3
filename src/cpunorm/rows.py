"""Layer and RMS norm, forward and backward: statistics of the last axes. See `cpunorm.functional`."""

from __future__ import annotations

from typing import Any

import numpy as np

from cpunorm import call, check, dispatch, recipes, reference
from cpunorm.call import Array, Prepared, Request, empty_results, or_zeros, write
from cpunorm.layout import View, row_roles
from cpunorm.plan import Data, Plan, Resources


def layer_norm(
    x: Any,
    normalized_shape: int | tuple[int, ...],
    weight: Any = None,
    bias: Any = None,
    eps: float = 1e-5,
    *,
    out: Any = None,
    activation: str | None = None,
    residual: Any = None,
    return_stats: bool = False,
    return_sum: bool = False,
    backend: str | None = None,
    threads: int | None = None,
) -> Any:
    """Layer normalization: y = act((h - mean) * (rstd * weight) + bias), h = x + residual, statistics over the last axes.

    As ``torch.nn.functional.layer_norm`` (Ba, Kiros and Hinton 2016, arXiv:1607.06450). The residual is added before the statistics, as in
    transformers.

    Parameters
    ----------
    x : array
    normalized_shape : int or tuple of int
        The sizes of the last axes of x, over which the statistics are taken.
    weight, bias : arrays of `normalized_shape`, or None
    eps : float
    return_sum : bool
        Return h too, rounded to x's dtype, last. Needs a residual.

    Returns
    -------
    y; with `return_stats` mean and rstd, of x's leading axes and then ones; with `return_sum` h
    """
    if return_sum:
        _check_residual("layer_norm", residual)
    return call.normalize(
        "layer_norm",
        _prepare_sizes,
        (True, eps, *_sizes(normalized_shape)),
        x,
        residual,
        weight,
        bias,
        out=out,
        activation=activation,
        return_stats=return_stats,
        return_sum=return_sum,
        backend=backend,
        threads=threads,
    )


def rms_norm(
    x: Any,
    normalized_shape: int | tuple[int, ...],
    weight: Any = None,
    eps: float | None = None,
    *,
    out: Any = None,
    activation: str | None = None,
    residual: Any = None,
    return_stats: bool = False,
    return_sum: bool = False,
    backend: str | None = None,
    threads: int | None = None,
) -> Any:
    """Root mean square normalization: y = act(h * (rstd * weight)), h = x + residual, rstd = 1 / sqrt(mean(h^2) + eps).

    As ``torch.nn.functional.rms_norm`` (Zhang and Sennrich 2019, arXiv:1910.07467). Parameters as in `layer_norm`; eps None is the machine
    epsilon of the computing dtype (float32's for 16-bit data).

    Returns
    -------
    y; with `return_stats` rstd, of x's leading axes and then ones; with `return_sum` h
    """
    if return_sum:
        _check_residual("rms_norm", residual)
    return call.normalize(
        "rms_norm",
        _prepare_sizes,
        (False, eps, *_sizes(normalized_shape)),
        x,
        residual,
        weight,
        out=out,
        activation=activation,
        return_stats=return_stats,
        return_sum=return_sum,
        backend=backend,
        threads=threads,
    )


def _check_residual(name: str, residual: Any) -> None:
    if residual is None:
        check.fail(ValueError, name, "return_sum expects a residual to sum with; got None")


def _sizes(normalized_shape: Any) -> Any:
    """Each is an option of its own, whose type tells True and 1.0 from 1."""
    return normalized_shape if isinstance(normalized_shape, (tuple, list)) else (normalized_shape,)


def _prepare_sizes(request: Request, centred: bool, eps: float | None, *normalized_shape: Any) -> Prepared:
    return _prepare_rows(request, centred, normalized_shape, eps)


def _prepare_rows(request: Request, centred: bool, normalized_shape: Any, eps: float | None) -> Prepared:
    name, x = request.call, request.x
    request.check()
    request.check_residual()
    normalized = check.normalized_shape(name, normalized_shape, x.shape)
    if eps is None and not centred:
        eps = float(np.finfo(dispatch.compute_dtype(x.dtype)).eps)
    eps = check.number(name, "eps", eps)
    for parameter in ("weight", "bias"):
        check.parameter(name, parameter, getattr(request, parameter), normalized, x, "normalized_shape")
    leading = x.ndim - len(normalized)

    def make(view: View, data: Data, resources: Resources) -> Plan:
        return recipes.layer_norm(view, data, resources, eps=eps, centred=centred)

    def run_reference(x: Array, r: Any, y: Array, total: Any, w: Any, b: Any, _: Any, __: Any, *stats: Any) -> None:
        *result, h = reference.layer_norm(x, len(normalized), w, b, eps=eps, centred=centred, residual=r, activation=request.activation)
        write(tuple(result), y, *stats)
        if total is not None:
            write((h,), total)

    run = empty_results if x.size == 0 else request.build(row_roles(x.ndim, leading), make, run_reference, ordered=True)
    return Prepared(run, x.shape[:leading] + (1,) * len(normalized), centred)


# ---------------------------------------------------------------- backward


def layer_norm_backward(
    grad: Any,
    x: Any,
    normalized_shape: int | tuple[int, ...],
    mean: Any,
    rstd: Any,
    weight: Any = None,
    *,
    out: Any = None,
    backend: str | None = None,
    threads: int | None = None,
) -> Any:
    """Gradients of `cpunorm.layer_norm`: ``grad_x = rstd * (h - mean(h) - xhat * mean(h * xhat))``, ``h = g * weight``, means over a row.

    With a residual, x is the sum (``return_sum``), and grad_x is the gradient of both.

    Parameters
    ----------
    mean, rstd : arrays of x's leading axes, then ones
    weight : array of `normalized_shape`, or None

    Returns
    -------
    grad_x, grad_weight, grad_bias : the latter of `normalized_shape`
    """
    options = (True, *_sizes(normalized_shape))
    return call.gradient(
        "layer_norm_backward", _prepare_size_gradient, options, grad, x, mean, rstd, weight, out=out, backend=backend, threads=threads
    )


def rms_norm_backward(
    grad: Any,
    x: Any,
    normalized_shape: int | tuple[int, ...],
    rstd: Any,
    weight: Any = None,
    *,
    out: Any = None,
    backend: str | None = None,
    threads: int | None = None,
) -> Any:
    """Gradients of `cpunorm.rms_norm`: ``grad_x = rstd * (h - xhat * mean(h * xhat))``, ``xhat = x * rstd``, ``h = g * weight``.

    Parameters as in `layer_norm_backward`, without a mean.

    Returns
    -------
    grad_x, grad_weight
    """
    options = (False, *_sizes(normalized_shape))
    return call.gradient(
        "rms_norm_backward", _prepare_size_gradient, options, grad, x, None, rstd, weight, out=out, backend=backend, threads=threads
    )


def _prepare_size_gradient(request: Request, centred: bool, *normalized_shape: Any) -> Prepared:
    return _prepare_row_gradient(request, normalized_shape, centred)


def _prepare_row_gradient(request: Request, normalized_shape: Any, centred: bool) -> Prepared:
    name, x = request.call, request.x
    request.check()
    normalized = check.normalized_shape(name, normalized_shape, x.shape)
    leading = x.ndim - len(normalized)
    stats = x.shape[:leading] + (1,) * len(normalized)
    check.statistics(name, request.mean, request.rstd, stats, x.dtype, centred=centred)
    check.parameter(name, "weight", request.weight, normalized, x, "normalized_shape")

    def run_reference(
        g: Array, x: Array, y: Array, _: Any, w: Any, __: Any, ___: Any, ____: Any, mean: Any, rstd: Any, *parts: Any
    ) -> None:
        write(reference.layer_norm_backward(g, x, len(normalized), mean, rstd, w), y, *parts)

    return Prepared(
        or_zeros(request, row_roles(x.ndim, leading), recipes.row_gradients, run_reference, ordered=True), parameters=normalized
    )
