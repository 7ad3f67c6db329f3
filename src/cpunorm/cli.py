"""The command line: ``cpunorm compare``, ``preprocess``, ``stats``, ``doctor``, ``warmup``.

Exit codes: 0, done; 1, done, but something was skipped or failed its check, and is named; 2, refused, with one line that says why.

Nothing heavy is imported before it is needed: ``doctor`` has to work where half of the rest is broken.
"""

from __future__ import annotations

import argparse
import importlib
import os
import re
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from cpunorm import backends, check, machine, report, settings
from cpunorm.layout import parse_layout

if TYPE_CHECKING:
    from cpunorm.compare.measure import Request
    from cpunorm.preprocessing import Preprocessor

EXTRA = "pip install 'cpunorm[cli]'"
DONE, INCOMPLETE, REFUSED = 0, 1, 2
READ = (
    "Pictures are read as RGB, turned by their EXIF orientation: grey and palette ones are converted, alpha is dropped, of an animation "
    "the first picture counts. 16-bit grey keeps its 16 bits (65535 is white). What cannot be read is named and left out, and the exit "
    "code is 1."
)
DEFAULT = ("batch_norm inference", "batch_norm training", "preprocess")  # operations to compare


class RefusedError(Exception):
    """What was asked for cannot be done; the message is one line."""


class _Parser(argparse.ArgumentParser):
    """Refuses with one line, without the usage."""

    def error(self, message: str) -> NoReturn:
        self.exit(REFUSED, f"{self.prog}: {message} (see {self.prog} --help)\n")


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    arguments = _parser().parse_args(argv)
    try:
        _environment()
        return int(arguments.run(arguments))
    except RefusedError as problem:
        print(f"cpunorm {arguments.command}: {' '.join(str(problem).split())}", file=sys.stderr)
        return REFUSED


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="cpunorm", description="Normalization on the CPU.")
    parser.add_argument("--version", action="version", version=metadata.version("cpunorm"))
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    text = "time the operations on this machine: layouts, backends, threads, beside NumPy, PyTorch (if installed) and a copy"
    compare = commands.add_parser("compare", help=text, description=f"{text[0].upper()}{text[1:]}. Every result is checked first.")
    compare.set_defaults(run=_compare)
    compare.add_argument("--quick", action="store_true", help="three shapes, 1 and all threads, few rounds: under half a minute")
    compare.add_argument(
        "--op",
        metavar="NAME",
        help="operations whose name contains NAME (default: batch_norm, inference and training, and of pictures preprocess)",
    )
    compare.add_argument(
        "--shape", metavar="N,C,H,W|NAME", action="append", help="this shape, or named ones that contain NAME; may be repeated"
    )
    compare.add_argument("--layouts", metavar="A,B", type=_words, default=("NCHW", "NHWC"), help="default: NCHW,NHWC")
    compare.add_argument("--backends", metavar="A,B", type=_words, help=f"of {', '.join(check.BACKENDS)}; default: numba,c")
    compare.add_argument("--threads", metavar="1,2", type=_words, help="default: 1, 2, 4 and so on up to all")
    compare.add_argument("--dtype", choices=check.FLOATS, default="float32")
    compare.add_argument(
        "--pictures", metavar="DIR", type=Path, help="your pictures for the shapes of 3 channels (default: the one that matplotlib brings)"
    )
    compare.add_argument("--json", metavar="FILE", type=Path, default=Path("compare.json"), help="default: compare.json")
    compare.add_argument("--picture", metavar="FILE", type=Path, default=Path("compare.png"), help="default: compare.png")
    compare.add_argument(
        "--markdown", action="store_true", help="print a GitHub table, a line for each operation, shape, layout and threads"
    )

    text = "pictures, decoded, resized, cropped and normalized, to one array in a .npy file"
    preprocess = commands.add_parser(
        "preprocess",
        help=text,
        description=f"{text[0].upper()}{text[1:]}, which may exceed memory: y = (pixel / white - mean) / std, a value a channel. {READ}",
        epilog="The order of the rows is that of the arguments, of a folder that of its names; an unreadable picture leaves no row.",
    )
    preprocess.set_defaults(run=_preprocess)
    preprocess.add_argument("pictures", metavar="PICTURES", type=Path, nargs="+", help="files, and folders with what is below them")
    preprocess.add_argument("-o", "--output", metavar="FILE", type=Path, required=True, help="the .npy file")
    preprocess.add_argument("--size", metavar="H,W|short:N", help="resize, bilinear with antialias; short:N makes the shorter side N")
    preprocess.add_argument("--crop", metavar="center:H,W|TOP,LEFT,H,W", help="cut this out after the resize")
    preprocess.add_argument(
        "--mean",
        metavar="R,G,B|NAME",
        default="imagenet",
        help="numbers, or a name: clip, inception, cifar10; default: imagenet",
    )
    preprocess.add_argument("--std", metavar="R,G,B|NAME", help="numbers or a name; default: of the name that --mean has")
    preprocess.add_argument("--layout", choices=("NCHW", "NHWC"), default="NCHW", help="default: NCHW")
    preprocess.add_argument("--dtype", choices=("float32", "float16", "int8", "uint8"), default="float32", help="default: float32")
    preprocess.add_argument("--quant", metavar="SCALE,ZERO", help="for int8 and uint8: clip(rint(y / SCALE) + ZERO), as in ONNX")
    preprocess.add_argument("--names", metavar="FILE", type=Path, help="write the picture of each row here, a line each")

    text = "mean and std a channel over all pictures of a folder and below, ready to paste"
    stats = commands.add_parser("stats", help=text, description=f"{text[0].upper()}{text[1:]}; every pixel counts once. {READ}")
    stats.set_defaults(run=_stats)
    stats.add_argument("folder", metavar="FOLDER", type=Path)
    stats.add_argument(
        "--state", metavar="FILE", type=Path, help="save what is done here every few seconds; an interrupted run goes on from it"
    )

    doctor = commands.add_parser("doctor", help="what is installed, what would run, and how to repair the rest")
    doctor.set_defaults(run=_doctor)
    warmup = commands.add_parser("warmup", help="compile every kernel once, so that no later call waits for it")
    warmup.set_defaults(run=_warmup)
    return parser


