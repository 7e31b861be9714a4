"""What policies share that keep another one inside, as it is, and change what it does from outside.

Symbols: those of `burnish.policies.diffusion`, whose policies are the base.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, TypeVar

import torch
from torch import Tensor

from burnish.config import WrongValue, key, parse
from burnish.errors import BurnishError
from burnish.policies.base import ChunkConfig, Policy, policy_class
from burnish.policies.diffusion import DiffusionPolicy
from burnish.policies.folder import require_keys

C = TypeVar("C", bound="WrappedConfig")
W = TypeVar("W", bound="WrappedPolicy")


@dataclass(frozen=True, kw_only=True)
class WrappedConfig(ChunkConfig):
    """What the config of all of them has: beside its own keys the base's sizes."""

    horizon: int = key(4, "Tp, predicted action steps", least=1)

    def check(self) -> None:
        if self.mean_of > 1:
            raise WrongValue(f"mean_of={self.mean_of}: expected 1, a policy of kind {self.kind} acts by one chunk")

    @classmethod
    def around(cls: type[C], base: DiffusionPolicy, **own: Any) -> C:
        """Of a policy around `base`, with these keys of its own. Raises BurnishError for a base that it cannot have."""
        if base.config.mean_of > 1:
            raise BurnishError(
                f"the policy acts by the mean of {base.config.mean_of} chunks: expected mean_of=1 (burnish policy set)"
            )
        shared = [field.name for field in fields(WrappedConfig) if field.name not in ("kind", "temperature")]
        return cls(**{name: getattr(base.config, name) for name in shared}, **own)


class WrappedPolicy(Policy):
    """A policy around `base`, which is frozen and evaluates in it without a file of its own.

    Attributes:
        base: any kind of diffusion policy, fine-tuned or not.
    """

    config: WrappedConfig

    def __init__(self, config: WrappedConfig, base: DiffusionPolicy):
        super().__init__(config, base.obs_spec, base.action_dim, base.obs_keys, base.task)
        self.trained_in, self.trained_with, self.plugins = base.trained_in, base.trained_with, base.plugins
        self.base = base.requires_grad_(False)
        self.obs_normalizer.load_state_dict(base.obs_normalizer.state_dict())
        self.action_normalizer.load_state_dict(base.action_normalizer.state_dict())

    def loss(self, obs: Tensor, actions: Tensor, generator: torch.Generator | None = None) -> Tensor:
        raise BurnishError(f"a policy of kind {self.config.kind} is not cloned from demonstrations: pretrain its base")

    def noise_shape(self, candidates: int = 1) -> tuple[int, ...]:
        """The base's."""
        return self.base.noise_shape(candidates)

    def base_noise(
        self, obs: Tensor, noise: Tensor | None, generator: torch.Generator | None, candidates: int
    ) -> Tensor:
        """`noise`, or else drawn: what the base takes for `candidates` chunks at each of `obs` (B, To * W)."""
        if noise is not None:
            return noise
        return self.base.draw_noise(len(obs), *self.noise_shape(candidates)[1:-2], generator=generator)

    def within_bounds(self, x: Tensor) -> Tensor:
        return self.base.within_bounds(x)

    @property
    def sampler_steps(self) -> int | None:
        return self.base.sampler_steps

    @property
    def least_rows(self) -> int:
        return self.base.least_rows

    def description(self) -> dict[str, Any]:
        return {**super().description(), "base": self.base.description()}

    @classmethod
    def from_description(cls: type[W], description: Mapping[str, Any]) -> W:
        of_base = policy_class(description["base"]["kind"])
        require_keys(of_base.Config, description["base"]["config"], "base.config")
        base = of_base.from_description(description["base"])
        if not isinstance(base, DiffusionPolicy):
            raise BurnishError(f"base.kind={base.config.kind}: expected a diffusion policy or a flow")
        policy = cls(parse(cls.Config, description["config"], where="config"), base)  # type: ignore[arg-type]
        policy.trained_in, policy.plugins = description.get("trained_in"), description.get("plugins", [])
        policy.trained_with = description.get("trained_with", {})
        policy.add_described_critic(description.get("critic"))
        return policy
