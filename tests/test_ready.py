"""Calls that were made before are made by C if every argument is as it was then; else they go the usual way. See `cpunorm.ready`."""

import gc
import tracemalloc
import weakref

import numpy as np
import pytest
from again import BACK, BATCH, OTHERS, SAME, Subclass, made, placed, read_only, sequences
from helpers import assert_all, assert_same_bits, copied, normal, present, shape_for
from hypothesis import given
from test_operations import table

import cpunorm as cn
from cpunorm import call, dispatch, ready


@pytest.fixture
def quick(compiled, native):
    """A backend whose programs run on the C part's driver, so that C can make a call that was made before."""
    if compiled == "numba" and not pytest.importorskip("cpunorm.jit.threads").native():
        pytest.skip("Numba's kernels do not run on the C part's threads here")
    return compiled


@pytest.fixture
def ways(monkeypatch):
    """The way of each run of kernels: "fast" or "usual"."""
    gone, run, make = [], dispatch.Runner.__call__, ready.make

    def usual(self, *arrays):
        gone.append("usual")
        return run(self, *arrays)

    def counted(*arguments, **options):
        made = make(*arguments, **options)

        def fast(*given):
            ran = made.run(*given)
            gone.extend(["fast"] * ran)
            return ran

        return made and made._replace(run=fast)

    monkeypatch.setattr(dispatch.Runner, "__call__", usual)
    monkeypatch.setattr(ready, "make", counted)
    call._PREPARED.clear()
    yield gone
    call._PREPARED.clear()


# ---------------------------------------------------------------- the operation table


@table(layouts=("NC", "NCHW", "NHWC"), dtypes=("float32", "float64", "bfloat16"), keep=lambda row: row.takes_out)
def test_every_operation_goes_the_fast_way(row, layout, dtype, quick, ways):
    """The second time, with other values and the bits of the usual way."""
    inputs = [row.inputs(shape_for(layout), layout, present(dtype), np.random.default_rng(seed)) for seed in (0, 1)]
    row.call(copied(inputs[0]), backend=quick)
    results = row.call(copied(inputs[1]), backend=quick)
    assert ways == ["usual", "fast"]
    call._PREPARED.clear()
    assert_all(assert_same_bits, results, row.call(inputs[1], backend=quick))


# ---------------------------------------------------------------- one argument is another


def memory(given):
    """The bytes of all arguments and of what lies around them."""
    return [bytes(value if value.base is None else value.base) for value in given.values() if isinstance(value, np.ndarray)]


def outcome(name, given, backend):
    """The results or the error of a call, and the memory of its arguments then."""
    try:
        results = getattr(cn, name)(**given, backend=backend)
    except (TypeError, ValueError) as problem:
        results = repr(problem)
    return results if isinstance(results, (str, tuple)) else (results,), memory(given)


def assert_same_outcome(mine, wanted):
    if isinstance(wanted[0], str):
        assert mine[0] == wanted[0]
    else:
        assert_all(assert_same_bits, mine[0], wanted[0])
    assert mine[1] == wanted[1]


def after(name, before, then, backend, ways):
    """What a call comes to in a new process, and after others, which end in going the fast way; and the ways of the last one."""
    wanted = outcome(name, made(name, before, then), backend)
    call._PREPARED.clear()
    for _ in range(2):
        outcome(name, made(name, before), backend)
    assert ways[-1] == "fast"
    ways.clear()
    return outcome(name, made(name, before, then), backend), wanted


@pytest.mark.parametrize(("name", "before", "then", "error"), OTHERS.values(), ids=OTHERS)
def test_another_call_goes_the_usual_way(name, before, then, error, quick, ways):
    """Or is refused, and nothing was written."""
    mine, wanted = after(name, before, then, quick, ways)
    assert "fast" not in ways
    assert_same_outcome(mine, wanted)
    assert isinstance(mine[0], str) == bool(error)
    if error:
        assert error in mine[0]
        assert mine[1] == memory(made(name, before, then))
    else:  # which may have been kept
        assert_same_outcome(outcome(name, made(name, before, then), quick), wanted)


