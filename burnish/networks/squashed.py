"""A Gaussian that a tanh bounds, and its learned entropy temperature: SAC's actor (Haarnoja et al. 2018, 1801.01290).

Symbols: B batch, F features of an observation, G numbers that it is given beside them, D dimensions.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from burnish.config import Checked, key
from burnish.networks.activation import ACTIVATIONS

LOG_STD_RANGE = (-20.0, 2.0)  # SAC's
SLACK = 1e-6  # Stable-Baselines3's, in log(1 - a^2 + slack)


@dataclass(frozen=True)
class SquashedConfig(Checked):
    """The network of a squashed Gaussian."""

    hidden_dim: int = key(256, "of each layer", least=1)
    n_layers: int = key(3, "hidden layers", least=1)
    activation: str = key("tanh", "between them", options=ACTIVATIONS)
    layer_norm: bool = key(True, "normalise each hidden layer before its activation")


class SquashedGaussian(nn.Module):
    """a = tanh(mu(s, given) + sigma(s, given) z), with z ~ N(0, I): in (-1, 1)^D.

    Its last layer begins as zero: a mean of 0, and a standard deviation of 1 before the tanh, or as `log_std` says.

    Args:
        features: F. given: G, of the numbers beside an observation. dim: D.
    """

    def __init__(self, config: SquashedConfig, features: int, dim: int, given: int = 0, log_std: float = 0.0):
        super().__init__()
        self.encoder: nn.Module = nn.Identity()  # from observations to features
        layers: list[nn.Module] = []
        width = features + given
        for _ in range(config.n_layers):
            layers += [nn.Linear(width, config.hidden_dim)]
            layers += [nn.LayerNorm(config.hidden_dim)] if config.layer_norm else []
            layers += [ACTIVATIONS[config.activation]()]
            width = config.hidden_dim
        self.trunk = nn.Sequential(*layers)
        self.out = nn.Linear(width, 2 * dim)
        nn.init.zeros_(self.out.weight)
        with torch.no_grad():
            self.out.bias.copy_(torch.tensor([0.0] * dim + [log_std] * dim))

    def forward(self, obs: Tensor, given: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Prepared observations (B, ...), and numbers (B, G) or (B, N, G) -> mean and log standard deviation before
        the tanh, (B, D) or (B, N, D)."""
        h = self.encoder(obs)
        if given is not None:
            h = torch.cat([h if given.dim() == 2 else h[:, None].expand(*given.shape[:2], -1), given], -1)
        mean, log_std = self.out(self.trunk(h)).chunk(2, -1)
        return mean, log_std.clamp(*LOG_STD_RANGE)


def squash(mean: Tensor, log_std: Tensor, z: Tensor, slack: float = 0.0) -> tuple[Tensor, Tensor]:
    """a = tanh(mean + std z) for standard normal `z` (..., D), and log pi(a) (...) (Haarnoja et al. 2018, eq. 21).

    Args:
        slack: 0 is exact; released code that computes 1 - a^2 adds some, to be finite where a is rounded to 1.
    """
    u = mean + log_std.exp() * z
    log_normal = -0.5 * z.square() - log_std - 0.5 * math.log(2 * math.pi)
    # log(1 - tanh(u)^2) = 2 (log 2 - u - softplus(-2 u))
    log_slope = 2 * (math.log(2) - u - F.softplus(-2 * u))
    if slack:
        log_slope = (log_slope.exp() + slack).log()
    # log pi(a) = sum_d log N(u_d; mu_d, sigma_d) - log(1 - tanh(u_d)^2)
    return u.tanh(), (log_normal - log_slope).sum(-1)


class EntropyTemperature(nn.Module):
    """alpha, the weight of the entropy, learned so that the entropy is `target` (arXiv 1812.05905, sec. 5).

    Args:
        alpha: at first. target: entropy in nats, of the squashed Gaussian over all D dimensions.
    """

    def __init__(self, alpha: float, target: float):
        super().__init__()
        self.log_alpha = nn.Parameter(torch.tensor(math.log(alpha)))
        self.target = target

    @property
    def alpha(self) -> Tensor:
        """Without gradient."""
        return self.log_alpha.detach().exp()

    def loss(self, log_prob: Tensor, by_log: bool = True) -> Tensor:
        """Of actions with these log-probabilities, of any shape: a scalar.

        Args:
            by_log: of log alpha, as most released code has it; else of alpha, as the paper.
        """
        # L = alpha (H - H_target), H = -E log pi(a | s), or log alpha in its place
        weight = self.log_alpha if by_log else self.log_alpha.exp()
        return weight * (-log_prob.detach().mean() - self.target)
