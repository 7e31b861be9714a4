"""A run folder: config.yaml, metrics.jsonl, summary.json, checkpoints/, plots/, videos/; wandb on demand."""

from __future__ import annotations

import json
import math
import re
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

from burnish.config import load_yaml, to_dict
from burnish.errors import BurnishError, warn
from burnish.foreign import MOST, one_line, told_as
from burnish.machine.disk import siblings, write_atomically, writing
from burnish.machine.lock import LOCK, FolderLock, Held
from burnish.renamed import FORMAT, with_todays_keys
from burnish.runs.checkpoint import TRAINER, Checkpoints, FinetuneState, PretrainState, TrainerFile, delete
from burnish.runs.evaluation_file import AT_BEST_TEMPERATURE, AT_TEMPERATURE, BEFORE, EVALUATION, SELECTED
from burnish.runs.json_file import write_json
from burnish.runs.metrics import METRICS, read_metrics
from burnish.runs.progress import Progress
from burnish.runs.summary import SUMMARY
from burnish.runs.tracking import check_mode, start_wandb

CONFIG = "config.yaml"
T = TypeVar("T")
CURVE = "curve.png"
_FOLDERS = ("checkpoints", "plots", "videos")
_FILES = (METRICS, SUMMARY, EVALUATION, BEFORE, SELECTED, AT_BEST_TEMPERATURE)
_VIDEO = re.compile(r"seed\d+_(success|end)\.mp4")
_KEYS = {"run_dir", "seed", "resume", "overwrite"}  # of every run's config.yaml, of any version


