"""How the cells stand, while they run: a table on a terminal, a line at every change elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

from burnish.compare.grid import Standing, State
from burnish.compare.plan import PlannedRun, resolve
from burnish.runs.metrics import METRICS, last_metrics

REFRESH_SECONDS = 1.0
PLAIN_SECONDS = 60.0  # between two lines about all that runs
STYLES = {
    State.WAITING: "dim",
    State.RUNNING: "cyan",
    State.FINISHED: "green",
    State.STOPPED: "yellow",
    State.FAILED: "bold red",
}


class Reached(NamedTuple):
    """How far a run is, by its last line of metrics."""

    share: float  # of its environment steps, or of its updates or epochs
    evaluation: str


class Display:
    """For `with`; `show` is called again and again."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._live: Any = None
        self._shown_at = -REFRESH_SECONDS
        self._told_at = time.monotonic()
        self._states: dict[PlannedRun, State] = {}
        self._lengths: dict[PlannedRun, tuple[str, float]] = {}

    def __enter__(self) -> Display:
        if sys.stderr.isatty():
            from rich.console import Console
            from rich.live import Live

            self._live = Live(console=Console(stderr=True), auto_refresh=False)
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.stop()

    def show(self, cells: Sequence[Standing]) -> None:
        """Tell what changed; redraw at most once a second."""
        changed = [p for p in cells if self._states.get(p.cell, State.WAITING) is not p.state]
        self._states = {p.cell: p.state for p in cells}
        now = time.monotonic()
        if self._live is not None:
            if changed or now - self._shown_at >= REFRESH_SECONDS:
                self._live.update(self._table(cells), refresh=True)
                self._shown_at = now
            return
        for standing in changed:
            self._tell(f"{standing.state.value:<9} {standing.cell}  {standing.message}".rstrip())
        if now - self._told_at >= PLAIN_SECONDS:
            self._told_at = now
            running = [f"{p.cell} {self.reached(p.cell).share:.0%}" for p in cells if p.state is State.RUNNING]
            done = sum(p.state is State.FINISHED for p in cells)
            self._tell(f"{done} of {len(cells)} finished; running: {', '.join(running) or 'none'}")

    def _tell(self, text: str) -> None:
        print(f"compare: {text}", file=sys.stderr, flush=True)

    def _table(self, cells: Sequence[Standing]) -> Any:
        from rich.markup import escape
        from rich.table import Table

        done = sum(p.state is State.FINISHED for p in cells)
        table = Table(title=f"{self.folder}: {done} of {len(cells)} finished")
        for name in ("task", "method", "seed", "state", "done", "minutes", "evaluation"):
            table.add_column(name, justify="right" if name in ("seed", "done", "minutes") else "left")
        for p in cells:
            running = p.state is State.RUNNING
            reached = self.reached(p.cell) if running else Reached(float(p.state is State.FINISHED), "")
            minutes = f"{(time.monotonic() - p.started) / 60:.1f}" if running else ""
            said = p.message or reached.evaluation
            words = (p.cell.task, p.cell.method, str(p.cell.seed), p.state.value, f"{reached.share:.0%}", minutes, said)
            table.add_row(*(escape(word) for word in words), style=STYLES[p.state])
        return table

    def reached(self, cell: PlannedRun) -> Reached:
        """How far a run is; nothing where it has not begun."""
        line = last_metrics(cell.folder / METRICS)
        if cell not in self._lengths:
            self._lengths[cell] = _length(cell)
        unit, length = self._lengths[cell]
        shown = [
            f"{name} {line[key]:.3g}"
            for name, key in (("success", "train/success_rate"), ("return", "train/return"))
            if line.get(key) is not None
        ]
        return Reached(min(line.get(unit, 0) / length, 1.0), "  ".join(shown))


def _length(cell: PlannedRun) -> tuple[str, float]:
    """The key of metrics.jsonl that counts, and up to where."""
    config = resolve(cell)
    if cell.is_compared:
        return "step", config.offline.steps + config.total_env_steps
    return ("step", config.train.updates) if config.train.epochs is None else ("epoch", config.train.epochs)
