"""What a task is: which simulator, which environment, which observations, how long."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from burnish.errors import BurnishError

SUITES = ("gymnasium", "robosuite")
MeasureName = Literal["success_rate", "return"]


@dataclass(frozen=True)
class TaskConfig:
    """One entry of the config group `task`.

    Attributes:
        name: the task's name on the command line (`task=lift`).
        suite: the simulator package, one of `SUITES`.
        env_id: the suite's own name of the environment ("Hopper-v5", "Lift").
        max_episode_steps: primitive (not chunk) steps after which an episode is truncated.
        obs_keys: keys concatenated, in this order, into one flat observation (Do,); for
            Gymnasium tasks always ["flat"].
        env_kwargs: passed to `gymnasium.make` or `robosuite.make`.
        dataset: default demonstrations: a path, or "shipped:NAME" for a file of the package.
        fast: robosuite's control step compiled, with the same numbers; false for robosuite's own.
    """

    name: str
    suite: str
    env_id: str
    max_episode_steps: int
    obs_keys: list[str] = field(default_factory=lambda: ["flat"])
    env_kwargs: dict[str, Any] = field(default_factory=dict)
    dataset: str | None = None
    fast: bool = True

    def __post_init__(self) -> None:
        if self.suite not in SUITES:
            raise BurnishError(f"task.suite={self.suite}: expected one of {', '.join(SUITES)}")
        if self.max_episode_steps < 1:
            raise BurnishError(f"task.max_episode_steps={self.max_episode_steps}: expected at least 1")
        if not self.obs_keys:
            raise BurnishError("task.obs_keys is empty: expected at least one observation key")
        if self.suite == "gymnasium" and self.obs_keys != ["flat"]:
            raise BurnishError(
                f"task.obs_keys=[{', '.join(self.obs_keys)}]: Gymnasium tasks have one observation, expected [flat]"
            )

    @property
    def measure(self) -> MeasureName:
        """What evaluations of the task are judged by."""
        return recorded_measure({"suite": self.suite})


def recorded_measure(task: Mapping[str, Any]) -> MeasureName:
    """`TaskConfig.measure` of a task as a run's config.yaml has it, also of a version whose keys were others."""
    return "success_rate" if task["suite"] == "robosuite" else "return"


def load_task(name: str) -> TaskConfig:
    """The task of that name. Raises BurnishError, naming the nearest, where there is none."""
    import difflib

    import yaml

    from burnish.compose import config_text, group_options
    from burnish.config import parse

    names = group_options("task")
    if name not in names:
        near = difflib.get_close_matches(name, names, n=1)
        hint = f"did you mean {near[0]}? " if near else ""
        raise BurnishError(f"task={name}: {hint}expected one of {', '.join(names)}")
    return parse(TaskConfig, yaml.safe_load(config_text(f"task/{name}")), "task")