class Run:
    """What one training run writes. A context manager: leaving it closes the files and ends the wandb run.

    From its making to its end it holds the folder's lock: no other process writes there.

    Attributes:
        folder: the run folder.
        checkpoints: its checkpoints.
        data: fingerprint of the demonstrations that it learns from, where there are any.
        n_metric_lines: lines in metrics.jsonl; belongs into each checkpoint, for `truncate_metrics`.
    """

    def __init__(self, folder: Path, config: dict[str, Any], wandb: str, lock: FolderLock) -> None:
        """Not to be called from outside: `Run.create` or `Run.resume`."""
        self.folder = folder
        self.checkpoints = Checkpoints(folder / "checkpoints")
        self.data: dict[str, Any] | None = None
        self._lock = lock
        self._resumed: tuple[Path, TrainerFile] | None = None
        for name in _FOLDERS:
            (folder / name).mkdir(exist_ok=True)
        self._metrics = (folder / METRICS).open("a", encoding="utf-8")
        lines = self._read_metrics()
        self.n_metric_lines = len(lines)
        self._start = time.monotonic() - (lines[-1].get("time/elapsed", 0.0) if lines else 0.0)
        self._wandb = start_wandb(folder, config, wandb) if wandb != "disabled" else None

    @classmethod
    def create(cls, folder: str | Path, config: Any, *, wandb: str = "disabled", overwrite: bool = False) -> Run:
        """Start a run in an empty or new folder; `config` (a dataclass) is written to config.yaml.

        `overwrite` deletes what an earlier run left there, and nothing else. Raises BurnishError where the
        folder holds something, is no run's (with `overwrite`), cannot be written, is being written by another process,
        or is to be overwritten though `config.policy` lies in it, and where `wandb` is not one of disabled, offline,
        online.
        """
        folder = Path(folder)
        check_mode(wandb)
        with _named("run_dir", folder):
            _require_free(folder, overwrite, getattr(config, "policy", None))
            folder.mkdir(parents=True, exist_ok=True)
            lock = FolderLock(folder)
            try:
                _require_free(folder, overwrite, getattr(config, "policy", None))  # what another began meanwhile
                if overwrite:
                    _delete_run(folder)
                _write_config(folder, to_dict(config))
                return cls(folder, to_dict(config), wandb, lock)
            except BaseException:
                lock.release()
                raise

    @classmethod
    def open(cls, config: Any, data: dict[str, Any] | None = None) -> Run:
        """Create the run that `config` describes (its run_dir, resume, wandb and overwrite), or resume it.

        `data`: see `Run.data`. Raises BurnishError where a resumed run learned from others, too.
        """
        if config.resume is not None:
            return cls.resume(config.resume, config, wandb=config.wandb, data=data)
        run = cls.create(config.run_dir, config, wandb=config.wandb, overwrite=config.overwrite)
        run.data = data
        return run

    @classmethod
    def resume(
        cls, folder: str | Path, config: Any = None, *, wandb: str = "disabled", data: dict[str, Any] | None = None
    ) -> Run:
        """Go on in the folder of an earlier run, from its newest checkpoint that is not damaged.

        `config` (a dataclass), where it is given, replaces config.yaml: so a length that was raised stays raised.

        Raises BurnishError where it is no run, is being written by another process, cannot be written, has no
        checkpoint that is not damaged, or learned from other demonstrations than `data`.
        """
        folder = Path(folder)
        check_mode(wandb)
        in_force = load_config(folder)
        with _named("resume", folder):
            lock = FolderLock(folder)
            try:
                checkpoints = Checkpoints(folder / "checkpoints")
                checkpoints.recover()
                found, damaged = checkpoints.newest_undamaged()
                trainer = TrainerFile.read(found) if found else None
                if trainer is not None:
                    _require_same_data(folder, trainer.data, data, getattr(config, "allow", None))
                for path, error in damaged.items():
                    aside = checkpoints.set_aside(path)
                    warn(f"{error}; going on from {found}, and the damaged one is {aside} now")
                for name in (CONFIG, *_FILES):
                    delete(siblings(folder / name)[0])
                if config is not None:
                    in_force = {**to_dict(config), "run_dir": str(folder), "resume": None}
                    _write_config(folder, in_force)
                run = cls(folder, in_force, wandb, lock)
            except BaseException:
                lock.release()
                raise
        run.data = data
        run._resumed = (found, trainer) if found and trainer else None
        return run

    def log(self, metrics: dict[str, Any], step: int) -> None:
        """Append one line to metrics.jsonl. Wall-clock figures have keys `time/...`: all others are the same
        in two runs of one seed. A value that is not finite becomes null, a text stays one."""
        numbers = {name: value if isinstance(value, str) else _number(value) for name, value in metrics.items()}
        elapsed = round(time.monotonic() - self._start, 3)
        line = {"step": int(step), **numbers, "time/elapsed": elapsed}
        finite = {
            name: value if isinstance(value, str) or math.isfinite(value) else None for name, value in line.items()
        }
        with self._writing(METRICS):
            self._metrics.write(json.dumps(finite) + "\n")
            self._metrics.flush()
        self.n_metric_lines += 1
        if self._wandb is not None:
            self._wandb.log({**numbers, "time/elapsed": elapsed}, step=int(step))

    def truncate_metrics(self, n_lines: int) -> None:
        """Drop the lines after the first `n_lines`: those of the time after the checkpoint resumed from."""
        path = self.folder / METRICS
        self._metrics.close()
        kept = path.read_text(encoding="utf-8").splitlines(keepends=True)[:n_lines]
        with self._writing(METRICS):
            write_atomically(path, "".join(kept))
            self._metrics = path.open("a", encoding="utf-8")
        lines = self._read_metrics()
        self.n_metric_lines = len(lines)
        self._start = time.monotonic() - (lines[-1].get("time/elapsed", 0.0) if lines else 0.0)

    def save_checkpoint(
        self, step: int, write_policy: Callable[[Path], None], state: FinetuneState | PretrainState
    ) -> None:
        """Write a policy folder and, in it, what a resumed run needs to go on exactly here.

        Raises BurnishError, and leaves the checkpoints as they are, where a weight of the policy is not finite.
        """

        def write(folder: Path) -> None:
            write_policy(folder)
            _require_finite(folder)
            TrainerFile.now(state, self.n_metric_lines, self.data).write(folder)

        try:
            self.checkpoints.save(step, write)
        except BurnishError as error:
            if isinstance(error.__cause__, OSError):
                raise BurnishError(f"{error}: {self._goes_on}") from error.__cause__
            raise

    def load_checkpoint(self, kind: type[T], take: Callable[[T], None]) -> bool:
        """Undo what came after the checkpoint that the run was resumed from, and give `take` its state, a
        `FinetuneState` or `PretrainState` as `kind` says -> whether there is one; no metrics where there is none yet.
        To be called once.

        Raises BurnishError, the run being as it was, where the state is not what `take` can go on from.
        """
        if self._resumed is None:
            self.truncate_metrics(0)
            return False
        (checkpoint, trainer), self._resumed = self._resumed, None
        try:
            with told_as("its values are of another kind"):
                take(trainer.restore(kind, checkpoint))
        except BurnishError as error:
            raise BurnishError(
                f"{checkpoint / TRAINER} does not fit this run: {error}; use another checkpoint"
            ) from error
        self.truncate_metrics(trainer.n_metric_lines)
        return True

    def metrics(self) -> list[dict[str, Any]]:
        """The lines of metrics.jsonl so far."""
        return self._read_metrics()

    def progress(self, total: int, description: str, initial: int = 0) -> Progress:
        """A progress display for `with`: see `burnish.runs.progress.Progress`."""
        return Progress(total, description, initial)

    def plot_curve(
        self, x_key: str, y_keys: Sequence[str], *, x_label: str | None = None, title: str | None = None
    ) -> Path | None:
        """Draw metrics over `x_key` into plots/curve.png, a panel for each of `y_keys` that was logged, with
        a band where `<key>_low` and `<key>_high` were logged too. None where nothing was logged yet."""
        from burnish.runs.plot import plot_curve

        path = self.folder / "plots" / CURVE
        lines, title = self._read_metrics(), title or self.folder.name
        with self._writing(f"plots/{CURVE}"):
            drawn = plot_curve(lines, x_key, y_keys, path, x_label=x_label, title=title)
        return path if drawn else None

    def finish(self, summary: dict[str, Any]) -> None:
        """Write summary.json and end the run."""
        write_json(self.folder / SUMMARY, summary)
        if self._wandb is not None:
            self._wandb.summary.update(summary)
        self.close()

    def close(self, exit_code: int = 0) -> None:
        """Close the files, end the wandb run and release the lock; harmless a second time."""
        with suppress(OSError):  # a line that the disk refused, as was said
            self._metrics.close()
        try:
            if self._wandb is not None:
                self._wandb.finish(exit_code=exit_code)
                self._wandb = None
        finally:
            self._lock.release()

    def __enter__(self) -> Run:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close(exit_code=0 if kind is None else 1)

    @property
    def _goes_on(self) -> str:
        return f"make room, then go on with resume={self.folder}"

    def _writing(self, name: str) -> AbstractContextManager[None]:
        return writing(self.folder / name, f"the checkpoints are as they were: {self._goes_on}")

    def _read_metrics(self) -> list[dict[str, Any]]:
        return read_metrics(self.folder / METRICS)


