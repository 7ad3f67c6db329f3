"""Any call of any operation: what it is (`Spec`, which hypothesis draws), made (`Call`), and everything that has to hold of it (`check`).

A `Spec` is small and says all, so that what was found is pasted into a test as it was printed. Before each call it is written to `JOURNAL`:
after a crash of the process the file has the call that did it. A process that ends by itself deletes it.
"""

import atexit
import os
import tempfile
from collections import Counter
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import numpy as np
import oracle
from helpers import COMPILED, assert_same_bits
from nasty import Held, Memory, values

import cpunorm as cn
from cpunorm import call as calls
from cpunorm import dispatch, pictures, plan, recipes, samples
from cpunorm.machine import Caches

JOURNAL = Path(os.environ.get("CPUNORM_FUZZ_JOURNAL", Path(tempfile.gettempdir()) / f"cpunorm-fuzz-{os.getpid()}"))
atexit.register(JOURNAL.unlink, missing_ok=True)
FUSED = ("batch_norm", "instance_norm", "group_norm", "layer_norm", "rms_norm")
ROWS = ("layer_norm", "rms_norm")
FORWARD = (*FUSED, "local_response_norm", "normalize")
NAMES = (*FORWARD, *(f"{name}_backward" for name in FORWARD), "mean_var")
DTYPES = ("float32", "float64", "float16", "bfloat16")
# The sizes that the plan decides by, as they are and so small that small arrays are cut as large ones are.
SMALL = {
    "PIECE_BYTES": 1 << 9,
    "PIECE_ROWS": 3,
    "ROWS_AT_ONCE": 3,
    "ROW_BYTES": 1 << 9,
    "FEWEST": 2,
    "CUT_ROWS": 1,
    "MOST": 8,
    "ENTRY_BYTES": 1 << 15,
    "TABLE_BYTES": 1 << 12,
    "COUNTED": 64,
    "GRAIN": 256,
    "PART_BYTES": 1 << 9,
    "STRETCH": 16,
    "SHORT": 64,
    "LARGEST_BLOCK": 1 << 10,
    "SERIAL_BYTES": 0,
    "FOLD_BLOCK": 8,
}
POWER = {"local_response_norm": 0.4, "backward": 0.2}  # of the largest value, so that products stay in the range; not of every eighth
CONSTANTS = {"as they are": {}, "no serial": {"SERIAL_BYTES": 0}, "small": SMALL}


class Spec(NamedTuple):
    """A call. `kind`, `guests` and `seed` make its values; `into` is where the result goes: "x", "second", a `Memory`, or None."""

    name: str
    shape: tuple[int, ...]
    dtype: str = "float32"
    kind: str = "normal"
    guests: str = ""
    seed: int = 0
    memory: Memory | None = None
    second: Memory | None = None
    into: Any = None
    given: tuple[str, ...] = ()
    parameters: str = "normal"
    options: tuple[tuple[str, Any], ...] = ()
    constants: str = "as they are"
    l3: int = 32 << 20


