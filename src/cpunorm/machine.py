"""What machine this is: CPUs that this process may use, cache sizes, the CPU's name, where compiled kernels are kept."""

from __future__ import annotations

import math
import os
import platform
from functools import cache
from pathlib import Path
from typing import NamedTuple

_SYSTEM_CACHES = Path("/sys/devices/system/cpu/cpu0/cache")
_CGROUP = Path("/sys/fs/cgroup")


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


def quota(root: Path = _CGROUP) -> int | None:
    """CPUs that the container's quota pays for, rounded up; None without a quota. cgroup v2's ``cpu.max``, then v1's."""
    try:
        limit, period = (root / "cpu.max").read_text().split()[:2]
    except (OSError, ValueError):
        try:
            limit = (root / "cpu" / "cpu.cfs_quota_us").read_text().strip()
            period = (root / "cpu" / "cpu.cfs_period_us").read_text().strip()
        except OSError:
            return None
    try:
        share = int(limit) / int(period)
    except (ValueError, ZeroDivisionError):  # "max"
        return None
    return max(1, math.ceil(share)) if share > 0 else None


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
def cache_folder() -> Path | None:
    """Where compiled kernels are kept: ``NUMBA_CACHE_DIR``, beside the package, the user's cache folder, or nowhere (None)."""
    given = os.environ.get("NUMBA_CACHE_DIR")
    user = os.environ.get("XDG_CACHE_HOME") or (Path.home() / ".cache" if _has_home() else None)
    candidates = [Path(given) / "cpunorm"] if given else [Path(__file__).parent / "jit" / "__pycache__"]
    if not given and user is not None:
        candidates.append(Path(user) / "cpunorm")
    return next((folder for folder in candidates if _writable(folder)), None)


def _has_home() -> bool:
    try:
        Path.home()
    except RuntimeError:
        return False
    return True


def _writable(folder: Path) -> bool:
    import tempfile

    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError:
        return False
    return True
