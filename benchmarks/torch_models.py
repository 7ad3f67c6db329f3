"""Whole PyTorch models before and after `cpunorm.torch.convert`: inference and training steps. Results are compared first.

Three models take turns in each round, in an order drawn anew, with a pause before each (threads spin for a while after their work): the
model as it was, a deep copy of it, which shows what the measurement itself is worth, and the converted one. All three have memory of their
own, and compute on the same threads, from a heap that keeps its pages.

`after` is the median over the rounds of before / after within a round, `copy` that of before / copy, each with the interval that holds the
true median with 95% (order statistics; the binomial distribution, exactly). More than 1 is faster than before. A case is `slower` where
after's interval lies wholly below copy's, and `faster` where it lies wholly above; with fewer than 9 rounds it is neither. `--pool FILE`
keeps the rounds, and those of earlier calls count too: cases that take minutes are measured in pieces.

python benchmarks/torch_models.py [--threads 2] [--rounds 41] [--seconds 60] [--only REGEX] [--backend c] [--pool FILE] [--list]
"""

import argparse
import copy
import json
import math
import random
import re
import statistics
import sys
import time
from pathlib import Path

import torch

import cpunorm
import cpunorm.torch
from cpunorm.compare.heap import keep_pages

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))
from torch_models import MODELS, steps

SIZES = {"ResNet-50": [(224, 1), (224, 8)], "ViT-B": [(224, 1), (224, 4)], "SD UNet block": [(32, 1), (32, 2)]}
PAUSE = 0.005  # seconds
LEAST = 9  # rounds for a verdict: with these the interval leaves out the two outermost values


def cases():
    """(name, what `contestants` takes)"""
    for name, make in MODELS.items():
        for side, batch in SIZES[name]:
            for layout in ("channels_first", "channels_last") if name != "ViT-B" else ("channels_first",):
                for mode in ("inference", "training"):
                    if name == "SD UNet block" and (layout, mode) == ("channels_last", "training"):
                        continue  # PyTorch 2.13's own group norm ends the process in its backward pass
                    yield f"{name} {mode} {batch}x{side} {layout}", (make, side, batch, layout, mode)


def contestants(make, side, batch, layout, mode):
    """What is timed, by its name; what they give has been compared."""
    torch.manual_seed(0)
    model, inputs = make(side, batch)
    if layout == "channels_last":
        model = model.to(memory_format=torch.channels_last)
        inputs = tuple(x.to(memory_format=torch.channels_last) if x.dim() == 4 else x for x in inputs)
    model.train(mode == "training")
    models = {"before": model, "copy": copy.deepcopy(model), "after": cpunorm.torch.convert(copy.deepcopy(model), inplace=True)}
    runs = {name: training(one, inputs) if mode == "training" else inference(one, inputs) for name, one in models.items()}
    results = {name: run() for name, run in runs.items()}
    for name in ("copy", "after"):
        off = ((results[name] - results["before"]).norm() / results["before"].norm()).item()
        if not off < 1e-3:
            raise SystemExit(f"{name}: the result differs by {off}")
    return runs


def inference(model, inputs):
    @torch.inference_mode()
    def run():
        return model(*inputs)

    return run


def training(model, inputs):
    """Forward, backward, SGD with momentum, so slowly that the model stays what it is."""
    turn = steps(model, inputs, rate=1e-9)
    return lambda: next(turn)[1]


def measured(runs, rounds, seconds, order):
    """Seconds by name, one a round; fewer than `rounds` where they would take more than `seconds`."""
    times = {name: [] for name in runs}
    end = math.inf
    for turn in range(rounds + 1):
        for name in order.sample(list(runs), len(runs)):
            time.sleep(PAUSE)
            start = time.perf_counter()
            runs[name]()
            if turn > 0:  # the first warms up, as the one before whose results were compared
                times[name].append(time.perf_counter() - start)
        if turn == 0:
            end = time.perf_counter() + seconds
        elif time.perf_counter() > end:
            break
    return times


def interval(values, outside=0.05):
    """(low, median, high): as many values lie below low and above high as chance lets fall to one side of the true median."""
    n, below, beyond = len(values), 0, 0.0
    while (beyond := beyond + math.comb(n, below) / 2**n) <= outside / 2:
        below += 1
    below = max(below - 1, 0)
    ordered = sorted(values)
    return ordered[below], statistics.median(ordered), ordered[n - 1 - below]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=41)
    parser.add_argument("--seconds", type=float, default=60, help="most for one case")
    parser.add_argument("--only", default="")
    parser.add_argument("--backend", default=None)
    parser.add_argument("--pool", type=Path, help="JSON of rounds, which this call's are added to")
    parser.add_argument("--list", action="store_true", help="names of cases, and no more")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    cpunorm.set_num_threads(args.threads)
    cpunorm.set_backend(args.backend)
    keep_pages()
    order, verdicts = random.Random(), []
    pool = json.loads(args.pool.read_text()) if args.pool and args.pool.exists() else {}
    chosen = [(name, how) for name, how in cases() if re.search(args.only, name)]
    if args.list:
        print(*(name for name, _ in chosen), sep="\n")
        return
    print(f"{'median ms, ' + str(args.threads) + ' threads':<48}{'before':>8}{'after':>8}{'rounds':>8}   before / after      before / copy")
    for name, how in chosen:
        times = measured(contestants(*how), args.rounds, args.seconds, order)
        if args.pool:
            kept = pool.setdefault(f"{args.threads} threads, {args.backend}: {name}", {key: [] for key in times})
            times = {key: kept[key] + values for key, values in times.items()}
            kept.update(times)
            args.pool.write_text(json.dumps(pool))
        after, control = (interval([a / b for a, b in zip(times["before"], times[other], strict=True)]) for other in ("after", "copy"))
        enough = len(times["before"]) >= LEAST
        verdicts.append("" if not enough else "slower" if after[2] < control[0] else "faster" if after[0] > control[2] else "")
        before_ms, after_ms = (1e3 * statistics.median(times[key]) for key in ("before", "after"))
        found = "   ".join(f"{median:.3f} ({low:.3f}-{high:.3f})" for low, median, high in (after, control))
        print(f"{name:<48}{before_ms:8.1f}{after_ms:8.1f}{len(times['before']):8}   {found}  {verdicts[-1]}", flush=True)
    print(f"{len(verdicts)} cases: {verdicts.count('slower')} slower, {verdicts.count('faster')} faster")


if __name__ == "__main__":
    main()