def _words(text: str) -> tuple[str, ...]:
    return tuple(dict.fromkeys(word.strip() for word in text.split(",") if word.strip()))


def _environment() -> None:
    """Refuse what the environment asks for wrongly, before a command finds out in its middle."""
    try:
        settings.resolve_backend(None)
        settings.default_threads()
        _available("c")
    except (ValueError, TypeError) as problem:
        raise RefusedError(str(problem)) from problem


def _available(backend: str) -> str | None:
    """None, or why a backend cannot be loaded."""
    try:
        backends.load(backend)
    except ImportError as problem:
        return str(problem)
    return None


def _need(*modules: str) -> None:
    """Refuse without these modules of the `cli` extra."""
    for module in modules:
        try:
            importlib.import_module(module)
        except ImportError as problem:
            raise RefusedError(f"{module} cannot be imported ({problem}); {EXTRA}") from problem


# ---------------------------------------------------------------- doctor


def _doctor(_: argparse.Namespace) -> int:
    for name, value in report.facts():
        print(f"{name:<16} {value}")
    for extra, packages in _extras().items():
        versions = {package: report._version(package) for package in packages}
        print(f"{extra:<16} {', '.join(f'{package} {version}' for package, version in versions.items())}")
    missing = [name for name in ("numba", "c") if _available(name)]
    if missing:
        print(f"not available here: {', '.join(missing)}; the line above says what mends it", file=sys.stderr)
    return INCOMPLETE if missing else DONE


def _extras() -> dict[str, list[str]]:
    """The packages of the extras for users, as the installed package names them; PyTorch, which no extra has, is a peer."""
    found: dict[str, list[str]] = {"extra cli": [], "peers": ["torch"]}
    for line in metadata.requires("cpunorm") or []:
        package, extra = re.match(r"[\w.-]+", line), re.search(r"extra == ['\"](\w+)", line)
        if package and extra and package[0] != "cpunorm":
            for name in found:
                if name.endswith(extra[1]):
                    found[name].append(package[0])
    return found


