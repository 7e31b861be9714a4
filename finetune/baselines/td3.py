"""TD3 (Fujimoto et al. 2018, arXiv 1802.09477) by Stable-Baselines3."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from burnish.config import key
from burnish.finetune.baselines.sb3 import ReplayConfig, ReplayStage, sb3_model
from burnish.finetune.stage import Setting
from burnish.policies.gaussian import GaussianPolicy


@dataclass(frozen=True)
class TD3Config(ReplayConfig):
    """Settings of TD3, by Stable-Baselines3's names and with its defaults."""

    name: Literal["td3"] = "td3"
    learning_rate: float = 1e-3
    policy_delay: int = key(2, "gradient steps of the critics for one of the actor", least=1)
    target_policy_noise: float = key(0.2, "standard deviation of the noise on the target's actions", least=0)
    target_noise_clip: float = key(0.5, "and its bound", least=0)
    exploration_noise: float = key(0.1, "standard deviation of Gaussian noise on the executed chunk", least=0)


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
