"""A policy's folder: policy.json and policy.safetensors, which evaluate alone."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

from burnish.errors import BurnishError
from burnish.machine.checksums import verify
from burnish.machine.disk import standing
from burnish.runs.checkpoint import Checkpoints, checkpoint_at

FORMAT = 1
WEIGHTS = "policy.safetensors"
DESCRIPTION = "policy.json"


def policy_folder(folder: str | os.PathLike[str]) -> Path:
    """What `load_policy` reads: the folder itself, or the latest checkpoint of a run folder.

    Raises:
        BurnishError: a file is missing.
    """
    folder = standing(checkpoint_at(Path(folder)))
    if (folder / "checkpoints").is_dir():
        checkpoints = Checkpoints(folder / "checkpoints")
        folder = checkpoints.latest(DESCRIPTION, WEIGHTS) or checkpoints.latest() or folder
    for name in (DESCRIPTION, WEIGHTS):
        if not (folder / name).is_file():
            raise BurnishError(
                f"{folder} is not a policy folder: {name} is missing (expected {DESCRIPTION} and {WEIGHTS})"
            )
    return folder


def fingerprint(folder: str | os.PathLike[str]) -> str:
    """SHA-256 of the weights that `load_policy` reads, 64 hexadecimal digits. Raises BurnishError as it does."""
    return hashlib.sha256((policy_folder(folder) / WEIGHTS).read_bytes()).hexdigest()


def known_task(folder: str | os.PathLike[str]) -> dict[str, Any] | None:
    """The task (`TaskConfig` as plain data) that the policy in a policy's or a run's folder was trained in; None where
    there is no such folder, or a policy of a version that did not tell."""
    try:
        return read_description(policy_folder(folder)).get("trained_in")
    except BurnishError:  # said by whoever loads it
        return None


def known_plugins(folder: str | os.PathLike[str]) -> list[str]:
    """The plugins of the run that made the policy, without which its task may not be found; see `known_task`."""
    try:
        return list(read_description(policy_folder(folder)).get("plugins", []))
    except BurnishError:
        return []


def read_description(folder: Path) -> dict[str, Any]:
    """The content of policy.json.

    Raises:
        BurnishError: it is no JSON, or of another format, or not what its checksum says.
    """
    verify(folder / DESCRIPTION)
    try:
        description = json.loads((folder / DESCRIPTION).read_text())
        if description["format"] != FORMAT:
            raise BurnishError(f"{folder / DESCRIPTION}: format {description['format']}, this version reads {FORMAT}")
    except (ValueError, KeyError, TypeError) as error:
        raise BurnishError(f"{folder / DESCRIPTION} is damaged: {type(error).__name__}: {error}") from error
    description = {"kind": "diffusion", **description}  # the first policies do not say
    config = description.get("config")
    if description["kind"] == "diffusion" and isinstance(config, dict) and config.get("sampler") == "ddim":
        config.setdefault("timestep_spacing", "leading")  # those who do not say had no other, in one step either
    return description
