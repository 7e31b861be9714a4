"""RLPD, and what it shares with the other stages of a squashed Gaussian actor (finetune/soft_actor.py)."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from bandit import DA, TA, demonstrations, learns_from, make_policy, observations, play, score
from baseline_stages import make_policy as make_gaussian
from gaussian_bandit import STAGES, make_stage

from burnish.config import parse
from burnish.errors import BurnishError
from burnish.finetune.algorithms.rlpd import RLPDConfig
from burnish.networks import CriticConfig
from burnish.networks.squashed import squash
from burnish.policies.load import load_policy

OBS = torch.randn(5, 2, generator=torch.Generator().manual_seed(0))


def test_a_bandit_is_learned():
    stage = make_stage("rlpd")
    assert abs(score(stage.policy, n=500)) < 0.1
    metrics = play(stage, np.random.default_rng(0), 30)
    assert score(stage.policy, n=500) > 0.2  # of 0.5, the greatest raw action
    assert all(np.isfinite(list(line.values())).all() for line in metrics)


def test_the_papers_settings_are_the_defaults():
    config = RLPDConfig()
    assert (config.critic.n_critics, config.target_critics, config.critic.layer_norm) == (10, 2, True)
    assert (config.utd_ratio, config.demo_ratio, config.n_step, config.entropy_in_target) == (20, 0.5, 1, True)


def test_half_of_each_batch_is_demonstrations(monkeypatch):
    learns_from(monkeypatch, demonstrations)  # observations of 9
    stage = make_stage("rlpd", demos="demos.hdf5", demo_ratio=0.5)
    play(stage, np.random.default_rng(0), 3, learn=False)
    shown = stage.policy.normalized_obs(np.full((1, 1, 2), 9, np.float32))
    for _ in range(3):
        assert (stage._batch().obs == shown).all(1).tolist() == [True] * 32 + [False] * 32


def test_the_actor_has_the_last_of_the_gradient_steps_of_a_chunk(monkeypatch):
    """20 of the critic for one of it, after the warm-up."""
    stage = make_stage("rlpd", utd_ratio=20.0, critic_warmup_updates=30)
    play(stage, np.random.default_rng(0), 3, learn=False)
    trained = [step for step in range(80) if "actor_loss" in stage._gradient_step()]
    assert trained == [39, 59, 79]
    assert make_stage("rlpd", utd_ratio=0.5).actor_is_due is False  # warm-up
    often = make_stage("rlpd", utd_ratio=0.5, critic_warmup_updates=0)
    assert often.actor_is_due


@pytest.mark.parametrize("name", STAGES)
def test_a_cloned_policy_is_where_it_begins(name):
    """Its mean, and with the spread of the demonstrations around it; from scratch with a spread of about 1, e^-1."""
    policy = make_gaussian("sac")
    mean, std = policy.mean(OBS), policy.log_std.exp()
    stage = make_stage(name, copy.deepcopy(policy), pretrained=True)
    assert torch.equal(stage.policy.mean(OBS), mean)
    x, _ = stage.draw(OBS[:1], 20_000)
    torch.testing.assert_close(x.detach().atanh().std(1)[0], std.detach(), rtol=0.05, atol=0)
    torch.testing.assert_close(x.detach().atanh().mean(1).tanh(), mean[:1].detach(), rtol=0, atol=0.02)
    fresh, _ = make_stage(name, copy.deepcopy(policy)).draw(OBS[:1], 20_000)
    expected = {"rlpd": 1.0, "calql": np.exp(-1)}[name]
    np.testing.assert_allclose(fresh.detach().atanh().std(1)[0], expected, rtol=0.5)


def test_the_density_of_what_is_drawn_integrates_to_one():
    """One dimension, by a histogram: the mean of 1 / p over draws is the length of the interval, 2."""
    noise = torch.randn(400_000, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    mean, log_std = torch.tensor([0.3], dtype=torch.float64), torch.tensor([-0.4], dtype=torch.float64)
    x, log_prob = squash(mean, log_std, noise)
    inside = x[:, 0].abs() < 0.9
    assert float((-log_prob).exp()[inside].sum() / len(x)) == pytest.approx(1.8, rel=0.01)
    far, finite = squash(mean, log_std, torch.tensor([[60.0]], dtype=torch.float64))
    assert float(far) == 1 and torch.isfinite(finite).all()


def test_its_policy_evaluates_alone_and_keeps_its_critic(tmp_path):
    stage = make_stage("rlpd")
    play(stage, np.random.default_rng(0), 4)
    stage.policy.save(tmp_path / "policy")
    loaded = load_policy(tmp_path / "policy")
    obs = observations(np.random.default_rng(1))
    assert np.array_equal(loaded.act(obs), stage.policy.act(obs))
    x = 2 * torch.rand(5, 3, TA, DA) - 1
    with torch.no_grad():
        assert torch.equal(loaded.values(OBS, x), stage.critic.values(OBS, x))
    with pytest.raises(BurnishError, match="candidates=4: expected 1, a Gaussian policy acts by its mean"):
        loaded.act(obs, candidates=4)
    assert stage.n_candidates == 1  # evaluations have nothing to choose from


@pytest.mark.parametrize("name", STAGES)
def test_what_it_cannot_train_is_told(name):
    with pytest.raises(BurnishError, match=f"stage={name} needs a Gaussian policy with squash=true: network=gaussian"):
        make_stage(name, make_gaussian("ppo"))
    assert not STAGES[name][0].trains(make_policy().config.kind) and STAGES[name][0].trains("gaussian")
    with pytest.raises(BurnishError, match=r"critic\.kind=quantile"):
        parse(STAGES[name][1], {"name": name, "critic": {"kind": "quantile"}})
    with pytest.raises(BurnishError, match=r"target_critics=3: expected at most stage.critic.n_critics=2"):
        STAGES[name][1](target_critics=3, critic=CriticConfig(n_critics=2))
