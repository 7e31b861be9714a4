"""A pretrained policy that is steered by its noise: a small actor gives the noise, the base makes a chunk of it.

The base is sampled deterministically, by DDIM with eta = 0 (a flow: Euler's steps), so that its chunk is a function
F(s, w) of the initial noise w, which the actor bounds: |w| <= `magnitude` (DSRL, Wagenmaker et al. 2025, arXiv
2506.15799). Before its actor has learned anything the policy is the base, bit for bit.

Symbols: those of `burnish.policies.diffusion`; u = w / magnitude, in [-1, 1].
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import torch
from torch import Tensor

from burnish.config import key
from burnish.diffusion import FlowProcess
from burnish.networks.squashed import SLACK, SquashedConfig, SquashedGaussian, squash
from burnish.policies.base import ChunkConfig
from burnish.policies.diffusion import DiffusionPolicy, choose
from burnish.policies.wrapped import WrappedConfig, WrappedPolicy


@dataclass(frozen=True, kw_only=True)
class SteeredConfig(WrappedConfig):
    """Everything that decides what the policy computes, but for its base."""

    kind: Literal["steered"] = "steered"
    temperature: float = key(0.0, "factor on the actor's standard deviation; 0: it acts by its mean", least=0)
    actor: SquashedConfig = key(factory=SquashedConfig, doc="that gives the noise")
    magnitude: float = key(1.5, "bound of each number of the noise (the base was trained with N(0, 1))", above=0)
    base_steps: int | None = key(
        None, "S, deterministic denoising steps of the base (null: its own number of DDIM or Euler steps)", least=1
    )
    critic_of: Literal["actions", "noise"] = key("actions", "what its critic judges")


class SteeredPolicy(WrappedPolicy):
    """See the module's docstring.

    Attributes:
        actor: from observations to u (Tp * Da).
        steers: whether the actor has learned something; the base acts as it is until then.

    Raises:
        BurnishError: the base cannot be sampled in so many steps.
    """

    Config: ClassVar[type[ChunkConfig]] = SteeredConfig
    config: SteeredConfig
    steers: Tensor

    def __init__(self, config: SteeredConfig, base: DiffusionPolicy):
        super().__init__(config, base)
        kind = "euler" if isinstance(base.process, FlowProcess) else "ddim"
        as_function = replace(base.config, sampler=kind, sampler_steps=config.base_steps, temperature=1.0)
        self.sampler = as_function.chain_sampler(base.process, eta=0.0)
        dim = config.horizon * base.action_dim
        self.actor = self.seeing(SquashedGaussian(config.actor, self.features, dim))
        self.register_buffer("steers", torch.zeros((), dtype=torch.bool))
        self.to(base.device)

    def noise(self, obs: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
        """The actor's u (B, N, Tp, Da) for standard normal `z` (B, N, Tp, Da) at prepared observations (B, To * W),
        and its log-probability (B, N)."""
        mean, log_std = self.actor(obs)  # (B, Tp * Da)
        u, log_prob = squash(mean[:, None], log_std[:, None], z.flatten(2), SLACK)
        return u.view(z.shape), log_prob

    @torch.no_grad()
    def chunks_of(self, obs: Tensor, u: Tensor) -> Tensor:
        """F(s, magnitude u): the base's normalised chunks (B, N, Tp, Da) of noise `u` (B, N, Tp, Da)."""
        noise = u.new_zeros(len(self.sampler) + 1, *u.shape)  # with eta = 0 the steps take none
        noise[0] = self.config.magnitude * u
        return self.base.sample(obs, noise, sampler=self.sampler)[0]

    def critic_input(self, x: Tensor) -> Tensor:
        """The executed part of chunks; where its critic is of noise, u (..., Tp, Da), whole."""
        return x.flatten(-2) if self.config.critic_of == "noise" else super().critic_input(x)

    def predict(
        self, obs: Tensor, noise: Tensor | None, generator: torch.Generator | None = None, candidates: int = 1
    ) -> Tensor:
        noise = self.base_noise(obs, noise, generator, candidates)
        if not self.steers and candidates == 1:
            return self.base.sample(obs, noise)[0]
        z = noise[0] if noise.dim() == 5 else noise[0, :, None]  # (B, N, Tp, Da)
        u = self.noise(obs, self.config.temperature * z)[0] if self.steers else z / self.config.magnitude
        x = self.chunks_of(obs, u)
        if candidates == 1:
            return x[:, 0]
        return choose(x, self.values(obs, u if self.config.critic_of == "noise" else x).argmax(1))

    @property
    def sampler_steps(self) -> int:
        return len(self.sampler if self.steers else self.base.sampler)
