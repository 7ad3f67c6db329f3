"""Results as tables: on the terminal, and for GitHub."""

from __future__ import annotations

from itertools import groupby
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from cpunorm import check, machine, report
from cpunorm.compare import contestants, peers
from cpunorm.compare.advice import advice, headline, label
from cpunorm.compare.measure import Request
from cpunorm.compare.regress import Change
from cpunorm.compare.results import Ratio, Result, Row

WIDTH = 130  # of the table where there is no terminal to ask
LIMIT_TEXT = (
    "The limit is what this machine's memory allows: a copy of x, by ordinary or by streaming stores, whichever is faster, and where an "
    "operation has to read x twice (training) one read of x; measured by cpunorm's C part in the same rounds, on the same arrays, with "
    "the same number of threads; the best that the run has seen for that size and number. GB/s counts the bytes of the same trips. Times "
    "are the fastest of the rounds. cpunorm writes into an array that it is given; NumPy and PyTorch allocate their results, from a heap "
    "that keeps its pages. preprocess is uint8 pictures, NHWC, to normalized float32 in the layout named: its limit is those bytes read "
    "and these written, and PyTorch writes into memory it has, by the fastest of three ways."
)
RATIO_TEXT = (
    "Times PyTorch and times NumPy are medians of the passes; a ? marks a ratio whose passes differ by more than 10%: another run may well "
    "say something else."
)


def machine_line(request: Request) -> str:
    """Where this was measured, and of what."""
    return f"{machine.cpu_name()}, {machine.affinity()} CPUs, L3 {machine.caches().l3 >> 20} MB; {request.dtype}; {_versions(request)}"


def _versions(request: Request) -> str:
    packages = ["cpunorm", "numpy", "numba", *(peers.LIBRARIES[name].package for name in request.peers)]
    return ", ".join(f"{package} {report._version(package)}" for package in dict.fromkeys(packages))


def shape_text(row: Row, shapes: dict[str, tuple[int, ...]]) -> str:
    """The name and, where that does not say it, the numbers."""
    numbers = "x".join(map(str, shapes[row.shape_name]))
    return numbers if row.shape_name == numbers else f"{row.shape_name} ({numbers})"


# ---------------------------------------------------------------- the terminal

COLUMNS = {
    "layout": 6,
    "who": 16,
    "threads": 7,
    "time, ms": 8,
    "median": 8,
    "GB/s": 6,
    "% of limit": 10,
    "x NumPy": 7,
    "x PyTorch": 9,
    "error": 7,
}


def cells(row: Row, request: Request) -> tuple[str, ...]:
    """A row's, as `COLUMNS` has them."""
    without_limit = "" if request.has_limit else "n/a (no C part)"
    return (
        row.layout,
        label(row.contestant),
        str(row.threads),
        milliseconds(row.timing.minimum),
        milliseconds(row.timing.median),
        f"{row.rate:.1f}",
        without_limit if row.percent is None else f"{row.percent:.0f}",
        *(times(row, peer) for peer in (contestants.NUMPY, contestants.TORCH)),
        f"{row.largest_error:.0e}",
    )


def times(row: Row, peer: str) -> str:
    """How many times as fast as a peer, marked where that is not to be trusted; nothing for the peer itself."""
    over: Ratio | None = None if row.contestant == peer else row.over(peer)
    return "" if over is None else str(over)


def by_case(result: Result) -> list[list[Row]]:
    """The rows of each operation and shape."""
    return [list(group) for _, group in groupby(sorted_rows(result), key=lambda row: row.case)]


def sorted_rows(result: Result) -> list[Row]:
    """Cases in the order of their first row."""
    order = {case: number for number, case in enumerate(dict.fromkeys(row.case for row in result.rows))}
    return sorted(result.rows, key=lambda row: order[row.case])


def fastest(rows: list[Row]) -> Row | None:
    """Of ours."""
    return min((row for row in rows if row.contestant in check.BACKENDS), key=lambda row: row.timing.minimum, default=None)


def _console() -> Console:
    console = Console()
    return console if console.is_terminal else Console(width=WIDTH)


