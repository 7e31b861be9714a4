"""The cells of a comparison, run to their end: what is finished stays, what was cut short goes on."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from enum import Enum
from pathlib import Path
from typing import Any, Protocol

from burnish.compare.plan import PlannedRun, parsed, resolve
from burnish.errors import BurnishError, NotInstalled
from burnish.machine.stop import StopRequest
from burnish.policies.folder import fingerprint
from burnish.runs.checkpoint import Checkpoints
from burnish.runs.evaluation_file import weights_at_start
from burnish.runs.folder import CONFIG, load_config
from burnish.runs.summary import SUMMARY

NOT_DECISIVE = (
    *("device", "torch_threads", "backend", "n_workers", "worker_timeout"),
    *("wandb", "resume", "overwrite", "run_dir", "plugins"),
)
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
class Standing:
    """A cell and how it stands."""

    cell: PlannedRun
    state: State = State.WAITING
    message: str = ""  # why it failed
    started: float = 0.0  # time.monotonic()


class Runner(Protocol):
    """Where cells run."""

    def has_room(self) -> bool:
        """Whether one more can be started."""

    def start(self, cell: PlannedRun, words: Sequence[str], log: Path) -> None:
        """Run `burnish WORDS`; what it prints is added to `log`."""

    def ended(self) -> list[tuple[PlannedRun, int]]:
        """The cells that ended since this was last asked, and their exit statuses."""

    def stop(self) -> None:
        """Ask all that run to save and end; `ended` tells when they have."""


class Grid:
    """All cells of one comparison."""

    def __init__(self, folder: Path, cells: Sequence[PlannedRun]):
        """`folder` is the comparison's; looks which cells are finished already."""
        self.folder = folder
        self.cells = [Standing(cell, State.FINISHED if is_finished(cell) else State.WAITING) for cell in cells]

    def run(self, runner: Runner, show: Callable[[Sequence[Standing]], None]) -> bool:
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
    def unfinished(self) -> dict[PlannedRun, str]:
        """The cells without a result, and why."""
        return {p.cell: p.message or p.state.value for p in self.cells if p.state is not State.FINISHED}

    def _in(self, state: State) -> list[Standing]:
        return [standing for standing in self.cells if standing.state is state]

    def _start(self, runner: Runner) -> None:
        for standing in self._in(State.WAITING):
            source = self.source(standing.cell)
            if source is not None and source.state in (State.FAILED, State.STOPPED):
                standing.state, standing.message = State.FAILED, f"it has no policy to start from: see {source.cell}"
            elif source is not None and source.state is not State.FINISHED:
                continue
            elif is_finished(standing.cell):  # its policy was trained again and has the same weights
                standing.state = State.FINISHED
            elif runner.has_room():
                log = log_path(self.folder, standing.cell)
                log.parent.mkdir(parents=True, exist_ok=True)
                runner.start(standing.cell, self._words(standing.cell), log)
                standing.state, standing.started = State.RUNNING, time.monotonic()

    def source(self, cell: PlannedRun) -> Standing | None:
        """The cell that pretrains this one's policy."""
        sources = (standing for standing in self.cells if not standing.cell.is_compared)
        return next((source for source in sources if f"policy={source.cell.folder}" in cell.words), None)

    def _words(self, cell: PlannedRun) -> list[str]:
        """What to run: the rest of an interrupted cell, or all of it."""
        if is_current(cell) and Checkpoints(cell.folder / "checkpoints").latest():
            anew = [f"{key}={getattr(resolve(cell), key)}" for key in ("torch_threads", "device", "wandb")]
            return [RESUMED_BY.get(cell.command, cell.command), f"resume={cell.folder}", *anew]
        self._forget_what_started_from(cell)
        return [cell.command, *cell.words, "overwrite=true"]

    def _forget_what_started_from(self, cell: PlannedRun) -> None:
        """The policy of `cell` will be another one: make the results of the earlier one stale, on disk and also those
        of methods that are left out this time. Where the weights they started from are known, these decide."""
        for path in self.folder.glob(f"{cell.task}/**/seed*/config.yaml"):
            policy = load_config(path.parent).get("policy")
            ours = isinstance(policy, str) and Path(policy).resolve() == cell.folder.resolve()
            if ours and weights_at_start(path.parent) is None:
                path.unlink()
        for standing in self.cells:
            if f"policy={cell.folder}" in standing.cell.words:
                standing.state = State.WAITING

    def _collect(self, runner: Runner) -> None:
        for cell, status in runner.ended():
            standing = next(standing for standing in self.cells if standing.cell == cell)
            if status == 0 and is_finished(cell):
                standing.state = State.FINISHED
            elif status == STOPPED_STATUS:
                standing.state = State.STOPPED
            else:
                standing.state = State.FAILED
                standing.message = f"exit status {status}: {last_line(log_path(self.folder, cell))}"


RESUMED_BY = {"scratch": "finetune"}
"""The command that goes on with a run, where it is not the one that started it."""


def log_path(folder: Path, cell: PlannedRun) -> Path:
    """Where what a cell prints is kept."""
    return folder / "logs" / f"{cell.task}-{cell.method}-seed{cell.seed}.log".replace("/", "-")


def last_line(log: Path) -> str:
    """The last words of a cell, which say why it failed."""
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines() if log.is_file() else []
    return next((line.strip() for line in reversed(lines) if line.strip()), "it printed nothing")


def is_finished(cell: PlannedRun) -> bool:
    """Whether its run folder holds the result of its configuration."""
    return (cell.folder / SUMMARY).is_file() and is_current(cell)


def in_words(cell: PlannedRun) -> str:
    """What is there of it, in words: nothing for a cell that was not begun."""
    if is_finished(cell):
        return "finished"
    if is_current(cell):
        return "begun, goes on"
    return "made by another configuration or policy, runs again" if cell.folder.exists() else ""


def is_current(cell: PlannedRun) -> bool:
    """Whether its run folder was made by its configuration, as far as that decides the result."""
    try:
        expected = resolve(cell)
    except NotInstalled:  # `plan` leaves it so where there is only a report to write
        return (cell.folder / CONFIG).is_file()
    try:
        found = parsed(cell, load_config(cell.folder))
    except BurnishError:  # no run, or one that this version would refuse
        return False
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
    how = {"backend": "auto", "n_workers": None, "n_envs": 1, "video": 0, "worker_timeout": 1.0}
    values["evaluation"] = replace(config.evaluation, **how)
    values["envpool"] = "envpool" in (getattr(config, "backend", ""), config.evaluation.backend)  # other random numbers
    return values
