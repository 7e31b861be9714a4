"""SDAC: soft diffusion actor-critic (Ma et al. 2025, arXiv 2502.00361).

The denoiser of pi proportional to prior x exp(Q / lambda): a noisy chunk a_k comes from any density h_k; clean chunks
are drawn from its posterior and weighed by exp(Q / lambda). Under a flat prior (the paper's) the posterior is
a_0 = (a_k - sqrt(1 - abar_k) eps) / sqrt(abar_k); with the old policy for a prior, which a fine-tuning is anchored to,
its Gaussian N(x0hat, E||x0hat - x0||^2 / d).

Symbols: B states, M draws for each, Tp, Da as in `burnish.policies.diffusion`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from burnish.config import key
from burnish.errors import BurnishError
from burnish.finetune.drawing import Draws, ReweightingConfig, ReweightingStage
from burnish.finetune.losses.rsm import RSMConfig, weighted_denoising_loss
from burnish.finetune.stage import Setting
from burnish.finetune.storage.replay import Batch
from burnish.policies.diffusion import DiffusionPolicy, choose, encode_for

SMALLEST_UNIFORM = 2**-25  # torch.rand gives 0 once in 2^24 numbers, which would be an infinite normal


@dataclass(frozen=True)
class SDACConfig(ReweightingConfig):
    """Settings of SDAC, see `ReweightingConfig`; by default anchored to the demonstrations."""

    name: Literal["sdac"] = "sdac"
    rsm: RSMConfig = key(factory=lambda: RSMConfig(kl_target=2.0))
    draws: int = key(32, "clean chunks drawn for each noisy one (M), weighed against each other", least=1)
    draw_at: Literal["next", "current"] = "current"
    prior: Literal["flat", "policy"] = key(
        "policy",
        "of clean chunks given a noisy one: flat (the paper; from scratch), or the old policy, which anchors to it: "
        "the target is then pi_old exp(Q / lambda)",
    )
    lowest_level: float = key(
        0.0,
        "timesteps below this share of them are left out: under the policy's prior, weights say little there",
        least=0,
        below=1,
    )
    noisy_from: Literal["policy", "replay", "uniform", "perturbed"] = key(
        "policy",
        "where noisy chunks a_k come from: noised ones of the policy (the best of its draws), perturbed ones of it "
        "(with Gaussian noise), of the replay (at their own observations), or uniform ones",
    )
    perturbation: float = key(0.3, "standard deviation of that noise", least=0)
    reverse: Literal["truncated", "clipped"] = key(
        "truncated",
        "draws under the flat prior: within the action bounds (truncated), or without bounds, clipped for Q alone (the "
        "released code; leaves mass on the bounds)",
    )


class SDAC(ReweightingStage):
    """See the module's docstring."""

    Config = SDACConfig
    config: SDACConfig

    def __init__(self, policy: DiffusionPolicy, config: SDACConfig, setting: Setting):
        if policy.config.clip_sample is None:
            raise BurnishError("stage=sdac: the policy's actions have no bounds (policy.clip_sample=null)")
        predicted = policy.process.prediction_type
        if config.reverse == "clipped" and predicted != "epsilon":
            raise BurnishError(
                f"stage.reverse=clipped: its draws have no bounds, which a policy of prediction_type={predicted} would "
                "have to predict: expected epsilon, or stage.reverse=truncated"
            )
        if config.prior == "flat" and not policy.process.signal.all():
            raise BurnishError(
                f"stage.prior=flat: at its noisiest a {policy.config.kind} policy sees noise alone, of which a clean "
                "chunk can be anything: expected stage.prior=policy"
            )
        super().__init__(policy, config, setting)

    @property
    def draws_for_actor(self) -> int:
        return self.config.target_candidates if self.config.noisy_from in ("policy", "perturbed") else 0

    def actor_loss(self, batch: Batch, draws: Draws) -> tuple[Tensor, dict[str, Tensor]]:
        obs, clean = self._clean_chunks(batch, draws)
        process, bound = self.policy.process, self.policy.config.clip_sample
        high = self.policy.finetuned_timesteps
        low = int(self.config.lowest_level * high)
        k = torch.randint(low, high, (len(clean), 1), device=clean.device, generator=self.generator)
        # a_k ~ h_k
        noise = torch.randn(clean.shape, device=clean.device, generator=self.generator)
        x = process.add_noise(clean, noise, k)  # (B, 1, Tp, Da)
        signal, sigma = process.levels(k, x)
        with torch.no_grad():
            if self.config.prior == "policy":
                x0 = self._posterior_draws(obs, x, k)
                eps = (x - signal * x0) / sigma
            else:
                eps = reverse_noise(x, signal, sigma, self.config.draws, bound, self.config.reverse, self.generator)
                x0 = (x - sigma * eps) / signal  # (B, M, Tp, Da)
            weighted = self.weighting(self.critic.values(obs, x0, target=True), self.gradient_steps)
        # L = E_{s,k,a_k} sum_m w_m || f(a_k, k, s) - target_m ||^2
        output = self.actor(x, k, encode_for(self.actor, obs, x))
        target = process.target(x0, eps, k)
        return weighted_denoising_loss(output, target, weighted.weights), weighted.metrics()

    def _posterior_draws(self, obs: Tensor, x: Tensor, k: Tensor) -> Tensor:
        """Clean chunks of the old policy given noisy ones `x` (B, 1, Tp, Da) at `k` (B, 1) -> (B, M, Tp, Da)."""
        x0 = self.policy.process.predict_x0(self.old(x, k, encode_for(self.old, obs, x)), x, k)
        std = self.x0_errors[k].sqrt()[..., None, None]
        shape = (len(x), self.config.draws, *x.shape[2:])
        # a_0 ~ N(x0hat, E||x0hat - x0||^2 / d)
        return self.policy.within_bounds(x0 + std * torch.randn(shape, device=x.device, generator=self.generator))

    @property
    def needs_width(self) -> bool:
        return super().needs_width or self.config.prior == "policy"

    def _clean_chunks(self, batch: Batch, draws: Draws) -> tuple[Tensor, Tensor]:
        """Observations (B, To * W) and the clean chunks (B, 1, Tp, Da) whose noised versions are the a_k."""
        source = self.config.noisy_from
        if source == "replay":
            return batch.obs, self.chunks(batch)
        if source == "uniform":
            shape = (len(draws.x), 1, *draws.x.shape[2:])
            uniform = 2 * torch.rand(shape, device=draws.x.device, generator=self.generator) - 1
            return draws.obs, uniform * (self.policy.config.clip_sample or 1)
        best = choose(draws.x, draws.q.argmax(1, keepdim=True))
        if source == "perturbed":
            best = self.noised(best, self.config.perturbation)
        return draws.obs, best


