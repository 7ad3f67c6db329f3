"""``cpunorm compare --against``: what recorded rounds say became slower, and the runs that are saved for it. Nothing is timed."""

import dataclasses
import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
from recorded import KEY, RECORDED, SHAPE, request, row, sample

from cpunorm import cli
from cpunorm.compare import measure, regress, save
from cpunorm.compare.results import Result

_spec = importlib.util.spec_from_file_location("agree", Path(__file__).parents[1] / "benchmarks" / "agree.py")
agree = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(agree)


@pytest.mark.parametrize("memory", [0.5, 0.8, 1, 1.3, 2])
@pytest.mark.parametrize("seed", range(4))
def test_an_unchanged_kernel_is_not_called_slower(memory, seed):
    """Whether the memory is faster or slower than it was."""
    found = regress.change(KEY, sample(noise=0.04, seed=seed), sample(memory=memory, noise=0.04, seed=seed + 10))
    assert not found.slower
    assert not found.faster


@pytest.mark.parametrize("memory", [0.8, 1, 1.3, 2])
@pytest.mark.parametrize("slowed", [{"factor": 1.7}, {"own": 0.5}], ids=["a thread less", "a sleep"])
def test_a_slowed_kernel_is(memory, slowed):
    before, after = sample(noise=0.04), sample(memory=memory, noise=0.04, seed=7, **slowed)
    found = regress.change(KEY, before, after)
    assert found.slower
    assert found.times > found.sees
    assert "batch_norm inference, 8x96x56x56, NCHW, c, 2 threads" in found.text
    back = regress.change(KEY, after, before)
    assert not back.slower
    assert back.faster or memory < 1  # a faster memory explains a part


def test_noise_hides_what_is_smaller():
    """A saved run whose median pass takes 30% more than its fastest does not let 20% be called slower, and says so."""
    noisy = regress.Sample(tuple(np.array((1, 1.4, 1.3, 1, 1.5)) * 1e-3), (1e-3,) * 5)
    found = regress.change(KEY, noisy, regress.Sample((1.2e-3,) * 5, (1e-3,) * 5))
    assert not found.slower
    assert found.sees == pytest.approx(1.3)
    assert found.noise == pytest.approx(0.3)
    assert regress.change(KEY, noisy, regress.Sample((1.5e-3,) * 5, (1e-3,) * 5)).slower


def test_what_else_ran_in_some_passes_does_not_matter():
    """Three of five passes of the saved run, and of the new one, were beside other work."""
    before = regress.Sample((1e-3, 1e-3, 1e-3, 2e-3, 3e-3), (1e-3, 1e-3, 2e-3, 1e-3, 3e-3))
    after = regress.Sample((2e-3, 1e-3, 3e-3, 1e-3, 1e-3), (1e-3, 3e-3, 1e-3, 1e-3, 2e-3))
    found = regress.change(KEY, before, after)
    assert found.times == pytest.approx(1)
    slowed = regress.Sample(tuple(1.3 * seconds for seconds in after.minima), after.limits)
    assert regress.change(KEY, before, slowed).slower


def test_a_core_that_is_slower_explains_a_kernel_that_is():
    """Another one on the same core: copies within L1 take 40% more, those of memory what they took."""
    before, after = ((seconds,) * 5 for seconds in (1e-3, 1.4e-3))
    copies = (1e-3,) * 5
    assert regress.change(KEY, regress.Sample(before, copies, before), regress.Sample(after, copies, before)).slower
    assert not regress.change(KEY, regress.Sample(before, copies, before), regress.Sample(after, copies, after)).slower


def test_slower_once_only_is_not_slower():
    slower = regress.change(KEY, sample(), sample(factor=1.5))
    as_before = regress.change(KEY, sample(), sample())
    assert slower.slower
    assert not as_before.slower
    (found,) = regress.confirm([slower], [as_before])
    assert not found.slower
    (found,) = regress.confirm([slower], [slower])
    assert found.slower


def test_without_the_limit_seconds_are_compared():
    before, after = (dataclasses.replace(sample(factor=factor), limits=()) for factor in (1.0, 2.0))
    assert regress.change(KEY, before, after).times == pytest.approx(2)


# ---------------------------------------------------------------- saved runs


