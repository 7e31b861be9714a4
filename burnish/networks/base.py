"""What every denoiser is."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

from torch import Tensor, nn

from burnish.config import Checked
from burnish.networks.encoded import Encoded

MOST_WIDTH, MOST_LAYERS = 2**16, 1000
"""Of a network, so that a slip of the pen, or a file, does not take the machine."""


class Denoiser(nn.Module, ABC):
    """Network output for noisy chunks (..., Tp, Da) at timesteps k, given observations.

    One of your own names its keys in `Config`, a `burnish.networks.DenoiserKeys`, and is called as
    `Class(config, features=F, horizon=Tp, action_dim=Da, denoising_steps=K)`.

    Attributes:
        encoder: from observations to features (B, F); the policy puts it in.
    """

    Config: ClassVar[type[Checked]]
    LEAST_ROWS: ClassVar[int] = (
        16  # with fewer a row's bits may depend on their number (burnish.evaluation.evaluate.act)
    )

    def __init__(self) -> None:
        super().__init__()
        self.encoder: nn.Module = nn.Identity()

    def encode(self, obs: Tensor) -> Encoded:
        """What does not depend on the noisy chunk, of prepared observations (B, To * W)."""
        return self.condition(self.encoder(obs))

    @abstractmethod
    def condition(self, features: Tensor) -> Encoded:
        """What does not depend on the noisy chunk: the part of features (B, F), and of all timesteps."""

    @abstractmethod
    def forward(self, x: Tensor, k: Tensor, encoded: Encoded) -> Tensor:
        """Shaped like `x`.

        Args:
            x: noisy chunks (B, Tp, Da), or (B, N, Tp, Da) of N for each observation.
            k: timesteps, of `x`'s leading dimensions or one for all.
            encoded: its `obs` (B, ...) or (B, 1, ...) is broadcast against `x`'s leading dimensions.
        """
