"""Results as JSON, with every turn's seconds, and what ``--against`` needs of them."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cpunorm import machine, report
from cpunorm.compare import advice, peers, show
from cpunorm.compare.measure import Request
from cpunorm.compare.regress import Key, Sample
from cpunorm.compare.results import COPY, CORE, STREAM, Result, Timing

FORMAT = 2


@dataclass(frozen=True)
class Saved:
    """A run that was saved."""

    cpu: str
    request: dict[str, Any]
    samples: dict[Key, Sample]


def versions() -> dict[str, str]:
    """Of ourselves, what we stand on, and the peers."""
    packages = ("cpunorm", "numba", *(library.package for library in peers.LIBRARIES.values() if library.package != "numpy"))
    return {"numpy": np.__version__, **{name: report._version(name) for name in packages}}


def write(file: Path, request: Request, result: Result, problems: list[str]) -> None:
    """Everything that was measured."""
    content = {
        "format": FORMAT,
        "machine": dict(report.facts()),
        "cpu": machine.cpu_name(),
        "versions": versions(),
        "dtype": request.dtype,
        "threads": list(request.threads),
        "request": {
            name: getattr(request, name) for name in ("operations", "shapes", "layouts", "backends", "threads", "dtype", "peers", "quick")
        },
        "headline": advice.headline(result),
        "problems": problems,
        "limit": {
            "text": show.LIMIT_TEXT,
            "cases": [
                {
                    "operation": limit.operation,
                    "shape": list(request.shapes[limit.shape_name]),
                    "layout": limit.layout,
                    "threads": limit.threads,
                    "parts": {
                        part: {
                            **_seconds(timing),
                            "gb_per_second": (2 if part in (COPY, STREAM) else 1) * limit.array_bytes / timing.minimum / 1e9,
                        }
                        for part, timing in limit.parts.items()
                        if part != CORE
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
                "case_threads": row.case_threads,
                **_seconds(row.timing),
                "limit_passes": row.limits,
                "core_passes": row.cores,
                "bytes": row.bytes,
                "gb_per_second": row.rate,
                "limit_seconds": row.limit,
                "percent_of_limit": row.percent,
                "speedup_over_numpy": row.speedup,
                "times_as_fast_as": {
                    peer: {"median": over.value, "low": over.low, "high": over.high, "trusted": over.trusted}
                    for peer in row.peers
                    if (over := row.over(peer)) is not None
                },
                "largest_error": row.largest_error,
            }
            for row in result.rows
        ],
    }
    file.write_text(json.dumps(content, indent=1) + "\n")


def _seconds(timing: Timing) -> dict[str, Any]:
    return {"minimum_seconds": timing.minimum, "median_seconds": timing.median, "rounds": timing.rounds, "passes": timing.passes}


def read(file: Path) -> Saved:
    """What `write` wrote; ValueError for anything else."""
    content = json.loads(file.read_text())
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise ValueError(f"expected a JSON file of `cpunorm compare --save`, format {FORMAT}")
    samples = {
        (row["operation"], "x".join(map(str, row["shape"])), row["layout"], row["contestant"], row["case_threads"]): Sample(
            tuple(map(min, row["passes"])), tuple(row["limit_passes"]), tuple(row["core_passes"])
        )
        for row in content["rows"]
    }
    return Saved(content["cpu"], content["request"], samples)
