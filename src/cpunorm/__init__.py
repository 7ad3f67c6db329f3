"""cpunorm: normalization on the CPU at the speed of its memory, on NumPy arrays, with PyTorch's meanings.

>>> import numpy as np
>>> import cpunorm as cn
>>> x = np.arange(24, dtype=np.float32).reshape(2, 3, 2, 2)
>>> mean, var = cn.mean_var(x, axis=(0, 2, 3))
>>> mean
array([ 7.5, 11.5, 15.5])
"""

from typing import TYPE_CHECKING, Any

from cpunorm.functional import (
    batch_norm,
    batch_norm_backward,
    group_norm,
    group_norm_backward,
    instance_norm,
    instance_norm_backward,
    layer_norm,
    layer_norm_backward,
    local_response_norm,
    local_response_norm_backward,
    mean_var,
    normalize,
    normalize_backward,
    rms_norm,
    rms_norm_backward,
)
from cpunorm.report import show_config
from cpunorm.settings import config, set_backend, set_num_threads

__version__ = "0.1.0"

__all__ = [
    "CIFAR10_MEAN",
    "CIFAR10_STD",
    "CIFAR100_MEAN",
    "CIFAR100_STD",
    "CLIP_MEAN",
    "CLIP_STD",
    "IMAGENET_MEAN",
    "IMAGENET_STD",
    "INCEPTION_MEAN",
    "INCEPTION_STD",
    "MNIST_MEAN",
    "MNIST_STD",
    "ChannelStats",
    "Preprocessor",
    "Whitening",
    "__version__",
    "batch_norm",
    "batch_norm_backward",
    "config",
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
    "rms_norm",
    "rms_norm_backward",
    "set_backend",
    "set_num_threads",
    "show_config",
]

if TYPE_CHECKING:
    from cpunorm.constants import (
        CIFAR10_MEAN,
        CIFAR10_STD,
        CIFAR100_MEAN,
        CIFAR100_STD,
        CLIP_MEAN,
        CLIP_STD,
        IMAGENET_MEAN,
        IMAGENET_STD,
        INCEPTION_MEAN,
        INCEPTION_STD,
        MNIST_MEAN,
        MNIST_STD,
    )
    from cpunorm.folding import fold_batch_norm
    from cpunorm.preprocessing import Preprocessor, preprocess
    from cpunorm.stats import ChannelStats
    from cpunorm.whitening import Whitening

_LATE = {
    "ChannelStats": "cpunorm.stats",
    "Preprocessor": "cpunorm.preprocessing",
    "Whitening": "cpunorm.whitening",
    "fold_batch_norm": "cpunorm.folding",
    "preprocess": "cpunorm.preprocessing",
} | {name: "cpunorm.constants" for name in __all__ if name.endswith(("_MEAN", "_STD"))}  # needed by few


def __getattr__(name: str) -> Any:
    if name not in _LATE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(_LATE[name]), name)
