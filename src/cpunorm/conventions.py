"""Other libraries' batch norm: what their arguments mean, and the conversion to `cpunorm.batch_norm`'s.

All compute ``y = (x - mean) / sqrt(var + eps) * scale + shift`` and differ in names, defaults and the running statistics:

==============  ==============  =================================  ======  ========  ================  ====
library         momentum is of  names                              eps     momentum  running variance  axis
==============  ==============  =================================  ======  ========  ================  ====
PyTorch, here   the new batch   weight, bias, running_mean,        1e-5    0.1       unbiased          1
                                running_var
Keras 3         the old value   gamma, beta, moving_mean,          1e-3    0.99      biased            -1
                                moving_variance
MXNet (Gluon)   the old value   gamma, beta, running_mean,         1e-5    0.9       biased            1
                                running_var
ONNX            the old value   scale, B, input_mean, input_var    1e-5    0.9       biased            1
==============  ==============  =================================  ======  ========  ================  ====

* momentum ``m`` of the old value, ``running = m * running + (1 - m) * new``, is PyTorch's ``1 - m``;
* biased: a batch's variance divides by n (its values a channel), unbiased by n - 1. All libraries normalize a batch by the biased one;
* ``tf.keras`` with TensorFlow's fused kernel (rank 4) keeps the unbiased one: then `biased_running_var` is not wanted;
* MXNet's operator (not Gluon's layer) has eps 1e-3, and ``fix_gamma=True`` takes gamma for 1: pass None.

Sources: the documentation of ``keras.layers.BatchNormalization``, ``mxnet.gluon.nn.BatchNorm``, ``torch.nn.BatchNorm2d`` and of ONNX'
operator BatchNormalization, version 15.

>>> import numpy as np
>>> import cpunorm as cn
>>> from cpunorm import conventions
>>> x, ones = np.zeros((2, 4, 4, 3), np.float32), np.ones(3, np.float32)
>>> arguments = conventions.batch_norm_arguments("keras", gamma=ones, beta=ones, mean=0 * ones, variance=ones)
>>> arguments["eps"], round(arguments["momentum"], 3), arguments["layout"]
(0.001, 0.01, 'channels_last')
>>> cn.batch_norm(x, **arguments).shape
(2, 4, 4, 3)

In training, after each call, the moving variance as Keras would have it:

>>> before = arguments["running_var"].copy()
>>> y = cn.batch_norm(x, **arguments, training=True)
>>> values = x.size // 3
>>> arguments["running_var"][...] = conventions.biased_running_var(before, arguments["running_var"], arguments["momentum"], values)
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from cpunorm import check
from cpunorm.layout import CHANNELS_FIRST, CHANNELS_LAST
from cpunorm.reference import wide

Array = np.ndarray[Any, Any]


class Convention(NamedTuple):
    """One row of the table."""

    momentum_of_new: bool
    momentum: float
    eps: float
    unbiased: bool
    layout: str


CONVENTIONS = {
    "torch": Convention(True, 0.1, 1e-5, True, CHANNELS_FIRST),
    "keras": Convention(False, 0.99, 1e-3, False, CHANNELS_LAST),
    "mxnet": Convention(False, 0.9, 1e-5, False, CHANNELS_FIRST),
    "onnx": Convention(False, 0.9, 1e-5, False, CHANNELS_FIRST),
}


def convert_momentum(library: str, momentum: float) -> float:
    """PyTorch's momentum (the weight of the new batch) from another library's, and back."""
    call = "convert_momentum"
    found = _convention(call, library)
    momentum = check.number(call, "momentum", momentum)
    return momentum if found.momentum_of_new else 1 - momentum


def batch_norm_arguments(
    library: str,
    gamma: Any,
    beta: Any,
    mean: Any,
    variance: Any,
    momentum: float | None = None,
    eps: float | None = None,
    layout: str | None = None,
) -> dict[str, Any]:
    """The keyword arguments of `cpunorm.batch_norm` for another library's batch norm.

    Parameters
    ----------
    library : str
        ``"keras"``, ``"mxnet"``, ``"onnx"`` or ``"torch"``.
    gamma, beta : arrays of shape (C,), or None
        The scale and the shift, whatever the library calls them; Keras' ``scale=False`` and ``center=False`` are None.
    mean, variance : arrays of shape (C,)
        The moving statistics. The arrays themselves are passed on, so that training updates them.
    momentum, eps : float or None
        As the library means them; None is its default.
    layout : str or None
        None is the library's axis.

    Returns
    -------
    dict with weight, bias, running_mean, running_var, momentum, eps and layout
    """
    call = "batch_norm_arguments"
    found = _convention(call, library)
    arrays = {"weight": gamma, "bias": beta, "running_mean": mean, "running_var": variance}
    return {
        **{name: None if value is None else check.array(call, name, value) for name, value in arrays.items()},
        "momentum": convert_momentum(library, found.momentum if momentum is None else momentum),
        "eps": found.eps if eps is None else check.number(call, "eps", eps),
        "layout": found.layout if layout is None else layout,
    }


def biased_running_var(before: Any, after: Any, momentum: float, count: int) -> Array:
    """The running variance after one training step, had the step added the biased variance of its batch rather than the unbiased one.

    ``kept + (after - kept) * (n - 1) / n`` with ``kept = (1 - momentum) * before``: what Keras, MXNet and ONNX hold, if they held `before`.

    Parameters
    ----------
    before, after : float arrays of shape (C,)
        The running variance before and after `cpunorm.batch_norm` in training.
    momentum : float
        PyTorch's, the weight of the new batch.
    count : int
        n, the values of a channel in the batch: x.size / C.

    Returns
    -------
    array of shape (C,), of after's dtype; computed in float64
    """
    call = "biased_running_var"
    before, after = check.array(call, "before", before), check.array(call, "after", after)
    check.float_dtype(call, "after", after.dtype)
    check.like(call, "before", before, after)
    kept = (1 - check.number(call, "momentum", momentum)) * wide(before)
    n = check.positive(call, "count", count)
    with np.errstate(all="ignore"):
        return np.asarray((kept + (wide(after) - kept) * ((n - 1) / n)).astype(after.dtype))


def _convention(call: str, library: str) -> Convention:
    if not isinstance(library, str) or library not in CONVENTIONS:
        raise ValueError(f"{call}: expected library to be one of {', '.join(map(repr, CONVENTIONS))}, got {library!r}")
    return CONVENTIONS[library]
