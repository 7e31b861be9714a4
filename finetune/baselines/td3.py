"""TD3 (Fujimoto et al. 2018, arXiv 1802.09477) by Stable-Baselines3."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from burnish.errors import BurnishError
from burnish.finetune.baselines.sb3 import ReplayConfig, ReplayStage, sb3_model
from burnish.finetune.stage import Setting
from burnish.policies.gaussian import GaussianPolicy


@dataclass(frozen=True)
class TD3Config(ReplayConfig):
    """Settings of TD3, by Stable-Baselines3's names and with its defaults.

    Attributes:
        policy_delay: gradient steps of the critics for one of the actor.
        target_policy_noise, target_noise_clip: smoothing of the target: standard deviation and bound.
        exploration_noise: standard deviation of the Gaussian noise on what is executed.
    """

    name: Literal["td3"] = "td3"
    learning_rate: float = 1e-3
    policy_delay: int = 2
    target_policy_noise: float = 0.2
    target_noise_clip: float = 0.5
    exploration_noise: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.policy_delay < 1:
            raise BurnishError(f"stage.policy_delay={self.policy_delay}: expected at least 1")
        for key in ("target_policy_noise", "target_noise_clip", "exploration_noise"):
            if getattr(self, key) < 0:
                raise BurnishError(f"stage.{key}={getattr(self, key)}: expected at least 0")


class TD3(ReplayStage):
    """See the module's docstring."""

    Config = TD3Config
    config: TD3Config

    def __init__(self, policy: GaussianPolicy, config: TD3Config, setting: Setting):
        super().__init__(policy, config, setting)
        self.model.actor_target.load_state_dict(self.model.actor.state_dict())  # of a cloned policy, not a random one

    def make_model(self, setting: Setting) -> Any:
        names = ("policy_delay", "target_policy_noise", "target_noise_clip")
        own = {name: getattr(self.config, name) for name in names}
        return sb3_model("TD3", self.policy, setting, **self.shared_settings(), **own)

    def actor_layers(self) -> list[nn.Module]:
        return list(self.model.actor.mu[:-1])  # the last is the tanh

    def explore(self, obs: Tensor) -> Tensor:
        mean = self.model.actor(obs)
        return (mean + self.config.exploration_noise * torch.randn_like(mean)).clamp(-1, 1)
