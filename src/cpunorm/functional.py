"""The public forward functions: check, plan, run. Names, order and defaults of arguments are those of ``torch.nn.functional``.

Every function here says its formula and what is its own; what they share is said once:

* arrays are NumPy arrays, or what ``numpy.asarray`` takes without a copy (a CPU tensor), of float16, bfloat16 (ml_dtypes), float32 or
  float64. 16-bit data is computed in float32 and rounded once. Parameters have x's dtype or float32 (float64 for float64);
* any strides: where these are no view for the operation (a slice along an inner axis), x is copied once;
* ``layout`` is one letter an axis (``"NCHW"``, ``"NHWC"``, ``"NLC"``, ...), ``"channels_first"`` or ``"channels_last"``;
* ``out`` is written and returned: x's shape and dtype, any strides; x (or residual) itself, or apart from all inputs;
* ``activation`` (``"relu"``, ``"relu6"``, ``"silu"``, ``"hardswish"``) and ``residual`` (x's shape and dtype) cost no pass of their own.
  The result has the bits of the separate steps in float32 and float64; in 16 bits it is rounded once, at the end;
* ``return_stats`` returns mean and rstd = 1 / sqrt(var + eps) too, float32 (float64 for float64): what the gradients take;
* ``backend`` (``"numba"``, ``"c"``, ``"numpy"``) and ``threads``: None takes the configured ones. The number of threads changes no bit;
* ValueError and TypeError are raised before anything is written, and say what was expected and what came; ImportError names what
  installs a backend that is missing;
* empty arrays give empty results, mean 0 and rstd NaN; NaN and infinity stay in the channel or row that has them.

Statistics are one blocked pass over memory, merged in float64 (Chan, Golub and LeVeque 1983, "Algorithms for computing the sample
variance"); y = (x - mean) * (rstd * weight) + bias, the difference first.

Backward, from the statistics that ``return_stats=True`` gave forward: `grad` is the gradient of the result and has x's shape and dtype;
``out`` (for grad_x) may be `grad` or `x` itself; grad_weight and grad_bias are always given, in weight's dtype, else the statistics'. Two
passes over grad and x: their sums sum(g) and sum(g * (x - mean)), then one affine of both. With an activation, multiply `grad` by its
derivative first.
"""

from cpunorm.channels import (
    batch_norm,
    batch_norm_backward,
    group_norm,
    group_norm_backward,
    instance_norm,
    instance_norm_backward,
)
from cpunorm.local import local_response_norm, local_response_norm_backward, normalize, normalize_backward
from cpunorm.moments import mean_var
from cpunorm.rows import layer_norm, layer_norm_backward, rms_norm, rms_norm_backward

__all__ = [
    "batch_norm",
    "batch_norm_backward",
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
    "rms_norm",
    "rms_norm_backward",
]
