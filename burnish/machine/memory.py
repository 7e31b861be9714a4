"""How much memory a run took, what a file may take of it, and how the allocator treats large arrays."""

from __future__ import annotations

import ctypes
import platform
import resource
import sys

from burnish.errors import BurnishError

MIB = 2**20
UNPACKED = 200  # times their size in the file: recordings that were compressed well are 2 to 20 times as large
LEAST_UNPACKED = 256 * MIB  # what a file of any size may unpack to
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


def free_memory() -> int:
    """Bytes that this process may still take: of the machine, and of its own limit (`ulimit -v`)."""
    import psutil

    free = psutil.virtual_memory().available
    limit = resource.getrlimit(resource.RLIMIT_AS)[0]
    return free if limit == resource.RLIM_INFINITY else max(0, min(free, limit - psutil.Process().memory_info().vms))


class Room:
    """What may be read of a file: no more than its size justifies, and than the machine has.

    So a small file that declares a huge array is refused before memory is taken for it.

    Args:
        size: bytes of the file.
    """

    def __init__(self, size: int):
        self._size, self._taken, self._free = size, 0, free_memory()

    def add(self, size: int) -> None:
        """Another file belongs to it."""
        self._size += size

    def take(self, n_bytes: int, where: str) -> None:
        """Raise BurnishError, beginning with `where`, if `n_bytes` more are more than there may be."""
        self._taken += n_bytes
        if self._taken > max(LEAST_UNPACKED, UNPACKED * self._size):
            raise BurnishError(
                f"{where} declares {n_bytes:,} bytes, {self._taken:,} in all, in a file of {self._size:,}: expected at "
                f"most {UNPACKED} times as many; the file is damaged, or not what it says"
            )
        if self._taken > self._free:
            raise BurnishError(
                f"{where} has {n_bytes:,} bytes, {self._taken:,} in all, but this machine has {self._free:,} free: "
                "read a part of the data, or use a larger machine"
            )


def keep_freed_memory() -> bool:
    """Let glibc reuse the memory of large arrays instead of giving it back at once -> whether it will.

    Otherwise every temporary above 32 MiB is mapped anew, page by page, each time: a third of the time of a DPPO
    minibatch. The process keeps the most it ever needed.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    library = ctypes.CDLL(None)
    return bool(library.mallopt(M_MMAP_THRESHOLD, LARGE)) and bool(library.mallopt(M_TRIM_THRESHOLD, -1))
