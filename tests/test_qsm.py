"""QSM: what the predicted noise is regressed on, its anchor, what it refuses."""

import numpy as np
import pytest
import torch
from bandit import DA, TA, TASK, E, assert_resumes_bitwise, make_policy, make_stage, play, score

from burnish.errors import BurnishError
from burnish.finetune.algorithms.qsm import QSM, QSMConfig, score_noise
from burnish.finetune.stage import Setting
from burnish.policies.flow import FlowPolicy, FlowPolicyConfig


@pytest.mark.parametrize("settings", [{}, {"prior": "flat"}, {"prior": "flat", "slope": "released"}])
def test_a_bandit_is_learned(pretrained_weights, settings):
    stage = make_stage("qsm", pretrained_weights, batch_size=64, critic_warmup_updates=50, **settings)
    play(stage, np.random.default_rng(0), 25)
    assert score(stage.policy) > 0.3


def test_resumes_bitwise(pretrained_weights):
    assert_resumes_bitwise("qsm", pretrained_weights)


def test_the_predicted_noise_is_that_of_a_normal_density():
    """Q = -a^2 / 2: the score of exp(Q / lambda) is -a / lambda, and noise predicts -sigma times a score."""
    a, sigma = torch.tensor([[0.5, -2.0]]), torch.tensor(0.6)
    torch.testing.assert_close(score_noise(-a, sigma, 0.3), 0.6 * a / 0.3)


def test_the_scale_of_rewards_does_not_matter_when_normalised(pretrained_weights):
    """As released it does: M_q is 1 / lambda."""
    slope, sigma = torch.randn(50, 1, TA, DA), torch.rand(50, 1, 1, 1)
    for kind in ("normalised", "released"):
        stage = make_stage("qsm", pretrained_weights, slope=kind)
        (one, size), (other, larger) = (stage.predicted_noise(factor * slope, sigma) for factor in (1.0, 100.0))
        assert float(larger / size) == pytest.approx(100, rel=1e-5)
        torch.testing.assert_close(other, one if kind == "normalised" else 100 * one, rtol=1e-5, atol=1e-5)


def test_steps_that_are_not_executed_do_not_thin_out_the_slope():
    """Their slope is 0; the mean is over the others."""
    stage = make_stage("qsm", policy=make_policy(horizon=2 * TA), temperature=0.5)
    slope = torch.zeros(10, 1, 2 * TA, DA)
    slope[:, :, :TA] = 2.0
    target, size = stage.predicted_noise(slope, torch.ones(10, 1, 1, 1))
    assert float(size) == pytest.approx(2)
    torch.testing.assert_close(target[:, :, :TA], torch.full((10, 1, TA, DA), -2.0), rtol=1e-5, atol=0)


def test_anchored_it_stays_where_q_says_nothing(pretrained_weights):
    """lambda without end: the target is the pretrained policy's own prediction, which the actor begins with."""
    losses = {}
    for prior in ("policy", "flat"):
        stage = make_stage("qsm", pretrained_weights, prior=prior, temperature=1e6)
        play(stage, np.random.default_rng(0), 2, learn=False)
        losses[prior] = float(stage.actor_loss(stage._batch())[0].detach())
    assert losses["policy"] < 1e-8 and losses["flat"] > 0.1


def test_the_target_and_what_is_executed_have_noise(pretrained_weights):
    stage = make_stage("qsm", pretrained_weights, target_noise=0.3)
    obs = torch.zeros(2000, 2)
    x = torch.zeros(2000, 1, TA, DA)
    stage.draw = lambda obs, n, network: x
    assert float(stage.target_chunks(obs).std()) == pytest.approx(0.3, rel=0.05)
    stage.act(np.zeros((2000, 1, 2), np.float32))
    assert float(stage.pending[1].std()) == pytest.approx(0.1, rel=0.05)


def test_what_it_cannot_train_is_refused():
    with pytest.raises(BurnishError, match=r"stage=qsm teaches the predicted noise.*prediction_type=sample: expected"):
        make_stage("qsm", policy=make_policy(prediction_type="sample"))
    flow = FlowPolicy(FlowPolicyConfig(horizon=TA, n_action_steps=TA, denoising_steps=10), 2, DA, ["flat"])
    with pytest.raises(BurnishError, match=r"stage=qsm teaches the predicted noise.*velocity"):
        make_stage("qsm", policy=flow)


def test_from_scratch_there_is_no_anchor():
    config = QSMConfig(demos=None, demo_ratio=0.0)
    with pytest.raises(BurnishError, match=r"stage.prior=policy: there is none from scratch; expected stage.prior=f"):
        QSM(make_policy(), config, Setting(TASK, E, 0, pretrained=False))
