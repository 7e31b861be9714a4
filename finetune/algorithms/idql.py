"""IDQL: implicit Q-learning with a diffusion policy (Hansen-Estruch et al. 2023, arXiv 2304.10573).

The critics are IQL's (`burnish.finetune.critics.expectile`): they ask about no chunk that is not in the data, so that
it can learn from demonstrations alone. The policy is cloned from the batch, each chunk by its own weight; it acts by
the best of N of its chunks.

Symbols: those of `burnish.finetune.off_policy`; u = min_j Qbar_j(s, a) - V(s) of a chunk in the batch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from burnish.config import key
from burnish.finetune.actor import ActorConfig, ActorStage
from burnish.finetune.critics import ExpectileCritic, ExpectileCriticConfig
from burnish.finetune.losses.rsm import weighted_denoising_loss
from burnish.finetune.storage.replay import Batch


@dataclass(frozen=True)
class IDQLConfig(ActorConfig):
    """Settings of IDQL, see `ActorConfig`; docs/offline.md says where the paper has other defaults."""

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


class IDQL(ActorStage):
    """See the module's docstring."""

    Config = IDQLConfig
    config: IDQLConfig
    critic: ExpectileCritic

    def actor_loss(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        with torch.no_grad():
            weights = self.weigh(self.critic.advantages(batch))  # (B,)
        # L = E w(u) || f(sqrt(abar_k) a + sqrt(1 - abar_k) eps, k, s) - target ||^2
        output, target = self.policy.denoise_noised(
            self.actor, batch.obs, self.chunks(batch), self.generator, self.policy.finetuned_timesteps
        )
        return weighted_denoising_loss(output, target, weights[:, None]), {"weight": weights.mean()}

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
