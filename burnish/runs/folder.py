"""A run folder: config.yaml, metrics.jsonl, summary.json, checkpoints/, plots/, videos/; wandb on demand."""

from __future__ import annotations

import json
import math
import shutil
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

from burnish.config import load_yaml, to_dict
from burnish.errors import BurnishError
from burnish.foreign import MOST, one_line, told_as
from burnish.machine.disk import write_atomically
from burnish.renamed import FORMAT, with_todays_keys
from burnish.runs.checkpoint import TRAINER, Checkpoints, FinetuneState, PretrainState, TrainerFile
from burnish.runs.evaluation_file import AT_BEST_TEMPERATURE, AT_TEMPERATURE, BEFORE, EVALUATION, SELECTED
from burnish.runs.json_file import write_json
from burnish.runs.metrics import METRICS, read_metrics
from burnish.runs.progress import Progress
from burnish.runs.summary import SUMMARY
from burnish.runs.tracking import check_mode, start_wandb

CONFIG = "config.yaml"
T = TypeVar("T")
_FOLDERS = ("checkpoints", "plots", "videos")
_CONTENTS = (
    CONFIG,
    METRICS,
    SUMMARY,
    EVALUATION,
    BEFORE,
    SELECTED,
    AT_BEST_TEMPERATURE,
    "wandb",
    "wandb_id",
    *_FOLDERS,
)


class Run:
    """What one training run writes. A context manager: leaving it closes the files and ends the wandb run.

    Attributes:
        folder: the run folder.
        checkpoints: its checkpoints.
        n_metric_lines: lines in metrics.jsonl; belongs into each checkpoint, for `truncate_metrics`.
    """

    def __init__(self, folder: Path, config: dict[str, Any], wandb: str) -> None:
        """Not to be called from outside: `Run.create` or `Run.resume`."""
        self.folder = folder
        self.checkpoints = Checkpoints(folder / "checkpoints")
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
        folder holds something, cannot be written, or is to be overwritten though `config.policy` lies in it, and
        where `wandb` is not one of disabled, offline, online.
        """
        folder = Path(folder)
        check_mode(wandb)
        try:
            found = sorted(entry.name for entry in folder.iterdir()) if folder.exists() else []
            if found and not overwrite:
                raise BurnishError(
                    f"run_dir={folder} is not empty (it has {', '.join(found[:3])}): go on with "
                    f"resume={folder}, choose another run_dir=..., or delete what it has with overwrite=true"
                )
            if found:
                _keep_source(folder, getattr(config, "policy", None))
            for path in [*(folder / name for name in _CONTENTS), *folder.glob(AT_TEMPERATURE.format("*"))]:
                _delete(path)
            folder.mkdir(parents=True, exist_ok=True)
            _write_config(folder, to_dict(config))
        except OSError as error:
            raise BurnishError(f"run_dir={folder} cannot be written: {error.strerror or error}") from error
        return cls(folder, to_dict(config), wandb)

    @classmethod
    def open(cls, config: Any) -> Run:
        """Create the run that `config` describes (its run_dir, resume, wandb and overwrite), or resume it."""
        if config.resume is not None:
            return cls.resume(config.resume, config, wandb=config.wandb)
        return cls.create(config.run_dir, config, wandb=config.wandb, overwrite=config.overwrite)

    @classmethod
    def resume(cls, folder: str | Path, config: Any = None, *, wandb: str = "disabled") -> Run:
        """Go on in the folder of an earlier run. Raises BurnishError where it is none.

        `config` (a dataclass), where it is given, replaces config.yaml: so a length that was raised stays raised.
        """
        folder = Path(folder)
        check_mode(wandb)
        in_force = load_config(folder)
        try:
            if config is not None:
                in_force = {**to_dict(config), "run_dir": str(folder), "resume": None}
                _write_config(folder, in_force)
            return cls(folder, in_force, wandb)
        except OSError as error:
            raise BurnishError(f"resume={folder} cannot be written: {error.strerror or error}") from error

    def log(self, metrics: dict[str, Any], step: int) -> None:
        """Append one line to metrics.jsonl. Wall-clock figures have keys `time/...`: all others are the same
        in two runs of one seed. A value that is not finite becomes null, a text stays one."""
        numbers = {name: value if isinstance(value, str) else _number(value) for name, value in metrics.items()}
        elapsed = round(time.monotonic() - self._start, 3)
        line = {"step": int(step), **numbers, "time/elapsed": elapsed}
        finite = {
            name: value if isinstance(value, str) or math.isfinite(value) else None for name, value in line.items()
        }
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
            TrainerFile.now(state, self.n_metric_lines).write(folder)

        self.checkpoints.save(step, write)

    def load_checkpoint(self, kind: type[T], take: Callable[[T], None]) -> bool:
        """Undo what came after the latest checkpoint, and give `take` its state, a `FinetuneState` or `PretrainState`
        as `kind` says -> whether there is one; no metrics where there is none yet.

        Raises BurnishError, the run being as it was, where the state is not what `take` can go on from.
        """
        latest = self.checkpoints.latest(TRAINER) or self.checkpoints.latest()  # the latter says what it lacks
        if latest is None:
            self.truncate_metrics(0)
            return False
        trainer = TrainerFile.read(latest)
        try:
            with told_as("its values are of another kind"):
                take(trainer.restore(kind, latest))
        except BurnishError as error:
            raise BurnishError(f"{latest / TRAINER} does not fit this run: {error}; use another checkpoint") from error
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

        path = self.folder / "plots" / "curve.png"
        drawn = plot_curve(self._read_metrics(), x_key, y_keys, path, x_label=x_label, title=title or self.folder.name)
        return path if drawn else None

    def finish(self, summary: dict[str, Any]) -> None:
        """Write summary.json and end the run."""
        write_json(self.folder / SUMMARY, summary)
        if self._wandb is not None:
            self._wandb.summary.update(summary)
        self.close()

    def close(self, exit_code: int = 0) -> None:
        """Close the files and end the wandb run; harmless a second time."""
        self._metrics.close()
        if self._wandb is not None:
            self._wandb.finish(exit_code=exit_code)
            self._wandb = None

    def __enter__(self) -> Run:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close(exit_code=0 if kind is None else 1)

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


def _keep_source(folder: Path, policy: Any) -> None:
    """Refuse to overwrite the folder that the policy to start from lies in."""
    if isinstance(policy, str) and Path(policy).resolve().is_relative_to(folder.resolve()):
        raise BurnishError(f"overwrite=true would delete policy={policy}, which is in run_dir={folder}: choose another")


def _delete(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
