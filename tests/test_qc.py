"""Q-chunking; its target and losses are those of the authors (test_parity_offline.py)."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from bandit import learns_from, make_stage, play, score
from test_offline import bandit_demonstrations

from burnish.errors import BurnishError
from burnish.finetune.algorithms.qc import QChunkingConfig


def test_the_best_of_a_bandits_chunks_improves_offline_single_ones_stay(pretrained_weights, monkeypatch):
    learns_from(monkeypatch, bandit_demonstrations)
    stage = make_stage("qc", pretrained_weights, demos="demos.hdf5", demo_ratio=0.5, target_candidates=4)
    stage.update_offline(200)
    assert abs(score(stage.policy, n=500)) < 0.1 < score(stage.policy, candidates=8, n=500) - 0.1


def test_what_was_chosen_is_cloned_online(pretrained_weights):
    """Single samples improve as well: the critic's choice is what they learn from."""
    stage = make_stage("qc", pretrained_weights, target_candidates=4, actor_tau=0.05)
    play(stage, np.random.default_rng(0), 30)
    assert score(stage.policy, n=500) > 0.1


def test_the_critic_chooses_and_its_average_says_what_that_is_worth(pretrained_weights, monkeypatch):
    """Members' values by hand: means 1, 3, 2 of the critic; the second chunk is taken, whatever its average thinks."""
    stage = make_stage("qc", pretrained_weights, target_candidates=3)
    play(stage, np.random.default_rng(0), 3, learn=False)
    batch = stage._batch()
    q = torch.tensor([[1.0, 2.0, 2.0], [1.0, 4.0, 2.0]])[:, None]
    B = len(batch.obs)
    monkeypatch.setattr(stage.critic.network, "forward", lambda obs, x: q.expand(2, B, 3))
    x = torch.arange(3.0).view(1, 3, 1, 1).expand(B, 3, 2, 2)
    assert (stage.best(batch.next_obs, x) == 1).all()
    seen, worth = [], torch.tensor([5.0, 8.0]).view(2, 1, 1).expand(2, B, 1)
    monkeypatch.setattr(stage.critic.target, "forward", lambda obs, x: seen.append(x) or worth)
    assert (stage.next_values(batch) == 6.5).all() and seen[0].shape == (B, 1, 4)
    object.__setattr__(stage.config, "of_members", "least")
    assert (stage.next_values(batch) == 5).all()
    assert stage.agreed(q).argmax(1).tolist() == [1]


def test_settings_that_mean_nothing_are_refused():
    with pytest.raises(BurnishError, match="n_candidates=1: expected at least 2 to choose from"):
        QChunkingConfig(n_candidates=1)
    with pytest.raises(BurnishError, match="target_critics=1: expected null, of_members says what counts"):
        QChunkingConfig(target_critics=1)
