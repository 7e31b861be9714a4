"""DPPO: PPO in the two-level MDP of denoising (Ren et al. 2024, arXiv 2409.00588).

Each of the last K' denoising transitions is a step of an inner MDP with the Gaussian policy
N(mean_i(x_i, s), std_i^2); the environment's reward enters after the last. The advantage of an environment step is
shared by its K' denoising steps, discounted by gamma_denoising^(K'-1-i).

Symbols: those of `burnish.finetune.on_policy`, with L = K' (`K_ft`) fine-tuned transitions, the last of S;
i = 0 (noisiest) .. K'-1 among them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import torch
from torch import Tensor

from burnish.config import WrongValue, key
from burnish.diffusion import Chain, StdBounds, gaussian_log_prob
from burnish.errors import BurnishError
from burnish.finetune.losses.ppo import RATIO_TOLERANCE, chain_kl, chunk_log_prob, clip_range, denoising_discount
from burnish.finetune.on_policy import Explored, OnPolicyConfig, OnPolicyStage
from burnish.finetune.stage import Setting
from burnish.networks import Denoiser
from burnish.policies.diffusion import DiffusionPolicy


@dataclass(frozen=True)
class DPPOConfig(OnPolicyConfig):
    """Settings of DPPO, see `OnPolicyConfig`; docs/dppo.md says where the paper has other defaults."""

    EXPLORATION: ClassVar[str] = "min_sampling_denoising_std"

    name: Literal["dppo"] = "dppo"
    ft_denoising_steps: int = key(10, "K', the last denoising steps, which are fine-tuned", least=1)
    sampler: Literal["inherit", "ddpm", "ddim"] = key(
        "inherit", "inherit (the policy's), ddpm, or ddim (trained with eta 1, evaluated with eta 0)"
    )
    ddim_steps: int = key(5, "with sampler=ddim", least=1)
    gamma_denoising: float = key(0.99, "discount per denoising step", least=0, most=1)
    clip_coef_base: float = key(0.02, "clip range at the first step that is fine-tuned", least=0)
    clip_coef_rate: float = key(3.0, "how fast it grows in between", least=0)
    min_sampling_denoising_std: float = key(0.05, "floor of the exploration noise", least=0)
    max_sampling_denoising_std: float | None = key(None, "ceiling of it (null: none)", least=0)
    min_logprob_denoising_std: float = key(0.05, "floor of std in log-probabilities", above=0)
    randn_clip: float = key(
        3.0, "bound that a denoising step's noise is clipped to, in standard deviations", above=0, most=math.inf
    )
    log_prob: Literal["mean", "joint"] = key(
        "mean", "mean of clamped elements (the authors' code), or joint (then raise clip_coef about Ta * Da times)"
    )
    bc_coef: float = key(0.0, "weight of - log-probability of the pretrained policy's chains", least=0)

    def check(self) -> None:
        super().check()
        if self.min_sampling_denoising_std < self.min_logprob_denoising_std:
            raise WrongValue(
                f"min_sampling_denoising_std={self.min_sampling_denoising_std} is less than "
                f"min_logprob_denoising_std={self.min_logprob_denoising_std}: the likelihood ratios would be biased"
            )
        self.sampling_bounds()

    def sampling_bounds(self) -> StdBounds:
        """Floor and ceiling of the standard deviation when acting."""
        ceiling = self.max_sampling_denoising_std
        return StdBounds(self.min_sampling_denoising_std, float("inf") if ceiling is None else ceiling)

    def logprob_bounds(self) -> StdBounds:
        """Floor and ceiling of the standard deviation in log-probabilities."""
        return replace(self.sampling_bounds(), floor=self.min_logprob_denoising_std)


class DPPO(OnPolicyStage):
    """See the module's docstring.

    Args:
        policy: pretrained, or fine-tuned before (then its fine-tuned denoiser goes on).
    """

    Config = DPPOConfig
    config: DPPOConfig
    policy: DiffusionPolicy

    def __init__(self, policy: DiffusionPolicy, config: DPPOConfig, setting: Setting):
        if policy.finetuned is None:
            if config.sampler != "inherit":
                policy.set_sampler(config.sampler, config.ddim_steps)
            if not policy.sampler.gaussian:
                raise BurnishError(
                    f"stage.sampler={config.sampler}: the policy acts with sampler={policy.sampler.kind}, whose steps "
                    "have no likelihood; expected ddpm or ddim (a flow's: burnish policy set POLICY sampler=euler)"
                )
            policy.start_finetuning(config.ft_denoising_steps, from_scratch=not setting.pretrained)
        elif policy.ft_denoising_steps != config.ft_denoising_steps:
            raise BurnishError(
                f"stage.ft_denoising_steps={config.ft_denoising_steps}, but the policy was fine-tuned with "
                f"{policy.ft_denoising_steps} before"
            )
        elif config.sampler not in ("inherit", own := getattr(policy.config, "sampler", "inherit")):
            raise BurnishError(f"stage.sampler={config.sampler}, but the policy was fine-tuned with {own} before")
        assert policy.finetuned is not None
        self.actor: Denoiser = policy.finetuned
        K_ft, own, device = config.ft_denoising_steps, policy.config, policy.device
        chain = (K_ft + 1, own.horizon, policy.action_dim)
        super().__init__(policy, config, setting, actor=self.actor, n_terms=K_ft, sampled=chain)
        # DDIM: eta = 1 to train, so that every transition has noise; the policy's own sampler evaluates
        self.sampler = own.chain_sampler(policy.process, eta=1.0).to(device)
        self.logprob_std = self.sampler.bounded_std(config.logprob_bounds())  # (S,)
        self.first = len(self.sampler) - K_ft  # transition of i = 0
        self.discount = denoising_discount(K_ft, config.gamma_denoising, device)
        self.eps = clip_range(K_ft, config.clip_coef, config.clip_coef_base, config.clip_coef_rate, device)
        self.teacher: Tensor | None = None  # the pretrained policy's chains (N, K' + 1, Tp, Da)

    def explore(self, obs: Tensor) -> Explored:
        x, chain = self._sample(obs)
        log_prob = self._log_prob(chain.x[:, 1:], chain.mean, self.logprob_std[self.first :])
        return Explored(x, chain.x, log_prob)

    def _sample(self, obs: Tensor, *, pretrained: bool = False) -> tuple[Tensor, Chain]:
        noise = self.policy.draw_noise(len(obs), generator=self.generator)
        return self.policy.sample(
            obs,
            noise,
            sampler=self.sampler,
            bounds=self.config.sampling_bounds(),
            noise_clip=self.config.randn_clip,
            keep=self.config.ft_denoising_steps,
            pretrained=pretrained,
        )

    def _log_prob(self, x: Tensor, mean: Tensor, std: Tensor) -> Tensor:
        """Of transitions to `x` (..., Tp, Da) with `std` broadcast over the leading dimensions -> (...)."""
        elements = gaussian_log_prob(x, mean, std[..., None, None])
        return chunk_log_prob(elements, self.policy.config.n_action_steps, self.config.log_prob)

    def new_log_prob(self, n: Tensor, i: Tensor) -> Tensor:
        return self._chain_log_prob(self.rollout.sampled.flatten(0, 1), n, i)

    def _chain_log_prob(self, chain: Tensor, n: Tensor, i: Tensor) -> Tensor:
        """Log-probability under the present actor of step `i` (M,) of samples `n` (M,) of `chain` -> (M,)."""
        x, x_next = chain[n, i], chain[n, i + 1]  # (M, Tp, Da)
        transition = self.first + i
        encoded = self.actor.encode(self.rollout.obs.flatten(0, 1)[n])
        output = self.actor(x, self.sampler.timesteps[transition], encoded)
        return self._log_prob(x_next, self.sampler.mean(output, x, transition), self.logprob_std[transition])

    @torch.no_grad()
    def before_actor_update(self) -> None:
        if self.config.bc_coef:
            self.teacher = self._sample(self.rollout.obs.flatten(0, 1), pretrained=True)[1].x

    def extra_loss(self, n: Tensor, i: Tensor) -> Tensor | float:
        """Eq. 2 of arXiv 2403.03949: the likelihood of the pretrained policy's chains."""
        if self.teacher is None:
            return 0.0
        return -self.config.bc_coef * self._chain_log_prob(self.teacher, n, i).mean()

    def divergence(self, log_ratio: Tensor) -> Tensor:
        return chain_kl(log_ratio, self.n_terms, self.elements, self.config.log_prob)

    @property
    def elements(self) -> int:
        """Executed numbers of a chunk."""
        return self.policy.config.n_action_steps * self.policy.action_dim

    @property
    def ratio_tolerance(self) -> float:
        return RATIO_TOLERANCE * (self.elements if self.config.log_prob == "joint" else 1)
