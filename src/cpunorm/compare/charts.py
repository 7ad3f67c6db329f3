"""The page's pictures, as SVG that takes its colours of text and lines, and its font, from the page around it.

Small ones, as wide as a telephone, of which the page puts as many side by side as there is room for.
"""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from typing import Any

import matplotlib
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from cpunorm import check
from cpunorm.compare.advice import label
from cpunorm.compare.figure import COLOURS
from cpunorm.compare.levels import Level, crossings
from cpunorm.compare.model import Prediction
from cpunorm.compare.results import Result, Row

INK, LINE = "#010203", "#040506"  # stand for the page's colours
MARKS = {"NCHW": "o", "NHWC": "s"}
STYLES: dict[str, Any] = {"NCHW": "-", "NHWC": "--"}
WIDTH = 4.6  # inches, 440 pixels: a telephone's width without making letters smaller
# Arithmetic operations a value, by the formulas: the affine is 3, moments 4 more, a gradient's sums 4 and its affine 5.
OPERATIONS = {
    "batch_norm inference": 3,
    "preprocess": 3,
    "rms_norm": 5,
    "normalize": 3,
    "mean_var": 4,
    "local_response_norm": 8,
    "local_response_norm_backward": 16,
}
FORWARD, BACKWARD = 7, 9
STYLE: Any = {
    "font.size": 10,
    "svg.fonttype": "none",
    "svg.hashsalt": "cpunorm",
    "axes.spines.top": False,
    "axes.spines.right": False,
    **dict.fromkeys(("text.color", "axes.labelcolor", "xtick.color", "ytick.color", "axes.edgecolor"), INK),
    "grid.color": LINE,
    "axes.grid": True,
    "axes.axisbelow": True,
    "legend.frameon": False,
    "legend.fontsize": 9,
}


def _figure(height: float) -> tuple[Figure, Any]:
    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    figure.patch.set_alpha(0)
    axis = figure.subplots()
    axis.patch.set_alpha(0)
    return figure, axis


