"""Building robosuite environments: classes, defaults, robots, controllers, and robomimic's `env_args` old and new."""

from __future__ import annotations

import copy
import logging
import sys
from collections.abc import Iterable, Mapping
from functools import cache
from typing import Any

import numpy as np

from burnish.envs.opengl import opengl_advice
from burnish.envs.task import TaskConfig
from burnish.errors import BurnishError
from burnish.foreign import one_line, told_as
from burnish.registry import import_named, is_address

# What robosuite draws while it loads a model (the size of Lift's cube) is what this seed gives, everywhere.
MODEL_SEED = 0

ROBOSUITE_TYPE = 1  # robomimic's EnvType.ROBOSUITE_TYPE

ARM_CONTROLLERS = ("OSC_POSE", "OSC_POSITION", "IK_POSE", "JOINT_POSITION", "JOINT_VELOCITY", "JOINT_TORQUE")

DEFAULT_CONTROL_FREQ = 20  # Hz, robosuite's own

NO_ARMS = ("torso", "head", "base", "legs")  # parts of a robot, which robosuite moves within [-1, 1] of their own
MOST_HERTZ, MOST_ROBOTS = 500, 4

_BUILD_KWARGS = ("hard_reset", "renderer", "seed")  # ours, not part of a recording's env_args


def _errors_only(record: logging.LogRecord) -> bool:
    return record.levelno >= logging.ERROR


def import_robosuite() -> Any:
    """The robosuite module, without its log lines on the console (missing macros, controller files).

    A filter on robosuite's logger, because importing robosuite sets the logger's level again.
    """
    logging.getLogger("robosuite_logs").addFilter(_errors_only)
    with told_as("robosuite cannot be imported", f": pip install 'robosuite==1.5.2'{opengl_advice()}"):
        import robosuite
    return robosuite


def make_task_env(
    env_name: str, env_kwargs: dict[str, Any] | None = None, *, fast: bool = True, lean: bool = True
) -> Any:
    """A robosuite environment without cameras or renderers, from today's or older keyword arguments.

    Arguments:
        env_name: robosuite's name ("Lift", "PickPlaceCan", "NutAssemblySquare", ...), or "module:Class" of one's own.
        env_kwargs: for `robosuite.make`; they win over the defaults of `complete_env_kwargs`.
        fast: with a compiled `step` of the same numbers (`robosuite_fast`); where that is not possible, robosuite's
            own, and a line on the standard error says why.
        lean: without the meshes and textures that are only there to be seen (`burnish.envs.robosuite.model`).

    Raises BurnishError for an unknown environment or arguments robosuite refuses.
    """
    from burnish.envs.robosuite.model import make_env

    env_class = environment_class(env_name)
    kwargs = complete_env_kwargs(env_name, env_kwargs or {})
    with told_as(f"robosuite.make({env_name!r}) refuses task.env_kwargs"):
        env = make_env(env_class, kwargs, lean=lean)
    if fast:
        from burnish.envs.robosuite.fast_step import speed_up

        _say_once(env_name, speed_up(env))
    return env


def environment_class(env_name: str) -> Any:
    """robosuite's class of that name, or the one that "module:Class" stands for. Raises BurnishError without one."""
    robosuite = import_robosuite()
    from robosuite.environments.base import REGISTERED_ENVS, MujocoEnv

    if ":" not in env_name:
        _require_known(env_name, robosuite.ALL_ENVIRONMENTS, "environment", "task.env_id", ", or module:Class")
        return REGISTERED_ENVS[env_name]
    module, _, name = env_name.partition(":")
    if not is_address(env_name):
        raise BurnishError(f"task.env_id={env_name}: expected module:Class, with the module's folder on PYTHONPATH")
    found = getattr(import_named(module, f"task.env_id={env_name}"), name, None)
    if found is None:
        raise BurnishError(f"task.env_id={env_name}: module {module} has no {name}; expected module:Class")
    if not (isinstance(found, type) and issubclass(found, MujocoEnv)):
        raise BurnishError(f"task.env_id={env_name} is no class of robosuite environments: expected a MujocoEnv")
    return found


def is_robosuites_own(env: Any) -> bool:
    """Whether nothing of the environment's class is somebody else's."""
    return all(base.__module__.split(".")[0] in ("robosuite", "builtins") for base in type(env).__mro__)


def _require_known(name: Any, known: Iterable[str], what: str, key: str, else_: str = "") -> None:
    """Raise BurnishError where robosuite has no `what` called `name`."""
    if name not in known:
        raise BurnishError(f"{key}: robosuite has no {what} {name!r}; it has: {', '.join(sorted(known))}{else_}")


@cache
def _say_once(env_name: str, remark: str | None) -> None:
    if remark:
        print(f"burnish: {env_name} {remark}", file=sys.stderr, flush=True)