def load_config(folder: str | Path) -> dict[str, Any]:
    """The resolved configuration of the run in `folder`, with today's keys whatever made it.

    Raises BurnishError where it is not a run folder, or of a later version.
    """
    import yaml  # here, as training needs none

    path = Path(folder) / CONFIG
    if not path.is_file():
        raise BurnishError(f"{folder} is not a run folder: it has no config.yaml")
    try:
        config = load_yaml(path.read_text(encoding="utf-8"), as_written=True)
    except (yaml.YAMLError, UnicodeDecodeError, OSError) as error:
        raise BurnishError(f"{path} cannot be read: {one_line(str(error), MOST)}") from error
    if not isinstance(config, dict):
        raise BurnishError(f"{path} is damaged: expected keys and values")
    try:
        return with_todays_keys(config)
    except BurnishError as error:
        raise BurnishError(f"{path}: {error}") from error


def _require_finite(policy: Path) -> None:
    """Raise BurnishError for weights that are not finite."""
    from safetensors.torch import load_file

    for file in policy.glob("*.safetensors"):
        for name, weights in load_file(file).items():
            if not weights.isfinite().all():
                raise BurnishError(
                    f"the policy's weights are not finite ({name}): no checkpoint was written, the last one is as it "
                    "was; lower the learning rate, and look for extreme values in the data or the rewards"
                )


