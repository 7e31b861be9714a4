"""Processes that this one starts: not ended by a signal that is meant for this one, and not left behind."""

from __future__ import annotations

import ctypes
import multiprocessing
import signal
import sys
import threading
from contextlib import suppress
from multiprocessing import resource_tracker
from typing import Any

SIGNALS = (signal.SIGINT, signal.SIGTERM)  # both may reach the whole process group; the parent decides
PR_SET_PDEATHSIG = 1  # Linux: a signal to the child when its parent ends


def start_child(process: Any) -> None:
    """Start a process of multiprocessing, which begins by `be_a_child`; the signals wait for it."""
    resource_tracker.ensure_running()  # it would unblock them
    before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        process.start()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def be_a_child() -> None:
    """Leave the signals to the parent; on Linux, be killed where it is."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)


def die_with_parent() -> None:
    """On Linux, be killed when the thread that started this process ends, also where nothing here runs any more."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        parent = multiprocessing.parent_process()
        if parent is not None and not parent.is_alive():  # it was faster
            signal.raise_signal(signal.SIGKILL)


def in_main_thread() -> bool:
    """Whether what is started here may `die_with_parent`."""
    return threading.current_thread() is threading.main_thread()


def kill(process: Any) -> None:
    """Kill a process of multiprocessing, and what it has started."""
    import psutil  # here, as training needs none

    with suppress(psutil.Error):
        for child in psutil.Process(process.pid).children(recursive=True):
            with suppress(psutil.Error):
                child.kill()
    process.kill()
    process.join()
