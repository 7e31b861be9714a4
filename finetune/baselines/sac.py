"""SAC (Haarnoja et al. 2018, arXiv 1801.01290, with the learned temperature of 1812.05905) by Stable-Baselines3."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor, nn

from burnish.config import key
from burnish.finetune.baselines.sb3 import ReplayConfig, ReplayStage, sb3_model
from burnish.finetune.stage import Setting


@dataclass(frozen=True)
class SACConfig(ReplayConfig):
    """Settings of SAC, by Stable-Baselines3's names and with its defaults."""

    name: Literal["sac"] = "sac"
    ent_coef: float | Literal["auto"] = key(
        "auto", "temperature, or auto to learn it so that the entropy is target_entropy", least=0
    )
    target_entropy: float | Literal["auto"] = key("auto", "auto: - Ta Da")


class SAC(ReplayStage):
    """See the module's docstring. It samples from its actor when training; the mean is evaluated."""

    Config = SACConfig
    config: SACConfig

    def make_model(self, setting: Setting) -> Any:
        own = {name: getattr(self.config, name) for name in ("ent_coef", "target_entropy")}
        return sb3_model("SAC", self.policy, setting, **self.shared_settings(), **own)

    def actor_layers(self) -> list[nn.Module]:
        return [*self.model.actor.latent_pi, self.model.actor.mu]

    def explore(self, obs: Tensor) -> Tensor:
        return self.model.actor(obs)
