"""The classical policy: a Gaussian over the action chunk, its mean by a multilayer perceptron.

Its layers are those of Stable-Baselines3's actors, so that weights pass between the two. It acts by its mean, unless it
is given a temperature.

Symbols: B batch, To observation steps, Ta executed (here: all predicted) action steps, Do and Da dimensions.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from burnish.config import WrongValue, key
from burnish.errors import BurnishError
from burnish.networks.activation import ACTIVATIONS
from burnish.networks.base import MOST_WIDTH
from burnish.networks.encoders.encoder import Encoder
from burnish.observations import ObsSpec
from burnish.policies.base import ChunkConfig, Policy


@dataclass(frozen=True, kw_only=True)
class GaussianPolicyConfig(ChunkConfig):
    """Everything that decides what a Gaussian policy computes. "mean_std" would not bound its actions."""

    OPTION: ClassVar[str] = "gaussian"

    kind: Literal["gaussian"] = "gaussian"
    hidden_sizes: list[int] = key([256, 256], "of the mean's network; [] makes it linear", least=1, most=MOST_WIDTH)
    activation: Literal["relu", "tanh", "mish", "silu", "gelu"] = key("relu", "between the layers")
    squash: bool = key(False, "the mean ends in a tanh (what SAC and TD3 go on with) or is clipped to the bounds (PPO)")
    log_std_init: float = key(
        0.0,
        "log standard deviation before anything is learned, which does not depend on the observation: where cloning "
        "starts its fit (Adam moves it by a learning rate an update), and with what a fresh PPO explores; SAC has one "
        "of its own, TD3 none",
        least=-20,
        most=20,
    )
    action_normalization: Literal["min_max", "none"] = "min_max"
    temperature: float = 0.0

    def check(self) -> None:
        if self.temperature and self.squash:
            raise WrongValue(f"temperature={self.temperature}: expected 0, a policy with squash=true acts by its mean")
        if self.mean_of > 1:
            raise WrongValue(f"mean_of={self.mean_of}: expected 1, a Gaussian policy's mean is its temperature=0")


class GaussianPolicy(Policy):
    """See the module's docstring; the arguments are those of `Policy`.

    Attributes:
        network: features (B, F) -> mean before the squashing (B, Ta * Da).
        log_std: (Ta * Da,) what behaviour cloning fits and PPO explores with; of no use to SAC and TD3.
    """

    Config: ClassVar[type[ChunkConfig]] = GaussianPolicyConfig
    config: GaussianPolicyConfig

    def __init__(
        self,
        config: GaussianPolicyConfig,
        obs_spec: ObsSpec | int,
        action_dim: int,
        obs_keys: list[str],
        task: str = "",
    ):
        super().__init__(config, obs_spec, action_dim, obs_keys, task)
        self.encoder = Encoder(self.obs_spec, config.n_obs_steps, config.encoder)
        sizes = [self.features, *config.hidden_sizes]
        layers: list[nn.Module] = []
        for n_in, n_out in pairwise(sizes):
            layers += [nn.Linear(n_in, n_out), self.activation()]
        chunk_dim = config.n_action_steps * action_dim
        self.network = nn.Sequential(*layers, nn.Linear(sizes[-1], chunk_dim))
        self.log_std = nn.Parameter(torch.full((chunk_dim,), config.log_std_init))

    def activation(self) -> nn.Module:
        """A new activation, as between the layers."""
        return ACTIVATIONS[self.config.activation]()

    def mean(self, obs: Tensor) -> Tensor:
        """Prepared observations (B, To * W) -> normalised mean chunks (B, Ta * Da)."""
        mean = self.network(self.encoder(obs))
        return mean.tanh() if self.config.squash else mean

    def loss(self, obs: Tensor, actions: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Squared error of the mean, plus the likelihood of its residuals as a loss of the standard deviation alone.

        With a standard deviation that does not depend on the observation, both together have the minimum of the
        negative log-likelihood where the network fits every dimension. But the error of an action dimension is not
        weighed by its 1 / std^2: the joint likelihood's gradient is dominated by whatever is predicted best, and grows
        without bound where the demonstrations are exact. The squared error has the scale of the diffusion policy's
        loss, so the same learning rate fits both.
        """
        x = self.action_normalizer.normalize(actions).flatten(1)  # (B, Ta * Da)
        residual = (self.mean(self.normalized_obs(obs)) - x).float()
        # L = E (mu - x)^2 + E [(mu - x)^2 / (2 std^2) + log std], the second term without gradient to mu
        fit = residual.detach().square() * (-2 * self.log_std).exp() / 2 + self.log_std
        return residual.square().mean() + fit.mean()

    def noise_shape(self, candidates: int = 1) -> tuple[int, ...]:
        """(Ta * Da,), or (0,) where it acts by its mean, which needs none"""
        return (len(self.log_std) if self.config.temperature else 0,)

    def predict(
        self, obs: Tensor, noise: Tensor | None, generator: torch.Generator | None = None, candidates: int = 1
    ) -> Tensor:
        mean, tau = self.mean(obs), self.config.temperature
        if not tau:
            return self.chunks(mean)
        if noise is None:
            noise = torch.randn(mean.shape, device=mean.device, generator=generator)
        else:
            noise = noise.T
        return self.chunks(mean + tau * self.log_std.exp() * noise)

    def chunks(self, x: Tensor) -> Tensor:
        """Flat (..., Ta * Da) -> (..., Ta, Da)"""
        return x.unflatten(-1, (self.config.n_action_steps, self.action_dim))

    def check_candidates(self, candidates: int) -> None:
        super().check_candidates(candidates)
        if candidates > 1:
            raise BurnishError(f"candidates={candidates}: expected 1, a Gaussian policy acts by its mean")

    def within_bounds(self, x: Tensor) -> Tensor:
        return x.clamp(-1, 1)
