"""SAC by Stable-Baselines3: what it starts from; test_baselines.py has what it shares."""

import copy

import torch
from baseline_stages import make_policy, make_stage


def test_sac_goes_on_from_a_pretrained_policys_mean():
    policy = make_policy("sac")
    stage = make_stage("sac", copy.deepcopy(policy), pretrained=True)
    obs = torch.randn(5, policy.config.n_obs_steps * policy.obs_dim)
    assert torch.equal(stage.model.actor(obs, deterministic=True), policy.mean(obs))
