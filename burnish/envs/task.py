"""What a task is: which simulator, which environment, which observations, how long."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from burnish.config import Checked, WrongValue, key
from burnish.errors import BurnishError
from burnish.registry import check_name

NO_SIMULATOR = "none"
SUITES = {
    "gymnasium": "burnish.envs.gymnasium.simulator:make_gymnasium",
    "robosuite": "burnish.envs.robosuite.simulator:RobosuiteSimulator",
}
"""Name -> what gives a `burnish.envs.base.Simulator`, called with the task. Others are registered by plugins, or named
as module:function."""
MeasureName = Literal["success_rate", "return"]


@dataclass(frozen=True)
class TaskConfig(Checked):
    """One entry of the config group `task`."""

    name: str = key(doc="the task's name on the command line")
    suite: str = key(
        doc="the simulator package, gymnasium or robosuite; none: there are data alone, as of a real robot; or "
        "module:function of your own, which makes a Simulator of this task (docs/extending.md)"
    )
    env_id: str = key("", "the suite's own name of the environment, as Hopper-v5 or Lift")
    max_episode_steps: int = key(0, "primitive (not chunk) steps after which an episode is truncated", least=0)
    obs_keys: list[str] = key(
        ["flat"],
        "observations joined, in this order, into the state (Do,); of Gymnasium's tasks [flat], or keys of a Dict",
    )
    env_kwargs: dict[str, Any] = key(factory=dict, doc="arguments for gymnasium.make or robosuite.make")
    dataset: str | None = key(None, "its demonstrations: a file, or shipped:NAME for one of the package (null: none)")
    fast: bool = key(True, "robosuite's control step compiled, with the same numbers; false: its own")
    judged_by: Literal["suite", "success_rate", "return"] = key(
        "suite",
        "what evaluations and reports compare: success_rate, return, or what is usual in the suite: success_rate with "
        "robosuite, return with all others",
    )
    sensors: list[str] = key(
        [], "observations beside the state that keep their shape: pictures (H, W, channels), clouds of points (P, d)"
    )
    success_key: str | None = key(
        None, "of a Gymnasium task measured by success, the key of `info` that tells it (null: is_success or success)"
    )

    def check(self) -> None:
        if self.has_simulator:
            check_name("suite", self.suite, SUITES, "task.suite")
        if not self.obs_keys and not self.sensors:
            raise WrongValue("obs_keys=[]: expected at least one observation key, or sensors")
        named = [*self.obs_keys, *self.sensors]
        if len(set(named)) < len(named):
            raise WrongValue(f"obs_keys={self.obs_keys}, sensors={self.sensors}: expected each observation once")
        if self.has_simulator and not self.env_id:
            raise WrongValue(f"env_id is missing: give env_id=..., suite={self.suite}'s name of the environment")
        if self.has_simulator and self.max_episode_steps < 1:
            raise WrongValue(f"max_episode_steps={self.max_episode_steps}: expected at least 1")
        for name, value in self.env_kwargs.items():
            if _is_infinite(value):
                raise WrongValue(f"env_kwargs.{name}={value}: expected finite numbers, but for the ends of ranges")

    @property
    def has_simulator(self) -> bool:
        return self.suite != NO_SIMULATOR

    def require_simulator(self) -> None:
        """Raise BurnishError where there is none to act in."""
        if not self.has_simulator:
            raise BurnishError(
                f"task={self.name} has no simulator (suite={self.suite}): it can be pretrained for, and a policy "
                "loaded from Python; everything else needs a task with a simulator (docs/tasks.md)"
            )

    @property
    def measure(self) -> MeasureName:
        """What evaluations of the task are judged by."""
        return recorded_measure({"suite": self.suite, "judged_by": self.judged_by})


def _is_infinite(value: Any) -> bool:
    """A number, or one by name; what stands in a list may be the end of a range."""
    if isinstance(value, Mapping):
        return any(map(_is_infinite, value.values()))
    return isinstance(value, float) and math.isinf(value)


def recorded_measure(task: Mapping[str, Any]) -> MeasureName:
    """`TaskConfig.measure` of a task as a run's config.yaml has it, also of a version whose keys were others."""
    judged_by = task.get("judged_by", "suite")
    if judged_by == "suite":
        return "success_rate" if task["suite"] == "robosuite" else "return"
    return judged_by


def load_task(name: str) -> TaskConfig:
    """The task of that name, or of a YAML file. Raises BurnishError, naming the nearest, where there is none."""
    import difflib

    import yaml

    from burnish.compose import config_text, group_options, is_file, read_option
    from burnish.config import parse

    if is_file(name):
        try:
            return parse(TaskConfig, read_option("task", name), "task")
        except BurnishError as error:
            raise BurnishError(f"{name}: {error}") from error
    names = group_options("task")
    if name not in names:
        near = difflib.get_close_matches(name, names, n=1)
        hint = f"did you mean {near[0]}? " if near else ""
        raise BurnishError(f"task={name}: {hint}expected one of {', '.join(names)}, or a YAML file")
    return parse(TaskConfig, yaml.safe_load(config_text(f"task/{name}")), "task")
