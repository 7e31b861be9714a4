"""A policy's folder: policy.json and policy.safetensors, which evaluate alone."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, get_type_hints

from burnish.config import Checked, chosen, key, parse, section_class
from burnish.errors import BurnishError
from burnish.foreign import one_line, told_as
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
    path = folder / DESCRIPTION
    verify(path)
    with told_as(f"{path} is damaged"):
        description = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(description, dict) or "format" not in description:
        raise BurnishError(f"{path} is damaged: expected keys and values, format among them")
    if description["format"] != FORMAT:
        raise BurnishError(f"{path}: format {one_line(str(description['format']), 40)}, this version reads {FORMAT}")
    known = {field.name for field in fields(Description)}
    try:
        parse(Description, {name: value for name, value in description.items() if name in known})
    except BurnishError as error:
        raise BurnishError(f"{path} is damaged: {error}") from error
    description = {"kind": "diffusion", **description}  # the first policies do not say
    if description["kind"] == "diffusion" and description["config"].get("sampler") == "ddim":
        description["config"].setdefault("timestep_spacing", "leading")  # those who do not say had no other
    return description


@dataclass(frozen=True, kw_only=True)
class Description(Checked):
    """What every policy.json says; kinds of policies may say more."""

    format: int = key(doc="of the file")
    kind: str = key("diffusion", "of the policy")
    task: str = key(doc="name of the task that it was trained for")
    trained_in: dict[str, Any] | None = key(None, "that task's keys")
    trained_with: dict[str, str] = key(factory=dict, doc="versions of the simulator's packages then")
    plugins: list[str] = key([], "of the run that made it")
    obs_dim: int = key(doc="Do", least=0)
    sensors: dict[str, dict[str, Any]] | None = key(None, "name -> shape and dtype")
    action_dim: int = key(doc="Da", least=1)
    obs_keys: list[str] = key(doc="that make up Do")
    config: dict[str, Any] = key(doc="`ChunkConfig` of its kind")
    ft_denoising_steps: int = key(0, "K' (0: not fine-tuned)", least=0)
    critic: dict[str, Any] | None = key(None, "`CriticConfig`")


LATER_KEYS = frozenset(
    {"kind", "encoder", "temperature", "mean_of", "sampler_steps", "trained_betas", "timestep_spacing"}
)
"""Of a policy's config: the first policies do not have them, and did what their defaults say. All others are always
there, and where one is missing the file is not what was written."""


def require_keys(cls: type, given: Mapping[str, Any], where: str) -> None:
    """Raise BurnishError where a section of policy.json lacks a key of Burnish's dataclass `cls`, or of one in it."""
    cls = chosen(cls, given)
    hints = get_type_hints(cls)
    for field in fields(cls):
        owner = next(base for base in cls.__mro__ if field.name in vars(base).get("__annotations__", {}))
        name = f"{where}.{field.name}"
        if field.name not in given:
            if field.name not in LATER_KEYS and owner.__module__.startswith("burnish."):
                raise BurnishError(f"{name} is missing: expected all that decides what the policy computes")
        elif (section := section_class(hints[field.name], given[field.name], name)) is not None:
            require_keys(section, given[field.name], name)
