"""State-value network V(s)."""

from __future__ import annotations

from torch import Tensor, nn

from burnish.networks.activation import Mish
from burnish.networks.mlp import trunk


class ValueNetwork(nn.Module):
    """V of observations (B, To * Do) -> (B,); residual Mish MLP (DPPO's critic: 3 x 256)."""

    def __init__(self, obs_dim: int, hidden_dim: int = 256, n_layers: int = 3):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(obs_dim, hidden_dim),
            trunk(hidden_dim, n_layers, True, Mish),
            nn.Linear(hidden_dim, 1),
        )

    def forward(self, obs: Tensor) -> Tensor:
        return self.layers(obs).squeeze(-1)
