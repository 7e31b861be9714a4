"""Residual MLP, as a denoiser of flattened action chunks."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from burnish.networks.activation import ACTIVATIONS
from burnish.networks.compiled.in_parts import in_parts
from burnish.networks.compiled.mlp import CompiledMLP, can_compile, half_wanted, up_to_date
from burnish.networks.embedding import TimeEmbedding
from burnish.networks.encoded import Encoded


class ResidualBlock(nn.Module):
    """x + W2 act(W1 act(x)), pre-activation (DPPO's two-layer block without normalisation)."""

    def __init__(self, dim: int, activation: type[nn.Module]):
        super().__init__()
        self.layers = nn.Sequential(activation(), nn.Linear(dim, dim), activation(), nn.Linear(dim, dim))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.layers(x)


def trunk(dim: int, n_layers: int, residual: bool, activation: type[nn.Module]) -> nn.Sequential:
    """`n_layers` hidden layers of width `dim` behind a first linear layer, up to the last activation."""
    if residual:
        blocks: list[nn.Module] = [ResidualBlock(dim, activation) for _ in range(max(1, (n_layers - 1) // 2))]
        return nn.Sequential(*blocks, activation())
    layers: list[nn.Module] = [activation()]
    for _ in range(n_layers - 1):
        layers += [nn.Linear(dim, dim), activation()]
    return nn.Sequential(*layers)


class MLPDenoiser(nn.Module):
    """Network output for noisy chunks (B, Tp, Da) at timesteps k, given features of observations (B, F).

    The first layer is written as a sum, W_x x + W_s s + W_t emb(k): the observation's part is the same for
    every denoising step (and every candidate), so `encode` computes it once, and that of all timesteps. Where there
    is no gradient, whole chains run compiled (`burnish.networks.compiled`).
    """

    LEAST_ROWS = 4  # fewer round otherwise: torch's products on a CPU (see `burnish.evaluation.evaluate.act`)

    def __init__(
        self,
        features: int,
        horizon: int,
        action_dim: int,
        denoising_steps: int,
        *,
        hidden_dim: int,
        n_layers: int,
        residual: bool,
        activation: str,
        time_dim: int,
    ):
        super().__init__()
        self.encoder: nn.Module = nn.Identity()  # from observations to features
        self.activation, self.residual = activation, residual
        self.time = TimeEmbedding(denoising_steps, time_dim)
        self.from_time = nn.Linear(time_dim, hidden_dim)
        self.from_obs = nn.Linear(features, hidden_dim, bias=False)
        self.from_action = nn.Linear(horizon * action_dim, hidden_dim, bias=False)
        self.trunk = trunk(hidden_dim, n_layers, residual, ACTIVATIONS[activation])
        self.out = nn.Linear(hidden_dim, horizon * action_dim)

    def encode(self, obs: Tensor) -> Encoded:
        """Observations (B, ...) -> their part of the first layer (B, hidden), and the timesteps' (K, hidden)."""
        features = self.encoder(obs)
        half = half_wanted()
        if not can_compile(self.from_obs.weight, self.out.in_features, self.activation, half):
            return Encoded(self.from_obs(features), self._times())
        with torch.autocast("cpu", enabled=False):
            return Encoded(
                self.from_obs(features), *up_to_date(self, lambda: (self._times(), self._compiled(half)), half)
            )

    def forward(self, x: Tensor, k: Tensor, encoded: Encoded) -> Tensor:
        """Args: x (..., Tp, Da), k and encoded.obs (..., hidden) broadcast against its leading dimensions."""
        # `embedding`, because indexing with a scalar tensor would wait for the device
        time = F.embedding(k, encoded.times)
        hidden = time.shape[-1]
        given = (encoded.obs + time).broadcast_to(*x.shape[:-2], hidden)
        return in_parts(self._denoise, x, given, width=x.shape[1:-2].numel() * hidden)

    def _denoise(self, x: Tensor, given: Tensor) -> Tensor:
        return self.out(self.trunk(self.from_action(x.flatten(-2)) + given)).view_as(x)

    def _times(self) -> Tensor:
        return self.from_time(self.time())

    def _compiled(self, half: bool) -> CompiledMLP:
        hidden = [layer for layer in self.trunk.modules() if isinstance(layer, nn.Linear)]
        return CompiledMLP(
            self.from_action.weight.T,
            [(layer.weight.T, layer.bias) for layer in hidden],
            (self.out.weight.T, self.out.bias),
            activation=self.activation,
            residual=self.residual,
            half=half,
        )
