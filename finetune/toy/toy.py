"""The toy experiment of RSM (Ma et al. 2025, arXiv 2502.00361): a density sampled from its energy.

A bandit without observations, with actions in [-1, 1]^2 and a known Q = lambda log p. The policy is trained by the
stages' own weights, loss and reverse draws:

- DPMD: n mirror steps, pi_{i+1} proportional to pi_i exp(Q / (n lambda)), from the uniform pi_0, so that pi_n is p.
  Each trains on a pool of draws from pi_i, resampled by weight: from the box, in later steps from the policy itself.
  With n = 1 this is the loss alone; with n = 4, what sampler and training miss in a step enters the next one's pi_i,
  and each step has a quarter of the gradient steps.
- SDAC: a_k are noised uniform points, and M reverse draws for each are weighed by exp(Q / lambda): "truncated" to the
  box, or "clipped" to it for Q alone as in the released code.

- QSM, QVPO, DACER and DIPO (`burnish.finetune.toy.rivals`), of which QSM alone means to sample p.

Beside them stand the same network trained by DDPM on exact samples of p, and Metropolis-adjusted Langevin dynamics from
uniform starts. All are compared with fresh exact samples; what other exact samples get is the floor.

Symbols: P draws in a pool, B noised points in a batch, M draws for each; a point is a chunk with (Tp, Da) = (1, 2).
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from burnish.evaluation.intervals import CONFIDENCE
from burnish.finetune.algorithms.sdac import reverse_noise
from burnish.finetune.losses.rsm import RSMConfig, Weighting, weighted_denoising_loss
from burnish.finetune.toy.distances import mmd, sliced_wasserstein
from burnish.finetune.toy.energies import ENERGIES, Energy, langevin, uniform
from burnish.finetune.toy.learner import TEMPERATURE, Budget, Learner
from burnish.finetune.toy.rivals import dacer, dipo, qsm, qvpo
from burnish.policies.diffusion import encode_for
from burnish.runs.progress import Progress

FLOOR = "true samples"
DISTANCES: dict[str, Callable[[Tensor, Tensor], float]] = {"mmd": mmd, "sliced_wasserstein": sliced_wasserstein}


def ddpm(energy: Energy, learner: Learner) -> Tensor:
    """Samples (n, 2) of a policy that was trained on exact samples."""
    budget = learner.budget
    points = energy.sample(budget.pool, learner.generator)
    learner.fit_pool(points, points.new_full((1, budget.pool), 1 / budget.pool), budget.steps)
    return learner.sample(budget.samples)


def walk(energy: Energy, learner: Learner) -> Tensor:
    """Samples (n, 2) of Langevin dynamics: nothing is learned."""
    budget, generator = learner.budget, learner.generator
    start = uniform(budget.samples, generator)
    return langevin(energy, start, budget.langevin_steps, budget.langevin_step_size, generator)


def dpmd(energy: Energy, learner: Learner, mirror_steps: int) -> Tensor:
    """Samples (n, 2) of a policy that was trained by mirror descent."""
    budget = learner.budget
    weighting = Weighting(RSMConfig("fixed", temperature=mirror_steps * TEMPERATURE), learner.policy.device)
    points = uniform(budget.pool, learner.generator)
    for step in range(mirror_steps):
        if step:
            points = learner.sample(budget.pool)
        # pi_{i+1} proportional to pi_i exp(Q / (n lambda))
        weights = weighting(TEMPERATURE * energy.log_density(points)[None], step).weights
        learner.fit_pool(points, weights, math.ceil(budget.steps / mirror_steps))
    return learner.sample(budget.samples)


def sdac(energy: Energy, learner: Learner, reverse: Literal["truncated", "clipped"]) -> Tensor:
    """Samples (n, 2) of a policy that was trained by the soft actor-critic's loss."""
    budget, generator = learner.budget, learner.generator
    process, network = learner.policy.process, learner.policy.denoiser
    weighting = Weighting(RSMConfig("fixed", temperature=TEMPERATURE), learner.policy.device)

    def loss() -> Tensor:
        clean = uniform(budget.batch, generator).view(-1, 1, 1, 2)
        k = torch.randint(process.denoising_steps, (budget.batch, 1), generator=generator)
        x = process.add_noise(clean, torch.randn(clean.shape, generator=generator), k)  # (B, 1, 1, 2)
        signal, sigma = process.levels(k, x)
        eps = reverse_noise(x, signal, sigma, budget.draws, 1.0, reverse, generator)
        x0 = (x - sigma * eps) / signal  # (B, M, 1, 2)
        q = TEMPERATURE * energy.log_density(x0.clamp(-1, 1).squeeze(2))
        weights = weighting(q, 0).weights
        output = network(x, k, encode_for(network, torch.zeros(1, 1), x))
        return weighted_denoising_loss(output, process.target(x0, eps, k), weights)

    learner.fit(loss, budget.steps)
    return learner.sample(budget.samples)


