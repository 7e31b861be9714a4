"""scheduler_config.json, in diffusers' own format: written beside a policy, and read as its noise schedule.

Writing does not import diffusers, which takes half as long as importing torch.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from torch import Tensor

from burnish.diffusion.process import NoiseProcess
from burnish.diffusion.sampler import Sampler
from burnish.errors import BurnishError
from burnish.foreign import cause, one_line

SCHEDULER_FILE = "scheduler_config.json"
FLOW_CLASS = "FlowMatchEulerDiscreteScheduler"
CLASSES = {"ddim": "DDIMScheduler"}
"""Of diffusers, the one that steps as our sampler does; of others DDPMScheduler, which has the same noise."""
ALIKE: dict[str, tuple[Any, ...]] = {
    "rescale_betas_zero_snr": (False,),
    "thresholding": (False,),
    "variance_type": ("fixed_small", "fixed_small_log", None),
    "set_alpha_to_one": (True,),
    "steps_offset": (0,),
}
"""Settings of a scheduler that decide what is sampled, with the values that our samplers have."""


def scheduler_config(sampler: Sampler) -> dict[str, Any]:
    """What diffusers' `from_pretrained` and `from_config` make the scheduler of: `sampler`'s process and kind of steps.

    Number of steps, eta and temperature are no part of it: there, these are given when a chain is run. Of a flow the
    steps are those of `set_timesteps(S, sigmas=[1 - j / S for j in range(S)])`, and the network's velocity with the
    other sign.
    """
    config = {**_identity(sampler), **sampler.scheduler_config()}
    return dict(sorted(config.items()))


def _identity(sampler: Sampler) -> dict[str, Any]:
    process = sampler.process
    try:
        found = {"_diffusers_version": version("diffusers")}
    except PackageNotFoundError:
        found = {}
    if not isinstance(process, NoiseProcess):
        return found | {"_class_name": FLOW_CLASS, "num_train_timesteps": process.denoising_steps, "shift": 1.0}
    clip = process.clip_sample
    settings: dict[str, Any] = {
        "_class_name": CLASSES.get(sampler.kind, "DDPMScheduler"),
        "num_train_timesteps": process.denoising_steps,
        "trained_betas": process.betas.tolist(),
        "prediction_type": process.prediction_type,
        "clip_sample": clip is not None,
        "clip_sample_range": 1.0 if clip is None else clip,
        "thresholding": False,
        "timestep_spacing": sampler.spacing if sampler.kind == "ddim" else "leading",
        "steps_offset": 0,
    }
    own = {"set_alpha_to_one": True} if sampler.kind == "ddim" else {"variance_type": "fixed_small"}
    return found | settings | own


def is_scheduler_file(schedule: str) -> bool:
    """Whether the setting is a file's name, and not a schedule's."""
    return schedule.endswith(".json")


def betas_of(path: str, wanted: Mapping[str, Any]) -> Tensor:
    """The variances of the schedule in a scheduler's config, float64 (K,).

    Args:
        wanted: denoising_steps, prediction_type and clip_sample of the policy, which must be those of the file, and
            timestep_spacing, which must be a DDIMScheduler's.

    Raises:
        BurnishError: no such file, no scheduler's config, something that our samplers do not do, or another setting
            of the policy than the file's.
    """
    said = f"schedule={path}"
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise BurnishError(f"{said}: {error.strerror}; expected a {SCHEDULER_FILE}") from error
    except (ValueError, RecursionError) as error:
        raise BurnishError(f"{said} is no JSON: {cause(error)}") from error
    if not isinstance(content, dict) or "_class_name" not in content:
        raise BurnishError(f"{said}: no _class_name in it; expected a {SCHEDULER_FILE} as diffusers writes it")
    name, timesteps = content["_class_name"], content.get("num_train_timesteps", wanted["denoising_steps"])
    if timesteps != wanted["denoising_steps"]:  # before tables of so many are made
        raise BurnishError(
            f"{said} was made for another policy than one with denoising_steps={wanted['denoising_steps']}: expected "
            f"policy.denoising_steps={one_line(str(timesteps), 40)}"
        )
    if str(name).startswith("FlowMatch"):
        raise BurnishError(f"{said} is a flow's ({name}): expected policy=flow, whose times are denoising_steps alone")
    from burnish.diffusion.scheduler import scheduler_class

    try:
        scheduler = scheduler_class(str(name)).from_config(content)
    except BurnishError as error:
        raise BurnishError(f"{said}, _class_name: {error}") from error
    except Exception as error:  # whatever its constructor makes of the file's values
        raise BurnishError(f"{said}: {name} refuses it: {cause(error)}") from error
    config = scheduler.config
    for key, values in ALIKE.items():
        if key in config and config[key] not in values:
            raise BurnishError(f"{said}: {key}={config[key]}, which Burnish's samplers do not do; expected {values[0]}")
    if not isinstance(getattr(scheduler, "betas", None), Tensor):
        raise BurnishError(f"{said}: a {name} has no betas; expected e.g. a DDPMScheduler's")
    _check_wanted(said, config, wanted, spaced=name == "DDIMScheduler")
    return scheduler.betas.double()


def _check_wanted(said: str, config: Mapping[str, Any], wanted: Mapping[str, Any], *, spaced: bool) -> None:
    """Raise BurnishError where the policy's settings are not the file's."""
    found = {"denoising_steps": config["num_train_timesteps"], "prediction_type": config["prediction_type"]}
    if "clip_sample" in config:
        found["clip_sample"] = config.get("clip_sample_range", 1.0) if config["clip_sample"] else None
    if spaced and (wanted["timestep_spacing"] or "leading") != config["timestep_spacing"]:
        found["timestep_spacing"] = config["timestep_spacing"]
    differing = {key: value for key, value in found.items() if wanted[key] != value}
    if differing:
        given = ", ".join(f"{key}={wanted[key]}" for key in differing)
        keys = " ".join(f"policy.{key}={'null' if value is None else value}" for key, value in differing.items())
        raise BurnishError(f"{said} was made for another policy than one with {given}: expected {keys}")
