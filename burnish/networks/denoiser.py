"""Which denoiser, and how large."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from burnish.errors import BurnishError
from burnish.networks.activation import ACTIVATIONS
from burnish.networks.mlp import MLPDenoiser
from burnish.networks.unet import UNetDenoiser

Denoiser = MLPDenoiser | UNetDenoiser


@dataclass(frozen=True)
class DenoiserConfig:
    """The denoising network.

    Attributes:
        name: "mlp" or "unet".
        hidden_dim, n_layers, residual, activation: of the MLP (DPPO: 512, 3, residual, relu; RSM: 256, 3, plain, mish).
        time_dim: size of the timestep embedding.
        channels, kernel_size, n_groups: of the U-Net, one channel count a resolution.
    """

    name: Literal["mlp", "unet"] = "mlp"
    hidden_dim: int = 256
    n_layers: int = 3
    residual: bool = False
    activation: str = "mish"
    time_dim: int = 32
    channels: list[int] = field(default_factory=lambda: [64, 128, 256])
    kernel_size: int = 5
    n_groups: int = 8

    def __post_init__(self) -> None:
        if self.name not in ("mlp", "unet"):
            raise BurnishError(f"policy.denoiser.name={self.name}: expected mlp or unet")
        if self.activation not in ACTIVATIONS:
            raise BurnishError(
                f"policy.denoiser.activation={self.activation}: expected one of {', '.join(ACTIVATIONS)}"
            )
        if self.time_dim < 2 or self.time_dim % 2:
            raise BurnishError(f"policy.denoiser.time_dim={self.time_dim}: expected an even number of at least 2")
        if self.hidden_dim < 1 or self.n_layers < 1:
            raise BurnishError("policy.denoiser: hidden_dim and n_layers must be at least 1")
        if self.name == "unet":
            if self.n_groups < 1:
                raise BurnishError(f"policy.denoiser.n_groups={self.n_groups}: expected at least 1")
            if not self.channels or any(c < 1 or c % self.n_groups for c in self.channels):
                raise BurnishError(
                    f"policy.denoiser.channels={self.channels}: expected one or more positive multiples of "
                    f"n_groups={self.n_groups}"
                )
            if self.kernel_size < 1 or self.kernel_size % 2 == 0:
                raise BurnishError(f"policy.denoiser.kernel_size={self.kernel_size}: expected a positive odd number")


def build_denoiser(
    config: DenoiserConfig, *, obs_dim: int, horizon: int, action_dim: int, denoising_steps: int
) -> Denoiser:
    """The network for observations (B, To * Do) = (B, obs_dim) and chunks (B, Tp, Da) = (B, horizon, action_dim)."""
    if config.name == "unet":
        return UNetDenoiser(
            obs_dim,
            action_dim,
            denoising_steps,
            channels=config.channels,
            kernel_size=config.kernel_size,
            n_groups=config.n_groups,
            time_dim=config.time_dim,
        )
    return MLPDenoiser(
        obs_dim,
        horizon,
        action_dim,
        denoising_steps,
        hidden_dim=config.hidden_dim,
        n_layers=config.n_layers,
        residual=config.residual,
        activation=config.activation,
        time_dim=config.time_dim,
    )