def _svg(figure: Figure, text: str) -> str:
    """One element, to be put into a page; `text` says what it shows."""
    made = io.StringIO()
    figure.savefig(made, format="svg", metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")))
    svg = made.getvalue()
    svg = re.sub(r"<metadata>.*?</metadata>|<!--.*?-->", "", svg[svg.index("<svg") :], flags=re.DOTALL)
    svg = re.sub(r' id="[a-z_]+[0-9d._]*_\d+"', "", svg)  # of groups, the same in every picture
    svg = svg.replace(INK, "currentColor").replace(LINE, "var(--line)").replace("'DejaVu Sans', ", "").replace("DejaVu Sans", "sans-serif")
    svg = re.sub(r'width="[\d.]+pt" height="[\d.]+pt"', f'role="img" aria-label="{text}"', svg, count=1)
    return re.sub(r"\s*\n\s*", "\n", svg)


def operations_a_value(operation: str) -> int:
    """Additions, multiplications and the like."""
    return OPERATIONS.get(operation, BACKWARD if operation.endswith("backward") else FORWARD)


def _wide_open(axis: Any, numbers: Sequence[float]) -> None:
    """A logarithmic axis of times from the fastest to the slowest, with room for a number behind the last."""
    axis.set_xscale("log")
    axis.set_xlim(min(numbers) / 1.4, max(numbers) * 2.6)
    axis.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axis.xaxis.set_minor_formatter(lambda *_: "")
    axis.grid(axis="y", visible=False)


def times(rows: list[Row]) -> str:
    """Of one operation and shape: everybody's fastest time with all threads, a bar from it to the median, by layout."""
    most = max(row.case_threads for row in rows)
    least = min(row.case_threads for row in rows)
    shown = [row for row in rows if row.case_threads == most or (row.case_threads == least and row.threads == 1 and _serial(row, rows))]
    with matplotlib.rc_context(STYLE):
        figure, axis = _figure(0.75 + 0.21 * (len(shown) + 0.6 * len({row.layout for row in shown})))
        place, ticks, names = 0.0, [], []
        limits = []
        for layout in dict.fromkeys(row.layout for row in shown):
            start = place
            of = [row for row in shown if row.layout == layout]
            for row in of:
                low, high = (1e3 * value for value in (row.timing.minimum, row.timing.median))
                colour = COLOURS.get(row.contestant, "#888888")
                axis.plot([low, high], [place, place], color=colour, linewidth=2.5, alpha=0.45, solid_capstyle="round")
                axis.plot([low], [place], color=colour, marker=MARKS.get(layout, "D"), markersize=6)
                axis.annotate(f"{low:.3g}", (high, place), (6, 0), textcoords="offset points", va="center", fontsize=9)
                ticks.append(place)
                names.append(f"{layout}  {label(row.contestant)}")
                place += 1
            limit = next((row.limit for row in of if row.limit and row.case_threads == most), None)
            if limit is not None:
                limits.append(1e3 * limit)
                axis.vlines(1e3 * limit, start - 0.5, place - 0.5, color=INK, linewidth=1.5, linestyle=":")
            place += 0.6
        axis.set_yticks(ticks, names)
        axis.set_ylim(place - 1, -0.7)
        axis.tick_params(axis="y", length=0)
        _wide_open(axis, [1e3 * value for row in shown for value in (row.timing.minimum, row.timing.median)] + limits)
        axis.set_xlabel(f"ms, {most} thread{'s' * (most > 1)} (dotted: limit)")
        return _svg(figure, f"Times of {rows[0].operation}, {rows[0].shape_name}")


def _serial(row: Row, rows: list[Row]) -> bool:
    """Whether it was timed with one thread alone."""
    return all(other.case_threads == row.case_threads for other in rows if other.contestant == row.contestant)


def roofline(result: Result, levels: list[Level], threads: int) -> str:
    """Operations a second by operations a byte: our rows with all threads, under the rate of each level of the memory."""
    rows = [row for row in result.rows if row.contestant in check.BACKENDS and row.threads == threads and row.contestant != "numpy"]
    points = [(row, operations_a_value(row.operation) * _values(row) / row.bytes) for row in rows]
    intensities = [intensity for _, intensity in points] or [1.0]
    low, high = min(intensities) / 1.8, max(intensities) * 1.8
    with matplotlib.rc_context(STYLE):
        figure, axis = _figure(4.2)
        shown = [level for level in levels if level.threads == threads]
        for number, level in enumerate(shown):
            axis.plot([low, high], [level.rate * low, level.rate * high], color=INK, linewidth=1.2, alpha=0.75)
            x = low * (high / low) ** (0.02 + 0.24 * number)  # beside each other: the lines of caches lie close together
            text = f"{level.name} {level.rate:.0f} GB/s"
            axis.annotate(text, (x, level.rate * x), (-2, 5), textcoords="offset points", fontsize=8, ha="left", va="bottom")
        spread: dict[tuple[str, str], int] = {}
        for row, intensity in points:
            which = spread.setdefault((row.contestant, row.layout), len(spread))
            axis.plot(
                [intensity * 1.035 ** (which - 1.5)],
                [operations_a_value(row.operation) * _values(row) / row.timing.minimum / 1e9],
                MARKS.get(row.layout, "D"),
                color=COLOURS[row.contestant],
                markersize=6,
                alpha=0.85,
            )
        axis.set_xscale("log")
        axis.set_yscale("log")
        axis.set_xlim(low, high)
        for one in (axis.xaxis, axis.yaxis):
            one.set_major_formatter(lambda value, _: f"{value:g}")
            one.set_minor_formatter(lambda *_: "")
        ticks: list[float] = []
        for value in sorted(intensities):
            if not ticks or value > 1.25 * ticks[-1]:  # no label over another
                ticks.append(value)
        axis.set_xticks(ticks, [f"{value:.2g}" for value in ticks])
        axis.set_xlabel("operations a byte that has to move")
        axis.set_ylabel(f"billion operations a second, {threads} threads")
        _legend(axis, rows)
        return _svg(figure, "Roofline: the rate of each operation under the rates of the caches and of memory")


def _values(row: Row) -> int:
    count = 1
    for size in row.shape:
        count *= size
    return count


def _legend(axis: Any, rows: Sequence[Row], texts: dict[tuple[str, str], str] | None = None) -> None:
    handles = [
        Line2D(
            [],
            [],
            color=COLOURS[name],
            marker=MARKS.get(layout, "D"),
            linestyle=STYLES.get(layout, ":"),
            label=f"{layout} {name}{(texts or {}).get((layout, name), '')}",
        )
        for layout, name in dict.fromkeys((row.layout, row.contestant) for row in rows)
    ]
    axis.legend(handles=handles, loc="upper center", bbox_to_anchor=(0.5, -0.2), ncols=2)


def scaling(found: list[Prediction]) -> str:
    """Of one operation and shape: rates measured, and of the fastest what the model says beyond (from low to high), by cores."""
    with matplotlib.rc_context(STYLE):
        figure, axis = _figure(4.2)
        for one in found:
            measured = sorted(one.measured)
            style = {"color": COLOURS[one.row.contestant], "marker": MARKS.get(one.row.layout, "D")}
            axis.plot(measured, [one.measured[n] for n in measured], markersize=6, linestyle=STYLES.get(one.row.layout, ":"), **style)
        best = max(found, key=lambda one: one.measured[max(one.measured)])
        here = max(best.measured)
        cores = [here, *best.beyond]
        low, high = ([best.measured[here], *(rates[end] for rates in best.beyond.values())] for end in (0, 1))
        axis.fill_between(cores, low, high, color=COLOURS[best.row.contestant], alpha=0.3, linewidth=0)
        axis.axvspan(here * 1.2, 170, color=INK, alpha=0.05, linewidth=0)
        where = axis.get_xaxis_transform()
        axis.text(20, 0.98, "prediction, not measured", transform=where, fontsize=9, va="top", ha="center", style="italic")
        axis.text(
            20, 0.91, f"({best.row.layout} {best.row.contestant})", transform=where, fontsize=9, va="top", ha="center", style="italic"
        )
        ticks = sorted({1, *best.measured, *best.beyond})
        axis.set_xscale("log", base=2)
        axis.set_yscale("log")
        axis.set_xticks(ticks, [str(n) for n in ticks])
        axis.set_xlim(0.85, 170)
        axis.set_ylim(top=2.5 * axis.get_ylim()[1])
        axis.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
        axis.yaxis.set_minor_formatter(lambda *_: "")
        axis.set_xlabel("cores")
        axis.set_ylabel("GB/s")
        _legend(axis, [one.row for one in found])
        return _svg(figure, f"Rate by number of cores of {found[0].row.operation}, {found[0].row.shape_name}")


def efficiency(found: list[Prediction]) -> str:
    """Of one operation and shape: what each thread still brings, in percent of what one alone does."""
    with matplotlib.rc_context(STYLE):
        figure, axis = _figure(3.4)
        texts = {}
        for one in found:
            threads = sorted(one.measured)
            percent = [100 * one.measured[n] / n / one.measured[1] for n in threads]
            style = {"color": COLOURS[one.row.contestant], "marker": MARKS.get(one.row.layout, "D")}
            axis.plot(threads, percent, linestyle=STYLES.get(one.row.layout, ":"), markersize=6, **style)
            texts[one.row.layout, one.row.contestant] = f": {percent[-1]:.0f}%"
        axis.set_xticks(threads, [str(n) for n in threads])
        axis.set_xlim(0.9, threads[-1] * 1.12)
        axis.set_ylim(0, max(112, axis.get_ylim()[1]))
        axis.axhline(100, color=INK, linewidth=1, linestyle=":")
        axis.set_xlabel("threads")
        axis.set_ylabel("efficiency, %")
        _legend(axis, [one.row for one in found], texts)
        return _svg(figure, f"Efficiency by number of threads of {found[0].row.operation}, {found[0].row.shape_name}")


def crossover(rows: list[Row]) -> str:
    """Of one operation: time by number of channels, with as many values each, by layout and backend; the numbers where they cross."""
    with matplotlib.rc_context(STYLE):
        figure, axis = _figure(4.2)
        who = dict.fromkeys((row.layout, row.contestant) for row in rows)
        lines = {
            one: sorted((row.shape[1], 1e3 * row.timing.minimum) for row in rows if (row.layout, row.contestant) == one) for one in who
        }
        for (layout, name), points in lines.items():
            channels, seconds = zip(*points, strict=True)
            axis.plot(channels, seconds, color=COLOURS[name], marker=MARKS[layout], linestyle=STYLES[layout], markersize=5)
        for number, name in enumerate(dict.fromkeys(name for _, name in who)):
            if ("NCHW", name) in lines and ("NHWC", name) in lines:
                counts = [count for count, _ in lines["NCHW", name]]
                found = crossings(counts, *([s for _, s in lines[layout, name]] for layout in ("NCHW", "NHWC")))
                text = f"{name}: they cross at {', '.join(f'{c:.0f}' for c in found) or 'no number of'} channels"
                axis.text(0.02, 0.98 - 0.07 * number, text, transform=axis.transAxes, fontsize=9, va="top", color=COLOURS[name])
        axis.set_xscale("log", base=2)
        axis.set_xticks([row.shape[1] for row in rows], [str(row.shape[1]) for row in rows])
        axis.set_ylim(0, 1.25 * axis.get_ylim()[1])
        axis.set_xlabel("channels, with 2^20 values in all")
        axis.set_ylabel("ms")
        _legend(axis, rows)
        return _svg(figure, f"{rows[0].operation}: time by number of channels, NCHW and NHWC")