@pytest.mark.parametrize(("name", "before", "then"), SAME.values(), ids=SAME)
def test_the_same_call_goes_the_fast_way(name, before, then, quick, ways):
    mine, wanted = after(name, before, then, quick, ways)
    assert ways == ["fast"]
    assert_same_outcome(mine, wanted)


def test_other_functions_and_shapes(quick, ways):
    """Options of two functions may be equal, and strides of two shapes."""
    x = normal((4, 8, 5), np.float32)
    calls = [
        lambda: cn.batch_norm(x, None, None, training=True, return_stats=True, backend=quick),
        lambda: cn.instance_norm(x, use_input_stats=True, return_stats=True, backend=quick),
        lambda: cn.instance_norm(x[:2], use_input_stats=True, return_stats=True, backend=quick),
        lambda: cn.layer_norm_backward(x, x, 5, x[..., :1].copy(), x[..., 1:2].copy(), backend=quick),
        lambda: cn.layer_norm_backward(x[0], x[0], 5, x[0, :, :1].copy(), x[0, :, 1:2].copy(), backend=quick),
    ]
    wanted = [function() for function in calls]
    assert ways == ["usual"] * len(calls)
    for function, results in zip(calls, wanted, strict=True):
        assert_all(assert_same_bits, function(), results)
    assert ways == ["usual"] * len(calls) + ["fast"] * len(calls)


@pytest.mark.parametrize("name", [BATCH, BACK])
def test_memory_of_a_call_that_c_does_not_make(name, quick, ways):
    """Is given back before the usual way takes it."""
    large = {key: np.ones((4, 8, 64, 64), np.float32) for key in (("x", "grad") if name == BACK else ("x",))}
    peaks = []
    for change in (lambda x: x, lambda x: x, lambda x: x.view(Subclass)):
        given = made(name) | large
        given["weight"] = change(given["weight"])
        tracemalloc.start()
        getattr(cn, name)(**given, backend=quick)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert ways == ["usual", "fast", "usual"]
    assert large["x"].nbytes < min(peaks[1:]) <= max(peaks[1:]) < 1.5 * large["x"].nbytes


# ---------------------------------------------------------------- options and settings

X, STATS = np.ones((2, 8, 4), np.float32), np.ones(8, np.float32)
# function: (a call, an option that equals one of it and is of another type, a part of the message or "" for none)
EQUAL = {
    "training=1": (lambda **o: cn.batch_norm(X, STATS, STATS, **{"training": True} | o), {"training": 1}, "training to be True or False"),
    "use_input_stats=0": (
        lambda **o: cn.instance_norm(X, STATS, STATS, **{"use_input_stats": False} | o),
        {"use_input_stats": 0},
        "True or",
    ),
    "momentum=True": (lambda **o: cn.batch_norm(X, STATS, STATS, **{"momentum": 1.0} | o), {"momentum": True}, "momentum to be a real"),
    "momentum=1": (lambda **o: cn.batch_norm(X, STATS, STATS, **{"momentum": 1.0} | o), {"momentum": 1}, ""),
    "eps=True": (lambda **o: cn.group_norm(X, 2, **{"eps": 1.0} | o), {"eps": True}, "eps to be a real number"),
    "num_groups=1.0": (lambda **o: cn.group_norm(X, **{"num_groups": 1} | o), {"num_groups": 1.0}, "num_groups to be a whole"),
    "size=True": (lambda **o: cn.local_response_norm(X, **{"size": 1} | o), {"size": True}, "size to be a whole number"),
    "dim=(True,)": (lambda **o: cn.normalize(X, **{"dim": (1,)} | o), {"dim": (True,)}, "dim to be None, a whole"),
    "dim=1": (lambda **o: cn.normalize(X, **{"dim": (1,)} | o), {"dim": 1}, ""),
    "normalized_shape=(4.0,)": (
        lambda **o: cn.layer_norm(X, **{"normalized_shape": (4,)} | o),
        {"normalized_shape": (4.0,)},
        "normalized_shape to be",
    ),
    "normalized_shape=[4]": (lambda **o: cn.layer_norm(X, **{"normalized_shape": (4,)} | o), {"normalized_shape": [4]}, ""),
    "normalized_shape=[[4]]": (
        lambda **o: cn.rms_norm(X, **{"normalized_shape": (4,)} | o),
        {"normalized_shape": [[4]]},
        "normalized_shape to be",
    ),
    "threads=True": (lambda **o: cn.layer_norm(X, 4, **{"threads": 1} | o), {"threads": True}, "threads to be a whole number"),
    "threads=1.0": (lambda **o: cn.rms_norm(X, 4, **{"threads": 1} | o), {"threads": 1.0}, "threads to be a whole number"),
    "training=1 of a gradient": (
        lambda **o: cn.batch_norm_backward(X, X, STATS, STATS, **{"training": True} | o),
        {"training": 1},
        "training to be True or False",
    ),
    "threads=True of a gradient": (
        lambda **o: cn.normalize_backward(X, X, **{"threads": 1} | o),
        {"threads": True},
        "threads to be a whole number",
    ),
}


