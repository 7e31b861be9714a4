"""Noise schedules: the variances beta_k of the forward process, k = 0 (least noise) .. K-1.

`cosine`, `linear` and `sigmoid` are diffusers' to the last bit, in float32 as there (importing it takes half as long as
importing torch, and 160 MiB); DPPO's and RSM's cosine schedules are the same numbers.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from burnish.errors import BurnishError

SCHEDULES = ("cosine", "linear", "sigmoid", "vp")


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
    if schedule == "cosine":
        result = _cosine(denoising_steps)
    elif schedule == "linear":
        result = torch.linspace(beta_start, beta_end, denoising_steps)
    elif schedule == "sigmoid":
        result = torch.sigmoid(torch.linspace(-6, 6, denoising_steps)) * (beta_end - beta_start) + beta_start
    else:
        result = _variance_preserving(denoising_steps)
    result = result.double() * scale
    if not bool(((result > 0) & (result < 1)).all()):
        raise BurnishError(
            f"schedule={schedule} with beta_start={beta_start}, beta_end={beta_end}, scale={scale}: "
            f"betas must lie in (0, 1), got {result.min():.4g} to {result.max():.4g}"
        )
    return result


def _cosine(denoising_steps: int) -> Tensor:
    """beta_k = 1 - abar((k + 1) / K) / abar(k / K), at most 0.999 (Nichol & Dhariwal 2021)."""

    def alpha_bar(t: float) -> float:
        return math.cos((t + 0.008) / 1.008 * math.pi / 2) ** 2

    ratios = [alpha_bar((k + 1) / denoising_steps) / alpha_bar(k / denoising_steps) for k in range(denoising_steps)]
    return torch.tensor([min(1 - ratio, 0.999) for ratio in ratios])


def _variance_preserving(denoising_steps: int) -> Tensor:
    """beta_t = 1 - exp(-beta_min / K - (beta_max - beta_min) (2 t - 1) / (2 K^2)), t = 1 .. K, float64."""
    beta_min, beta_max = 0.1, 10.0
    t = torch.arange(1, denoising_steps + 1, dtype=torch.float64)
    growth = (beta_max - beta_min) * (2 * t - 1) / (2 * denoising_steps**2)
    return 1 - torch.exp(-(beta_min / denoising_steps + growth))
