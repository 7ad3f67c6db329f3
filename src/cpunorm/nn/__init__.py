"""The layers of ``torch.nn`` on NumPy arrays: the same arguments, the same state under the same keys, and gradients.

>>> import numpy as np
>>> from cpunorm import nn
>>> layer = nn.BatchNorm2d(3)
>>> y = layer(np.ones((2, 3, 4, 4), np.float32))
>>> grad_x = layer.backward(np.ones_like(y))
>>> sorted(layer.grads), int(layer.num_batches_tracked)
(['bias', 'weight'], 1)

* ``layer(x)`` gives what the function of `cpunorm.functional` gives that the class names; shapes, dtypes and errors are those said there.
  Without a `layout` channels come first, as in PyTorch. The number of axes is checked as PyTorch checks it;
* ``layer.backward(grad)`` gives the gradient of the last call's x and adds those of the parameters to ``layer.grads``, which
  `Layer.zero_grad` empties. The layer keeps x (not a copy) for this: do not change it in between. With an `activation` the layer's value
  before it is computed again rather than kept;
* `Layer.state_dict` and `Layer.load_state_dict` have PyTorch's keys, shapes and dtypes: what ``torch.load`` returns is loaded, and
  ``{name: torch.from_numpy(value) for name, value in layer.state_dict().items()}`` is loaded by PyTorch's layer;
* `dtype` is that of the parameters (PyTorch's ``dtype``; there is no ``device``): float32, float64, float16 or bfloat16 (ml_dtypes);
* `momentum` is the weight of the new batch. Keras, MXNet and ONNX mean that of the old one: see `cpunorm.conventions`;
* errors are ValueError and TypeError, before anything is written: a call that is refused counts as no batch, unlike in PyTorch.
"""

from cpunorm.nn.base import Layer
from cpunorm.nn.batch import BatchNorm1d, BatchNorm2d, BatchNorm3d, InstanceNorm1d, InstanceNorm2d, InstanceNorm3d
from cpunorm.nn.samples import GroupNorm, LayerNorm, LocalResponseNorm, RMSNorm

__all__ = [
    "BatchNorm1d",
    "BatchNorm2d",
    "BatchNorm3d",
    "GroupNorm",
    "InstanceNorm1d",
    "InstanceNorm2d",
    "InstanceNorm3d",
    "Layer",
    "LayerNorm",
    "LocalResponseNorm",
    "RMSNorm",
]
