"""Gaussian mixtures of full covariance, many at once, and a bound of their entropy: how wide a policy without a
likelihood is, as DACER measures it.

Symbols: B sets of points, M points in each, n components, d dimensions.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

LEAST_VARIANCE = 1e-6  # on every covariance's diagonal, as in scikit-learn: points may lie in a plane


class Mixture(NamedTuple):
    weights: Tensor  # (B, n)
    means: Tensor  # (B, n, d)
    covariances: Tensor  # (B, n, d, d)


def fit_mixture(x: Tensor, n: int, generator: torch.Generator, iterations: int = 50) -> Mixture:
    """A mixture for each set of points `x` (B, M, d), M >= n, by expectation maximisation (Dempster et al. 1977).

    It begins at points of the set as means, with the covariance of the whole set; in float64, as nearly singular
    covariances need it.
    """
    x = x.double()
    start = torch.rand(x.shape[:2], device=x.device, generator=generator).argsort(1)[:, :n]
    means = x.gather(1, start[..., None].expand(-1, -1, x.shape[2]))
    whole = _covariances(x, x.new_full((*x.shape[:2], 1), 1 / x.shape[1]), x.mean(1, keepdim=True))
    mixture = Mixture(x.new_full((len(x), n), 1 / n), means, whole.expand(-1, n, -1, -1))
    for _ in range(iterations):
        # r_mi = w_i N(x_m; mu_i, S_i) / sum_j w_j N(x_m; mu_j, S_j)
        r = _joint_log_density(x, mixture).softmax(-1)  # (B, M, n)
        total = r.sum(1).clamp(min=torch.finfo(x.dtype).tiny)  # (B, n); a component may die
        # w_i = mean_m r_mi, mu_i = sum_m r_mi x_m / sum_m r_mi, S_i likewise
        share = r / total[:, None]
        means = share.transpose(1, 2) @ x
        mixture = Mixture(total / x.shape[1], means, _covariances(x, share, means))
    return mixture


def _covariances(x: Tensor, share: Tensor, means: Tensor) -> Tensor:
    """sum_m share_mi (x_m - mu_i)(x_m - mu_i)^T; share (B, M, n) -> (B, n, d, d)."""
    away = (x[:, :, None] - means[:, None]).transpose(1, 2)  # (B, n, M, d)
    weighted = away * share.transpose(1, 2)[..., None]
    return weighted.transpose(2, 3) @ away + LEAST_VARIANCE * torch.eye(x.shape[2], dtype=x.dtype, device=x.device)


def _joint_log_density(x: Tensor, mixture: Mixture) -> Tensor:
    """log w_i N(x_m; mu_i, S_i) but for what all have -> (B, M, n)."""
    factors = torch.linalg.cholesky(mixture.covariances)  # (B, n, d, d)
    away = (x[:, :, None] - mixture.means[:, None]).permute(0, 2, 3, 1)  # (B, n, d, M)
    squared = torch.linalg.solve_triangular(factors, away, upper=False).square().sum(2)  # (B, n, M)
    log_det = 2 * factors.diagonal(dim1=-2, dim2=-1).log().sum(-1)  # (B, n)
    return (mixture.weights.log() - log_det / 2)[:, None] - squared.transpose(1, 2) / 2


def mixture_entropy(weights: Tensor, covariances: Tensor) -> Tensor:
    """An upper bound of a mixture's entropy in nats, H(w) + sum_i w_i H(N_i) (as DACER has it, arXiv 2405.15177): that
    of a point and its component together.

    Args:
        weights: (B, n). covariances: (B, n, d, d)

    Returns:
        (B,)
    """
    d = covariances.shape[-1]
    # H(N_i) = d/2 (1 + log 2 pi) + 1/2 log det S_i
    each = d / 2 * (1 + math.log(2 * math.pi)) + torch.linalg.slogdet(covariances).logabsdet / 2
    return torch.special.entr(weights).sum(-1) + (weights * each).sum(-1)
