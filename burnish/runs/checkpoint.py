"""The checkpoints of a run: their folders, and what is in one.

    checkpoints/step_00012800/
        policy.json, policy.safetensors    the policy, which evaluates alone (burnish.policies.folder)
        SHA256SUMS                         of these (burnish.machine.checksums); trainer.pt has its own inside
        trainer.pt                         a `TrainerFile`: what the run needs to go on exactly there

trainer.pt is plain data (burnish.runs.state). Its keys are the names of the fields below: older checkpoints are read
as long as no field is renamed and each one added later has a default. docs/checkpoint.md has the whole table.
"""

from __future__ import annotations

import itertools
import re
import shutil
from collections.abc import Callable
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from typing import Any, TypeVar

from burnish.config import parse
from burnish.errors import BurnishError, warn
from burnish.machine.checksums import Damaged, verify_all
from burnish.machine.disk import flush, restore_folder, save_folder, siblings, standing, write_atomically, writing
from burnish.runs.state import load_state, random_states, restore_random_states, save_state, verify_state

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
        unfinished: metrics whose line waits for an evaluation that was given up, and whether a checkpoint is due then.
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
    unfinished: dict[str, Any] | None = None


@dataclass(frozen=True)
class PretrainState:
    """What a pretraining is after a gradient step: `state` of its trainer.pt.

    Attributes:
        trainer: `BehaviourCloning.state_dict`: weights, their average, optimizer, schedule, generator, step.
        best, best_step: success rate and return of the best evaluation, and the number of its checkpoint.
        unfinished: metrics whose line waits for an evaluation that was given up.
    """

    trainer: dict[str, Any]
    best: tuple[float, float]
    best_step: int | None = None  # the first checkpoints do not say
    unfinished: dict[str, float] | None = None


@dataclass(frozen=True)
class TrainerFile:
    """The content of trainer.pt.

    Attributes:
        state: a `FinetuneState` or `PretrainState` as keys and values.
        random: the global generators of Python, numpy and torch (`random_states`).
        n_metric_lines: lines of metrics.jsonl that were written before; a resumed run drops those after them.
        data: fingerprint of the demonstrations (`burnish.datasets.fingerprint`); None: it has none, or an older run.
    """

    state: dict[str, Any]
    random: dict[str, Any]
    n_metric_lines: int
    data: dict[str, Any] | None = None

    @classmethod
    def now(
        cls, state: FinetuneState | PretrainState, n_metric_lines: int, data: dict[str, Any] | None = None
    ) -> TrainerFile:
        """With the global generators as they are."""
        return cls(_contents(state), random_states(), n_metric_lines, data)

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


def run_of(folder: Path) -> Path:
    """The run folder that a checkpoint is in; of another folder itself."""
    found = folder.resolve()
    return found.parent.parent if found.parent.name == "checkpoints" else folder