class Call:
    """The arrays of a `Spec`, each in memory of its own, and its keyword arguments."""

    def __init__(self, spec):
        self.spec, self.name, self.dtype = spec, spec.name, spec.dtype
        self.backward = spec.name.endswith("_backward")
        self.base = spec.name.removesuffix("_backward")
        options = dict(spec.options)
        self.stats, self.total = options.pop("return_stats", False), options.pop("return_sum", False)
        self.options = options
        self.pooled = self.base == "batch_norm" or options.get("use_input_stats") is False
        self.own = options.get("training", True) and options.get("use_input_stats", True)
        plain = Memory(tuple(range(len(spec.shape))), (1,) * len(spec.shape), (0,) * len(spec.shape))
        power = 1.0 if spec.seed % 8 == 0 else POWER.get(self.base if not self.backward else "backward", 1.0)
        self.held = {"x": Held(values(spec.shape, spec.dtype, spec.kind, spec.guests, spec.seed, power), spec.memory or plain)}
        self.x = self.held["x"].array
        if spec.second or self.backward:
            guests = spec.guests if spec.seed % 2 else ""
            second = values(spec.shape, spec.dtype, spec.kind if spec.seed % 3 else "normal", guests, spec.seed + 1, power)
            memory = (spec.second or plain)._replace(swapped=(spec.memory or plain).swapped)
            self.held["second"] = Held(second, memory)
        self.second = self.held["second"].array if "second" in self.held else None
        self.out = None
        if isinstance(spec.into, Memory):
            memory = spec.into._replace(swapped=(spec.memory or plain).swapped)
            self.held["out"] = Held(np.full(spec.shape, 7).astype(self.x.dtype.newbyteorder("=")), memory)
            self.out = self.held["out"].array
        elif spec.into:
            self.out = self.x if spec.into == "x" else self.second
        self.parameters = self._parameters()
        self.updates = bool(not self.backward and self.own and self.parameters.get("running_mean") is not None)

    def _parameters(self):
        spec = self.spec
        kept = samples.statistics_dtype(spec.dtype)
        if self.base in ROWS:
            shape = self.options["normalized_shape"]
        elif "layout" in self.options:
            shape = (self.x.shape[samples.axes_of(self.options["layout"], self.x.ndim).channel],)
        else:
            shape = ()
        rng = np.random.default_rng(spec.seed + 2)
        made = {
            "running_mean": rng.normal(3, 1, shape),
            "running_var": rng.uniform(0.5, 4, shape),
            "weight": rng.normal(1, 0.5, shape),
            "bias": rng.normal(0, 1, shape),
        }
        found = {}
        for number, (name, value) in enumerate(made.items()):
            if name in spec.given:
                dtype = samples.dtype_of(spec.dtype) if "narrow" in spec.parameters else kept
                if "nasty" in spec.parameters:
                    kind = ("borders", "scales", "zeros", "subnormal", "huge")[(spec.seed + number) % 5]
                    value = values(shape, dtype.name, kind, spec.guests, spec.seed + number + 3)
                gap = int("gaps" in spec.parameters) * (2 if name != "bias" else -2) or 1
                memory = Memory(tuple(range(len(shape))), (gap,) * len(shape), (0,) * len(shape), edge="end")
                self.held[name] = Held(value.astype(dtype), memory)
                found[name] = self.held[name].array
            elif self.base == "batch_norm" and not self.backward:
                found[name] = None
        if self.backward and self.base in FUSED:
            found |= self._statistics(kept, shape, rng)
        return found

    def _statistics(self, kept, shape, rng):
        """What the forward call returned, rounded; without own statistics something of a channel."""
        if self.own:
            forward = Call(self.spec._replace(name=self.base, second=None, into=None, given=()))
            forward.options = {"eps": 1e-5} | {key: value for key, value in self.options.items() if key != "training"}
            forward.stats, forward.own, forward.parameters = True, True, {}
            with np.errstate(all="ignore"):
                made = {one.name: one.value.astype(kept) for one in oracle.forward(forward) if one.name in ("mean", "rstd")}
        else:
            made = {"mean": rng.normal(0, 1, shape).astype(kept), "rstd": rng.uniform(0.1, 3, shape).astype(kept)}
        for name, value in made.items():
            memory = Memory(tuple(range(value.ndim)), (1,) * value.ndim, (0,) * value.ndim, edge="end")
            self.held[name] = Held(value, memory)
        return {name: self.held[name].array for name in made}

    def run(self, backend, threads):
        """Our results, then the running statistics."""
        options = {**self.options, **self.parameters, "backend": backend, "threads": threads}
        if self.stats:
            options["return_stats"] = True
        if self.total:
            options["return_sum"] = True
        if self.name != "mean_var":
            options["out"] = self.out
        if self.backward:
            results = getattr(cn, self.name)(self.second, self.x, **options)
        else:
            if self.second is not None:
                options["residual"] = self.second
            results = getattr(cn, self.name)(self.x, **options)
        results = results if isinstance(results, tuple) else (results,)
        running = [self.parameters[name] for name in ("running_mean", "running_var")] if self.updates else []
        return [*results, *running]

    def wanted(self):
        with np.errstate(all="ignore"):
            if self.base in FUSED:
                return oracle.backward(self) if self.backward else oracle.forward(self)
            return {"local_response_norm": oracle.windows, "normalize": oracle.lengths, "mean_var": oracle.mean_var}[self.base](self)

    def assert_untouched(self):
        """Inputs have their bits; of what is written no byte between or beside its elements has changed."""
        for name, held in self.held.items():
            written = held.array is self.out or (self.updates and name.startswith("running"))
            assert not held.changed(written=written), f"{name}{' beside its elements' if written else ''} was written"


