"""``cpunorm compare``: its options, what they ask for, and what is written."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cpunorm import check, settings
from cpunorm.cli.common import DONE, INCOMPLETE, RefusedError, available, need, progress, words, writable
from cpunorm.layout import parse_layout

if TYPE_CHECKING:
    from cpunorm.compare.measure import Request
    from cpunorm.compare.regress import Change
    from cpunorm.compare.save import Saved

DEFAULT = ("batch_norm inference", "batch_norm training", "preprocess")  # operations to compare
LAYOUTS = ("NCHW", "NHWC")


def add(commands: Any) -> None:
    """The command."""
    text = "time the operations on this machine: layouts, backends, threads, beside other libraries (if installed) and a copy"
    compare = commands.add_parser("compare", help=text, description=f"{text[0].upper()}{text[1:]}. Every result is checked first.")
    compare.set_defaults(run=_compare)
    compare.add_argument("--quick", action="store_true", help="three shapes, 1 and all threads, few rounds: under a minute")
    compare.add_argument(
        "--op",
        metavar="NAME",
        help="operations whose name contains NAME (default: batch_norm, inference and training, and of pictures preprocess)",
    )
    compare.add_argument(
        "--shape",
        metavar="N,C,H,W|NAME",
        action="append",
        help="this shape (for rows, 4096,768), or named ones that contain NAME (ResNet, ViT, camera ...); may be repeated",
    )
    compare.add_argument("--layouts", metavar="A,B", type=words, help="default: NCHW,NHWC")
    compare.add_argument("--backends", metavar="A,B", type=words, help=f"of {', '.join(check.BACKENDS)}; default: numba,c")
    compare.add_argument("--threads", metavar="1,2", type=words, help="default: 1, 2, 4 and so on up to all")
    compare.add_argument("--dtype", choices=check.FLOATS, help="default: float32")
    compare.add_argument(
        "--peers",
        metavar="A,B",
        type=words,
        help="of numpy, torch, torch_out, onnxruntime, opencv, albucore, sklearn, or none; default: all here",
    )
    compare.add_argument(
        "--pictures", metavar="DIR", type=Path, help="your pictures for the shapes of 3 channels (default: the one that matplotlib brings)"
    )
    compare.add_argument(
        "--save", "--json", metavar="FILE", type=Path, help="everything measured, as JSON; default: compare.json, none beside --against"
    )
    compare.add_argument(
        "--against",
        metavar="FILE",
        type=Path,
        help="measure what this saved run measured, and say what became slower; exit code 1 where something did",
    )
    compare.add_argument("--picture", metavar="FILE", type=Path, default=Path("compare.png"), help="default: compare.png")
    compare.add_argument(
        "--html", metavar="FILE", type=Path, help="a page with all tables and pictures; measures the caches, which takes some seconds more"
    )
    compare.add_argument(
        "--markdown", action="store_true", help="print a GitHub table, a line for each operation, shape, layout and threads"
    )


def _compare(arguments: argparse.Namespace) -> int:
    need("rich", "PIL", "matplotlib")
    target = arguments.save or (None if arguments.against else Path("compare.json"))
    for file in (target, arguments.picture, arguments.html):
        if file is not None:
            writable(file)
    from cpunorm.compare import figure, levels, measure, page, save, show

    saved = _saved(arguments)
    request, problems = _request(arguments, saved)
    with progress("compare", measure.case_count(request)) as advance:
        result = measure.run(request, advance)
    problems += result.problems
    written = [] if target is None else [target]
    if target is not None:
        save.write(target, request, result, problems)
    if result.rows:
        changes = [] if saved is None else _changes(saved, request, result)
        problems += [change.text for change in changes if change.slower]
        figure.draw(arguments.picture, request, result)
        written.append(arguments.picture)
        if arguments.html is not None:
            with progress("page", levels.count(request)) as advance:
                found, crossing = levels.of_machine(request, advance)
            problems += [*crossing.problems, *filter(None, [levels.busy(found)])]
            arguments.html.write_text(page.page(request, result, changes, problems, found, crossing))
            written.append(arguments.html)
        if arguments.markdown:
            print(show.markdown(request, result))
        else:
            show.print_table(request, result)
        if changes:
            show.print_changes(changes)
    else:
        problems.append("nothing was measured, there is no picture")
    for problem in problems:
        print(f"cpunorm compare: {problem}", file=sys.stderr)
    if written:
        print(f"written: {', '.join(map(str, written))}", file=sys.stderr)
    return INCOMPLETE if problems else DONE


def _saved(arguments: argparse.Namespace) -> Saved | None:
    """The run to compare with; its request fills in what is not asked for."""
    if arguments.against is None:
        return None
    from cpunorm.compare import save

    try:
        saved = save.read(arguments.against)
    except (OSError, ValueError) as problem:
        raise RefusedError(f"{arguments.against} is no saved run: {problem}") from problem
    asked = saved.request
    for option in ("layouts", "backends", "threads", "dtype"):
        if getattr(arguments, option) is None:
            setattr(arguments, option, asked[option])
    arguments.quick = arguments.quick or asked["quick"]
    if arguments.dtype != asked["dtype"]:
        raise RefusedError(f"{arguments.against} measured {asked['dtype']}, not {arguments.dtype}")
    return saved


def _changes(saved: Saved, request: Request, result: Any) -> list[Change]:
    """Row by row; who looks slower is measured again, and again."""
    from cpunorm.compare import measure, regress

    changes = regress.compare(saved.samples, result)
    for _ in range(2):
        suspects = {change.key for change in changes if change.slower}
        if not suspects:
            break
        only = {((row.shape_name, row.operation, row.layout), row.case_threads) for row in result.rows if row.key in suspects}
        with progress("once more", len(only) * request.passes) as advance:
            again = measure.run(request, advance, only)
        changes = regress.confirm(changes, regress.compare(saved.samples, again))
    return changes


def _request(arguments: argparse.Namespace, saved: Saved | None) -> tuple[Request, list[str]]:
    """What to measure, and what of it cannot be."""
    from cpunorm.compare import measure, pictures

    problems = []
    layouts = tuple(arguments.layouts or LAYOUTS)
    for layout in layouts:
        if parse_layout(layout, 4) is None or len(layout) != 4:
            raise RefusedError(f"expected --layouts of four letters, N and C among them and none twice, got {layout!r}")
    wanted = tuple(arguments.backends or ("numba", "c"))
    for backend in wanted:
        if backend not in check.BACKENDS:
            raise RefusedError(f"expected --backends of {', '.join(check.BACKENDS)}, got {backend!r}")
    reasons = {backend: available(backend) for backend in wanted}
    missing = {backend: reason for backend, reason in reasons.items() if reason}
    if missing and arguments.backends:
        raise RefusedError("; ".join(missing.values()))
    problems += [f"skipped: backend {backend}: {reason}" for backend, reason in missing.items()]
    limit_problem = available("c")
    if limit_problem and "c" not in missing:
        problems.append(f"skipped: the copy limit, which the C part measures: {limit_problem}")
    try:
        photographs = pictures.load(arguments.pictures)
    except (ValueError, OSError) as problem:
        raise RefusedError(str(problem)) from problem
    asked = DEFAULT if saved is None else saved.request["operations"]
    shapes = _shapes(arguments.shape, arguments.quick)
    if saved is not None and arguments.shape is None:
        shapes = {name: tuple(shape) for name, shape in saved.request["shapes"].items()}
    request = measure.Request(
        operations=tuple(asked) if arguments.op is None else _named(arguments.op, measure.operations(), "--op"),
        shapes=shapes,
        layouts=layouts,
        backends=tuple(backend for backend in wanted if backend not in missing),
        threads=_threads(arguments.threads, arguments.quick),
        dtype=arguments.dtype or "float32",
        peers=_peers(arguments.peers),
        pictures=photographs,
        has_limit=not limit_problem,
        quick=arguments.quick,
        **(measure.QUICK if arguments.quick else measure.FULL),
    )
    if not measure.cases(request):
        raise RefusedError(
            "none of the operations takes one of the shapes: preprocess is compared on N,C,H,W of 3 channels, in layouts NCHW and NHWC, in "
            "float32; shapes that are not N,C,H,W are for layer_norm, rms_norm and normalize"
        )
    return request, problems


def _named(text: str, known: Iterable[str], option: str) -> tuple[str, ...]:
    """The known names that contain `text`."""
    found = tuple(name for name in known if text.lower() in name.lower())
    if not found:
        raise RefusedError(f"expected {option} to be part of one of: {'; '.join(known)}; got {text!r}")
    return found


def _shapes(asked: list[str] | None, quick: bool) -> dict[str, tuple[int, ...]]:
    from cpunorm.compare import shapes

    if asked is None:
        return {name: shapes.DEFAULT[name] for name in shapes.QUICK} if quick else shapes.DEFAULT
    found: dict[str, tuple[int, ...]] = {}
    for text in asked:
        if re.fullmatch(r"[\d, ]+", text):
            shape = tuple(int(number) for number in text.split(",") if number.strip())
            if len(shape) not in (2, 3, 4) or 0 in shape or (len(shape) == 4 and shape[0] * shape[2] * shape[3] < 2):
                raise RefusedError(f"expected --shape of positive numbers N,C,H,W, with more than one value a channel, got {text!r}")
            found["x".join(map(str, shape))] = shape
        else:
            found |= {name: shapes.NAMED[name] for name in _named(text, shapes.NAMED, "--shape")}
    return found


def _threads(asked: tuple[Any, ...] | None, quick: bool) -> tuple[int, ...]:
    most = settings.default_threads()
    if asked is None:
        powers = [1 << power for power in range(most.bit_length()) if 1 << power < most]
        return tuple(dict.fromkeys([1, most] if quick else [*powers, most]))
    for text in map(str, asked):
        if not text.isdigit() or not 1 <= int(text) <= most:
            raise RefusedError(f"expected --threads from 1 to {most}, got {text!r}")
    return tuple(sorted({int(text) for text in asked}))


def _peers(asked: tuple[str, ...] | None) -> tuple[str, ...]:
    from cpunorm.compare import peers

    here = peers.installed()
    if asked is None:
        return here
    for name in asked:
        if name != "none" and name not in peers.LIBRARIES:
            raise RefusedError(f"expected --peers of {', '.join(peers.LIBRARIES)}, or none, got {name!r}")
        if name != "none" and name not in here:
            raise RefusedError(f"--peers {name} is not installed: pip install {peers.LIBRARIES[name].package}")
    return tuple(name for name in asked if name != "none")
