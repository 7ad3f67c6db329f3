"""Mean and standard deviation of all pictures of a folder, resumable: what ``cpunorm stats`` does. docs/statistics.md has the meaning."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cpunorm import loader, settings
from cpunorm.stats import Array, ChannelStats, Moments

WHITE = {"uint8": 255, "uint16": 65535}  # what loader.load gives, and its largest value
SAVE_SECONDS = 5.0  # between two writes of the state, or 20 times as long as a write takes
VERSION = 1


@dataclass
class State:
    """What has been counted: the files by name, with size and time of change in ns, and the statistics of each depth of pixels."""

    files: dict[str, list[int]] = field(default_factory=dict)
    stats: dict[str, ChannelStats] = field(default_factory=lambda: {name: ChannelStats(3, layout="HWC") for name in WHITE})

    @classmethod
    def read(cls, path: Path) -> State:
        """From `write`'s file; an empty one where there is none. ValueError if it is something else."""
        if not path.exists():
            return cls()
        try:
            content = json.loads(path.read_bytes())
            if content["version"] != VERSION:
                raise ValueError(f"expected version {VERSION}, got {content['version']}")
            stats = {name: ChannelStats.from_dict(content["stats"][name]) for name in WHITE}
            return cls({str(name): [int(size), int(changed)] for name, (size, changed) in content["files"].items()}, stats)
        except (ValueError, KeyError, TypeError, AttributeError) as problem:
            raise ValueError(f"{path} is no state of cpunorm stats ({type(problem).__name__}: {problem})") from problem

    def write(self, path: Path) -> None:
        """Aside, then moved into place: the file is never half of one."""
        content = {"version": VERSION, "files": self.files, "stats": {name: stats.to_dict() for name, stats in self.stats.items()}}
        aside = path.with_name(f"{path.name}.{os.getpid()}.tmp")
        try:
            aside.write_text(json.dumps(content))
            os.replace(aside, path)
        finally:
            aside.unlink(missing_ok=True)

    @property
    def moments(self) -> Moments:
        """Of all pixels, from 0 to 1."""
        total = Moments.empty((3,))
        for name, white in WHITE.items():
            found = self.stats[name].moments
            total = total.merge(Moments(found.count, found.mean / white, found.m2 / white**2))
        return total


@dataclass
class Result:
    """`unreadable` has a line for each file that is not in the statistics."""

    state: State
    unreadable: list[str] = field(default_factory=list)


def count(folder: Path, files: list[Path], state_file: Path | None, result: Result, progress: Callable[[str], Any]) -> None:
    """Add what of `files` is not in the state yet to `result`, and save that every few seconds and at the end, however this ends.

    ValueError if a file in the state has changed since, or is gone: what it gave cannot be taken out again.
    """
    state = result.state
    signatures = {file: _signature(file) for file in files}
    known = {file.relative_to(folder).as_posix(): signature for file, signature in signatures.items()}
    for name, signature in state.files.items():
        if known.get(name) != signature:
            what = "has changed" if name in known else "is gone"
            raise ValueError(f"{folder / name} {what} since it was counted in {state_file}; remove that to begin anew")
    todo = [file for file in files if file.relative_to(folder).as_posix() not in state.files]
    saved, pause = time.monotonic(), SAVE_SECONDS
    try:
        with closing(loader.in_parallel(todo, _statistics, settings.default_threads())) as found, _interrupts_held() as interrupted:
            for file, one in zip(todo, found, strict=True):
                progress(file.name)
                if isinstance(one, loader.PictureError):
                    result.unreadable.append(str(one))
                else:
                    dtype, stats = one
                    state.stats[dtype] += stats
                    state.files[file.relative_to(folder).as_posix()] = signatures[file]
                if interrupted():
                    raise KeyboardInterrupt
                if state_file and time.monotonic() - saved > pause:
                    start = time.monotonic()
                    state.write(state_file)
                    saved = time.monotonic()
                    pause = max(SAVE_SECONDS, 20 * (saved - start))
    finally:
        if state_file:
            state.write(state_file)


@contextmanager
def _interrupts_held() -> Iterator[Callable[[], bool]]:
    """A function that tells whether Ctrl-C was pressed, instead of an exception anywhere: a picture is in the statistics and in the list
    of files, or in neither. A second one is not held.
    """
    pressed = False
    before = signal.getsignal(signal.SIGINT)
    ours = threading.current_thread() is threading.main_thread() and before is not None

    def hold(*_: object) -> None:
        nonlocal pressed
        pressed = True
        signal.signal(signal.SIGINT, before)

    if ours:
        signal.signal(signal.SIGINT, hold)
    try:
        yield lambda: pressed
    finally:
        if ours:
            signal.signal(signal.SIGINT, before)


def _signature(file: Path) -> list[int]:
    found = file.stat()
    return [found.st_size, found.st_mtime_ns]


def _statistics(file: Path) -> tuple[str, ChannelStats]:
    """Of one picture, in a thread of its own."""
    picture = loader.load(file)
    with settings.config(threads=1):
        return picture.dtype.name, ChannelStats(3, layout="HWC").update(picture)


def paste(result: Result) -> str:
    """Lines of Python for whoever normalizes by these."""
    moments = result.state.moments
    mean, std = moments.mean, (moments.m2 / moments.count) ** 0.5
    return f"""\
# R, G and B over {moments.count} pixels of {len(result.state.files)} pictures, each pixel once
# NumPy, pixels from 0 to 1
mean = np.array([{_numbers(mean)}])
std = np.array([{_numbers(std)}])
# NumPy, pixels from 0 to 255
mean = np.array([{_numbers(mean * 255)}])
std = np.array([{_numbers(std * 255)}])
# PyTorch, after transforms.ToTensor()
transforms.Normalize(mean=[{_numbers(mean)}], std=[{_numbers(std)}])
# Albumentations
A.Normalize(mean=({_numbers(mean)}), std=({_numbers(std)}), max_pixel_value=255.0)
# cpunorm
cn.Preprocessor(mean=({_numbers(mean)}), std=({_numbers(std)}))"""


def _numbers(values: Array) -> str:
    return ", ".join(f"{value:.10g}" for value in values)
