"""``cpunorm preprocess`` and ``cpunorm stats``: of files of pictures."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cpunorm.cli.common import DONE, INCOMPLETE, RefusedError, need, progress, say, writable

if TYPE_CHECKING:
    from cpunorm.preprocessing import Preprocessor

READ = (
    "Pictures are read as RGB, turned by their EXIF orientation: grey and palette ones are converted, alpha is dropped, of an animation "
    "the first picture counts. 16-bit grey keeps its 16 bits (65535 is white). What cannot be read is named and left out, and the exit "
    "code is 1."
)


def add(commands: Any) -> None:
    """The two commands."""
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


def _stats(arguments: argparse.Namespace) -> int:
    need("rich", "PIL")
    from cpunorm import dataset

    folder, state = arguments.folder, arguments.state
    if not folder.is_dir():
        raise RefusedError(f"{folder} is not a folder")
    if state is not None:
        writable(state)
    files = _files([folder])
    try:
        result = dataset.Result(dataset.State() if state is None else dataset.State.read(state))
        with progress("stats", len(files) - len(result.state.files), fast=True) as advance:
            dataset.count(folder, files, state, result, advance)
    except KeyboardInterrupt:
        say("stats", result.unreadable)
        kept = f"go on by --state {state}" if state else "nothing is kept without --state"
        say("stats", [f"interrupted after {len(result.state.files)} of {len(files)} pictures; {kept}"])
        return INCOMPLETE
    except (ValueError, OSError) as problem:
        raise RefusedError(str(problem)) from problem
    say("stats", result.unreadable)
    if not result.state.files:
        raise RefusedError(f"none of {len(files)} pictures in {folder} can be read")
    print(dataset.paste(result))
    return INCOMPLETE if result.unreadable else DONE


def _preprocess(arguments: argparse.Namespace) -> int:
    need("rich", "PIL")
    from cpunorm import batches

    for file in (arguments.output, arguments.names):
        if file is not None:
            writable(file)
    plan = _plan(arguments)
    files = _files(arguments.pictures)
    try:
        with progress("preprocess", len(files), fast=True) as advance:
            result = batches.write(files, arguments.output, plan, advance)
        if arguments.names:
            arguments.names.write_text("".join(f"{file}\n" for file in result.rows))
    except (ValueError, OSError) as problem:
        raise RefusedError(str(problem)) from problem
    except KeyboardInterrupt:
        raise RefusedError(f"interrupted; {arguments.output} is as it was") from None
    say("preprocess", result.unreadable)
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
