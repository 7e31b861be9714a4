"""`burnish policy set`: how a saved policy samples, changed in its policy.json."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from typing import Any

from burnish.compose import parse_value, split
from burnish.config import parse
from burnish.errors import BurnishError
from burnish.machine.checksums import replace_text
from burnish.machine.lock import FolderLock
from burnish.policies.base import policy_class
from burnish.policies.folder import DESCRIPTION, policy_folder, read_description
from burnish.runs.checkpoint import run_of

SETTABLE = ("temperature", "mean_of", "sampler", "sampler_steps", "timestep_spacing")
"""What says how a policy samples and not what it has learned."""


def set_policy(folder: str, overrides: Sequence[str]) -> str:
    """Write `overrides` (key=value, of `SETTABLE`) into a policy's description -> what was changed, in words.

    Raises BurnishError for another key or value, before anything is written.
    """
    found = policy_folder(folder)
    description = read_description(found)
    config_class = policy_class(description["kind"]).Config
    before = parse(config_class, description["config"], where="config")
    given: dict[str, Any] = {}
    for override in overrides:
        name, _ = split(override)
        if name not in SETTABLE:
            raise BurnishError(f"{override}: expected one of {', '.join(f'{each}=...' for each in SETTABLE)}")
        given[name] = parse_value(override)
        if name not in ("temperature", "mean_of") and description.get("ft_denoising_steps"):
            raise BurnishError(
                f"{override}: a fine-tuned policy keeps its sampler, whose steps its ft_denoising_steps counts; "
                "burnish evaluate takes another for an evaluation"
            )
    after = parse(config_class, {**dataclasses.asdict(before), **given})
    description["config"] = dataclasses.asdict(after)
    with FolderLock(run_of(found)):  # a training may be replacing this checkpoint
        for file, content in after.companions().items():
            replace_text(found / file, json.dumps(content, indent=2) + "\n")
        replace_text(found / DESCRIPTION, json.dumps(description, indent=2) + "\n")
    changed = [f"{name} from {_shown(getattr(before, name))} to {_shown(getattr(after, name))}" for name in given]
    return f"{found}: {', '.join(changed)}"


def _shown(value: float | str | None) -> str:
    return "null" if value is None else value if isinstance(value, str) else f"{value:g}"
