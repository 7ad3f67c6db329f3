"""Compiled kernels on disk: one file a kernel and dtype, named by all that decides its content.

Numba's own ``cache=True`` raises where no folder is writable (and does not read such a one), raises in the *user's call* where a file is
damaged or the disk is full, knows only changes of the file that a function stands in, and its shared index lets two processes store each
other's code. Here:

* the name of a file has hashes of the sources of this folder, the signature, the versions and the CPU: there is no index to race for,
  another CPU or version is a miss, and a file is never rewritten with other content;
* a file is written aside and moved into place, and carries a digest of its name and content: a damaged or renamed one is a miss;
* what is read from a file is run: a file or folder that another user could have written is refused (`machine.why_not_trusted`);
* all of `machine.cache_folders` are read, the first that takes files is written: a cache baked into a read-only image is used;
* what other versions (or sources, or CPUs) left is deleted once nothing has read it for `KEPT_DAYS`, by whoever keeps a new file there:
  a file's time of change says when it was read last, to the day;
* whatever fails here costs a compilation, never a call; `problems` keeps what happened for ``cpunorm warmup``, and `census` looks at a
  folder for ``cpunorm doctor``.
"""

from __future__ import annotations

import hashlib
import os
import pickle
import sys
import tempfile
import time
from collections import Counter
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import llvmlite
import numba
from numba.core.compiler import CompileResult
from numba.core.registry import cpu_target
from numba.core.serialize import dumps

from cpunorm import machine

SUFFIX = ".nbc"
DAY = 24 * 3600.0
KEPT_DAYS = 30
problems: list[str] = []
hits = 0
misses = 0


@cache
def _sources() -> str:
    """All that the machine code of a kernel comes from: this folder and the structs."""
    here = Path(__file__).parent
    digest = hashlib.sha256()
    for path in [*sorted(here.glob("*.py")), here.parent / "program.py"]:
        digest.update(path.read_bytes())
    return digest.hexdigest()


def _short(*parts: object) -> str:
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:16]


def machine_name() -> str:
    """The CPU as LLVM names it, and a hash of all that decides machine code beside a kernel and its signature."""
    triple, cpu, features = cpu_target.target_context.codegen().magic_tuple()
    versions = (numba.__version__, llvmlite.__version__, sys.version_info[:2], sys.implementation.cache_tag)
    return f"{cpu}-{_short(_sources(), versions, triple, cpu, features)}"


def _read(path: Path) -> bytes:
    """The pickle in a file, if nobody else can have written it and nothing is wrong with it."""
    with path.open("rb") as file:
        if reason := machine.why_not_trusted(os.fstat(file.fileno())):
            raise PermissionError(reason)
        content = file.read()
    digest, payload = content[:32], content[32:]
    if _digest(path, payload) != digest:
        raise ValueError("its content is damaged")
    return payload


def _digest(path: Path, payload: bytes) -> bytes:
    return hashlib.sha256(path.name.encode() + payload).digest()


def _used(path: Path) -> None:
    """Note that a file was read, if its note is older than a day and we may."""
    with suppress(OSError):
        if time.time() - path.stat().st_mtime > DAY:
            os.utime(path)


@cache
def _prune(folder: Path) -> None:
    """Delete what others than this environment kept in `folder` and nothing has read for `KEPT_DAYS`, halves of files too. Once a process.

    Several processes may do so at once, and read meanwhile: who finds a file gone compiles.
    """
    mine = machine_name().rpartition("-")[2]
    for path in [*folder.glob(f"*{SUFFIX}"), *folder.glob("*.tmp")]:
        with suppress(OSError):
            if (_environment(path) != mine or path.suffix != SUFFIX) and time.time() - path.lstat().st_mtime > KEPT_DAYS * DAY:
                path.unlink()


def _environment(path: Path) -> str:
    """What decides the machine code beside a kernel and its signature, as the name of a file has it; older versions had shorter names."""
    return ["", "", *path.stem.rsplit("-", 2)][-2]


class KernelCache:
    """What a Numba function asks for its machine code: `load_overload` and `save_overload`."""

    def __init__(self, kernel: str) -> None:
        self._kernel = kernel

    def _file(self, signature: Any) -> str:
        return f"{self._kernel}-{machine_name()}-{_short(str(signature))}{SUFFIX}"

    def load_overload(self, signature: Any, target_context: Any) -> Any:
        """The compiled function, or None."""
        global hits, misses
        target_context.refresh()
        for folder in machine.cache_folders():
            path = folder / self._file(signature)
            try:
                if not path.exists():
                    continue
                if reason := machine.why_not_trusted(folder.stat()):
                    raise PermissionError(f"{folder} {reason}")
                result = CompileResult._rebuild(target_context, *pickle.loads(_read(path)))
            except Exception as problem:  # a cache must not fail a call, whatever is wrong with it
                problems.append(f"{self._kernel}: not loaded, compiled instead ({problem})")
                continue
            _used(path)
            hits += 1
            return result
        misses += 1
        return None

    def save_overload(self, signature: Any, result: Any) -> None:
        """Keep the compiled function, if that can be done."""
        try:
            folder = machine.cache_folder()
            if folder is None:
                return
            if result.library.has_dynamic_globals:
                raise ValueError("it holds addresses of this process")
            path = folder / self._file(signature)
            payload = dumps(result._reduce())
            handle, aside = tempfile.mkstemp(dir=folder, prefix=path.stem, suffix=".tmp")
            try:
                with os.fdopen(handle, "wb") as file:
                    file.write(_digest(path, payload) + payload)
                os.chmod(aside, 0o644)  # mkstemp's is for us alone; what an image's build has warmed up is for whoever runs it
                os.replace(aside, path)
            except BaseException:
                os.unlink(aside)
                raise
            _prune(folder)
        except Exception as problem:
            problems.append(f"{self._kernel}: not kept ({problem})")


class Census(NamedTuple):
    """Files of a cache folder: that fit this machine and these versions, of these the damaged ones, and the others by CPU."""

    fit: int
    damaged: int
    other: Counter[str]


def census(folder: Path) -> Census:
    """What is in a cache folder, for ``cpunorm doctor``."""
    cpu, _, mine = machine_name().rpartition("-")
    fit = damaged = 0
    other: Counter[str] = Counter()
    for path in folder.glob(f"*{SUFFIX}"):
        its_cpu = ["", "", *path.stem.rsplit("-", 2)][-3].partition("-")[2] or "an unknown CPU"
        if (its_cpu, _environment(path)) != (cpu, mine):
            other[its_cpu] += 1
            continue
        fit += 1
        try:
            _read(path)
        except (OSError, ValueError):
            damaged += 1
    return Census(fit, damaged, other)
