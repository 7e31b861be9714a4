"""The JSON files of a run: written whole or not at all, and read with the file named in every refusal."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from burnish.errors import BurnishError
from burnish.machine.disk import write_atomically


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write keys and values, and the folder where there is none. Raises BurnishError where that cannot be done."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, json.dumps(content, indent=2) + "\n")
    except OSError as error:
        raise BurnishError(f"{path}: cannot be written ({error.strerror or error})") from error


def read_json(path: Path) -> dict[str, Any]:
    """The keys and values of a run's file. Raises BurnishError where it is not there, or is something else."""
    if not path.is_file():
        raise BurnishError(f"{path.parent} is no finished run: it has no {path.name}")
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise BurnishError(f"{path} cannot be read: {error}") from error
    if not isinstance(found, dict):
        raise BurnishError(f"{path} is damaged: expected keys and values")
    return found


@contextmanager
def told_of(path: Path) -> Iterator[None]:
    """Inside, what the content of `path` lacks, or has in another shape, is a BurnishError that names the file."""
    try:
        yield
    except KeyError as error:
        raise BurnishError(f"{path} is damaged: it lacks {error}, expected what a training writes") from error
    except (TypeError, AttributeError, ValueError) as error:
        raise BurnishError(f"{path} is damaged: {error}, expected what a training writes") from error