@pytest.mark.parametrize(("function", "option", "error"), EQUAL.values(), ids=EQUAL)
def test_equal_options_of_another_type(function, option, error, quick, ways):
    for _ in range(2):
        function(backend=quick)
    assert ways.pop() == "fast"
    ways.clear()
    for _ in range(2):
        if error:
            with pytest.raises(TypeError, match=error):
                function(**option, backend=quick)
        else:
            function(**option, backend=quick)
    assert ways in ([], ["fast"] * 2, ["usual", "fast"])
    assert bool(ways) != bool(error)


FUNCTIONS = {"forward": lambda x, **o: cn.layer_norm(x, x.shape[-1], **o), "backward": lambda x, **o: cn.normalize_backward(x, x, **o)}
both = pytest.mark.parametrize("function", FUNCTIONS.values(), ids=FUNCTIONS)


@both
def test_settings_between_calls(function, quick, ways):
    """Each has its own program; each is found again."""
    x = normal((4, 8, 64, 64), np.float32)
    wanted = function(x, backend=quick)
    ways.clear()
    for _ in range(3):
        for settings in ({"backend": quick, "threads": 1}, {"backend": quick, "threads": 2}, {"backend": "numpy"}):
            with cn.config(**settings):
                y = function(x)
            if settings["backend"] == quick:
                assert_same_bits(y, wanted)
    assert ways == ["usual"] * 2 + ["fast"] * 4
    ways.clear()
    function(x, backend=quick)
    cn.set_num_threads(1)
    function(x, backend=quick)
    cn.set_num_threads(None)  # the default is found anew
    function(x, backend=quick)
    assert ways == ["fast", "usual", "usual"]


@both
def test_backends_and_threads_of_calls(function, quick, ways):
    for _ in range(2):
        for threads in (1, 2):
            function(X, backend=quick, threads=threads)
        function(X, backend="numpy", threads=1)
    assert ways == ["usual"] * 2 + ["fast"] * 2


# ---------------------------------------------------------------- what is kept


def kept():
    """The calls that C can make."""
    return [made for found in call._PREPARED.values() if isinstance(found, list) for made in found]


@pytest.mark.parametrize("name", [BATCH, BACK])
def test_a_call_is_kept_once(name, quick, ways):
    """Also one that C will not make, since x is no plain array."""
    given = made(name)
    for _ in range(20):
        outcome(name, given | {"x": given["x"].view(Subclass)}, quick)
    assert len(kept()) == 1
    outcome(name, given, quick)
    assert ways == ["usual"] * 20 + ["fast"]


