"""HDF5 files: opened with errors that a user can act on, written under a temporary name."""

from __future__ import annotations

import io
import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from burnish.datasets.episodes import listed
from burnish.errors import BurnishError
from burnish.machine.disk import write_atomically
from burnish.machine.memory import Room

ACTION_RANGE, UNIT = "action_range", "[-1, 1]"  # an attribute of files of ours, whatever the environment's bounds are

_room: ContextVar[Room] = ContextVar("room")  # of the file that is being read

# what h5py raised for randomly damaged files, opening an object or reading its values
DAMAGE = (OSError, KeyError, RuntimeError, ValueError, TypeError, AttributeError, OverflowError, MemoryError)


@contextmanager
def reading(path: Path) -> Iterator[h5py.File]:
    """Open an HDF5 file for reading, and do nothing but read in the `with` block.

    Raises BurnishError, with the path, if it is missing, a folder, not HDF5, open in another program, in parts that are
    not here or not beside it, or cut off or damaged.
    """
    if not path.exists():
        raise BurnishError(f"{path}: no such file")
    if path.is_dir():
        raise BurnishError(f"{path}: is a folder, expected an HDF5 file")
    if not os.access(path, os.R_OK):
        raise BurnishError(f"{path}: may not be read by this user (permission denied)")
    if path.stat().st_size == 0 or not h5py.is_hdf5(path):
        raise BurnishError(f"{path}: not an HDF5 file ({path.stat().st_size} bytes, no HDF5 signature)")
    room = _room.set(Room(path.stat().st_size))
    try:
        with h5py.File(path, "r") as file:
            try:
                _require_links_beside(file, {path.resolve()})
                yield file
            except DAMAGE as error:
                raise BurnishError(f"{path}: {_broken_link(file) or what_is_wrong(error)}") from error
    except DAMAGE as error:
        raise BurnishError(f"{path}: {what_is_wrong(error)}") from error
    finally:
        _room.reset(room)


def _require_links_beside(file: h5py.File, seen: set[Path]) -> None:
    """Raise BurnishError for a link into a file that is not beside this one, or below its folder: whatever this user
    may read could become demonstrations. Also in the files that it links to; `seen` are looked at already."""
    folder = Path(file.filename).parent
    outside: list[str] = []
    beside: list[Path] = []

    def look(name: bytes, link: Any) -> None:
        if link.type != h5py.h5l.TYPE_EXTERNAL:
            return
        linked = os.fsdecode(file.id.links.get_val(name)[0])
        path = _beside(folder, linked)
        if path is None or (not path.exists() and Path(linked).exists()):  # HDF5 looks in the working folder, too
            outside.append(f"{os.fsdecode(name)} is a link into {linked}")
        elif path.is_file():
            beside.append(path)

    file.id.links.visit(look, info=True)
    if outside:
        raise BurnishError(f"{file.filename}: {outside[0]}: expected links into files beside it, or in it")
    for path in beside:
        if path.resolve() not in seen:
            seen.add(path.resolve())
            _room.get().add(path.stat().st_size)
            with h5py.File(path, "r") as other:
                _require_links_beside(other, seen)


def _beside(folder: Path, name: str) -> Path | None:
    """The file of that name in `folder` or below it; None where the name leads elsewhere."""
    path = Path(os.path.normpath(folder.absolute() / name))
    return path if path.is_relative_to(os.path.normpath(folder.absolute())) else None


def what_is_wrong(error: Exception) -> str:
    """One sentence for what HDF5 raised while it read a file: damage only where nothing else is known."""
    said = _one_line(error)
    if "unable to lock file" in said:
        return (
            f"cannot be locked, as another program has it open for writing or its file system knows no locks ({said}); "
            "close that program, or set HDF5_USE_FILE_LOCKING=FALSE where none writes it"
        )
    if "already open" in said or "h5clear" in said:
        return (
            f"is open for writing, or its program ended without closing it ({said}); close that program, and if there "
            "is none run: h5clear -s FILE"
        )
    if "required filter" in said or "plugin" in said:
        return (
            f"is compressed in a way that this HDF5 cannot undo ({said}); write it with gzip, or install the filter "
            "and name its folder in HDF5_PLUGIN_PATH"
        )
    if "external" in said:
        return f"has a part of it in another file, which is not here ({said}); put that file where it was"
    return f"damaged or incomplete HDF5 file ({said}); copy or download it again"


def _broken_link(group: h5py.Group) -> str | None:
    """A sentence about the first link below `group` that leads nowhere, looked for after an error."""
    try:
        for key in group:
            link = group.get(key, getlink=True)
            found = group.get(key)
            if found is None and not isinstance(link, h5py.HardLink):
                file = f" in {link.filename}" if isinstance(link, h5py.ExternalLink) else ""
                place = f"{group.name.rstrip('/')}/{key}"
                return f"{place} is a link to {link.path}{file}, which is not here: put it where it was"
            if isinstance(link, h5py.HardLink) and isinstance(found, h5py.Group):
                below = _broken_link(found)
                if below is not None:
                    return below
    except (*DAMAGE, RecursionError):  # damaged after all
        return None
    return None


