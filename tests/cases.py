"""One table of calls of all functions, and PyTorch's answer to each in float64; `x` is channels first here, whatever our layout is."""

import numpy as np

import cpunorm as cn
from cpunorm import reference, samples

# Ranks 2 to 5; 1, 7, 37 and 1027 on each kind of axis.
SHAPES = [
    (7, 37),
    (37, 1027),
    (1027, 7),
    (1, 37, 7),
    (7, 1, 37),
    (2, 37, 1027),
    (3, 7, 1, 37),
    (2, 36, 37, 7),
    (1, 1, 7, 1027),
    (2, 3, 7, 5, 7),
    (1, 37, 1, 7, 7),
]
LAYOUTS = {2: ("NC", "CN"), 3: ("NCL", "NLC", "CLN"), 4: ("NCHW", "NHWC", "CHWN", "HNCW"), 5: ("NCDHW", "NDHWC", "DNCHW")}
# function -> options; a name among them is an array to be given, a callable takes the shape
RUNNING = {"running_mean", "running_var"}
CALLS = {
    "batch_norm": [
        (RUNNING | {"weight", "bias"}, {}),
        (RUNNING | {"bias"}, {"eps": 0.0}),
        (RUNNING | {"weight", "bias"}, {"training": True, "momentum": 0.3, "eps": 1e-3}),
        ({"weight"}, {"training": True}),
        (RUNNING, {"training": True, "momentum": 0.0}),
    ],
    "instance_norm": [
        (set(), {}),
        ({"weight", "bias"}, {"eps": 1e-2}),
        (RUNNING | {"bias"}, {"momentum": 0.3}),
        (RUNNING | {"weight"}, {"use_input_stats": False}),
    ],
    "group_norm": [
        (set(), {"num_groups": lambda shape: 1}),
        ({"weight"}, {"num_groups": lambda shape: shape[1]}),
        ({"weight", "bias"}, {"num_groups": lambda shape: next(n for n in (4, 3, 13, 1) if shape[1] % n == 0), "eps": 1e-3}),
        ({"bias"}, {"num_groups": lambda shape: next(n for n in (12, 7, 1) if shape[1] % n == 0)}),
    ],
    "layer_norm": [
        ({"weight", "bias"}, {"normalized_shape": lambda shape: shape[-1:]}),
        ({"weight"}, {"normalized_shape": lambda shape: shape[-2:], "eps": 1e-3}),
        ({"bias"}, {"normalized_shape": lambda shape: shape[1:]}),
        (set(), {"normalized_shape": lambda shape: shape}),
    ],
    "rms_norm": [
        ({"weight"}, {"normalized_shape": lambda shape: shape[-1:]}),
        ({"weight"}, {"normalized_shape": lambda shape: shape[-2:], "eps": 1e-3}),
        (set(), {"normalized_shape": lambda shape: shape, "eps": 1e-6}),
    ],
    "local_response_norm": [
        (set(), {"size": 5}),
        (set(), {"size": 2, "alpha": 1.0, "beta": 0.5, "k": 2.0}),
        (set(), {"size": 1, "alpha": 0.5, "beta": 1.0}),
        (set(), {"size": 4, "alpha": 0.1, "beta": 0.75, "k": 0.5}),
        (set(), {"size": 99, "alpha": 0.1, "beta": 0.3}),
    ],
    "normalize": [
        (set(), {}),
        (set(), {"dim": -1}),
        (set(), {"dim": (0, 1)}),
        (set(), {"dim": 0, "eps": 10.0}),
        (set(), {"p": 1.0, "dim": (0, -1)}),
        (set(), {"p": float("inf")}),
        (set(), {"p": 3, "dim": -2}),
    ],
}
FUNCTIONS = list(CALLS)
FUSED = ("batch_norm", "instance_norm", "group_norm", "layer_norm", "rms_norm")  # take activation and residual, return statistics
BY_ROW = ("layer_norm", "rms_norm")
BY_CHANNEL = ("batch_norm", "instance_norm", "group_norm", "local_response_norm")  # take a layout
ALL = [(name, number) for name, calls in CALLS.items() for number in range(len(calls))]


def takes(name, options, shape):
    """Whether this function takes arrays of this shape."""
    own = bool(options.get("training")) or (name == "instance_norm" and options.get("use_input_stats", True))
    if name == "batch_norm" and own and np.prod(shape) == shape[1]:
        return False
    if name == "instance_norm":
        return len(shape) >= 3 and (np.prod(shape[2:]) > 1 or not own)
    if name == "normalize" and isinstance(options.get("dim"), tuple):
        return len(shape) > 2 or options["dim"] == (0, 1)
    return name != "local_response_norm" or len(shape) >= 3


