"""The cells of a comparison, run to their end: what is finished stays, what was cut short goes on."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from enum import Enum
from pathlib import Path
from typing import Any, Protocol

from burnish.compare.plan import Cell, parsed, resolve
from burnish.compare.results import weights_at_start
from burnish.errors import BurnishError
from burnish.policies.folder import fingerprint
from burnish.runs.checkpoint import Checkpoints
from burnish.runs.folder import load_config
from burnish.runs.stop import StopRequest

NOT_DECISIVE = ("device", "torch_threads", "backend", "n_workers", "wandb", "resume", "overwrite", "run_dir")
"""Keys of a run's configuration that do not decide its result."""
STOPPED_STATUS = 130  # of a run that was asked to stop and can be resumed
POLL_SECONDS = 0.2


class State(Enum):
    """Where a cell stands."""

    WAITING = "waiting"
    RUNNING = "running"
    FINISHED = "finished"
    STOPPED = "stopped"
    FAILED = "failed"


@dataclass
class Progress:
    """A cell and how it stands."""

    cell: Cell
    state: State = State.WAITING
    message: str = ""  # why it failed
    started: float = 0.0  # time.monotonic()


class Runner(Protocol):
    """Where cells run."""

    def has_room(self) -> bool:
        """Whether one more can be started."""

    def start(self, cell: Cell, words: Sequence[str], log: Path) -> None:
        """Run `burnish WORDS`; what it prints is added to `log`."""

    def ended(self) -> list[tuple[Cell, int]]:
        """The cells that ended since this was last asked, and their exit statuses."""

    def stop(self) -> None:
        """Ask all that run to save and end; `ended` tells when they have."""


class Grid:
    """All cells of one comparison."""

    def __init__(self, folder: Path, cells: Sequence[Cell]):
        """`folder` is the comparison's; looks which cells are finished already."""
        self.folder = folder
        self.cells = [Progress(cell, State.FINISHED if is_finished(cell) else State.WAITING) for cell in cells]

    def run(self, runner: Runner, show: Callable[[Sequence[Progress]], None]) -> bool:
        """Run what is not finished -> whether it came to the end (False: asked to stop, all is saved)."""
        with StopRequest() as stop:
            asked = False
            while self._in(State.RUNNING) or (self._in(State.WAITING) and not asked):
                if stop.requested and not asked:
                    runner.stop()
                    asked = True
                if not asked:
                    self._start(runner)
                time.sleep(POLL_SECONDS)
                self._collect(runner)
                show(self.cells)
        return not asked

    @property
    def unfinished(self) -> dict[Cell, str]:
        """The cells without a result, and why."""
        return {p.cell: p.message or p.state.value for p in self.cells if p.state is not State.FINISHED}

    def _in(self, state: State) -> list[Progress]:
        return [progress for progress in self.cells if progress.state is state]

    def _start(self, runner: Runner) -> None:
        for progress in self._in(State.WAITING):
            source = self.source(progress.cell)
            if source is not None and source.state in (State.FAILED, State.STOPPED):
                progress.state, progress.message = State.FAILED, f"it has no policy to start from: see {source.cell}"
            elif source is not None and source.state is not State.FINISHED:
                continue
            elif is_finished(progress.cell):  # its policy was trained again and has the same weights
                progress.state = State.FINISHED
            elif runner.has_room():
                log = log_path(self.folder, progress.cell)
                log.parent.mkdir(parents=True, exist_ok=True)
                runner.start(progress.cell, self._words(progress.cell), log)
                progress.state, progress.started = State.RUNNING, time.monotonic()

    def source(self, cell: Cell) -> Progress | None:
        """The cell that pretrains this one's policy."""
        sources = (progress for progress in self.cells if not progress.cell.is_compared)
        return next((source for source in sources if f"policy={source.cell.folder}" in cell.words), None)

    def _words(self, cell: Cell) -> list[str]:
        """What to run: the rest of an interrupted cell, or all of it."""
        if is_current(cell) and Checkpoints(cell.folder / "checkpoints").latest():
            anew = [f"{key}={getattr(resolve(cell), key)}" for key in ("torch_threads", "device", "wandb")]
            return [RESUMED_BY.get(cell.command, cell.command), f"resume={cell.folder}", *anew]
        self._forget_what_started_from(cell)
        return [cell.command, *cell.words, "overwrite=true"]

    def _forget_what_started_from(self, cell: Cell) -> None:
        """The policy of `cell` will be another one: make the results of the earlier one stale, on disk and also those
        of methods that are left out this time. Where the weights they started from are known, these decide."""
        for path in self.folder.glob(f"{cell.task}/*/seed*/config.yaml"):
            policy = load_config(path.parent).get("policy")
            ours = isinstance(policy, str) and Path(policy).resolve() == cell.folder.resolve()
            if ours and weights_at_start(path.parent) is None:
                path.unlink()
        for progress in self.cells:
            if f"policy={cell.folder}" in progress.cell.words:
                progress.state = State.WAITING

    def _collect(self, runner: Runner) -> None:
        for cell, status in runner.ended():
            progress = next(progress for progress in self.cells if progress.cell == cell)
            if status == 0 and is_finished(cell):
                progress.state = State.FINISHED
            elif status == STOPPED_STATUS:
                progress.state = State.STOPPED
            else:
                progress.state = State.FAILED
                progress.message = f"exit status {status}: {last_line(log_path(self.folder, cell))}"


