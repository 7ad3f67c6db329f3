"""Results as a table on the terminal, as a GitHub table, and as JSON."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from dataclasses import asdict
from importlib.util import find_spec
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
from rich import box
from rich.console import Console
from rich.table import Table

from cpunorm import check, machine, report
from cpunorm.compare import contestants
from cpunorm.compare.measure import COPY, STREAM, Request, Result, Row

PEERS = {"torch": "torch", "opencv-python-headless": "cv2"}  # packages, and their modules
WIDTH = 130  # of the table where there is no terminal to ask
LIMIT_TEXT = (
    "The limit is what this machine's memory allows: a copy of x, by ordinary or by streaming stores, whichever is faster, and where an "
    "operation has to read x twice (training) one read of x; measured by cpunorm's C part in the same rounds, on the same arrays, with "
    "the same number of threads; the best that the run has seen for that size and number. GB/s counts the bytes of the same trips. Times "
    "are the fastest of the rounds. cpunorm writes into an array that it is given; NumPy and PyTorch allocate their results, from a heap "
    "that keeps its pages. preprocess is uint8 pictures, NHWC, to normalized float32 in the layout named: its limit is those bytes read "
    "and these written, and PyTorch writes into memory it has, by the fastest of three ways."
)


def label(contestant: str) -> str:
    """As tables and pictures name a contestant."""
    return f"cpunorm {contestant}" if contestant in check.BACKENDS else contestant


def headline(result: Result) -> str:
    """Which layout and backend of ours was fastest over all that was measured: one sentence."""
    cases = list(dict.fromkeys(row.case for row in result.rows))
    best: dict[tuple[str, str], dict[tuple[str, str], Row]] = {}
    for row in result.rows:
        if row.contestant in check.BACKENDS:
            of = best.setdefault((row.layout, row.contestant), {})
            if row.case not in of or row.timing.minimum < of[row.case].timing.minimum:
                of[row.case] = row
    complete = {who: of for who, of in best.items() if len(of) == len(cases)}
    if not complete:
        return "No layout and backend has a time for every case."
    (layout, backend), rows = min(complete.items(), key=lambda item: _mean(row.timing.minimum for row in item[1].values()))
    text = f"Fastest here over these {len(cases)} case{'s' * (len(cases) > 1)} (geometric mean): {layout} with {label(backend)}"
    details = [
        f"{_mean(values):.{digits}f}{unit}"
        for values, digits, unit in (
            ([row.speedup for row in rows.values() if row.speedup], 1, " times as fast as NumPy in that layout"),
            ([row.percent for row in rows.values() if row.percent], 0, "% of the copy limit"),
        )
        if values
    ]
    return f"{text}{', ' if details else ''}{', '.join(details)}."


def _mean(values: Iterable[float]) -> float:
    logarithms = [math.log(value) for value in values]
    return math.exp(sum(logarithms) / len(logarithms))


def machine_line(request: Request) -> str:
    """Where this was measured, and of what."""
    return f"{machine.cpu_name()}, {machine.affinity()} CPUs, L3 {machine.caches().l3 >> 20} MB; {request.dtype}; {', '.join(_versions())}"


def _versions() -> list[str]:
    packages = ["cpunorm", "numpy", "numba"] + [name for name, module in PEERS.items() if find_spec(module)]
    return [f"{package} {report._version(package)}" for package in packages]


def shape_text(row: Row, shapes: dict[str, tuple[int, ...]]) -> str:
    """The name and, where that does not say it, the numbers."""
    numbers = "x".join(map(str, shapes[row.shape_name]))
    return numbers if row.shape_name == numbers else f"{row.shape_name} ({numbers})"


# ---------------------------------------------------------------- tables


def print_table(request: Request, result: Result) -> None:
    """A row each contestant, a section each case."""
    console = Console()
    if not console.is_terminal:
        console = Console(width=WIDTH)
    console.print(headline(result), highlight=False)
    console.print(machine_line(request), highlight=False)
    columns = {"layout": 6, "who": 16, "threads": 7, "time, ms": 8, "median": 8, "GB/s": 6, "% of limit": 10, "x NumPy": 7, "error": 7}
    without_limit = "" if request.has_limit else "n/a (no C part)"
    for _, group in groupby(result.rows, key=lambda row: row.case):
        rows = list(group)
        console.print(f"\n[bold]{rows[0].operation}[/bold], {shape_text(rows[0], request.shapes)}", highlight=False)
        table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
        for name, width in columns.items():
            table.add_column(name, min_width=width, no_wrap=True, justify="left" if name in ("layout", "who") else "right")
        fastest = min((row for row in rows if row.contestant in check.BACKENDS), key=lambda row: row.timing.minimum, default=None)
        for row in rows:
            cells = (
                row.layout,
                label(row.contestant),
                str(row.threads),
                _ms(row.timing.minimum),
                _ms(row.timing.median),
                f"{row.rate:.1f}",
                without_limit if row.percent is None else f"{row.percent:.0f}",
                "" if row.speedup is None else f"{row.speedup:.1f}",
                f"{row.largest_error:.0e}",
            )
            table.add_row(*cells, style="bold" if row is fastest else None)
        console.print(table)
    console.print(f"{LIMIT_TEXT} The error is the largest difference from a float64 reference.", highlight=False)


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
        cells = [_cell(rows[name]) if name in rows else "" for name in names]
        lines.append(f"| {case[0]}, {shape_text(first, request.shapes)} | {layout} | {threads} | {' | '.join(cells)} |")
    lines += ["", "In brackets: percent of the limit. " + LIMIT_TEXT]
    return "\n".join(lines)


def _by_threads(rows: list[Row], plain: dict[Any, Row]) -> list[Row]:
    """Without NumPy's rows, which stand beside those of any number of threads."""
    others = [row for row in rows if row not in plain.values()]
    return others or rows


