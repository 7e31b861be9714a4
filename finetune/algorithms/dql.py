"""DQL: diffusion Q-learning (Wang et al. 2023, arXiv 2208.06193).

The denoiser clones the batch's chunks, and climbs Q at chunks of its own: the gradient goes back through the whole
chain of denoising steps. Q is over the size of its values, so that one weight does for all rewards.

    L = L_denoising - eta E Q_i(s, a) / E|Q_j(s, a)|,    a = chain of f_theta

Symbols: those of `burnish.finetune.drawing`; Q_i and Q_j are two members of the ensemble, drawn anew each time.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from burnish.config import WrongValue, key
from burnish.finetune.cloning import CloningConfig, CloningStage
from burnish.finetune.storage.replay import Batch


@dataclass(frozen=True)
class DQLConfig(CloningConfig):
    """Settings of DQL, see `CloningConfig`."""

    name: Literal["dql"] = "dql"
    sampler: Literal["inherit", "ddpm", "ddim"] = key(
        "inherit",
        "of all chains, that which Q's gradient goes back through among them: inherit (the policy's, which is "
        "evaluated), ddpm, or ddim, whose few steps take less time",
    )
    n_candidates: int = 50
    selection: Literal["argmax", "softmax"] = "softmax"
    q_weight: float = key(1.0, "eta, of the Q term beside the denoising loss", least=0)

    def check(self) -> None:
        super().check()
        if self.critic.n_critics < 2:
            raise WrongValue(f"critic.n_critics={self.critic.n_critics}: expected at least 2, one is the other's scale")


class DQL(CloningStage):
    """See the module's docstring."""

    Config = DQLConfig
    config: DQLConfig

    def next_values(self, batch: Batch) -> Tensor | None:
        draws = self._draw_next(batch, self.target_draws)
        # y = r + gamma^h (1 - terminated) min_j max_n Qbar_j(s', a'_n)
        return draws and draws.outputs.amax(2, keepdim=True)

    def actor_loss(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        cloning, _ = super().actor_loss(batch)
        q = self.critic.climbed(batch.obs, self.sampled(batch.obs))  # (n, B, 1)
        climbed, scale = q[torch.randperm(len(q), device=q.device, generator=self.generator)[:2]]
        # -E Q_i(s, a) / E|Q_j(s, a)|, the denominator without gradient
        q_loss = -climbed.mean() / scale.detach().abs().mean()
        return cloning + self.config.q_weight * q_loss, {"cloning_loss": cloning.detach(), "q_loss": q_loss.detach()}

    def sampled(self, obs: Tensor) -> Tensor:
        """A chunk of the actor for each of `obs` (B, To * W), with its gradient -> (B, 1, Tp, Da)."""
        noise = self.policy.draw_noise(len(obs), 1, generator=self.generator, sampler=self.sampler)
        x, _ = self.policy.sample(obs, noise, sampler=self.sampler, finetuned=self.actor)
        return self.policy.within_bounds(x)
