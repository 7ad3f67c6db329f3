"""The norm layers of ``torch.nn``, computed by cpunorm. Arguments, state, attributes and hooks are theirs: each is a subclass.

A call takes what `convert` fuses besides the input: a `residual`, an `activation` by its name, and, of layer and RMS norm, `return_sum`.
What is not on the CPU, or has a dtype that kernels do not take, is PyTorch's, in its steps; so is a residual of another shape or dtype.
"""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import Tensor

from cpunorm.torch import functional
from cpunorm.torch.arrays import activate

_DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


def takes(x: Any) -> bool:
    """Whether kernels do."""
    return isinstance(x, Tensor) and x.is_cpu and x.dtype in _DTYPES


def fits(residual: Any, x: Tensor) -> bool:
    """Whether it may be added in the same pass: no broadcasting, no promotion of dtypes."""
    return isinstance(residual, Tensor) and residual.shape == x.shape and residual.dtype == x.dtype and residual.device == x.device


def state(module: torch.nn.Module, kind: str, *names: str) -> list[Any]:
    """Parameters or buffers. As attributes (which they are, where somebody computes them) each is found by a function of Module's."""
    kept = module.__dict__[kind]
    return [kept[name] if name in kept else getattr(module, name) for name in names]


class ByChannel(torch.nn.Module):
    """Batch, instance and group norm: ``act(norm(x) + residual)``."""

    def forward(self, input: Tensor, residual: Any = None, activation: str | None = None, in_place: bool = False) -> Tensor:
        """`in_place`: what is added is added to the norm's result where it is, as ``+=`` does; it keeps its dtype."""
        ours = takes(input)
        if ours and (residual is None or fits(residual, input)):
            return self._normalized(input, residual, activation)
        y = self._normalized(input, None, None) if ours else super().forward(input)
        if residual is not None:
            y = y.add_(residual) if in_place else y + residual
        return activate(activation, y)

    def _normalized(self, x: Tensor, residual: Tensor | None, activation: str | None) -> Tensor:
        raise NotImplementedError


class ByRow(torch.nn.Module):
    """Layer and RMS norm: ``act(norm(x + residual))``."""

    def forward(self, input: Tensor, residual: Any = None, activation: str | None = None, return_sum: bool = False) -> Any:
        """y; with `return_sum` the sum too."""
        ours = takes(input)
        if ours and (residual is None or fits(residual, input)):
            return self._normalized(input, residual, activation, return_sum)
        h = input if residual is None else input + residual
        y = activate(activation, self._normalized(h, None, None, False) if takes(h) else super().forward(h))
        return (y, h) if return_sum else y

    def _normalized(self, x: Tensor, residual: Tensor | None, activation: str | None, return_sum: bool) -> Any:
        raise NotImplementedError


class BatchNorm(ByChannel):
    """What the batch norms share."""

    def _normalized(self, x: Tensor, residual: Tensor | None, activation: str | None) -> Tensor:
        self._check_input_dim(x)
        own, momentum, running = self._running()
        weight, bias = state(self, "_parameters", "weight", "bias")
        return functional.batch_norm(  # type: ignore[no-any-return]
            x, *running, weight, bias, own, momentum, self.eps, residual=residual, activation=activation
        )

    def _running(self) -> tuple[bool, float, tuple[Tensor | None, Tensor | None]]:
        """Whether x's own statistics normalize, the weight of a new batch, and the running statistics of this call."""
        training, momentum = self.training, self.momentum
        mean, var, count = state(self, "_buffers", "running_mean", "running_var", "num_batches_tracked")
        if training and self.track_running_stats and count is not None:
            count.add_(1)
            if momentum is None:  # the cumulative average
                momentum = 1.0 / float(count)
        used = not training or self.track_running_stats
        return training or (mean is None and var is None), 0.0 if momentum is None else momentum, (mean, var) if used else (None, None)


class BatchNorm1d(BatchNorm, torch.nn.BatchNorm1d):
    """``torch.nn.BatchNorm1d``."""


class BatchNorm2d(BatchNorm, torch.nn.BatchNorm2d):
    """``torch.nn.BatchNorm2d``."""


class BatchNorm3d(BatchNorm, torch.nn.BatchNorm3d):
    """``torch.nn.BatchNorm3d``."""


class InstanceNorm(ByChannel):
    """What the instance norms share."""

    def _normalized(self, x: Tensor, residual: Tensor | None, activation: str | None) -> Tensor:
        self._check_input_dim(x)
        single = x.dim() == self._get_no_batch_dim()
        channels = x.shape[0 if single else 1]
        if channels != self.num_features:
            if self.affine:
                raise ValueError(
                    f"expected input's size at dim={0 if single else 1} to match num_features ({self.num_features}), got: {channels}."
                )
            warnings.warn(
                f"input has {channels} channels; num_features is {self.num_features}, which is not used without affine", stacklevel=4
            )
        y = functional.instance_norm(
            x.unsqueeze(0) if single else x,
            self.running_mean,
            self.running_var,
            self.weight,
            self.bias,
            self.training or not self.track_running_stats,
            0.0 if self.momentum is None else self.momentum,
            self.eps,
            residual=residual.unsqueeze(0) if single and residual is not None else residual,
            activation=activation,
        )
        return y.squeeze(0) if single else y  # type: ignore[no-any-return]


class InstanceNorm1d(InstanceNorm, torch.nn.InstanceNorm1d):
    """``torch.nn.InstanceNorm1d``."""


class InstanceNorm2d(InstanceNorm, torch.nn.InstanceNorm2d):
    """``torch.nn.InstanceNorm2d``."""


class InstanceNorm3d(InstanceNorm, torch.nn.InstanceNorm3d):
    """``torch.nn.InstanceNorm3d``."""


class GroupNorm(ByChannel, torch.nn.GroupNorm):
    """``torch.nn.GroupNorm``."""

    def _normalized(self, x: Tensor, residual: Tensor | None, activation: str | None) -> Tensor:
        return functional.group_norm(  # type: ignore[no-any-return]
            x, self.num_groups, self.weight, self.bias, self.eps, residual=residual, activation=activation
        )


class LayerNorm(ByRow, torch.nn.LayerNorm):
    """``torch.nn.LayerNorm``."""

    def _normalized(self, x: Tensor, residual: Tensor | None, activation: str | None, return_sum: bool) -> Any:
        return functional.layer_norm(
            x, self.normalized_shape, self.weight, self.bias, self.eps, residual=residual, activation=activation, return_sum=return_sum
        )


class RMSNorm(ByRow, torch.nn.RMSNorm):
    """``torch.nn.RMSNorm``."""

    def _normalized(self, x: Tensor, residual: Tensor | None, activation: str | None, return_sum: bool) -> Any:
        return functional.rms_norm(
            x, self.normalized_shape, self.weight, self.eps, residual=residual, activation=activation, return_sum=return_sum
        )


class LocalResponseNorm(torch.nn.LocalResponseNorm):  # type: ignore[misc]
    """``torch.nn.LocalResponseNorm``."""

    def forward(self, input: Tensor) -> Tensor:
        """y."""
        if not takes(input) or input.dim() < 3:
            return super().forward(input)  # type: ignore[no-any-return]
        return functional.local_response_norm(input, self.size, self.alpha, self.beta, self.k)
