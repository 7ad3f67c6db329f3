"""What a fork does to this package: its child computes serially, and no lock in it is held by a thread that it does not have.

Imported with the package and not with a backend: a pool of threads that was started before the fork (by PyTorch in the libgomp that we
share) is lost in the child even if the backend is loaded only there.
"""

from __future__ import annotations

import logging  # noqa: F401  (before us, see below)
import os
import threading
from typing import Any

_forked = False

lock = threading.RLock()  # held while a backend is loaded or a kernel compiled
# A fork waits for these, so that it never copies a half-done import or compilation; in the order in which a compilation takes them.
locks: list[Any] = [lock]
_held: list[Any] = []


def forked() -> bool:
    """Whether this process was forked after the package was imported. Threads do not survive a fork: it computes serially."""
    return _forked


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
