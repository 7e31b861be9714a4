"""A pretrained policy whose chunks a small Gaussian edits, within a bound; a critic may choose between the two.

    edited = x + scale tanh(mu(s, x) + sigma(s, x) z),   |edited - x| <= scale, of the executed steps

It acts by the edit's mean, z = 0. Where `executes` is best, it executes whichever of the base's chunks and their edits
has the largest Q (EXPO, Dong et al. 2025, arXiv 2507.07986). An edit of zero is the base, bit for bit.

Symbols: those of `burnish.policies.diffusion`; e = tanh(..), in [-1, 1].
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar, Literal, NamedTuple

import torch
from torch import Tensor

from burnish.config import key
from burnish.networks.squashed import SLACK, SquashedConfig, SquashedGaussian, squash
from burnish.policies.base import ChunkConfig
from burnish.policies.diffusion import DiffusionPolicy, choose
from burnish.policies.wrapped import WrappedConfig, WrappedPolicy

LOG_STD = -1.0  # of the edit at first, before the tanh


@dataclass(frozen=True, kw_only=True)
class EditedConfig(WrappedConfig):
    """Everything that decides what the policy computes, but for its base."""

    kind: Literal["edited"] = "edited"
    temperature: float = key(1.0, "factor on all noise of the base", least=0)
    actor: SquashedConfig = key(factory=SquashedConfig, doc="that edits")
    scale: float = key(0.1, "bound of the edit of each normalised number", above=0)
    per_step: bool = key(
        False, "each executed step is edited for itself, by the same network, which is told which it is"
    )
    executes: Literal["best", "edited"] = key("best", "the best by Q of chunks and their edits, or always an edit")


class Edits(NamedTuple):
    """Of n chunks for each observation."""

    x: Tensor  # (B, n, Tp, Da) edited
    e: Tensor  # (B, n, Ta * Da) in [-1, 1]
    log_prob: Tensor  # (B, n) of e


class EditedPolicy(WrappedPolicy):
    """See the module's docstring.

    Attributes:
        actor: from observations and executed steps of chunks to e.
    """

    Config: ClassVar[type[ChunkConfig]] = EditedConfig
    config: EditedConfig

    def __init__(self, config: EditedConfig, base: DiffusionPolicy):
        super().__init__(config, base)
        Ta, Da = config.n_action_steps, base.action_dim
        dim, given = (Da, Da + Ta) if config.per_step else (Ta * Da, Ta * Da)
        self.actor = self.seeing(SquashedGaussian(config.actor, self.features, dim, given, LOG_STD))
        self.sample_as(config)
        self.to(base.device)

    def sample_as(self, config: ChunkConfig) -> None:
        """The temperature is the base's."""
        super().sample_as(config)
        self.base.sample_as(replace(self.base.config, temperature=config.temperature))

    def edit(self, obs: Tensor, x: Tensor, z: Tensor | None = None) -> Edits:
        """Chunks `x` (B, n, Tp, Da) of the base at prepared observations (B, To * W), edited.

        Args:
            z: standard normal (B, n, Ta, Da); None for the mean.
        """
        Ta, executed = self.config.n_action_steps, self.executed(x)  # (B, n, Ta, Da)
        mean, log_std = self._network(obs, executed)
        e, log_prob = squash(mean, log_std, torch.zeros_like(mean) if z is None else z.flatten(2), SLACK)
        edited = x[..., :Ta, :] + self.config.scale * e.view_as(executed)
        return Edits(torch.cat([edited, x[..., Ta:, :]], -2), e, log_prob)

    def _network(self, obs: Tensor, executed: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log standard deviation (B, n, Ta * Da) for executed steps (B, n, Ta, Da)."""
        if not self.config.per_step:
            return self.actor(obs, executed.flatten(2))
        Ta = executed.shape[2]
        which = torch.eye(Ta, dtype=executed.dtype, device=executed.device).expand(*executed.shape[:2], Ta, Ta)
        of_each = self.actor(obs, torch.cat([executed, which], -1).flatten(1, 2))  # (B, n * Ta, Da)
        mean, log_std = (each.view_as(executed).flatten(2) for each in of_each)
        return mean, log_std

    def predict(
        self, obs: Tensor, noise: Tensor | None, generator: torch.Generator | None = None, candidates: int = 1
    ) -> Tensor:
        x = self.base.sample(obs, self.base_noise(obs, noise, generator, candidates))[0]
        x = x if x.dim() == 4 else x[:, None]  # (B, N, Tp, Da)
        edited = self.edit(obs, x).x
        x = edited if self.config.executes == "edited" else torch.cat([x, edited], 1)
        return x[:, 0] if x.shape[1] == 1 else choose(x, self.values(obs, x).argmax(1))
