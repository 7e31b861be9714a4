"""The last denoising steps of a policy as an MDP of their own, whose steps are Gaussian (Ren et al. 2024, arXiv
2409.00588, sec. 4.1): what every algorithm needs that takes their likelihood.

Symbols: B observations, n chunks for each, K' (`K_ft`) fine-tuned transitions, the last of S; i = 0 (noisiest) .. K'-1
among them; M of their samples; Tp, Ta, Da as in `burnish.policies.diffusion`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

from torch import Tensor

from burnish.config import Checked, WrongValue, key
from burnish.diffusion import Chain, StdBounds, gaussian_log_prob
from burnish.errors import BurnishError
from burnish.finetune.losses.ppo import RATIO_TOLERANCE, chunk_log_prob, clip_range, denoising_discount
from burnish.finetune.stage import Setting
from burnish.networks import Denoiser
from burnish.policies.diffusion import DiffusionPolicy


@dataclass(frozen=True)
class DenoisingStepsConfig(Checked):
    """Which steps are fine-tuned, the noise in them, their likelihood and how far it may move."""

    EXPLORATION: ClassVar[str] = "min_sampling_denoising_std"

    ft_denoising_steps: int = key(10, "K', the last denoising steps, which are fine-tuned", least=1)
    sampler: Literal["inherit", "ddpm", "ddim"] = key(
        "inherit", "inherit (the policy's), ddpm, or ddim (trained with eta 1, evaluated with eta 0)"
    )
    ddim_steps: int = key(5, "with sampler=ddim", least=1)
    gamma_denoising: float = key(0.99, "discount per denoising step", least=0, most=1)
    clip_coef: float = key(0.02, "clip range of the likelihood ratio, at the last denoising step", above=0)
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


class DenoisingSteps:
    """Draws chains, and gives the likelihood of their fine-tuned steps under the present actor.

    Attributes:
        actor: the policy's fine-tuned denoiser, which the policy has from here on.
        discount: (K',) of an advantage, gamma_denoising^(K'-1-i).
        eps: (K',) clip ranges.

    Args:
        policy: pretrained, or fine-tuned before (then its fine-tuned denoiser goes on).

    Raises:
        BurnishError: its steps have no likelihood, or it was fine-tuned otherwise before.
    """

    def __init__(self, policy: DiffusionPolicy, config: DenoisingStepsConfig, setting: Setting) -> None:
        self.policy, self.config = policy, config
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
        K_ft, device = config.ft_denoising_steps, policy.device
        # DDIM: eta = 1 to train, so that every transition has noise; the policy's own sampler evaluates
        self.sampler = policy.config.chain_sampler(policy.process, eta=1.0).to(device)
        self.logprob_std = self.sampler.bounded_std(config.logprob_bounds())  # (S,)
        self.first = len(self.sampler) - K_ft  # transition of i = 0
        self.discount = denoising_discount(K_ft, config.gamma_denoising, device)
        self.eps = clip_range(K_ft, config.clip_coef, config.clip_coef_base, config.clip_coef_rate, device)

    def sample(self, obs: Tensor, noise: Tensor, *, pretrained: bool = False) -> tuple[Tensor, Chain]:
        """Chunks (B, [n,] Tp, Da) at `obs` (B, To * W) from `policy.draw_noise`, with the noise that the policy
        explores with, and their last K' transitions; `pretrained`: of the policy that it began as."""
        return self.policy.sample(
            obs,
            noise,
            sampler=self.sampler,
            bounds=self.config.sampling_bounds(),
            noise_clip=self.config.randn_clip,
            keep=self.config.ft_denoising_steps,
            pretrained=pretrained,
        )

    def log_prob_of(self, chain: Chain) -> Tensor:
        """Of its steps as they were drawn -> (B, K'[, n])."""
        std = self.logprob_std[self.first :]
        return self._log_prob(chain.x[:, 1:], chain.mean, std if chain.x.ndim == 4 else std[:, None])

    def new_log_prob(self, obs: Tensor, x: Tensor, x_next: Tensor, i: Tensor) -> Tensor:
        """Under the present actor, of steps `i` (M,) from `x` to `x_next` (M, Tp, Da) at `obs` (M, To * W) -> (M,)."""
        transition = self.first + i
        output = self.actor(x, self.sampler.timesteps[transition], self.actor.encode(obs))
        return self._log_prob(x_next, self.sampler.mean(output, x, transition), self.logprob_std[transition])

    def _log_prob(self, x: Tensor, mean: Tensor, std: Tensor) -> Tensor:
        """Of transitions to `x` (..., Tp, Da) with `std` broadcast over the leading dimensions -> (...)."""
        elements = gaussian_log_prob(x, mean, std[..., None, None])
        return chunk_log_prob(elements, self.policy.config.n_action_steps, self.config.log_prob)

    @property
    def elements(self) -> int:
        """Executed numbers of a chunk, Ta * Da."""
        return self.policy.config.n_action_steps * self.policy.action_dim

    @property
    def ratio_tolerance(self) -> float:
        """By how much the first ratio may differ from 1."""
        return RATIO_TOLERANCE * (self.elements if self.config.log_prob == "joint" else 1)
