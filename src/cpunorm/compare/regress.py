"""What became slower since a saved run, where the machine itself is faster and slower from minute to minute.

Of both runs there are, for each pass, the seconds of the fastest turn, those of a copy of the same bytes, and those of copies within L1,
all in the same rounds. What else runs on the machine makes passes slower, never faster, so a run is taken at the first quartile of its
passes. What a kernel takes is part memory, which the large copy shares, and part computing, which the copies within L1 share. So a kernel
that did not change takes something between

    before,    before * large copy now / then,    before * small copies now / then

and is called slower only where it takes more than all three, by more than `THRESHOLD` and by more than the noise: what the faster half of
the passes of either run differs by. Who looks slower is measured twice again, and is slower where all three say so. The least that would
be called slower is printed beside each row.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from cpunorm import check
from cpunorm.compare.results import Result

THRESHOLD = 1.10

Key = tuple[str, str, str, str, int]  # operation, shape, layout, contestant, threads


@dataclass(frozen=True)
class Sample:
    """Of each pass, the seconds of the fastest turn, of the limit, and of copies within L1 (none without the C part)."""

    minima: tuple[float, ...]
    limits: tuple[float, ...] = ()
    cores: tuple[float, ...] = ()


@dataclass(frozen=True)
class Change:
    """One row of both runs."""

    key: Key
    before: float  # seconds, of the first quartile of the passes
    after: float
    times: float  # what it takes now by what the machine accounts for: 1.2 is 20% slower
    noise: float  # what the median pass of either run takes beyond its fastest, added up
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
        change(row.key, before[row.key], Sample(row.timing.minima, row.limits, row.cores))
        for row in result.rows
        if row.contestant in check.BACKENDS and row.key in before
    ]


def change(key: Key, before: Sample, after: Sample) -> Change:
    """The rule above."""
    then, now = quartile(before.minima), quartile(after.minima)
    memory, core = (
        quartile(late) / quartile(early) if early and late else 1.0
        for early, late in ((before.limits, after.limits), (before.cores, after.cores))
    )
    noise = spread(before) + spread(after)
    sees = max(THRESHOLD, 1 + noise)
    most, least = now / then / max(1.0, memory, core), now / then / min(1.0, memory, core)
    times = most if most > 1 else least if least < 1 else 1.0
    return Change(key, then, now, times, noise, sees, slower=times > sees, faster=times < 1 / sees)


def quartile(seconds: Sequence[float]) -> float:
    """The first: a quarter of the passes is faster."""
    return statistics.quantiles(seconds, n=4, method="inclusive")[0] if len(seconds) > 1 else seconds[0]


def spread(sample: Sample) -> float:
    """What the median pass takes beyond the fastest, of the kernel."""
    return statistics.median(sample.minima) / min(sample.minima) - 1


def confirm(changes: list[Change], again: list[Change]) -> list[Change]:
    """Who looked slower and does not when measured once more is not."""
    second = {change.key: change for change in again}
    return [
        replace(change, slower=second[change.key].slower, times=min(change.times, second[change.key].times))
        if change.slower and change.key in second
        else change
        for change in changes
    ]
