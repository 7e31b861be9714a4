"""Writing so that a reader sees the old or the new, never a half; and looking whether it can be written."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

from burnish.errors import BurnishError


@contextlib.contextmanager
def writing(path: Path, kept: str = "what was there before is as it was") -> Iterator[None]:
    """Inside, whatever the disk refuses is a BurnishError that names `path` and says what is `kept`."""
    try:
        yield
    except OSError as error:
        raise BurnishError(f"cannot write {path}: {error.strerror or error}; {kept}") from error


def require_writable(folder: Path) -> None:
    """Raise BurnishError unless `folder` can be written, or made. Makes nothing."""
    existing = next(path for path in (folder, *folder.absolute().parents) if os.access(path, os.F_OK))
    if not existing.is_dir():
        raise BurnishError(f"out: {folder} cannot be written: {existing} is not a folder; choose another out=...")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise BurnishError(f"out: {folder} cannot be written: no right to write in {existing}; choose another out=...")


def save_folder(path: str | Path, write: Callable[[Path], None]) -> Path:
    """Give `write` an empty folder to fill, flush it to the disk and rename it to `path`.

    An existing `path` is replaced. Whenever the process is killed, `standing(path)` is a whole folder, and the next
    `save_folder` or `restore_folder` puts it in its place. Raises BurnishError where the disk refuses; an exception
    of `write` leaves `path` as it was.
    """
    path = Path(path)
    unfinished, previous = siblings(path)
    with writing(path):
        try:
            restore_folder(path)
            path.parent.mkdir(parents=True, exist_ok=True)
            unfinished.mkdir()
            write(unfinished)
            _flush_tree(unfinished)
            if path.exists():
                path.rename(previous)
            unfinished.rename(path)
            flush(path.parent)
        except BaseException:
            if previous.exists() and not path.exists():  # the second rename failed
                previous.rename(path)
            raise
        finally:
            shutil.rmtree(unfinished, ignore_errors=True)
    shutil.rmtree(previous, ignore_errors=True)
    return path


def restore_folder(path: str | Path) -> None:
    """Undo what a `save_folder` that was killed has left. For the folder's only writer."""
    path = Path(path)
    unfinished, previous = siblings(path)
    shutil.rmtree(unfinished, ignore_errors=True)
    if previous.exists() and not os.path.lexists(path):
        previous.rename(path)
    shutil.rmtree(previous, ignore_errors=True)


def standing(path: Path) -> Path:
    """`path`, or where a `save_folder` that was killed between its two renames has put it. For readers: nothing is
    changed."""
    previous = siblings(path)[1]
    return previous if previous.is_dir() and not os.path.lexists(path) else path


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


def write_atomically(path: Path, content: str | bytes | memoryview) -> None:
    """Write a file; a reader sees the old one or the new one, never a half. After an exception nothing is left."""
    unfinished = siblings(path)[0]
    try:
        with unfinished.open("wb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        unfinished.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            unfinished.unlink(missing_ok=True)
        raise
