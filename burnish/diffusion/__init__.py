"""Noise schedules, the forward process, and the Gaussian transitions of DDPM and DDIM."""

from burnish.diffusion.process import NoiseProcess
from burnish.diffusion.sampler import Chain, Sampler, StdBounds, gaussian_log_prob
from burnish.diffusion.schedules import SCHEDULES, betas

__all__ = ["SCHEDULES", "Chain", "NoiseProcess", "Sampler", "StdBounds", "betas", "gaussian_log_prob"]
