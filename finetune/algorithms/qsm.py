"""QSM: Q-score matching (Psenka et al. 2023, arXiv 2312.11752).

The predicted noise is regressed on the slope of Q at noisy actions, which is the score of exp(Q / lambda) but for the
noise: nothing is sampled for the actor. As released it is eps* = -M_q dQ/da; scaled as in FlowRL (flow-rl's qsm.py) it
is a score's share of the noise, with the size of the slope taken out, so that no key depends on the scale of rewards.

Neither knows the policy that it starts from. With `prior=policy` the pretrained policy's own score is added, so that
the target is that of pi_old exp(Q / lambda) instead: ours, for fine-tuning.

Symbols: B batch, k, sigma_k = sqrt(1 - abar_k), Tp, Ta, Da as in `burnish.policies.diffusion`; lambda the temperature.
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
from burnish.policies.diffusion import DiffusionPolicy, encode_for

SMALLEST_SLOPE = 1e-6  # of the mean that the slope is divided by


@dataclass(frozen=True)
class QSMConfig(ActorConfig):
    """Settings of QSM, see `ActorConfig`; docs/off_policy.md says where the paper has other defaults."""

    name: Literal["qsm"] = "qsm"
    slope: Literal["normalised", "released"] = key(
        "normalised",
        "eps* = -sigma_k dQ/da / (temperature E|dQ/da|), of the target critics (FlowRL's), or -q_grad_coef dQ/da of "
        "those that learn (the released code)",
    )
    temperature: float = key(0.25, "with slope=normalised: lambda, in units of E|dQ/da|", above=0)
    q_grad_coef: float = key(50.0, "M_q, with slope=released, where it is 1 / lambda", above=0)
    prior: Literal["flat", "policy"] = key(
        "policy",
        "flat: the target knows nothing of the pretrained policy (the paper; from scratch); policy: its own prediction "
        "is added, which anchors to it",
    )
    n_candidates: int = key(1, "chunks sampled for each that is executed", least=1)
    exploration_noise: float = key(
        0.1, "standard deviation of Gaussian noise on the executed chunk, which is clipped again", least=0
    )
    target_noise: float = key(0.1, "likewise on the chunk of the critic's target", least=0)


class QSM(ActorStage):
    """See the module's docstring."""

    kinds = ("diffusion",)
    Config = QSMConfig
    config: QSMConfig

    def __init__(self, policy: DiffusionPolicy, config: QSMConfig, setting: Setting):
        if (predicted := policy.process.prediction_type) != "epsilon":
            raise BurnishError(
                f"stage=qsm teaches the predicted noise, but the policy has prediction_type={predicted}: expected "
                "epsilon"
            )
        if config.prior == "policy" and not setting.pretrained:
            raise BurnishError("stage.prior=policy: there is none from scratch; expected stage.prior=flat")
        super().__init__(policy, config, setting)

    def target_chunks(self, obs: Tensor) -> Tensor:
        return self.noised(super().target_chunks(obs), self.config.target_noise)

    def actor_loss(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        process, x0 = self.policy.process, self.chunks(batch)  # (B, 1, Tp, Da)
        below = self.policy.finetuned_timesteps
        k = torch.randint(below, (len(x0), 1), device=x0.device, generator=self.generator)
        eps = torch.randn(x0.shape, device=x0.device, generator=self.generator)
        x = process.add_noise(x0, eps, k)
        slope = self.critic.action_gradient(
            batch.obs, x, target=self.config.slope == "normalised", of="mean"
        )  # mean_j dQ_j/da at the noisy chunk
        target, size = self.predicted_noise(slope, process.levels(k, x)[1])
        if self.config.prior == "policy":
            with torch.no_grad():
                target = target + self.policy.denoiser(x, k, encode_for(self.policy.denoiser, batch.obs, x))
        # L = E || eps* - eps_theta(a_k, k, s) ||^2
        output = self.actor(x, k, encode_for(self.actor, batch.obs, x))
        return weighted_denoising_loss(output, target, torch.ones_like(k, dtype=x.dtype)), {"slope": size}

    def predicted_noise(self, slope: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        """eps* for dQ/da (B, 1, Tp, Da) at noise `sigma` (B, 1, 1, 1), and E|dQ/da|."""
        size = slope[..., : self.policy.config.n_action_steps, :].abs().mean()
        if self.config.slope == "released":
            return -self.config.q_grad_coef * slope, size
        return score_noise(slope, sigma, self.config.temperature * (size + SMALLEST_SLOPE)), size


def score_noise(slope: Tensor, sigma: Tensor, temperature: Tensor | float) -> Tensor:
    """The noise that is predicted where the score is that of exp(Q / lambda), dQ/da / lambda: eps = -sigma score."""
    return -sigma * slope / temperature
