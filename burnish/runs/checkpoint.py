"""The checkpoints of a run: their folders, and what is in one.

    checkpoints/step_00012800/
        policy.json, policy.safetensors    the policy, which evaluates alone (burnish.policies.folder)
        trainer.pt                         a `TrainerFile`: what the run needs to go on exactly there

trainer.pt is plain data (burnish.runs.state). Its keys are the names of the fields below: older checkpoints are read
as long as no field is renamed and each one added later has a default. docs/checkpoint.md has the whole table.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from typing import Any, TypeVar

from burnish.config import parse
from burnish.errors import BurnishError, warn
from burnish.machine.disk import flush, restore_folder, save_folder, siblings, write_atomically
from burnish.runs.state import load_state, random_states, restore_random_states, save_state

TRAINER = "trainer.pt"
STEP = re.compile(r"step_(\d{8,})")
T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class FinetuneState:
    """What a fine-tuning is at the end of an update: `state` of its trainer.pt.

    Attributes:
        stage: the algorithm's (`Stage.state_dict`): weights, optimizers, replay or rollout, generator, counters.
        envs: the simulators' (`VectorEnv.state_dict`); None where they cannot be saved: then episodes start anew.
        obs: what they gave last (E, To, Do); None where there are none.
        statistics: of training episodes that are running or were not reported yet (`EpisodeStatistics`).
        env_steps, updates: done so far.
        training_seconds: acting and updating, as logged.
        unlogged: seconds and environment steps since the last line of metrics.jsonl.
        looked_at: environment steps when evaluations and checkpoints were last thought of.
        noise_compared: whether the warning about too much exploration noise was considered.
        best, best_step: success rate and return of the best evaluation, and the number of its checkpoint.
        before: summary of the first evaluation, as summary.json has it.
        episodes: successes of the first and the latest training episodes (`TrainingEpisodes`).
        offline_steps: gradient steps of the offline phase done so far.
        best_env_steps: environment steps at the best evaluation; None: its checkpoint's number, in older runs.
    """

    stage: dict[str, Any]
    envs: dict[str, Any] | None
    obs: Any
    statistics: dict[str, Any]
    env_steps: int
    updates: int
    training_seconds: float
    unlogged: tuple[float, int] = (0.0, 0)  # the first checkpoints do not say
    looked_at: int
    noise_compared: bool
    best: tuple[float, float]
    best_step: int
    before: dict[str, Any]
    episodes: dict[str, Any] | None = None  # the first checkpoints do not have them
    offline_steps: int = 0
    best_env_steps: int | None = None


@dataclass(frozen=True)
class PretrainState:
    """What a pretraining is after a gradient step: `state` of its trainer.pt.

    Attributes:
        trainer: `BehaviourCloning.state_dict`: weights, their average, optimizer, schedule, generator, step.
        best: success rate and return of the best evaluation.
    """

    trainer: dict[str, Any]
    best: tuple[float, float]


@dataclass(frozen=True)
class TrainerFile:
    """The content of trainer.pt.

    Attributes:
        state: a `FinetuneState` or `PretrainState` as keys and values.
        random: the global generators of Python, numpy and torch (`random_states`).
        n_metric_lines: lines of metrics.jsonl that were written before; a resumed run drops those after them.
    """

    state: dict[str, Any]
    random: dict[str, Any]
    n_metric_lines: int

    @classmethod
    def now(cls, state: FinetuneState | PretrainState, n_metric_lines: int) -> TrainerFile:
        """With the global generators as they are."""
        return cls(_contents(state), random_states(), n_metric_lines)

    def write(self, checkpoint: Path) -> None:
        """Write trainer.pt into the folder."""
        save_state(checkpoint / TRAINER, _contents(self))

    @classmethod
    def read(cls, checkpoint: Path) -> TrainerFile:
        """Of the folder's trainer.pt. Raises BurnishError where it is missing, damaged or something else."""
        trainer = _of(cls, load_state(checkpoint / TRAINER), checkpoint / TRAINER)
        if trainer.n_metric_lines < 0:
            raise BurnishError(f"{checkpoint / TRAINER}: n_metric_lines={trainer.n_metric_lines}: expected at least 0")
        return trainer

    def restore(self, kind: type[T], checkpoint: Path) -> T:
        """Set the global generators to what they were -> the state, as the dataclass `kind`.

        Raises BurnishError where it is the state of another kind of run.
        """
        state = _of(kind, self.state, checkpoint / TRAINER)
        restore_random_states(self.random)
        return state


def _contents(instance: Any) -> dict[str, Any]:
    """The fields, in their order; not copied, what they hold may be large."""
    return {field.name: getattr(instance, field.name) for field in fields(instance)}


