"""Noise schedules: the variances beta_k of the forward process, k = 0 (least noise) .. K-1.

`cosine`, `linear` and `sigmoid` come from diffusers; DPPO's and RSM's cosine schedules are the same numbers.
"""

from __future__ import annotations

import torch
from torch import Tensor

from burnish.errors import BurnishError

SCHEDULES = ("cosine", "linear", "sigmoid", "vp")
_DIFFUSERS_NAMES = {"cosine": "squaredcos_cap_v2", "linear": "linear", "sigmoid": "sigmoid"}


def betas(
    schedule: str,
    denoising_steps: int,
    *,
    scale: float = 1.0,
    beta_start: float = 1e-4,
    beta_end: float = 0.999,
) -> Tensor:
    """beta_k, float64 (K,), k = 0 .. K-1.

    Args:
        schedule: one of `SCHEDULES`. `linear` and `sigmoid` run from `beta_start` to `beta_end`; `vp` is the
            discretised variance-preserving SDE (Xiao et al. 2022; beta_min 0.1, beta_max 10 as in Diffusion-QL).
        scale: factor on every beta (RSM's released runs: linear with 0.8).

    Raises:
        BurnishError: unknown schedule, or a beta outside (0, 1).
    """
    if schedule not in SCHEDULES:
        raise BurnishError(f"schedule={schedule}: expected one of {', '.join(SCHEDULES)}")
    if schedule == "vp":
        beta_min, beta_max = 0.1, 10.0
        t = torch.arange(1, denoising_steps + 1, dtype=torch.float64)
        # beta_t = 1 - exp(-beta_min / K - (beta_max - beta_min) (2 t - 1) / (2 K^2))
        growth = (beta_max - beta_min) * (2 * t - 1) / (2 * denoising_steps**2)
        result = 1 - torch.exp(-(beta_min / denoising_steps + growth))
    else:
        from diffusers.schedulers.scheduling_ddpm import DDPMScheduler

        scheduler = DDPMScheduler(
            num_train_timesteps=denoising_steps,
            beta_schedule=_DIFFUSERS_NAMES[schedule],
            beta_start=beta_start,
            beta_end=beta_end,
        )
        result = scheduler.betas.double()
    result = result * scale
    if not bool(((result > 0) & (result < 1)).all()):
        raise BurnishError(
            f"schedule={schedule} with beta_start={beta_start}, beta_end={beta_end}, scale={scale}: "
            f"betas must lie in (0, 1), got {result.min():.4g} to {result.max():.4g}"
        )
    return result
