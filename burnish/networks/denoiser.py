"""Which denoiser, and how large."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from burnish.config import Checked, WrongValue, key
from burnish.networks.activation import ACTIVATIONS
from burnish.networks.base import MOST_LAYERS, MOST_WIDTH, Denoiser
from burnish.networks.mlp import MLPDenoiser
from burnish.networks.unet import UNetDenoiser
from burnish.registry import find

DENOISERS = {"mlp": "burnish.networks.mlp:MLPDenoiser", "unet": "burnish.networks.unet:UNetDenoiser"}
"""Name -> module:class. Others are registered by plugins, or named as module:Class; they have keys of their own."""


@dataclass(frozen=True)
class DenoiserKeys(Checked):
    """Base of the denoisers' keys: `name` chooses the denoiser."""

    name: str = key(doc="mlp, unet, or module:Class of your own")

    @classmethod
    def choose(cls, mapping: Mapping[str, Any]) -> type[DenoiserKeys]:
        """The keys of the denoiser that `mapping` names. Raises BurnishError where there is none of that name."""
        name = str(mapping.get("name", DenoiserConfig.name))
        return DenoiserConfig if name in DENOISERS else denoiser_class(name).Config


@dataclass(frozen=True)
class DenoiserConfig(DenoiserKeys):
    """Those of the package's own networks."""

    name: str = key(
        "mlp",
        "mlp (a multilayer perceptron over the flat chunk), unet (Diffusion Policy's 1-D U-Net over its steps), or "
        "module:Class of your own",
        options=DENOISERS,
    )
    hidden_dim: int = key(256, "of the MLP (DPPO: 512, RSM: 256)", least=1, most=MOST_WIDTH)
    n_layers: int = key(3, "of the MLP", least=1, most=MOST_LAYERS)
    residual: bool = key(False, "whether the MLP has residual blocks (DPPO: true, RSM: false)")
    activation: str = key("mish", "of the MLP (DPPO: relu, RSM: mish)", options=ACTIVATIONS)
    time_dim: int = key(32, "size of the timestep's embedding, even", least=2, most=4096)
    channels: list[int] = key(
        [64, 128, 256], "of the U-Net, one count a resolution, multiples of n_groups", least=1, most=MOST_WIDTH
    )
    kernel_size: int = key(5, "of the U-Net, odd", least=1, most=MOST_WIDTH)
    n_groups: int = key(8, "of the U-Net's group normalisation", least=1, most=MOST_WIDTH)

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


def denoiser_class(name: str) -> Any:
    """The denoiser called `name`.

    Raises:
        NotInstalled: it is module:Class, and there is no such module.
        BurnishError: there is none, or it is no denoiser.
    """
    return find("denoiser", name, DENOISERS, "denoiser.name", base=Denoiser, keys=DenoiserKeys)


def build_denoiser(
    config: DenoiserKeys, *, features: int, horizon: int, action_dim: int, denoising_steps: int
) -> Denoiser:
    """The network for features of observations (B, F) and chunks (B, Tp, Da) = (B, horizon, action_dim)."""
    if not isinstance(config, DenoiserConfig):
        make = denoiser_class(config.name)
        return make(config, features=features, horizon=horizon, action_dim=action_dim, denoising_steps=denoising_steps)
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
