"""What became slower since a saved run, where the machine itself is faster and slower from minute to minute.

Of both runs there are, for each pass, the seconds of the fastest turn and the limit of the same rounds: a copy of the same bytes. What a
kernel takes is part memory, which the copy shares, and part computing, which it does not. So a kernel that did not change takes

    between  before  and  before * copy now / copy before

and is called slower only where it takes more than both, by more than `THRESHOLD`, in the median pass; and where its fastest pass is beyond
the slowest one of the saved run. The chance of the latter alone, for equal kernels, is 1 in 252 with five passes each; whoever looks slower
is then measured again, and is slower where both say so. What the saved run's own passes do not tell from it, `sees`, is printed: a slowdown
below it goes unseen.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from dataclasses import dataclass, replace

from cpunorm import check
from cpunorm.compare.results import Result

THRESHOLD = 1.10

Key = tuple[str, str, str, str, int]  # operation, shape, layout, contestant, threads


@dataclass(frozen=True)
class Sample:
    """Of each pass, the seconds of the fastest turn and those of the limit (none without the C part)."""

    minima: tuple[float, ...]
    limits: tuple[float, ...]


@dataclass(frozen=True)
class Change:
    """One row of both runs."""

    key: Key
    before: float  # seconds, of the median pass
    after: float
    times: float  # what it takes now by what the machine accounts for: 1.2 is 20% slower
    noise: float  # half the range of the passes of both runs
    sees: float  # the least `times` that would be called slower
    slower: bool
    faster: bool

    @property
    def text(self) -> str:
        """A line that names it."""
        operation, shape, layout, contestant, threads = self.key
        who = f"{operation}, {shape}, {layout}, {contestant}, {threads} thread{'s' * (threads > 1)}"
        return f"slower: {who}: {self.times:.2f} times what it took, {1e3 * self.before:.3g} -> {1e3 * self.after:.3g} ms"


def compare(before: Mapping[Key, Sample], result: Result) -> list[Change]:
    """Of our rows that both runs have."""
    return [
        change(row.key, before[row.key], Sample(row.timing.minima, row.limits))
        for row in result.rows
        if row.contestant in check.BACKENDS and row.key in before
    ]


def change(key: Key, before: Sample, after: Sample) -> Change:
    """The rule above."""
    most = [excess(before, sample, worst=True) for sample in (before, after)]
    least = [excess(before, sample, worst=False) for sample in (before, after)]
    times, gain = (statistics.median(values[1]) for values in (most, least))
    sees = max(THRESHOLD, *most[0])
    slower = times > THRESHOLD and min(most[1]) > max(most[0])
    faster = gain < 1 / THRESHOLD and max(least[1]) < min(least[0])
    noise = max((max(values) - min(values)) / 2 for values in most)
    shown = gain if faster else times if times > 1 else min(1.0, gain) if gain < 1 else 1.0
    return Change(key, statistics.median(before.minima), statistics.median(after.minima), shown, noise, sees, slower, faster)


def excess(before: Sample, sample: Sample, *, worst: bool) -> list[float]:
    """Of each pass: seconds by what they were before, or by what the memory's rate of this pass makes of that; whichever is more (less)."""
    usual = statistics.median(before.minima)
    if not before.limits or not sample.limits:
        return [seconds / usual for seconds in sample.minima]
    copy = statistics.median(before.limits)
    choose = max if worst else min
    return [seconds / (usual * choose(1.0, limit / copy)) for seconds, limit in zip(sample.minima, sample.limits, strict=True)]


def confirm(changes: list[Change], again: list[Change]) -> list[Change]:
    """Who looked slower and does not when measured once more is not."""
    second = {change.key: change for change in again}
    return [
        replace(change, slower=second[change.key].slower, times=min(change.times, second[change.key].times))
        if change.slower and change.key in second
        else change
        for change in changes
    ]
