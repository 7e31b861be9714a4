"""Cal-QL: what its bound does, and where that comes from; its losses are the authors' (test_parity_offline.py)."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from bandit import TA, E, chunk_step, learns_from, observations, score
from gaussian_bandit import make_stage
from test_offline import bandit_demonstrations

from burnish.datasets.episodes import Episode
from burnish.finetune.storage.replay import _returns
from burnish.finetune.storage.returns import endless

NEVER = -torch.inf


def test_a_bandit_is_learned_from_demonstrations_alone(monkeypatch):
    learns_from(monkeypatch, bandit_demonstrations)
    stage = make_stage("calql", demos="demos.hdf5", demo_ratio=0.5)
    metrics = stage.update_offline(200)
    assert score(stage.policy, n=500) > 0.15  # of 0.5; their mean is 0
    assert metrics["gradient_steps"] == 200 and np.isfinite(list(metrics.values())).all()


def test_no_return_leaves_conservative_q_learning_and_a_high_one_no_push(monkeypatch):
    """Of chunks of the policy; uniform ones are pushed down whatever followed."""
    learns_from(monkeypatch, bandit_demonstrations)
    stage = make_stage("calql", demos="demos.hdf5", demo_ratio=0.5)
    batch = stage.demos.sample(16, stage.generator)
    q = stage.critic.network(batch.obs, stage.critic.executed(batch)).squeeze(2)
    (of_data,) = torch.autograd.grad(-q.sum(), stage.critic.network.from_action, retain_graph=True)
    state = stage.generator.get_state()

    def gap(bound: float, calibrated: bool = True) -> torch.Tensor:
        object.__setattr__(stage.config, "calibrated", calibrated)
        stage.generator.set_state(state)
        extra = {"return_to_go": torch.full((16,), bound)}
        return stage.conservative_gap(batch._replace(extra=extra), q)

    plain = gap(5.0, calibrated=False)
    assert torch.equal(gap(NEVER), plain) and torch.equal(gap(-100.0), plain)
    assert (gap(5.0) > plain).all()
    # what is bounded has no slope: with one far above all else, the data's Q alone is pushed, up
    (gradient,) = torch.autograd.grad(gap(1000.0).sum(), stage.critic.network.from_action)
    torch.testing.assert_close(gradient, of_data)


# -- returns -----------------------------------------------------------------------------------------------------------


def test_own_returns_are_unknown_until_an_episode_ends():
    """Environment 0 never gets a reward but 0.5 a step, until the time limit: for ever; 1 has others: their sum; 2
    terminates; the others go on."""
    stage = make_stage("calql", gamma=0.5, reward_scale=2.0)
    rng = np.random.default_rng(0)
    step_rewards = np.zeros((3, E, TA), np.float32)
    step_rewards[:, 0] = 0.5
    step_rewards[:, 1, 0] = [1, 2, 3]
    step_rewards[:, 2] = 0.5
    for t in range(3):
        obs = observations(rng)
        stage.act(obs)
        ends = (t == 2) * np.isin(np.arange(E), [0, 1])
        stage.observe(
            chunk_step(obs, step_rewards[t], truncated=ends, terminated=(t == 2) & (np.arange(E) == 2), final_obs=obs)
        )
        if t == 1:
            assert (stage.replay.at(torch.arange(2 * E)).extra["return_to_go"] == NEVER).all()
    found = stage.replay.at(torch.arange(3 * E)).extra["return_to_go"].view(3, E)
    assert found[:, 0].tolist() == pytest.approx([2 * 0.5 / (1 - 0.5)] * 3)
    g = 0.5**TA
    assert found[:, 1].tolist() == pytest.approx([2 * (1 + g * (2 + g * 3)), 2 * (2 + g * 3), 2 * 3])
    three = [2 * sum(0.5 * 0.5**i for i in range(n)) for n in (6, 4, 2)]
    assert found[:, 2].tolist() == pytest.approx(three)
    assert (found[:, 3:] == NEVER).all()


def episode(rewards: list[float], terminated: bool) -> Episode:
    T = len(rewards)
    obs, actions = {"flat": np.zeros((T, 1), np.float32)}, np.zeros((T, 1), np.float32)
    return Episode("demo_0", obs, actions, np.array(rewards, np.float32), np.arange(T) == (T - 1 if terminated else T))


@pytest.mark.parametrize(
    ("rewards", "terminated", "expected"),
    [
        ([-1.0, -1.0, -1.0], False, [-10.0] * 3),  # fails for ever, not for three steps
        ([-1.0, -1.0, -1.0], True, [-2.71, -1.9, -1.0]),
        ([0.0, 0.0, 1.0], False, [0.81, 0.9, 1.0]),
        ([0.0, 0.0], False, [0.0, 0.0]),
    ],
)
def test_what_a_time_limit_leaves_out(rewards, terminated, expected):
    assert _returns(episode(rewards, terminated), 0.9).tolist() == pytest.approx(expected)


def test_without_discount_nothing_lasts_for_ever():
    ones = torch.ones(3)
    assert float(endless(ones, ones)) == 0 and _returns(episode([1.0, 1.0], False), 1.0).tolist() == [2, 1]
