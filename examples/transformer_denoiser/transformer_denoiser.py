"""A transformer as the denoising network: a token for each action of the chunk, one for the observations, one for the
timestep (Chi et al. 2023, section III, without the causal mask and the cross attention)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from burnish.config import WrongValue, key
from burnish.networks import Denoiser, DenoiserKeys, Encoded
from burnish.networks.embedding import TimeEmbedding


@dataclass(frozen=True)
class TransformerConfig(DenoiserKeys):
    """Its keys: policy.denoiser.width, ..."""

    width: int = key(128, "of a token", least=2)
    n_blocks: int = key(4, "of attention and a two-layer network", least=1)
    n_heads: int = key(4, "of the attention, a divisor of width", least=1)

    def check(self) -> None:
        if self.width % self.n_heads:
            raise WrongValue(f"width={self.width}: expected a multiple of n_heads={self.n_heads}")


class Block(nn.Module):
    """Attention over the tokens, then a network on each, both residual and normalised first."""

    def __init__(self, width: int, n_heads: int):
        super().__init__()
        self.n_heads = n_heads
        self.before_attention, self.before_network = nn.LayerNorm(width), nn.LayerNorm(width)
        self.to_attention, self.from_attention = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.network = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        qkv = self.to_attention(self.before_attention(x)).unflatten(2, (3, self.n_heads, -1))  # (B, n, 3, heads, d)
        attended = F.scaled_dot_product_attention(*qkv.permute(2, 0, 3, 1, 4))  # (B, heads, n, d)
        x = x + self.from_attention(attended.transpose(1, 2).flatten(2))
        return x + self.network(self.before_network(x))


class TransformerDenoiser(Denoiser):
    """See the module's docstring."""

    Config = TransformerConfig

    def __init__(
        self, config: TransformerConfig, *, features: int, horizon: int, action_dim: int, denoising_steps: int
    ):
        super().__init__()
        width = config.width
        self.time = TimeEmbedding(denoising_steps, width)
        self.from_obs, self.from_action = nn.Linear(features, width), nn.Linear(action_dim, width)
        self.positions = nn.Parameter(0.02 * torch.randn(horizon + 2, width))
        self.blocks = nn.Sequential(*(Block(width, config.n_heads) for _ in range(config.n_blocks)))
        self.out = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, action_dim))

    def condition(self, features: Tensor) -> Encoded:
        return Encoded(self.from_obs(features), self.time())  # (B, width), (K, width)

    def forward(self, x: Tensor, k: Tensor, encoded: Encoded) -> Tensor:
        leading = x.shape[:-2]
        given = [part.expand(*leading, -1)[..., None, :] for part in (encoded.obs, F.embedding(k, encoded.times))]
        tokens = torch.cat([*given, self.from_action(x)], dim=-2) + self.positions  # (..., 2 + Tp, width)
        return self.out(self.blocks(tokens.flatten(0, -3)))[:, 2:].unflatten(0, leading)
