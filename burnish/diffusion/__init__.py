"""Noise schedules, forward processes (diffusion, flow), and the Gaussian transitions of DDPM, DDIM and Euler."""

from burnish.diffusion.process import FlowProcess, NoiseProcess, Process, flow_times
from burnish.diffusion.sampler import Chain, Sampler, StdBounds, gaussian_log_prob
from burnish.diffusion.schedules import SCHEDULES, betas

__all__ = [
    "SCHEDULES",
    "Chain",
    "FlowProcess",
    "NoiseProcess",
    "Process",
    "Sampler",
    "StdBounds",
    "betas",
    "flow_times",
    "gaussian_log_prob",
]
