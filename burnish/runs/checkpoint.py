"""The checkpoints of a run."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

from burnish.machine.disk import flush, restore_folder, save_folder, siblings


class Checkpoints:
    """The folders `step_00000100/` of a run, with the symlinks `latest` and `best`.

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

    def latest(self) -> Path | None:
        """The newest whole checkpoint, also after the process was killed; None where there is none."""
        for previous in self.folder.glob(".step_*.previous"):
            restore_folder(previous.with_name(previous.stem[1:]))
        steps = self._steps()
        return steps[-1] if steps else None

    def best(self) -> Path | None:
        """The checkpoint last given to `mark_best`, or None."""
        link = self.folder / "best"
        return self.folder / link.readlink() if link.is_symlink() else None

    def mark_best(self, step: int) -> None:
        """Point `best` at the checkpoint of `step`, which must have been saved."""
        path = self._path(step)
        if not path.is_dir():
            raise ValueError(f"{path} was not saved")
        self._point("best", path)

    def _path(self, step: int) -> Path:
        return self.folder / f"step_{step:08d}"

    def _steps(self) -> list[Path]:
        return sorted(self.folder.glob("step_*"), key=lambda path: int(path.name.removeprefix("step_")))

    def _point(self, name: str, path: Path) -> None:
        link = self.folder / f".{name}.unfinished"
        link.unlink(missing_ok=True)
        link.symlink_to(path.name)
        link.rename(self.folder / name)
        flush(self.folder)
