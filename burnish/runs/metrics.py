"""metrics.jsonl: a line for every update, epoch or evaluation of a run. `Run.log` writes it."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from burnish.errors import BurnishError

METRICS = "metrics.jsonl"
TAIL_BYTES = 16_384  # more than the longest line


def read_metrics(path: str | Path) -> list[dict[str, Any]]:
    """The lines of a metrics.jsonl; a last line cut short by a kill is left out. None where there is no file yet.

    Raises BurnishError where it is no text.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8") if path.is_file() else ""
    except UnicodeDecodeError as error:
        raise BurnishError(f"{path} is damaged: byte {error.start} is no text; take another copy") from error
    lines = []
    for line in text.splitlines():
        try:
            found = json.loads(line)
        except json.JSONDecodeError:
            break
        if not isinstance(found, dict):
            break
        lines.append(found)
    return lines


def last_metrics(path: str | Path) -> dict[str, Any]:
    """The last whole line of a metrics.jsonl that may be being written; empty where there is none."""
    path = Path(path)
    if not path.is_file():
        return {}
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - TAIL_BYTES), os.SEEK_SET)
        lines = file.read().split(b"\n")
    for line in reversed(lines[:-1]):  # what follows the last line feed is not whole
        try:
            found = json.loads(line)
        except ValueError:
            continue
        return found if isinstance(found, dict) else {}
    return {}
