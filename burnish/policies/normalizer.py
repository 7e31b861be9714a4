"""Statistics of observations and actions, as buffers of the policy that needs them."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from burnish.errors import BurnishError

NORMALIZATIONS = ("min_max", "mean_std", "none")
CONSTANT_RANGE = 1e-4  # a dimension that varies less than this is constant: it is shifted, not scaled


class Normalizer(nn.Module):
    """normalised = (raw - offset) / scale, a dimension at a time.

    `min_max` maps the data's range to [-1, 1], `mean_std` to zero mean and unit variance. Constant dimensions
    map to 0 with scale 1, so that a small later change stays small.
    """

    offset: Tensor  # (D,)
    scale: Tensor  # (D,)

    def __init__(self, dim: int):
        super().__init__()
        self.register_buffer("offset", torch.zeros(dim))
        self.register_buffer("scale", torch.ones(dim))

    @torch.no_grad()
    def fit(self, data: Tensor, mode: str) -> None:
        """Take the statistics of `data` (N, D).

        Raises:
            BurnishError: unknown mode.
        """
        if mode not in NORMALIZATIONS:
            raise BurnishError(f"normalization={mode}: expected one of {', '.join(NORMALIZATIONS)}")
        if mode == "none":
            return
        low, high = data.amin(0), data.amax(0)
        if mode == "min_max":
            offset, scale = (high + low) / 2, (high - low) / 2
        else:
            offset, scale = data.mean(0), data.std(0, correction=0)
        self.offset.copy_(offset)
        self.scale.copy_(torch.where(high - low > CONSTANT_RANGE, scale, torch.ones_like(scale)))

    def normalize(self, raw: Tensor) -> Tensor:
        """(..., D) -> (..., D)"""
        return (raw - self.offset) / self.scale

    def unnormalize(self, normalized: Tensor) -> Tensor:
        """(..., D) -> (..., D)"""
        return normalized * self.scale + self.offset
