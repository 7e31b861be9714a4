"""PPO by Stable-Baselines3: its advantages are ours, its first ratio is 1, and what it starts from."""

import copy

import numpy as np
import pytest
import torch
from bandit import DA, TA, chunk_step
from baseline_stages import NOTHING, E, make_policy, make_stage, observations, play

from burnish.finetune.losses.gae import gae


def ppo_rollout(stage, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """One rollout with ends of both kinds -> rewards, terminated, truncated and final observations (T, E, ...)."""
    kept = []
    obs = observations(rng)
    while not stage.ready():
        stage.act(obs)
        draw = rng.random(E)
        terminated, truncated = draw < 0.15, draw > 0.85
        reward, obs = rng.normal(size=E).astype(np.float32), observations(rng)
        final = np.where((terminated | truncated)[:, None, None], observations(rng), obs)
        stage.observe(chunk_step(obs, reward, terminated, truncated, final))
        kept.append((reward, terminated, truncated, final))
    names = ("reward", "terminated", "truncated", "final_obs")
    return dict(zip(names, map(np.stack, zip(*kept))))


@pytest.mark.parametrize("reward_scaling", [False, True])
def test_ppos_advantages_are_ours(monkeypatch, reward_scaling):
    stage = make_stage("ppo", gamma=0.9, reward_scaling=reward_scaling)
    data = {key: torch.from_numpy(value) for key, value in ppo_rollout(stage, np.random.default_rng(0)).items()}
    buffer, model = stage.buffer, stage.model
    with torch.no_grad():
        next_values = model.policy.predict_values(stage.policy.normalized_obs(data["final_obs"].flatten(0, 1)))
    values, rewards = torch.from_numpy(buffer.values.copy()), data["reward"]
    if reward_scaling:
        scaler = copy.deepcopy(stage.reward_scaler)
        rewards = scaler(rewards, data["terminated"] | data["truncated"])
    ends = data["terminated"], data["truncated"]
    advantages, returns = gae(rewards, values, next_values.view_as(values), *ends, gamma=0.81, gae_lambda=0.95)
    seen = {}
    train = lambda: seen.update(a=buffer.advantages.copy(), r=buffer.returns.copy())  # noqa: E731
    monkeypatch.setattr(model, "train", train)
    stage.update()
    np.testing.assert_allclose(seen["a"], advantages.numpy(), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(seen["r"], returns.numpy(), rtol=1e-4, atol=1e-5)
    assert data["truncated"].sum() > 3 and data["terminated"].sum() > 3


def test_a_chunk_cut_by_the_time_limit_is_discounted_by_its_steps():
    stage = make_stage("ppo", gamma=0.9)
    stage.act(observations(np.random.default_rng(0)))
    steps = np.full(E, TA)
    steps[0] = 1
    stage.observe(chunk_step(NOTHING, truncated=np.arange(E) < 2, steps=steps))
    v = stage.final_values
    np.testing.assert_allclose(stage.bootstrap[0], np.where(np.arange(E) < 2, [0.9, *[0.81] * 7], 0) * v, rtol=1e-6)


def test_ppos_first_ratio_is_one(monkeypatch):
    """Of the first minibatch, as Stable-Baselines3 computes it."""
    stage = make_stage("ppo", n_epochs=1)
    ppo_rollout(stage, np.random.default_rng(0))
    policy, get, evaluate_actions = stage.model.policy, stage.buffer.get, stage.model.policy.evaluate_actions
    old, new = [], []

    def watched_get(size):
        for batch in get(size):
            old.append(batch.old_log_prob)
            yield batch

    def watched_evaluation(*given):
        result = evaluate_actions(*given)
        new.append(result[1].detach())
        return result

    monkeypatch.setattr(stage.buffer, "get", watched_get)
    monkeypatch.setattr(policy, "evaluate_actions", watched_evaluation)
    metrics = stage.update()
    new.pop(0)  # our own look at the whole rollout
    assert len(old) == len(new) == 2 and metrics["first_ratio_error"] < 1e-5
    torch.testing.assert_close((new[0] - old[0]).exp(), torch.ones(64), atol=1e-5, rtol=0)
    assert ((new[1] - old[1]).exp() - 1).abs().amax() > 1e-4  # after one gradient step


def test_a_policy_that_changed_between_sampling_and_update_shows(monkeypatch):
    stage = make_stage("ppo")
    ppo_rollout(stage, np.random.default_rng(0))
    with torch.no_grad():
        stage.policy.log_std.add_(0.1)
    assert stage.update()["first_ratio_error"] > 0.01


def test_cut_episodes_bootstraps_the_last_chunk():
    stage = make_stage("ppo", gamma=0.9)
    stage.cut_episodes()  # nothing stored: nothing to do
    terminated = np.arange(E) < 3
    stage.act(observations(np.random.default_rng(0)))
    stage.observe(chunk_step(NOTHING, terminated=terminated))
    stage.cut_episodes()
    np.testing.assert_allclose(stage.bootstrap[0], np.where(terminated, 0, 0.81 * stage.final_values), rtol=1e-6)
    stage.act(observations(np.random.default_rng(1)))
    stage.observe(chunk_step(NOTHING))
    assert stage.buffer.episode_starts[:2].tolist() == [[1] * E] * 2


def test_ppo_goes_on_from_a_pretrained_policy():
    policy = make_policy()
    with torch.no_grad():
        policy.log_std.fill_(-1.5)
    obs = np.random.default_rng(0).normal(size=(20, 1, 2)).astype(np.float32)
    cloned = policy.act(obs)
    stage = make_stage("ppo", copy.deepcopy(policy), pretrained=True, log_std_init=-3.0)
    np.testing.assert_array_equal(stage.policy.act(obs), cloned)
    assert torch.equal(stage.policy.log_std, torch.full((TA * DA,), -3.0))
    play(stage, np.random.default_rng(0), 16)
    assert stage.iteration == 1
    np.testing.assert_array_equal(stage.policy.act(obs), cloned)  # the critic alone
    play(stage, np.random.default_rng(0), 16)
    assert not np.array_equal(stage.policy.act(obs), cloned)
    fitted = make_stage("ppo", copy.deepcopy(policy), pretrained=True, log_std_init=None)
    assert torch.equal(fitted.policy.log_std, torch.full((TA * DA,), -1.5))
    fresh = make_stage("ppo", copy.deepcopy(policy))
    assert not np.array_equal(fresh.policy.act(obs), cloned)  # Stable-Baselines3's own initialisation
    before = fresh.policy.act(obs)
    play(fresh, np.random.default_rng(0), 16)
    assert not np.array_equal(fresh.policy.act(obs), before)
