"""Conditional 1-D U-Net over the time axis of an action chunk (Janner et al. 2022; Chi et al. 2023).

Timestep and observations enter every block by FiLM: a scale and a shift per channel (Perez et al. 2018).
"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from burnish.networks.embedding import TimeEmbedding
from burnish.networks.encoded import Encoded


def mish(x: Tensor) -> Tensor:
    """F.mish of rows (B, n); without gradients as that of n's next multiple of 8, where a row's bits do not depend on
    how many there are: torch computes what is left over of whole vectors by other instructions (see
    `burnish.evaluation.evaluate.act`)."""
    if torch.is_grad_enabled():
        return F.mish(x)
    n = x.shape[1]
    return F.mish(F.pad(x, (0, -n % 8)))[:, :n]


class ConvBlock(nn.Module):
    """Convolution, group normalisation, Mish; length unchanged."""

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int, n_groups: int):
        super().__init__()
        self.conv = nn.Conv1d(in_channels, out_channels, kernel_size, padding=kernel_size // 2)
        self.norm = nn.GroupNorm(n_groups, out_channels)

    def forward(self, x: Tensor) -> Tensor:
        return F.mish(self.norm(self.conv(x)))


class FiLMBlock(nn.Module):
    """Two convolutions with a residual connection; FiLM between them."""

    def __init__(self, in_channels: int, out_channels: int, cond_dim: int, kernel_size: int, n_groups: int):
        super().__init__()
        self.first = ConvBlock(in_channels, out_channels, kernel_size, n_groups)
        self.second = ConvBlock(out_channels, out_channels, kernel_size, n_groups)
        self.film = nn.Linear(cond_dim, 2 * out_channels)
        same = in_channels == out_channels
        self.skip: nn.Module = nn.Identity() if same else nn.Conv1d(in_channels, out_channels, 1)

    def forward(self, x: Tensor, cond: Tensor) -> Tensor:
        scale, shift = self.film(mish(cond))[..., None].chunk(2, dim=1)  # (B, C, 1) each
        return self.second(self.first(x) * (1 + scale) + shift) + self.skip(x)


class UNetDenoiser(nn.Module):
    """Network output for noisy chunks (B, Tp, Da) at timesteps k, given features of observations (B, F).

    Lengths that the strides do not divide are padded by repeating the last step and cut again at the end.
    """

    LEAST_ROWS = 16  # fewer round otherwise: torch's convolutions of width 1 on a CPU, its products with fewer than 4

    def __init__(
        self,
        features: int,
        action_dim: int,
        denoising_steps: int,
        *,
        channels: list[int],
        kernel_size: int,
        n_groups: int,
        time_dim: int,
    ):
        super().__init__()
        self.encoder: nn.Module = nn.Identity()  # from observations to features
        self.time = TimeEmbedding(denoising_steps, time_dim)
        self.stride = 2 ** (len(channels) - 1)
        cond_dim = time_dim + features

        def block(in_channels: int, out_channels: int) -> FiLMBlock:
            return FiLMBlock(in_channels, out_channels, cond_dim, kernel_size, n_groups)

        self.down = nn.ModuleList(block(i, o) for i, o in zip([action_dim, *channels], channels))
        self.downsample = nn.ModuleList(nn.Conv1d(c, c, 3, stride=2, padding=1) for c in channels[:-1])
        self.middle = block(channels[-1], channels[-1])
        self.upsample = nn.ModuleList(nn.ConvTranspose1d(o, i, 4, stride=2, padding=1) for i, o in pairwise(channels))
        self.up = nn.ModuleList(block(2 * c, c) for c in channels)
        self.out = nn.Conv1d(channels[0], action_dim, 1)

    def encode(self, obs: Tensor) -> Encoded:
        """Observations (B, ...) -> their features (B, F): FiLM mixes them with the timestep in every block."""
        return Encoded(self.encoder(obs), self.time())

    def forward(self, x: Tensor, k: Tensor, encoded: Encoded) -> Tensor:
        """Args: x (..., Tp, Da), k and encoded.obs (..., F) broadcast against its leading dimensions."""
        leading, length = x.shape[:-2], x.shape[-2]
        time = F.embedding(k, encoded.times)
        cond = torch.cat([time.expand(*leading, -1), encoded.obs.expand(*leading, -1)], dim=-1).flatten(0, -2)
        h = x.flatten(0, -3).transpose(1, 2)
        h = F.pad(h, (0, -length % self.stride), mode="replicate")  # (B, Da, Tp padded)
        skips = []
        for level, down in enumerate(self.down):
            h = down(h, cond)
            skips.append(h)
            if level < len(self.downsample):
                h = self.downsample[level](h)
        h = self.middle(h, cond)
        for level in reversed(range(len(self.up))):
            h = self.up[level](torch.cat([h, skips[level]], dim=1), cond)
            if level:
                h = self.upsample[level - 1](h)
        return self.out(h)[..., :length].transpose(1, 2).unflatten(0, leading)
