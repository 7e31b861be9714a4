"""Networks: denoisers (residual MLP, 1-D U-Net), the value and Q networks, time embedding."""

from burnish.networks.base import Denoiser
from burnish.networks.denoiser import DenoiserConfig, DenoiserKeys, build_denoiser
from burnish.networks.encoded import Encoded
from burnish.networks.q import CriticConfig, GaussianCriticConfig, QEnsemble, QuantileCriticConfig
from burnish.networks.value import ValueNetwork

__all__ = [
    "CriticConfig",
    "Denoiser",
    "DenoiserConfig",
    "DenoiserKeys",
    "Encoded",
    "GaussianCriticConfig",
    "QEnsemble",
    "QuantileCriticConfig",
    "ValueNetwork",
    "build_denoiser",
]
