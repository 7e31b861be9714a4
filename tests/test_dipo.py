"""DIPO: the memory of improved chunks, the ascent, and that the critic never sees either."""

import numpy as np
import pytest
import torch
from bandit import DA, TA, E, assert_resumes_bitwise, demonstrations, learns_from, make_policy, make_stage, play, score

from burnish.finetune.algorithms.dipo import ascend


def test_a_bandit_is_learned(pretrained_weights):
    stage = make_stage("dipo", pretrained_weights, batch_size=64, critic_warmup_updates=50, action_steps=10)
    play(stage, np.random.default_rng(0), 25)
    assert score(stage.policy) > 0.3


@pytest.mark.parametrize("demo_ratio", [0.0, 0.5])
def test_resumes_bitwise(pretrained_weights, monkeypatch, demo_ratio):
    """What has become of the demonstrations' twins is kept too."""
    learns_from(monkeypatch, demonstrations)
    demos = {"demos": "demos.hdf5", "demo_ratio": 0.5} if demo_ratio else {}
    assert_resumes_bitwise("dipo", pretrained_weights, action_steps=3, **demos)


def filled(pretrained_weights, **settings):
    """A stage with two rounds of chunks, and a batch of each of them once."""
    stage = make_stage("dipo", pretrained_weights, **settings)
    play(stage, np.random.default_rng(0), 2, learn=False)
    return stage, stage.replay.at(torch.arange(2 * E))


def test_what_the_critic_learns_from_is_never_touched(pretrained_weights, monkeypatch):
    stage, whole = filled(pretrained_weights, critic_warmup_updates=0)
    seen, update = [], stage.critic.update
    monkeypatch.setattr(stage.critic, "update", lambda batch, q: seen.append(batch) or update(batch, q))
    for _ in range(3):
        stage._gradient_step()
    after = stage.replay.at(torch.arange(2 * E))
    assert torch.equal(after.chunk, whole.chunk)
    assert all(torch.equal(batch.chunk, whole.chunk[batch.rows]) for batch in seen)
    assert float(after.extra["improvement"].abs().max()) > 0.5  # 3 times 20 steps of 0.03


def test_twins_climb_from_visit_to_visit(pretrained_weights):
    """Where they are written back; else each visit begins with the executed chunk."""
    for write_back in (True, False):
        stage, _ = filled(pretrained_weights, write_back=write_back, action_steps=2, action_lr=0.01)
        rows, moved = torch.arange(2 * E), []
        for _ in range(3):
            moved.append(float(stage.actor_loss(stage.replay.at(rows))[1]["improvement"]))
        expected = [0.02, 0.04, 0.06] if write_back else [0.02] * 3
        np.testing.assert_allclose(moved, expected, rtol=0.15)


def test_a_new_chunk_in_an_old_row_has_no_past(pretrained_weights):
    stage, _ = filled(pretrained_weights, buffer_size=2 * E)
    stage.actor_loss(stage.replay.at(torch.arange(2 * E)))
    assert bool((stage.replay.extra["improvement"].abs().amax(1) > 0).all())
    play(stage, np.random.default_rng(1), 1, learn=False)
    moved = stage.replay.extra["improvement"].abs().amax(1) > 0
    assert int(moved.sum()) == E and not bool(moved[:E].any())


def test_ascent_finds_the_top_within_the_bounds():
    """Of -(a - c)^2, one top inside and one outside of the bounds; what it begins with stays."""
    c = torch.tensor([[0.3, 4.0]])
    start = torch.zeros(1, 2)
    found = ascend(start, lambda x: -2 * (x - c), 400, 0.03, 0.2, lambda x: x.clamp(-1, 1))
    torch.testing.assert_close(found, torch.tensor([[0.3, 1.0]]), atol=0.01, rtol=0)
    assert torch.equal(start, torch.zeros(1, 2))


def test_one_step_of_ascent_by_hand():
    """Adam's first step is lr g / (|g| + eps); the bound is of the whole batch's norm, so it matters next to eps."""
    slope = torch.tensor([[3.0], [-4.0]])
    found = ascend(torch.zeros(2, 1), lambda x: slope.clone(), 1, 0.1, 1e-5, lambda x: x)
    g = slope * 1e-5 / 5
    torch.testing.assert_close(found, 0.1 * g / (g.abs() + 1e-5), rtol=1e-4, atol=0)


def test_steps_that_are_not_executed_stay(pretrained_weights):
    policy = make_policy(horizon=2 * TA)
    stage = make_stage("dipo", policy=policy)
    play(stage, np.random.default_rng(0), 1, learn=False)
    batch = stage.replay.at(torch.arange(E))
    x = stage.improved(batch)
    assert torch.equal(x[:, 0, TA:], batch.chunk.view(E, 2 * TA, DA)[:, TA:])
    assert float((x[:, 0, :TA] - batch.chunk.view(E, 2 * TA, DA)[:, :TA]).abs().mean()) > 0.1
