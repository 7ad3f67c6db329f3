"""Compiled kernels on disk: one file a kernel and dtype, named by all that decides its content.

Numba's own ``cache=True`` raises where no folder is writable (and does not read such a one), raises in the *user's call* where a file is
damaged or the disk is full, knows only changes of the file that a function stands in, and its shared index lets two processes store each
other's code. Here:

* the name of a file has hashes of the sources of this folder, the signature, the versions and the CPU: there is no index to race for,
  another CPU or version is a miss, and a file is never rewritten with other content;
* a file is written aside and moved into place, and carries a digest of its name and content: a damaged or renamed one is a miss;
* what is read from a file is run: a file or folder that another user could have written is refused (`machine.why_not_trusted`);
* all of `machine.cache_folders` are read, the first that takes files is written: a cache baked into a read-only image is used;
* whatever fails here costs a compilation, never a call; `problems` keeps what happened for ``cpunorm warmup``, and `census` looks at a
  folder for ``cpunorm doctor``.
"""

from __future__ import annotations

import hashlib
import os
import pickle
import sys
import tempfile
from collections import Counter
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
            try:
                path = folder / self._file(signature)
                if not path.exists():
                    continue
                if reason := machine.why_not_trusted(folder.stat()):
                    raise PermissionError(f"{folder} {reason}")
                result = CompileResult._rebuild(target_context, *pickle.loads(_read(path)))
            except Exception as problem:  # a cache must not fail a call, whatever is wrong with it
                problems.append(f"{self._kernel}: not loaded, compiled instead ({problem})")
                continue
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
        kernel_and_cpu, environment, _ = ["", "", *path.stem.rsplit("-", 2)][-3:]  # older versions had shorter names
        its_cpu = kernel_and_cpu.partition("-")[2] or "an unknown CPU"
        if (its_cpu, environment) != (cpu, mine):
            other[its_cpu] += 1
            continue
        fit += 1
        try:
            _read(path)
        except (OSError, ValueError):
            damaged += 1
    return Census(fit, damaged, other)
