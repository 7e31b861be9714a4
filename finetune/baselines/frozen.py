"""The pretrained policy as it is: the first baseline of every fine-tuning, evaluated as all of them are.

Nothing is learned and no environment is stepped for it; what may still be gained is the choice of the temperature.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from burnish.envs.base import ChunkStep
from burnish.finetune.stage import Setting, Stage, StageConfig
from burnish.policies.base import Policy


@dataclass(frozen=True)
class FrozenConfig(StageConfig):
    """There is nothing to set."""

    name: Literal["frozen"] = "frozen"


class Frozen(Stage):
    """See the module's docstring."""

    Config = FrozenConfig
    kinds = None
    learns = trains_policy = False
    chunks_per_update = 0

    def __init__(self, policy: Policy, config: FrozenConfig, setting: Setting):
        self.policy = policy

    def act(self, obs: np.ndarray) -> np.ndarray:
        return np.asarray(self.policy.act(obs))

    def observe(self, step: ChunkStep) -> None:
        pass

    def ready(self) -> bool:
        return False

    def update(self) -> dict[str, float]:
        return {}

    def cut_episodes(self) -> None:
        pass

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        pass
