"""Weights & Biases, on demand."""

from __future__ import annotations

import uuid
from pathlib import Path
from typing import Any

from burnish.errors import BurnishError

WANDB_MODES = ("disabled", "offline", "online")


def check_mode(mode: str) -> None:
    """Raise BurnishError for a mode that there is not."""
    if mode not in WANDB_MODES:
        raise BurnishError(f"wandb={mode}: expected one of {', '.join(WANDB_MODES)}")


def start_wandb(folder: Path, config: dict[str, Any], mode: str) -> Any:
    """The wandb run of a run folder, the same again where it is resumed. Raises BurnishError if it does not start."""
    import wandb

    id_file = folder / "wandb_id"
    if not id_file.exists():
        id_file.write_text(uuid.uuid4().hex[:8])
    try:
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
    except wandb.Error as error:
        reason = str(error).splitlines()[0]
        raise BurnishError(
            f"wandb={mode} did not start ({reason}): log in with `wandb login`, or use wandb=offline"
        ) from error
