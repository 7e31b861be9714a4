"""Checksums of the files of a folder, in one more file of it, in the form that `sha256sum -c SHA256SUMS` reads.

A folder without that file, or one made before there was any, is read as it is.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path

from burnish.errors import BurnishError
from burnish.machine.disk import write_atomically

CHECKSUMS = "SHA256SUMS"
CHUNK_BYTES = 2**20


class Damaged(BurnishError):
    """A file is not what was written."""


def checksum(path: Path) -> str:
    """SHA-256 of a file, 64 hexadecimal digits."""
    found = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            found.update(chunk)
    return found.hexdigest()


def write_checksums(folder: Path, names: Iterable[str]) -> None:
    """Of these files of `folder`."""
    _write(folder, [(checksum(folder / name), name) for name in names])


def verify(path: Path) -> None:
    """Raise Damaged where `path` is not what the checksums beside it say; nothing is said where there are none."""
    entries = _read(path.parent)
    if entries and (checksum(path), path.name) not in entries:
        raise Damaged(
            f"{path} is damaged: its content is not what {CHECKSUMS} beside it says; take another copy, or, where it "
            f"was changed on purpose, delete {CHECKSUMS}"
        )


def verify_all(folder: Path) -> None:
    """`verify` for all files that the checksums name. Raises Damaged where one of them is missing, too."""
    for name in dict.fromkeys(name for _, name in _read(folder)):
        if not (folder / name).is_file():
            raise Damaged(f"{folder / name} is missing")
        verify(folder / name)


def replace_text(path: Path, text: str) -> None:
    """`write_atomically` where the file has a checksum: killed at any time, file and checksum agree."""
    before = _read(path.parent)
    if path.name in (name for _, name in before):
        new = hashlib.sha256(text.encode()).hexdigest(), path.name
        _write(path.parent, [*before, new])  # the old or the new one
        write_atomically(path, text)
        _write(path.parent, [*(entry for entry in before if entry[1] != path.name), new])
    else:
        write_atomically(path, text)


def _write(folder: Path, entries: Iterable[tuple[str, str]]) -> None:
    write_atomically(folder / CHECKSUMS, "".join(f"{found}  {name}\n" for found, name in entries))


def _read(folder: Path) -> list[tuple[str, str]]:
    """(checksum, name) of each; none where there is no such file."""
    path = folder / CHECKSUMS
    if not path.is_file():
        return []
    try:
        lines = path.read_text(encoding="ascii").splitlines()
    except UnicodeDecodeError as error:
        raise Damaged(f"{path} is damaged: expected lines of a checksum and a name") from error
    entries = [tuple(line.split("  ", 1)) for line in lines]
    if not entries or any(len(entry) != 2 or len(entry[0]) != 64 or "/" in entry[1] for entry in entries):
        raise Damaged(f"{path} is damaged: expected lines of a checksum and a name")
    return [(found, name) for found, name in entries]
