"""The backends by name, loaded when first used.

A compiled backend is a module with ``name`` and the functions of `Backend`; its kernels have the names and the signature given in
`cpunorm.program`. The NumPy backend has none: `cpunorm.reference` has no plan either.
"""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Callable
from functools import cache
from typing import Any, Protocol

from cpunorm import forks, settings

Driver = Callable[..., None]


class Backend(Protocol):
    """What `cpunorm.jit.backend` and `cpunorm.native` have in common."""

    name: str

    def address(self, kernel: str, dtype: str) -> int:
        """The kernel's address, for the computing dtype ``"float32"`` or ``"float64"``."""

    def driver(self, count: int) -> tuple[Driver, int]:
        """What runs a program on up to `count` threads, and the number that it will take."""

    def waking(self) -> int:
        """Times `plan.SERIAL_BYTES` that a second thread pays from."""


_MODULES = {"numba": "cpunorm.jit.backend", "c": "cpunorm.native", "numpy": "cpunorm.reference"}


@cache
def load(name: str) -> Any:
    """The module of a backend; ImportError with the repair if it cannot be loaded here."""
    with forks.undisturbed():
        return importlib.import_module(_MODULES[name])


@cache
def default() -> str:
    """numba; where that cannot be loaded C, else NumPy, with one warning."""
    reasons = []
    for name in _MODULES:
        try:
            load(name)
        except ImportError as problem:
            reasons.append(f"{name} ({problem})")
            continue
        if reasons:
            warnings.warn(f"cpunorm uses its {name} backend; not available: {'; '.join(reasons)}", RuntimeWarning, stacklevel=2)
        return name
    raise AssertionError("NumPy is always there")


def choose(asked: str | None) -> str:
    """The name of the backend of a call that asked for `asked`."""
    return settings.resolve_backend(asked) or default()


def compiled(name: str) -> Backend:
    """A backend that has kernels."""
    return load(name)  # type: ignore[no-any-return]
