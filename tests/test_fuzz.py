"""Any call of any operation, on all backends, against the float64 reference: see tests/fuzz.py.

``HYPOTHESIS_PROFILE=search python -m pytest tests/test_fuzz.py --hypothesis-seed=1`` draws 2000 examples a test; any seed draws others.
What was found is in `FOUND`.
"""

from pathlib import Path

import fuzz
import fuzz_pictures
import fuzz_specs
import numpy as np
import oracle
import pytest
from fuzz import Call, Memory, Spec
from helpers import assert_same_bits, python
from hypothesis import example, given, settings
from hypothesis import strategies as st
from nasty import FLOATS, Held, memories, values

import cpunorm as cn
from cpunorm.reference import moments

PLENTY = max(300, settings.default.max_examples)
# What the examples have to reach, so that a change of the plan or of the strategies does not leave it aside unseen.
BRANCHES = {
    "depth first",
    "depth first, several parts",
    "depth first, one part",
    "breadth first",
    "several blocks",
    "threads",
    "one thread",
    "affine, gaps",
    "affine, packed",
    "affine, widened rows",
    "affine, a channel in several places",
    *(f"affine_{form}: {how}" for form in ("runs", "columns", "rows") for how in ("stored", "streamed", "streamed, through a tile")),
    *(f"{kernel}_{form}" for kernel in ("moments", "sums", "counts", "window", "window_gradient") for form in ("runs", "columns")),
    *(f"{kernel}: pieces" for kernel in ("moments_runs", "moments_columns", "sums_runs", "sums_columns", "sums_rows")),
    *(f"{kernel}_columns: widened rows" for kernel in ("moments", "sums")),
    *(f"{kernel}_runs: {how}" for kernel in ("moments", "sums") for how in ("several runs", "sparse fetches")),
}
OVER_ROWS = (("axis", 0), ("ddof", 0), ("keepdims", False))
SELDOM = (  # what a few hundred examples reach by luck
    Spec("mean_var", (300, 4), "uint8", options=OVER_ROWS, constants="small"),
    Spec("mean_var", (4, 300), "uint16", options=(("axis", 1), ("ddof", 1), ("keepdims", True)), constants="small"),
    Spec("batch_norm", (2000, 3), options=(("layout", "NC"), ("training", True)), constants="small", l3=1),
    Spec("batch_norm_backward", (2000, 3), options=(("layout", "NC"), ("training", True)), constants="small"),
    Spec("layer_norm", (40, 129), options=(("normalized_shape", (129,)),), constants="small", l3=1),
    Spec("batch_norm", (7, 16, 65), options=(("layout", "NCL"), ("training", True)), constants="small"),
    Spec("batch_norm_backward", (7, 16, 65), options=(("layout", "NCL"), ("training", True)), constants="small"),
)


def test_operations(present_backends):
    fuzz.reached.clear()

    @settings(max_examples=PLENTY)
    @given(fuzz_specs.specs())
    def search(spec):
        fuzz.check(spec, (*present_backends, "numpy"))

    for spec in SELDOM:
        search = example(spec)(search)
    search()
    print(dict(sorted(fuzz.reached.items())))
    missing = BRANCHES - set(fuzz.reached)
    assert not missing, f"never reached: {sorted(missing)}"


@given(fuzz_pictures.specs())
def test_preprocess(present_backends, spec):
    fuzz_pictures.check(spec, (*present_backends, "numpy"))


@st.composite
def blocks(draw):
    """An array channels last, its parts in some order, and how they are merged."""
    rows, channels = draw(st.sampled_from([1, 2, 7, 300])), draw(st.sampled_from([1, 2, 3, 33]))
    dtype = draw(st.sampled_from([*fuzz.DTYPES, "uint8", "uint16", "int8", "int64"]))
    cuts = sorted(draw(st.lists(st.integers(0, rows), max_size=4)))
    kind, guests = draw(st.sampled_from(FLOATS)), draw(st.sampled_from(["", "", "n", "i"]))
    x = values((rows, channels), dtype, kind, guests, draw(st.integers(0, 2**16)))
    return x, draw(memories(2)), draw(st.permutations([*zip([0, *cuts], [*cuts, rows], strict=True)])), draw(st.booleans())


@given(blocks())
def test_statistics_in_any_parts(present_backends, drawn):
    """Integers are exact, so that the parts and their order change no bit; floats within the oracle's bounds of all at once."""
    x, memory, parts, merged = drawn
    x = Held(x, memory).array
    dtype = x.dtype.newbyteorder("=")
    whole = Call(Spec("mean_var", x.shape, dtype.name, options=(("axis", 0), ("ddof", 0), ("keepdims", False))))
    whole.x = x.astype(dtype)
    for backend in (*present_backends, "numpy"):
        with cn.config(backend=backend):
            stats = cn.ChannelStats(layout="NC")
            for start, stop in parts:
                stats = stats + cn.ChannelStats(layout="NC").update(x[start:stop]) if merged else stats.update(x[start:stop])
            assert stats.count == len(x)
            if x.dtype.kind in "iu":
                at_once = cn.ChannelStats(layout="NC").update(x)
                assert_same_bits(stats.mean, at_once.mean)
                assert_same_bits(stats.variance(), at_once.variance())
            for one, other in zip((stats.mean, stats.variance()), whole.wanted(), strict=True):
                if np.isfinite(moments(x, (0,)).mean).all():
                    oracle.assert_within(one, other)
                else:
                    assert_same_bits(np.isfinite(one), np.isfinite(other.value))


