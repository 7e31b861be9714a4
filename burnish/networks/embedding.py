"""Sinusoidal time embedding."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from burnish.networks.activation import Mish


def sinusoidal_table(denoising_steps: int, dim: int) -> Tensor:
    """Embedding of every timestep k = 0 .. K-1 -> (K, dim); Vaswani et al. 2017, as diffusion models use it."""
    half = dim // 2
    frequencies = torch.exp(-math.log(10_000) * torch.arange(half, dtype=torch.float64) / max(half - 1, 1))
    angles = torch.arange(denoising_steps, dtype=torch.float64)[:, None] * frequencies  # (K, dim / 2)
    return torch.cat([angles.sin(), angles.cos()], dim=1).float()


class TimeEmbedding(nn.Module):
    """Features of every timestep k = 0 .. K-1 -> (K, dim): sinusoids, then a two-layer MLP."""

    table: Tensor

    def __init__(self, denoising_steps: int, dim: int):
        super().__init__()
        self.register_buffer("table", sinusoidal_table(denoising_steps, dim), persistent=False)
        self.mlp = nn.Sequential(nn.Linear(dim, 2 * dim), Mish(), nn.Linear(2 * dim, dim))

    def forward(self) -> Tensor:
        return self.mlp(self.table)
