"""Layers whose statistics are each sample's own, in training and inference alike."""

from __future__ import annotations

from functools import partial
from typing import Any, Unpack

from cpunorm import check, functional
from cpunorm.layout import CHANNELS_FIRST
from cpunorm.nn.base import Array, Forward, Layer, Options


class GroupNorm(Layer):
    """``torch.nn.GroupNorm``: `cpunorm.group_norm` of x of shape (N, C, ...).

    Parameters
    ----------
    num_groups, num_channels : int
        The former divides the latter, which is C.
    eps : float
    affine, bias : bool
        Whether there is a weight, and with it a bias.
    dtype, layout, activation, backend
        See the module's text.
    """

    _ARGUMENTS = ("num_groups", "num_channels", "eps", "affine")

    def __init__(
        self, num_groups: int, num_channels: int, eps: float = 1e-5, affine: bool = True, *, bias: bool = True, **options: Unpack[Options]
    ) -> None:
        self._name = type(self).__name__
        self.affine = bool(affine)
        self.num_groups = check.positive(self._name, "num_groups", num_groups)
        (self.num_channels,) = shape = self._sizes("num_channels", (num_channels,))
        if self.num_channels % self.num_groups:
            check.fail(ValueError, self._name, f"expected num_groups to divide num_channels, got {num_groups} and {num_channels}")
        self.eps = check.number(self._name, "eps", eps)
        super().__init__(shape, weight=self.affine, bias=self.affine and bool(bias), **options)

    def _forward(self, x: Array) -> tuple[Array, Forward]:
        where: dict[str, Any] = {"weight": self.weight, "layout": self.layout, "backend": self.backend}
        function = partial(functional.group_norm, x, self.num_groups, bias=self.bias, eps=self.eps, **where)
        y, mean, rstd = function(activation=self.activation, return_stats=True)
        return y, Forward(x, function, lambda grad: functional.group_norm_backward(grad, x, self.num_groups, mean, rstd, **where))


class _RowNorm(Layer):
    _ARGUMENTS = ("normalized_shape", "eps", "elementwise_affine")

    def __init__(self, normalized_shape: Any, eps: float | None, elementwise_affine: bool, bias: bool, options: Options) -> None:
        self._name = type(self).__name__
        if "layout" in options:
            check.fail(TypeError, self._name, "has no layout: it normalizes over the last axes")
        self.normalized_shape = self._sizes("normalized_shape", normalized_shape)
        self.eps: Any = None if eps is None else check.number(self._name, "eps", eps)
        self.elementwise_affine = bool(elementwise_affine)
        super().__init__(self.normalized_shape, weight=self.elementwise_affine, bias=self.elementwise_affine and bool(bias), **options)


class LayerNorm(_RowNorm):
    """``torch.nn.LayerNorm``: `cpunorm.layer_norm` of x whose last axes are `normalized_shape`.

    Parameters
    ----------
    normalized_shape : int, or list or tuple of int
    eps : float
    elementwise_affine, bias : bool
        Whether there is a weight, and with it a bias.
    dtype, activation, backend
        See the module's text; there is no layout.
    """

    def __init__(
        self,
        normalized_shape: int | list[int] | tuple[int, ...],
        eps: float = 1e-5,
        elementwise_affine: bool = True,
        bias: bool = True,
        **options: Unpack[Options],
    ) -> None:
        self._name = type(self).__name__
        super().__init__(normalized_shape, check.number(self._name, "eps", eps), elementwise_affine, bias, options)

    def _forward(self, x: Array) -> tuple[Array, Forward]:
        shape = self.normalized_shape
        where: dict[str, Any] = {"weight": self.weight, "backend": self.backend}
        function = partial(functional.layer_norm, x, shape, bias=self.bias, eps=self.eps, **where)
        y, mean, rstd = function(activation=self.activation, return_stats=True)
        return y, Forward(x, function, lambda grad: functional.layer_norm_backward(grad, x, shape, mean, rstd, **where))


class RMSNorm(_RowNorm):
    """``torch.nn.RMSNorm``: `cpunorm.rms_norm` of x whose last axes are `normalized_shape`.

    Arguments as `LayerNorm`, without a bias; eps None is the machine epsilon of the computing dtype.
    """

    def __init__(
        self,
        normalized_shape: int | list[int] | tuple[int, ...],
        eps: float | None = None,
        elementwise_affine: bool = True,
        **options: Unpack[Options],
    ) -> None:
        self._name = type(self).__name__
        if "bias" in options:
            check.fail(TypeError, self._name, "has no bias")
        super().__init__(normalized_shape, eps, elementwise_affine, False, options)

    def _forward(self, x: Array) -> tuple[Array, Forward]:
        shape = self.normalized_shape
        where: dict[str, Any] = {"weight": self.weight, "backend": self.backend}
        function = partial(functional.rms_norm, x, shape, eps=self.eps, **where)
        y, rstd = function(activation=self.activation, return_stats=True)
        return y, Forward(x, function, lambda grad: functional.rms_norm_backward(grad, x, shape, rstd, **where))


class LocalResponseNorm(Layer):
    """``torch.nn.LocalResponseNorm``: `cpunorm.local_response_norm` of x of shape (N, C, L...).

    Parameters
    ----------
    size : int
        Channels in the window.
    alpha, beta, k : float
    layout, backend
        See the module's text; there are no parameters, and no activation.
    """

    _ARGUMENTS = ("size", "alpha", "beta", "k")

    def __init__(
        self,
        size: int,
        alpha: float = 1e-4,
        beta: float = 0.75,
        k: float = 1.0,
        *,
        layout: str = CHANNELS_FIRST,
        backend: str | None = None,
    ) -> None:
        super().__init__(layout=layout, backend=backend)
        self.size = check.positive(self._name, "size", size)
        self.alpha, self.beta, self.k = (check.number(self._name, n, v) for n, v in (("alpha", alpha), ("beta", beta), ("k", k)))

    def _forward(self, x: Array) -> tuple[Array, Forward]:
        window = (self.size, self.alpha, self.beta, self.k)
        where: dict[str, Any] = {"layout": self.layout, "backend": self.backend}
        y = functional.local_response_norm(x, *window, **where)
        return y, Forward(x, lambda: y, lambda grad: functional.local_response_norm_backward(grad, x, *window, **where))
