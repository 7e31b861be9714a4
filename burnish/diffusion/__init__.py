"""Noise schedules, forward processes (diffusion, flow), and the samplers that run them backwards."""

from burnish.diffusion.process import FlowProcess, NoiseProcess, Process, flow_times
from burnish.diffusion.sampler import Chain, Sampler, Spacing, StdHead, make_sampler
from burnish.diffusion.schedules import SCHEDULES, betas
from burnish.diffusion.transition import Gaussian, StdBounds, gaussian_log_prob

__all__ = [
    "SCHEDULES",
    "Chain",
    "FlowProcess",
    "Gaussian",
    "NoiseProcess",
    "Process",
    "Sampler",
    "Spacing",
    "StdBounds",
    "StdHead",
    "betas",
    "flow_times",
    "gaussian_log_prob",
    "make_sampler",
]
