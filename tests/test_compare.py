"""What follows from recorded rounds: ratios and which to trust, figures, advice, the model, the page. Nothing is timed here."""

import dataclasses
import json
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from recorded import BYTES, KEY, RECORDED, request, row, sample, timing

from cpunorm import cli
from cpunorm.compare import (
    advice,
    charts,
    contestants,
    levels,
    measure,
    model,
    page,
    peers,
    pictures,
    preprocessing,
    regress,
    results,
    save,
    shapes,
    show,
)
from cpunorm.compare.results import COPY, READ, STREAM, Limit, Result

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


# ---------------------------------------------------------------- figures


def test_figures_of_a_row():
    """8 MB in 0.5 ms at the least are 16 GB/s, and 80% of a limit of 0.4 ms; NumPy takes 3 ms, PyTorch 1."""
    one = row(milliseconds=(0.5, 1), bytes=8 * 10**6, limits=(0.4, 0.9), peer=(1, 1))
    one = dataclasses.replace(one, peers={**one.peers, "NumPy": timing((3, 9))})
    assert one.rate == pytest.approx(16)
    assert one.percent == pytest.approx(80)
    assert one.speedup == pytest.approx(6)
    assert one.over("PyTorch").value == pytest.approx(1.5)  # the median of 2 and 1
    assert one.over("ONNX Runtime") is None
    cells = dict(zip(show.COLUMNS, show.cells(one, request()), strict=True))
    assert cells == {
        "layout": "NCHW",
        "who": "cpunorm c",
        "threads": "2",
        "time, ms": "0.5",
        "median": "0.775",
        "GB/s": "16.0",
        "% of limit": "80",
        "x NumPy": "7.5?",
        "x PyTorch": "1.5?",
        "error": "1e-07",
    }
    assert advice.headline(Result([one])) == (
        "Fastest here over these 1 case (geometric mean): NCHW with cpunorm c, 6.0 times as fast as NumPy in that layout, "
        "80% of the copy limit."
    )


def test_figures_of_a_saved_row(tmp_path):
    parts = {COPY: timing((2, 3)), STREAM: timing((1, 5)), READ: timing((0.5, 9))}
    limit = Limit("batch_norm inference", "a shape", "NCHW", 2, 10**6, parts)
    file = tmp_path / "saved.json"
    save.write(file, request(), Result([row(milliseconds=(0.5, 1), bytes=8 * 10**6, limits=(0.4, 0.9), peer=(1, 1))], [limit]), ["one"])
    content = json.loads(file.read_text())
    (saved,) = content["rows"]
    assert content["problems"] == ["one"]
    assert (saved["bytes"], saved["gb_per_second"], saved["percent_of_limit"]) == (8 * 10**6, pytest.approx(16), pytest.approx(80))
    assert saved["passes"] == [pytest.approx([5e-4, 5.5e-4]), pytest.approx([1e-3, 1.1e-3])]
    assert saved["times_as_fast_as"] == {"PyTorch": {"median": 1.5, "low": 1, "high": 2, "trusted": False}}
    rates = {name: part["gb_per_second"] for name, part in content["limit"]["cases"][0]["parts"].items()}
    assert rates == pytest.approx({COPY: 1, STREAM: 2, READ: 2})  # a copy reads and writes


@pytest.mark.parametrize(
    ("operation", "trips"), [("batch_norm inference", 2), ("batch_norm training", 3), ("mean_var", 1), ("batch_norm_backward", 5)]
)
def test_bytes_that_have_to_move(operation, trips):
    """Of float32: x once or twice, the result; the gradient reads x and grad twice."""
    assert measure.make_work(operation, (2, 4, 8, 6), "NCHW", request()).bytes == trips * 4 * 2 * 4 * 8 * 6


def test_bytes_of_preprocessing():
    """A byte read, a float written."""
    assert measure.make_work("preprocess", (2, 3, 8, 6), "NCHW", request(pictures=pictures.load(None))).bytes == 5 * 2 * 3 * 8 * 6


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
