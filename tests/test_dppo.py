"""DPPO as a stage: it learns, its ratio starts at 1, and what it stores does not run over episode cuts."""

import numpy as np
import pytest
import torch
from bandit import TASK, chunk_step, make_policy, observations, reward_of

from burnish.errors import BurnishError
from burnish.finetune.algorithms.dppo import DPPO, DPPOConfig
from burnish.finetune.stage import Setting, stage_class

E = 32


def make_stage(weights=None, policy=None, **kwargs) -> DPPO:
    policy = policy or make_policy()
    if weights is not None:
        policy.load_state_dict(weights)
    settings = {"ft_denoising_steps": 5, "n_steps": 20, "batch_size": 800, "clip_coef": 0.05, "clip_coef_base": 0.05}
    return DPPO(policy, DPPOConfig(**(settings | kwargs)), Setting(TASK, E, 0))


def bandit_rollout(stage: DPPO, rng: np.random.Generator) -> float:
    """One rollout of one-step episodes: the first action dimension shall follow the sign of the first observation."""
    rewards = []
    while not stage.ready():
        obs = observations(rng, E)
        reward = reward_of(stage.act(obs), obs)
        stage.observe(chunk_step(obs, reward, terminated=True))
        rewards.append(reward.mean())
    return float(np.mean(rewards))


@pytest.mark.parametrize("sampler", ["ddpm", "ddim"])
def test_dppo_learns_a_bandit(pretrained_weights, sampler):
    stage = make_stage(pretrained_weights, sampler=sampler, ddim_steps=5)
    rng = np.random.default_rng(0)
    rewards = []
    for _ in range(12):
        rewards.append(bandit_rollout(stage, rng))
        metrics = stage.update()
        assert metrics.get("first_ratio_error", 0.0) <= 1e-5
    assert abs(rewards[0]) < 0.05
    assert rewards[-1] > 0.25


def test_without_reward_the_policy_only_drifts(pretrained_weights):
    """The control of the test above: what is learned comes from the reward."""
    stage = make_stage(pretrained_weights)
    rng = np.random.default_rng(0)
    for _ in range(12):
        last = bandit_rollout(stage, rng)
        stage.rollout.reward.normal_()
        stage.update()
    assert abs(last) < 0.15


@pytest.mark.parametrize("settings", [{"log_prob": "joint"}, {"ft_denoising_steps": 1}, {"ft_denoising_steps": 10}])
def test_first_ratio_is_one(pretrained_weights, settings):
    stage = make_stage(pretrained_weights, critic_warmup_iterations=0, **settings)
    bandit_rollout(stage, np.random.default_rng(0))
    stored = stage.rollout.log_prob.flatten(0, 1)
    n, i = torch.meshgrid(torch.arange(len(stored)), torch.arange(stored.shape[1]), indexing="ij")
    with torch.no_grad():
        again = stage._new_log_prob(stage.rollout.chain.flatten(0, 1), n.flatten(), i.flatten()).view_as(stored)
    torch.testing.assert_close(again, stored, atol=2e-5, rtol=1e-5)
    assert "policy_loss" in stage.update()


def test_a_policy_that_changed_between_sampling_and_update_stops_the_run(pretrained_weights):
    stage = make_stage(pretrained_weights, critic_warmup_iterations=0)
    bandit_rollout(stage, np.random.default_rng(0))
    with torch.no_grad():
        next(stage.actor.parameters()).add_(0.05)
    with pytest.raises(RuntimeError, match="the likelihood ratio differs from 1"):
        stage.update()


def test_bootstrap_is_from_the_final_observation(pretrained_weights):
    """The next observation of a truncated chunk is the true last one, not the next episode's first."""
    stage = make_stage(pretrained_weights, n_steps=2)
    obs = np.ones((E, 1, 2), np.float32)
    stage.act(obs)
    stage.observe(chunk_step(obs, truncated=True, final_obs=np.full((E, 1, 2), 7, np.float32)))
    assert torch.equal(stage.rollout.final_obs[0], torch.full((E, 2), 7.0))


def test_cut_episodes_marks_the_last_chunk(pretrained_weights):
    stage = make_stage(pretrained_weights)
    terminated = np.arange(E) < 3
    stage.act(np.ones((E, 1, 2), np.float32))
    stage.observe(chunk_step(np.ones((E, 1, 2), np.float32), terminated=terminated))
    stage.cut_episodes()
    assert stage.rollout.truncated[0].tolist() == (~terminated).tolist()


def test_going_on_with_a_finetuned_policy(pretrained_weights):
    stage = make_stage(pretrained_weights)
    again = make_stage(policy=stage.policy)
    assert again.actor is stage.actor
    with pytest.raises(BurnishError, match="fine-tuned with 5 before"):
        make_stage(policy=stage.policy, ft_denoising_steps=4)
    with pytest.raises(BurnishError, match="fine-tuned with ddpm before"):
        make_stage(policy=stage.policy, sampler="ddim")


def test_unknown_stage():
    assert stage_class("dppo") is DPPO
    with pytest.raises(BurnishError, match="stage=reinforce: expected one of dppo"):
        stage_class("reinforce")