class Checkpoints:
    """The folders `step_00000100/` of a run, with the symlinks `latest` and `best`.

    Where there are no symbolic links these two are files that hold a folder's name, and in a copy that followed the
    links they are folders: all of it is read. Whatever has another name is neither looked at nor deleted.

    A run has one writer, which calls `recover` first; whoever else reads changes nothing. Methods that write raise
    BurnishError where the disk refuses.

    Attributes:
        folder: where they are.
        keep: how many of the newest stay; the best one stays besides.
    """

    def __init__(self, folder: str | Path, keep: int = 2) -> None:
        self.folder = Path(folder)
        self.keep = keep

    def recover(self) -> None:
        """Put in its place what a writer that was killed had moved, and delete what it had not finished."""
        left = [path for kind in ("previous", "unfinished") for path in self.folder.glob(f".*.{kind}")]
        with writing(self.folder):
            for name in {path.stem[1:] for path in left if STEP.fullmatch(path.stem[1:])}:
                restore_folder(self.folder / name)
            for name in ("latest", "best"):
                delete(siblings(self.folder / name)[0])
                restore_folder(self.folder / name)

    def save(self, step: int, write: Callable[[Path], None]) -> Path:
        """Write the checkpoint of `step`, point `latest` at it and delete those too old to keep."""
        path = save_folder(self._path(step), write)
        with writing(self.folder):
            self._point("latest", path)
            kept = {*self._steps()[-self.keep :], path, self.best()}
            for old in self._steps():
                if old not in kept:
                    self._delete(old)
        return path

    def _delete(self, path: Path) -> None:
        """Renamed first: a folder that is half deleted must not look like a checkpoint."""
        restore_folder(path)  # what is left of an earlier one would come back
        shutil.rmtree(path.rename(siblings(path)[0]), ignore_errors=True)

    def delete_all(self) -> None:
        """What a run has written here, and nothing else."""
        self.recover()
        with writing(self.folder):
            for name in ("latest", "best"):
                delete(self.folder / name)
            for path in self._steps():
                self._delete(path)

    def newest_first(self) -> list[Path]:
        """All of them, also what a killed writer had moved; or the copy that is called `latest`, where that is all."""
        copied = self.folder / "latest"
        return self._steps()[::-1] or [path for path in [copied] if _holds_something(path)]

    def latest(self, *files: str) -> Path | None:
        """The newest whole checkpoint, also after the process was killed; None where there is none.

        It has `files`: newer ones that lack some, as a copy that was cut short leaves them, are warned of.
        """
        for path in self.newest_first():
            missing = [name for name in files if not (path / name).is_file()]
            if not missing:
                return path
            warn(f"{path} is no whole checkpoint, it lacks {', '.join(missing)}: looking for an older one")
        return None

    def newest_undamaged(self) -> tuple[Path | None, dict[Path, Damaged]]:
        """The newest checkpoint that a run can go on from, looked at to its last byte, and what is wrong with newer
        ones. Raises Damaged, of the newest, where all of them are damaged."""
        damaged: dict[Path, Damaged] = {}
        for path in self.newest_first():
            try:
                verify_all(path)
                verify_state(path / TRAINER)
            except Damaged as error:
                damaged[path] = error
            else:
                return path, damaged
        if damaged:
            raise next(iter(damaged.values()))
        return None, {}

    def set_aside(self, path: Path) -> Path:
        """Give a damaged checkpoint a name under which it is neither read nor deleted -> the new path."""
        names = (f"{path.name}.damaged{n or ''}" for n in itertools.count())
        with writing(self.folder):
            return path.rename(next(new for name in names if not (new := self.folder / name).exists()))

    def best(self) -> Path | None:
        """The checkpoint last given to `mark_best`, or its copy; None where there is none."""
        link = self.folder / "best"
        found = self.folder / link.readlink().name if link.is_symlink() else checkpoint_at(link)
        found = standing(found)
        return found if _holds_something(found) else None

    def mark_best(self, step: int) -> None:
        """Point `best` at the checkpoint of `step`, which must have been saved."""
        path = self._path(step)
        if not path.is_dir():
            raise ValueError(f"{path} was not saved")
        with writing(self.folder):
            self._point("best", path)

    def keep_best(self, step: int) -> None:
        """`mark_best` where the checkpoint of `step` is there, but `best` was lost by a copy, or is an older one, as a
        process leaves it that is killed after it saved the best and before it marked it."""
        best = self.best()
        marked = STEP.fullmatch(best.name) if best else None
        if self._path(step) in self._steps() and (best is None or (marked and int(marked[1]) < step)):
            self.mark_best(step)

    def _path(self, step: int) -> Path:
        return self.folder / f"step_{step:08d}"

    def _steps(self) -> list[Path]:
        """The checkpoints, the newest last."""
        names = {path.name for path in self.folder.glob("step_*")}
        names |= {path.stem[1:] for path in self.folder.glob(".step_*.previous")}
        steps = {self.folder / name: int(match[1]) for name in names if (match := STEP.fullmatch(name))}
        found = {standing(path): step for path, step in steps.items()}
        return sorted(filter(_holds_something, found), key=lambda path: found[path])

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


def delete(path: Path) -> None:
    """A file, a link or a folder, where it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
