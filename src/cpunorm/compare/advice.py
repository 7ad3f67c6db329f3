"""Which layout and backend to take here, in a sentence, and how sure that is: by how much, and in how many of the passes, it is ahead."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence

from cpunorm import check
from cpunorm.compare.results import Ratio, Result, Row, ratio

TIE = 1.03  # less than this is no difference

Who = tuple[str, str]  # layout, backend


def label(contestant: str) -> str:
    """As tables and pictures name a contestant."""
    return f"cpunorm {contestant}" if contestant in check.BACKENDS else contestant


def headline(result: Result) -> str:
    """Over all that was measured: geometric means."""
    cases = list(dict.fromkeys(row.case for row in result.rows))
    best = [_fastest(row for row in result.rows if row.case == case) for case in cases]
    everywhere = [who for who in (best[0] if best else {}) if all(who in of for of in best)]
    if not everywhere:
        return "No layout and backend has a time for every case."
    seconds = {who: tuple(map(mean, zip(*(of[who].timing.minima for of in best), strict=False))) for who in everywhere}
    who, second = _ranked(seconds)
    rows = [of[who] for of in best]
    details = [
        f"{mean(values):.{digits}f}{unit}"
        for values, digits, unit in (
            ([row.speedup for row in rows if row.speedup], 1, " times as fast as NumPy in that layout"),
            ([row.percent for row in rows if row.percent], 0, "% of the copy limit"),
        )
        if values
    ]
    text = f"Fastest here over these {len(cases)} case{'s' * (len(cases) > 1)} (geometric mean): {_name(who)}"
    return f"{', '.join([text, *details])}{_sure(second, seconds, who)}."


def advice(rows: Iterable[Row]) -> str:
    """For one operation and shape."""
    best = _fastest(rows)
    if not best:
        return "None of ours was timed."
    seconds = {who: row.timing.minima for who, row in best.items()}
    who, second = _ranked(seconds)
    row = best[who]
    threads = f", {row.threads} thread{'s' * (row.threads > 1)}"
    return f"Take {_name(who)}: {row.timing.minimum * 1e3:.3g} ms{threads}{_sure(second, seconds, who)}."


def _fastest(rows: Iterable[Row]) -> dict[Who, Row]:
    """Of each layout and backend of ours, over the numbers of threads."""
    best: dict[Who, Row] = {}
    for row in rows:
        who = row.layout, row.contestant
        if row.contestant in check.BACKENDS and (who not in best or _usual(row) < _usual(best[who])):
            best[who] = row
    return best


def _usual(row: Row) -> float:
    """Seconds of the median pass, which is harder to be lucky in than the fastest."""
    return statistics.median(row.timing.minima)


def _ranked(seconds: dict[Who, tuple[float, ...]]) -> tuple[Who, Who | None]:
    order = sorted(seconds, key=lambda who: statistics.median(seconds[who]))
    return order[0], order[1] if len(order) > 1 else None


def _sure(second: Who | None, seconds: dict[Who, tuple[float, ...]], who: Who) -> str:
    if second is None:
        return ""
    ahead = ratio(seconds[second], seconds[who])
    return f"; {_words(ahead, seconds[second], seconds[who], _name(second))}"


def _words(ahead: Ratio, theirs: Sequence[float], ours: Sequence[float], second: str) -> str:
    passes = len(ours)
    won = sum(other > TIE * own for other, own in zip(theirs, ours, strict=False))
    percent = f"{100 * (ahead.low - 1):.0f} to {100 * (ahead.high - 1):.0f}%"
    if passes < 2:
        return f"one pass only, which cannot say how sure that is; next is {second}"
    if won == passes:
        return f"sure: ahead of {second} in each of {passes} passes, by {percent}"
    if ahead.value > TIE:
        return f"likely: ahead of {second} in {won} of {passes} passes ({percent})"
    return f"no clear winner: {second} is as fast ({percent})"


def _name(who: Who) -> str:
    return f"{who[0]} with {label(who[1])}"


def mean(values: Iterable[float]) -> float:
    """Geometric."""
    logarithms = [math.log(value) for value in values]
    return math.exp(sum(logarithms) / len(logarithms))
