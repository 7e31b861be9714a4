"""What algorithms share that clone the batch's chunks with the denoiser, by whatever else they change of that.

`actor` is trained; `averaged`, its Polyak average, is the policy's own `finetuned` denoiser: it acts, is saved, and its
draws are the critic's target. There is no other old policy.

Symbols: those of `burnish.finetune.drawing`.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from burnish.config import key
from burnish.finetune.drawing import DrawingConfig, DrawingStage
from burnish.finetune.stage import Setting
from burnish.finetune.storage.replay import Batch
from burnish.networks import CriticConfig
from burnish.networks.averages import polyak
from burnish.networks.optimise import clipped_step
from burnish.policies.diffusion import DiffusionPolicy


@dataclass(frozen=True)
class CloningConfig(DrawingConfig):
    """Settings of the actor, see `DrawingConfig`."""

    critic: CriticConfig = key(factory=CriticConfig)
    n_step: int = 1
    actor_lr: float = key(3e-4, "of Adam", above=0)
    actor_tau: float = key(0.005, "Polyak average of the actor, which acts and is saved", above=0, most=1)


class CloningStage(DrawingStage):
    """See the module's docstring."""

    config: CloningConfig
    STATEFUL = (*DrawingStage.STATEFUL, "actor", "actor_optimizer")

    def __init__(self, policy: DiffusionPolicy, config: CloningConfig, setting: Setting):
        super().__init__(policy, config, setting)
        self.old = self.averaged
        self.actor = copy.deepcopy(self.averaged).requires_grad_(True)
        self.actor_optimizer = torch.optim.Adam(self.actor.parameters(), lr=config.actor_lr, fused=True)

    def actor_loss(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """What the actor minimises, and metrics."""
        # L = E || f(sqrt(abar_k) a + sqrt(1 - abar_k) eps, k, s) - target ||^2
        output, target = self.policy.denoise_noised(
            self.actor, batch.obs, self.chunks(batch), self.generator, self.policy.finetuned_timesteps
        )
        return F.mse_loss(output, target), {}

    def update_actor(self, batch: Batch) -> dict[str, Tensor]:
        if self.gradient_steps < self.config.critic_warmup_updates:
            return {}
        loss, metrics = self.actor_loss(batch)
        clipped_step(self.actor_optimizer, loss, self.config.max_grad_norm)
        polyak(self.averaged, self.actor, self.config.actor_tau)
        return {"actor_loss": loss.detach()} | metrics
