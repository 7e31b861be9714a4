"""Clouds of points: a network for each point, and the maximum over them (PointNet, arXiv 1612.00593; as in DP3,
arXiv 2403.03954, without a transformation of the points)."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING

from torch import Tensor, nn

if TYPE_CHECKING:
    from burnish.networks.encoders.encoder import EncoderConfig


class PointsEncoder(nn.Module):
    """To clouds of P points (B, To, P, d) float32 -> features (B, F), whatever the points' order."""

    def __init__(self, config: EncoderConfig, shape: tuple[int, ...], n_obs_steps: int):
        super().__init__()
        layers: list[nn.Module] = []
        for n_in, n_out in pairwise([shape[-1], *config.point_dims]):
            layers += [nn.Linear(n_in, n_out), nn.LayerNorm(n_out), nn.ReLU()]
        self.each = nn.Sequential(*layers)
        self.all = nn.Linear(n_obs_steps * config.point_dims[-1], config.features)

    def forward(self, points: Tensor) -> Tensor:
        return self.all(self.each(points).amax(2).flatten(1))
