"""QVPO: Q-weighted variational policy optimisation (Ding et al. 2024, arXiv 2405.16173).

Of M chunks that the policy draws for a state the best is cloned, with its advantage over their mean for a weight, and
beside it uniform actions, whose small weight keeps the policy wide (the paper's entropy term). The weight is an
advantage, never Q itself: returns below 0 are as good as others (the released code's `qadv`; a re-implementation that
weighs by Q learns nothing there).

Symbols: B batch, M draws, n of them chosen, U uniform chunks for each of those, Tp, Da as in
`burnish.policies.diffusion`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from burnish.config import key
from burnish.errors import BurnishError
from burnish.finetune.actor import ActorConfig, ActorStage
from burnish.finetune.losses.rsm import weighted_denoising_loss
from burnish.finetune.stage import Setting
from burnish.finetune.storage.replay import Batch
from burnish.policies.diffusion import DiffusionPolicy, choose


@dataclass(frozen=True)
class QVPOConfig(ActorConfig):
    """Settings of QVPO, see `ActorConfig`."""

    name: Literal["qvpo"] = "qvpo"
    draws: int = key(64, "chunks drawn for each state (M)", least=2)
    chosen: int = key(1, "so many of them, the best, are cloned (n)", least=1)
    uniform_draws: int = key(10, "uniform chunks beside each (U)", least=0)
    entropy_coef: float = key(0.02, "their weight, as a share of that of the chosen chunk, at the start", least=0)
    entropy_coef_final: float = key(0.002, "reached linearly", least=0)
    entropy_decay_updates: int = key(1_000_000, "gradient steps", least=1)
    target_candidates: int = key(4, "N', draws whose best is the critic's target", least=1)
    n_candidates: int = key(4, "chunks sampled for each that is executed", least=1)
    actor_lr: float = key(1e-4, "of Adam", above=0)

    def check(self) -> None:
        super().check()
        if self.chosen > self.draws:
            raise BurnishError(f"stage.chosen={self.chosen}: expected at most stage.draws={self.draws}")


class QVPO(ActorStage):
    """See the module's docstring."""

    Config = QVPOConfig
    config: QVPOConfig

    def __init__(self, policy: DiffusionPolicy, config: QVPOConfig, setting: Setting):
        if config.uniform_draws and policy.config.clip_sample is None:
            raise BurnishError(
                "stage.uniform_draws: the policy's actions have no bounds to be uniform in (policy.clip_sample=null); "
                "expected 0"
            )
        super().__init__(policy, config, setting)

    def target_chunks(self, obs: Tensor) -> Tensor:
        return self.candidates(obs, self.config.target_candidates)

    def actor_loss(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        with torch.no_grad():
            draws = self.policy.within_bounds(self.draw(batch.obs, self.config.draws, self.actor))
            best, advantages = best_by_advantage(self.critic.values(batch.obs, draws), self.config.chosen)
            x = torch.cat([choose(draws, best), self._uniform(len(draws))], 1)  # (B, n + n U, Tp, Da)
            weights = with_uniform(advantages, self.config.uniform_draws, self.entropy_coef)
        # L = E mean_n w_n || f(sqrt(abar_k) a_n + sqrt(1 - abar_k) eps, k, s) - target ||^2, over all n + n U chunks
        below = self.policy.finetuned_timesteps
        output, target = self.policy.denoise_noised(self.actor, batch.obs, x, self.generator, below)
        loss = weighted_denoising_loss(output, target, weights / weights.shape[1])
        return loss, {"advantage": advantages.mean()}

    def _uniform(self, B: int) -> Tensor:
        config = self.policy.config
        shape = (B, self.config.chosen * self.config.uniform_draws, config.horizon, self.policy.action_dim)
        u = torch.rand(shape, device=self.policy.device, generator=self.generator)
        return (2 * u - 1) * (config.clip_sample or 1)

    @property
    def entropy_coef(self) -> float:
        """After the gradient steps so far."""
        config, done = self.config, min(1.0, self.gradient_steps / self.config.entropy_decay_updates)
        return config.entropy_coef + done * (config.entropy_coef_final - config.entropy_coef)


def best_by_advantage(q: Tensor, n: int) -> tuple[Tensor, Tensor]:
    """Of Q of M draws (B, M) the `n` best, and their weights: advantages over the draws' mean -> both (B, n)."""
    best = q.topk(n, 1)
    # w = max(Q(s, a) - mean_m Q(s, a_m), 0)
    return best.indices, (best.values - q.mean(1, keepdim=True)).clamp(min=0)


def with_uniform(weights: Tensor, U: int, entropy_coef: float) -> Tensor:
    """Behind weights (B, n) those of U uniform chunks for each -> (B, n + n U)."""
    return torch.cat([weights, entropy_coef * weights.repeat(1, U)], 1)
