"""DPPO: PPO in the two-level MDP of denoising (Ren et al. 2024, arXiv 2409.00588).

Each of the last K' denoising transitions is a step of an inner MDP with the Gaussian policy
N(mean_i(x_i, s), std_i^2); the environment's reward enters after the last. The advantage of an environment step is
shared by its K' denoising steps, discounted by gamma_denoising^(K'-1-i).

Symbols: those of `burnish.finetune.on_policy`, with L = K' (`K_ft`) fine-tuned transitions, the last of S;
i = 0 (noisiest) .. K'-1 among them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from burnish.config import key
from burnish.finetune.denoising_steps import DenoisingSteps, DenoisingStepsConfig
from burnish.finetune.losses.ppo import chain_kl
from burnish.finetune.on_policy import Explored, OnPolicyConfig, OnPolicyStage
from burnish.finetune.stage import Setting
from burnish.networks import Denoiser
from burnish.policies.diffusion import DiffusionPolicy


@dataclass(frozen=True)
class DPPOConfig(DenoisingStepsConfig, OnPolicyConfig):
    """Settings of DPPO, see `DenoisingStepsConfig`, `OnPolicyConfig`; docs/dppo.md says where the paper has others."""

    name: Literal["dppo"] = "dppo"
    bc_coef: float = key(0.0, "weight of - log-probability of the pretrained policy's chains", least=0)


class DPPO(OnPolicyStage):
    """See the module's docstring.

    Args:
        policy: pretrained, or fine-tuned before (then its fine-tuned denoiser goes on).
    """

    Config = DPPOConfig
    config: DPPOConfig
    policy: DiffusionPolicy

    def __init__(self, policy: DiffusionPolicy, config: DPPOConfig, setting: Setting):
        self.inner = DenoisingSteps(policy, config, setting)
        self.actor: Denoiser = self.inner.actor
        K_ft, own = config.ft_denoising_steps, policy.config
        chain = (K_ft + 1, own.horizon, policy.action_dim)
        super().__init__(policy, config, setting, actor=self.actor, n_terms=K_ft, sampled=chain)
        self.discount, self.eps = self.inner.discount, self.inner.eps
        self.teacher: Tensor | None = None  # the pretrained policy's chains (N, K' + 1, Tp, Da)

    def explore(self, obs: Tensor) -> Explored:
        x, chain = self.inner.sample(obs, self._noise(obs))
        return Explored(x, chain.x, self.inner.log_prob_of(chain))

    def _noise(self, obs: Tensor) -> Tensor:
        return self.policy.draw_noise(len(obs), generator=self.generator)

    def new_log_prob(self, n: Tensor, i: Tensor) -> Tensor:
        return self._chain_log_prob(self.rollout.sampled.flatten(0, 1), n, i)

    def _chain_log_prob(self, chain: Tensor, n: Tensor, i: Tensor) -> Tensor:
        """Log-probability under the present actor of step `i` (M,) of samples `n` (M,) of `chain` -> (M,)."""
        return self.inner.new_log_prob(self.rollout.obs.flatten(0, 1)[n], chain[n, i], chain[n, i + 1], i)

    @torch.no_grad()
    def before_actor_update(self) -> None:
        if self.config.bc_coef:
            obs = self.rollout.obs.flatten(0, 1)
            self.teacher = self.inner.sample(obs, self._noise(obs), pretrained=True)[1].x

    def extra_loss(self, n: Tensor, i: Tensor) -> Tensor | float:
        """Eq. 2 of arXiv 2403.03949: the likelihood of the pretrained policy's chains."""
        if self.teacher is None:
            return 0.0
        return -self.config.bc_coef * self._chain_log_prob(self.teacher, n, i).mean()

    def divergence(self, log_ratio: Tensor) -> Tensor:
        return chain_kl(log_ratio, self.n_terms, self.inner.elements, self.config.log_prob)

    @property
    def ratio_tolerance(self) -> float:
        return self.inner.ratio_tolerance
