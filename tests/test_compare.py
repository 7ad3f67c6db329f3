"""What follows from recorded rounds: ratios and which to trust, regressions, advice, the model, the page. Nothing is timed here."""

import dataclasses
import json
import random
import re
from html.parser import HTMLParser

import numpy as np
import pytest

from cpunorm import cli
from cpunorm.compare import advice, charts, levels, measure, model, page, peers, preprocessing, regress, results, save, shapes, show
from cpunorm.compare.results import COPY, READ, STREAM, Limit, Result, Row, Timing

SHAPE = (8, 96, 56, 56)
BYTES = 2 * 4 * int(np.prod(SHAPE))
# Milliseconds of five passes, as this package's own machine gave them beside other work: the memory was up to twice as fast in some.
RECORDED = {
    "numba": (0.62, 0.71, 0.60, 0.98, 0.66),
    "c": (0.55, 0.60, 0.54, 0.86, 0.58),
    "copy": (0.48, 0.54, 0.46, 0.80, 0.50),
}


def timing(milliseconds):
    return Timing(tuple((value / 1e3, 1.1 * value / 1e3) for value in milliseconds))


def row(contestant="c", milliseconds=RECORDED["c"], layout="NCHW", threads=2, limits=RECORDED["copy"], peer=None, **more):
    given = {
        "operation": "batch_norm inference",
        "shape_name": "a shape",
        "shape": SHAPE,
        "layout": layout,
        "contestant": contestant,
        "threads": threads,
        "timing": timing(milliseconds),
        "bytes": BYTES,
        "largest_error": 1e-7,
        "case_threads": threads,
        "peers": {} if peer is None else {"PyTorch": timing(peer)},
        "limits": tuple(value / 1e3 for value in limits),
        "limit": min(limits) / 1e3 if limits else None,
    }
    return Row(**given | more)


def request(**more):
    given = measure.Request(
        operations=("batch_norm inference",),
        shapes={"a shape": SHAPE},
        layouts=("NCHW", "NHWC"),
        backends=("numba", "c"),
        threads=(1, 2),
        dtype="float32",
        peers=("numpy",),
        pictures=[],
        has_limit=True,
        seconds=0.0,
        least=1,
        passes=5,
    )
    return dataclasses.replace(given, **more)


# ---------------------------------------------------------------- ratios


def test_a_ratio_is_of_the_same_passes():
    """The memory of the fourth pass is slow for both: their ratio is as it was."""
    found = results.ratio(timing([2 * value for value in RECORDED["c"]]).minima, timing(RECORDED["c"]).minima)
    assert found.value == pytest.approx(2)
    assert found.trusted
    assert str(found) == "2"


@pytest.mark.parametrize(("last", "trusted"), [(1.05, True), (1.3, False)])
def test_a_ratio_whose_passes_differ_is_marked(last, trusted):
    found = results.ratio((2, 2, 2, 2, 2 * last), (1, 1, 1, 1, 1))
    assert found.trusted is trusted
    assert str(found).endswith("?") is not trusted


def test_one_pass_is_not_trusted():
    assert not results.ratio((2,), (1,)).trusted