def complete_env_kwargs(env_name: str, env_kwargs: dict[str, Any]) -> dict[str, Any]:
    """`env_kwargs` over our defaults: Panda arms, OSC_POSE deltas in the world frame at 20 Hz, sparse reward,
    no rendering, no time limit, soft resets, a model from a fixed seed. Names become lists and configurations."""
    defaults: dict[str, Any] = {
        "robots": default_robots(env_name),
        "control_freq": DEFAULT_CONTROL_FREQ,
        "reward_shaping": False,
        "use_object_obs": True,
        "use_camera_obs": False,
        "has_renderer": False,
        "has_offscreen_renderer": False,
        "ignore_done": True,
        "hard_reset": False,
        "renderer": "mujoco",
        "seed": MODEL_SEED,
    }
    kwargs = {**defaults, **copy.deepcopy(env_kwargs)}
    _check_frequency(kwargs["control_freq"])
    if isinstance(kwargs["robots"], str):
        kwargs["robots"] = [kwargs["robots"]]
    _check_robots(kwargs["robots"], kwargs.get("gripper_types", "default"))
    with told_as("task.env_kwargs.controller_configs cannot be understood"):
        kwargs["controller_configs"] = composite_controllers(kwargs["robots"], kwargs.get("controller_configs"))
    for controller in kwargs["controller_configs"]:
        _require_delta(controller)
    return kwargs


def takes_unit_actions(task: TaskConfig) -> bool:
    """Whether robosuite's own range of all actions of the task is [-1, 1]."""
    controllers = complete_env_kwargs(task.env_id, task.env_kwargs)["controller_configs"]
    parts = [part for controller in controllers for part in body_parts(controller).values()]
    return all(
        part.get("impedance_mode", "fixed") == "fixed"
        and np.all(np.equal(part.get("input_max", 1), 1))
        and np.all(np.equal(part.get("input_min", -1), -1))
        for part in parts
    )


def default_robots(env_name: str) -> list[str]:
    """One Panda, or two where robosuite's task is for two arms."""
    names = [env_name] if ":" not in env_name else [base.__name__ for base in environment_class(env_name).__mro__]
    return ["Panda", "Panda"] if any(name.startswith("TwoArm") for name in names) else ["Panda"]


def _check_frequency(hertz: Any) -> None:
    """Raise BurnishError where a control step would be less than one of MuJoCo's, or hundreds of thousands."""
    if isinstance(hertz, bool) or not isinstance(hertz, (int, float)) or not 1 <= hertz <= MOST_HERTZ:
        raise BurnishError(
            f"task.env_kwargs.control_freq={hertz}: expected control steps a second, 1 to {MOST_HERTZ} (MuJoCo's own)"
        )


def _check_robots(robots: list[str], gripper_types: Any) -> None:
    """Raise BurnishError for names that robosuite does not have."""
    if not isinstance(robots, (list, tuple)) or not 1 <= len(robots) <= MOST_ROBOTS:
        raise BurnishError(
            f"task.env_kwargs.robots={one_line(str(robots), 60)}: expected one name or more, at most {MOST_ROBOTS}"
        )
    import_robosuite()
    from robosuite.models.grippers import GRIPPER_MAPPING
    from robosuite.models.robots.robot_model import REGISTERED_ROBOTS

    for robot in robots:
        _require_known(str(robot), REGISTERED_ROBOTS, "robot", "task.env_kwargs.robots")
    for gripper in gripper_types if isinstance(gripper_types, list) else [gripper_types]:
        if gripper not in (None, "default"):
            known = [name for name in GRIPPER_MAPPING if name]
            _require_known(str(gripper), known, "gripper", "task.env_kwargs.gripper_types")


def env_args_of(task: TaskConfig) -> dict[str, Any]:
    """robomimic's `env_args` of a task: env_name, env_version, type, and the env_kwargs with controllers."""
    return env_args(task.env_id, task.env_kwargs)


def env_args(env_name: str, env_kwargs: dict[str, Any]) -> dict[str, Any]:
    """robomimic's `env_args` for what `make_task_env(env_name, env_kwargs)` builds."""
    kwargs = complete_env_kwargs(env_name, env_kwargs)
    return {
        "env_name": env_name,
        "env_version": import_robosuite().__version__,
        "type": ROBOSUITE_TYPE,
        "env_kwargs": {key: value for key, value in kwargs.items() if key not in _BUILD_KWARGS},
    }