def _cell(row: Row) -> str:
    return f"{_ms(row.timing.minimum)} ms" + ("" if row.percent is None else f" ({row.percent:.0f}%)")


def _ms(seconds: float) -> str:
    return f"{seconds * 1e3:.3g}" if seconds < 0.1 else f"{seconds * 1e3:.0f}"


# ---------------------------------------------------------------- JSON


def write_json(file: Path, request: Request, result: Result, problems: list[str]) -> None:
    """Everything that was measured."""
    content = {
        "machine": dict(report.facts()),
        "versions": {"numpy": np.__version__, **{name: report._version(name) for name in ("cpunorm", "numba", *PEERS)}},
        "dtype": request.dtype,
        "threads": list(request.threads),
        "headline": headline(result),
        "problems": problems,
        "limit": {
            "text": LIMIT_TEXT,
            "cases": [
                {
                    "operation": limit.operation,
                    "shape": list(request.shapes[limit.shape_name]),
                    "layout": limit.layout,
                    "threads": limit.threads,
                    "parts": {
                        part: {
                            **asdict(timing),
                            "gb_per_second": (2 if part in (COPY, STREAM) else 1) * limit.array_bytes / timing.minimum / 1e9,
                        }
                        for part, timing in limit.parts.items()
                    },
                }
                for limit in result.limits
            ],
        },
        "rows": [
            {
                "operation": row.operation,
                "shape_name": row.shape_name,
                "shape": list(row.shape),
                "layout": row.layout,
                "contestant": row.contestant,
                "threads": row.threads,
                "minimum_seconds": row.timing.minimum,
                "median_seconds": row.timing.median,
                "rounds": row.timing.rounds,
                "bytes": row.bytes,
                "gb_per_second": row.rate,
                "limit_seconds": row.limit,
                "percent_of_limit": row.percent,
                "speedup_over_numpy": row.speedup,
                "largest_error": row.largest_error,
            }
            for row in result.rows
        ],
    }
    file.write_text(json.dumps(content, indent=1) + "\n")
