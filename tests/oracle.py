"""What a call has to give, in float64 by the reference's pieces, and how far from it a result may be, element by element.

The bound is k (the operation table's rtol) times the terms that a result adds up. Of y = (x - mean) * (rstd * weight) + bias + residual
that is k * (max|x - mean| * rstd * |weight| + |bias| + |residual| + |y|), the maximum over the values that share a mean, since each lends
its rounding to the sum; of a gradient 4 k, as in the table. Besides, coefficients are numbers of the computing dtype, subnormal ones with
fewer digits (`TINY` each), and means are float64 (`LOST` of |mean|). What leaves `LIMIT`, the range that is promised, is not bounded.
"""

from fractions import Fraction
from typing import Any, NamedTuple

import numpy as np

from cpunorm import ops, reference, samples
from cpunorm.reference import wide

LIMIT = {"float32": 1e37, "float64": 1e150}
TINY = {"float32": 2.0**-149, "float64": 2.0**-1074}
LOST = 2.0**-52
HALF = LOST / 2
BLOCK = 4096  # values whose moments are merged with those of others
FLOOR = 1e-30
ACTIVATED = 1.5  # the steepest slope of an activation


class Wanted(NamedTuple):
    """A result: its value, how far a result may be from it before it is rounded to `dtype` (infinite: any value)."""

    name: str
    value: Any
    off: Any
    dtype: np.dtype


class Terms(NamedTuple):
    """The axes of a call: x's shape with its channel axis split in groups, the axes of a statistic, and the shape of a parameter there."""

    shape: tuple[int, ...]
    axes: tuple[int, ...]
    parameter: tuple[int, ...]
    k: float
    tiny: float
    limit: float

    @property
    def floor(self):
        """Of a gradient: products of small numbers leave the range at its lower end."""
        return FLOOR if self.limit < 1e38 else FLOOR**9


