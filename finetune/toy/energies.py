"""Two-dimensional energies on the box [-1, 1]^2 whose densities exp(Q / lambda) / Z can also be sampled exactly.

Each is given by log p up to a constant that makes it at most 0, so that uniform proposals, accepted with probability
exp(log p), are exact samples (von Neumann's rejection).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

MODES = ((-0.55, -0.5), (0.5, -0.6), (0.6, 0.3), (0.0, 0.55), (-0.6, 0.2))
MODE_WEIGHTS = (0.4, 0.25, 0.2, 0.1, 0.05)  # unequal: what a sampler that stays in its mode cannot know
MODE_STD = 0.12
MOON_RADIUS = 0.5
MOON_STD = 0.08


@dataclass(frozen=True)
class Energy:
    """A density on the box.

    Attributes:
        name: of the table's and the figure's row.
        log_density: points (..., 2) of the box -> log p (...), unnormalised, at most 0.
    """

    name: str
    log_density: Callable[[Tensor], Tensor]

    def sample(self, n: int, generator: torch.Generator) -> Tensor:
        """Exact samples (n, 2)."""
        accepted = torch.empty(0, 2)
        while len(accepted) < n:
            proposals = uniform(16 * n, generator)
            chosen = torch.rand(len(proposals), generator=generator) < self.log_density(proposals).exp()
            accepted = torch.cat([accepted, proposals[chosen]])
        return accepted[:n]


def uniform(n: int, generator: torch.Generator) -> Tensor:
    """Uniform points of the box (n, 2)."""
    return 2 * torch.rand(n, 2, generator=generator) - 1


def mixture_log_density(a: Tensor) -> Tensor:
    """log sum_i w_i exp(-|a - c_i|^2 / (2 s^2)): five round Gaussians."""
    centres, weights = torch.tensor(MODES), torch.tensor(MODE_WEIGHTS)
    exponents = -(a[..., None, :] - centres).square().sum(-1) / (2 * MODE_STD**2)  # (..., 5)
    return (exponents + weights.log()).logsumexp(-1)


def moons_log_density(a: Tensor) -> Tensor:
    """log 1/2 sum_j exp(-d_j(a)^2 / (2 s^2)), d_j the distance to one of two interleaved half circles."""
    upper = arc_distance(a - torch.tensor([-MOON_RADIUS / 2, -MOON_RADIUS / 4]))
    lower = arc_distance(torch.tensor([MOON_RADIUS / 2, MOON_RADIUS / 4]) - a)
    exponents = -torch.stack([upper, lower], -1).square() / (2 * MOON_STD**2)
    return exponents.logsumexp(-1) - math.log(2)


def arc_distance(a: Tensor) -> Tensor:
    """Distance of points (..., 2) to the upper half circle of radius `MOON_RADIUS` about the origin -> (...)."""
    x, y = a.unbind(-1)
    to_circle = (torch.hypot(x, y) - MOON_RADIUS).abs()
    to_ends = torch.hypot(x.abs() - MOON_RADIUS, y)
    return torch.where(y > 0, to_circle, to_ends)


ENERGIES = (Energy("Gaussian mixture", mixture_log_density), Energy("two moons", moons_log_density))


def langevin(energy: Energy, start: Tensor, steps: int, step_size: float, generator: torch.Generator) -> Tensor:
    """Metropolis-adjusted Langevin dynamics (Roberts & Tweedie 1996), one chain for each of `start` (n, 2) -> (n, 2).

    Proposals outside the box, where the density is 0, are refused.
    """
    a = start
    log_p, gradient = _log_density_and_gradient(energy, a)
    for _ in range(steps):
        # b = a + tau grad log p(a) + sqrt(2 tau) xi
        b = a + step_size * gradient + math.sqrt(2 * step_size) * torch.randn(a.shape, generator=generator)
        log_p_b, gradient_b = _log_density_and_gradient(energy, b)
        # log p(b) q(a | b) / (p(a) q(b | a)), q(b | a) = N(b; a + tau grad log p(a), 2 tau)
        forth = (b - a - step_size * gradient).square().sum(-1)
        back = (a - b - step_size * gradient_b).square().sum(-1)
        log_ratio = log_p_b - log_p + (forth - back) / (4 * step_size)
        inside = b.abs().amax(-1) <= 1
        accepted = inside & (torch.rand(len(a), generator=generator).log() < log_ratio)
        a = torch.where(accepted[:, None], b, a)
        log_p = torch.where(accepted, log_p_b, log_p)
        gradient = torch.where(accepted[:, None], gradient_b, gradient)
    return a


def _log_density_and_gradient(energy: Energy, a: Tensor) -> tuple[Tensor, Tensor]:
    a = a.detach().requires_grad_()
    with torch.enable_grad():
        log_p = energy.log_density(a)
        (gradient,) = torch.autograd.grad(log_p.sum(), a)
    return log_p.detach(), gradient
