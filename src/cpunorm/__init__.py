"""cpunorm: normalization on the CPU at the speed of its memory, on NumPy arrays, with PyTorch's meanings.

>>> import numpy as np
>>> import cpunorm as cn
>>> x = np.arange(24, dtype=np.float32).reshape(2, 3, 2, 2)
>>> mean, var = cn.mean_var(x, axis=(0, 2, 3))
>>> mean
array([ 7.5, 11.5, 15.5])
"""

from cpunorm.functional import batch_norm, mean_var
from cpunorm.report import show_config
from cpunorm.settings import config, set_backend, set_num_threads

__version__ = "0.1.0"

__all__ = ["__version__", "batch_norm", "config", "mean_var", "set_backend", "set_num_threads", "show_config"]
