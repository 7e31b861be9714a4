"""TD3 by Stable-Baselines3: what it stores and what it starts from; test_baselines.py has what it shares."""

import copy
import sys

import numpy as np
import pytest
import torch
from bandit import DA, TA, chunk_step
from baseline_stages import NOTHING, E, make_policy, make_stage, observations

from burnish.errors import BurnishError


def test_what_td3_executes_is_what_it_stores():
    stage = make_stage("td3", exploration_noise=1.0, learning_starts=0)
    for i in range(3):
        actions = stage.act(observations(np.random.default_rng(i)))
        stage.observe(chunk_step(NOTHING))
        stored = stage.buffer.actions[i]
        np.testing.assert_allclose(stored.reshape(E, TA, DA) * 0.5, actions, rtol=1e-6)
        assert np.abs(stored).max() == 1 and np.unique(stored).size > E


def test_td3_goes_on_from_a_pretrained_policy_in_its_target_too():
    policy = make_policy("td3")
    stage = make_stage("td3", copy.deepcopy(policy), pretrained=True)
    obs = torch.randn(5, policy.config.n_obs_steps * policy.obs_dim)
    for actor in (stage.model.actor, stage.model.actor_target):
        assert torch.equal(actor(obs), policy.mean(obs))


def test_without_stable_baselines3_the_command_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "stable_baselines3", None)
    with pytest.raises(BurnishError, match=r"stage=td3 needs stable-baselines3: pip install 'burnish\[baselines\]'"):
        make_stage("td3")
