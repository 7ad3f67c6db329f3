"""The command line: ``cpunorm compare``, ``preprocess``, ``stats``, ``doctor``, ``warmup``.

Exit codes: 0, done; 1, done, but something was skipped or failed its check, or became slower, and is named; 2, refused, with one line that
says why.

Nothing heavy is imported before it is needed: ``doctor`` has to work where half of the rest is broken.
"""

from __future__ import annotations

import argparse
import re
import sys
import time
from collections.abc import Sequence
from importlib import metadata
from typing import NoReturn

from cpunorm import machine, report, settings
from cpunorm.cli import compare, pictures
from cpunorm.cli.common import DONE, EXTRA, INCOMPLETE, REFUSED, RefusedError, available, need, progress

__all__ = ["DONE", "EXTRA", "INCOMPLETE", "REFUSED", "main"]


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
    compare.add(commands)
    pictures.add(commands)
    doctor = commands.add_parser("doctor", help="what is installed, what would run, and how to repair the rest")
    doctor.set_defaults(run=_doctor)
    warmup = commands.add_parser("warmup", help="compile every kernel once, so that no later call waits for it")
    warmup.set_defaults(run=_warmup)
    return parser


def _environment() -> None:
    """Refuse what the environment asks for wrongly, before a command finds out in its middle."""
    try:
        settings.resolve_backend(None)
        settings.default_threads()
        available("c")
    except (ValueError, TypeError) as problem:
        raise RefusedError(str(problem)) from problem


# ---------------------------------------------------------------- doctor


def _doctor(_: argparse.Namespace) -> int:
    for name, value in report.facts():
        print(f"{name:<16} {value}")
    for extra, packages in _extras().items():
        versions = {package: report._version(package) for package in packages}
        print(f"{extra:<16} {', '.join(f'{package} {version}' for package, version in versions.items())}")
    missing = [name for name in ("numba", "c") if available(name)]
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
    need("rich")
    if problem := available("numba"):
        raise RefusedError(problem)
    from cpunorm import warmup
    from cpunorm.jit import cache

    start = time.perf_counter()
    with progress("warmup", len(warmup.jobs())) as advance:
        warmup.warmup(advance)
    seconds = time.perf_counter() - start
    print(f"{seconds:.1f} s: {cache.misses} kernels and drivers compiled, {cache.hits} read from the cache")
    problems = list(cache.problems)
    if machine.cache_folder() is None:
        problems += [f"nothing is kept; {line}" for line in report.cache_lines()]
    for problem in problems:
        print(f"cache: {problem}", file=sys.stderr)
    return INCOMPLETE if problems else DONE
