"""Best of N: the policy stays as it is, the critic alone learns."""

import copy
from dataclasses import fields

import numpy as np
import pytest
import torch
from bandit import (
    make_stage,
    play,
)

from burnish.errors import BurnishError
from burnish.finetune.algorithms.best_of_n import BestOfNConfig
from burnish.finetune.algorithms.dpmd import DPMDConfig
from burnish.finetune.drawing import DrawingConfig, ReweightingConfig


@pytest.mark.parametrize(("name", "settings"), [("dpmd", {"freeze_actor": True}), ("best_of_n", {})])
def test_a_frozen_actor_stays(pretrained_weights, name, settings):
    stage = make_stage(name, pretrained_weights, critic_warmup_updates=0, **settings)
    before = copy.deepcopy(stage.policy.state_dict())
    play(stage, np.random.default_rng(0), 5)
    assert stage.gradient_steps > 10
    for key, tensor in stage.policy.state_dict().items():
        assert torch.equal(tensor, before[key]) != (key.startswith("critic")), key


def test_best_of_n_has_only_the_keys_that_it_uses_and_candidates_to_choose_from():
    actor = {field.name for field in fields(ReweightingConfig)} - {field.name for field in fields(DrawingConfig)}
    assert {"rsm", "draws", "actor_lr", "freeze_actor"} < actor
    assert not actor & {field.name for field in fields(BestOfNConfig)}
    with pytest.raises(BurnishError, match="n_candidates=1: expected at least 2"):
        BestOfNConfig(n_candidates=1)


def test_the_way_out_of_missing_demonstrations_names_only_keys_that_there_are():
    with pytest.raises(BurnishError, match=r"or stage.demo_ratio=0 to learn"):
        BestOfNConfig(demos=None)
    with pytest.raises(BurnishError, match=r"or stage.demo_ratio=0 stage.bc_coef=0 to learn"):
        DPMDConfig(demos=None)


def test_best_of_n_takes_all_of_its_settings(pretrained_weights):
    given = {"n_candidates": 5, "gamma": 0.7, "tau": 0.3, "target_candidates": 4, "reward_scale": 0.2, "batch_size": 33}
    config = make_stage("best_of_n", pretrained_weights, **given).config
    assert {name: getattr(config, name) for name in given} == given
