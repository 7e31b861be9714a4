"""Being asked to stop: save, end, and say how to go on."""

from __future__ import annotations

import signal
import sys
from types import FrameType, TracebackType
from typing import Any


class StopRequest:
    """Turns the first SIGTERM or SIGINT into a flag, so that a loop can save and end; the next interrupts.

    Requests nest: a sweep learns from its job's request that it was asked to stop, and the other way round.

    Attributes:
        requested: True once the process was asked to stop.
    """

    def __init__(self) -> None:
        self.requested = False
        self._previous: dict[signal.Signals, Any] = {}

    def __enter__(self) -> StopRequest:
        for kind in (signal.SIGTERM, signal.SIGINT):
            self._previous[kind] = signal.signal(kind, self._handle)
        self.requested = any(outer.requested for outer in self._outer())
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        for outer in self._outer():
            outer.requested |= self.requested

    def _outer(self) -> list[StopRequest]:
        owners = [getattr(handler, "__self__", None) for handler in self._previous.values()]
        return [owner for owner in owners if isinstance(owner, StopRequest)]

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.requested:
            raise KeyboardInterrupt
        self.requested = True
        print("\nstopping after a checkpoint (once more to stop at once)", file=sys.stderr, flush=True)
