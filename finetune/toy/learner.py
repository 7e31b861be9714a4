"""The policy of the toy experiment, which is trained by whatever loss, and how much of everything.

Symbols: P points in a pool, B noised points in a batch, M draws for each; a point is a chunk with (Tp, Da) = (1, 2).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from burnish.finetune.losses.rsm import weighted_denoising_loss
from burnish.networks import DenoiserConfig
from burnish.policies.diffusion import DiffusionPolicy, PolicyConfig, choose

TEMPERATURE = 0.2  # lambda
HIDDEN_DIM = 64


@dataclass(frozen=True)
class Budget:
    """How much of everything.

    Attributes:
        steps: gradient steps of a training, all mirror steps together, with B = `batch` noised points each.
        learning_rate: of Adam, falling linearly to 0.
        pool: P, points that DDPM and each mirror step of DPMD draw from.
        draws: M, SDAC's reverse draws for each noised point.
        langevin_steps: of each chain, with step size `langevin_step_size`.
        samples: how many points are compared with as many exact ones.
    """

    steps: int = 2500
    batch: int = 256
    learning_rate: float = 5e-3
    pool: int = 32_768
    draws: int = 64
    langevin_steps: int = 1000
    langevin_step_size: float = 0.002
    samples: int = 4096


QUICK = Budget(steps=8, batch=32, pool=256, draws=8, langevin_steps=5, samples=128)


class Learner:
    """A diffusion policy of points of the box, K = 20 with the cosine schedule, freshly initialised."""

    def __init__(self, budget: Budget, generator: torch.Generator):
        self.budget, self.generator = budget, generator
        config = PolicyConfig(DenoiserConfig(hidden_dim=HIDDEN_DIM), horizon=1, n_action_steps=1, denoising_steps=20)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(generator.initial_seed())
            self.policy = DiffusionPolicy(config, obs_spec=1, action_dim=2, obs_keys=["none"])

    @torch.no_grad()
    def sample(self, n: int) -> Tensor:
        """Points of the policy (n, 2)."""
        noise = self.policy.draw_noise(1, n, generator=self.generator)
        return self.policy.sample(torch.zeros(1, 1), noise)[0].view(n, 2)

    def fit(self, loss: Callable[[], Tensor], steps: int) -> None:
        """`steps` steps of Adam on `loss`."""
        optimizer = torch.optim.Adam(self.policy.denoiser.parameters(), lr=self.budget.learning_rate, fused=True)
        decay = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, steps)
        for _ in range(steps):
            optimizer.zero_grad(set_to_none=True)
            loss().backward()
            optimizer.step()
            decay.step()

    def fit_pool(self, points: Tensor, weights: Tensor, steps: int) -> None:
        """Train on `points` (P, 2), resampled by `weights` (1, P), as the DPMD stage does for each of its states."""
        draws = points.view(1, -1, 1, 2)
        R = self.budget.batch

        def loss() -> Tensor:
            chosen = torch.multinomial(weights, R, replacement=True, generator=self.generator)
            output, target = self.policy.denoise_noised(
                self.policy.denoiser, torch.zeros(1, 1), choose(draws, chosen), self.generator
            )
            return weighted_denoising_loss(output, target, weights.new_full((1, R), 1 / R))

        self.fit(loss, steps)