def reverse_noise(
    x: Tensor, signal: Tensor, sigma: Tensor, M: int, bound: float | None, kind: str, generator: torch.Generator
) -> Tensor:
    """Noise eps with which x_0 = (x - sigma eps) / signal is a draw of x's posterior under a flat prior.

    Args:
        x: noisy chunks (B, 1, Tp, Da); signal, sigma: sqrt(abar_k), sqrt(1 - abar_k), (B, 1, 1, 1).
        bound: of x_0. kind: see `SDACConfig.reverse`.

    Returns:
        (B, M, Tp, Da)
    """
    shape = (x.shape[0], M, *x.shape[2:])
    if kind == "clipped":
        return torch.randn(shape, device=x.device, generator=generator)
    # |x_0| <= bound: eps in [(x - signal bound) / sigma, (x + signal bound) / sigma]
    assert bound is not None
    low, high = (x - signal * bound) / sigma, (x + signal * bound) / sigma
    # by the inverse distribution function, in the lower tail, where float32 has the digits
    flip = low + high > 0
    low, high = torch.where(flip, -high, low), torch.where(flip, -low, high)
    u = torch.rand(shape, device=x.device, generator=generator).clamp(min=SMALLEST_UNIFORM)
    # Phi(z) = erfc(-z / sqrt(2)) / 2; torch's ndtr rounds to 0 below -5.4
    p_low, p_high = (torch.special.erfc(z * -math.sqrt(0.5)) / 2 for z in (low, high))
    p = torch.lerp(p_low, p_high, u).clamp(min=torch.finfo(x.dtype).tiny)
    eps = torch.special.ndtri(p).clamp(low, high)
    return torch.where(flip, -eps, eps)
