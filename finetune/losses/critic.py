"""Losses of critics: least squares of expectiles, quantile regression, and DSAC-T's of a Gaussian return.

Symbols: n members, B batch, M quantiles.
"""

from __future__ import annotations

import torch
from torch import Tensor


def expectile_loss(u: Tensor, expectile: float) -> Tensor:
    """Asymmetric least squares of the errors `u` = target - prediction, of any shape: a scalar.

    Its minimiser is the target's expectile: the mean at 1/2, towards the maximum at 1 (Kostrikov et al. 2021, arXiv
    2110.06169, eq. 4).
    """
    # L_2^tau(u) = |tau - 1(u < 0)| u^2
    return (torch.where(u > 0, expectile, 1 - expectile) * u.square()).mean()


def quantile_loss(quantiles: Tensor, targets: Tensor, kappa: float) -> Tensor:
    """Quantile regression with Huber's error (Dabney et al. 2018, arXiv 1710.10044, eq. 9 and 10): a scalar.

    Args:
        quantiles: (..., B, M) at tau_i = (i + 1/2) / M.
        targets: (B, M') draws of the target's distribution, e.g. its quantiles; without gradient.
        kappa: errors below it count by their square; 0: none do, and the minimisers are the quantiles themselves.

    Returns:
        Mean over all quantiles and targets, where the paper has the sum over i: the step size is then that of a Q.
    """
    M = quantiles.shape[-1]
    tau = (torch.arange(M, device=quantiles.device) + 0.5) / M
    u = targets[..., None, :] - quantiles[..., None]  # (..., B, M, M')
    size = u.abs()
    if kappa:
        # L_kappa(u) = u^2 / 2 within kappa, kappa (|u| - kappa / 2) beyond; over kappa
        size = torch.where(size <= kappa, 0.5 * u.square() / kappa, size - 0.5 * kappa)
    # rho_tau(u) = |tau - 1(u < 0)| L_kappa(u)
    return ((tau[:, None] - (u < 0).float()).abs() * size).mean()


def gaussian_loss(mean: Tensor, std: Tensor, y: Tensor, y_sampled: Tensor, typical_std: Tensor) -> Tensor:
    """DSAC-T's (Duan et al. 2023, arXiv 2310.05858, sec. IV): a scalar, whose gradient alone means something.

    Args:
        mean, std: of the return (n, B).
        y: target of the means (B,), y_sampled: of the standard deviations, with a sampled return (B,).
        typical_std: b, the running mean of `std` (n,); targets are clipped at 3 b, and b^2 sets the gradient's scale.
    """
    b = typical_std[:, None]
    m, s = mean.detach(), std.detach()
    # y_b = m + clip(y_s - m, -3 b, 3 b)
    bounded = m + torch.minimum(torch.maximum(y_sampled - m, -3 * b), 3 * b)
    # L = -(b^2 + 0.1) E[ m (y - m_) / (s_^2 + 0.1) + s ((m_ - y_b)^2 - s_^2) / (s_^3 + 0.1) ]
    of_mean = mean * (y - m) / (s.square() + 0.1)
    of_std = std * ((m - bounded).square() - s.square()) / (s.pow(3) + 0.1)
    return -((b.square() + 0.1) * (of_mean + of_std)).mean(1).sum()
