"""What machine this is: CPUs that this process may use, cache sizes, the CPU's name, where compiled kernels are kept."""

from __future__ import annotations

import errno
import math
import os
import platform
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

_SYSTEM_CACHES = Path("/sys/devices/system/cpu/cpu0/cache")
_CGROUP = Path("/sys/fs/cgroup")
_MEMBERSHIP = Path("/proc/self/cgroup")


class Caches(NamedTuple):
    """Bytes of one core's L2 and of the L3 that its cores share."""

    l2: int
    l3: int


@cache
def caches() -> Caches:
    """Read from the system once; where it does not say, 512 KB and 8 MB, which are small for a server and right for a laptop."""
    sizes: dict[int, int] = {}
    for index in sorted(_SYSTEM_CACHES.glob("index*")):
        try:
            kind = (index / "type").read_text().strip()
            text = (index / "size").read_text().strip()
            level = int((index / "level").read_text())
        except (OSError, ValueError):
            continue
        if kind in ("Unified", "Data") and text[:-1].isdigit():
            sizes[level] = int(text[:-1]) * {"K": 1 << 10, "M": 1 << 20}.get(text[-1], 1)
    l2 = sizes.get(2, 512 << 10)
    return Caches(l2, max(sizes.get(3, 8 << 20), l2))


def affinity() -> int:
    """CPUs that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def quota(root: Path = _CGROUP, membership: Path = _MEMBERSHIP) -> int | None:
    """CPUs that the quota of the container (or service, or job) pays for, rounded up; None without a quota.

    cgroup v2's ``cpu.max`` or v1's ``cpu.cfs_quota_us``, the least of the process' own group and those it lies in. `root` is where the
    groups are mounted; in a container that is often its own group, and the path of `membership` then leads nowhere, or is ``/``.
    """
    shares = [_share(folder, name) for folder, name in _groups(root, membership)]
    least = min((share for share in shares if share is not None), default=None)
    return None if least is None else max(1, math.ceil(least))


def _groups(root: Path, membership: Path) -> Iterator[tuple[Path, str]]:
    """(folder, the file that has its quota), of v2 and v1."""
    paths = {"": "/", "cpu": "/"}
    try:
        for line in membership.read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            paths |= {name: path for name in controllers.split(",") if name in paths}
    except (OSError, ValueError):
        pass
    for name, file in (("", "cpu.max"), ("cpu", "cpu.cfs_quota_us")):
        parts = [part for part in paths[name].split("/") if part not in ("", "..")]
        for depth in range(len(parts) + 1):
            yield root.joinpath(name, *parts[:depth]), file


def _share(folder: Path, file: str) -> float | None:
    """CPUs: quota by period. None for ``max``, -1, and what is no number."""
    try:
        words = (folder / file).read_text().split()
        if file != "cpu.max":
            words += (folder / "cpu.cfs_period_us").read_text().split()
        share = int(words[0]) / int(words[1])
    except (OSError, ValueError, IndexError, ZeroDivisionError):
        return None
    return share if share > 0 else None


def cpu_name() -> str:
    """As the system names it."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


@cache
def cache_folders() -> tuple[Path, ...]:
    """Where compiled kernels may be, the first choice first: ``NUMBA_CACHE_DIR``; or beside the package, and the user's cache folder."""
    given = os.environ.get("NUMBA_CACHE_DIR")
    if given:
        return (Path(given) / "cpunorm",)
    user = os.environ.get("XDG_CACHE_HOME") or (Path.home() / ".cache" if _has_home() else None)
    beside = Path(__file__).parent / "jit" / "__pycache__" / "kernels"
    return (beside,) if user is None else (beside, Path(user) / "cpunorm")


@cache
def cache_folder() -> Path | None:
    """Where kernels that are compiled now are kept: the first of `cache_folders` that takes files, None if none does."""
    return next((folder for folder in cache_folders() if why_not_written(folder) is None), None)


def why_not_trusted(status: os.stat_result) -> str | None:
    """Why machine code from this file or folder is not run: somebody may have put it there who is not us, root or this package's owner."""
    if not hasattr(os, "geteuid"):
        return None
    if status.st_uid not in (os.geteuid(), 0, Path(__file__).stat().st_uid):
        return f"belongs to another user (uid {status.st_uid})"
    return "others may write to it" if status.st_mode & 0o022 else None


def why_not_written(folder: Path) -> str | None:
    """Why no kernels are kept in `folder`; None where they are. Makes it, and fills and deletes a file, as a kernel would."""
    import tempfile

    try:
        folder.mkdir(mode=0o755, parents=True, exist_ok=True)
        if reason := why_not_trusted(folder.stat()):
            return reason
        with tempfile.TemporaryFile(dir=folder, buffering=0) as file:
            if file.write(bytes(1 << 17)) < 1 << 17:
                return os.strerror(errno.ENOSPC)
    except OSError as problem:
        return problem.strerror or str(problem)
    return None


def _has_home() -> bool:
    try:
        Path.home()
    except RuntimeError:
        return False
    return True
