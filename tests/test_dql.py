"""DQL; its losses, targets and gradients are those of the authors (test_parity_offline.py)."""

from __future__ import annotations

import pytest
import torch
from bandit import DA, TA, learns_from, make_stage, score
from test_offline import bandit_demonstrations

from burnish.errors import BurnishError
from burnish.finetune.algorithms.dql import DQLConfig
from burnish.networks import CriticConfig, DenoiserConfig
from burnish.policies.flow import FlowPolicy, FlowPolicyConfig

DEMOS = {"demos": "demos.hdf5", "demo_ratio": 0.5}


@pytest.fixture(autouse=True)
def _demonstrations(monkeypatch):
    learns_from(monkeypatch, bandit_demonstrations)


def test_single_samples_of_a_bandits_policy_improve_offline(pretrained_weights):
    stage = make_stage("dql", pretrained_weights, **DEMOS)
    assert abs(score(stage.policy, n=500)) < 0.1
    stage.update_offline(250)
    assert score(stage.policy, n=500) > 0.2


def test_without_the_q_term_it_clones(pretrained_weights):
    stage = make_stage("dql", pretrained_weights, q_weight=0.0, **DEMOS)
    batch = stage.demos.sample(64, stage.generator)
    state = stage.generator.get_state()
    output, target = stage.policy.denoise_noised(
        stage.actor, batch.obs, stage.chunks(batch), torch.Generator().set_state(state), 10
    )
    loss, metrics = stage.actor_loss(batch)
    expected = torch.nn.functional.mse_loss(output, target)
    assert float(loss.detach()) == pytest.approx(float(expected.detach()), rel=1e-6)
    assert float(metrics["cloning_loss"]) == float(loss.detach())


@pytest.mark.parametrize(("sampler", "steps"), [("inherit", 10), ("ddim", 2)])
def test_the_chain_is_of_the_sampler_and_every_step_has_a_part_in_its_gradient(pretrained_weights, sampler, steps):
    stage = make_stage("dql", pretrained_weights, sampler=sampler, ddim_steps=2, **DEMOS)
    asked, forward = [], stage.actor.forward
    stage.actor.forward = lambda x, k, encoded: asked.append(x) or forward(x, k, encoded)
    x = stage.sampled(torch.randn(3, 2))
    assert x.shape == (3, 1, TA, DA) and len(asked) == steps and x.abs().max() <= 1
    gradients = torch.autograd.grad(x.sum(), asked[1:])
    assert all(gradient.abs().max() > 0 for gradient in gradients)
    assert not x.detach().requires_grad and torch.is_grad_enabled()


def test_the_scale_of_rewards_does_not_matter(pretrained_weights):
    """Q over the mean of its size: ten times the values, the same loss."""
    stage = make_stage("dql", pretrained_weights, **DEMOS)
    batch, state = stage.demos.sample(64, stage.generator), stage.generator.get_state()
    _, before = stage.actor_loss(batch)
    with torch.no_grad():
        for parameter in stage.critic.network.layers[-1].parameters():
            parameter.mul_(10)
    stage.generator.set_state(state)
    _, after = stage.actor_loss(batch)
    assert float(after["q_loss"]) == pytest.approx(float(before["q_loss"]), rel=1e-5)


def test_a_flow_is_trained_too():
    config = FlowPolicyConfig(DenoiserConfig(hidden_dim=32, n_layers=1), horizon=TA, n_action_steps=TA, euler_steps=5)
    stage = make_stage("dql", policy=FlowPolicy(config, 2, DA, ["flat"]).eval(), critic_warmup_updates=0, **DEMOS)
    before = [parameter.clone() for parameter in stage.actor.parameters()]
    assert stage.update_offline(2)["actor_loss"] > 0
    assert any(not torch.equal(a, b) for a, b in zip(before, stage.actor.parameters()))


def test_one_critic_has_no_other_for_its_scale():
    with pytest.raises(BurnishError, match=r"critic\.n_critics=1: expected at least 2"):
        DQLConfig(critic=CriticConfig(n_critics=1))
