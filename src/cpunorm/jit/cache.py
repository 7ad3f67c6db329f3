"""Compiled kernels on disk: one file a kernel and dtype, named by all that decides its content.

Numba's own ``cache=True`` raises where no folder is writable, raises in the *user's call* where a file is damaged or the disk is full,
knows only changes of the file that a function stands in, and its shared index lets two processes store each other's code. Here:

* the name of a file is a hash of the sources of this folder, the signature, the versions and the CPU: there is no index to race for,
  another CPU or version is a miss, and a file is never rewritten with other content;
* a file is written aside and moved into place, and carries a digest of itself: a damaged one is a miss;
* whatever fails here costs a compilation, never a call; `problems` keeps what happened for ``cpunorm doctor``.
"""

from __future__ import annotations

import hashlib
import os
import pickle
import sys
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import llvmlite
import numba
from numba.core.compiler import CompileResult
from numba.core.serialize import dumps

from cpunorm import machine

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


class KernelCache:
    """What a Numba function asks for its machine code: `load_overload` and `save_overload`."""

    def __init__(self, name: str, folder: Path | None) -> None:
        self._name = name
        self._folder = folder

    def _path(self, signature: Any, codegen: Any) -> Path | None:
        if self._folder is None:
            return None
        versions = (numba.__version__, llvmlite.__version__, sys.version_info[:2], sys.implementation.cache_tag)
        key = repr((_sources(), str(signature), versions, codegen.magic_tuple()))
        return self._folder / f"{self._name}-{hashlib.sha256(key.encode()).hexdigest()[:24]}.nbc"

    def load_overload(self, signature: Any, target_context: Any) -> Any:
        """The compiled function, or None."""
        global hits, misses
        target_context.refresh()
        try:
            path = self._path(signature, target_context.codegen())
            if path is None or not path.exists():
                misses += 1
                return None
            content = path.read_bytes()
            digest, payload = content[:32], content[32:]
            if hashlib.sha256(payload).digest() != digest:
                raise ValueError("its content is damaged")
            result = CompileResult._rebuild(target_context, *pickle.loads(payload))
        except Exception as problem:  # a cache must not fail a call, whatever is wrong with it
            misses += 1
            problems.append(f"{self._name}: not loaded, compiled instead ({problem})")
            return None
        hits += 1
        return result

    def save_overload(self, signature: Any, result: Any) -> None:
        """Keep the compiled function, if that can be done."""
        try:
            path = self._path(signature, result.codegen)
            if path is None:
                return
            if result.library.has_dynamic_globals:
                raise ValueError("it holds addresses of this process")
            payload = dumps(result._reduce())
            path.parent.mkdir(parents=True, exist_ok=True)
            handle, aside = tempfile.mkstemp(dir=path.parent, prefix=path.stem, suffix=".tmp")
            try:
                with os.fdopen(handle, "wb") as file:
                    file.write(hashlib.sha256(payload).digest() + payload)
                os.replace(aside, path)
            except BaseException:
                os.unlink(aside)
                raise
        except Exception as problem:
            problems.append(f"{self._name}: not kept ({problem})")


def kernel_cache(name: str) -> KernelCache:
    """The cache of the function of this name, in the folder of this machine."""
    return KernelCache(name, machine.cache_folder())
