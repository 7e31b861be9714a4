"""How much memory a run took."""

from __future__ import annotations

import resource
import sys

import psutil

MIB = 2**20
RSS_UNIT = 1 if sys.platform == "darwin" else 1024  # of ru_maxrss, in bytes


def peak_memory_mib() -> float:
    """Most resident memory of this process so far, and what its living children (simulator workers) hold now, in MiB.

    Pages that they share are counted for each.
    """
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * RSS_UNIT
    for child in psutil.Process().children(recursive=True):
        try:
            peak += child.memory_info().rss
        except psutil.NoSuchProcess:  # it has just ended
            continue
    return peak / MIB
