"""Networks: denoisers (residual MLP, 1-D U-Net), the value network, time embedding."""

from burnish.networks.denoiser import Denoiser, DenoiserConfig, build_denoiser
from burnish.networks.value import ValueNetwork

__all__ = ["Denoiser", "DenoiserConfig", "ValueNetwork", "build_denoiser"]
