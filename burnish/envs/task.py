"""What a task is: which simulator, which environment, which observations, how long."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from burnish.config import Checked, WrongValue, key
from burnish.errors import BurnishError

NO_SIMULATOR = "none"
SUITES = ("gymnasium", "robosuite", NO_SIMULATOR)
MeasureName = Literal["success_rate", "return"]


@dataclass(frozen=True)
class TaskConfig(Checked):
    """One entry of the config group `task`."""

    name: str = key(doc="the task's name on the command line")
    suite: str = key(doc="the simulator package; none: there are data alone, as of a real robot", options=SUITES)
    env_id: str = key("", "the suite's own name of the environment, as Hopper-v5 or Lift")
    max_episode_steps: int = key(0, "primitive (not chunk) steps after which an episode is truncated", least=0)
    obs_keys: list[str] = key(
        ["flat"], "observations joined, in this order, into one flat one (Do,); of Gymnasium's tasks always [flat]"
    )
    env_kwargs: dict[str, Any] = key(factory=dict, doc="arguments for gymnasium.make or robosuite.make")
    dataset: str | None = key(None, "its demonstrations: a file, or shipped:NAME for one of the package (null: none)")
    fast: bool = key(True, "robosuite's control step compiled, with the same numbers; false: its own")

    def check(self) -> None:
        if not self.obs_keys:
            raise WrongValue("obs_keys=[]: expected at least one observation key")
        if self.suite == "gymnasium" and self.obs_keys != ["flat"]:
            raise WrongValue(
                f"obs_keys=[{', '.join(self.obs_keys)}]: Gymnasium tasks have one observation, expected [flat]"
            )

        if self.has_simulator and not self.env_id:
            raise WrongValue(f"env_id is missing: give env_id=..., suite={self.suite}'s name of the environment")
        if self.has_simulator and self.max_episode_steps < 1:
            raise WrongValue(f"max_episode_steps={self.max_episode_steps}: expected at least 1")

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
        return recorded_measure({"suite": self.suite})


def recorded_measure(task: Mapping[str, Any]) -> MeasureName:
    """`TaskConfig.measure` of a task as a run's config.yaml has it, also of a version whose keys were others."""
    return "success_rate" if task["suite"] == "robosuite" else "return"


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
