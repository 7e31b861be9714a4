"""Where results go: looked at before the work that makes them."""

from __future__ import annotations

import os
from pathlib import Path

from burnish.errors import BurnishError


def require_writable(folder: Path) -> None:
    """Raise BurnishError unless `folder` can be written, or made. Makes nothing."""
    existing = next(path for path in (folder, *folder.absolute().parents) if os.access(path, os.F_OK))
    if not existing.is_dir():
        raise BurnishError(f"out: {folder} cannot be written: {existing} is not a folder; choose another out=...")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise BurnishError(f"out: {folder} cannot be written: no right to write in {existing}; choose another out=...")
