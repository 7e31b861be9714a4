"""SDAC: its reverse draws, where noisy chunks come from, and that exp(Q / lambda) is learned."""

import math

import densities
import numpy as np
import pytest
import torch
from bandit import DA, TA, make_policy, make_stage, play
from densities import TEMPERATURE, batch_of, density, histogram, log_target, sample, total_variation, train, values
from scipy import stats

from burnish.diffusion import NoiseProcess, betas
from burnish.finetune.algorithms import sdac
from burnish.finetune.algorithms.sdac import reverse_noise
from burnish.finetune.drawing import Draws
from burnish.finetune.losses.rsm import RSMConfig
from burnish.finetune.storage.replay import Transitions
from burnish.networks.compiled import mlp as compiled_mlp

COSINE = NoiseProcess(betas("cosine", 20))


@pytest.mark.parametrize("k", [0, 3, 10, 16, 19])
@pytest.mark.parametrize(("x0", "eps"), [(0.0, 0.0), (0.4, -1.0), (1.0, 3.5), (-1.0, -3.5), (1.0, -2.0)])
def test_truncated_draws_are_truncated_normal(k, x0, eps):
    signal, sigma = float(COSINE.signal[k]), float(COSINE.noise[k])
    x = torch.full((1, 1, 1, 1), signal * x0 + sigma * eps)
    levels = torch.tensor(signal).view(1, 1, 1, 1), torch.tensor(sigma).view(1, 1, 1, 1)
    draws = reverse_noise(x, *levels, 20_000, 1.0, "truncated", torch.Generator().manual_seed(k))
    clean = (x - levels[1] * draws) / levels[0]
    assert float(clean.abs().max()) <= 1 + 1e-6 + 1e-6 / signal
    low, high = (float(x) - signal) / sigma, (float(x) + signal) / sigma
    result = stats.kstest(draws.flatten().double().numpy(), stats.truncnorm(low, high).cdf)
    assert result.pvalue > 1e-3, result


@pytest.mark.parametrize("bound", [1.0, 0.5])
def test_truncated_draws_of_each_element_have_their_own_bounds(bound):
    generator = torch.Generator().manual_seed(0)
    x0 = bound * (2 * torch.rand(8, 1, 3, 2, generator=generator) - 1)
    k = torch.randint(20, (8, 1), generator=generator)
    x = COSINE.add_noise(x0, torch.randn(x0.shape, generator=generator), k)
    signal, sigma = COSINE.levels(k, x)
    draws = reverse_noise(x, signal, sigma, 500, bound, "truncated", generator)
    assert draws.shape == (8, 500, 3, 2)
    assert float(((x - sigma * draws).abs() - signal * bound).max()) <= 1e-5
    low, high = ((x + sign * signal * bound) / sigma for sign in (-1, 1))
    mean = stats.truncnorm.mean(low.double().numpy(), high.double().numpy())
    np.testing.assert_allclose(draws.mean(1, keepdim=True).numpy(), mean, atol=0.25)  # 5 / sqrt(500)


@pytest.mark.parametrize("lowest", [True, False])
def test_extreme_uniform_numbers_give_possible_draws(monkeypatch, lowest):
    """torch.rand gives 0 once in 2^24 numbers; the far corner of the action box is not where that draw belongs."""
    u = 0.0 if lowest else 1 - 2**-24
    monkeypatch.setattr(sdac.torch, "rand", lambda *args, **kwargs: torch.full(*args, u))
    signal, sigma = COSINE.signal[:1].view(1, 1, 1, 1), COSINE.noise[:1].view(1, 1, 1, 1)
    for x in (-0.1, 0.1):
        eps = reverse_noise(torch.full((1, 1, 1, 1), x), signal, sigma, 1, 1.0, "truncated", torch.Generator())
        assert float(eps.abs()) < 7