def arguments_of(name, number, shape, dtype, rng):
    """Our keyword arguments of call `number` of `name` but x, residual, layout and the like; parameters of the statistics' dtype."""
    given, options = CALLS[name][number]
    options = {key: value(shape) if callable(value) else value for key, value in options.items()}
    of = options.get("normalized_shape", shape[1:2])
    made = {
        "running_mean": rng.normal(3, 1, of),
        "running_var": rng.uniform(0.5, 4, of),
        "weight": rng.normal(1, 0.3, of),
        "bias": rng.normal(0, 1, of),
    }
    arrays = {key: value.astype(samples.statistics_dtype(dtype)) for key, value in made.items() if key in given}
    if name == "batch_norm":
        arrays = {key: arrays.get(key) for key in made}
    return {**arrays, **options}


def tensor(value):
    """In float64, in memory of its own; what is no array as it is."""
    import torch

    if not isinstance(value, np.ndarray):
        return value
    return torch.from_numpy(np.array(value, np.float64, order="C"))


def activate(y, activation):
    import torch

    return y if activation is None else getattr(torch.nn.functional, activation)(y)


def peer(name, x, arguments, activation=None, residual=None):
    """PyTorch's result of tensors: (y, h), h what was normalized."""
    import torch

    function = getattr(torch.nn.functional, name)
    if name in BY_ROW:
        h = x if residual is None else x + residual
        return activate(function(h, **arguments), activation), h
    y = function(x, **arguments)
    return activate(y if residual is None else y + residual, activation), x


def statistics(name, x, arguments):
    """mean and rstd in float64 and their shape, of an array that is channels first."""
    wide = x.astype(np.float64)
    eps = arguments.get("eps", 1e-5)
    inference = name == "batch_norm" and not arguments.get("training")
    if inference or arguments.get("use_input_stats") is False:
        mean, var = (arguments[key].astype(np.float64) for key in ("running_mean", "running_var"))
        return mean, 1 / np.sqrt(var + eps)
    if name == "batch_norm":
        axes = tuple(axis for axis in range(x.ndim) if axis != 1)
        return wide.mean(axes), 1 / np.sqrt(wide.var(axes) + eps)
    if name in ("instance_norm", "group_norm"):
        groups = arguments.get("num_groups", x.shape[1])
        split = wide.reshape(x.shape[0], groups, -1)
        return split.mean(-1), 1 / np.sqrt(split.var(-1) + eps)
    axes = tuple(range(x.ndim - len(arguments["normalized_shape"]), x.ndim))
    if name == "layer_norm":
        return wide.mean(axes, keepdims=True), 1 / np.sqrt(wide.var(axes, keepdims=True) + eps)
    if arguments.get("eps") is None:
        eps = np.finfo(np.float64 if x.dtype.itemsize == 8 else np.float32).eps
    return (1 / np.sqrt(np.square(wide).mean(axes, keepdims=True) + eps),)


def spread(name, x, arguments):
    """How often a rounding of x is enlarged: the largest |x - mean| plus |mean|, times rstd, times weight."""
    if name == "normalize":
        p, dim = arguments.get("p", 2.0), arguments.get("dim", 1)
        norms = reference.norms(x, p, tuple(axis % x.ndim for axis in (dim if isinstance(dim, tuple) else (dim,))))
        return max(1.0, 1 / norms.min(initial=1))
    if name not in FUSED:
        return 1.0
    *_, rstd = statistics(name, x, arguments)
    weight = arguments.get("weight")
    largest = 1.0 if weight is None else np.abs(weight).max(initial=1)
    return max(1.0, np.abs(x.astype(np.float64)).max(initial=0) * rstd.max(initial=0) * largest / 8)


def call(name, x, arguments, **options):
    """Ours."""
    return getattr(cn, name)(x, **arguments, **options)


def rotate(*choices, seed=0):
    """Endless draws of one of each, every pair soon seen."""
    rng = np.random.default_rng(seed)
    while True:
        yield tuple(one[int(rng.integers(len(one)))] for one in choices)


def shapes_of(name, number, dtype):
    """All that this call takes; of 16 bits every other one."""
    taken = [shape for shape in SHAPES if takes(name, CALLS[name][number][1], shape)]
    return taken[number % 2 :: 2] if dtype.endswith("16") else taken


def ulp(value, dtype):
    """Of a 16-bit dtype, at this float64 value."""
    digits, lowest = {"float16": (10, -14), "bfloat16": (7, -126)}[dtype]
    _, exponent = np.frexp(np.abs(value))
    return np.ldexp(1.0, np.maximum(exponent - 1, lowest) - digits)
