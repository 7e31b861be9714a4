"""Pictures: convolutions, and where in the picture each of their channels sees what it looks for.

The spatial softmax (Finn et al. 2016, arXiv 1509.06113, sec. V-A) is what Diffusion Policy and robomimic end their
picture encoders with; group normalisation, because averaged weights and batch statistics do not go together.
"""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from burnish.networks.encoders.encoder import EncoderConfig

GROUP = 8  # channels that are normalised together


class SpatialSoftmax(nn.Module):
    """(B, C, h, w) -> the expected place of each channel (B, 2 C), from -1 to 1."""

    def forward(self, x: Tensor) -> Tensor:
        h, w = x.shape[-2:]
        p = x.flatten(2).softmax(-1).view_as(x)
        rows, columns = (torch.linspace(-1, 1, n, device=x.device, dtype=x.dtype) for n in (h, w))
        # sum_ij p_ij (i, j)
        return torch.cat([(p.sum(3) * rows).sum(2), (p.sum(2) * columns).sum(2)], dim=1)


class RGBEncoder(nn.Module):
    """To pictures (B, To, H, W, C) uint8 -> features (B, F); the To are channels beside each other."""

    def __init__(self, config: EncoderConfig, shape: tuple[int, ...], n_obs_steps: int):
        super().__init__()
        sizes = [n_obs_steps * shape[-1], *config.channels]
        layers: list[nn.Module] = []
        for n_in, n_out in pairwise(sizes):
            groups = max(1, n_out // GROUP)
            layers += [nn.Conv2d(n_in, n_out, 3, stride=2, padding=1), nn.GroupNorm(groups, n_out), nn.ReLU()]
        self.layers = nn.Sequential(*layers, SpatialSoftmax(), nn.Linear(2 * sizes[-1], config.features))

    def forward(self, pictures: Tensor) -> Tensor:
        x = pictures.movedim(-1, 2).flatten(1, 2).float() / 127.5 - 1  # (B, To * C, H, W)
        return self.layers(x)
