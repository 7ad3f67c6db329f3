"""Ratios to PyTorch in saved runs of the benchmarks: which are not to be trusted, and whether two runs agree.

python -m pytest benchmarks -m quick --benchmark-json=a.json
python benchmarks/agree.py a.json               the ratios of one run, a ? behind those that it does not trust
python benchmarks/agree.py a.json b.json        of two, and exit 1 where a ratio that both trust differs by more than 15%

The benchmarks of a group come one after another, seconds apart, so a ratio is only as good as the machine was steady meanwhile. A run
trusts a ratio if, of either contestant, half of the rounds were no slower than the fastest one by more than `STEADY`, and if the limit (a
copy of the same bytes, between the rounds) was the same beside both, to as much.
"""

import json
import statistics
import sys
from pathlib import Path

PEER, OURS = "PyTorch", ("numba", "c")
STEADY, AGREE = 1.10, 1.15


def steady(benchmark):
    """Whether its rounds are."""
    return statistics.median(benchmark["stats"]["data"]) <= STEADY * benchmark["stats"]["min"]


def alike(*benchmarks):
    """Whether the limit beside them is; where there is no C part, nobody knows."""
    limits = [statistics.median(benchmark["extra_info"].get("limit_rounds") or [0]) for benchmark in benchmarks]
    return 0 < max(limits) <= STEADY * min(limits)


def ratios(benchmarks):
    """{(group, who): (times as fast as PyTorch, whether to trust that)}"""
    found = {}
    groups = {}
    for benchmark in benchmarks:
        groups.setdefault(benchmark["group"], {})[benchmark["extra_info"].get("contestant")] = benchmark
    for group, of in groups.items():
        for who in OURS:
            if PEER in of and who in of:
                mine, theirs = of[who], of[PEER]
                trusted = steady(mine) and steady(theirs) and alike(mine, theirs)
                found[group, who] = theirs["stats"]["min"] / mine["stats"]["min"], trusted
    return found


def report(runs):
    """Lines, and how many ratios differ although all runs trust them."""
    shared = [key for key in runs[0] if all(key in run for run in runs)]
    lines, differ, wrong = [], 0, 0
    for key in shared:
        values = [run[key][0] for run in runs]
        apart, trusted = max(values) / min(values) > AGREE, all(run[key][1] for run in runs)
        differ += apart
        wrong += apart and trusted
        texts = "  ".join(f"{value:6.2f}{' ' if of_run else '?'}" for value, of_run in (run[key] for run in runs))
        lines.append(f"{texts}  {key[1]:<6}{key[0]}{'   differ' if apart else ''}{', UNMARKED' if apart and trusted else ''}")
    marked = sum(not all(run[key][1] for run in runs) for key in shared)
    lines.append(f"{len(shared)} ratios to PyTorch, {marked} of them not trusted (?)")
    if len(runs) > 1:
        lines.append(f"{differ} differ by more than {100 * (AGREE - 1):.0f}%, of these {wrong} without a mark")
    return lines, wrong


def main(files):
    lines, wrong = report([ratios(json.loads(Path(file).read_text())["benchmarks"]) for file in files])
    print(*lines, sep="\n")
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]) if sys.argv[1:] else __doc__)
