"""The base of algorithms of PPO's kind, by the least of them: PPO on a Gaussian policy, in some twenty lines."""

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import pytest
import torch
from bandit import DA, TA, TASK, E, chunk_step, observations, play, reward_of, score
from torch import Tensor
from torch.distributions import Normal

from burnish.errors import BurnishError
from burnish.finetune import on_policy
from burnish.finetune.losses.group import group_advantages
from burnish.finetune.losses.ppo import chain_kl
from burnish.finetune.on_policy import Explored, OnPolicyConfig, OnPolicyStage
from burnish.finetune.stage import Setting
from burnish.policies.gaussian import GaussianPolicy, GaussianPolicyConfig

STD = 0.3


@dataclass(frozen=True)
class LeastConfig(OnPolicyConfig):
    name: Literal["least"] = "least"


class Least(OnPolicyStage):
    Config = LeastConfig

    def __init__(self, policy: GaussianPolicy, config: LeastConfig, setting: Setting):
        super().__init__(policy, config, setting, actor=policy.network, n_terms=1, sampled=(TA, DA))

    def mean(self, obs: Tensor) -> Tensor:
        return self.policy.network(obs).view(-1, TA, DA)

    def explore(self, obs: Tensor) -> Explored:
        mean = self.mean(obs)
        x = mean + STD * torch.randn(mean.shape, generator=self.generator)
        return Explored(x, x, Normal(mean, STD).log_prob(x).sum((1, 2))[:, None])

    def new_log_prob(self, n: Tensor, i: Tensor) -> Tensor:
        obs, x = self.rollout.obs.flatten(0, 1)[n], self.rollout.sampled.flatten(0, 1)[n]
        return Normal(self.mean(obs), STD).log_prob(x).sum((1, 2))

    def divergence(self, log_ratio: Tensor) -> Tensor:
        return chain_kl(log_ratio, 1, 1, "joint")


def make_stage(task=TASK, **settings) -> Least:
    torch.manual_seed(0)
    sizes = {"n_action_steps": TA, "hidden_sizes": [32], "obs_normalization": "none", "action_normalization": "none"}
    policy = GaussianPolicy(GaussianPolicyConfig(**sizes), 2, DA, ["flat"]).eval()
    defaults = {"n_steps": 8, "batch_size": 32, "clip_coef": 0.2, "actor_lr": 3e-3, "critic_warmup_iterations": 0}
    return Least(policy, LeastConfig(**(defaults | settings)), Setting(task, E, 0))


def test_it_learns_and_its_first_ratio_is_1():
    stage = make_stage(desired_kl=None)
    before = score(stage.policy)
    metrics = play(stage, np.random.default_rng(0), 60 * 8)
    assert len(metrics) == 60
    assert all(each["first_ratio_error"] == pytest.approx(0, abs=1e-5) and each["kl"] >= 0 for each in metrics)
    assert score(stage.policy) > before + 0.3


def test_what_a_subclass_does_not_set_is_plain_ppo(monkeypatch):
    """One clip range, and an advantage that counts once for each term."""
    stage, given = make_stage(update_epochs=1), []
    surrogate = on_policy.clipped_surrogate

    def watched(*tensors: Tensor):
        given.append(tensors)
        return surrogate(*tensors)

    monkeypatch.setattr(on_policy, "clipped_surrogate", watched)
    play(stage, np.random.default_rng(0), 8)
    advantages = torch.cat([each[2] for each in given])
    assert len(advantages) == 8 * E
    assert float(advantages.mean()) == pytest.approx(0, abs=1e-5) and float(advantages.std()) == pytest.approx(
        1, abs=1e-3
    )
    assert all((each[3] == 0.2).all() for each in given)


def test_a_first_ratio_that_is_not_1_stops_the_run():
    stage = make_stage()
    play(stage, np.random.default_rng(0), 8, learn=False)
    stage.rollout.log_prob[3, 2] += 1.2e-4
    with pytest.raises(RuntimeError, match="stage=least: before the update the likelihood ratio differs from 1 by 1"):
        for _ in range(20):  # the pair is in one of the minibatches, of which the first is checked
            stage.update_actor(torch.zeros(8 * E))


# -- advantages within groups ------------------------------------------------------------------------------------------


def test_group_advantages_by_hand():
    """Two groups of two environments. The first environment ends after one chunk, so its second reward is of another
    episode; returns are 1 and 4, and 2 and 2."""
    reward = torch.tensor([[1.0, 2.0, 0.0, 2.0], [100.0, 2.0, 2.0, 0.0]])
    ended = torch.tensor([[True, False, False, False], [False, True, True, True]])
    found = group_advantages(reward, ended, 2)
    # mean 2.5, standard deviation 1.5
    assert found.advantages.tolist() == [[-1.0, 1.0, 0.0, 0.0]] * 2
    assert found.counts.tolist() == [[True, True, False, False], [False, True, False, False]]
    assert float(found.spread) == 0.5