def task_from_env_args(env_args: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """robomimic's `env_args` -> (env_name, env_kwargs) for `make_task_env`.

    Files of robosuite 1.0 to 1.4 get 1.5's names; `make_task_env` makes their arm controllers composite.
    Cameras and renderers are left out. `lite_physics` stays on (with it off, as robosuite advises for old
    files, replayed human demonstrations deviated by the same 4 digits, in twice the time).

    Raises BurnishError for an environment that is not robosuite's.
    """
    name = env_args.get("env_name")
    if not isinstance(name, str) or env_args.get("type", ROBOSUITE_TYPE) != ROBOSUITE_TYPE:
        kind = env_args.get("type")
        raise BurnishError(f"env_args of {name!r} have type {kind!r}: expected robosuite's ({ROBOSUITE_TYPE})")
    kwargs = {
        key: value
        for key, value in copy.deepcopy(env_args.get("env_kwargs", {})).items()
        if not key.startswith(("camera_", "render")) and key not in ("env_name", "postprocess_visual_obs")
    }
    configs = kwargs.get("controller_configs")
    for config in configs if isinstance(configs, list) else [configs]:
        if isinstance(config, str) and config.endswith(".json"):
            raise BurnishError(f"env_args: controller_configs={config}: expected the configuration, not a file of it")
    kwargs.update(has_renderer=False, has_offscreen_renderer=False, use_camera_obs=False, ignore_done=True)
    for gone in ("gripper_visualization", "gripper_visualizations"):
        kwargs.pop(gone, None)
    if "mount_types" in kwargs:
        kwargs["base_types"] = kwargs.pop("mount_types")
    return name, kwargs


def composite_controllers(robots: list[str], configs: Any) -> list[dict[str, Any]]:
    """One composite controller per robot; `configs`: of all or each, a configuration or a name (see `_named`).

    Deltas are in the world frame unless a config says otherwise, as in robosuite up to 1.4 and in
    robomimic's recordings; robosuite 1.5's own default is the frame of the robot's base, which differs
    where robots face each other (TwoArmTransport).
    """
    robosuite = import_robosuite()
    if configs is None:
        composites = [robosuite.load_composite_controller_config(robot=robot) for robot in robots]
        for composite in composites:
            for part in composite["body_parts"].values():
                if part.get("type") == "OSC_POSE":
                    part["input_ref_frame"] = "world"
        return composites
    per_robot = configs if isinstance(configs, list) else [configs] * len(robots)
    if len(per_robot) != len(robots):
        raise BurnishError(f"controller_configs has {len(per_robot)} entries for {len(robots)} robots")
    named = [_named(config) if isinstance(config, str) else config for config in per_robot]
    return [_composite(config, robot) for config, robot in zip(named, robots)]


def _named(name: str) -> dict[str, Any]:
    """robosuite's default configuration of an arm's controller (OSC_POSITION, ...) or of a composite one (BASIC, ...),
    or that in a JSON file. Raises BurnishError where there is none."""
    import_robosuite()
    from robosuite.controllers import load_composite_controller_config, load_part_controller_config
    from robosuite.controllers.composite.composite_controller import REGISTERED_COMPOSITE_CONTROLLERS_DICT

    config: dict[str, Any]
    with told_as(f"task.env_kwargs.controller_configs={name} cannot be read"):
        if name in ARM_CONTROLLERS:
            config = load_part_controller_config(default_controller=name)
            config.pop("input_ref_frame", None)  # ours is the world's
            return config
        if not name.endswith(".json"):
            known = [*ARM_CONTROLLERS, *REGISTERED_COMPOSITE_CONTROLLERS_DICT]
            _require_known(name, known, "controller", "task.env_kwargs.controller_configs", ", or a JSON file")
        config = load_composite_controller_config(controller=name)
    return config


def body_parts(composite: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """The controllers of a composite one by the part's name, those of `arms` among the others."""
    parts = dict(composite.get("body_parts") or {})
    parts |= parts.pop("arms", None) or {}
    return {part: config for part, config in parts.items() if isinstance(config, Mapping)}


def _require_delta(composite: Mapping[str, Any]) -> None:
    """Raise BurnishError where an arm takes poses or joint angles: [-1, 1] is not their range, and robosuite clips what
    is beyond, or knows no bounds."""
    absolute = [
        f"body_parts.{part}.{_absolute_key(config)}"
        for part, config in body_parts(composite).items()
        if part not in NO_ARMS and _absolute_key(config)
    ]
    whole_body = composite.get("composite_controller_specific_configs") or {}
    if str(composite.get("type", "")).startswith("WHOLE_BODY") and whole_body.get("ik_input_type") == "absolute":
        absolute.append("composite_controller_specific_configs.ik_input_type=absolute")
    if absolute:
        raise BurnishError(
            f"controller_configs: {', '.join(absolute)}: absolute actions are not in [-1, 1]; expected delta control"
        )


def _absolute_key(config: Mapping[str, Any]) -> str | None:
    if config.get("input_type") == "absolute":
        return "input_type=absolute"
    return "control_delta=false" if config.get("control_delta", True) is False else None


def _composite(config: dict[str, Any], robot: str) -> dict[str, Any]:
    """The composite form of a controller; a robosuite 1.0 - 1.4 arm controller gets 1.5's field names."""
    from robosuite.controllers.composite.composite_controller_factory import (
        is_part_controller_config,
        refactor_composite_controller_config,
    )
    from robosuite.models.robots.robot_model import REGISTERED_ROBOTS

    config = copy.deepcopy(config)
    if not is_part_controller_config(config):
        return config
    for old, new in (("damping", "damping_ratio"), ("damping_limits", "damping_ratio_limits")):
        if old in config:
            config[new] = config.pop(old)
    if not config.pop("control_delta", True):
        config["input_type"] = "absolute"
    config.setdefault("input_type", "delta")
    config.setdefault("input_ref_frame", "world")
    return refactor_composite_controller_config(config, robot, REGISTERED_ROBOTS[robot].arms)