# ---------------------------------------------------------------- wrong arguments

JUNK = (
    None,
    True,
    -1,
    0,
    10**30,
    1.5,
    float("nan"),
    float("inf"),
    "NCHW",
    "",
    (),
    (3, 0),
    ("a",),
    object(),
    b"x",
    1j,
    np.zeros(0),
    np.ones(3, np.complex64),
    np.ones((2, 3), np.int32),
    np.array(None),
    np.full((2, 2, 2), 1.0, np.float16),
)


@given(fuzz_specs.specs(), st.data())
def test_wrong_arguments(present_backends, spec, data):
    """A call with one argument that is something else works, or is refused by name before anything is written."""
    call = Call(spec)
    names = [*call.options, *call.parameters, "backend", "threads", "x", "layout", "size", *(["out"] if spec.name != "mean_var" else [])]
    name, junk = data.draw(st.sampled_from(names)), data.draw(st.sampled_from(range(len(JUNK))))
    for backend in (*present_backends, "numpy"):
        call = Call(spec)
        given_out = call.out
        options = {**call.options, **call.parameters, "backend": backend, "threads": 1}
        options |= {} if spec.name == "mean_var" else {"out": given_out}
        options |= {"grad": call.second} if call.backward else {} if call.second is None else {"residual": call.second}
        with fuzz.planned(spec), fuzz.noted(spec, backend, name, junk):
            try:
                getattr(cn, spec.name)(**{"x": call.x, **options, name: JUNK[junk]})
            except (ValueError, TypeError):
                for held in call.held.values():
                    assert not held.changed()
            call.updates = name.startswith("running") or call.updates
            call.assert_untouched()


@pytest.mark.parametrize(("end", "left"), [("", False), ("os._exit(0)", True)], ids=["ends", "crashes"])
def test_journal(end, left, tmp_path):
    """It is there after a crash, and only then."""
    journal, tests = tmp_path / "journal", Path(__file__).parent
    code = f"import os, sys\nsys.path.insert(0, {str(tests)!r})\nimport fuzz\nwith fuzz.noted('a call'):\n    {end or 'pass'}"
    python(code, CPUNORM_FUZZ_JOURNAL=str(journal))
    assert journal.exists() == left
    assert not left or "a call" in journal.read_text()


# ---------------------------------------------------------------- what was found

C, GAPS = Memory((0, 1, 2), (1, 1, 1), (0, 0, 0)), (0, 0, 0)
FOUND = {
    "an infinity of x in a gradient of inference, which does not read x": Spec(
        "instance_norm_backward", (5, 3, 4), guests="i", options=(("layout", "NCL"), ("use_input_stats", False))
    ),
    "group norm of one sample, its channels in several places in memory": Spec(
        "group_norm", (8, 1, 32, 16), kind="scales", options=(("layout", "HNCW"), ("num_groups", 4), ("eps", 1e-5), ("return_stats", True))
    ),
    "group norm of one sample, the same, its activation": Spec(
        "group_norm", (8, 1, 4, 3), options=(("layout", "HNCW"), ("num_groups", 2), ("activation", "relu")), constants="small"
    ),
    "the norm of a NaN is no small one": Spec("normalize_backward", (3, 7), guests="n", options=(("p", 3), ("dim", 1), ("eps", 1e-12))),
    "infinities of either sign added before the statistics": Spec(
        "layer_norm",
        (3, 64),
        kind="borders",
        guests="niz",
        seed=21,
        second=Memory((0, 1), (1, 1), (0, 0)),
        options=(("normalized_shape", (64,)),),
    ),
    "a signalling NaN on the NumPy backend": Spec(
        "batch_norm", (40, 9), "float16", kind="bits", options=(("layout", "NC"), ("training", True))
    ),
    "infinities of either sign in two samples, in the running mean of both": Spec(
        "instance_norm",
        (2, 1, 3),
        guests="i",
        seed=60,
        given=("running_mean", "running_var"),
        options=(("layout", "NCL"), ("use_input_stats", True)),
    ),
    "squares of 1e-183, whose power leaves the range where their gradient does not": Spec(
        "local_response_norm_backward",
        (1, 4, 4),
        "float64",
        kind="bits",
        options=(("layout", "NCL"), ("size", 1), ("alpha", 1e-4), ("beta", 0.75), ("k", 0.0)),
    ),
    "the sum of byte-swapped arrays": Spec(
        "layer_norm",
        (3, 7),
        memory=Memory((0, 1), (1, 1), (0, 0), swapped=True),
        second=Memory((0, 1), (1, 1), (0, 0)),
        options=(("normalized_shape", (7,)), ("return_sum", True)),
    ),
}


@pytest.mark.parametrize("spec", FOUND.values(), ids=FOUND)
def test_found(present_backends, spec):
    fuzz.check(spec, (*present_backends, "numpy"))
