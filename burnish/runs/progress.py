"""How far, how fast, how long still: a bar on a terminal, a plain line now and then in a log file."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import Any

PLAIN_INTERVAL = 30.0  # seconds between two lines where there is no terminal
FIRST_LINE = 2.0  # seconds before the first of them: whoever started it looks whether it goes


class Progress:
    """Progress over `total` units, `initial` of them done before.

    Used as a context manager: `with Progress(1000, "pretrain") as progress: progress.update(1, loss=0.1)`.
    """

    def __init__(self, total: int, description: str, initial: int = 0) -> None:
        self.total = total
        self.description = description
        self.done = self.initial = initial
        self._shown: dict[str, float] = {}
        self._printed: tuple[int, dict[str, float]] | None = None  # what the last line showed
        self._bar: Any = None

    def __enter__(self) -> Progress:
        self._start = time.monotonic()
        self._last_line = self._start - max(PLAIN_INTERVAL - FIRST_LINE, 0.0)
        if sys.stderr.isatty():
            self._bar = _bar()
            self._task = self._bar.add_task(self.description, total=self.total, completed=self.done, status="")
            self._bar.start()
        return self

    def update(self, n: int = 1, **shown: float) -> None:
        """Count `n` more units as done; `shown` are metrics to show until they are given anew."""
        self.done += n
        self._shown.update(shown)
        if self._bar is not None:
            self._bar.update(self._task, completed=self.done, status=self._status())
        elif time.monotonic() - self._last_line >= PLAIN_INTERVAL:
            self._print_line()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()
        elif kind is None and self._printed != (self.done, self._shown):
            self._print_line()

    def _print_line(self) -> None:
        self._last_line, self._printed = time.monotonic(), (self.done, dict(self._shown))
        percent = 100 * self.done / max(self.total, 1)
        line = f"{self.description}: {self.done:,}/{self.total:,} ({percent:.0f} %)  {self._status()}"
        print(line, file=sys.stderr, flush=True)

    def _status(self) -> str:
        rate = (self.done - self.initial) / max(time.monotonic() - self._start, 1e-9)
        left = _duration((self.total - self.done) / rate) if rate > 0 else "?"
        metrics = "".join(f"  {name} {value:.4g}" for name, value in self._shown.items())
        return f"{rate:,.4g}/s  {left} left{metrics}"


def _bar() -> Any:
    from rich import progress
    from rich.console import Console

    return progress.Progress(
        progress.TextColumn("{task.description}"),
        progress.BarColumn(bar_width=30),
        progress.MofNCompleteColumn(),
        progress.TextColumn("{task.fields[status]}"),
        console=Console(stderr=True),
    )


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}"