@pytest.mark.parametrize("x", [1.6, -1.6])
def test_a_noisy_chunk_out_of_reach_comes_from_the_near_bound(x):
    """As after demonstrations beyond the range that the policy was normalised by."""
    signal, sigma = COSINE.signal[:1].view(1, 1, 1, 1), COSINE.noise[:1].view(1, 1, 1, 1)
    noisy = torch.full((1, 1, 1, 1), x)
    eps = reverse_noise(noisy, signal, sigma, 100, 1.0, "truncated", torch.Generator().manual_seed(0))
    assert float(((noisy - sigma * eps) / signal - math.copysign(1, x)).abs().max()) < 0.2


def test_clipped_draws_are_standard_normal():
    x = torch.full((1, 1, 1, 1), 0.9)
    draws = reverse_noise(x, torch.tensor(0.5), torch.tensor(0.8), 20_000, 1.0, "clipped", torch.Generator())
    assert draws.shape == (1, 20_000, 1, 1)
    assert stats.kstest(draws.flatten().double().numpy(), "norm").pvalue > 1e-3


@pytest.mark.parametrize("noisy_from", ["uniform", "replay"])
def test_sdac_learns_exp_q(monkeypatch, noisy_from):
    """Whatever density the noisy chunks come from: here uniform, and clipped Gaussian around the lesser mode."""
    torch.manual_seed(0)
    policy = densities.make_policy()
    monkeypatch.setattr(policy, "values", values)
    rsm = RSMConfig(weights="fixed", temperature=TEMPERATURE)
    stage = densities.make_stage("sdac", policy, rsm=rsm, prior="flat", noisy_from=noisy_from, draws=32)
    target = density(log_target)
    assert total_variation(sample(policy, stage.actor), target) > 0.3
    uniform = np.random.default_rng(0).uniform(-1, 1, 20_000)
    assert total_variation(uniform, target) > 0.3

    def loss():
        chunk = (0.5 + 0.6 * torch.randn(256, 1)).clamp(-1, 1)
        batch = batch_of(256, chunk)
        return stage.actor_loss(batch, Draws(batch.next_obs, torch.zeros(256, 1, 1, 1), *[torch.zeros(1, 256, 1)] * 2))[
            0
        ]

    train(stage.actor.parameters(), 700, 3e-3, loss)
    actions = sample(policy, stage.actor)
    assert total_variation(actions, target) < 0.15
    assert np.mean(np.abs(actions) >= 0.999) < 0.02


@pytest.mark.parametrize("noisy_from", ["replay", "uniform"])
@pytest.mark.parametrize("compiled", [True, False])
def test_sdac_draws_nothing_it_does_not_use(pretrained_weights, noisy_from, compiled, monkeypatch):
    if not compiled:
        monkeypatch.setattr(compiled_mlp, "_library", lambda: None)
    settings = {"noisy_from": noisy_from, "draw_at": "current", "critic_warmup_updates": 0}
    stage = make_stage("sdac", pretrained_weights, **settings)
    play(stage, np.random.default_rng(0), 2, learn=False)
    drawn, draw = [], stage._draw
    monkeypatch.setattr(stage, "_draw", lambda obs, n: drawn.append(n) or draw(obs, n))
    assert np.isfinite(float(stage._gradient_step()["actor_loss"]))
    assert drawn == [stage.config.target_candidates, 0]


@pytest.mark.parametrize("source", ["policy", "perturbed", "replay", "uniform"])
@pytest.mark.parametrize("draws", [{"prior": "flat"}, {"prior": "flat", "reverse": "clipped"}, {"prior": "policy"}])
def test_every_kind_of_sdac_runs_and_stays_finite(pretrained_weights, source, draws):
    stage = make_stage("sdac", pretrained_weights, noisy_from=source, critic_warmup_updates=0, draws=8, **draws)
    play(stage, np.random.default_rng(0), 2, learn=False)
    for _ in range(4):
        metrics = stage._gradient_step()
    assert all(bool(torch.isfinite(value)) for value in metrics.values())
    assert all(bool(torch.isfinite(p).all()) for p in stage.actor.parameters())


