"""Forks and interrupts: neither cuts an import or a compilation in two, and a forked child computes serially.

Imported with the package and not with a backend: a pool of threads that was started before the fork (by PyTorch, in the libgomp that we
share) is lost in the child even if the backend is loaded only there.
"""

from __future__ import annotations

import logging  # noqa: F401  (before us, see below)
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

_forked = False

lock = threading.RLock()
# A fork waits for these, so that it never copies a half-done import or compilation; in the order in which a compilation takes them.
locks: list[Any] = [lock]
_held: list[Any] = []


def forked() -> bool:
    """Whether this process was forked after the package was imported. Threads do not survive a fork: it computes serially."""
    return _forked


@contextmanager
def undisturbed() -> Iterator[None]:
    """One thread at a time; forks and Ctrl-C wait until the end. (Numba cannot be imported again where an interrupt left half of it.)"""
    with lock:
        handler = signal.getsignal(signal.SIGINT)
        if not callable(handler) or threading.current_thread() is not threading.main_thread():
            yield  # no interrupt comes here
            return
        came: list[Any] = []
        signal.signal(signal.SIGINT, lambda *signal_and_frame: came.append(signal_and_frame))
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, handler)
            if came:
                handler(*came[0])


def _before() -> None:
    for each in locks:
        each.acquire()
    _held[:] = locks


def _after() -> None:
    for each in reversed(_held):
        each.release()


def _after_in_child() -> None:
    global _forked
    _forked = True
    _after()


# What is registered last is done first before a fork: we wait for a compilation before `logging` takes its lock, which Numba needs to end.
if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before, after_in_parent=_after, after_in_child=_after_in_child)
