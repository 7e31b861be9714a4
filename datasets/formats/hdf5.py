"""HDF5 files: opened with errors that a user can act on, written under a temporary name."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import h5py

from burnish.errors import BurnishError

# what h5py raised for randomly damaged files, opening an object or reading its values
DAMAGE = (OSError, KeyError, RuntimeError, ValueError, TypeError, AttributeError, OverflowError, MemoryError)


@contextmanager
def reading(path: Path) -> Iterator[h5py.File]:
    """Open an HDF5 file for reading, and do nothing but read in the `with` block.

    Raises BurnishError, with the path, if it is missing, a folder, not HDF5, cut off or damaged.
    """
    if not path.exists():
        raise BurnishError(f"{path}: no such file")
    if path.is_dir():
        raise BurnishError(f"{path}: is a folder, expected an HDF5 file")
    if path.stat().st_size == 0 or not h5py.is_hdf5(path):
        raise BurnishError(f"{path}: not an HDF5 file ({path.stat().st_size} bytes, no HDF5 signature)")
    try:
        with h5py.File(path, "r") as file:
            yield file
    except DAMAGE as error:
        raise BurnishError(
            f"{path}: damaged or incomplete HDF5 file ({_one_line(error)}); copy or download it again"
        ) from error


@contextmanager
def writing(path: Path) -> Iterator[h5py.File]:
    """Create an HDF5 file that appears under `path` complete or not at all.

    It is written beside `path`, flushed to the disk and renamed; after an exception nothing is left behind
    and an older file at `path` stays as it was. Raises BurnishError if `path` cannot be written.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with h5py.File(temporary, "w", libver=("v110", "v110")) as file:
            yield file
        with temporary.open("rb") as handle:
            os.fsync(handle.fileno())
        temporary.replace(path)
    except OSError as error:
        raise BurnishError(f"{path}: cannot be written ({_one_line(error)})") from error
    finally:
        if temporary.exists():
            temporary.unlink()


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
