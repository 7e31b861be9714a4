"""Atomic folders and plain-data state files: a reader sees the old one or the new one, never a half."""

from __future__ import annotations

import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from burnish.errors import BurnishError

_ARRAY = "__ndarray__"


def save_folder(path: str | Path, write: Callable[[Path], None]) -> Path:
    """Give `write` an empty folder to fill, flush it to the disk and rename it to `path`.

    An existing `path` is replaced. Whenever the process is killed, `restore_folder(path)` finds a whole
    folder again. Raises BurnishError where the disk refuses; an exception of `write` leaves `path` as it was.
    """
    path = Path(path)
    restore_folder(path)
    unfinished, previous = _siblings(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir()
        write(unfinished)
        _flush_tree(unfinished)
        if path.exists():
            path.rename(previous)
        unfinished.rename(path)
        flush(path.parent)
    except OSError as error:
        raise BurnishError(f"cannot write {path}: {error.strerror or error}") from error
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    shutil.rmtree(previous, ignore_errors=True)
    return path


def restore_folder(path: str | Path) -> None:
    """Undo a `save_folder` that was killed between its two renames."""
    path = Path(path)
    previous = _siblings(path)[1]
    if previous.exists() and not path.exists():
        previous.rename(path)


def flush(path: Path) -> None:
    """fsync a file or a folder."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _siblings(path: Path) -> tuple[Path, Path]:
    return path.with_name(f".{path.name}.unfinished"), path.with_name(f".{path.name}.previous")


def _flush_tree(folder: Path) -> None:
    for entry in sorted(folder.rglob("*"), reverse=True):
        flush(entry)
    flush(folder)


def save_state(path: str | Path, state: dict[str, Any]) -> None:
    """Write tensors, numpy arrays, numbers, strings, None, and dict, list or tuple of them.

    Raises TypeError for anything else, so that what is written can always be read by `load_state`.
    """
    torch.save(_encode(state), path)


def load_state(path: str | Path) -> dict[str, Any]:
    """Read what `save_state` wrote, tensors on the CPU; never runs code from the file.

    Raises BurnishError when the file is missing, damaged, or holds anything but plain data.
    """
    path = Path(path)
    if not path.is_file():
        raise BurnishError(f"{path} does not exist: expected the state of a checkpoint")
    try:
        return _decode(torch.load(path, map_location="cpu", weights_only=True))
    except Exception as error:  # damaged bytes raise whatever they happen to mean
        reason = str(error).strip().split("\n", 1)[0][:200]
        raise BurnishError(f"{path} is damaged or not a checkpoint's state ({reason}): use another one") from error


def _encode(value: Any) -> Any:
    """numpy arrays as raw bytes in a tensor: `weights_only` reads tensors, of any numpy version."""
    if isinstance(value, np.ndarray):
        if value.dtype.hasobject:
            raise TypeError("cannot save a numpy array of objects")
        raw = np.frombuffer(np.ascontiguousarray(value).tobytes(), dtype=np.uint8)
        return {_ARRAY: torch.from_numpy(raw.copy()), "dtype": value.dtype.str, "shape": list(value.shape)}
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, dict):
        return {key: _encode(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_encode(item) for item in value]
    if isinstance(value, tuple) and not hasattr(value, "_fields"):
        return tuple(_encode(item) for item in value)
    if value is None or isinstance(value, (torch.Tensor, bool, int, float, str, bytes)):
        return value
    raise TypeError(f"cannot save a {type(value).__name__}: expected tensors, arrays, numbers, strings or dict/list")


def _decode(value: Any) -> Any:
    if isinstance(value, dict):
        if _ARRAY in value:
            raw = value[_ARRAY].numpy().tobytes()
            return np.frombuffer(raw, dtype=np.dtype(value["dtype"])).reshape(value["shape"]).copy()
        return {key: _decode(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_decode(item) for item in value]
    if isinstance(value, tuple):
        return tuple(_decode(item) for item in value)
    return value


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
                unfinished, previous = _siblings(old)
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


def generator_state(generator: torch.Generator) -> dict[str, Any]:
    """A generator's state, and the kind of device it is for."""
    return {"device": generator.device.type, "state": generator.get_state()}


def restore_generator(generator: torch.Generator, saved: dict[str, Any]) -> None:
    """Go on where `generator_state` was; on another kind of device the generator's stream starts at its seed."""
    if generator.device.type == saved["device"]:
        generator.set_state(saved["state"])


def random_states() -> dict[str, Any]:
    """The global random generators of python, numpy and torch, for `save_state`."""
    return {
        "python": random.getstate(),
        "numpy": np.random.get_state(),  # noqa: NPY002 - robosuite and robomimic draw from the legacy global one
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }


def restore_random_states(states: dict[str, Any]) -> None:
    """Undo what was drawn since `random_states()`; CUDA's only where there are as many devices as then."""
    random.setstate(states["python"])
    np.random.set_state(states["numpy"])  # noqa: NPY002
    torch.set_rng_state(states["torch"])
    if torch.cuda.is_available() and len(states["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(states["cuda"])
