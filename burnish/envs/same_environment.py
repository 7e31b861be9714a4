"""Whether actions and observations mean the same in two environments: that of a file or a policy, and a task's.

The one comparison of environments. What is not told is not compared. What differs is named, one line each: what gives
actions or observations another meaning is refused unless it is allowed, the rest is a warning.
"""

from __future__ import annotations

import inspect
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from importlib import metadata
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from burnish.config import Checked, key, to_dict
from burnish.envs.task import SUITES, TaskConfig
from burnish.errors import BurnishError, warn

if TYPE_CHECKING:  # processes of environments do without torch
    from burnish.policies.base import Policy

MEANINGFUL = ("suite", "name", "robot", "gripper", "controller", "control_freq", "env_kwargs", "bounds")
OBSERVATIONS = ("obs_keys", "sensors")
REWARD = "reward"  # matters where the rewards of a file are learned from
ACTIONS = "actions"  # no difference of environments: actions that are not in [-1, 1], see `burnish.datasets.for_task`
OF_KWARGS = ("robot", "gripper", "controller", "control_freq", "reward", "env_kwargs")
ALSO = {"env_id": ("name",), "env_kwargs": OF_KWARGS}  # what keys of a task stand for
DATA = "data"  # nor this: other demonstrations than a resumed run had, see `burnish.datasets.fingerprint`
ALLOWED = (*MEANINGFUL, *OBSERVATIONS, REWARD, ACTIONS, DATA, "env_id")
TASK_KEY = {"robot": "robots", "gripper": "gripper_types", "control_freq": "control_freq"}

SUITE_OF_TYPE = {1: "robosuite", 2: "gymnasium", 3: "iGibson"}  # robomimic's EnvType
PACKAGES = {"robosuite": ("robosuite", "mujoco"), "gymnasium": ("gymnasium", "mujoco")}
NOT_COMPARED = {
    "robosuite": (
        *("has_renderer", "has_offscreen_renderer", "use_camera_obs", "renderer", "renderer_config", "ignore_done"),
        *("horizon", "hard_reset", "seed", "use_object_obs", "lite_physics", "env_name", "postprocess_visual_obs"),
        *("gripper_visualization", "gripper_visualizations", "robots", "gripper_types", "controller_configs"),
        *("control_freq", "reward_shaping", "reward_scale", "initialization_noise"),
    ),
    "gymnasium": (
        "render_mode",
        "width",
        "height",
        "max_episode_steps",
        "disable_env_checker",
        "default_camera_config",
    ),
}
"""Arguments that change pictures and time limits alone, or that are compared by themselves."""
MOST_LEAVES = 4  # of a controller that are named


@dataclass(frozen=True, kw_only=True)
class AllowConfig(Checked):
    """What every command that compares environments has."""

    allow: list[str] = key(
        [],
        "in what the task may differ from the environment of demonstrations and policy, as [robot,controller]; "
        "actions: clamp those that are not in [-1, 1]; data: a resumed run goes on with other demonstrations "
        "(docs/data.md)",
        options=ALLOWED,
    )


class Environment(NamedTuple):
    """What is told of one.

    Attributes:
        called: for messages: the file, "task=lift".
        where: likewise, short: "the file".
        aspects: name -> value; those that are not told are not in it.
    """

    called: str
    where: str
    aspects: dict[str, Any]


class Difference(NamedTuple):
    """One, in words; `decisive`: actions or observations mean something else."""

    aspect: str
    message: str
    decisive: bool

    def __str__(self) -> str:
        return f"{self.aspect}: {self.message}"


def of_task(
    task: TaskConfig | Mapping[str, Any], called: str = "", where: str = "the task", versions: Any = None
) -> Environment:
    """Of a task, also as plain data of an older version; what it leaves out are our defaults.

    `versions`: package -> version; None: those that are installed.
    """
    given = to_dict(task) if isinstance(task, TaskConfig) else task
    suite, name, kwargs = given["suite"], given.get("env_id", ""), given.get("env_kwargs") or {}
    aspects: dict[str, Any] = {"suite": suite, "name": name}
    if suite == "robosuite":
        aspects |= _robosuite(name, kwargs, told_whole=True)
    else:
        aspects["env_kwargs"] = _other_kwargs(suite, name, kwargs)
    aspects |= {key: list(given.get(key) or []) for key in OBSERVATIONS}
    aspects |= {key: given[key] for key in ("max_episode_steps",) if key in given}
    aspects["versions"] = versions_of(suite) if versions is None else _known_packages(suite, versions)
    return Environment(called or f"task={given.get('name', name)}", where, aspects)


