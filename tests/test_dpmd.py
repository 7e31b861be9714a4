"""DPMD: one mirror step is learned, its controls are controls, and the best draw can be trained on alone."""

import copy

import densities
import numpy as np
import pytest
import torch
from bandit import DA, TA, make_stage, play, score
from densities import TEMPERATURE, batch_of, density, histogram, log_target, sample, total_variation, train, values
from scipy import stats

from burnish.errors import BurnishError
from burnish.finetune.algorithms.dpmd import DPMDConfig
from burnish.finetune.drawing import Draws
from burnish.finetune.losses.rsm import RSMConfig
from burnish.finetune.storage.replay import Transitions

OLD_MEAN, OLD_STD = 0.3, 0.5


@pytest.mark.parametrize(
    ("control", "selected"), [({"rsm": RSMConfig(weights="constant")}, 0.02), ({"freeze_actor": True}, 0.15)]
)
def test_controls_learn_by_selection_alone(pretrained_weights, control, selected):
    """Constant weights also narrow the policy, as every generation of draws is a little narrower than its parent."""
    stage = make_stage("dpmd", pretrained_weights, batch_size=64, **control)
    play(stage, np.random.default_rng(0), 60)
    assert abs(score(stage.policy)) < 0.1
    assert score(stage.policy, candidates=8) > selected


def test_the_best_draw_alone_is_trained_on(pretrained_weights):
    """With constant weights too, the control of the released code's selection; the other draws do not matter."""
    losses = []
    for scale in (1.0, 0.1):
        stage = make_stage(
            "dpmd", pretrained_weights, draws=4, train_on="best", rsm=RSMConfig(weights="constant"), resample=0
        )
        obs = torch.zeros(8, 2)
        batch = Transitions(obs, torch.zeros(8, TA * DA), torch.zeros(8), torch.zeros(8), obs)
        draws = torch.linspace(-1, 1, 8 * 4 * TA * DA).view(8, 4, TA, DA)
        draws[:, :3] *= scale
        q = torch.tensor([0.0, 1.0, 2.0, 3.0]).expand(8, 4)  # the last is the best
        losses.append(stage.actor_loss(batch, Draws(obs, draws, q[None], q[None]))[0].item())
    assert losses[0] == losses[1]


def old_log_density(a: np.ndarray) -> np.ndarray:
    return -0.5 * ((a - OLD_MEAN) / OLD_STD) ** 2


@pytest.fixture(scope="module")
def old_weights() -> dict[str, torch.Tensor]:
    """A policy cloned from truncated normal actions."""
    torch.manual_seed(0)
    policy = densities.make_policy()
    bounds = (-1 - OLD_MEAN) / OLD_STD, (1 - OLD_MEAN) / OLD_STD
    data = stats.truncnorm(*bounds, OLD_MEAN, OLD_STD).rvs(100_000, random_state=0)
    actions = torch.from_numpy(data).float().view(-1, 1, 1)

    def loss():
        return policy.loss(torch.zeros(512, 1, 1), actions[torch.randint(len(actions), (512,))])

    train(policy.parameters(), 700, 3e-3, loss)
    return policy.state_dict()


@pytest.mark.parametrize(("weights", "resample"), [("fixed", 0), ("fixed", 4), ("constant", 0)])
def test_dpmd_learns_one_mirror_step(old_weights, weights, resample):
    """pi_old exp(Q / lambda) from pi_old; with constant weights, the control, it stays pi_old."""
    torch.manual_seed(0)
    policy = densities.make_policy()
    policy.load_state_dict(old_weights)
    rsm = RSMConfig(weights=weights, temperature=TEMPERATURE)
    stage = densities.make_stage("dpmd", policy, rsm=rsm, draws=64, resample=resample)
    before = sample(policy, stage.old)
    assert total_variation(before, density(old_log_density)) < 0.15
    old = histogram(before)
    mirror = histogram(before, np.exp(log_target(before)))
    assert total_variation(before, mirror) > 0.3
    pool = torch.from_numpy(before).view(-1, 1, 1)
    states = 128 if resample else 16

    def loss():
        draws = pool[torch.randint(len(pool), (states, 64))]
        batch = batch_of(states)
        return stage.actor_loss(batch, Draws(batch.next_obs, draws, *[values(None, draws)[None]] * 2))[0]

    train(stage.actor.parameters(), 700, 2e-3, loss)
    after = sample(policy, stage.actor)
    if weights == "constant":
        assert total_variation(after, old) < 0.15
        assert total_variation(after, mirror) > 0.3
    else:
        assert total_variation(after, mirror) < 0.15
        assert total_variation(after, old) > 0.3


