"""DACER: diffusion actor-critic with an entropy regulator (Wang et al. 2024, arXiv 2405.15177).

The denoising chain is a reparameterised actor: Q's slope is carried back through all of its steps. The critics learn
the return's distribution. A chain has no likelihood, so its width is measured instead: now and then a Gaussian mixture
is fitted to draws of each state, and alpha, the size of the noise on every action, is moved until their entropy is the
target's.

Symbols: B batch, S denoising steps, M draws for a state, d = Ta Da numbers that are executed, Tp, Ta, Da as in
`burnish.policies.diffusion`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from burnish.config import key
from burnish.errors import BurnishError
from burnish.finetune.actor import ActorConfig, ActorStage
from burnish.finetune.losses.mixture import fit_mixture, mixture_entropy
from burnish.finetune.stage import Setting
from burnish.finetune.storage.replay import Batch
from burnish.networks import GaussianCriticConfig
from burnish.networks.optimise import clipped_step
from burnish.policies.diffusion import DiffusionPolicy


@dataclass(frozen=True)
class DACERConfig(ActorConfig):
    """Settings of DACER, see `ActorConfig`."""

    name: Literal["dacer"] = "dacer"
    critic: GaussianCriticConfig = key(factory=GaussianCriticConfig)
    exploration_noise: float = key(
        0.1, "standard deviation of the noise on every action, those of target and actor too, at alpha = 1", least=0
    )
    initial_alpha: float = key(3.0, "factor on that noise at the start", above=0)
    alpha_lr: float = key(0.03, "of Adam on log alpha", least=0)
    target_entropy: float = key(-0.9, "nats of each number of an executed chunk, normalised")
    entropy_every: int = key(10_000, "gradient steps between measurements, each with a step of alpha", least=1)
    entropy_draws: int = key(200, "actions drawn for a state of the batch, with their noise (M)", least=1)
    entropy_of: Literal["unclipped", "executed"] = key(
        "unclipped",
        "these actions before they are clipped, whose entropy is never less than the noise's; or as executed (the "
        "released code): where they all lie on a bound that is without end",
    )
    mixture_components: int = key(3, "of the mixture that is fitted to them", least=1)
    policy_delay: int = key(2, "the actor is trained in every so many-th gradient step", least=1)
    n_candidates: int = key(1, "chunks sampled for each that is executed", least=1)
    actor_lr: float = key(1e-4, "of Adam", above=0)
    actor_tau: float = key(
        1.0, "Polyak average of the actor, which acts and is saved (1: the actor itself)", above=0, most=1
    )
    critic_lr: float = key(1e-4, "of Adam", above=0)

    def check(self) -> None:
        super().check()
        if self.noise_annealing:
            raise BurnishError("stage.noise_annealing=true: expected false, the noise of stage=dacer follows alpha")


class DACER(ActorStage):
    """See the module's docstring."""

    Config = DACERConfig
    config: DACERConfig
    STATEFUL = (*ActorStage.STATEFUL, "alpha", "alpha_optimizer")

    def __init__(self, policy: DiffusionPolicy, config: DACERConfig, setting: Setting):
        if not policy.sampler.gaussian:
            raise BurnishError(
                f"stage=dacer learns through the policy's own chain, but sampler={policy.sampler.kind} is for "
                "evaluation; expected ddpm, ddim or euler (burnish policy set sets the policy's)"
            )
        self.d = policy.config.n_action_steps * policy.action_dim
        if config.entropy_draws < (needed := config.mixture_components * (self.d + 1)):
            raise BurnishError(
                f"stage.entropy_draws={config.entropy_draws}: expected at least {needed}, with which "
                f"{config.mixture_components} Gaussians of {self.d} dimensions have a width"
            )
        super().__init__(policy, config, setting)
        self.alpha = nn.ParameterDict({"log": torch.tensor(math.log(config.initial_alpha), device=policy.device)})
        self.alpha_optimizer = torch.optim.Adam(self.alpha.parameters(), lr=config.alpha_lr)

    @property
    def noise_scale(self) -> float:
        return float(self.alpha["log"].detach().exp())

    @property
    def actor_is_due(self) -> bool:
        return super().actor_is_due and self.gradient_steps % self.config.policy_delay == 0

    def explored(self, x: Tensor) -> Tensor:
        """Chunks with the noise that they are executed with, clipped."""
        return self.noised(x, self.noise_scale * self.config.exploration_noise)

    def target_chunks(self, obs: Tensor) -> Tensor:
        return self.explored(super().target_chunks(obs))

    def actor_loss(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        metrics = {}
        if self.gradient_steps % self.config.entropy_every == 0:
            metrics["entropy"] = self._regulate(batch)
        # max_theta E min_j Q_j(s, clip(a_0(theta, noise) + alpha 0.1 xi)), through all S steps
        x = self.explored(self.draw(batch.obs, 1, self.actor))  # (B, 1, Tp, Da)
        loss = -self.critic.values(batch.obs, x).mean()
        return loss, metrics | {"alpha": loss.new_tensor(self.noise_scale)}

    def _regulate(self, batch: Batch) -> Tensor:
        """A step of alpha, after the entropy at the batch's observations -> that entropy."""
        entropy = self.entropy(batch.obs)
        # d/dlog_alpha = H - H*
        loss = self.alpha["log"] * (entropy - self.config.target_entropy * self.d)
        clipped_step(self.alpha_optimizer, loss, self.config.max_grad_norm)
        return entropy

    @torch.no_grad()
    def entropy(self, obs: Tensor) -> Tensor:
        """Nats of a chunk with its noise at `obs` (B, To * W), mean over them; by mixtures that are fitted to draws."""
        x = self.draw(obs, self.config.entropy_draws, self.actor)[..., : self.policy.config.n_action_steps, :]
        std = self.noise_scale * self.config.exploration_noise
        x = x + std * torch.randn(x.shape, device=x.device, generator=self.generator)
        if self.config.entropy_of == "executed":
            x = self.policy.within_bounds(x)
        mixture = fit_mixture(x.flatten(2), self.config.mixture_components, self.generator)
        return mixture_entropy(mixture.weights, mixture.covariances).mean().float()
