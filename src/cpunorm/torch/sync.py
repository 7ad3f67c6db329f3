"""Batch norm over all processes of a group, on the CPU (gloo), where ``torch.nn.SyncBatchNorm`` refuses."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from cpunorm import check, functional, moments
from cpunorm.stats import Moments
from cpunorm.torch.arrays import CLIPS, activate, alike, array, backend, differentiates, once, tensor, through, tracked, wide
from cpunorm.torch.modules import BatchNorm


class _Elsewhere(torch.nn.modules.batchnorm._BatchNorm):
    """PyTorch's on other devices. No ``torch.nn.SyncBatchNorm`` itself, which DistributedDataParallel refuses on the CPU."""

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
        process_group: Any = None,
        **options: Any,
    ) -> None:
        super().__init__(num_features, eps, momentum, affine, track_running_stats, **options)
        self.process_group = process_group

    forward = torch.nn.SyncBatchNorm.forward
    _check_input_dim = torch.nn.SyncBatchNorm._check_input_dim
    _check_non_zero_input_channels = torch.nn.SyncBatchNorm._check_non_zero_input_channels


class SyncBatchNorm(BatchNorm, _Elsewhere):
    """``torch.nn.SyncBatchNorm`` on CPU tensors: batch norm of all processes' batches joined, which may be of different sizes, or empty.

    In training each process reduces its batch to count, mean and M2 (float64); these are gathered and merged in the order of the ranks
    (Chan, Golub and LeVeque 1983), so that all processes have the same bits. Backward adds up sum(g) and sum(g * xhat). As in PyTorch the
    gradients of weight and bias are each process' own, for DistributedDataParallel to join; and inference, or no process group, is plain
    batch norm. All processes have to call it, in the same order, backward included.

    Arguments are those of ``torch.nn.SyncBatchNorm``.

    Raises
    ------
    ValueError
        One value a channel in all processes together; an input of fewer than 2 axes.
    """

    @torch.compiler.disable
    def _normalized(self, x: Tensor, residual: Tensor | None, activation: str | None) -> Tensor:
        group = self._group() if self.training else None
        if group is None:
            return super()._normalized(x, residual, activation)
        self._check_input_dim(x)
        _, momentum, running = self._running()
        check.activation("SyncBatchNorm", activation)
        after = None
        if activation not in CLIPS and differentiates(x, residual, self.weight, self.bias):
            activation, after = None, activation
        y = _Synchronized.apply(x, residual, self.weight, self.bias, running, momentum, self.eps, activation, group)
        tracked(*running)
        return activate(after, y)

    def _group(self) -> Any:
        """The processes to join, None if this one is alone."""
        if not (dist.is_available() and dist.is_initialized()):
            return None
        group = self.process_group or dist.group.WORLD
        return group if dist.get_world_size(group) > 1 else None

    @classmethod
    def convert_sync_batchnorm(cls, module: torch.nn.Module, process_group: Any = None) -> Any:
        """`module` with all its batch norms synchronized, as PyTorch's method of this name does; `convert` may follow."""
        made = torch.nn.SyncBatchNorm.convert_sync_batchnorm(module, process_group)
        for layer in made.modules():
            if type(layer) is torch.nn.SyncBatchNorm:
                layer.__class__ = cls
        return made


def joined(own: Moments, group: Any) -> Moments:
    """The moments of all processes of `group` together."""
    mine = torch.from_numpy(np.concatenate([[float(own.count)], own.mean, own.m2]))
    gathered = [torch.empty_like(mine) for _ in range(dist.get_world_size(group))]
    dist.all_gather(gathered, mine, group=group)
    channels = own.mean.size
    total = Moments.empty((channels,))
    for one in gathered:
        values = one.numpy()
        total = total.merge(Moments(int(values[0]), values[1 : 1 + channels], values[1 + channels :]))
    return total


class _Synchronized(torch.autograd.Function):
    """Forward one collective call, backward another."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        residual: Tensor | None,
        weight: Tensor | None,
        bias: Tensor | None,
        running: tuple[Tensor | None, Tensor | None],
        momentum: float,
        eps: float,
        activation: str | None,
        group: Any,
    ) -> Tensor:
        call = "SyncBatchNorm"
        seen, channels = array(call, "x", x), x.shape[1]
        own = Moments.empty((channels,))
        if x.numel():
            axes = tuple(axis for axis in range(x.dim()) if axis != 1)
            mean, m2 = moments.of_floats(seen, axes, backend(None), None)  # type: ignore[arg-type]
            own = Moments(x.numel() // channels, mean.ravel(), m2.ravel())
        total = joined(own, group)
        if total.count == 1:
            check.fail(ValueError, call, f"expected more than 1 value a channel in all processes, got x of shape {tuple(x.shape)} here")
        kind = np.float64 if wide(x.dtype) == torch.float64 else np.float32
        y = torch.empty_like(x)
        with np.errstate(all="ignore"):
            mean, var = total.mean.astype(kind), (total.m2 / max(total.count, 1)).astype(kind)
            if running[0] is not None and running[1] is not None and total.count:
                for value, new in zip(running, (total.mean, total.m2 / (total.count - 1)), strict=True):
                    value.copy_(value.double() * (1 - momentum) + torch.from_numpy(new) * momentum)  # type: ignore[union-attr]
        added = None if residual is None else array(call, "residual", alike(residual, x))
        ctx.how = {"backend": backend(None), "threads": None}
        given: dict[str, Any] = {"weight": array(call, "weight", weight), "bias": array(call, "bias", bias), "eps": eps, "residual": added}
        _, mean, rstd = functional.batch_norm(
            seen, mean, var, out=array(call, "out", y), activation=activation, return_stats=True, **given, **ctx.how
        )
        ctx.statistics, ctx.count, ctx.group, ctx.activation = (mean, rstd), total.count, group, activation
        ctx.save_for_backward(x, weight, y if activation else None)
        return y

    @staticmethod
    @once
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """With S = sum(g) and T = sum(g * xhat) of all processes, ``grad_x = rstd * weight * (g - S / n - xhat * T / n)``."""
        call = "SyncBatchNorm"
        x, weight, y = ctx.saved_tensors
        mean, rstd = ctx.statistics
        grad = alike(through(ctx.activation, grad, y), x)
        grad_x = torch.empty_like(x)
        seen, scale = array(call, "x", x), array(call, "weight", weight)
        out = array(call, "out", grad_x)
        # rstd * weight * g, and this process' sums
        _, own_t, own_s = functional.batch_norm_backward(
            array(call, "grad", grad), seen, mean, rstd, scale, training=False, out=out, **ctx.how
        )
        sums = torch.from_numpy(np.stack([own_t, own_s]).astype(np.float64))
        dist.all_reduce(sums, group=ctx.group)
        # the rest is a batch norm of x: - xhat * (rstd * weight * T / n) - rstd * weight * S / n
        with np.errstate(all="ignore"):
            factor = -rstd.astype(np.float64) * (1 if scale is None else scale.astype(np.float64)) / max(ctx.count, 1)
            slope, shift = (factor * sums.numpy()).astype(rstd.dtype)
            var = np.square(1 / rstd)
        functional.batch_norm(seen, mean, var, slope, shift, eps=0.0, residual=out, out=out, **ctx.how)
        parts = (tensor(own_t), tensor(own_s))
        grads = (grad_x, grad, *parts)
        return *(value if need else None for value, need in zip(grads, ctx.needs_input_grad[:4], strict=True)), *[None] * 5
