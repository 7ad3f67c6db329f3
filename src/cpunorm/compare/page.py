"""``cpunorm compare --html``: one page, with its style and its pictures in it. It asks the network for nothing."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape
from string import Template

from cpunorm.compare import charts, levels, model, show
from cpunorm.compare.advice import advice, headline
from cpunorm.compare.measure import Request
from cpunorm.compare.model import Prediction
from cpunorm.compare.regress import Change
from cpunorm.compare.results import Result, Row

PAGE = Template("""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>cpunorm compare</title>
<style>
:root { --back: #ffffff; --ink: #1b1f24; --soft: #57606a; --line: #d8dee4; --card: #f6f8fa; --bad: #b42318; --good: #1a7f37; }
@media (prefers-color-scheme: dark) {
  :root { --back: #14171b; --ink: #e6e9ec; --soft: #9aa4ae; --line: #3a424b; --card: #1c2127; --bad: #ff8a7a; --good: #5fd07c; }
}
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 84rem; padding: 1rem clamp(0.8rem, 3vw, 2rem) 3rem; background: var(--back); color: var(--ink);
  font: 16px/1.5 system-ui, sans-serif; overflow-wrap: break-word; }
h1 { font-size: 1.5rem; margin: 0.5rem 0; } h2 { font-size: 1.2rem; margin: 2.2rem 0 0.4rem; } h3 { font-size: 1rem; margin: 0.2rem 0; }
p { max-width: 62rem; margin: 0.4rem 0; } .soft, figcaption { color: var(--soft); font-size: 0.875rem; }
.answer { font-size: 1.15rem; border-left: 4px solid var(--good); padding: 0.2rem 0 0.2rem 0.8rem; }
.answer.bad { border-color: var(--bad); }
.grid { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 23rem), 1fr)); gap: 1rem; align-items: start; }
figure, .card { margin: 0; padding: 0.8rem; background: var(--card); border: 1px solid var(--line); border-radius: 8px; min-width: 0; }
figure svg { display: block; width: 100%; height: auto; color: var(--ink); font-family: system-ui, sans-serif; }
.wide { overflow-x: auto; } table { border-collapse: collapse; font-size: 0.85rem; font-variant-numeric: tabular-nums; }
th, td { padding: 0.2rem 0.6rem; text-align: right; white-space: nowrap; border-bottom: 1px solid var(--line); }
th { color: var(--soft); font-weight: 600; } th.text, td.text { text-align: left; }
tr.best td { font-weight: 700; } tr.slower td { color: var(--bad); font-weight: 700; } tr.faster td { color: var(--good); }
details { margin-top: 0.5rem; } summary { cursor: pointer; color: var(--soft); font-size: 0.875rem; } ul { padding-left: 1.2rem; }
</style>
</head>
<body>
<h1>cpunorm on this machine</h1>
<p class="answer">$headline</p>
<p class="soft">$machine</p>
$body
</body>
</html>
""")

TEXT = {"layout", "who", "operation", "shape", "backend"}  # columns that are not numbers


def page(request: Request, result: Result, changes: list[Change], problems: list[str], found: list[levels.Level], crossing: Result) -> str:
    """The page of what was measured."""
    parts = []
    if problems:
        parts.append(
            _section("What was skipped or went wrong", "<ul>" + "".join(f"<li>{escape(line)}</li>" for line in problems) + "</ul>")
        )
    if changes:
        parts.append(_changes(changes))
    parts.append(_times(request, result))
    threads = request.threads[-1]
    if found and any(row.threads == threads for row in result.rows):
        parts.append(_roofline(result, found, threads))
    predictions = model.predictions(result.rows, found)
    if predictions:
        parts.append(_scaling(predictions))
    if crossing.rows:
        parts.append(_crossover(crossing))
    parts.append(_section("How it was measured", *(f"<p>{escape(text)}</p>" for text in (show.LIMIT_TEXT, show.RATIO_TEXT, HOW))))
    return PAGE.substitute(headline=escape(headline(result)), machine=escape(show.machine_line(request)), body="\n".join(parts))


HOW = (
    "Every result was compared with a float64 reference before it was timed; the error is the largest difference. Contestants took turns, "
    "in rounds of random order, with a pause between two; all cases were gone through several times, in passes, and how sure an answer is "
    "follows from what the passes say each."
)


def _section(title: str, *parts: str) -> str:
    return f"<section>\n<h2>{escape(title)}</h2>\n" + "\n".join(parts) + "\n</section>"


def _table(columns: Iterable[str], rows: Iterable[tuple[Sequence[str], str]]) -> str:
    """Cells and the class of each row."""
    columns = list(columns)
    kinds = [' class="text"' if name in TEXT else "" for name in columns]
    head = "".join(f"<th{kind}>{escape(name)}</th>" for name, kind in zip(columns, kinds, strict=True))
    lines = [
        f'<tr class="{name}">' + "".join(f"<td{kind}>{escape(cell)}</td>" for cell, kind in zip(cells, kinds, strict=True)) + "</tr>"
        for cells, name in rows
    ]
    return f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>\n' + "\n".join(lines) + "\n</tbody></table></div>"


def _figure(svg: str, title: str, *more: str) -> str:
    return f"<figure>\n<h3>{escape(title)}</h3>\n" + "\n".join(more[:1]) + f"\n{svg}\n" + "\n".join(more[1:]) + "\n</figure>"


def _grid(figures: Iterable[str]) -> str:
    return '<div class="grid">\n' + "\n".join(figures) + "\n</div>"


def _changes(changes: list[Change]) -> str:
    slower = sum(change.slower for change in changes)
    rows = [(show.change_cells(change), "slower" if change.slower else "faster" if change.faster else "") for change in changes]
    answer = f'<p class="answer{" bad" * bool(slower)}">{slower} of {len(changes)} became slower.</p>'
    return _section("Against the saved run", answer, _table(show.CHANGE_COLUMNS, rows), f'<p class="soft">{escape(show.CHANGE_TEXT)}</p>')


def _times(request: Request, result: Result) -> str:
    figures = []
    for rows in show.by_case(result):
        best = show.fastest(rows)
        table = _table(show.COLUMNS, [(show.cells(row, request), "best" if row is best else "") for row in rows])
        figures.append(
            _figure(
                charts.times(rows),
                f"{rows[0].operation}, {show.shape_text(rows[0], request.shapes)}",
                f"<p>{escape(advice(rows))}</p>",
                f"<details><summary>All figures</summary>{table}</details>",
            )
        )
    return _section("Time by layout and backend", _grid(figures))


def _roofline(result: Result, found: list[levels.Level], threads: int) -> str:
    rows = [((level.name, str(level.threads), f"{level.bytes / 1024:.0f}", f"{level.rate:.1f}"), "") for level in found]
    text = (
        "How many operations a second each row does, over how many it does a byte that has to move. The lines are copies within L1, L2, L3 "
        "and memory, measured here. A point above the line of memory had its data in a cache; none can be above the line of the level that "
        "it is in."
    )
    figures = [_figure(charts.roofline(result, found, threads), f"{threads} thread{'s' * (threads > 1)}")]
    table = _table(("layout", "threads", "KB in all", "GB/s"), rows).replace("layout", "level", 1)
    return _section("Roofline", f"<p>{text}</p>", _grid([*figures, f'<div class="card"><h3>A copy within each level</h3>{table}</div>']))


def _largest(predictions: list[Prediction]) -> list[list[Prediction]]:
    """Of each operation, those of the largest shape."""
    groups = []
    for operation in dict.fromkeys(one.row.operation for one in predictions):
        of = [one for one in predictions if one.row.operation == operation]
        name = max(of, key=lambda one: one.row.bytes).row.shape_name
        groups.append([one for one in of if one.row.shape_name == name])
    return groups


def _scaling(predictions: list[Prediction]) -> str:
    figures = []
    for group in _largest(predictions):
        title = f"{group[0].row.operation}, {group[0].row.shape_name}"
        figures += [_figure(charts.efficiency(group), f"{title}: efficiency"), _figure(charts.scaling(group), f"{title}: beyond")]
    most = max(predictions[0].modelled)
    columns = ["operation", "shape", "layout", "backend", "1 thread, GB/s", f"{most} threads", "model", "error"]
    columns += [f"predicted, {cores} cores" for cores in predictions[0].beyond]
    rows = [
        (
            (
                *(one.row.operation, one.row.shape_name, one.row.layout, one.row.contestant),
                *(f"{value:.1f}" for value in (one.measured[1], one.measured[most], one.modelled[most])),
                f"{100 * one.error:+.0f}%",
                *(f"{low:.0f} to {high:.0f}" for low, high in one.beyond.values()),
            ),
            "",
        )
        for one in predictions
    ]
    text = (
        f"{model.error_text(predictions)} What it says of more cores than are here is a prediction, of a machine with cores like these, "
        "between two bounds: cores that get into each other's way as they do here, and cores that do not until their socket has "
        f"{model.SOCKET / 1e9:.0f} GB/s (eight channels of DDR4-3200; 128 cores are two sockets). cpunorm/compare/model.py has the formula."
    )
    table = f"<details open><summary>The model, measured and predicted, GB/s</summary>{_table(columns, rows)}</details>"
    return _section("Threads, here and beyond", f"<p>{escape(text)}</p>", _grid(figures), table)


def _crossover(crossing: Result) -> str:
    figures = []
    for operation in dict.fromkeys(row.operation for row in crossing.rows):
        rows: list[Row] = [row for row in crossing.rows if row.operation == operation]
        figures.append(_figure(charts.crossover(rows), f"{operation}, {rows[0].threads} threads"))
    text = "The same number of values (4 MB of float32), in more and more channels. Lower is better."
    return _section("NCHW or NHWC, by the number of channels", f"<p>{text}</p>", _grid(figures))
