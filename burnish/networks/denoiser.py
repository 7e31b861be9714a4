"""Which denoiser, and how large."""

from __future__ import annotations

from dataclasses import dataclass

from burnish.config import Checked, WrongValue, key
from burnish.networks.activation import ACTIVATIONS
from burnish.networks.mlp import MLPDenoiser
from burnish.networks.unet import UNetDenoiser

Denoiser = MLPDenoiser | UNetDenoiser


@dataclass(frozen=True)
class DenoiserConfig(Checked):
    """The denoising network."""

    name: str = key(
        "mlp",
        "a multilayer perceptron over the flat chunk, or Diffusion Policy's 1-D U-Net over its steps",
        options=("mlp", "unet"),
    )
    hidden_dim: int = key(256, "of the MLP (DPPO: 512, RSM: 256)", least=1)
    n_layers: int = key(3, "of the MLP", least=1)
    residual: bool = key(False, "whether the MLP has residual blocks (DPPO: true, RSM: false)")
    activation: str = key("mish", "of the MLP (DPPO: relu, RSM: mish)", options=ACTIVATIONS)
    time_dim: int = key(32, "size of the timestep's embedding, even", least=2)
    channels: list[int] = key([64, 128, 256], "of the U-Net, one count a resolution, multiples of n_groups", least=1)
    kernel_size: int = key(5, "of the U-Net, odd", least=1)
    n_groups: int = key(8, "of the U-Net's group normalisation", least=1)

    def check(self) -> None:
        if self.time_dim % 2:
            raise WrongValue(f"time_dim={self.time_dim}: expected an even number")
        if self.name == "unet":
            if not self.channels or any(count % self.n_groups for count in self.channels):
                raise WrongValue(
                    f"channels={self.channels}: expected one or more positive multiples of n_groups={self.n_groups}"
                )
            if self.kernel_size % 2 == 0:
                raise WrongValue(f"kernel_size={self.kernel_size}: expected an odd number")


def build_denoiser(
    config: DenoiserConfig, *, features: int, horizon: int, action_dim: int, denoising_steps: int
) -> Denoiser:
    """The network for features of observations (B, F) and chunks (B, Tp, Da) = (B, horizon, action_dim)."""
    if config.name == "unet":
        return UNetDenoiser(
            features,
            action_dim,
            denoising_steps,
            channels=config.channels,
            kernel_size=config.kernel_size,
            n_groups=config.n_groups,
            time_dim=config.time_dim,
        )
    return MLPDenoiser(
        features,
        horizon,
        action_dim,
        denoising_steps,
        hidden_dim=config.hidden_dim,
        n_layers=config.n_layers,
        residual=config.residual,
        activation=config.activation,
        time_dim=config.time_dim,
    )
