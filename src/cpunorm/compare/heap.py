"""A heap that keeps its pages, so that whoever allocates a result is timed without the page faults of fresh memory."""

from __future__ import annotations

import ctypes

TRIM_THRESHOLD, TOP_PAD, MMAP_MAX = -1, -2, -4  # of glibc's mallopt


def keep_pages() -> bool:
    """Tell glibc, for the rest of the process, to take all memory from a heap that never shrinks; whether there is a glibc to tell."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    return all(mallopt(option, value) for option, value in ((MMAP_MAX, 0), (TRIM_THRESHOLD, 2**31 - 1), (TOP_PAD, 1 << 28)))