class GroupedBandit:
    """Episodes of one chunk; initial states by seed, so that a group sees the same observation."""

    def __init__(self):
        self.rng, self.obs = np.random.default_rng(), np.zeros((E, 1, 2), np.float32)

    def reset(self, seeds: list[int]) -> np.ndarray:
        self.obs = np.stack([np.random.default_rng(seed).normal(size=(1, 2)) for seed in seeds]).astype(np.float32)
        return self.obs


def test_groups_are_played_and_learned_from():
    """One episode a round: 2 E episodes are two rounds, with a seed for each group; without value network."""
    settings = {"advantages": "group", "group_size": 4, "n_steps": None, "rollout_episodes": 2 * E}
    stage, bandit = make_stage(desired_kl=None, **settings), []
    assert stage.chunks_per_update == 2 and stage.round == 1
    critic = [p.clone() for p in stage.critic.parameters()]
    before, envs = score(stage.policy), GroupedBandit()
    for _ in range(60):
        while not stage.ready():
            seeds = stage.reset_seeds()
            assert seeds is not None and len(seeds) == E and len(set(seeds)) == E // 4
            bandit.append(seeds)
            obs = envs.reset(seeds)
            assert np.array_equal(obs[0], obs[3]) and not np.array_equal(obs[3], obs[4])
            reward = reward_of(stage.act(obs), obs)
            stage.observe(chunk_step(obs, reward, terminated=True))
        metrics = stage.update()
        assert metrics["first_ratio_error"] <= 1e-5
        assert metrics["groups_that_differ"] > 0  # at the bounds of actions some do alike
        assert "value_loss" not in metrics
    assert score(stage.policy) > before + 0.3
    assert len({tuple(seeds) for seeds in bandit}) == 120
    assert all(torch.equal(p, q) for p, q in zip(critic, stage.critic.parameters()))


def test_only_the_chunks_that_count_are_learned_from(monkeypatch):
    """Of rounds of two chunks: the first environment's episode ends with its first chunk; the others of its group and
    of the rest did alike but for the second group."""
    task = replace(TASK, max_episode_steps=2 * TA)
    stage = make_stage(task, advantages="group", group_size=4, n_steps=None, rollout_episodes=E, update_epochs=1)
    assert (stage.round, stage.chunks_per_update) == (2, 2)
    seen, surrogate = [], on_policy.clipped_surrogate
    monkeypatch.setattr(stage, "new_log_prob", lambda n, i: seen.append(n) or Least.new_log_prob(stage, n, i))
    given = []
    monkeypatch.setattr(on_policy, "clipped_surrogate", lambda *each: given.append(each[2]) or surrogate(*each))
    obs = observations(np.random.default_rng(0))
    reward = np.zeros(E, np.float32)
    reward[[0, 4]] = 1, 3
    for t in range(2):
        assert (stage.reset_seeds() is None) == (t == 1)
        stage.act(obs)
        stage.observe(chunk_step(obs, reward if t == 0 else 0 * reward, terminated=np.arange(E) == 0, truncated=t == 1))
    metrics = stage.update()
    assert metrics["groups_that_differ"] == 0.5
    n, advantages = torch.cat(seen), torch.cat(given)
    assert sorted(n.tolist()) == [0, 1, 2, 3, 4, 5, 6, 7, *(E + e for e in (1, 2, 3, 4, 5, 6, 7))]
    # of a group's returns 1, 0, 0, 0: mean 1/4, standard deviation sqrt(3)/4
    expected = {0: 3**0.5, 4: 3**0.5} | dict.fromkeys((1, 2, 3, 5, 6, 7), -(3**-0.5))
    assert advantages.tolist() == pytest.approx([expected[int(k) % E] for k in n], rel=1e-5)


def test_where_all_do_alike_nothing_is_learned():
    stage = make_stage(advantages="group", group_size=E, n_steps=None, rollout_episodes=E)
    weights = [p.clone() for p in stage.policy.network.parameters()]
    obs = observations(np.random.default_rng(0))
    stage.reset_seeds()
    stage.act(obs)
    stage.observe(chunk_step(obs, np.ones(E, np.float32), terminated=True))
    assert stage.update().keys() == {"groups_that_differ", "actor_lr"}
    assert all(torch.equal(p, q) for p, q in zip(weights, stage.policy.network.parameters()))


def test_groups_that_cannot_be():
    with pytest.raises(BurnishError, match=r"n_steps=8 with advantages=group: expected null"):
        make_stage(advantages="group")
    with pytest.raises(BurnishError, match=rf"n_envs={E} with stage.group_size=5: expected a multiple"):
        make_stage(advantages="group", group_size=5, n_steps=None)