def of_env_args(env_args: Mapping[str, Any] | None, called: str, where: str = "the file") -> Environment:
    """Of what robomimic's `env_args` tell: what they leave out is not known."""
    if not env_args:
        return Environment(called, where, {})
    kind, name, kwargs = env_args.get("type"), env_args.get("env_name"), env_args.get("env_kwargs") or {}
    suite = None if kind is None else SUITE_OF_TYPE.get(kind, f"robomimic's type {kind}")
    aspects: dict[str, Any] = {"suite": suite, "name": name}
    if suite == "robosuite":
        aspects |= _robosuite(str(name), kwargs, told_whole=False)
        if env_args.get("env_version"):
            aspects["versions"] = {"robosuite": str(env_args["env_version"])}
    elif suite == "gymnasium":
        aspects["env_kwargs"] = _other_kwargs(suite, str(name), kwargs)
    return Environment(called, where, {key: value for key, value in aspects.items() if value is not None})


def differences(known: Environment, now: Environment, *, rewards_matter: bool = False) -> list[Difference]:
    """What both tell and is not the same in them, in the order of meaning."""
    ours, theirs = known.aspects, now.aspects
    is_file = not any(key in ours for key in OBSERVATIONS)
    if is_file and theirs.get("suite", "robosuite") not in SUITES:
        return []  # no simulator, or a plugin's, which may well be the one of the file
    found = []
    for aspect in (*MEANINGFUL, *OBSERVATIONS, REWARD, "initialization_noise", "max_episode_steps", "versions"):
        if aspect not in ours or aspect not in theirs or _same(ours[aspect], theirs[aspect]):
            continue
        decisive = aspect in (*MEANINGFUL, *OBSERVATIONS) or (aspect == REWARD and rewards_matter)
        name, mine, other = aspect, ours[aspect], theirs[aspect]
        if aspect == "versions":
            mine, other = (
                {name: each[name] for name in each if name in mine and name in other} for each in (mine, other)
            )
        if aspect == "name" and _without_version(ours[aspect]) == _without_version(theirs[aspect]):
            name, decisive = "versions", False  # Hopper-v4, Hopper-v5
        for message in _words(mine, other, known.where, now.where):
            found.append(Difference(name, message, decisive))
        if aspect == "suite":
            break  # nothing else can be compared
    return found


def require_same(
    known: Environment,
    now: Environment,
    allow: Sequence[str] = (),
    *,
    rewards_matter: bool = False,
    write: Callable[[list[str]], str] | None = None,
) -> None:
    """Raise BurnishError, naming every one, for differences that give actions or observations another meaning and are
    not allowed; warn of the others. `write`: how the user allows aspects."""
    found = differences(known, now, rewards_matter=rewards_matter)
    allowed = all_of(allow)
    refused = [one for one in found if one.decisive and one.aspect not in allowed]
    others = [one for one in found if one not in refused]
    if others:
        warn(f"{known.called} and {now.called} are not quite the same environment: {_lines(others)}")
    if refused:
        raise BurnishError(refusal(known, now, refused, write or as_key))


def require_trained_in(policy: Policy, task: TaskConfig, allow: Sequence[str] = ()) -> None:
    """`require_same` of the task that the policy was trained in; of older versions it is not known."""
    if policy.trained_in is not None:
        known = of_task(policy.trained_in, "what the policy was trained in", "the policy's", policy.trained_with)
        require_same(known, of_task(task), allow)


def refusal(
    known: Environment, now: Environment, refused: Sequence[Difference], write: Callable[[list[str]], str]
) -> str:
    """What to say of differences that are not allowed."""
    aspects = list(dict.fromkeys(one.aspect for one in refused))
    settings = [
        f"task.env_kwargs.{TASK_KEY[aspect]}={_setting(known.aspects[aspect])}"
        for aspect in aspects
        if aspect in TASK_KEY and aspect in known.aspects
    ]
    same = f"to make them the same: {' '.join(settings)}; " if settings else ""
    end = "\n" if len(refused) > 1 else "; "
    return (
        f"{known.called} and {now.called} are different environments, in which actions or observations do not mean the "
        f"same: {_lines(refused)}{end}{same}if the difference is wanted: {write(aspects)}"
    )


def as_key(aspects: list[str]) -> str:
    """What to write where settings are key=value."""
    return f"allow=[{','.join(aspects)}]"


def as_option(aspects: list[str]) -> str:
    """What to write where they are options."""
    return f"--allow {' '.join(aspects)}"


