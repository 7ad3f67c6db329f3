"""Local response and Lp norm, forward and backward. See `cpunorm.functional`."""

from __future__ import annotations

from typing import Any

from cpunorm import call, check, plan, recipes, reference
from cpunorm.call import Array, Prepared, Request, write
from cpunorm.layout import CHANNELS_FIRST, KEPT, REDUCED, View, group_norm_roles
from cpunorm.plan import Data, Plan, Resources


def local_response_norm(
    x: Any,
    size: int,
    alpha: float = 1e-4,
    beta: float = 0.75,
    k: float = 1.0,
    *,
    layout: str = CHANNELS_FIRST,
    out: Any = None,
    backend: str | None = None,
    threads: int | None = None,
) -> Any:
    """Local response normalization: y = x * (k + alpha / size * S) ** -beta, S the sum of squares over a window of `size` channels.

    The window has size // 2 channels before and (size - 1) // 2 after the one in the middle; channels beyond the ends are 0. As
    ``torch.nn.functional.local_response_norm`` (Krizhevsky, Sutskever and Hinton 2012); 16-bit data works here too.

    Parameters
    ----------
    x : array, rank >= 3
    size : int
        Channels in the window, at least 1.
    alpha, beta, k : float
        beta of 0.75 and 0.5 are computed by square roots, others by a scalar power.

    Returns
    -------
    y : array of x's shape, dtype and memory order
    """
    options = (size, alpha, beta, k, layout)
    return call.normalize("local_response_norm", _prepare_windows, options, x, out=out, backend=backend, threads=threads)


def local_response_norm_backward(
    grad: Any,
    x: Any,
    size: int,
    alpha: float = 1e-4,
    beta: float = 0.75,
    k: float = 1.0,
    *,
    layout: str = CHANNELS_FIRST,
    out: Any = None,
    backend: str | None = None,
    threads: int | None = None,
) -> Any:
    """Gradient of `cpunorm.local_response_norm`, with d = k + alpha / size * S.

    ``grad_x = g * d**-beta - 2 * alpha * beta / size * x * T``, T the sum of ``g * x * d**(-beta - 1)`` over the channels whose
    window holds this one.

    Returns
    -------
    grad_x
    """
    options = (size, alpha, beta, k, layout)
    return call.gradient("local_response_norm_backward", _prepare_windows, options, grad, x, out=out, backend=backend, threads=threads)


def _prepare_windows(request: Request, size: int, alpha: float, beta: float, k: float, layout: str) -> Prepared:
    name, x = request.call, request.x
    request.check()
    axes = check.axes(name, layout, x.shape)
    check.rank(name, x.shape, 3)
    size = check.positive(name, "size", size)
    alpha, beta, k = (check.number(name, n, value) for n, value in (("alpha", alpha), ("beta", beta), ("k", k)))
    reach = min(size, 2 * x.shape[axes.channel] + 1)  # a wider window holds no more channels

    def make(view: View, data: Data, resources: Resources) -> Plan:
        return recipes.local_response_norm(view, data, resources, size=size, alpha=alpha, beta=beta, k=k)

    def run_reference(x: Array, second: Any, y: Array, *_: Any) -> None:
        if second is None:
            result = reference.local_response_norm(x, size, alpha, beta, k, channel=axes.channel)
        else:
            result = reference.local_response_norm_backward(x, second, size, alpha, beta, k, channel=axes.channel)
        write((result,), y)

    if request.second is not None and reach > plan.LARGEST_WINDOW:
        return Prepared(run_reference)  # its ring would not fit
    return Prepared(request.build(group_norm_roles(axes), make, run_reference, apart=True))


def normalize(
    x: Any,
    p: float = 2.0,
    dim: int | tuple[int, ...] = 1,
    eps: float = 1e-12,
    *,
    out: Any = None,
    backend: str | None = None,
    threads: int | None = None,
) -> Any:
    """Lp normalization: y = x / max(||x||_p, eps), the norm taken over `dim`. As ``torch.nn.functional.normalize``.

    Parameters
    ----------
    x : array
    p : float
        The exponent, infinity included. 2 runs on the kernels; any other is computed by NumPy in float64, whatever the backend.
    dim : int or tuple of int
        The axes that a norm is taken over.
    eps : float
        The smallest divisor.

    Returns
    -------
    y : array of x's shape, dtype and memory order
    """
    options = (p, eps, *(dim if isinstance(dim, tuple) else (dim,)))
    return call.normalize("normalize", _prepare_normalize, options, x, out=out, backend=backend, threads=threads)


def normalize_backward(
    grad: Any,
    x: Any,
    p: float = 2.0,
    dim: int | tuple[int, ...] = 1,
    eps: float = 1e-12,
    *,
    out: Any = None,
    backend: str | None = None,
    threads: int | None = None,
) -> Any:
    """Gradient of `cpunorm.normalize`: ``g / n - dn/dx * sum(g * x) / n**2`` where the norm n is at least eps, ``g / eps`` elsewhere.

    p other than 2 is computed by NumPy in float64, whatever the backend.

    Returns
    -------
    grad_x
    """
    options = (p, eps, *(dim if isinstance(dim, tuple) else (dim,)))
    return call.gradient("normalize_backward", _prepare_normalize, options, grad, x, out=out, backend=backend, threads=threads)


def _prepare_normalize(request: Request, p: float, eps: float, *dim: Any) -> Prepared:
    name, x = request.call, request.x
    request.check()
    p, eps = check.number(name, "p", p), check.number(name, "eps", eps)
    axes = check.reduced_axes(name, dim[0] if len(dim) == 1 else dim, x.ndim, "dim")  # (None is all)
    check.norm_exists(name, p, x.shape, axes)
    roles = "".join(REDUCED if axis in axes else KEPT for axis in range(x.ndim))

    def make(view: View, data: Data, resources: Resources) -> Plan:
        made = recipes.normalize_gradient if data.second else recipes.normalize
        return made(view, data, resources, eps=eps)

    def run_reference(x: Array, second: Any, y: Array, *_: Any) -> None:
        write((reference.normalize(x, p, axes, eps) if second is None else reference.normalize_backward(x, second, p, axes, eps),), y)

    return Prepared(request.build(roles, make, run_reference) if p == 2 and axes and x.size else run_reference)
