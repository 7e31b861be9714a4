"""How much memory a run took, and how its allocator treats large arrays."""

from __future__ import annotations

import ctypes
import platform
import resource
import sys

MIB = 2**20
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of glibc's mallopt
LARGE = 2**30  # bytes
RSS_UNIT = 1 if sys.platform == "darwin" else 1024  # of ru_maxrss, in bytes


def peak_memory_mib() -> float:
    """Most resident memory of this process so far, and what its living children (simulator workers) hold now, in MiB.

    Pages that they share are counted for each.
    """
    import psutil  # here, as training needs none

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * RSS_UNIT
    for child in psutil.Process().children(recursive=True):
        try:
            peak += child.memory_info().rss
        except psutil.NoSuchProcess:  # it has just ended
            continue
    return peak / MIB


def keep_freed_memory() -> bool:
    """Let glibc reuse the memory of large arrays instead of giving it back at once -> whether it will.

    Otherwise every temporary above 32 MiB is mapped anew, page by page, each time: a third of the time of a DPPO
    minibatch. The process keeps the most it ever needed.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    library = ctypes.CDLL(None)
    return bool(library.mallopt(M_MMAP_THRESHOLD, LARGE)) and bool(library.mallopt(M_TRIM_THRESHOLD, -1))