def all_of(allow: Sequence[str]) -> set[str]:
    """The aspects that `allow` names, and those that keys of a task stand for. Raises BurnishError for others."""
    for name in allow:
        if name not in ALLOWED:
            raise BurnishError(f"allow: {name!r}: expected of {', '.join(ALLOWED)}")
    return {aspect for name in allow for aspect in ALSO.get(name, (name,))}


def versions_of(suite: str) -> dict[str, str]:
    """Of the packages whose simulation it is, as they are installed."""
    found = {}
    for package in PACKAGES.get(suite, ()):
        with suppress(metadata.PackageNotFoundError):
            found[package] = metadata.version(package)
    return found


def _known_packages(suite: str, versions: Mapping[str, str]) -> dict[str, str]:
    return {name: versions[name] for name in PACKAGES.get(suite, ()) if name in versions}


def _robosuite(name: str, kwargs: Mapping[str, Any], *, told_whole: bool) -> dict[str, Any]:
    """What keyword arguments of robosuite, old or new, say of its environment `name`."""
    from burnish.envs.robosuite.env import DEFAULT_CONTROL_FREQ, default_robots

    robots = kwargs.get("robots") or (default_robots(name) if told_whole else None)
    robots = [robots] if isinstance(robots, str) else robots
    aspects: dict[str, Any] = {
        "robot": robots,
        "control_freq": kwargs.get("control_freq", DEFAULT_CONTROL_FREQ if told_whole else None),
        REWARD: {
            "reward_shaping": bool(kwargs.get("reward_shaping")),
            "reward_scale": kwargs.get("reward_scale", 1.0),
        },
        "initialization_noise": kwargs.get("initialization_noise") or "default",
        "env_kwargs": _other_kwargs("robosuite", name, kwargs),
    }
    if not told_whole and "reward_shaping" not in kwargs:
        del aspects[REWARD]
    if robots is not None:
        if told_whole or "gripper_types" in kwargs:
            aspects["gripper"] = _grippers(robots, kwargs.get("gripper_types", "default"))
        if told_whole or kwargs.get("controller_configs"):
            aspects["controller"] = _controllers(name, robots, kwargs.get("controller_configs"))
    return {key: value for key, value in aspects.items() if value is not None}


def _grippers(robots: Sequence[str], given: Any) -> list[Any] | None:
    """The name of each, also of a robot's default; None where robosuite cannot tell."""
    each = given if isinstance(given, list) else [given] * len(robots)
    named = [_default_gripper(robot) if gripper == "default" else gripper for robot, gripper in zip(robots, each)]
    return None if "unknown" in named else named


@cache
def _default_gripper(robot: str) -> str:
    try:
        from burnish.envs.robosuite.env import import_robosuite

        import_robosuite()
        from robosuite.models.robots.robot_model import REGISTERED_ROBOTS

        found = REGISTERED_ROBOTS[robot].default_gripper.fget(None)  # a constant of each class, behind a property
    except (BurnishError, ImportError, KeyError, AttributeError, TypeError):
        return "unknown"
    names = list(dict.fromkeys(found.values()))
    return ", ".join(map(str, names))


def _controllers(name: str, robots: Sequence[str], configs: Any) -> dict[str, Any] | None:
    """What decides on the meaning of actions, "right.kp" -> value; None where robosuite cannot tell."""
    from burnish.envs.robosuite.env import body_parts, composite_controllers, import_robosuite

    try:
        import_robosuite()
    except BurnishError:
        return None
    try:
        composites = composite_controllers(list(robots), configs)
    except KeyError:  # a robot that this robosuite has not: its name differs already
        return None
    found: dict[str, Any] = {}
    # Fixed robots that stand alone have their base along the world's axes: the two frames of a delta are the same.
    one_frame = len(robots) == 1 and ":" not in name and not name.startswith("TwoArm")
    for number, composite in enumerate(composites):
        prefix = f"robot{number}." if len(composites) > 1 else ""
        kind = composite.get("type", "BASIC")
        found[f"{prefix}type"] = kind
        if kind != "BASIC":
            others = composite.get("composite_controller_specific_configs") or {}
            found |= {f"{prefix}{leaf}": _plain(value) for leaf, value in others.items()}
        for part, config in body_parts(composite).items():
            leaves = _part_controller(config)
            if one_frame and kind == "BASIC":
                leaves.pop("input_ref_frame", None)
            found |= {f"{prefix}{part}.{leaf}": value for leaf, value in leaves.items()}
    return found