def test_what_is_saved_can_be_read(tmp_path):
    result = Result([row(), row("numba", RECORDED["numba"]), row("NumPy", (9,) * 5)])
    file = tmp_path / "saved.json"
    save.write(file, request(), result, [])
    saved = save.read(file)
    assert saved.samples[KEY] == regress.Sample(result.rows[0].timing.minima, result.rows[0].limits, result.rows[0].cores)
    assert saved.request["shapes"] == {"a shape": [*SHAPE]}
    changes = regress.compare(saved.samples, result)
    assert [change.key[3] for change in changes] == ["c", "numba"]  # ours alone
    assert not any(change.slower or change.faster for change in changes)


@pytest.mark.parametrize("content", ["", "[]", '{"rows": []}'])
def test_other_files_are_refused(content, tmp_path, capsys):
    file = tmp_path / "other.json"
    file.write_text(content)
    assert cli.main(["compare", "--against", str(file), "--picture", str(tmp_path / "x.png")]) == cli.REFUSED
    assert "no saved run" in capsys.readouterr().err


def test_against_measures_what_was_saved_and_names_what_is_slower(tmp_path, monkeypatch, capsys):
    """Through the command; the second run's rounds are the first one's, with the C kernels three times slower."""
    slow = {"c": 1.0}

    def run(asked, progress, only=None):
        assert asked.shapes == {"2x3x8x8": (2, 3, 8, 8)}
        assert asked.threads == (1,)
        named = {"shape_name": "2x3x8x8", "shape": (2, 3, 8, 8), "threads": 1}
        rows = [row(name, [slow.get(name, 1) * value for value in RECORDED[name]], **named) for name in asked.backends]
        return Result(rows)

    monkeypatch.setattr(measure, "run", run)
    picture = ["--picture", str(tmp_path / "x.png")]
    file = str(tmp_path / "saved.json")
    backends = [name for name in ("numba", "c") if cli.common.available(name) is None]
    options = ["--backends", ",".join(backends), "--threads", "1", "--shape", "2,3,8,8", "--quick", "--peers", "none"]
    clean = cli.DONE if "c" in backends else cli.INCOMPLETE
    assert cli.main(["compare", *options, "--save", file, *picture]) == clean
    assert cli.main(["compare", "--against", file, "--peers", "none", *picture]) == clean
    assert "0 of" in capsys.readouterr().out
    slow = dict.fromkeys(backends, 3.0)
    assert cli.main(["compare", "--against", file, "--peers", "none", *picture]) == cli.INCOMPLETE
    captured = capsys.readouterr()
    assert f"{len(backends)} of {len(backends)} became slower" in captured.out
    assert "slower: batch_norm inference, 2x3x8x8, NCHW" in captured.err
    with open(file) as saved:
        assert json.load(saved)["problems"] == [] or "c" not in backends  # what was compared with is as it was


# ---------------------------------------------------------------- runs of the benchmarks: benchmarks/agree.py


def benchmark(who, rounds, limits=(1, 1, 1)):
    return {
        "group": "a group",
        "stats": {"min": min(rounds), "data": list(rounds)},
        "extra_info": {"contestant": who, "limit_rounds": list(limits)},
    }


@pytest.mark.parametrize(
    ("mine", "limits", "trusted"),
    [((1, 1, 1.05), (1, 1, 1), True), ((1, 1.2, 1.2), (1, 1, 1), False), ((1, 1, 1), (1, 1.2, 1.2), False), ((1, 1, 1), (), False)],
    ids=["steady", "its rounds differ", "the limit differs", "no limit"],
)
def test_which_ratios_of_the_benchmarks_are_trusted(mine, limits, trusted):
    run = agree.ratios([benchmark("PyTorch", (3, 3, 3)), benchmark("c", mine, limits), benchmark("NumPy", (9, 9, 9))])
    assert run == {("a group", "c"): (3, trusted)}


def test_runs_that_differ_without_a_mark_are_wrong():
    one, marked, other = ({("a group", "c"): value} for value in ((3, True), (4, False), (4, True)))
    assert agree.report([one, one])[1] == 0
    assert agree.report([one, marked])[1] == 0
    assert agree.report([one, {("a group", "c"): (3.4, True)}])[1] == 0
    lines, wrong = agree.report([one, other])
    assert wrong == 1
    assert "UNMARKED" in lines[0]
    assert "1 differ by more than 15%, of these 1 without a mark" in lines[-1]
