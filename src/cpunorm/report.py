"""What runs here, and why: `show_config`, and the lines that ``cpunorm doctor`` prints."""

from __future__ import annotations

import platform
import sys
from pathlib import Path

from cpunorm import backends, machine, settings


def show_config() -> None:
    """Print the backend, the number of threads, the instruction set, the threading layer and the cache folder, each with its reason."""
    for name, value in facts():
        print(f"{name:<16} {value}")


def facts() -> list[tuple[str, str]]:
    """(name, value) lines."""
    caches = machine.caches()
    return [
        ("cpunorm", f"{_version('cpunorm')}, Python {platform.python_version()}, {sys.platform} {platform.machine()}"),
        ("cpu", f"{machine.cpu_name()}, L2 {caches.l2 >> 10} KB a core, L3 {caches.l3 >> 20} MB"),
        ("backend", _backend()),
        ("threads", _threads()),
        ("numba", _numba()),
        ("c", _c()),
        *(("kernel cache", line) for line in cache_lines()),
        *((package, _version(package)) for package in ("numpy", "llvmlite", "tbb", "cffi")),
    ]


def _version(package: str) -> str:
    from importlib import metadata  # 25 ms, for which no import of the package should wait

    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"


def _backend() -> str:
    asked = settings.resolve_backend(None)
    if asked is None:
        return f"{backends.default()} (default)"
    return f"{asked} ({'settings' if settings.current().backend else 'CPUNORM_BACKEND'})"


def _threads() -> str:
    asked = settings.current().threads
    quota = machine.quota()
    reasons = [f"{machine.affinity()} CPUs that this process may use"]
    if quota is not None:
        reasons.append(f"container quota {quota}")
    reasons.extend(f"{variable}={number}" for variable, number in settings.environment_threads() if number is not None)
    return f"{asked} (settings)" if asked else f"{settings.default_threads()} (least of: {', '.join(reasons)})"


def _numba() -> str:
    try:
        import numba

        from cpunorm.jit import threads
    except ImportError as problem:
        return f"not available: {problem}"
    layer = threads.choose()
    whose = "the C part's OpenMP threads" if layer == "openmp" else f"{layer or 'no safe'} threading layer"
    return f"{numba.__version__}, {whose}, pool of {threads.pool_size()}"


def cache_lines() -> list[str]:
    """Of each folder: whether kernels are kept there, why not, and what is in it."""
    kept = machine.cache_folder()
    lines = [f"{folder}: {_use(folder, kept)}{_content(folder)}" for folder in machine.cache_folders()]
    if kept is None:
        lines.append("what is not found there is compiled in each process: no folder can be written")
    return lines


def _use(folder: Path, kept: Path | None) -> str:
    if folder == kept:
        return "written and read"
    reason = machine.why_not_written(folder)
    if reason is None:
        return "read"
    try:
        distrusted = machine.why_not_trusted(folder.stat())
    except OSError:
        return f"not used ({reason})"
    return f"refused ({distrusted})" if distrusted else f"read, not written ({reason})"


def _content(folder: Path) -> str:
    try:
        from cpunorm.jit import cache
    except ImportError:
        return ""
    found = cache.census(folder)
    said = f", {found.fit} kernels for this machine"
    if found.damaged:
        said += f" ({found.damaged} of them damaged or refused: compiled anew when needed)"
    mine = cache.machine_name().rpartition("-")[0]
    for cpu, count in sorted(found.other.items()):
        said += f", {count} for other versions or instruction sets" if cpu == mine else f", {count} for another CPU ({cpu}, this is {mine})"
    return said


def _c() -> str:
    try:
        from cpunorm import native
    except ImportError as problem:
        return f"not available: {problem}"
    return f"{native.instruction_set()} (this CPU runs {', '.join(native.instruction_sets())})"