def test_noisy_chunks_come_from_where_they_shall(pretrained_weights):
    batch = Transitions(*(torch.randn(5, width) for width in (2, TA * DA)), *torch.randn(2, 5), torch.randn(5, 2))
    draws = 0.1 * torch.randn(5, 4, TA, DA)
    q = torch.zeros(5, 4).index_fill_(1, torch.tensor([2]), 1.0)
    chunks = {}
    for source in ("policy", "perturbed", "replay", "uniform"):
        stage = make_stage("sdac", pretrained_weights, noisy_from=source)
        obs, chunks[source] = stage._clean_chunks(batch, Draws(batch.next_obs, draws, q[None], q[None]))
        assert torch.equal(obs, batch.obs if source == "replay" else batch.next_obs)
        assert chunks[source].shape == (5, 1, TA, DA)
    assert torch.equal(chunks["policy"][:, 0], draws[:, 2])
    assert torch.equal(chunks["replay"].flatten(1), batch.chunk)
    assert 0.1 < float((chunks["perturbed"] - chunks["policy"]).std()) < 0.5
    assert 0.4 < float(chunks["uniform"].std()) < 0.75


def test_uniform_noisy_chunks_fill_the_policy_s_bounds():
    stage = make_stage("sdac", policy=make_policy(clip_sample=0.5), noisy_from="uniform")
    obs, chunks = torch.zeros(2000, 2), torch.zeros(2000, 1, TA, DA)
    batch = Transitions(obs, chunks.flatten(1), *torch.zeros(2, 2000), obs)
    _, uniform = stage._clean_chunks(batch, Draws(obs, chunks, *[torch.zeros(2000, 1)] * 2))
    assert stats.kstest(uniform.flatten().numpy(), stats.uniform(-0.5, 1).cdf).pvalue > 1e-3


@pytest.mark.parametrize("weights", ["fixed", "constant"])
def test_sdac_under_the_policys_prior_learns_one_mirror_step(monkeypatch, weights):
    """pi_old exp(Q / lambda), where the flat prior gives exp(Q / lambda); with constant weights it stays pi_old."""
    torch.manual_seed(0)
    policy = densities.make_policy()
    data = 0.3 + 0.35 * torch.randn(100_000, 1, 1).clamp(-1.8, 1.8)
    obs = torch.zeros(512, 1, 1)
    train(policy.parameters(), 700, 3e-3, lambda: policy.loss(obs, data[torch.randint(len(data), (512,))]))
    monkeypatch.setattr(policy, "values", values)
    rsm = RSMConfig(weights=weights, temperature=TEMPERATURE)
    stage = densities.make_stage("sdac", policy, rsm=rsm, noisy_from="replay", draws=32)
    stage._measure_width(torch.zeros(4000, 1))
    before = sample(policy, stage.old)
    old, mirror = histogram(before), histogram(before, np.exp(log_target(before)))
    pool = torch.from_numpy(before).view(-1, 1)

    def loss():
        batch = batch_of(256, pool[torch.randint(len(pool), (256,))])
        return stage.actor_loss(batch, Draws(batch.obs, torch.zeros(256, 1, 1, 1), *[torch.zeros(1, 256, 1)] * 2))[0]

    train(stage.actor.parameters(), 700, 2e-3, loss)
    after = sample(policy, stage.actor)
    expected, other = (old, mirror) if weights == "constant" else (mirror, old)
    assert total_variation(after, expected) < 0.15 and total_variation(after, other) > 0.25
    assert total_variation(after, density(log_target)) > 0.15


def test_levels_of_noise_can_be_left_out(pretrained_weights, monkeypatch):
    """Of 10 timesteps those from the fourth on."""
    stage = make_stage("sdac", pretrained_weights, lowest_level=0.35, critic_warmup_updates=0, draws=4)
    play(stage, np.random.default_rng(0), 2, learn=False)
    seen, levels = [], stage.policy.process.levels
    monkeypatch.setattr(stage.policy.process, "levels", lambda k, x: seen.append(k) or levels(k, x))
    stage._gradient_step()
    drawn = torch.cat([k.flatten() for k in seen if k.dim() == 2])
    assert set(drawn.tolist()) == set(range(3, 10))