RESUMED_BY = {"scratch": "finetune"}
"""The command that goes on with a run, where it is not the one that started it."""


def log_path(folder: Path, cell: Cell) -> Path:
    """Where what a cell prints is kept."""
    return folder / "logs" / f"{cell.task}-{cell.method}-seed{cell.seed}.log"


def last_line(log: Path) -> str:
    """The last words of a cell, which say why it failed."""
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines() if log.is_file() else []
    return next((line.strip() for line in reversed(lines) if line.strip()), "it printed nothing")


def is_finished(cell: Cell) -> bool:
    """Whether its run folder holds the result of its configuration."""
    return (cell.folder / "summary.json").is_file() and is_current(cell)


def standing(cell: Cell) -> str:
    """What is there of it, in words: nothing for a cell that was not begun."""
    if is_finished(cell):
        return "finished"
    if is_current(cell):
        return "begun, goes on"
    return "made by another configuration or policy, runs again" if cell.folder.exists() else ""


def is_current(cell: Cell) -> bool:
    """Whether its run folder was made by its configuration, as far as that decides the result."""
    try:
        found = parsed(cell, load_config(cell.folder))
    except BurnishError:  # no run, or one that this version would refuse
        return False
    expected = resolve(cell)
    return decisive(found) == decisive(expected) and (
        cell.command != "finetune" or started_from(cell.folder, found.policy, expected.policy)
    )


def started_from(run: Path, policy: str, expected: str) -> bool:
    """Whether the fine-tuning `run`, begun from the folder `policy`, had the weights that are in `expected` now; where
    that cannot be told, whether they are the same folder, however it is spelled."""
    same_folder = Path(policy).resolve() == Path(expected).resolve()
    weights = weights_at_start(run)
    if weights is None:
        return same_folder
    try:
        return weights == fingerprint(expected)
    except BurnishError:  # it was thrown away, or is being trained
        return same_folder and not Path(expected).exists()


def decisive(config: Any) -> dict[str, Any]:
    """A run's configuration without what does not decide its result: the same on other machines."""
    values = {field.name: getattr(config, field.name) for field in fields(config) if field.name not in NOT_DECISIVE}
    if isinstance(values.get("policy"), str):
        del values["policy"]  # see `started_from`
    values["evaluation"] = replace(config.evaluation, backend="auto", n_workers=None, n_envs=1, video=0)
    values["envpool"] = "envpool" in (getattr(config, "backend", ""), config.evaluation.backend)  # other random numbers
    return values
