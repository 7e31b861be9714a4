"""QVPO: its weights are advantages, uniform chunks keep it wide, what it refuses."""

import numpy as np
import pytest
import torch
from bandit import DA, TA, assert_resumes_bitwise, make_policy, make_stage, play, score

from burnish.errors import BurnishError
from burnish.finetune.algorithms.qvpo import QVPOConfig, best_by_advantage, with_uniform


@pytest.mark.parametrize("shift", [0.0, -5.0])
def test_a_bandit_is_learned(pretrained_weights, shift):
    """Also from rewards that are all negative, the known failure of weights that are Q itself."""
    stage = make_stage("qvpo", pretrained_weights, batch_size=64, critic_warmup_updates=50, draws=16)
    play(stage, np.random.default_rng(0), 25, shift=shift)
    assert score(stage.policy) > 0.3


def test_resumes_bitwise(pretrained_weights):
    assert_resumes_bitwise("qvpo", pretrained_weights, chosen=2)


def test_the_weights_by_hand():
    q = torch.tensor([[1.0, 4.0, 1.0], [-9.0, -7.0, -5.0]])
    best, weights = best_by_advantage(q, 2)
    assert best.tolist() == [[1, 0], [2, 1]] or best.tolist() == [[1, 2], [2, 1]]
    torch.testing.assert_close(weights, torch.tensor([[2.0, 0.0], [2.0, 0.0]]))  # 1 - 2 and -7 + 7 are not above 0
    expected = [[2.0, 0.0, 0.2, 0.0, 0.2, 0.0]] * 2
    torch.testing.assert_close(with_uniform(weights, 2, 0.1), torch.tensor(expected))


def test_a_constant_on_all_returns_changes_nothing(pretrained_weights, monkeypatch):
    """What raw Q or its positive part for a weight would not have."""
    losses = []
    for constant in (0.0, -64.0):  # which float32 adds without a loss that matters
        stage = make_stage("qvpo", pretrained_weights, critic_warmup_updates=0)
        play(stage, np.random.default_rng(0), 2, learn=False)
        values = stage.critic.values
        monkeypatch.setattr(stage.critic, "values", lambda *given, c=constant, values=values: values(*given) + c)
        losses.append(float(stage.actor_loss(stage._batch())[0].detach()))
    assert losses[0] > 0 and losses[1] == pytest.approx(losses[0], rel=1e-3)


def test_uniform_chunks_stand_beside_the_best(pretrained_weights, monkeypatch):
    stage = make_stage("qvpo", pretrained_weights, chosen=2, uniform_draws=3, draws=8)
    play(stage, np.random.default_rng(0), 2, learn=False)
    seen, noised = [], stage.policy.denoise_noised
    monkeypatch.setattr(
        stage.policy, "denoise_noised", lambda net, obs, x, *rest: seen.append(x) or noised(net, obs, x, *rest)
    )
    stage.actor_loss(stage._batch())
    (x,) = seen
    assert x.shape == (128, 2 + 6, TA, DA) and float(x.abs().max()) <= 1
    assert 0.53 < float(x[:, 2:].std()) < 0.62  # 1 / sqrt(3)
    assert float(x[:, :2].std()) < 0.5


def test_the_entropy_weight_falls_linearly(pretrained_weights):
    stage = make_stage("qvpo", pretrained_weights, entropy_coef=0.5, entropy_coef_final=0.1, entropy_decay_updates=100)
    found = []
    for stage.gradient_steps in (0, 25, 100, 1000):
        found.append(stage.entropy_coef)
    assert found == pytest.approx([0.5, 0.4, 0.1, 0.1])


def test_the_target_is_of_the_best_of_several(pretrained_weights):
    stage = make_stage("qvpo", pretrained_weights, target_candidates=5)
    assert stage.target_chunks(torch.zeros(3, 2)).shape == (3, 5, TA, DA)


def test_what_cannot_be_is_refused():
    with pytest.raises(BurnishError, match=r"stage.chosen=5: expected at most stage.draws=4"):
        QVPOConfig(demos=None, demo_ratio=0.0, draws=4, chosen=5)
    policy = make_policy(clip_sample=None, action_normalization="mean_std")
    with pytest.raises(BurnishError, match=r"stage.uniform_draws: the policy's actions have no bounds"):
        make_stage("qvpo", policy=policy)
    make_stage("qvpo", policy=policy, uniform_draws=0)
