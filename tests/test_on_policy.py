"""The base of algorithms of PPO's kind, by the least of them: PPO on a Gaussian policy, in some twenty lines."""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import pytest
import torch
from bandit import DA, TA, TASK, E, play, score
from torch import Tensor
from torch.distributions import Normal

from burnish.finetune import on_policy
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


def make_stage(**settings) -> Least:
    torch.manual_seed(0)
    sizes = {"n_action_steps": TA, "hidden_sizes": [32], "obs_normalization": "none", "action_normalization": "none"}
    policy = GaussianPolicy(GaussianPolicyConfig(**sizes), 2, DA, ["flat"]).eval()
    defaults = {"n_steps": 8, "batch_size": 32, "clip_coef": 0.2, "actor_lr": 3e-3, "critic_warmup_iterations": 0}
    return Least(policy, LeastConfig(**(defaults | settings)), Setting(TASK, E, 0))


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
    stage.rollout.log_prob[3, 2] += 1e-4
    with pytest.raises(RuntimeError, match="stage=least: before the update the likelihood ratio differs from 1 by 1"):
        for _ in range(20):  # the pair is in one of the minibatches, of which the first is checked
            stage.update_actor(torch.zeros(8 * E))
