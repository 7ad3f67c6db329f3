"""cpunorm in PyTorch: the functions on CPU tensors with autograd, layers, whole models converted, SyncBatchNorm on the CPU.

>>> import torch
>>> import cpunorm.torch
>>> model = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.BatchNorm2d(8), torch.nn.ReLU())
>>> faster = cpunorm.torch.convert(model)  # the same parameters and running statistics
>>> faster(torch.zeros(2, 3, 8, 8)).shape
torch.Size([2, 8, 6, 6])

Needs PyTorch 2.4 or newer, which brought ``torch.library.custom_op``; any build of it, those without CUDA too.
"""

try:
    import torch  # noqa: F401
except ImportError as problem:
    raise ImportError(
        f"cpunorm.torch needs PyTorch ({problem}); a CPU build of it is enough, or pip install 'cpunorm[torch]'", name=problem.name
    ) from problem

from cpunorm.torch.convert import convert, revert
from cpunorm.torch.folding import fold_batch_norm
from cpunorm.torch.functional import (
    batch_norm,
    group_norm,
    instance_norm,
    layer_norm,
    local_response_norm,
    mean_var,
    normalize,
    rms_norm,
)
from cpunorm.torch.gradients import (
    batch_norm_backward,
    group_norm_backward,
    instance_norm_backward,
    layer_norm_backward,
    local_response_norm_backward,
    normalize_backward,
    rms_norm_backward,
)
from cpunorm.torch.modules import (
    BatchNorm1d,
    BatchNorm2d,
    BatchNorm3d,
    GroupNorm,
    InstanceNorm1d,
    InstanceNorm2d,
    InstanceNorm3d,
    LayerNorm,
    LocalResponseNorm,
    RMSNorm,
)
from cpunorm.torch.preprocessing import Preprocessor, preprocess
from cpunorm.torch.sync import SyncBatchNorm

__all__ = [
    "BatchNorm1d",
    "BatchNorm2d",
    "BatchNorm3d",
    "GroupNorm",
    "InstanceNorm1d",
    "InstanceNorm2d",
    "InstanceNorm3d",
    "LayerNorm",
    "LocalResponseNorm",
    "Preprocessor",
    "RMSNorm",
    "SyncBatchNorm",
    "batch_norm",
    "batch_norm_backward",
    "convert",
    "fold_batch_norm",
    "group_norm",
    "group_norm_backward",
    "instance_norm",
    "instance_norm_backward",
    "layer_norm",
    "layer_norm_backward",
    "local_response_norm",
    "local_response_norm_backward",
    "mean_var",
    "normalize",
    "normalize_backward",
    "preprocess",
    "revert",
    "rms_norm",
    "rms_norm_backward",
]