METHODS: dict[str, Callable[[Energy, Learner], Tensor]] = {
    "DDPM": ddpm,
    "Langevin": walk,
    "DPMD": partial(dpmd, mirror_steps=1),
    "DPMD, 4 steps": partial(dpmd, mirror_steps=4),
    "SDAC truncated": partial(sdac, reverse="truncated"),
    "SDAC clipped": partial(sdac, reverse="clipped"),
    "QSM": qsm,
    "QVPO": qvpo,
    "DACER": dacer,
    "DIPO": dipo,
}


def run(budget: Budget, seeds: int, folder: Path) -> dict[str, Any]:
    """Sample both energies in every way; write toy.json and draw toy.png -> the distances."""
    measured = measure(budget, seeds)
    distances = {
        energy: {
            method: {name: summary(values) for name, values in by_name.items()} for method, by_name in rows.items()
        }
        for energy, rows in measured.distances.items()
    }
    result = {
        "confidence": CONFIDENCE,
        "seeds": seeds,
        "temperature": TEMPERATURE,
        "budget": asdict(budget),
        "distances": distances,
    }
    (folder / "toy.json").write_text(json.dumps(result, indent=2) + "\n")
    draw(measured.points, distances, folder / "toy.png")
    return distances


class Measured(NamedTuple):
    distances: dict[str, dict[str, dict[str, list[float]]]]  # energy, method, distance -> one for each seed
    points: dict[str, dict[str, Tensor]]  # energy, method -> (n, 2), of seed 0


def measure(budget: Budget, seeds: int) -> Measured:
    """Sample every energy by every method with each seed; the floor, exact samples, is the first method."""
    measured = Measured({}, {})
    with Progress(len(ENERGIES) * seeds * len(METHODS), "toy") as progress:
        for energy in ENERGIES:
            rows = measured.distances[energy.name] = {m: {d: [] for d in DISTANCES} for m in (FLOOR, *METHODS)}
            points = measured.points[energy.name] = {}
            for seed in range(seeds):
                generator = torch.Generator().manual_seed(seed)
                truth = energy.sample(budget.samples, generator)
                for method in (FLOOR, *METHODS):
                    if method == FLOOR:
                        x = energy.sample(budget.samples, generator)
                    else:
                        x = METHODS[method](energy, Learner(budget, generator))
                        progress.update()
                    points.setdefault(method, x)
                    for name, distance in DISTANCES.items():
                        rows[method][name].append(distance(x, truth))
    return measured


def summary(values: Sequence[float]) -> dict[str, Any]:
    """Mean over seeds and its Student t interval, not below 0 (None of a single seed)."""
    from scipy.stats import t

    n, mean = len(values), float(np.mean(values))
    low = high = None
    if n > 1:
        half = float(t.ppf((1 + CONFIDENCE) / 2, n - 1) * np.std(values, ddof=1) / math.sqrt(n))
        low, high = max(mean - half, 0.0), mean + half
    return {"mean": mean, "low": low, "high": high, "values": list(values)}


def table(distances: dict[str, Any]) -> str:
    """Markdown: one row for each energy and method."""
    lines = [
        f"| {'energy':<16} | {'sampled by':<14} | {'MMD':<21} | {'sliced Wasserstein-1':<21} |",
        "|---|---|---|---|",
    ]
    for energy, rows in distances.items():
        for method, row in rows.items():
            cells = " | ".join(f"{_cell(row[name]):<21}" for name in DISTANCES)
            lines.append(f"| {energy:<16} | {method:<14} | {cells} |")
    return "\n".join(lines)


def _cell(summary: dict[str, Any]) -> str:
    interval = "" if summary["low"] is None else f" [{summary['low']:.3f}, {summary['high']:.3f}]"
    return f"{summary['mean']:.3f}{interval}"


def draw(points: dict[str, dict[str, Tensor]], distances: dict[str, Any], path: Path) -> None:
    """One row for each energy, one column for each method: seed 0's points (PNG)."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    columns = (FLOOR, *METHODS)
    figure = Figure(figsize=(1.9 * len(columns), 2.15 * len(points)), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(len(points), len(columns), squeeze=False)
    for panel, method in zip(panels[0], columns):
        panel.set_title(method, fontsize=9)
    for row, (energy, by_method) in zip(panels, points.items()):
        for panel, method in zip(row, columns):
            x, y = by_method[method].T.numpy()
            panel.scatter(x, y, s=0.6, alpha=0.4, linewidths=0)
            panel.set(xlim=(-1.03, 1.03), ylim=(-1.03, 1.03), xticks=[], yticks=[], aspect="equal")
            panel.set_xlabel(f"MMD {distances[energy][method]['mmd']['mean']:.3f}", fontsize=8)
        row[0].set_ylabel(energy, fontsize=9)
    figure.savefig(path, dpi=110)
