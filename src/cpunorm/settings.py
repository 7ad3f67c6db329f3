"""Which backend and how many threads: per call, per context, per process, from the environment, by default; in this order.

=========  ===============  =======================  =================  ==========================================
what       call             context                  process            environment
=========  ===============  =======================  =================  ==========================================
backend    ``backend="c"``  ``config(backend=...)``  `set_backend`      ``CPUNORM_BACKEND``
threads    ``threads=2``    ``config(threads=...)``  `set_num_threads`  ``CPUNORM_NUM_THREADS``, ``OMP_NUM_THREADS``
=========  ===============  =======================  =================  ==========================================
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from typing import NamedTuple

from cpunorm import check, machine


class Settings(NamedTuple):
    """What was asked for; None where nothing was."""

    backend: str | None = None
    threads: int | None = None


_process = Settings()
when_limits_change: list[Callable[[], object]] = []  # what else remembers the default number of threads
_context: ContextVar[Settings | None] = ContextVar("cpunorm", default=None)


def current() -> Settings:
    """The settings of this thread and context, or else the process'."""
    return _context.get() or _process


def set_backend(backend: str | None) -> None:
    """Use `backend` in this process: ``"numba"``, ``"c"``, ``"numpy"``; None goes back to the default.

    Raises ValueError for another name, ImportError if it cannot be loaded here.
    """
    global _process
    check.backend("set_backend", backend)
    if backend is not None:
        from cpunorm import backends

        backends.load(backend)
    _process = _process._replace(backend=backend)


def set_num_threads(threads: int | None) -> None:
    """Use `threads` threads in this process; Numba's pool may have fewer (`show_config` says).

    None goes back to the default, which is found anew: the first call finds it, and later changes of the affinity or quota are not seen.
    """
    global _process
    check.threads("set_num_threads", threads)
    if threads is None:
        default_threads.cache_clear()
        for forget in when_limits_change:
            forget()
    _process = _process._replace(threads=threads)


@contextmanager
def config(*, backend: str | None = None, threads: int | None = None) -> Iterator[None]:
    """Settings for a ``with`` block, in this thread and context alone; what is None stays as it is.

    >>> import cpunorm as cn
    >>> with cn.config(backend="numpy", threads=1):
    ...     pass
    """
    check.backend("config", backend)
    check.threads("config", threads)
    before = current()
    token = _context.set(Settings(backend or before.backend, threads or before.threads))
    try:
        yield
    finally:
        _context.reset(token)


@cache
def _environment() -> Settings:
    backend = os.environ.get("CPUNORM_BACKEND") or None
    check.backend("environment variable CPUNORM_BACKEND", backend)
    return Settings(backend, _number("CPUNORM_NUM_THREADS"))


def _number(variable: str) -> int | None:
    text = os.environ.get(variable)
    if not text:
        return None
    number = int(text) if text.strip().isdecimal() else text
    check.threads(f"environment variable {variable}", number)
    return int(number)


@cache
def default_threads() -> int:
    """The CPUs that this process may run on, capped by the container's quota, ``CPUNORM_NUM_THREADS`` and ``OMP_NUM_THREADS``."""
    caps = [machine.affinity(), machine.quota(), *(number for _, number in environment_threads())]
    return min(cap for cap in caps if cap is not None)


def environment_threads() -> list[tuple[str, int | None]]:
    """The variables that cap the number of threads, and what they say."""
    return [("CPUNORM_NUM_THREADS", _environment().threads), ("OMP_NUM_THREADS", omp_threads())]


def omp_threads() -> int | None:
    """OMP_NUM_THREADS may be a list, one number a nesting level; the first is ours. What is no number is OpenMP's to complain about."""
    text = os.environ.get("OMP_NUM_THREADS", "").split(",")[0].strip()
    return int(text) if text.isdecimal() and int(text) > 0 else None


def resolve_threads(asked: int | None) -> int:
    """The number of threads of a call that asked for `asked`."""
    return asked or current().threads or default_threads()


def resolve_backend(asked: str | None) -> str | None:
    """The backend that was chosen for a call that asked for `asked`; None where the choice is ours."""
    return asked or current().backend or _environment().backend