# ---------------------------------------------------------------- warmup


def _warmup(_: argparse.Namespace) -> int:
    _need("rich")
    if problem := _available("numba"):
        raise RefusedError(problem)
    from cpunorm import warmup
    from cpunorm.jit import cache

    start = time.perf_counter()
    with _progress("warmup", len(warmup.jobs())) as advance:
        warmup.warmup(advance)
    seconds = time.perf_counter() - start
    print(f"{seconds:.1f} s: {cache.misses} kernels and drivers compiled, {cache.hits} read from the cache")
    problems = list(cache.problems)
    if machine.cache_folder() is None:
        problems += [f"nothing is kept; {line}" for line in report.cache_lines()]
    for problem in problems:
        print(f"cache: {problem}", file=sys.stderr)
    return INCOMPLETE if problems else DONE


@contextmanager
def _progress(name: str, total: int, *, fast: bool = False) -> Iterator[Callable[[str], None]]:
    """A function to call with what comes next: a bar on a terminal, else a line each. `fast`: ten times a second, else every 5 seconds.

    The bar is drawn then and not by a thread of its own, which would take its share of the machine from what is timed.
    """
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    console = Console(stderr=True)
    columns = (TextColumn(name), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TextColumn("{task.description}"))
    done = -1
    pause = (0.1 if console.is_terminal else 5.0) if fast else 0.0
    shown = -pause
    with Progress(*columns, console=console, auto_refresh=False, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("", total=total)

        def advance(label: str) -> None:
            nonlocal done, shown
            done += 1
            now = time.monotonic()
            if now - shown < pause:
                return
            shown = now
            bar.update(task, description=label, completed=done, refresh=True)
            if not console.is_terminal:
                print(f"{name} {done + 1}/{total}: {label}", file=sys.stderr, flush=True)

        yield advance


# ---------------------------------------------------------------- pictures


def _stats(arguments: argparse.Namespace) -> int:
    _need("rich", "PIL")
    from cpunorm import dataset

    folder, state = arguments.folder, arguments.state
    if not folder.is_dir():
        raise RefusedError(f"{folder} is not a folder")
    if state is not None:
        _writable(state)
    files = _files([folder])
    try:
        result = dataset.Result(dataset.State() if state is None else dataset.State.read(state))
        with _progress("stats", len(files) - len(result.state.files), fast=True) as advance:
            dataset.count(folder, files, state, result, advance)
    except KeyboardInterrupt:
        _say("stats", result.unreadable)
        kept = f"go on by --state {state}" if state else "nothing is kept without --state"
        _say("stats", [f"interrupted after {len(result.state.files)} of {len(files)} pictures; {kept}"])
        return INCOMPLETE
    except (ValueError, OSError) as problem:
        raise RefusedError(str(problem)) from problem
    _say("stats", result.unreadable)
    if not result.state.files:
        raise RefusedError(f"none of {len(files)} pictures in {folder} can be read")
    print(dataset.paste(result))
    return INCOMPLETE if result.unreadable else DONE


def _preprocess(arguments: argparse.Namespace) -> int:
    _need("rich", "PIL")
    from cpunorm import batches

    for file in (arguments.output, arguments.names):
        if file is not None:
            _writable(file)
    plan = _plan(arguments)
    files = _files(arguments.pictures)
    try:
        with _progress("preprocess", len(files), fast=True) as advance:
            result = batches.write(files, arguments.output, plan, advance)
        if arguments.names:
            arguments.names.write_text("".join(f"{file}\n" for file in result.rows))
    except (ValueError, OSError) as problem:
        raise RefusedError(str(problem)) from problem
    except KeyboardInterrupt:
        raise RefusedError(f"interrupted; {arguments.output} is as it was") from None
    _say("preprocess", result.unreadable)
    print(f"written: {arguments.output}, {result.dtype} of shape {result.shape}", file=sys.stderr)
    return INCOMPLETE if result.unreadable else DONE


def _plan(arguments: argparse.Namespace) -> Preprocessor:
    """From the options of ``preprocess``."""
    from cpunorm.preprocessing import Preprocessor

    size = None if arguments.size is None else _integers("--size", arguments.size, {"short": 1, "": 2})
    crop = None if arguments.crop is None else _integers("--crop", arguments.crop, {"center": 2, "": 4})
    mean, std = _coefficients("mean", arguments.mean), arguments.std
    if std is None:
        if arguments.mean.upper() not in _named_constants():
            raise RefusedError("expected --std beside --mean of numbers")
        std = arguments.mean
    quant = None
    if arguments.quant is not None:
        scale, *zero = _numbers("--quant", arguments.quant)
        if len(zero) != 1 or zero[0] != int(zero[0]):
            raise RefusedError(f"expected --quant of a scale and a whole zero point, got {arguments.quant!r}")
        quant = (scale, int(zero[0]))
    try:
        return Preprocessor(
            mean,
            _coefficients("std", std),
            size=size,
            crop=crop,
            output_layout=arguments.layout,
            dtype=arguments.dtype,
            quant=quant,
            threads=1,
        )
    except (ValueError, TypeError) as problem:
        raise RefusedError(str(problem)) from problem


def _named_constants() -> list[str]:
    """Names of `cpunorm.constants` for three channels."""
    from cpunorm import constants

    return [name.removesuffix("_MEAN") for name, value in vars(constants).items() if name.endswith("_MEAN") and len(value) == 3]


def _coefficients(end: str, text: str) -> tuple[float, ...]:
    from cpunorm import constants

    if text.upper() in _named_constants():
        return getattr(constants, f"{text.upper()}_{end.upper()}")  # type: ignore[no-any-return]
    try:
        return _numbers(f"--{end}", text)
    except RefusedError as problem:
        raise RefusedError(f"{problem}, and no name of {', '.join(_named_constants()).lower()}") from problem


def _numbers(option: str, text: str) -> tuple[float, ...]:
    try:
        return tuple(float(word) for word in text.split(","))
    except ValueError as problem:
        raise RefusedError(f"expected {option} of numbers with commas between them, got {text!r}") from problem


def _integers(option: str, text: str, forms: dict[str, int]) -> tuple[Any, ...]:
    """(word, 1, 2) of ``word:1,2``, (1, 2) of ``1,2``; `forms` says how many numbers follow a word."""
    word, _, rest = text.rpartition(":")
    numbers = rest.split(",")
    if forms.get(word) != len(numbers) or not all(number.strip().isdigit() for number in numbers):
        wanted = " or ".join(f"{form}{':' if form else ''}{','.join(['N'] * count)}" for form, count in forms.items())
        raise RefusedError(f"expected {option} {wanted} of whole numbers, got {text!r}")
    return (*([word] if word else []), *map(int, numbers))


def _files(paths: list[Path]) -> list[Path]:
    from cpunorm import loader

    try:
        files = loader.find(paths)
    except ValueError as problem:
        raise RefusedError(str(problem)) from problem
    if not files:
        raise RefusedError(f"there is no picture in {', '.join(map(str, paths))}")
    return files


def _writable(file: Path) -> None:
    if file.is_dir() or not os.access(file if file.exists() else file.parent, os.W_OK):
        raise RefusedError(f"{file} cannot be written")


def _say(command: str, lines: list[str]) -> None:
    for line in lines:
        print(f"cpunorm {command}: {' '.join(line.split())}", file=sys.stderr)


# ---------------------------------------------------------------- compare


def _compare(arguments: argparse.Namespace) -> int:
    _need("rich", "PIL", "matplotlib")
    for file in (arguments.json, arguments.picture):
        _writable(file)
    from cpunorm.compare import figure, measure, show

    request, problems = _request(arguments)
    with _progress("compare", measure.case_count(request)) as advance:
        result = measure.run(request, advance)
    problems += result.problems
    show.write_json(arguments.json, request, result, problems)
    if result.rows:
        figure.draw(arguments.picture, request, result)
        if arguments.markdown:
            print(show.markdown(request, result))
        else:
            show.print_table(request, result)
    else:
        problems.append("nothing was measured, there is no picture")
    for problem in problems:
        print(f"cpunorm compare: {problem}", file=sys.stderr)
    print(f"written: {arguments.json}{f', {arguments.picture}' if result.rows else ''}", file=sys.stderr)
    return INCOMPLETE if problems else DONE


def _request(arguments: argparse.Namespace) -> tuple[Request, list[str]]:
    """What to measure, and what of it cannot be."""
    from cpunorm.compare import measure, pictures

    problems = []
    for layout in arguments.layouts:
        if parse_layout(layout, 4) is None or len(layout) != 4:
            raise RefusedError(f"expected --layouts of four letters, N and C among them and none twice, got {layout!r}")
    wanted = arguments.backends or ("numba", "c")
    for backend in wanted:
        if backend not in check.BACKENDS:
            raise RefusedError(f"expected --backends of {', '.join(check.BACKENDS)}, got {backend!r}")
    reasons = {backend: _available(backend) for backend in wanted}
    missing = {backend: reason for backend, reason in reasons.items() if reason}
    if missing and arguments.backends:
        raise RefusedError("; ".join(missing.values()))
    problems += [f"skipped: backend {backend}: {reason}" for backend, reason in missing.items()]
    limit_problem = _available("c")
    if limit_problem and "c" not in missing:
        problems.append(f"skipped: the copy limit, which the C part measures: {limit_problem}")
    try:
        photographs = pictures.load(arguments.pictures)
    except (ValueError, OSError) as problem:
        raise RefusedError(str(problem)) from problem
    request = measure.Request(
        operations=DEFAULT if arguments.op is None else _named(arguments.op, measure.operations(), "--op"),
        shapes=_shapes(arguments.shape, arguments.quick),
        layouts=arguments.layouts,
        backends=tuple(backend for backend in wanted if backend not in missing),
        threads=_threads(arguments.threads, arguments.quick),
        dtype=arguments.dtype,
        pictures=photographs,
        has_limit=not limit_problem,
        **(measure.QUICK if arguments.quick else measure.FULL),
    )
    if not measure.cases(request):
        raise RefusedError("preprocess is compared on shapes of 3 channels, in layouts NCHW and NHWC, in float32")
    return request, problems


def _named(text: str, known: Iterable[str], option: str) -> tuple[str, ...]:
    """The known names that contain `text`."""
    found = tuple(name for name in known if text.lower() in name.lower())
    if not found:
        raise RefusedError(f"expected {option} to be part of one of: {'; '.join(known)}; got {text!r}")
    return found


def _shapes(asked: list[str] | None, quick: bool) -> dict[str, tuple[int, ...]]:
    from cpunorm.compare import measure

    known = measure.shapes()
    if asked is None:
        return {name: known[name] for name in measure.QUICK_SHAPES} if quick else known
    found: dict[str, tuple[int, ...]] = {}
    for text in asked:
        if re.fullmatch(r"[\d, ]+", text):
            shape = tuple(int(number) for number in text.split(",") if number.strip())
            if len(shape) != 4 or 0 in shape or shape[0] * shape[2] * shape[3] < 2:
                raise RefusedError(f"expected --shape of four positive numbers N,C,H,W, with more than one value a channel, got {text!r}")
            found["x".join(map(str, shape))] = shape
        else:
            found |= {name: known[name] for name in _named(text, known, "--shape")}
    return found


def _threads(asked: tuple[str, ...] | None, quick: bool) -> tuple[int, ...]:
    most = settings.default_threads()
    if asked is None:
        powers = [1 << power for power in range(most.bit_length()) if 1 << power < most]
        return tuple(dict.fromkeys([1, most] if quick else [*powers, most]))
    for text in asked:
        if not text.isdigit() or not 1 <= int(text) <= most:
            raise RefusedError(f"expected --threads from 1 to {most}, got {text!r}")
    return tuple(sorted({int(text) for text in asked}))
