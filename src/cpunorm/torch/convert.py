"""Whole models: their norm layers exchanged for ours, and what follows them fused, without a change of parameters, state or structure."""

from __future__ import annotations

import copy
import itertools
from typing import Any

from torch import nn

from cpunorm.torch import modules
from cpunorm.torch.fuse import fuse, unfuse
from cpunorm.torch.sync import SyncBatchNorm

OURS: dict[type, type] = {
    nn.BatchNorm1d: modules.BatchNorm1d,
    nn.BatchNorm2d: modules.BatchNorm2d,
    nn.BatchNorm3d: modules.BatchNorm3d,
    nn.SyncBatchNorm: SyncBatchNorm,
    nn.InstanceNorm1d: modules.InstanceNorm1d,
    nn.InstanceNorm2d: modules.InstanceNorm2d,
    nn.InstanceNorm3d: modules.InstanceNorm3d,
    nn.GroupNorm: modules.GroupNorm,
    nn.LayerNorm: modules.LayerNorm,
    nn.RMSNorm: modules.RMSNorm,
    nn.LocalResponseNorm: modules.LocalResponseNorm,
}
THEIRS = {ours: theirs for theirs, ours in OURS.items()}


def convert(model: nn.Module, *, inplace: bool = False) -> Any:
    """The model with cpunorm's norm layers, and with what follows these in the same pass.

    * Layers whose class is exactly one of ``torch.nn``'s norms become ours: the same parameters, buffers, hooks, modes and keys.
      Subclasses stay as they are.
    * Where `torch.fx` can trace the code of a module that calls norms (each module by itself), these take over the ReLU, ReLU6, SiLU or
      Hardswish that is their only user, and the residual added in between; layer and RMS norm the sum of which they are taken. The calls
      are exchanged in a copy of the code that the module runs instead of its own, one for each mode and kind of arguments. A module that
      cannot be traced, draws random numbers or changes itself while it runs keeps its own. Norms and activations with hooks are left alone.

    Parameters
    ----------
    model : torch.nn.Module
    inplace : bool
        Change this model. Else modules are copied, and only parameters and buffers are shared.

    Returns
    -------
    torch.nn.Module
    """
    model = _own(model, inplace, "convert")
    for module in model.modules():
        if type(module) in OURS:
            module.__class__ = OURS[type(module)]
    fuse(model)
    return model


def revert(model: nn.Module, *, inplace: bool = False) -> Any:
    """The model as it was before `convert`: PyTorch's layers and its own code, with the parameters and buffers it has now.

    Parameters as `convert`.
    """
    model = _own(model, inplace, "revert")
    unfuse(model)
    for module in model.modules():
        if type(module) in THEIRS:
            module.__class__ = THEIRS[type(module)]
    return model


def _own(model: nn.Module, inplace: bool, call: str) -> nn.Module:
    if not isinstance(model, nn.Module):
        raise TypeError(f"{call}: expected a torch.nn.Module, got {type(model).__name__}")
    if inplace:
        return model
    shared = {id(value): value for value in itertools.chain(model.parameters(), model.buffers())}
    return copy.deepcopy(model, shared)  # type: ignore[arg-type]
