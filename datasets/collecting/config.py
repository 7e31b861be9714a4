"""What is collected."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from burnish.config import MOST_SEED, key
from burnish.datasets.experts.faults import Faults
from burnish.envs.same_environment import AllowConfig
from burnish.envs.task import TaskConfig
from burnish.errors import BurnishError
from burnish.plugins import PluginsConfig


@dataclass(frozen=True)
class CollectConfig(AllowConfig, PluginsConfig):
    """What to collect."""

    task: TaskConfig = key()
    out: str = key(doc="HDF5 file to write: robomimic's format for robosuite tasks, D4RL's for Gymnasium tasks")
    behaviour: str = key(
        "expert",
        "expert (scripted, robosuite), sac (trained, Gymnasium; one is shipped), a SAC actor's .safetensors, or the "
        "folder of a saved policy; or module:function of your own (docs/extending.md)",
    )
    mixture: list[str] = key(
        [], "further behaviours, which take turns with it, one episode each: levels of skill, as in medium-replay data"
    )
    episodes: int = key(100, "rolled out; episode i starts from seed + i", least=1)
    seed: int = key(0, "of the first episode", least=0, most=MOST_SEED)
    action_noise: float = key(
        0.0, "standard deviation of the Gaussian noise on the executed actions (the gripper has none)", least=0
    )
    grasp_bias: float = key(
        0.0,
        "metres the scripted expert misjudges its grasp by, in a random horizontal direction drawn once per episode",
        least=0,
    )
    speed: float = key(1.0, "how fast the scripted expert moves", above=0)
    faults: Faults = key(factory=Faults, doc="what the scripted expert does wrong on purpose")
    successes_only: bool = key(False, "write only the episodes that succeeded")
    n_workers: int = key(2, "processes; the result does not depend on it", least=1)
    worker_timeout: float = key(
        900.0, "seconds in which one of the processes must finish an episode, before they count as hanging", above=0
    )
    overwrite: bool = key(False, "replace an existing file")
    states: bool = key(
        True,
        "also write simulator states and model XML (robosuite), to replay the episodes from: they are the larger part "
        "of the file, and training needs none of them",
    )

    def check(self) -> None:
        self.task.require_simulator()
        if "expert" in self.mixture or (self.behaviour == "expert" and self.mixture):
            raise BurnishError(
                f"mixture=[{', '.join(self.mixture)}] with behaviour={self.behaviour}: expected SAC actors or saved "
                "policies; the scripted expert's levels are faults.skill_levels"
            )
        if self.behaviour != "expert" and (self.grasp_bias, self.speed, self.faults) != (0, 1, Faults()):
            raise BurnishError(
                f"grasp_bias, speed and faults are for behaviour=expert, got behaviour={self.behaviour}: drop them"
            )
        suite_of = {"expert": "robosuite", "sac": "gymnasium"}
        suite = suite_of.get(self.behaviour, self.task.suite)
        if self.task.suite != suite:
            raise BurnishError(
                f"behaviour={self.behaviour} is for {suite} tasks, {self.task.name} is of {self.task.suite}: "
                "choose another task, or the folder of a saved policy as behaviour"
            )
        if Path(self.out).suffix not in (".hdf5", ".h5"):
            raise BurnishError(f"out={self.out}: expected a file name ending in .hdf5")