def test_the_limits_of_each_pass():
    """The faster copy of each pass for the writing, a read for the second trip."""
    parts = {COPY: timing((3, 1)), STREAM: timing((2, 4)), READ: timing((0.5, 9))}
    limit = Limit("batch_norm training", "a shape", "NCHW", 2, BYTES // 2, parts)
    assert limit.seconds() == pytest.approx((2.5e-3, 2e-3))  # of the second: a copy reads too
    result = Result([row(operation="batch_norm training", bytes=BYTES // 2 * 3, limits=(), limit=None)], [limit])
    results.add_limits(result)
    assert result.rows[0].limits == pytest.approx((2.5e-3, 2e-3))
    assert result.rows[0].limit == pytest.approx(1.5e-3)  # the best of each part


# ---------------------------------------------------------------- regressions


def sample(contestant="c", factor=1.0, memory=1.0, own=0.0, noise=0.0, seed=0):
    """The recorded passes, with memory as many times as slow, and the kernel `factor` times or `own` milliseconds slower on top."""
    rng = random.Random(seed)
    jitter = [1 + rng.uniform(-noise, noise) for _ in range(5)]
    copies = [memory * value * rng.uniform(1 - noise, 1 + noise) / 1e3 for value in RECORDED["copy"]]
    computing = [kernel - copy for kernel, copy in zip(RECORDED[contestant], RECORDED["copy"], strict=True)]
    kernels = [factor * (copy + (part + own) / 1e3) * one for copy, part, one in zip(copies, computing, jitter, strict=True)]
    return regress.Sample(tuple(kernels), tuple(copies))


KEY = ("batch_norm inference", "8x96x56x56", "NCHW", "c", 2)


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


# ---------------------------------------------------------------- advice


def test_advice_says_how_sure_it_is():
    sure = advice.advice([row(), row("numba", [1.3 * value for value in RECORDED["c"]])])
    assert re.match(r"Take NCHW with cpunorm c: 0\.54 ms, 2 threads; sure: ahead of NCHW with cpunorm numba in each of 5 passes", sure)
    likely = advice.advice([row(), row("numba", [factor * value for factor, value in zip((1.2, 1.2, 0.99, 1.2, 1.2), RECORDED["c"])])])  # noqa: B905
    assert "likely: ahead of NCHW with cpunorm numba in 4 of 5 passes" in likely
    assert "no clear winner: NHWC with cpunorm c" in advice.advice([row(), row(layout="NHWC")])
    assert "one pass only" in advice.advice([row(milliseconds=(1,)), row("numba", (2,))])
    assert "None of ours" in advice.advice([row("NumPy")])


def test_the_headline_takes_who_is_everywhere():
    other = {"shape_name": "another"}
    rows = [row(), row(layout="NHWC", milliseconds=(2,) * 5), row(**other), row("numba", (0.1,) * 5, **other), row(layout="NHWC", **other)]
    assert "over these 2 cases (geometric mean): NCHW with cpunorm c" in advice.headline(Result(rows))


# ---------------------------------------------------------------- shapes and peers


def test_named_shapes_fit_something():
    for name, shape in shapes.NAMED.items():
        assert any(shapes.fits(operation, shape) for operation in measure.operations()), name
    assert not shapes.fits("batch_norm inference", (4096, 768))
    assert shapes.fits("layer_norm", (4096, 768))
    assert set(shapes.QUICK) <= set(shapes.DEFAULT)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--op", "batch_norm", "--shape", "4096,768"], "N,C,H,W"),
        (["--peers", "tensorflow"], "onnxruntime"),
        (["--shape", "1,2,3,4,5"], "N,C,H,W"),
        (["--html", "/nowhere/page.html"], "/nowhere"),
        (["--against", "/nowhere.json"], "no saved run"),
    ],
)
def test_refused(arguments, expected, capsys):
    assert cli.main(["compare", "--quick", *arguments]) == cli.REFUSED
    assert expected in capsys.readouterr().err


@pytest.mark.peer
@pytest.mark.parametrize("library", [name for name in peers.LIBRARIES if name != "numpy"])
def test_every_peer_that_is_installed_takes_part(library):
    """And computes what ours do: of the table's rows, and of preprocessing."""
    pytest.importorskip(peers.LIBRARIES[library].module)
    names = set()
    for operation in ("batch_norm inference", "layer_norm", "normalize", "mean_var", "preprocess"):
        for layout in ("NCHW", "NHWC")[: 1 + (operation in ("batch_norm inference", "mean_var", "preprocess"))]:
            from cpunorm.compare import contestants, pictures

            work = measure.make_work(operation, (2, 3, 16, 12), layout, request(pictures=pictures.load(None)))
            for one in work.peers(1, (library,), serial=True):
                good, largest = contestants.deviation(one.results(one.run()), work.expected, **one.tolerance)
                assert good, f"{one.name}, {operation}, {layout}: {largest}"
                wrong = tuple(value + 1 for value in work.expected)
                assert not contestants.deviation(one.results(one.run()), wrong, **one.tolerance)[0]
                names.add(one.name)
    assert names


# ---------------------------------------------------------------- the model


def test_the_model_is_exact_for_what_it_assumes():
    """A core's own 2 ms and a memory that gives 1.6 times as much to two threads."""
    one = {1: 3.0, 2: 3.0 / 1.6}
    rows = [row(threads=threads, milliseconds=(2 / threads + one[threads],) * 5, limits=(one[threads],) * 5) for threads in (1, 2)]
    (found,) = model.predictions(rows)
    assert found.error == pytest.approx(0)
    assert "off by 0%" in model.error_text([found])
    for low, high in found.beyond.values():
        assert found.measured[2] < low <= high
    slower = [rows[0], row(threads=2, milliseconds=(2 * (1 + one[2]),) * 5, limits=(one[2],) * 5)]
    assert model.predictions(slower)[0].error == pytest.approx(1)  # it says twice the rate


def test_the_model_stops_at_the_socket_and_pays_for_the_other_one():
    constants = model.Constants(10**9, 10**9, 1 / 20, {1: 1 / 20, 2: 1 / 40})  # 20 GB/s a core, none in the way of another
    assert constants.contention == 0
    low, high = (1 / seconds for seconds in model.predict(constants, model.Machine(64, 1)))
    assert low == pytest.approx(model.SOCKET / 1e9)
    assert high == pytest.approx(model.SOCKET / 1e9)
    low, high = (1 / seconds for seconds in model.predict(constants, model.Machine(128, 2)))
    assert high == pytest.approx(2 * model.SOCKET / 1e9)
    assert low == pytest.approx(2 * model.SOCKET / 1e9 / 1.5)  # half of it at half the rate


def test_caches_that_hold_the_data_raise_the_upper_bound():
    constants = model.Constants(1 << 20, 1 << 20, 1e-4, {1: 1e-4, 2: 5e-5})
    found = [levels.Level("L3", 2, 1 << 18, 100.0)]
    assert model.predict(constants, model.Machine(64, 1), found)[1] < model.predict(constants, model.Machine(64, 1))[1]
    large = dataclasses.replace(constants, held=1 << 40)
    assert model.predict(large, model.Machine(64, 1), found) == model.predict(large, model.Machine(64, 1))


def test_one_thread_alone_gives_no_prediction():
    assert model.predictions([row(threads=1)]) == []
    assert "needs" in model.error_text([])


# ---------------------------------------------------------------- the page


def test_crossings():
    assert levels.crossings([1, 4], [1, 1], [2, 0.5]) == pytest.approx([2])
    assert levels.crossings([1, 4, 16], [1, 1, 1], [2, 2, 2]) == []


def test_a_busy_machine_is_named():
    one, two, slow = (levels.Level("L1", threads, 1 << 14, rate) for threads, rate in ((1, 100.0), (2, 190.0), (2, 30.0)))
    assert levels.busy([one]) is None
    assert levels.busy([one, two]) is None
    assert "2 threads copied 30 GB/s" in levels.busy([one, slow])


def test_crossover_shapes_have_as_many_values_each():
    assert {int(np.prod(shape)) for shape in levels.crossover_shapes().values()} == {levels.VALUES}


class Reader(HTMLParser):
    """What a page refers to, and whether its elements are closed in order."""

    def __init__(self):
        super().__init__()
        self.open, self.links, self.count = [], [], {}

    def handle_starttag(self, tag, attrs):
        self.count[tag] = self.count.get(tag, 0) + 1
        self.links += [value for name, value in attrs if name in ("src", "href", "xlink:href", "data", "action")]
        if tag not in ("meta", "br", "link"):
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.links += [value for name, value in attrs if name in ("src", "href", "xlink:href")]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_the_page_is_whole_and_asks_for_nothing():
    result = Result(
        [
            row(name, [(3 - threads) * value for value in RECORDED[name]], layout, threads, peer=(9,) * 5)
            for name in ("numba", "c")
            for layout in ("NCHW", "NHWC")
            for threads in (1, 2)
        ]
    )
    crossing = Result(
        [
            row("c", (channels if layout == "NCHW" else 8,) * 3, layout, shape=(4, channels, 8, 8), shape_name=str(channels))
            for channels in (1, 64)
            for layout in ("NCHW", "NHWC")
        ]
    )
    found = [levels.Level(name, threads, 1 << 20, 40.0) for name in ("L1", "memory") for threads in (1, 2)]
    changes = [regress.change(KEY, sample(), sample(factor=2.0))]
    text = page.page(request(), result, changes, ["a <problem>"], found, crossing)
    reader = Reader()
    reader.feed(text)
    assert reader.open == []
    assert all(link.startswith("#") for link in reader.links)
    assert not re.search(r"url\((?!#)|@import|<script|<link", text)
    assert reader.count["svg"] == 5  # times, roofline, efficiency, beyond, crossover
    for words in (
        "a &lt;problem&gt;",
        "prediction",
        "Roofline",
        "1 of 1 became slower",
        "Take N",
        "cross at 8 channels",
        "prefers-color-scheme",
    ):
        assert words in text
    assert charts.INK not in text
    ids = re.findall(r' id="([^"]+)"', text)
    assert not [name for name in ids if re.fullmatch(r"(figure|axes|text|patch)_\d+", name)]


def test_operations_a_value_are_known():
    assert all(charts.operations_a_value(name) > 0 for name in measure.operations())
    assert preprocessing.NAME in charts.OPERATIONS
    assert set(charts.OPERATIONS) <= set(measure.operations())
    assert show.COLUMNS
