"""The clipped surrogate over (sample, denoising step) pairs: PPO in the two-level MDP of DPPO.

Symbols: B samples, M pairs of a minibatch, K' (`K_ft`) fine-tuned steps, i = 0 (noisiest) .. K'-1, Tp predicted and Ta
executed action steps, Da dimensions. Paper: Ren et al. 2024, arXiv 2409.00588.
"""

from __future__ import annotations

import math
from typing import Literal, NamedTuple

import torch
from torch import Tensor

LOG_PROB_RANGE = (-5.0, 2.0)  # of one element, in the released code's likelihood
RATIO_TOLERANCE = 1e-4  # of |ratio - 1| before any update: rounding comes to 1e-5 after some hundred updates

Reduction = Literal["mean", "joint"]


def chunk_log_prob(log_prob: Tensor, n_action_steps: int, reduction: Reduction = "mean") -> Tensor:
    """Log-probability of a denoising step from its elements (..., Tp, Da), over the executed steps -> (...).

    "mean" is the released code's heuristic (elements clamped, then averaged); "joint" is the likelihood of the
    Gaussian (clamping nothing, summing), which wants a `clip_coef` larger by about Ta * Da.
    """
    executed = log_prob[..., :n_action_steps, :]
    if reduction == "joint":
        return executed.sum(dim=(-1, -2))
    return executed.clamp(*LOG_PROB_RANGE).mean(dim=(-1, -2))


def normalize_advantages(advantages: Tensor, quantiles: tuple[float, float] = (0.0, 1.0)) -> Tensor:
    """Zero mean and unit (sample) standard deviation, then clipped at two quantiles; (B,) -> (B,)."""
    normalized = (advantages - advantages.mean()) / (advantages.std() + 1e-8)  # needs B >= 2
    low, high = torch.quantile(normalized, normalized.new_tensor(quantiles))
    return normalized.clamp(low, high)


def denoising_discount(K_ft: int, gamma_denoising: float, device: torch.device | None = None) -> Tensor:
    """gamma_denoising^(K'-1-i) for every fine-tuned step -> (K',): earlier steps count for less."""
    return gamma_denoising ** torch.arange(K_ft - 1, -1, -1, dtype=torch.float32, device=device)


def clip_range(
    K_ft: int, clip_coef: float, clip_coef_base: float, clip_coef_rate: float, device: torch.device | None = None
) -> Tensor:
    """eps_i = base + (coef - base) (e^{rate i/(K'-1)} - 1) / (e^rate - 1) -> (K',); K' = 1 gives coef."""
    if K_ft == 1 or clip_coef_rate == 0:
        return torch.full((K_ft,), clip_coef, device=device)
    i = torch.arange(K_ft, dtype=torch.float32, device=device)
    growth = torch.expm1(clip_coef_rate * i / (K_ft - 1)) / math.expm1(clip_coef_rate)
    return clip_coef_base + (clip_coef - clip_coef_base) * growth


def chain_kl(log_ratio: Tensor, K_ft: int, n_elements: int, reduction: Reduction = "mean") -> Tensor:
    """KL divergence of the old policy from the new one over a chunk's K' steps, in nats -> a scalar.

    Estimated by 1/2 E (log ratio)^2 of the joint likelihoods, whatever the reduction of `log_ratio` (M,): the mean over
    `n_elements` executed numbers is that many times too small.
    """
    joint = log_ratio * n_elements if reduction == "mean" else log_ratio
    return K_ft * 0.5 * joint.square().mean()


class PolicyLoss(NamedTuple):
    loss: Tensor  # scalar
    approx_kl: Tensor  # scalar, mean of (ratio - 1) - log ratio
    clip_fraction: Tensor  # scalar
    ratio: Tensor  # (M,)


def clipped_surrogate(log_prob: Tensor, old_log_prob: Tensor, advantages: Tensor, eps: Tensor) -> PolicyLoss:
    """PPO's clipped surrogate (Schulman et al. 2017, eq. 7) over denoising steps (Ren et al. 2024), to be minimised.

    Args:
        log_prob, old_log_prob: (M,) of each (sample, denoising step) pair.
        advantages: (M,) normalised, with the denoising discount.
        eps: (M,) clip range.
    """
    log_ratio = log_prob - old_log_prob
    ratio = log_ratio.exp()
    # L = E max(-A r, -A clip(r, 1 - eps, 1 + eps))
    loss = torch.maximum(-advantages * ratio, -advantages * ratio.clamp(1 - eps, 1 + eps)).mean()
    with torch.no_grad():
        approx_kl = ((ratio - 1) - log_ratio).mean()
        clip_fraction = ((ratio - 1).abs() > eps).float().mean()
    return PolicyLoss(loss, approx_kl, clip_fraction, ratio.detach())


def check_first_ratio(ratio: Tensor, tolerance: float, stage: str) -> Tensor:
    """Before any update the likelihood ratios (M,) are 1, or something is broken and no result can be trusted -> their
    largest distance from it. Raises RuntimeError where that is more than `tolerance`."""
    error = (ratio - 1).abs().max()
    if not error <= tolerance:
        raise RuntimeError(
            f"stage={stage}: before the update the likelihood ratio differs from 1 by {float(error):.2e} (allowed: "
            f"{tolerance:.0e}): sampling and update disagree about the policy"
        )
    return error
