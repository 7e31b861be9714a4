"""The toy experiment: densities and their exact samples, distances, Langevin, and each loss of RSM."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import stats

from burnish.commands.cli import main
from burnish.finetune.toy.distances import BANDWIDTH, DIRECTIONS, mmd, sliced_wasserstein
from burnish.finetune.toy.energies import (
    ENERGIES,
    MODE_STD,
    MODE_WEIGHTS,
    MODES,
    MOON_RADIUS,
    Energy,
    arc_distance,
    langevin,
    uniform,
)
from burnish.finetune.toy.learner import Budget, Learner
from burnish.finetune.toy.toy import METHODS, summary


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("energy", ENERGIES, ids=lambda energy: energy.name)
def test_exact_samples_follow_the_density(energy: Energy) -> None:
    n, cells, fine = 20_000, 20, 25
    centres = (torch.arange(cells * fine) + 0.5) * 2 / (cells * fine) - 1
    density = energy.log_density(torch.cartesian_prod(centres, centres)).exp().double()
    assert density.max() <= 1 + 1e-6
    mass = density.view(cells, fine, cells, fine).sum((1, 3)).numpy()
    expected = n * mass / mass.sum()
    x = energy.sample(n, generator()).numpy()
    counts = np.histogram2d(x[:, 0], x[:, 1], bins=cells, range=[[-1, 1], [-1, 1]])[0]
    often = expected >= 5
    observed = [*counts[often], counts[~often].sum()]
    assert stats.chisquare(observed, [*expected[often], expected[~often].sum()]).pvalue > 1e-3


def test_mixture_against_scipy() -> None:
    a = np.array([[0.1, -0.4], [0.6, 0.3], [-0.9, 0.9]])
    parts = [stats.multivariate_normal(c, MODE_STD**2).pdf(a) * w for c, w in zip(MODES, MODE_WEIGHTS)]
    expected = np.log(sum(parts) * 2 * math.pi * MODE_STD**2)
    np.testing.assert_allclose(ENERGIES[0].log_density(torch.tensor(a).float()), expected, rtol=1e-4)


def test_arc_distance_by_hand() -> None:
    points = torch.tensor([[0.0, 2 * MOON_RADIUS], [0.0, 0.0], [MOON_RADIUS + 0.3, -0.4], [-MOON_RADIUS, 0.0]])
    expected = torch.tensor([MOON_RADIUS, MOON_RADIUS, 0.5, 0.0])
    torch.testing.assert_close(arc_distance(points), expected)


def test_langevin_keeps_the_density_and_the_box() -> None:
    """Started from exact samples it stays there, which holds for a right acceptance only."""
    for energy in ENERGIES:
        start, truth = energy.sample(2000, generator(1)), energy.sample(2000, generator(2))
        x = langevin(energy, start, 100, 0.004, generator(3))
        assert (x != start).any(1).float().mean() > 0.99 and x.abs().max() <= 1
        assert sliced_wasserstein(x, truth) < 0.03  # of uniform points: 0.2
    flat = Energy("flat", lambda a: 0 * a.sum(-1))
    x = langevin(flat, uniform(4000, generator()), 50, 0.05, generator(1))
    assert stats.kstest(x.flatten().numpy(), stats.uniform(-1, 2).cdf).pvalue > 1e-3


def test_mmd_by_hand() -> None:
    x, y = torch.tensor([[0.0, 0.0]]), torch.tensor([[0.1, 0.0], [0.0, 0.2]])

    def k(squared: float) -> float:
        return math.exp(-squared / (2 * BANDWIDTH**2))

    expected = 1 + (2 + 2 * k(0.05)) / 4 - 2 * (k(0.01) + k(0.04)) / 2
    assert mmd(x, y) == pytest.approx(math.sqrt(expected), rel=1e-5)
    assert mmd(y, y.flip(0)) == pytest.approx(0, abs=1e-6)


def test_sliced_wasserstein_against_scipy() -> None:
    x, y = torch.randn(50, 2, generator=generator()), torch.randn(50, 2, generator=generator(1)) * 2 + 1
    angles = np.arange(DIRECTIONS) * np.pi / DIRECTIONS
    directions = np.stack([np.cos(angles), np.sin(angles)], 1)
    expected = np.mean([stats.wasserstein_distance(x.numpy() @ u, y.numpy() @ u) for u in directions])
    assert sliced_wasserstein(x, y) == pytest.approx(expected, rel=1e-4)
    # a shift by c: mean |c . u| = |c| 2 / pi
    assert sliced_wasserstein(x, x + torch.tensor([3.0, 4.0])) == pytest.approx(10 / math.pi, rel=1e-3)
    with pytest.raises(ValueError, match="equally many"):
        sliced_wasserstein(x, y[:10])


@pytest.mark.parametrize("method", ["DPMD", "SDAC truncated"])
def test_a_short_training_from_the_energy_alone_comes_close(method: str) -> None:
    """After 500 steps even DDPM on exact samples is not within the bound; after 1000 all are 3.5 times closer."""
    budget = Budget(steps=1000, pool=8192, draws=32, samples=2000)
    energy = ENERGIES[0]
    truth = energy.sample(budget.samples, generator(1))
    x = METHODS[method](energy, Learner(budget, generator(2)))
    far = uniform(budget.samples, generator(3))
    for distance in (mmd, sliced_wasserstein):
        assert distance(x, truth) < distance(far, truth) / 2


@pytest.mark.parametrize("method", ["QSM", "QVPO", "DACER", "DIPO"])
def test_rivals_of_rsm_climb_q(method: str) -> None:
    """On the moons a short training ends far above uniform points, and within the box."""
    budget = Budget(steps=150, batch=64, pool=1024, draws=16, samples=1000)
    energy = ENERGIES[1]
    x = METHODS[method](energy, Learner(budget, generator(2)))
    far = uniform(budget.samples, generator(3))
    assert x.shape == far.shape and x.abs().max() <= 1 + 1e-6
    assert energy.log_density(x).mean() > energy.log_density(far).mean() / 3


def test_summary_is_a_t_interval() -> None:
    result = summary([1.0, 2.0, 3.0])
    half = 4.302653 / math.sqrt(3)  # t_{0.975, 2} s / sqrt(n), s = 1; t from a printed table
    assert result["mean"] == 2 and result["low"] == 0 and result["high"] == pytest.approx(2 + half, rel=1e-6)
    assert summary([1.0])["low"] is None


def test_the_command_writes_its_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["toy", "--quick", "--seeds", "2", "--steps", "4", "--dir", str(tmp_path / "toy")]) == 0
    out = capsys.readouterr().out
    result = json.loads((tmp_path / "toy" / "toy.json").read_text())
    assert set(result["distances"]) == {"Gaussian mixture", "two moons"} and result["budget"]["steps"] == 4
    for rows in result["distances"].values():
        assert list(rows) == ["true samples", *METHODS]
        for method, row in rows.items():
            assert method in out
            assert all(len(row[name]["values"]) == 2 for name in ("mmd", "sliced_wasserstein"))
            assert row["mmd"]["low"] <= row["mmd"]["mean"] <= row["mmd"]["high"]
    assert (tmp_path / "toy" / "toy.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(("option", "words"), [(["--seeds", "0"], "--seeds 0"), (["--dir", "{}/file/x"], "--dir")])
def test_mistakes(option: list[str], words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").touch()
    assert main(["toy", "--quick", *(word.format(tmp_path) for word in option)]) == 2
    assert words in capsys.readouterr().err
