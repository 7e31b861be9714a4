"""A Gaussian squashed into the bounds of actions, a = tanh(u), and its likelihood (SAC, arXiv 1801.01290)."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from burnish.diffusion import gaussian_log_prob


def squashed_sample(mean: Tensor, log_std: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
    """Draws of tanh(N(mean, std^2)) and their log-likelihoods.

    Args:
        mean, log_std: of u, before the squashing, broadcast against the noise.
        noise: standard normal (..., d)

    Returns:
        a (..., d) and log pi(a) (...), the sum over the dimensions.
    """
    u = mean + log_std.exp() * noise
    # log pi(a) = sum_i log N(u_i; mean_i, std_i^2) - log(1 - tanh(u_i)^2)   (eq. 21)
    # the last, log(1 - tanh(u)^2) = 2 (log 2 - u - softplus(-2 u)), is finite where tanh rounds to 1
    log_prob = gaussian_log_prob(u, mean, log_std.exp()) - 2 * (math.log(2) - u - F.softplus(-2 * u))
    return torch.tanh(u), log_prob.sum(-1)