def test_few_of_a_kind_are_kept(quick, ways):
    """Those that come later go the usual way, each time."""
    x = normal((2, 200), np.float32)
    wanted = cn.layer_norm(x[:, :4].copy(), 4, backend=quick)
    steps = range(5, 25)
    for _ in range(2):
        for step in steps:
            space = np.zeros((2, step), np.float32)
            space[:, :4] = x[:, :4]
            assert_same_bits(cn.layer_norm(space[:, :4], 4, backend=quick), wanted)
    assert len(kept()) == ready.MOST
    assert ways.count("fast") == ready.MOST - 1


def test_what_was_refused_is_kept_when_it_is_right(quick, ways):
    x = X.copy()
    with pytest.raises(ValueError, match="read-only"):
        cn.layer_norm(X, 4, out=read_only(x), backend=quick)
    assert not call._PREPARED
    for _ in range(2):
        cn.layer_norm(X, 4, out=x, backend=quick)
    assert ways == ["usual", "fast"]


def test_what_cannot_be_kept_writes_nothing(quick, monkeypatch):
    def make(*_, **__):
        raise MemoryError

    monkeypatch.setattr(ready, "make", make)
    given = made(BATCH)
    before = memory(given)
    call._PREPARED.clear()
    with pytest.raises(MemoryError):
        cn.batch_norm(**given, backend=quick)
    assert memory(given) == before
    call._PREPARED.clear()


@pytest.mark.parametrize("name", [BATCH, BACK])
def test_forgotten_while_it_runs(name, quick, monkeypatch):
    """By another thread: what C has the addresses of lives on until it is through."""
    make, alive = ready.make, []

    def forgetful(*arguments, **options):
        made = make(*arguments, **options)
        held = [weakref.ref(value) for value in made.held if isinstance(value, np.ndarray)]
        held += [
            weakref.ref(value) for value in (made.prepared.run.program.head, made.prepared.run.program.steps, *made.prepared.run._filled)
        ]

        def run(*given):
            call._PREPARED.clear()
            gc.collect()
            alive.extend(one() is not None for one in held)
            return made_run(*given)

        made_run, kept = made.run, made._replace(run=run)
        del made
        return kept

    monkeypatch.setattr(ready, "make", forgetful)
    call._PREPARED.clear()
    for _ in range(2):
        outcome(name, made(name), quick)
    assert len(alive) > 3
    assert all(alive)
    call._PREPARED.clear()


# ---------------------------------------------------------------- without the C part


def test_numbas_own_drivers(ways, monkeypatch):
    """Their calls are not C's to make."""
    threads = pytest.importorskip("cpunorm.jit.threads")
    monkeypatch.setattr(threads, "native", lambda: None)
    results = [cn.layer_norm(X, 4, backend="numba") for _ in range(2)]
    assert_same_bits(*results)
    assert ways == ["usual"] * 2


@pytest.mark.parametrize("why", ["it is not there", "it reads something else in arrays"])
def test_without_the_c_part(why, compiled, ways, monkeypatch):
    if why == "it is not there":
        monkeypatch.delitem(ready.sys.modules, "cpunorm.native", raising=False)
    else:
        monkeypatch.setattr(ready, "_reads_objects", lambda _: False)
    results = [cn.layer_norm(X, 4, backend=compiled) for _ in range(2)]
    assert_same_bits(*results)
    assert ways == ["usual"] * 2


# ---------------------------------------------------------------- any calls, one after another


@given(sequences())
def test_any_calls_one_after_another(present_backends, drawn):
    """Each has the outcome that it has as the first one."""
    name, dtype, calls = drawn

    def outcomes(backend, forget):
        for one in calls:
            if forget:
                call._PREPARED.clear()
            given, space = placed(name, dtype, one)
            results, _ = outcome(name, given, backend)
            yield results if isinstance(results, str) else [(y.dtype, y.strides, y.tobytes()) for y in results], space.tobytes()

    for backend in present_backends:
        wanted = list(outcomes(backend, True))
        call._PREPARED.clear()
        for one, mine, other in zip(calls, outcomes(backend, False), wanted, strict=True):
            assert mine == other, one
            if isinstance(mine[0], str):
                assert mine[1] == placed(name, dtype, one)[1].tobytes(), one