def print_table(request: Request, result: Result) -> None:
    """A row each contestant, a section each case."""
    console = _console()
    console.print(headline(result), highlight=False)
    console.print(machine_line(request), highlight=False)
    for rows in by_case(result):
        console.print(f"\n[bold]{rows[0].operation}[/bold], {shape_text(rows[0], request.shapes)}. {advice(rows)}", highlight=False)
        table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
        for name, width in COLUMNS.items():
            table.add_column(name, min_width=width, no_wrap=True, justify="left" if name in ("layout", "who") else "right")
        best = fastest(rows)
        for row in rows:
            table.add_row(*cells(row, request), style="bold" if row is best else None)
        console.print(table)
    console.print(f"{LIMIT_TEXT} The error is the largest difference from a float64 reference. {RATIO_TEXT}", highlight=False)


CHANGE_COLUMNS = ("operation", "shape", "layout", "who", "threads", "before, ms", "now, ms", "times", "noise", "sees from", "")
CHANGE_TEXT = (
    "times: what it takes now, by what the machine's memory, faster or slower than then, accounts for. noise: what the median passes "
    "of both runs take beyond their fastest ones. A slowdown below `sees from` goes unnoticed; what looked slower was measured three times."
)


def change_cells(change: Change) -> tuple[str, ...]:
    """A row of the regression table."""
    operation, shape, layout, contestant, threads = change.key
    return (
        operation,
        shape,
        layout,
        label(contestant),
        str(threads),
        milliseconds(change.before),
        milliseconds(change.after),
        f"{change.times:.2f}",
        f"±{100 * change.noise:.0f}%",
        f"{change.sees:.2f}",
        "slower" if change.slower else "faster" if change.faster else "",
    )


def print_changes(changes: list[Change]) -> None:
    """The regression table."""
    console = _console()
    slower = sum(change.slower for change in changes)
    console.print(f"\n[bold]Against the saved run[/bold]: {slower} of {len(changes)} became slower.", highlight=False)
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for number, name in enumerate(CHANGE_COLUMNS):
        table.add_column(name, no_wrap=number != 1, justify="left" if number < 4 or not name else "right")
    for change in changes:
        table.add_row(*change_cells(change), style="bold red" if change.slower else "green" if change.faster else None)
    console.print(table)
    console.print(CHANGE_TEXT, highlight=False)


# ---------------------------------------------------------------- GitHub


def markdown(request: Request, result: Result) -> str:
    """A GitHub table: a line each operation, shape, layout and number of threads."""
    names = list(dict.fromkeys(row.contestant for row in result.rows))
    lines = [headline(result), "", machine_line(request) + ".", ""]
    lines += ["| operation, shape | layout | threads | " + " | ".join(label(name) for name in names) + " |"]
    lines += ["|---|---|--:|" + "--:|" * len(names)]
    plain = {(row.case, row.layout): row for row in result.rows if row.contestant == contestants.NUMPY}
    for (case, layout, threads), group in groupby(_by_threads(result.rows, plain), key=lambda row: (row.case, row.layout, row.threads)):
        rows = {row.contestant: row for row in group}
        if (case, layout) in plain:
            rows.setdefault(contestants.NUMPY, plain[case, layout])
        first = next(iter(rows.values()))
        texts = [_cell(rows[name]) if name in rows else "" for name in names]
        lines.append(f"| {case[0]}, {shape_text(first, request.shapes)} | {layout} | {threads} | {' | '.join(texts)} |")
    lines += ["", "In brackets: percent of the limit. " + LIMIT_TEXT]
    return "\n".join(lines)


def _by_threads(rows: list[Row], plain: dict[Any, Row]) -> list[Row]:
    """Without NumPy's rows, which stand beside those of any number of threads."""
    others = [row for row in rows if row not in plain.values()]
    return others or rows


def _cell(row: Row) -> str:
    return f"{milliseconds(row.timing.minimum)} ms" + ("" if row.percent is None else f" ({row.percent:.0f}%)")


def milliseconds(seconds: float) -> str:
    """Three digits."""
    return f"{seconds * 1e3:.3g}" if seconds < 0.1 else f"{seconds * 1e3:.0f}"