# ---------------------------------------------------------------- the check

reached = Counter()  # branches of the plan, in all calls so far


def branches(made):
    """What a plan does, in words."""
    for phase in made.phases:
        yield "depth first" if len(phase.steps) > 1 else "breadth first"
        if len(phase.steps) > 1:
            yield "depth first, several parts" if phase.part < phase.block else "depth first, one part"
        if phase.block < phase.items:
            yield "several blocks"
        for step in phase.steps:
            get = step.fields.get
            yield step.kernel
            if step.kernel.startswith("affine"):
                yield f"{step.kernel}: " + ("streamed" if get("streams") else "stored") + (", through a tile" if get("tiled") else "")
                yield "affine, packed" if get("packed") else "affine, gaps"
                if get("period", 0) > get("channels", 0) and step.kernel == "affine_columns":
                    yield "affine, widened rows"
                if get("repeat", 1) > 1:
                    yield "affine, a channel in several places"
            if step.kernel.startswith(("moments", "sums", "counts")):
                if get("pieces", 1) > 1:
                    yield f"{step.kernel}: pieces"
                if get("last", 0) > get("channels", 0) and step.kernel.endswith("columns"):
                    yield f"{step.kernel}: widened rows"
                if get("repeat", 1) > 1:
                    yield f"{step.kernel}: several runs"
                if get("sparse"):
                    yield f"{step.kernel}: sparse fetches"
    yield "threads" if made.threads > 1 else "one thread"


@contextmanager
def planned(spec):
    """The plan's constants and the caches that a `Spec` asks for; plans that are made meanwhile are counted."""
    made = dispatch.Runner.__init__

    def counted(self, found, *rest):
        reached.update(set(branches(found)))
        made(self, found, *rest)

    def resources(threads):
        return plan.Resources(threads or 2, Caches(1 << 19, spec.l3))

    constants = CONSTANTS[spec.constants]
    patches = [mock.patch.object(dispatch.Runner, "__init__", counted), mock.patch.object(dispatch, "resources", resources)]
    for module in (plan, recipes, pictures):
        patches += [mock.patch.object(module, name, value) for name, value in constants.items() if hasattr(module, name)]
    calls._PREPARED.clear()
    for patch in patches:
        patch.start()
    try:
        yield
    finally:
        for patch in patches:
            patch.stop()
        calls._PREPARED.clear()


@contextmanager
def noted(spec, *rest):
    """What is called, in the journal and in the error."""
    JOURNAL.write_text(f"{spec!r}\n{rest}\n")
    try:
        yield
    except Exception as problem:
        problem.add_note(f"{rest}: {spec!r}")
        raise


def check(spec, backends=(*COMPILED, "numpy")):
    """All that is promised of this call, on each backend; returns the share of results that were bounded."""
    bounded = size = 0
    with planned(spec):
        wanted = Call(spec).wanted()
        for backend in backends:
            first = None
            for threads in (1, 2, 2, 3) if backend in COMPILED else (1,):  # one of them was made before: see cpunorm.ready
                with noted(spec, backend, threads):
                    call = Call(spec)
                    results = call.run(backend, threads)
                    call.assert_untouched()
                    if call.out is not None:
                        assert results[0] is call.out
                    elif call.name != "mean_var":
                        assert results[0].strides == np.empty_like(call.x).strides
                    if first is None:
                        assert len(results) == len(wanted), [one.name for one in wanted]
                        for one, other in zip(results, wanted, strict=True):
                            part, whole = oracle.assert_within(one, other)
                            bounded, size = bounded + part, size + whole
                        first = results
                    for one, other in zip(results, first, strict=True):
                        assert_same_bits(_native(one), _native(other))
    return bounded / max(size, 1)


def _native(x):
    x = np.asarray(x)
    return x if x.dtype.isnative else x.astype(x.dtype.newbyteorder("="))
