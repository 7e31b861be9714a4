"""Noticing that a call in this process does not return, and interrupting it as Ctrl-C does."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time

LOOK_SECONDS = 0.5
SECONDS_TO_INTERRUPT = 10.0  # code that does not come back to Python by then never will


class Watch:
    """Calls of the main thread that may take so many seconds each. What is watched costs two assignments.

    Of another thread nothing is watched: only the main one can be interrupted.

    Attributes:
        fired: whether a call was interrupted.
    """

    def __init__(self, seconds: float, called: str) -> None:
        self.seconds, self.fired = seconds, False
        self._called = called  # what is watched, for the last words
        self._since: float | None = None  # time.monotonic()
        self._ended = threading.Event()
        if threading.current_thread() is threading.main_thread():
            threading.Thread(target=self._look, daemon=True, name="burnish-watch").start()

    def begin(self) -> None:
        """A call begins."""
        self._since = time.monotonic()

    def end(self) -> None:
        """It has returned, or raised."""
        self._since = None

    def close(self) -> None:
        self._ended.set()

    def _look(self) -> None:
        while not self._ended.wait(min(LOOK_SECONDS, self.seconds)):
            since = self._since
            if since is None or time.monotonic() - since < self.seconds:
                continue
            self.fired = True
            while self._since == since:  # the first may be taken for a request to stop, which the call does not hear
                self._interrupt()
                if time.monotonic() - since > self.seconds + SECONDS_TO_INTERRUPT:
                    print(
                        f"burnish: error: {self._called} hangs and cannot be interrupted", file=sys.stderr, flush=True
                    )
                    os._exit(2)
                self._ended.wait(LOOK_SECONDS)
            return

    def _interrupt(self) -> None:
        for number in (signal.SIGINT, signal.SIGTERM):  # the former is ignored in what a script starts with &
            if callable(signal.getsignal(number)):
                os.kill(os.getpid(), number)
                return