def terms(call):
    """Of a call (`fuzz.Call`)."""
    kind = samples.statistics_dtype(call.dtype).name
    bounds = (ops.tolerance(kind)["rtol"], TINY[kind], LIMIT[kind])
    shape = call.x.shape
    if "normalized_shape" in call.options:
        normalized = call.options["normalized_shape"]
        return Terms(shape, tuple(range(len(shape) - len(normalized), len(shape))), normalized, *bounds)
    batch, channel = samples.axes_of(call.options["layout"], len(shape))[:2]
    groups = call.options.get("num_groups", shape[channel])
    split = (*shape[:channel], groups, shape[channel] // max(groups, 1), *shape[channel + 1 :])
    kept = {channel} if call.pooled else {channel, batch + (batch > channel)}
    parameter = tuple(size if axis in (channel, channel + 1) else 1 for axis, size in enumerate(split))
    return Terms(split, tuple(axis for axis in range(len(split)) if axis not in kept), parameter, *bounds)


def _parameter(call, name, t, default):
    value = call.parameters.get(name)
    return np.full((1,) * len(t.parameter), default) if value is None else wide(value).reshape(t.parameter)


def _most(x, axes):
    return np.abs(x).max(axis=axes, keepdims=True, initial=0)


def precision(t, n):
    """The k of a mean or a variance of `n` values. In float64 that of their sums, which are as many additions in a row at most: of a block
    here, of all in the reference. A variance is what twice its sum of squares at most has left, so that its errors count twice, and of a
    square there are two.
    """
    return t.k if t.limit < 1e38 else min(t.k, 4 * (min(n, BLOCK) + n + 8) * HALF)


def roundings(t, n, mean, far):
    """How far the mean of `n` values is off for being rounded, by half a last place (or half the smallest number) each time: at the end of
    a block, of a piece and of the whole, and by the reference. Of m blocks merged in their order the j-th rounding enters with a weight of
    j / m: (m + 1) / 2 halves in all.
    """
    halves = 3 + (-(-n // BLOCK) + 1) / 2
    return halves / 2 * (LOST * np.abs(mean) + t.tiny) * (far > 0)  # (half of the smallest number is 0)


def merges(lost, var):
    """What merging means that are `lost` off adds to a variance. A merge adds w d^2, d the difference of two such means: off by
    w (2 |d| e + e^2), e = 2 lost. All w sum up to n at most and all w d^2 to M2: all of this is no more than 2 e std + e^2 (Cauchy and
    Schwarz).
    """
    return 4 * lost * (np.sqrt(var) + lost)


def _bounded(value, off, risky):
    """Nothing lies near what is infinite; what is risky may be anything."""
    off = np.where(np.isfinite(value) & ~np.isnan(off), off, 0)
    return np.where(risky, np.inf, off)


def _beyond(t, *values):
    """Where one of these left the range."""
    risky = np.zeros((), bool)
    for value in values:
        risky = risky | (np.abs(np.where(np.isfinite(value), value, 0)) > t.limit)
    return risky


def nothing(call):
    """Of no values: empty, mean 0, rstd NaN, running statistics as they were, gradients of parameters 0."""
    kind = samples.statistics_dtype(call.dtype)
    empty = np.zeros(call.x.shape)
    if call.backward:
        weight = call.parameters.get("weight")
        to = kind if weight is None else weight.dtype
        shape = call.options.get("normalized_shape") or (call.x.shape[_channel(call)[0]],)
        names = ("grad_weight", "grad_bias")[: 1 if call.base == "rms_norm" else 2]
        return [Wanted("grad_x", empty, 0.0, call.x.dtype), *(Wanted(name, np.zeros(shape), 0.0, to) for name in names)]
    if "normalized_shape" in call.options:
        normalized = call.options["normalized_shape"]
        shape = call.x.shape[: call.x.ndim - len(normalized)] + (1,) * len(normalized)
    else:
        batch, channel = samples.axes_of(call.options["layout"], call.x.ndim)[:2]
        channels = call.x.shape[channel]
        shape = (channels,) if call.pooled else (call.x.shape[batch], call.options.get("num_groups", channels))
    results = [Wanted("y", empty, 0.0, call.x.dtype)]
    if call.stats:
        results += [Wanted("mean", np.zeros(shape), 0.0, kind)] if call.base != "rms_norm" else []
        results.append(Wanted("rstd", np.full(shape, np.nan), 0.0, kind))
    if call.total:
        results.append(Wanted("sum", empty, 0.0, call.x.dtype))
    running = [(name, call.parameters[name]) for name in ("running_mean", "running_var")] if call.updates else []
    return results + [Wanted(name, wide(value), 0.0, value.dtype) for name, value in running]


def forward(call):
    """y, mean and rstd, the sum, the running statistics."""
    if call.x.size == 0 and call.own:
        return nothing(call)
    t = terms(call)
    kind = samples.statistics_dtype(call.dtype)
    h = wide(call.x).reshape(t.shape)
    residual = None if call.second is None else wide(call.second).reshape(t.shape)
    rows = "normalized_shape" in call.options
    if rows and residual is not None:
        h, residual = wide((h + residual).astype(kind)), None  # computed and rounded before the statistics
    eps = call.options.get("eps", 1e-5)
    eps = float(np.finfo(kind).eps) if eps is None else eps
    weight, bias = _parameter(call, "weight", t, 1.0), _parameter(call, "bias", t, 0.0)
    n = int(np.prod([t.shape[axis] for axis in t.axes]))
    if not call.own:
        mean, var = _parameter(call, "running_mean", t, 0.0), _parameter(call, "running_var", t, 1.0)
    elif call.name == "rms_norm":
        var = np.square(h).mean(axis=t.axes, keepdims=True)
        mean = np.zeros_like(var)
    else:
        _, mean, m2 = reference.moments(h, t.axes)
        var = m2 / n
    rstd = reference.rstd_of(var, eps)
    plain = reference.affine(h, mean, rstd, weight, bias, None, None)
    plain = plain if residual is None else plain + residual
    y = reference.activate(plain, call.options.get("activation"))
    apart = np.abs(h - mean)
    far = _most(h - mean, t.axes) if call.own else apart
    scale = np.abs(rstd * weight)
    lost = LOST * np.abs(mean) if call.own else 0.0
    uncertain = t.k + (np.square(lost) / (var + eps) if call.own else 0.0)
    off = uncertain * scale * far + scale * lost + t.k * (np.abs(bias) + np.abs(plain) + np.abs(y))
    off = off + t.k * (0 if residual is None else np.abs(residual)) + t.tiny * (far + scale + 4)
    if call.options.get("activation"):
        off = ACTIVATED * off + 1e-35 * (t.limit < 1e38)  # of SiLU: exp leaves float's range
    largest = _most(h, t.axes) if call.own else np.abs(h)
    risky = _beyond(t, largest, far, scale, scale * far, bias, 1.0 if residual is None else residual, plain) | np.isinf(weight)
    results = [Wanted("y", y, _bounded(y, np.where(np.isfinite(plain), off, 0), risky), call.x.dtype)]
    if call.stats:
        unit = _beyond(t, largest, far) if call.own else _beyond(t, mean)
        k, lost = precision(t, n), roundings(t, n, mean, far) + t.tiny
        off_mean = k * far + lost if call.own else 0 * mean
        off_rstd = (k + merges(lost, var) / (var + eps)) * rstd + t.tiny if call.own else LOST * rstd
        if call.name != "rms_norm":
            results.append(Wanted("mean", mean, _bounded(mean, off_mean, unit), kind))
        results.append(Wanted("rstd", rstd, _bounded(rstd, off_rstd, unit), kind))
    if call.total:
        results.append(Wanted("sum", h, _bounded(h, 0, _beyond(t, h)), call.x.dtype))
    results = [one._replace(value=_shaped(call, one, t), off=_shaped(call, one._replace(value=one.off), t)) for one in results]
    return results + (_running(call, t, mean, var * n, n, far) if call.own and call.parameters.get("running_mean") is not None else [])


def _shaped(call, one, t):
    """In the shape of the result."""
    if one.name in ("y", "sum"):
        return np.broadcast_to(one.value, t.shape).reshape(call.x.shape)
    if "normalized_shape" in call.options:
        return one.value
    batch = samples.axes_of(call.options["layout"], call.x.ndim).batch
    channel = samples.axes_of(call.options["layout"], call.x.ndim).channel
    if call.pooled:
        return one.value.reshape(-1)
    return np.moveaxis(one.value, (batch + (batch > channel), channel), (0, 1)).reshape(call.x.shape[batch], -1)


def _running(call, t, mean, m2, n, far):
    """After the call: of the mean over the samples, whose axis of instance norm remains."""
    channel = samples.axes_of(call.options["layout"], call.x.ndim).channel
    others = tuple(axis for axis in range(mean.ndim) if axis != channel)
    momentum = call.options.get("momentum", 0.1)
    unbiased = m2 / np.float64(n - 1)
    k, lost = precision(t, n), roundings(t, n, mean, far)
    found = []
    for name, new, off in (
        ("running_mean", mean, k * far + lost),
        ("running_var", unbiased, k * unbiased + 2 * merges(lost, m2 / n)),
    ):
        given = call.parameters[name]
        old = wide(given) * (1 - momentum)
        value = old + momentum * new.mean(axis=others)
        bound = abs(momentum) * off.mean(axis=others) + LOST * (np.abs(old) + np.abs(momentum * new).mean(axis=others)) * 4 + t.tiny
        risky = (_beyond(t, far, mean) | np.zeros(mean.shape, bool)).any(axis=others)
        found.append(Wanted(name, value, _bounded(value, bound, risky), given.dtype.newbyteorder("=")))
    return found


def backward(call):
    """grad_x, grad_weight, grad_bias of batch, instance, group, layer and RMS norm."""
    if call.x.size == 0:
        return nothing(call)
    t = terms(call)
    k = 4 * t.k
    kind = samples.statistics_dtype(call.dtype)
    rows = "normalized_shape" in call.options
    x, g = (wide(value).reshape(t.shape) for value in (call.x, call.second))
    weight = _parameter(call, "weight", t, 1.0)
    rstd = _statistic(call, "rstd", t)
    mean = np.zeros_like(rstd) if call.name.startswith("rms") else _statistic(call, "mean", t)
    h = g * weight
    hat = np.abs(x - mean) * rstd
    n = max(int(np.prod([t.shape[axis] for axis in t.axes])), 1)
    if call.own:
        y = reference.gradient(h, x, mean, rstd, t.axes, centred=not call.name.startswith("rms"))
        products = (np.abs(h) * hat).sum(axis=t.axes, keepdims=True) / n
        sums = np.abs(h).sum(axis=t.axes, keepdims=True) / n
        off = k * rstd * (np.abs(h) + sums + hat * products) + t.tiny * (np.abs(x - mean) + np.abs(g)) + t.floor
    else:
        y, products, sums = h * rstd, 0.0, 0.0
        off = k * np.abs(y) + t.tiny * np.abs(g) + t.floor
    apart = _most(x - mean, t.axes)
    risky = _beyond(
        t, apart, _most(h, t.axes), _most(g, t.axes), rstd * weight, _most(g, t.axes) * apart * n, rstd * products, rstd * sums, off / k
    )
    risky = risky | _beyond(t, _most(h, t.axes) * apart * n)
    results = [
        Wanted("grad_x", y.reshape(call.x.shape), np.broadcast_to(_bounded(y, off, risky), t.shape).reshape(call.x.shape), call.x.dtype)
    ]
    over = (
        tuple(range(x.ndim - len(t.parameter)))
        if rows
        else tuple(axis for axis, size in enumerate(t.parameter) if size == 1 and axis not in _channel(call))
    )
    given = call.parameters.get("weight")
    to = kind if given is None else given.dtype.newbyteorder("=")
    risky = np.broadcast_to(_beyond(t, apart, g, g * (x - mean), g * hat), t.shape).any(axis=over) | _beyond(
        t, (np.abs(g) * np.maximum(hat, np.abs(x - mean))).sum(axis=over)
    )
    for name, value in (("grad_weight", g * (x - mean) * rstd), ("grad_bias", g))[: 1 if call.name.startswith("rms") else 2]:
        total, size = value.sum(axis=over), np.abs(value).sum(axis=over)
        off = k * size + t.floor
        shape = call.options.get("normalized_shape", (-1,))
        results.append(Wanted(name, total.reshape(shape), _bounded(total, off, risky).reshape(shape), to))
    return results


def _channel(call):
    channel = samples.axes_of(call.options["layout"], call.x.ndim).channel
    return (channel, channel + 1)


def _statistic(call, name, t):
    """mean or rstd as given, to be broadcast."""
    value = wide(call.parameters[name])
    if "normalized_shape" in call.options:
        return value
    axes = samples.axes_of(call.options["layout"], call.x.ndim)
    batch = axes.batch + (axes.batch > axes.channel)
    shape = [1] * len(t.shape)
    shape[axes.channel] = value.shape[-1]
    if value.ndim == 2:
        shape[batch] = value.shape[0]
        value = value if axes.batch < axes.channel else value.T
    return value.reshape(shape)


def windows(call):
    """Local response norm and its gradient."""
    t = terms(call)
    k, tiny, limit = t[3:]
    channel = samples.axes_of(call.options["layout"], call.x.ndim).channel
    size, alpha, beta, add = (call.options[name] for name in ("size", "alpha", "beta", "k"))
    x = wide(call.x)
    before, after = size // 2, (size - 1) // 2
    sums = reference.window_sums(x * x, channel, before, after)
    d = add + alpha / size * sums
    small = (d < 1e-30 if limit < 1e38 else d < 1e-250) & np.isfinite(d)  # squares that are subnormal, or none at all
    if call.second is None:
        y = reference.local_response_norm(x, size, alpha, beta, add, channel=channel)
        risky = _beyond(t, x, sums, d) | small | _beyond(t, d**-beta)
        return [Wanted("y", y, _bounded(y, k * (1 + beta) * np.abs(y) + tiny * (np.abs(x) + 4), risky), call.x.dtype)]
    g = wide(call.second)
    y = reference.local_response_norm_backward(g, x, size, alpha, beta, add, channel=channel)
    each = np.abs(g * x) * d**-beta / d
    inner = reference.window_sums(each, channel, after, before)
    factor = 2 * alpha * beta / size
    off = 4 * k * (1 + beta) * (np.abs(g) * d**-beta + factor * np.abs(x) * inner) + tiny * (np.abs(x) + np.abs(g)) + t.floor
    # The values that belong to a window: what leaves the range in one of them does in all.
    near = _beyond(t, x, sums, d, g, g * x, each, d**-beta) | small
    risky = reference.window_sums(near.astype(np.float64), channel, after, before) > 0
    return [Wanted("grad_x", y, _bounded(y, off, risky | _beyond(t, inner, x * inner)), call.x.dtype)]


def lengths(call):
    """Lp norm and its gradient; p other than 2 is the reference's own."""
    kind = samples.statistics_dtype(call.dtype).name
    k, tiny, limit = ops.tolerance(kind)["rtol"], TINY[kind], LIMIT[kind]
    t = Terms((), (), (), k, tiny, limit)
    p, eps = call.options["p"], call.options["eps"]
    dim = call.options["dim"]
    axes = tuple(axis % call.x.ndim for axis in (dim if isinstance(dim, tuple) else (dim,)))
    x = wide(call.x)
    n = reference.norms(x, p, axes)
    used = np.maximum(n, eps)
    if call.second is None:
        y = reference.normalize(call.x, p, axes, eps)
        off = k * np.abs(y) + tiny * (np.abs(x) + 4)
        risky = _beyond(t, _most(x, axes), n, 1 / used) & (p == 2)
        return [Wanted("y", y, _bounded(y, off if p == 2 else LOST * np.abs(y), risky), call.x.dtype)]
    g = wide(call.second)
    y = reference.normalize_backward(call.second, call.x, p, axes, eps)
    if p != 2:
        return [Wanted("grad_x", y, _bounded(y, LOST * np.abs(y), False), call.x.dtype)]
    dots = np.abs(g * x).sum(axis=axes, keepdims=True)
    slope = np.where(n >= eps, dots / n / n / n, 0)
    off = 4 * k * (np.abs(g) / used + np.abs(x) * slope) + tiny * (np.abs(x) + np.abs(g)) + t.floor
    risky = (
        _beyond(t, _most(x, axes), _most(g, axes), dots, 1 / used, slope) | (np.abs(n - eps) < 1e-5 * eps) | (dots < 1e-30) & (used < 1e-3)
    )
    return [Wanted("grad_x", y, _bounded(y, off, risky), call.x.dtype)]


def mean_var(call):
    """In float64; of integers exact, and rounded once."""
    axis, ddof = call.options["axis"], call.options["ddof"]
    axes = tuple(range(call.x.ndim)) if axis is None else tuple(a % call.x.ndim for a in (axis if isinstance(axis, tuple) else (axis,)))
    if call.x.size == 0:
        kept = [1 if a in axes else size for a, size in enumerate(call.x.shape)]
        results = [(np.full(kept, np.nan), np.zeros(kept))] * 2
    else:
        results = _of_integers(call.x, axes, ddof) if call.x.dtype.kind in "iu" else _of_floats(call, axes, ddof)
    if not call.options["keepdims"]:
        results = [(value.squeeze(axes), off.squeeze(axes)) for value, off in results]
    return [Wanted(name, value, off, np.dtype(np.float64)) for name, (value, off) in zip(("mean", "var"), results, strict=True)]


def _of_integers(x, axes, ddof):
    """By Python's integers, whose quotients are rounded once; with a ddof that is no whole number, M2 is rounded before it is divided."""
    n = int(np.prod([x.shape[axis] for axis in axes]))
    whole = x.astype(object)
    total, squares = whole.sum(axis=axes, keepdims=True), (whole * whole).sum(axis=axes, keepdims=True)
    mean, spread, left = (total / n).astype(np.float64), squares * n - total * total, Fraction(n) - Fraction(ddof)
    if left <= 0:
        with np.errstate(all="ignore"):
            return [(mean, np.zeros(mean.shape)), (spread.astype(np.float64) / 0.0, np.zeros(mean.shape))]
    var = (spread * left.denominator / (n * left.numerator)).astype(np.float64)
    return [(mean, np.zeros(mean.shape)), (var, (left.denominator > 1) * LOST * var)]


def _of_floats(call, axes, ddof):
    kind = samples.statistics_dtype(call.dtype).name
    t = Terms((), (), (), ops.tolerance(kind)["rtol"], TINY["float64"], LIMIT[kind])
    n, mean, m2 = reference.moments(call.x, axes)
    var, share = m2 / np.float64(max(n - ddof, 0)), n / np.float64(max(n - ddof, 0))
    x = wide(call.x)
    far = _most(x - mean, axes)
    k, lost = precision(t, n), roundings(t, n, mean, far)
    risky = _beyond(t, _most(x, axes), far)
    return [(mean, _bounded(mean, k * far + lost, risky)), (var, _bounded(var, k * np.abs(var) + merges(lost, m2 / n) * share, risky))]


def assert_within(found, wanted):
    """Between the wanted value less and plus what it may be off, both rounded to the dtype; NaN exactly where it is wanted.

    Returns how many of the values were bounded.
    """
    found, value = np.asarray(found), np.asarray(wanted.value)
    assert found.shape == value.shape, f"{wanted.name}: shape {found.shape}, wanted {value.shape}"
    assert found.dtype == wanted.dtype, f"{wanted.name}: dtype {found.dtype}, wanted {wanted.dtype}"
    with np.errstate(all="ignore"):
        got = wide(found)
        free = np.isinf(np.broadcast_to(wanted.off, value.shape))
        off = np.where(free, 0, wanted.off)
        low, high = (wide((value + sign * off).astype(wanted.dtype)) for sign in (-1, 1))
        right = free | np.where(np.isnan(value), np.isnan(got), (low <= got) & (got <= high))
        if wanted.name.startswith("grad"):  # of infinities it is the order of the sums that says whether they cancel to NaN
            right |= ~np.isfinite(value) & ~np.isfinite(got)
    if not right.all():
        at = tuple(np.argwhere(~right)[0])
        raise AssertionError(
            f"{wanted.name}: {np.sum(~right)} of {right.size} wrong, at {tuple(map(int, at))}: {got[at]!r}, "
            f"wanted {value[at]!r} within {low[at]!r} .. {high[at]!r}"
        )
    return int(right.size - free.sum()), right.size
