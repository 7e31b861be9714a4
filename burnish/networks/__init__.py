"""Networks: denoisers (residual MLP, 1-D U-Net), the value network, time embedding."""

from burnish.networks.denoiser import DenoiserConfig, build_denoiser
from burnish.networks.value import ValueNetwork

__all__ = ["DenoiserConfig", "ValueNetwork", "build_denoiser"]