@pytest.mark.parametrize("draws", [1, 4])
def test_constant_weights_give_exactly_the_gradient_of_behaviour_cloning(draws):
    """Of cloning every draw; with several draws no other weights do."""
    torch.manual_seed(0)
    policy = densities.make_policy(Do=3, Tp=4, Da=2)
    policy.obs_normalizer.fit(torch.randn(50, 3), "min_max")
    policy.action_normalizer.fit(0.7 * torch.rand(50, 2) - 0.2, "min_max")
    clone = copy.deepcopy(policy)
    obs, actions = torch.randn(32, 1, 3), 0.7 * torch.rand(32, draws, 4, 2) - 0.2
    normalized = policy.normalized_obs(obs)
    batch = Transitions(normalized, torch.zeros(32, 8), torch.zeros(32), torch.zeros(32), normalized)
    q = torch.randn(32, draws)

    theirs = clone.loss(
        obs.repeat_interleave(draws, 0), actions.flatten(0, 1), torch.Generator().manual_seed(5)
    )  # the same numbers in the same order
    theirs.backward()
    for weights in ("constant", "fixed"):
        stage = densities.make_stage(
            "dpmd", copy.deepcopy(policy), rsm=RSMConfig(weights=weights), draws=draws, resample=0
        )
        stage.generator.manual_seed(5)
        ours, _ = stage.actor_loss(
            batch, Draws(normalized, policy.action_normalizer.normalize(actions), q[None], q[None])
        )
        ours.backward()
        if weights == "constant":
            torch.testing.assert_close(ours, theirs)
            for (name, p), other in zip(stage.actor.named_parameters(), clone.denoiser.parameters()):
                torch.testing.assert_close(p.grad, other.grad, rtol=1e-5, atol=1e-7, msg=f"gradient of {name}")
        elif draws > 1:
            assert abs(ours - theirs) > 1e-2 * theirs


@pytest.mark.parametrize("weights", ["fixed", "constant"])
def test_executed_chunks_are_weighed_by_their_advantages(old_weights, weights, monkeypatch):
    """The batch's own chunks, not the draws, give pi_old exp(Q / lambda); with constant weights they stay."""
    torch.manual_seed(0)
    policy = densities.make_policy()
    policy.load_state_dict(old_weights)
    monkeypatch.setattr(policy, "values", values)
    rsm = RSMConfig(weights=weights, temperature=TEMPERATURE)
    settings = {"rsm": rsm, "baseline_draws": 2, "train_on": "executed", "draw_at": "current"}
    stage = densities.make_stage("dpmd", policy, **settings)
    assert stage.draws_for_actor == 2 != stage.config.draws
    executed = sample(policy, stage.old)
    old, mirror = histogram(executed), histogram(executed, np.exp(log_target(executed)))
    pool = torch.from_numpy(executed).view(-1, 1)
    draws = torch.full((512, 2, 1, 1), 0.9)

    def loss():
        batch = batch_of(512, pool[torch.randint(len(pool), (512,))])
        worth = 0.6 * batch.chunk  # of the states, whose chunks differ
        monkeypatch.setattr(policy, "values", lambda obs, x, critic=None: values(obs, x) + worth)
        apart = 2 * torch.randn(512, 1)
        q = torch.cat([worth + apart, worth - apart], 1)
        return stage.actor_loss(batch, Draws(batch.obs, draws, q[None], q[None]))[0]

    train(stage.actor.parameters(), 700, 2e-3, loss)
    after = sample(policy, stage.actor)
    expected, other = (old, mirror) if weights == "constant" else (mirror, old)
    assert total_variation(after, expected) < 0.15 and total_variation(after, other) > 0.3


def test_executed_chunks_are_learned_from_where_they_were_executed():
    DPMDConfig(rsm=RSMConfig(kl_target=3.0), batch_size=32)  # of the batch's chunks
    with pytest.raises(BurnishError, match=r"kl_target=3.0 nats: expected less than log\(batch_size\) = 2.773"):
        DPMDConfig(rsm=RSMConfig(kl_target=3.0), batch_size=16)
    with pytest.raises(BurnishError, match=r"kl_target=3.0 nats: expected less than log\(draws\) = 2.079"):
        DPMDConfig(rsm=RSMConfig(kl_target=3.0), batch_size=32, train_on="all")
    with pytest.raises(BurnishError, match=r"draw_at=next: expected current"):
        DPMDConfig(draw_at="next")