def _number(value: Any) -> int | float:
    number = value.item() if hasattr(value, "item") else value
    return int(number) if isinstance(number, (bool, int)) else float(number)


def _write_config(folder: Path, config: dict[str, Any]) -> None:
    import yaml

    write_atomically(folder / CONFIG, yaml.safe_dump({"format": FORMAT, **config}, sort_keys=False, allow_unicode=True))


@contextmanager
def _named(key: str, folder: Path) -> Iterator[None]:
    """Inside, what is wrong with writing the folder is a BurnishError that names the key."""
    try:
        yield
    except OSError as error:
        raise BurnishError(f"{key}={folder} cannot be written: {error.strerror or error}") from error
    except Held as error:
        raise Held(f"{key}={error}") from error


def _require_free(folder: Path, overwrite: bool, policy: Any) -> None:
    """Raise BurnishError where a new run would mix with what is in the folder, or delete what no run has written, or
    the policy to start from."""
    found = sorted(entry.name for entry in folder.iterdir() if _counts(entry)) if folder.exists() else []
    if not found:
        return
    has = f"run_dir={folder} is not empty (it has {', '.join(found[:3])})"
    if not overwrite:
        raise BurnishError(
            f"{has}: go on with resume={folder}, choose another run_dir=..., or delete what it has with overwrite=true"
        )
    if isinstance(policy, str) and Path(policy).resolve().is_relative_to(folder.resolve()):
        raise BurnishError(f"overwrite=true would delete policy={policy}, which is in run_dir={folder}: choose another")
    if not _is_run(folder):
        raise BurnishError(f"{has} and is no run's: overwrite=true deletes runs alone, choose another run_dir=...")


def _counts(entry: Path) -> bool:
    """Whether it is more than what a run leaves that is killed before it has its configuration, or its first line."""
    if entry.name in (LOCK, siblings(Path(CONFIG))[0].name):
        return False
    if entry.name in _FOLDERS and entry.is_dir():
        return any(entry.iterdir())
    return entry.name != METRICS or entry.stat().st_size > 0


def _is_run(folder: Path) -> bool:
    """Whether a run has written it: its config.yaml has what every run's has, or, where that is lost or damaged, its
    metrics are those of one."""
    try:
        if load_config(folder).keys() >= _KEYS:
            return True
    except BurnishError:
        pass
    return any("time/elapsed" in line for line in read_metrics(folder / METRICS)[:1])


def _delete_run(folder: Path) -> None:
    """Delete what a run writes, but for its config.yaml, which says until it is replaced that this is one."""
    Checkpoints(folder / "checkpoints").delete_all()
    delete(folder / "plots" / CURVE)
    for path in (folder / "videos").glob("seed*.mp4"):
        if _VIDEO.fullmatch(path.name):
            delete(path)
    if (folder / "wandb_id").is_file():
        for name in ("wandb", "wandb_id"):
            delete(folder / name)
    for path in [*(folder / name for name in _FILES), *folder.glob(AT_TEMPERATURE.format("*"))]:
        delete(path)
        delete(siblings(path)[0])


def _require_same_data(
    folder: Path, before: dict[str, Any] | None, now: dict[str, Any] | None, allow: Sequence[str] | None
) -> None:
    """Raise BurnishError where a run would go on with other demonstrations, unless `allow` has "data"; an older run
    does not know its own."""
    if before is None or now is None:
        return
    differs = [name for name in dict.fromkeys([*before, *now]) if before.get(name) != now.get(name)]
    if differs:
        counts = [f"{now[name]} {name}, {before.get(name)} then" for name in differs if isinstance(now.get(name), int)]
        others = f"other {', '.join(differs)}"
        said = f"its demonstrations have changed since ({'; '.join(counts) or others})"
        if allow is not None and "data" in allow:
            warn(f"{folder}: {said}")
            return
        choice = "start a new run with another run_dir=..." + ("" if allow is None else ", or allow=[data]")
        raise BurnishError(f"resume={folder}: {said}: give it those of before, or {choice}")
