"""DPMD: diffusion policy mirror descent (Ma et al. 2025, arXiv 2502.00361).

The denoiser of pi proportional to pi_old exp(Q / lambda): clean chunks are drawn from pi_old and weighed by
exp(Q / lambda); or, by default, executed chunks by exp(A / lambda), with the replay's policy in place of pi_old.

Symbols: B states, N draws for each, R of them resampled, Tp, Da as in `burnish.policies.diffusion`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from burnish.config import key
from burnish.errors import BurnishError
from burnish.finetune.drawing import Draws, ReweightingConfig, ReweightingStage
from burnish.finetune.losses.rsm import resample, weighted_denoising_loss
from burnish.finetune.storage.replay import Batch
from burnish.policies.diffusion import choose


@dataclass(frozen=True)
class DPMDConfig(ReweightingConfig):
    """Settings of DPMD, see `ReweightingConfig`."""

    name: Literal["dpmd"] = "dpmd"
    resample: int = key(
        2,
        "R, so many of a state's draws, drawn again by weight, the actor is trained on: the same gradient on average "
        "as that of all, for R / N of its cost (0, or no less than draws: on all, weighted)",
        least=0,
    )
    draw_at: Literal["next", "current"] = "current"
    train_on: Literal["all", "best", "executed"] = key(
        "executed",
        "the executed chunks, whose outcome the critic has seen, weighed against each other by their advantages over "
        "the draws of their states; or all draws of a state, weighed against each other; or the best by Q alone (the "
        "released code), weighed against those of other states (rsm.weights=paper) or not at all (constant)",
    )

    baseline_draws: int = key(
        2,
        "with train_on=executed: draws of a state, whose mean Q is taken from the executed chunk's; sampling them is "
        "most of a gradient step",
        least=1,
    )

    def check(self) -> None:
        super().check()
        if self.train_on == "executed" and self.draw_at != "current":
            raise BurnishError(
                f"stage.train_on=executed with stage.draw_at={self.draw_at}: expected current, where the chunks were "
                "executed"
            )
        if self.train_on == "best" and self.rsm.weights not in ("paper", "constant"):
            raise BurnishError(
                f"stage.train_on=best leaves one draw, which stage.rsm.weights={self.rsm.weights} has nothing to weigh "
                "against: expected weights paper or constant, or train_on=all"
            )

    @property
    def weighed(self) -> str:
        return "batch_size" if self.train_on == "executed" else "draws"


class DPMD(ReweightingStage):
    """See the module's docstring."""

    Config = DPMDConfig
    config: DPMDConfig

    @property
    def draws_for_actor(self) -> int:
        return self.config.baseline_draws if self.config.train_on == "executed" else self.config.draws

    def actor_loss(self, batch: Batch, draws: Draws) -> tuple[Tensor, dict[str, Tensor]]:
        n = self.draws_for_actor
        x, q = draws.x[:, :n], draws.q[:, :n]
        if self.config.train_on == "executed":
            return self._executed_loss(batch, q)
        if self.config.train_on == "best":
            best = q.argmax(1, keepdim=True)
            x, q = choose(x, best), q.gather(1, best)
        weighted = self.weighting(q, self.gradient_steps)
        weights, metrics = weighted.weights, weighted.metrics()
        if 0 < self.config.resample < x.shape[1]:
            chosen = resample(weights, self.config.resample, self.generator)
            x, weights = choose(x, chosen), torch.full_like(chosen, 1 / self.config.resample, dtype=q.dtype)
        # L = E_s sum_n w_n || f(sqrt(abar_k) a_n + sqrt(1 - abar_k) eps, k, s) - target ||^2
        output, target = self.policy.denoise_noised(
            self.actor, draws.obs, x, self.generator, self.policy.finetuned_timesteps
        )
        return weighted_denoising_loss(output, target, weights), metrics

    def _executed_loss(self, batch: Batch, q_of_draws: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """L = sum_b w_b || f(sqrt(abar_k) a_b + sqrt(1 - abar_k) eps, k, s_b) - target ||^2, w = softmax_b(A / lambda),
        A = Q(s_b, a_b) - mean_n Q(s_b, a_n); `q_of_draws` (B, N)."""
        x = self.chunks(batch)  # (B, 1, Tp, Da)
        advantages = self.critic.values(batch.obs, x, target=True) - q_of_draws.mean(1, keepdim=True)  # (B, 1)
        weighted = self.weighting(advantages.T, self.gradient_steps)
        output, target = self.policy.denoise_noised(
            self.actor, batch.obs, x, self.generator, self.policy.finetuned_timesteps
        )
        return weighted_denoising_loss(output, target, weighted.weights.T * len(x)), weighted.metrics()
