"""What is collected."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

from burnish.envs.task import TaskConfig
from burnish.errors import BurnishError


@dataclass(frozen=True)
class CollectConfig:
    """What to collect.

    Attributes:
        task: the environment.
        out: HDF5 file to write, robomimic's format for robosuite, D4RL's for Gymnasium.
        behaviour: "expert" (scripted, robosuite), "sac" (shipped actor, Gymnasium), another SAC actor's
            .safetensors file, or the folder of a saved diffusion policy.
        episodes: episodes rolled out.
        seed: episode i starts from seed + i.
        action_noise: standard deviation of the Gaussian noise on the executed actions (the gripper has none).
        grasp_bias: metres the scripted expert misjudges its grasp by, in a random horizontal direction
            drawn once per episode.
        speed: scales how fast the scripted expert moves.
        successes_only: write only the episodes that succeeded.
        n_workers: processes; the result does not depend on it.
        overwrite: replace an existing file.
        states: also write robosuite's simulator states and model XML, to replay the episodes from: they are
            the larger part of the file, and training needs none of them.
    """

    task: TaskConfig
    out: str
    behaviour: str = "expert"
    episodes: int = 100
    seed: int = 0
    action_noise: float = 0.0
    grasp_bias: float = 0.0
    speed: float = 1.0
    successes_only: bool = False
    n_workers: int = 2
    overwrite: bool = False
    states: bool = True

    def __post_init__(self) -> None:
        for name in ("episodes", "n_workers"):
            if getattr(self, name) < 1:
                raise BurnishError(f"{name}={getattr(self, name)}: expected at least 1")
        if self.seed < 0:
            raise BurnishError(f"seed={self.seed}: expected 0 or more")
        for name in ("action_noise", "grasp_bias"):
            if not (math.isfinite(getattr(self, name)) and getattr(self, name) >= 0):
                raise BurnishError(f"{name}={getattr(self, name)}: expected a finite number of at least 0")
        if not (math.isfinite(self.speed) and self.speed > 0):
            raise BurnishError(f"speed={self.speed}: expected a finite number above 0")
        if self.behaviour != "expert" and (self.grasp_bias != 0 or self.speed != 1):
            raise BurnishError(
                f"grasp_bias and speed are for behaviour=expert, got behaviour={self.behaviour}: drop them"
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
