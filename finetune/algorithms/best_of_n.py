"""Best of N: the pretrained policy stays as it is; a critic is learned online and chooses among its chunks.

The baseline for everything that trains a policy with the same critic: what selection alone gives, at N times the
sampling. N is `n_candidates`; the policy's single samples are those of the pretrained one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from burnish.config import WrongValue
from burnish.finetune.algorithms.dpmd import DPMD, DPMDConfig
from burnish.finetune.off_policy import CriticStageConfig
from burnish.finetune.stage import Setting
from burnish.policies.diffusion import DiffusionPolicy


@dataclass(frozen=True)
class BestOfNConfig(CriticStageConfig):
    """Settings of best of N, see `CriticStageConfig`."""

    name: Literal["best_of_n"] = "best_of_n"

    def check(self) -> None:
        super().check()
        if self.n_candidates < 2:
            raise WrongValue(f"n_candidates={self.n_candidates}: expected at least 2 to choose from")


class BestOfN(DPMD):
    """See the module's docstring. It is DPMD whose actor is frozen: no other of the actor's settings has an effect."""

    trains_policy = False
    Config = BestOfNConfig  # type: ignore[assignment]

    def __init__(self, policy: DiffusionPolicy, config: BestOfNConfig, setting: Setting):
        shared = {name: value for name, value in vars(config).items() if name != "name"}
        super().__init__(policy, DPMDConfig(**shared, freeze_actor=True), setting)
