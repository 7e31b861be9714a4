"""Critics: how Q is learned, one file each."""

from __future__ import annotations

from burnish.finetune.critics.base import Critic, Learning
from burnish.finetune.critics.expectile import ExpectileCritic, ExpectileCriticConfig
from burnish.finetune.critics.gaussian import GaussianCritic
from burnish.finetune.critics.q import QCritic
from burnish.finetune.critics.quantile import QuantileCritic
from burnish.networks import CriticConfig, GaussianCriticConfig, QuantileCriticConfig

AnyCriticConfig = CriticConfig | ExpectileCriticConfig | QuantileCriticConfig | GaussianCriticConfig
CRITICS: dict[str, type[Critic]] = {
    "q": QCritic,
    "expectile": ExpectileCritic,
    "quantile": QuantileCritic,
    "gaussian": GaussianCritic,
}
"""Kind -> class. A new one: a file, a line here, and its config in `AnyCriticConfig`."""

__all__ = [
    "CRITICS",
    "AnyCriticConfig",
    "Critic",
    "ExpectileCritic",
    "ExpectileCriticConfig",
    "GaussianCritic",
    "Learning",
    "QCritic",
    "QuantileCritic",
]