def array(found: Any, where: str) -> h5py.Dataset:
    """An object of a file that has to be an array of numbers, of at least one dimension; not yet read.

    Raises BurnishError, beginning with `where`, for a group, words, a single value, one whose numbers are in files that
    are no HDF5, and a virtual dataset whose source is missing (HDF5 itself would read zeros) or not beside the file.
    """
    why = not_an_array(found)
    if why is not None:
        raise BurnishError(f"{where} {why}, expected an array of numbers")
    _require_own(found, where)
    return found


def _require_own(dataset: h5py.Dataset, where: str) -> None:
    if dataset.external:
        elsewhere = dataset.external[0][0]
        raise BurnishError(f"{where} has its numbers in another file ({elsewhere}): expected them in this one")
    if dataset.is_virtual:
        _require_sources(dataset, where)


def values(dataset: h5py.Dataset, where: str) -> NDArray[Any]:
    """All of an `array`. Raises BurnishError, beginning with `where`, if it is larger than it may be (`Room`)."""
    _room.get().take((dataset.size or 0) * dataset.dtype.itemsize, where)
    return dataset[()]


def take(found: Any, where: str) -> None:
    """Look at an object that somebody else will read: raises BurnishError as `array` and `values` do, but for kinds."""
    if isinstance(found, h5py.Dataset):
        _require_own(found, where)
        _room.get().take((found.size or 0) * found.dtype.itemsize, where)


def last_row(dataset: h5py.Dataset, where: str) -> NDArray[Any]:
    """That of an `array` with rows. Raises BurnishError as `values` does: a whole chunk is unpacked for it."""
    _room.get().take(math.prod(dataset.chunks or dataset.shape[1:]) * dataset.dtype.itemsize, where)
    return dataset[-1]


def not_an_array(found: Any) -> str | None:
    """Why an object of a file is no array of numbers ("is a group of ..."), or None where it is one."""
    if isinstance(found, h5py.Group):
        return f"is a group of {listed(found) or 'nothing'}"
    if not isinstance(found, h5py.Dataset):
        return "is a type"
    dtype = found.dtype
    if dtype.kind in "biuf":
        return None if found.shape else "holds no array but a single value"
    words = h5py.check_string_dtype(dtype) is not None
    return "holds words" if words else f"holds values of type {dtype}"


def text(value: Any) -> str:
    """An attribute as text, however it was written: h5py gives str, bytes, or an array of one; "" for none."""
    if isinstance(value, np.ndarray) and value.size == 1:
        value = value.item()
    if value is None or isinstance(value, h5py.Empty):
        return ""
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)


def _require_sources(dataset: h5py.Dataset, where: str, deeper: int = 3) -> None:
    """Look for the files where HDF5 does: beside the file, or under HDF5_VDS_PREFIX; and at what they have."""
    folder = Path(dataset.file.filename).parent
    prefix = os.environ.get("HDF5_VDS_PREFIX", "").replace("${ORIGIN}", str(folder))
    for name, key in {(source.file_name, source.dset_name) for source in dataset.virtual_sources()}:
        if name == ".":
            present = [Path(dataset.file.filename)]
        else:
            found = [_beside(place, name) for place in (Path(prefix or folder), folder)]
            beside = [path for path in found if path is not None]
            if not beside:
                raise BurnishError(f"{where} is a virtual dataset of {name}: expected sources beside the file")
            present = [path for path in beside if path.is_file()]
            if "%b" in name:  # a row of files, as many as there are
                present = [one for path in beside for one in path.parent.glob(path.name.replace("%b", "*"))]
        if not present:
            raise BurnishError(f"{where} is a virtual dataset of {name}, which is not here: put it beside the file")
        for path in present if "%b" in name else present[:1]:
            _look_into(path, key, where, deeper)


def _look_into(path: Path, key: str, where: str, deeper: int) -> None:
    """Raise BurnishError unless the source of a virtual dataset is an array whose numbers are there as well."""
    with h5py.File(path, "r") as file:
        _require_links_beside(file, {path.resolve()})
        _room.get().add(path.stat().st_size)
        if "%b" in key:
            return
        if key not in file:
            raise BurnishError(f"{where} is a virtual dataset of {key} in {path}, which has no such array")
        source = file[key]
        if not isinstance(source, h5py.Dataset) or source.external or (source.is_virtual and not deeper):
            raise BurnishError(f"{where} is a virtual dataset of {key} in {path}: expected an array with its numbers")
        if source.is_virtual:
            _require_sources(source, where, deeper - 1)


@contextmanager
def writing(path: Path) -> Iterator[h5py.File]:
    """Create an HDF5 file that appears under `path` complete or not at all.

    It is made in memory, as HDF5 does not survive a full disk; then written beside `path`, flushed to the disk and
    renamed. After an exception nothing is left behind and an older file at `path` stays as it was. Raises
    BurnishError if `path` cannot be written.
    """
    content = io.BytesIO()
    with h5py.File(content, "w", libver=("v110", "v110")) as file:
        yield file
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, content.getbuffer())
    except OSError as error:
        raise BurnishError(f"{path}: cannot be written ({error.strerror or error}); nothing was changed") from error


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
