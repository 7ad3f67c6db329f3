"""How far results are from float64: ours, NumPy's idiom, PyTorch's. The tables of docs/guide/numerics.md.

python benchmarks/accuracy.py operations|offsets|narrow        one table each, as GitHub tables

`operations`: every row of the operation table in float32, N(3, 2) data. `offsets`: batch norm in training as the mean of the data moves
away from 0, and the textbook's E[x^2] - E[x]^2 beside it. `narrow`: 16 bits, in units in the last place of the correctly rounded result.
The reference is a two-pass computation in float64 of the same float32 (or 16-bit) data.
"""

import argparse
from collections.abc import Iterator
from importlib.util import find_spec

import numpy as np

from cpunorm import ops, samples, settings
from cpunorm.compare import contestants

SHAPE = (8, 64, 56, 56)
OFFSETS = (0, 1e2, 1e3, 1e4, 1e5, 1e6)  # mean / standard deviation
NARROW = ("batch_norm inference", "batch_norm training", "group_norm", "layer_norm", "rms_norm")


def present(row, inputs):
    """(name, results) of everybody who is here and has the operation."""
    for name in ("numba", "c"):
        yield f"cpunorm {name}", contestants.backend(row, inputs, name, settings.default_threads(), np.zeros_like(inputs["x"]))
    yield contestants.NUMPY, contestants.numpy(row, inputs)
    yield contestants.TORCH, contestants.torch(row, inputs)


def columns():
    """Who is compared here."""
    return ["cpunorm numba", "cpunorm c", contestants.NUMPY, *([contestants.TORCH] if find_spec("torch") else [])]


def results_of(contestant):
    return contestant.results(contestant.run())


def lines(head, rows):
    """A GitHub table; numbers to the right."""
    yield f"| {' | '.join(head)} |"
    yield f"|{'|'.join('---' if name in ('operation', 'layout', 'dtype', 'result') else '--:' for name in head)}|"
    for row in rows:
        yield f"| {' | '.join(row)} |"


def operations(shape=SHAPE) -> Iterator[str]:
    """The largest difference over all results of a call, in float32."""

    def rows():
        for name, row in ops.OPERATIONS.items():
            for layout in ("NCHW", "NHWC") if row.layouts else ("NCHW",):
                inputs = row.inputs(shape, layout, "float32", np.random.default_rng(0))
                expected = row.reference(contestants.fresh(inputs, row))
                found = {}
                for who, contestant in present(row, inputs):
                    if contestant is not None:
                        _, found[who] = contestants.deviation(results_of(contestant), expected, **contestant.tolerance)
                yield [name, layout if row.layouts else "", *(f"{found[who]:.0e}" if who in found else "" for who in columns())]

    return lines(["operation", "layout", *columns()], rows())


def offsets(shape=SHAPE) -> Iterator[str]:
    """Errors of the result and of the variance, a line each, NCHW; the variance of the data is 1."""

    def textbook(x):
        count = np.float32(x.size // x.shape[1])
        mean, square = ((values.sum(axis=(0, 2, 3), dtype=np.float32) / count) for values in (x, x * x))
        return square - mean * mean

    def rows():
        row = ops.OPERATIONS["batch_norm training"]
        wanted = ("weight", "bias", "running_mean", "running_var")
        for offset in OFFSETS:
            rng = np.random.default_rng(0)
            x = samples.normal_data(shape, "NCHW", "float32", rng, offset, 1)
            zeros, ones = np.zeros(shape[1], np.float32), np.ones(shape[1], np.float32)
            inputs = {
                "x": x,
                **dict(zip(wanted, (ones, zeros, zeros.copy(), ones.copy()), strict=True)),
                "training": True,
                "layout": "NCHW",
            }
            inputs["momentum"] = 1.0  # the running variance is then the batch's, unbiased
            y, _, variance = row.reference(contestants.fresh(inputs, row))
            errors, spread = {}, {}
            for who, contestant in present(row, inputs):
                if contestant is not None:
                    result, _, var = results_of(contestant)
                    errors[who] = float(np.abs(result - y).max())
                    spread[who] = float(np.abs(var / variance - 1).max())
            count = x.size // shape[1]
            naive = float(np.abs(textbook(x) * (count / (count - 1)) / variance - 1).max())
            for result, found, last in (("y", errors, ""), ("variance, relative", spread, f"{naive:.0e}")):
                yield [f"{offset:g}", result, *(f"{found[who]:.0e}" if who in found else "" for who in columns()), last]

    return lines(["mean / std", "result", *columns(), "E[x^2] - E[x]^2"], rows())


def narrow(shape=SHAPE) -> Iterator[str]:
    """16 bits: the share of values that are the correctly rounded ones, and the most units in the last place away from that.

    Without NumPy, whose idiom computes in 16 bits and overflows.
    """
    compared = [name for name in columns() if name != contestants.NUMPY]

    def units(result, expected):
        """Of 16-bit patterns, in order of value."""
        ordered = [np.where(bits < 0, -(bits & 0x7FFF), bits) for bits in (v.view(np.int16).astype(np.int32) for v in (result, expected))]
        return np.abs(ordered[0] - ordered[1])

    def rows():
        for dtype in ("float16", "bfloat16"):
            for name in NARROW:
                row = ops.OPERATIONS[name]
                inputs = row.inputs(shape, "NCHW", dtype, np.random.default_rng(0))
                expected = row.reference(contestants.fresh(inputs, row))[0].astype(samples.dtype_of(dtype))
                found = {}
                for who, contestant in present(row, inputs):
                    if contestant is not None and who in compared:
                        result = np.ascontiguousarray(results_of(contestant)[0].astype(expected.dtype))
                        away = units(result, np.ascontiguousarray(expected))
                        found[who] = f"{np.mean(away == 0):.2%}, {away.max()}"
                yield [name, dtype, *(found.get(who, "") for who in compared)]

    return lines(["operation", "dtype", *compared], rows())


TABLES = {"operations": operations, "offsets": offsets, "narrow": narrow}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("table", choices=TABLES)
    with np.errstate(all="ignore"):
        for line in TABLES[parser.parse_args().table]():
            print(line, flush=True)


if __name__ == "__main__":
    main()