def _part_controller(config: Mapping[str, Any]) -> dict[str, Any]:
    """One without what has no effect, and with robosuite's defaults."""
    kind = str(config.get("type", ""))
    whole = {**_osc_defaults(), **config} if kind.startswith("OSC") else dict(config)
    left_out = {"gripper", "policy_freq", "lite_physics", "control_ori", "control_delta"}
    if whole.get("impedance_mode", "fixed") == "fixed":
        left_out |= {"kp_limits", "damping_ratio_limits", "damping_limits"}
    if not whole.get("interpolation"):
        left_out |= {"interpolation", "ramp_ratio"}
    return {leaf: _plain(value) for leaf, value in whole.items() if leaf not in left_out and value is not None}


@cache
def _osc_defaults() -> dict[str, Any]:
    from robosuite.controllers.parts.arm.osc import OperationalSpaceController

    defaults = _defaults_of(OperationalSpaceController)
    return {leaf: value for leaf, value in defaults.items() if not leaf.startswith("interpolator")}


def _other_kwargs(suite: str, name: str, kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Those that are not the class's defaults, and are not compared by themselves."""
    left_out = NOT_COMPARED.get(suite, ())
    found = {"base_types" if key == "mount_types" else key: _plain(value) for key, value in kwargs.items()}
    if suite == "robosuite":
        found = {k: v for k, v in found.items() if not k.startswith(("camera_", "render_")) and v != "default"}
    defaults = _defaults(suite, name) if set(found) - set(left_out) else {}
    unset = object()
    return {
        key: value
        for key, value in found.items()
        if key not in left_out and not _same(value, _plain(defaults.get(key, unset)))
    }


@cache
def _defaults(suite: str, name: str) -> dict[str, Any]:
    """Of the keyword arguments of an environment, as far as it is here."""
    try:
        if suite == "robosuite":
            from burnish.envs.robosuite.env import environment_class

            return _defaults_of(environment_class(name))
        if suite == "gymnasium":
            import gymnasium

            spec = gymnasium.spec(name)
            maker: Any = spec.entry_point
            maker = gymnasium.envs.registration.load_env_creator(maker) if isinstance(maker, str) else maker
            return {**_defaults_of(maker), **spec.kwargs}
    except Exception:  # foreign code that is not here, or refuses: no default is known
        return {}
    return {}


def _defaults_of(function: Any) -> dict[str, Any]:
    parameters = inspect.signature(function).parameters.values()
    return {one.name: one.default for one in parameters if one.default is not inspect.Parameter.empty}


def _plain(value: Any) -> Any:
    """As JSON would have it; a list of one number again and again is that number."""
    if isinstance(value, np.ndarray):
        value = value.tolist()
    if isinstance(value, (list, tuple)):
        items = [_plain(item) for item in value]
        numbers = len(items) > 1 and all(isinstance(item, (int, float)) for item in items)
        return items[0] if numbers and len(set(items)) == 1 else items
    if isinstance(value, Mapping):
        return {str(name): _plain(item) for name, item in value.items()}
    return value


def _same(one: Any, other: Any) -> bool:
    """Equal, but for what is written otherwise."""
    if isinstance(one, (int, float)) and isinstance(other, (int, float)):
        return math.isclose(one, other, rel_tol=1e-6, abs_tol=1e-12)
    if isinstance(one, (list, tuple)) and isinstance(other, (list, tuple)):
        return len(one) == len(other) and all(map(_same, one, other))
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        return all(name in one and name in other and _same(one[name], other[name]) for name in {*one, *other})
    return bool(one == other)


def _without_version(name: str) -> str:
    return re.sub(r"-v\d+$", "", str(name))


def _words(ours: Any, theirs: Any, here: str, there: str) -> Iterator[str]:
    """What differs, one sentence; of mappings one for each key, of many the first and how many there are."""
    if not (isinstance(ours, Mapping) and isinstance(theirs, Mapping)):
        yield f"{_show(ours)} in {here}, {_show(theirs)} in {there}"
        return
    names = [name for name in {**ours, **theirs} if not _same(ours.get(name, _UNSET), theirs.get(name, _UNSET))]
    for name in names[:MOST_LEAVES]:
        yield f"{name} {_show(ours.get(name, _UNSET))} in {here}, {_show(theirs.get(name, _UNSET))} in {there}"
    if len(names) > MOST_LEAVES:
        yield f"... ({len(names)} that differ)"


_UNSET = "its default"


def _show(value: Any) -> str:
    if isinstance(value, list) and all(isinstance(item, str) for item in value):
        text = ", ".join(value) or "none"
    else:
        text = str(value)
    return text if len(text) <= 120 else text[:117] + "..."


def _setting(value: Any) -> str:
    return f"[{','.join(map(str, value))}]" if isinstance(value, list) else str(value)


def _lines(found: Sequence[Difference]) -> str:
    return str(found[0]) if len(found) == 1 else "".join(f"\n  {one}" for one in found)