def _of(kind: type[T], content: dict[str, Any], path: Path) -> T:
    """Keys that this version does not know are left out."""
    known = {field.name: field for field in fields(kind)}  # type: ignore[arg-type]
    if not isinstance(content, dict):
        raise BurnishError(f"{path} is no checkpoint of such a run: it holds a {type(content).__name__}")
    if missing := [name for name, field in known.items() if name not in content and field.default is MISSING]:
        raise BurnishError(f"{path} is no checkpoint of such a run: it lacks {', '.join(missing)}")
    try:
        return parse(kind, {name: value for name, value in content.items() if name in known})
    except BurnishError as error:
        raise BurnishError(f"{path} is no checkpoint of such a run: {error}") from error


def checkpoint_at(path: Path) -> Path:
    """The folder that `path` stands for: itself, or that named by a small file, as `latest` and `best` are where there
    are no symbolic links (or where git or an archive made files of them)."""
    if not path.is_file():
        return path
    try:
        name = path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError):
        return path
    return path.with_name(name) if STEP.fullmatch(name) else path


class Checkpoints:
    """The folders `step_00000100/` of a run, with the symlinks `latest` and `best`.

    Where there are no symbolic links these two are files that hold a folder's name, and in a copy that followed the
    links they are folders: all of it is read. Whatever has another name is neither looked at nor deleted.

    Attributes:
        folder: where they are.
        keep: how many of the newest stay; the best one stays besides.
    """

    def __init__(self, folder: str | Path, keep: int = 2) -> None:
        self.folder = Path(folder)
        self.keep = keep

    def save(self, step: int, write: Callable[[Path], None]) -> Path:
        """Write the checkpoint of `step`, point `latest` at it and delete those too old to keep."""
        path = save_folder(self._path(step), write)
        self._point("latest", path)
        kept = {*self._steps()[-self.keep :], path, self.best()}
        for old in self._steps():
            if old not in kept:
                unfinished, previous = siblings(old)
                for left_over in (unfinished, previous):  # by a process that was killed; the latter would come back
                    shutil.rmtree(left_over, ignore_errors=True)
                # Renamed first: a folder that is half deleted must not look like a checkpoint.
                shutil.rmtree(old.rename(unfinished), ignore_errors=True)
        return path

    def latest(self, *files: str) -> Path | None:
        """The newest whole checkpoint, also after the process was killed; None where there is none.

        It has `files`: newer ones that lack some, as a copy that was cut short leaves them, are warned of.
        """
        for previous in self.folder.glob(".step_*.previous"):
            restore_folder(previous.with_name(previous.stem[1:]))
        copied = self.folder / "latest"
        found = self._steps() or [path for path in [copied] if _holds_something(path)]
        for path in reversed(found):
            missing = [name for name in files if not (path / name).is_file()]
            if not missing:
                return path
            warn(f"{path} is no whole checkpoint, it lacks {', '.join(missing)}: looking for an older one")
        return None

    def best(self) -> Path | None:
        """The checkpoint last given to `mark_best`, or its copy; None where there is none."""
        link = self.folder / "best"
        found = self.folder / link.readlink().name if link.is_symlink() else checkpoint_at(link)
        return found if _holds_something(found) else None

    def mark_best(self, step: int) -> None:
        """Point `best` at the checkpoint of `step`, which must have been saved."""
        path = self._path(step)
        if not path.is_dir():
            raise ValueError(f"{path} was not saved")
        self._point("best", path)

    def keep_best(self, step: int) -> None:
        """`mark_best` where a copy of the run has lost its `best`, and has the checkpoint of `step`."""
        if self.best() is None and self._path(step) in self._steps():
            self.mark_best(step)

    def _path(self, step: int) -> Path:
        return self.folder / f"step_{step:08d}"

    def _steps(self) -> list[Path]:
        """The checkpoints, the newest last."""
        named = {path: STEP.fullmatch(path.name) for path in self.folder.glob("step_*")}
        steps = {path: int(match[1]) for path, match in named.items() if match and _holds_something(path)}
        return sorted(steps, key=lambda path: steps[path])

    def _point(self, name: str, path: Path) -> None:
        link, unfinished = self.folder / name, self.folder / f".{name}.unfinished"
        unfinished.unlink(missing_ok=True)
        copied = link.is_dir() and not link.is_symlink()
        if copied:  # by something that followed the link
            shutil.rmtree(siblings(link)[1], ignore_errors=True)
            link.rename(siblings(link)[1])
        try:
            unfinished.symlink_to(path.name)
            unfinished.replace(link)
        except (OSError, NotImplementedError):  # exFAT, some network drives, Windows
            unfinished.unlink(missing_ok=True)
            write_atomically(link, path.name + "\n")
        if copied:
            shutil.rmtree(siblings(link)[1], ignore_errors=True)
        flush(self.folder)


def _holds_something(path: Path) -> bool:
    return path.is_dir() and any(path.iterdir())
