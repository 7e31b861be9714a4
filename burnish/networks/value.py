"""State-value network V(s)."""

from __future__ import annotations

from torch import Tensor, nn

from burnish.networks.activation import Mish
from burnish.networks.mlp import trunk


class ValueNetwork(nn.Module):
    """V of features of observations (B, F) -> (B,); residual Mish MLP (DPPO's critic: 3 x 256)."""

    def __init__(self, features: int, hidden_dim: int = 256, n_layers: int = 3):
        super().__init__()
        self.encoder: nn.Module = nn.Identity()  # from observations to features
        self.layers = nn.Sequential(
            nn.Linear(features, hidden_dim),
            trunk(hidden_dim, n_layers, True, Mish),
            nn.Linear(hidden_dim, 1),
        )

    def forward(self, obs: Tensor) -> Tensor:
        return self.layers(self.encoder(obs)).squeeze(-1)
