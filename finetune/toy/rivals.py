"""The toy experiment by the algorithms that RSM was compared with, in their stages' own equations, Q being known.

QSM's target is the score of exp(Q / lambda), as of a point without noise. The others maximise Q, and what keeps them
wide is their own: QVPO's uniform points, DACER's noise, DIPO's memory, which begins uniform.

Symbols: those of `burnish.finetune.toy.learner`.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from burnish.finetune.algorithms.dacer import DACERConfig
from burnish.finetune.algorithms.dipo import DIPOConfig, ascend
from burnish.finetune.algorithms.qsm import score_noise
from burnish.finetune.algorithms.qvpo import QVPOConfig, best_by_advantage, with_uniform
from burnish.finetune.losses.mixture import fit_mixture, mixture_entropy
from burnish.finetune.losses.rsm import weighted_denoising_loss
from burnish.finetune.toy.energies import Energy, uniform
from burnish.finetune.toy.learner import TEMPERATURE, Learner
from burnish.policies.diffusion import choose, encode_for

MEASUREMENTS = 100  # of DACER's entropy in a training


def value(energy: Energy, a: Tensor) -> Tensor:
    """Q = lambda log p of points (..., 2) -> (...)."""
    return TEMPERATURE * energy.log_density(a)


def slope(energy: Energy, a: Tensor) -> Tensor:
    """dQ/da, also outside of the box (..., 2)."""
    a = a.detach().requires_grad_()
    with torch.enable_grad():
        (gradient,) = torch.autograd.grad(value(energy, a).sum(), a)
    return gradient


def qsm(energy: Energy, learner: Learner) -> Tensor:
    """Samples (n, 2) of a policy whose predicted noise was regressed on Q's slope at noised uniform points."""
    budget, generator = learner.budget, learner.generator
    process, network = learner.policy.process, learner.policy.denoiser

    def loss() -> Tensor:
        clean = uniform(budget.batch, generator).view(-1, 1, 1, 2)
        k = torch.randint(process.denoising_steps, (budget.batch, 1), generator=generator)
        x = process.add_noise(clean, torch.randn(clean.shape, generator=generator), k)  # (B, 1, 1, 2)
        target = score_noise(slope(energy, x), process.levels(k, x)[1], TEMPERATURE)
        output = network(x, k, encode_for(network, torch.zeros(1, 1), x))
        return weighted_denoising_loss(output, target, torch.ones(budget.batch, 1))

    learner.fit(loss, budget.steps)
    return learner.sample(budget.samples)


def qvpo(energy: Energy, learner: Learner) -> Tensor:
    """Samples (n, 2) of a policy that cloned the best of its own draws, and uniform points beside them."""
    budget, generator, settings = learner.budget, learner.generator, QVPOConfig(demos=None, demo_ratio=0.0)
    M, U = budget.draws, settings.uniform_draws
    n = max(1, budget.batch // (1 + U))  # so that a batch has as many noised points as elsewhere

    def loss() -> Tensor:
        draws = learner.sample(n * M).clamp(-1, 1).view(n, M, 1, 2)
        best, advantages = best_by_advantage(value(energy, draws.squeeze(2)), 1)
        x = torch.cat([choose(draws, best), uniform(n * U, generator).view(n, U, 1, 2)], 1)
        weights = with_uniform(advantages, U, settings.entropy_coef)
        output, target = learner.policy.denoise_noised(learner.policy.denoiser, torch.zeros(n, 1), x, generator)
        return weighted_denoising_loss(output, target, weights)

    learner.fit(loss, budget.steps)
    return learner.sample(budget.samples)


def dacer(energy: Energy, learner: Learner) -> Tensor:
    """Samples (n, 2) of a policy that climbed Q through its own chain, with the noise that it acts with."""
    budget, generator, settings = learner.budget, learner.generator, DACERConfig(demos=None, demo_ratio=0.0)
    log_alpha = torch.tensor(math.log(settings.initial_alpha), requires_grad=True)
    optimizer = torch.optim.Adam([log_alpha], settings.alpha_lr)
    every, done = math.ceil(budget.steps / MEASUREMENTS), 0
    n = max(1, budget.batch // len(learner.policy.sampler))  # so that a batch has as many noised points as elsewhere

    def explored(a: Tensor) -> Tensor:
        std = settings.exploration_noise * log_alpha.detach().exp()
        return a + std * torch.randn(a.shape, generator=generator)

    def regulate() -> None:
        points = explored(learner.sample(settings.entropy_draws))[None]
        mixture = fit_mixture(points, settings.mixture_components, generator)
        optimizer.zero_grad()
        entropy = mixture_entropy(mixture.weights, mixture.covariances).mean()
        (log_alpha * (entropy - 2 * settings.target_entropy)).backward()
        optimizer.step()

    def loss() -> Tensor:
        nonlocal done
        if done % every == 0:
            regulate()
        done += 1
        noise = learner.policy.draw_noise(1, n, generator=generator)
        a = learner.policy.sample(torch.zeros(1, 1), noise)[0].view(-1, 2)
        return -value(energy, explored(a).clamp(-1, 1)).mean()

    learner.fit(loss, budget.steps)
    return explored(learner.sample(budget.samples)).clamp(-1, 1)


def dipo(energy: Energy, learner: Learner) -> Tensor:
    """Samples (n, 2) of a policy that cloned a memory of uniform points, which climbed Q from visit to visit."""
    budget, generator, settings = learner.budget, learner.generator, DIPOConfig(demos=None, demo_ratio=0.0)
    memory = uniform(budget.pool, generator)

    def loss() -> Tensor:
        rows = torch.randint(budget.pool, (budget.batch,), generator=generator)
        memory[rows] = ascend(
            memory[rows],
            lambda a: slope(energy, a),
            settings.action_steps,
            settings.action_lr,
            2 * settings.action_grad_norm,
            lambda a: a.clamp(-1, 1),
        )
        x = memory[rows].view(-1, 1, 1, 2)
        obs = torch.zeros(len(x), 1)
        output, target = learner.policy.denoise_noised(learner.policy.denoiser, obs, x, generator)
        return weighted_denoising_loss(output, target, torch.ones(len(x), 1))

    learner.fit(loss, budget.steps)
    return learner.sample(budget.samples)
