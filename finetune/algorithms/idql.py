"""IDQL: implicit Q-learning with a diffusion policy (Hansen-Estruch et al. 2023, arXiv 2304.10573).

The critics are IQL's (`burnish.finetune.critics.expectile`): they ask about no chunk that is not in the data, so that
it can learn from demonstrations alone. The policy is cloned from the batch, each chunk by its own weight; it acts by
the best of N of its chunks.

Symbols: those of `burnish.finetune.off_policy`; u = min_j Qbar_j(s, a) - V(s) of a chunk in the batch.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from burnish.config import key
from burnish.finetune.critics import ExpectileCritic, ExpectileCriticConfig
from burnish.finetune.losses.rsm import weighted_denoising_loss
from burnish.finetune.off_policy import OffPolicyConfig, OffPolicyStage
from burnish.finetune.stage import Setting
from burnish.finetune.storage.replay import Batch
from burnish.networks import Denoiser
from burnish.networks.averages import polyak
from burnish.networks.optimise import clipped_step
from burnish.policies.diffusion import DiffusionPolicy


@dataclass(frozen=True)
class IDQLConfig(OffPolicyConfig):
    """Settings of IDQL, see `OffPolicyConfig`; docs/offline.md says where the paper has other defaults."""

    name: Literal["idql"] = "idql"
    critic: ExpectileCriticConfig = key(factory=ExpectileCriticConfig)
    weights: Literal["constant", "expectile", "positive", "exponential"] = key(
        "exponential",
        "of the batch's chunks: constant (the paper's cloning), expectile (tau or 1 - tau by the sign of u), positive "
        "(those with u >= -0.01 alone), or exponential (min(exp(u / temperature), max_weight): IQL's, which improves "
        "single samples too)",
    )
    temperature: float = key(0.33, "of the exponential weights, in units of Q", above=0)
    max_weight: float = key(100.0, "bound of the exponential weights", above=0)
    n_candidates: int = key(16, "chunks sampled for each that is executed (N)", least=1)
    actor_lr: float = key(3e-4, "of Adam", above=0)
    actor_tau: float = key(0.005, "Polyak average of the actor, which acts and is saved", above=0, most=1)


class IDQL(OffPolicyStage):
    """See the module's docstring."""

    Config = IDQLConfig
    config: IDQLConfig
    policy: DiffusionPolicy
    critic: ExpectileCritic
    STATEFUL = (*OffPolicyStage.STATEFUL, "actor", "actor_optimizer")

    def __init__(self, policy: DiffusionPolicy, config: IDQLConfig, setting: Setting):
        if policy.finetuned is None:
            policy.start_finetuning(from_scratch=not setting.pretrained)
        super().__init__(policy, config, setting)
        assert policy.finetuned is not None
        self.averaged: Denoiser = policy.finetuned.requires_grad_(False)
        self.actor = copy.deepcopy(self.averaged).requires_grad_(True)
        self.actor_optimizer = torch.optim.Adam(self.actor.parameters(), lr=config.actor_lr, fused=True)

    def candidates(self, obs: Tensor, n: int) -> Tensor:
        noise = self.policy.draw_noise(len(obs), n, generator=self.generator)
        return self.policy.sample(obs, noise, finetuned=self.averaged)[0]

    def next_values(self, batch: Batch) -> None:
        """V is asked in place of chunks."""

    def update_actor(self, batch: Batch) -> dict[str, Tensor]:
        if self.gradient_steps < self.config.critic_warmup_updates:
            return {}
        with torch.no_grad():
            weights = self.weigh(self.critic.advantages(batch))  # (B,)
        # L = E w(u) || f(sqrt(abar_k) a + sqrt(1 - abar_k) eps, k, s) - target ||^2
        output, target = self.policy.denoise_noised(
            self.actor, batch.obs, self.chunks(batch), self.generator, self.policy.finetuned_timesteps
        )
        loss = weighted_denoising_loss(output, target, weights[:, None])
        clipped_step(self.actor_optimizer, loss, self.config.max_grad_norm)
        polyak(self.averaged, self.actor, self.config.actor_tau)
        return {"actor_loss": loss.detach(), "weight": weights.mean()}

    def weigh(self, u: Tensor) -> Tensor:
        """w(u), of any shape."""
        kind, tau = self.config.weights, self.config.critic.expectile
        if kind == "constant":
            return torch.ones_like(u)
        if kind == "expectile":
            return torch.where(u > 0, tau, 1 - tau)
        if kind == "positive":
            return (u >= -0.01).to(u.dtype)
        # IQL, arXiv 2110.06169, eq. 7
        return (u / self.config.temperature).exp().clamp(max=self.config.max_weight)
