"""What the commands share: exit codes, refusals, progress, and the extra's modules."""

from __future__ import annotations

import importlib
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from cpunorm import backends

EXTRA = "pip install 'cpunorm[cli]'"
DONE, INCOMPLETE, REFUSED = 0, 1, 2


class RefusedError(Exception):
    """What was asked for cannot be done; the message is one line."""


def words(text: str) -> tuple[str, ...]:
    """Of an option with commas, none twice."""
    return tuple(dict.fromkeys(word.strip() for word in text.split(",") if word.strip()))


def available(backend: str) -> str | None:
    """None, or why a backend cannot be loaded."""
    try:
        backends.load(backend)
    except ImportError as problem:
        return str(problem)
    return None


def need(*modules: str) -> None:
    """Refuse without these modules of the `cli` extra."""
    for module in modules:
        try:
            importlib.import_module(module)
        except ImportError as problem:
            raise RefusedError(f"{module} cannot be imported ({problem}); {EXTRA}") from problem


def writable(file: Path) -> None:
    """Refuse a file that cannot be written."""
    if file.is_dir() or not os.access(file if file.exists() else file.parent, os.W_OK):
        raise RefusedError(f"{file} cannot be written")


def say(command: str, lines: list[str]) -> None:
    """To stderr, a line each."""
    for line in lines:
        print(f"cpunorm {command}: {' '.join(line.split())}", file=sys.stderr)


@contextmanager
def progress(name: str, total: int, *, fast: bool = False) -> Iterator[Callable[[str], None]]:
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
