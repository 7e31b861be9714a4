"""Weights & Biases, on demand."""

from __future__ import annotations

import uuid
from pathlib import Path
from typing import Any

from burnish.errors import BurnishError
from burnish.foreign import told_as

WANDB_MODES = ("disabled", "offline", "online")


def check_mode(mode: str) -> None:
    """Raise BurnishError for a mode that there is not."""
    if mode not in WANDB_MODES:
        raise BurnishError(f"wandb={mode}: expected one of {', '.join(WANDB_MODES)}")


def start_wandb(folder: Path, config: dict[str, Any], mode: str) -> Any:
    """The wandb run of a run folder, the same again where it is resumed. Raises BurnishError if it does not start."""
    advice = ": log in with `wandb login`, or use wandb=offline or wandb=disabled"
    with told_as(f"wandb={mode} cannot be imported", ": pip install wandb, or use wandb=disabled"):
        import wandb

    id_file = folder / "wandb_id"
    if not id_file.exists():
        id_file.write_text(uuid.uuid4().hex[:8])
    with told_as(f"wandb={mode} did not start", advice):
        return wandb.init(
            project="burnish",
            name=folder.name,
            id=id_file.read_text().strip(),
            resume="allow" if mode == "online" else None,
            dir=folder,
            mode=mode,  # type: ignore[arg-type]
            config=config,
            settings=wandb.Settings(console="off", silent=True),
        )
