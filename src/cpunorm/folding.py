"""Batch norm in inference is one affine map a channel: folded into the weights of the layer before it, it costs nothing."""

from __future__ import annotations

from typing import Any

import numpy as np

from cpunorm import check, reference

Array = np.ndarray[Any, Any]


def fold_batch_norm(
    weight: Any,
    bias: Any,
    running_mean: Any,
    running_var: Any,
    gamma: Any,
    beta: Any,
    eps: float = 1e-5,
    *,
    transposed: bool = False,
) -> tuple[Array, Array]:
    """Weight and bias of a convolution or linear layer that does what it and the batch norm after it (in inference) do.

    With ``s = gamma / sqrt(running_var + eps)``, one value an output channel: ``weight * s`` and ``(bias - running_mean) * s + beta``
    (Jacob et al. 2018, arXiv:1712.05877, section 3.2), computed in float64 and rounded once. As PyTorch's ``fuse_conv_bn_weights``; grouped
    transposed convolutions work here too.

    Parameters
    ----------
    weight : array of shape (out, in / groups, kernel ...), or (out, in) of a linear layer; `transposed` (in, out / groups, kernel ...)
        float16, bfloat16, float32 or float64, as all arrays here; any strides.
    bias : array of shape (out,), or None
    running_mean, running_var : arrays of shape (out,)
    gamma, beta : arrays of shape (out,), or None
        The batch norm's weight and bias; None is 1 and 0.
    eps : float
    transposed : bool
        The weight is that of a transposed convolution. Groups follow from the number of output channels.

    Returns
    -------
    weight, bias : new arrays, of weight's shape and (out,), in the dtype of what was given (without a bias, weight's)
    """
    call = "fold_batch_norm"
    weight = check.array(call, "weight", weight)
    check.float_dtype(call, "weight", weight.dtype)
    if weight.ndim < 2:
        check.fail(ValueError, call, f"expected weight of at least 2 axes, got shape {weight.shape}")
    eps = check.epsilon(call, eps, training=False)
    mean = check.array(call, "running_mean", running_mean)
    if mean.ndim != 1:
        check.fail(ValueError, call, f"expected running_mean of shape (out,), got {mean.shape}")
    channels = len(mean)
    optional = {"bias": bias, "gamma": gamma, "beta": beta}
    given = {"running_mean": mean, "running_var": check.array(call, "running_var", running_var)}
    given |= {name: check.array(call, name, value) for name, value in optional.items() if value is not None}
    for name, value in given.items():
        check.float_dtype(call, name, value.dtype)
        if value.shape != (channels,):
            check.fail(ValueError, call, f"expected {name} of shape ({channels},), as running_mean, got {value.shape}")
    groups = _groups(call, weight.shape, channels, bool(transposed))

    zero = np.zeros(channels)
    wide = {name: reference.wide(value) for name, value in given.items()}
    with np.errstate(all="ignore"):
        scale = wide.get("gamma", zero + 1) * reference.rstd_of(wide["running_var"], eps)
        shift = (wide.get("bias", zero) - wide["running_mean"]) * scale + wide.get("beta", zero)
        if transposed:  # input channels of a group share its output channels
            by_group = reference.wide(weight).reshape(groups, -1, *weight.shape[1:])
            folded = by_group * scale.reshape(groups, 1, -1, *[1] * (weight.ndim - 2))
        else:
            folded = reference.wide(weight) * scale.reshape(-1, *[1] * (weight.ndim - 1))
        new_weight = folded.reshape(weight.shape).astype(weight.dtype.newbyteorder("="))
        return new_weight, shift.astype(given.get("bias", weight).dtype.newbyteorder("="))


def _groups(call: str, shape: tuple[int, ...], channels: int, transposed: bool) -> int:
    """The groups of a transposed convolution, 1 else."""
    if not transposed:
        if shape[0] != channels:
            check.fail(ValueError, call, f"expected weight of shape ({channels}, ...) for {channels} running means, got {shape}")
        return 1
    a_group = shape[1]
    groups = channels // a_group if a_group else 0
    if not groups or channels % a_group or shape[0] % groups:
        message = f"expected transposed weight of shape (in, {channels} / groups, ...) for {channels} running means, groups dividing in"
        check.fail(ValueError, call, f"{message}; got {shape}")
    return groups
