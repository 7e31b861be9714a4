"""What off-policy stages share that train the whole denoiser: the actor, and its average, which acts and is saved.

The critic's target is of chunks of the average, drawn by the policy's own sampler. What the actor's loss is, a subclass
says; `burnish.finetune.drawing` has the base of those that draw from an old policy in fewer steps.

Symbols: B batch, n chunks for an observation, To, Tp, Ta, W, Da as in `burnish.policies.diffusion`.
"""

from __future__ import annotations

import copy
from abc import abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from burnish.config import key
from burnish.finetune.off_policy import OffPolicyConfig, OffPolicyStage
from burnish.finetune.stage import Setting
from burnish.finetune.storage.replay import Batch
from burnish.networks import Denoiser
from burnish.networks.averages import polyak
from burnish.networks.optimise import clipped_step
from burnish.policies.diffusion import DiffusionPolicy


@dataclass(frozen=True)
class ActorConfig(OffPolicyConfig):
    """Settings of the actor, see `OffPolicyConfig` for those of acting and replay."""

    actor_lr: float = key(3e-4, "of Adam", above=0)
    actor_tau: float = key(
        0.005, "Polyak average of the actor, which acts and is saved (1: the actor itself)", above=0, most=1
    )


class ActorStage(OffPolicyStage):
    """See the module's docstring; a subclass gives the actor's loss."""

    config: ActorConfig
    policy: DiffusionPolicy
    STATEFUL: ClassVar[tuple[str, ...]] = (*OffPolicyStage.STATEFUL, "actor", "actor_optimizer")
    PARTS: ClassVar[dict[str, str]] = {
        **OffPolicyStage.PARTS,
        "draw": "draws (denoising steps)",
        "actor_loss": "actor, forward",
    }

    def __init__(self, policy: DiffusionPolicy, config: ActorConfig, setting: Setting):
        if policy.finetuned is None:
            policy.start_finetuning(from_scratch=not setting.pretrained)
        super().__init__(policy, config, setting)
        assert policy.finetuned is not None
        self.averaged: Denoiser = policy.finetuned.requires_grad_(False)
        self.actor = copy.deepcopy(self.averaged).requires_grad_(True)
        self.actor_optimizer = torch.optim.Adam(self.actor.parameters(), lr=config.actor_lr, fused=True)

    @abstractmethod
    def actor_loss(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """The actor's loss on a batch, and metrics."""

    @property
    def actor_is_due(self) -> bool:
        """Whether the actor learns in this gradient step."""
        return self.gradient_steps >= self.config.critic_warmup_updates

    def candidates(self, obs: Tensor, n: int) -> Tensor:
        return self.draw(obs, n, self.averaged)

    def draw(self, obs: Tensor, n: int, network: Denoiser) -> Tensor:
        """`n` chunks of `network`'s policy for each of `obs` (B, To * W), normalised -> (B, n, Tp, Da)."""
        noise = self.policy.draw_noise(len(obs), n, generator=self.generator)
        return self.policy.sample(obs, noise, finetuned=network)[0]

    def target_chunks(self, obs: Tensor) -> Tensor:
        """What the critic's target is of at next observations (B, To * W) -> (B, N', Tp, Da)."""
        return self.candidates(obs, 1)

    @torch.no_grad()
    def next_values(self, batch: Batch) -> Tensor | None:
        if not self.critic.bootstraps_from_chunks:
            return None
        x = self.target_chunks(batch.next_obs)
        return self.critic.target.outputs(batch.next_obs, self.policy.executed(x).flatten(2))

    def update_actor(self, batch: Batch) -> dict[str, Tensor]:
        if not self.actor_is_due:
            return {}
        loss, metrics = self.actor_loss(batch)
        clipped_step(self.actor_optimizer, loss, self.config.max_grad_norm)
        polyak(self.averaged, self.actor, self.config.actor_tau)
        return {"actor_loss": loss.detach()} | metrics
