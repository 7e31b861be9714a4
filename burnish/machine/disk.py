"""Writing so that a reader sees the old or the new, never a half; and looking whether it can be written."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable
from pathlib import Path

from burnish.errors import BurnishError


def require_writable(folder: Path) -> None:
    """Raise BurnishError unless `folder` can be written, or made. Makes nothing."""
    existing = next(path for path in (folder, *folder.absolute().parents) if os.access(path, os.F_OK))
    if not existing.is_dir():
        raise BurnishError(f"out: {folder} cannot be written: {existing} is not a folder; choose another out=...")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise BurnishError(f"out: {folder} cannot be written: no right to write in {existing}; choose another out=...")


def save_folder(path: str | Path, write: Callable[[Path], None]) -> Path:
    """Give `write` an empty folder to fill, flush it to the disk and rename it to `path`.

    An existing `path` is replaced. Whenever the process is killed, `restore_folder(path)` finds a whole
    folder again. Raises BurnishError where the disk refuses; an exception of `write` leaves `path` as it was.
    """
    path = Path(path)
    restore_folder(path)
    unfinished, previous = siblings(path)
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
    previous = siblings(path)[1]
    if previous.exists() and not path.exists():
        previous.rename(path)


def flush(path: Path) -> None:
    """fsync a file or a folder; a folder only where the file system can."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except OSError as error:
        if not path.is_dir() or error.errno in (errno.EIO, errno.ENOSPC, errno.EDQUOT):
            raise


def siblings(path: Path) -> tuple[Path, Path]:
    """Beside `path`: what is not finished yet, and what it replaces."""
    return path.with_name(f".{path.name}.unfinished"), path.with_name(f".{path.name}.previous")


def _flush_tree(folder: Path) -> None:
    for entry in sorted(folder.rglob("*"), reverse=True):
        flush(entry)
    flush(folder)


def write_atomically(path: Path, text: str) -> None:
    """Write a text file; a reader sees the old one or the new one, never a half."""
    unfinished = path.with_name(f".{path.name}.unfinished")
    with unfinished.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    unfinished.replace(path)
