"""Being asked to stop: save, end, and say how to go on, within ten seconds. A batch system gives thirty.

A command listens from its first line on (`interrupted_by_signals`): where there is nothing to save yet, either signal
interrupts it. A training has a `StopRequest`: the first signal asks. What may take long (an evaluation, a step of the
simulators) looks whether it came (`asked_to_stop`) and is given up; an update that takes longer still is interrupted.
"""

from __future__ import annotations

import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Any

from burnish.errors import Stopped

SECONDS_TO_STOP = 7.0  # that whatever runs has, before it is interrupted


class GivenUp(Stopped):
    """What was begun was given up, as the process was asked to stop. Nothing is lost but what it had done."""


class Interrupted(KeyboardInterrupt):
    """By a signal. A class of its own: of KeyboardInterrupt itself, raised in `exec`, Python remembers that nobody had
    caught it, and ends with another status than it is told."""


class Overdue(Interrupted):
    """Something took longer than `SECONDS_TO_STOP` after the process was asked to stop, and was interrupted."""


class StopRequest:
    """Turns the first SIGTERM or SIGINT into a flag, so that a loop can save and end; the next interrupts.

    Requests nest: an outer one learns from an inner one that the process was asked to stop, and the other way round.

    Attributes:
        requested: True once the process was asked to stop.
    """

    def __init__(self) -> None:
        self.requested = False
        self.deadline = float("inf")  # time.monotonic()
        self._previous: dict[signal.Signals, Any] = {}

    def __enter__(self) -> StopRequest:
        for kind in (signal.SIGTERM, signal.SIGINT):
            self._previous[kind] = signal.signal(kind, self._handle)
        self.requested = any(outer.requested for outer in self._outer())
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        no_longer_overdue()
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        for outer in self._outer():
            outer.requested |= self.requested

    def _outer(self) -> list[StopRequest]:
        owners = [getattr(handler, "__self__", None) for handler in self._previous.values()]
        return [owner for owner in owners if isinstance(owner, StopRequest)]

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.requested:
            raise Interrupted
        self.requested = True
        self.deadline = time.monotonic() + SECONDS_TO_STOP
        if signal.SIGALRM not in self._previous:
            self._previous[signal.SIGALRM] = signal.signal(signal.SIGALRM, _overdue)
        signal.setitimer(signal.ITIMER_REAL, SECONDS_TO_STOP)
        print("\nstopping after a checkpoint (once more to stop at once)", file=sys.stderr, flush=True)


def _overdue(number: int, frame: FrameType | None) -> None:
    raise Overdue


def no_longer_overdue() -> None:
    """What follows is what was asked for, such as a checkpoint: it may take as long as it takes."""
    if threading.current_thread() is threading.main_thread() and signal.getsignal(signal.SIGALRM) is _overdue:
        signal.setitimer(signal.ITIMER_REAL, 0)


def asked_to_stop() -> bool:
    """Whether a `StopRequest` is in force and the process was asked to stop."""
    request = getattr(signal.getsignal(signal.SIGTERM), "__self__", None)
    return isinstance(request, StopRequest) and request.requested


@contextmanager
def interrupted_by_signals() -> Iterator[None]:
    """SIGTERM interrupts as Ctrl-C does, where it would have ended the process without a word. Either interrupts again
    after a while: what raises in the midst of foreign code may be swallowed there."""
    defaults = {signal.SIGTERM: signal.SIG_DFL, signal.SIGINT: signal.default_int_handler}
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {kind: signal.getsignal(kind) for kind in (*defaults, signal.SIGALRM)}
    for kind, default in defaults.items():
        if before[kind] == default:
            signal.signal(kind, _interrupt)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        for kind, handler in before.items():
            signal.signal(kind, handler)


def _interrupt(number: int, frame: FrameType | None) -> None:
    signal.signal(signal.SIGALRM, _interrupt)
    signal.setitimer(signal.ITIMER_REAL, SECONDS_TO_STOP)
    raise Interrupted
