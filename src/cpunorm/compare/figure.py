"""The picture: GB/s of everybody, a panel each operation and shape, with the copy limit drawn."""

from __future__ import annotations

from itertools import groupby, zip_longest
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from cpunorm.compare import contestants, peers, preprocessing, show
from cpunorm.compare.advice import headline, label
from cpunorm.compare.measure import Request
from cpunorm.compare.results import Result, Row

# Seen as well on white as on black.
COLOURS = {
    "numba": "#2f86d6",
    "c": "#e08a1e",
    "numpy": "#999999",
    contestants.NUMPY: "#7d7d7d",
    contestants.TORCH: "#c75b9b",
    peers.TORCH_OUT: "#a04fc4",
    peers.ONNX: "#7f79d8",
    preprocessing.OPENCV: "#2aa179",
    preprocessing.ALBUCORE: "#d9604c",
    peers.SKLEARN: "#a8942c",
}
WIDTH, DPI = 16, 100  # inches; 1600 pixels
BAR, HEAD = 0.2, 0.62  # inches of a bar, and around the bars of a panel
COLUMNS = 2
GAP = 0.8  # between groups, in bars


def draw(file: Path, request: Request, result: Result) -> None:
    """Write the picture."""
    shown = {request.threads[0], request.threads[-1]}  # the numbers between are in the table
    rows = [row for row in result.rows if row.case_threads in shown]
    panels: dict[tuple[str, str], list[list[Row]]] = {
        case: [list(bars) for _, bars in groupby(group, key=lambda row: (row.layout, row.case_threads))]
        for case, group in ((case, [row for row in rows if row.case == case]) for case in dict.fromkeys(row.case for row in rows))
    }
    cases = list(panels)
    columns = min(COLUMNS, len(cases))
    lines = [cases[start : start + columns] for start in range(0, len(cases), columns)]
    heights = [max(_bars(panels[case]) for case in line) * BAR + HEAD for line in lines]
    with matplotlib.rc_context({"font.size": 11, "axes.spines.top": False, "axes.spines.right": False}):
        figure = Figure(figsize=(WIDTH, sum(heights) + 1.9), dpi=DPI, layout="constrained")
        axes = figure.subplots(len(lines), columns, squeeze=False, height_ratios=heights)
        for axis, case in zip_longest(axes.flat, cases):
            if case is None:
                axis.set_visible(False)
                continue
            _panel(axis, panels[case])
            operation, name = case
            axis.set_title(f"{operation}: {_shape(name, request)}", loc="left", fontsize=11, fontweight="bold")
        for axis in axes[-1]:
            axis.set_xlabel("GB/s: bytes that have to be read and written, per second")
        figure.get_layout_engine().set(h_pad=0.1, w_pad=0.1)  # type: ignore[union-attr, call-arg]
        figure.suptitle(f"{headline(result)}\n{show.machine_line(request)}", x=0.01, ha="left", fontsize=12)
        used = [name for name in COLOURS if any(row.contestant == name for row in rows)]
        handles: list[Any] = [Patch(color=COLOURS[name], label=label(name)) for name in used]
        if result.limits:
            handles.append(Line2D([], [], color="black", linewidth=2, label="this machine's copy limit"))
        figure.legend(handles=handles, loc="outside lower center", ncols=len(handles), frameon=False)
        figure.savefig(file)


def _shape(name: str, request: Request) -> str:
    numbers = "\N{MULTIPLICATION SIGN}".join(map(str, request.shapes[name]))
    return numbers if name == "x".join(map(str, request.shapes[name])) else f"{name} ({numbers})"


def _bars(groups: list[list[Row]]) -> float:
    return sum(len(group) + GAP for group in groups)


def _panel(axis: Any, groups: list[list[Row]]) -> None:
    """Horizontal bars, top down, a group each layout and number of threads; the limit is a line across its group."""
    place = 0.0
    ticks: list[float] = []
    for group in groups:
        places = [place + index for index in range(len(group))]
        rates = [row.rate for row in group]
        bars = axis.barh(places, rates, height=0.86, color=[COLOURS.get(row.contestant, "#999999") for row in group])
        axis.bar_label(bars, [f"{rate:.1f}" for rate in rates], padding=3, fontsize=9)
        if group[0].limit is not None:
            axis.vlines(group[0].bytes / group[0].limit / 1e9, places[0] - 0.5, places[-1] + 0.5, color="black", linewidth=2)
        ticks.append((places[0] + places[-1]) / 2)
        place += len(group) + GAP
    axis.set_yticks(ticks, [f"{group[0].layout}\n{group[0].case_threads} thread{'s' * (group[0].case_threads > 1)}" for group in groups])
    axis.set_ylim(place - 1.2 + 0.3, -0.8)
    axis.tick_params(axis="y", length=0)
    axis.grid(axis="x", color="#dddddd")
    axis.set_axisbelow(True)
    axis.margins(x=0.08)
