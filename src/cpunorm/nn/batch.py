"""Batch and instance norm: layers that may have running statistics."""

from __future__ import annotations

import warnings
from functools import partial
from typing import Any, ClassVar, Unpack

import numpy as np

from cpunorm import check, functional
from cpunorm.nn.base import Array, Forward, Layer, Options

_NONE: dict[str, Any] = {"running_mean": None, "running_var": None}


class _Tracking(Layer):
    """Batch and instance norm: channels with running statistics, and the numbers of axes that they take."""

    _ARGUMENTS = ("num_features", "eps", "momentum", "affine", "track_running_stats")
    _RANKS: ClassVar[tuple[int, ...]] = ()

    def __init__(
        self,
        num_features: int,
        eps: float,
        momentum: float | None,
        affine: bool,
        track_running_stats: bool,
        bias: bool,
        options: Options,
    ) -> None:
        affine = bool(affine)
        self._name = type(self).__name__
        (features,) = shape = self._sizes("num_features", (num_features,))
        super().__init__(shape, weight=affine, bias=affine and bool(bias), **options)
        self.num_features, self.affine, self.track_running_stats = features, affine, bool(track_running_stats)
        self.eps = check.number(self._name, "eps", eps)
        self.momentum = None if momentum is None else check.number(self._name, "momentum", momentum)
        if track_running_stats:
            self.running_mean, self.running_var = np.zeros(shape, self._dtype), np.ones(shape, self._dtype)
            self.num_batches_tracked = np.zeros((), np.int64)

    def reset_running_stats(self) -> None:
        """Mean 0, variance 1, no batches."""
        for name, value in (("running_mean", 0), ("running_var", 1), ("num_batches_tracked", 0)):
            if (array := getattr(self, name)) is not None:
                array[...] = value

    def _check_rank(self, x: Array) -> None:
        if x.ndim not in self._RANKS:
            check.fail(ValueError, self._name, f"expected x of {' or '.join(map(str, self._RANKS))} axes, got shape {x.shape}")

    @property
    def _options(self) -> dict[str, Any]:
        return {"weight": self.weight, "bias": self.bias, "eps": self.eps, "layout": self.layout, "backend": self.backend}

    @property
    def _running(self) -> dict[str, Any]:
        return {"running_mean": self.running_mean, "running_var": self.running_var}


class _BatchNorm(_Tracking):
    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
        *,
        bias: bool = True,
        **options: Unpack[Options],
    ) -> None:
        super().__init__(num_features, eps, momentum, affine, track_running_stats, bias, options)

    def _forward(self, x: Array) -> tuple[Array, Forward]:
        self._check_rank(x)
        own = self.training or (self.running_mean is None and self.running_var is None)
        running = self._running if self.track_running_stats or not self.training else _NONE
        counter = self.num_batches_tracked if self.training and self.track_running_stats else None
        momentum = self.momentum
        if momentum is None:  # the cumulative average
            momentum = 0.0 if counter is None else 1 / (int(counter) + 1)
        if counter is not None:
            check.writeable(self._name, num_batches_tracked=counter)
        function = partial(functional.batch_norm, x, training=own, **self._options)
        y, mean, rstd = function(**running, momentum=momentum, activation=self.activation, return_stats=True)
        if counter is not None:
            counter += 1
        backward = partial(
            functional.batch_norm_backward,
            x=x,
            mean=mean,
            rstd=rstd,
            weight=self.weight,
            training=own,
            layout=self.layout,
            backend=self.backend,
        )
        return y, Forward(x, partial(function, **(_NONE if own else running)), backward)


class BatchNorm1d(_BatchNorm):
    """``torch.nn.BatchNorm1d``: `cpunorm.batch_norm` of x of shape (N, C) or (N, C, L).

    Parameters
    ----------
    num_features : int
        C.
    eps : float
    momentum : float or None
        The weight of the new batch in the running statistics; None averages all batches alike.
    affine, bias : bool
        Whether there is a weight, and with it a bias.
    track_running_stats : bool
        Without running statistics inference normalizes by x's own, too.
    dtype, layout, activation, backend
        See the module's text.
    """

    _RANKS = (2, 3)


class BatchNorm2d(_BatchNorm):
    """``torch.nn.BatchNorm2d``: x of shape (N, C, H, W). Arguments as `BatchNorm1d`."""

    _RANKS = (4,)


class BatchNorm3d(_BatchNorm):
    """``torch.nn.BatchNorm3d``: x of shape (N, C, D, H, W). Arguments as `BatchNorm1d`."""

    _RANKS = (5,)


class _InstanceNorm(_Tracking):
    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = False,
        track_running_stats: bool = False,
        *,
        bias: bool = True,
        **options: Unpack[Options],
    ) -> None:
        super().__init__(num_features, eps, momentum, affine, track_running_stats, bias, options)

    def _forward(self, x: Array) -> tuple[Array, Forward]:
        self._check_rank(x)
        batch_axis = None
        if x.ndim == self._RANKS[0]:
            batch_axis = self.layout.index("N") if self.layout.isupper() else 0
            x = np.expand_dims(x, batch_axis)
        channel = check.axes(self._name, self.layout, x.shape).channel
        if not self.affine and x.shape[channel] != self.num_features:
            warnings.warn(
                f"{self._name}: num_features is {self.num_features} but x has {x.shape[channel]} channels; it is not used without affine",
                stacklevel=3,
            )
        own = self.training or not self.track_running_stats
        running = self._running
        function = partial(functional.instance_norm, x, use_input_stats=own, **self._options)
        y, mean, rstd = function(**running, momentum=self.momentum or 0.0, activation=self.activation, return_stats=True)
        backward = partial(
            functional.instance_norm_backward,
            x=x,
            mean=mean,
            rstd=rstd,
            weight=self.weight,
            use_input_stats=own,
            layout=self.layout,
            backend=self.backend,
        )
        last = Forward(x, partial(function, **(_NONE if own else running)), backward, batch_axis)
        return y if batch_axis is None else y.squeeze(batch_axis), last


class InstanceNorm1d(_InstanceNorm):
    """``torch.nn.InstanceNorm1d``: `cpunorm.instance_norm` of x of shape (N, C, L), or (C, L) for one sample.

    Arguments as `BatchNorm1d`, other defaults. As in PyTorch a momentum of None leaves running statistics as they are,
    ``num_batches_tracked`` stays 0, and without `affine` and running statistics another number of channels is only warned of. A `layout` of
    letters names N, for one sample too.
    """

    _RANKS = (2, 3)


class InstanceNorm2d(_InstanceNorm):
    """``torch.nn.InstanceNorm2d``: x of shape (N, C, H, W) or (C, H, W). Arguments as `InstanceNorm1d`."""

    _RANKS = (3, 4)


class InstanceNorm3d(_InstanceNorm):
    """``torch.nn.InstanceNorm3d``: x of shape (N, C, D, H, W) or (C, D, H, W). Arguments as `InstanceNorm1d`."""

    _RANKS = (4, 5)
