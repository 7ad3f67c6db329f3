"""Whole PyTorch models before and after `cpunorm.torch.convert`: inference and a training step, taking turns; results are compared first.

Both compute on the same threads, from a heap that keeps its pages. A ratio is the median over the rounds of before / after within a
round; `*`: slower than 0.98 of before.

python benchmarks/torch_models.py [--threads 2] [--rounds 7] [--only REGEX] [--backend c]
"""

import argparse
import copy
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
from torch_models import MODELS, train

SIZES = {"ResNet-50": [(224, 1), (224, 8)], "ViT-B": [(224, 1), (224, 4)], "SD UNet block": [(32, 1), (32, 2)]}
BAR = 0.98


def timed(run) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def cases():
    for name, make in MODELS.items():
        for side, batch in SIZES[name]:
            for layout in ("channels_first", "channels_last") if name != "ViT-B" else ("channels_first",):
                for mode in ("inference", "training"):
                    if name == "SD UNet block" and (layout, mode) == ("channels_last", "training"):
                        continue  # PyTorch 2.13's own group norm ends the process in its backward pass
                    yield f"{name} {mode} {batch}x{side} {layout}", make, side, batch, layout, mode


def prepared(make, side, batch, layout, mode):
    """(before, after): what is timed."""
    torch.manual_seed(0)
    model, inputs = make(side, batch)
    if layout == "channels_last":
        model = model.to(memory_format=torch.channels_last)
        inputs = tuple(x.to(memory_format=torch.channels_last) if x.dim() == 4 else x for x in inputs)
    models = [model.train(mode == "training"), cpunorm.torch.convert(copy.deepcopy(model) if mode == "training" else model)]
    if mode == "training":
        results = [train(one, inputs, 1)[1] for one in models]
        runs = [lambda one=one: train(one, inputs, 1) for one in models]
    else:

        def infer(one):
            with torch.inference_mode():
                return one(*inputs)

        results = [infer(one) for one in models]
        runs = [lambda one=one: infer(one) for one in models]
    off = ((results[0] - results[1]).norm() / results[0].norm()).item()
    if not off < 1e-3:
        raise SystemExit(f"results differ by {off}")
    return runs


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--only", default="")
    parser.add_argument("--backend", default=None)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    cpunorm.set_num_threads(args.threads)
    cpunorm.set_backend(args.backend)
    keep_pages()
    slower = 0
    print(f"{'ms':<52}{'before':>9}{'after':>9}{'ratio':>8}   spread")
    for name, *rest in cases():
        if not re.search(args.only, name):
            continue
        before, after = prepared(*rest)
        rounds = []
        for turn in range(args.rounds + 1):  # the first one warms up
            order = (before, after) if turn % 2 else (after, before)
            times = {run: timed(run) for run in order}
            rounds.append((times[before], times[after]))
        rounds = rounds[1:]
        ratios = sorted(a / b for a, b in rounds)
        ratio = statistics.median(ratios)
        slower += ratio < BAR
        best = [min(column) for column in zip(*rounds, strict=True)]
        mark = "*" if ratio < BAR else " "
        print(f"{name:<52}{1e3 * best[0]:9.1f}{1e3 * best[1]:9.1f}{ratio:7.2f}{mark}   {ratios[0]:.2f} to {ratios[-1]:.2f}", flush=True)
    print(f"{slower} cases slower")


if __name__ == "__main__":
    main()
