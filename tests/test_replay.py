"""Chunk transitions against hand computation, and the ring that holds them."""

import copy
import sys
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr

from burnish.datasets.episodes import Episode
from burnish.envs.base import ChunkStep
from burnish.envs.vector.sync import SyncVectorEnv
from burnish.errors import BurnishError
from burnish.finetune.storage.frames import Frames, Histories
from burnish.finetune.storage.monte_carlo import MonteCarlo
from burnish.finetune.storage.own_episodes import OwnEpisodes
from burnish.finetune.storage.replay import (
    Batch,
    NSteps,
    Replay,
    Transitions,
    demonstration_transitions,
    discounted,
    example_transition,
    online_transitions,
)
from burnish.networks import DenoiserConfig
from burnish.policies.diffusion import DiffusionPolicy, PolicyConfig

sys.path.insert(0, str(Path(__file__).parent))
from fake_simulator import Counter

GAMMA = 0.5


def make_policy(Do=1, To=2, Tp=3, Ta=2, Da=1) -> DiffusionPolicy:
    denoiser = DenoiserConfig(hidden_dim=8, n_layers=1)
    config = PolicyConfig(denoiser, n_obs_steps=To, horizon=Tp, n_action_steps=Ta, denoising_steps=5)
    policy = DiffusionPolicy(config, Do, Da, ["flat"])
    policy.obs_normalizer.offset.fill_(1.0)
    policy.obs_normalizer.scale.fill_(2.0)
    policy.action_normalizer.scale.fill_(0.5)
    return policy


def test_reward_and_discount_by_hand():
    rewards = np.array([[1, 2, 4], [1, 2, 0], [8, 0, 0], [1, 2, 4]], np.float32)
    steps, terminated = np.array([3, 2, 1, 3]), np.array([False, False, False, True])
    reward, discount = discounted(rewards, steps, terminated, GAMMA)
    assert reward.tolist() == [1 + 1 + 1, 1 + 1, 8, 3]
    assert discount.tolist() == [1 / 8, 1 / 4, 1 / 2, 0]  # the second and third were cut by a time limit


def transitions(first: int, n: int) -> Transitions:
    rows = torch.arange(first, first + n).float()
    return Transitions(
        rows[:, None].repeat(1, 2), rows[:, None] + 0.1, rows, rows + 0.2, rows[:, None].repeat(1, 2) + 0.3
    )


def test_the_ring_overwrites_the_oldest():
    replay = Replay(5, transitions(0, 1))
    replay.store(transitions(0, 3))
    assert (replay.size, replay.count) == (3, 3)
    replay.store(transitions(3, 3))
    assert (replay.size, replay.count) == (5, 6)
    assert replay.data.reward.tolist() == [5, 1, 2, 3, 4]
    replay.store(transitions(6, 1))
    assert replay.data.reward.tolist() == [5, 6, 2, 3, 4]
    sample = replay.sample(200, torch.Generator().manual_seed(0))
    assert set(sample.reward.tolist()) == {2, 3, 4, 5, 6}
    rows = sample.reward[:, None]  # the numbers of a transition stay together
    torch.testing.assert_close(sample.obs, rows.expand(-1, 2))
    torch.testing.assert_close(sample.chunk, rows + 0.1)
    torch.testing.assert_close(sample.discount, sample.reward + 0.2)
    torch.testing.assert_close(sample.next_obs, rows.expand(-1, 2) + 0.3)


def test_only_what_was_stored_is_sampled():
    replay = Replay(100, transitions(0, 1))
    replay.store(transitions(7, 2))
    assert set(replay.sample(50, torch.Generator().manual_seed(0)).reward.tolist()) == {7, 8}


@pytest.mark.parametrize("n", [3, 7])
def test_a_restored_ring_goes_on_alike(n):
    ours, theirs = (Replay(5, transitions(0, 1)) for _ in range(2))
    ours.store(transitions(0, 2))
    ours.store(transitions(2, n - 2))
    theirs.load_state_dict(copy.deepcopy(ours.state_dict()))
    for replay in (ours, theirs):
        replay.store(transitions(20, 2))
    assert (ours.size, ours.count) == (theirs.size, theirs.count)
    a, b = (replay.sample(30, torch.Generator().manual_seed(1)) for replay in (ours, theirs))
    assert all(torch.equal(x, y) for x, y in zip(a[:5], b[:5])) and torch.equal(a.rows, b.rows)


def episode(T: int, terminated=False, final=True) -> Episode:
    """Observation t at step t, action t / 10, reward 2^t."""
    t = np.arange(T, dtype=np.float32)
    ends = np.zeros(T, bool)
    ends[-1] = terminated
    last = {"flat": np.array([100.0], np.float32)} if final else None
    return Episode("demo_0", {"flat": t[:, None]}, t[:, None] / 10, 2**t, ends, last)


def raw(policy: DiffusionPolicy, normalized: torch.Tensor) -> list[list[float]]:
    return (normalized * policy.obs_normalizer.scale + policy.obs_normalizer.offset).tolist()


@pytest.mark.parametrize("terminated", [False, True])
def test_demonstrations_with_a_final_observation(terminated):
    policy = make_policy()
    ours = demonstration_transitions(policy, [episode(4, terminated)], GAMMA).expanded()
    assert raw(policy, ours.obs) == [[0, 0], [0, 1], [1, 2], [2, 3]]
    # the last action is repeated beyond the end
    chunks = np.array([[0, 1, 2], [1, 2, 3], [2, 3, 3], [3, 3, 3]]) / 10 / 0.5
    np.testing.assert_allclose(ours.chunk.numpy(), chunks, rtol=1e-6)
    # 2^t + 2^(t+1) / 2; of the last chunk one step is executed
    assert ours.reward.tolist() == [1 + 1, 2 + 2, 4 + 4, 8]
    assert ours.discount.tolist() == ([1 / 4, 1 / 4, 0, 0] if terminated else [1 / 4, 1 / 4, 1 / 4, 1 / 2])
    assert raw(policy, ours.next_obs) == [[1, 2], [2, 3], [3, 100], [3, 100]]


def test_demonstrations_without_a_final_observation():
    policy = make_policy()
    ours = demonstration_transitions(policy, [episode(4, final=False)], GAMMA).expanded()
    assert raw(policy, ours.obs) == [[0, 0], [0, 1]]  # chunks that reach the unknown end are left out
    assert raw(policy, ours.next_obs) == [[1, 2], [2, 3]]
    assert ours.discount.tolist() == [1 / 4, 1 / 4]
    ours = demonstration_transitions(policy, [episode(4, terminated=True, final=False)], GAMMA).expanded()
    assert ours.reward.tolist() == [2, 4, 8, 8]  # what follows a terminal step does not matter
    assert ours.discount.tolist() == [1 / 4, 1 / 4, 0, 0]
    assert bool(torch.isfinite(ours.next_obs).all())


def test_demonstrations_that_end_at_their_success():
    policy = make_policy()
    one = episode(4)
    one.rewards[:] = [0, 0, 8, 8]
    ours = demonstration_transitions(policy, [one], GAMMA, ends_at_success=True).expanded()
    assert raw(policy, ours.obs) == [[0, 0], [0, 1], [1, 2]]
    assert ours.reward.tolist() == [0, 4, 8]  # that of step 3 is gone
    assert ours.discount.tolist() == [1 / 4, 0, 0]
    assert raw(policy, ours.next_obs) == [[1, 2], [2, 3], [2, 3]]
    one.rewards[2] = 0  # the last step succeeds: what follows is the final observation
    ours = demonstration_transitions(policy, [one], GAMMA, ends_at_success=True).expanded()
    assert ours.discount.tolist() == [1 / 4, 1 / 4, 0, 0] and raw(policy, ours.next_obs)[3] == [3, 100]
    never = replace(one, rewards=np.zeros(4))
    ours = demonstration_transitions(policy, [one, never], GAMMA, ends_at_success=True).expanded()
    assert ours.discount.tolist()[4:] == [1 / 4, 1 / 4, 1 / 4, 1 / 2]  # a failure goes on to its end
    with pytest.raises(BurnishError, match=r"episode demo_0 is rewarded from its first step on.*ends_at_success=false"):
        demonstration_transitions(policy, [episode(4)], GAMMA, ends_at_success=True)


def test_demonstrations_shorter_than_a_chunk():
    policy = make_policy()
    ours = demonstration_transitions(policy, [episode(1), episode(2, final=False), episode(3)], GAMMA).expanded()
    assert raw(policy, ours.obs) == [[0, 0], [0, 0], [0, 1], [1, 2]]
    assert raw(policy, ours.next_obs)[0] == [0, 100]
    assert ours.discount.tolist() == [1 / 2, 1 / 4, 1 / 4, 1 / 2]
    with pytest.raises(BurnishError, match="no demonstration is long enough for one chunk with a known end"):
        demonstration_transitions(policy, [episode(2, final=False)], GAMMA)


@pytest.mark.parametrize(("scale", "largest"), [(0.5, 1.0), (1.0, 1.0), (2.0, 0.5)])
def test_demonstrated_actions_are_clipped_as_the_environment_does(scale, largest):
    """Raw to 1, then normalised to the policy's bounds."""
    policy = make_policy()
    policy.action_normalizer.scale.fill_(scale)
    wild = episode(3)
    wild.actions[:] = 5
    assert float(demonstration_transitions(policy, [wild], GAMMA).transitions.chunk.max()) == largest


def test_online_transitions_lead_to_the_final_observation():
    policy = make_policy()
    final = np.array([[[2], [3]], [[4], [5]], [[6], [7]]], np.float32)
    next_episode = np.full_like(final, -50)
    step = ChunkStep(
        obs=next_episode,
        reward=np.array([3, 1, 3], np.float32),
        terminated=np.array([False, False, True]),
        truncated=np.array([False, True, False]),
        final_obs=final,
        success=np.zeros(3, bool),
        steps=np.array([2, 1, 2]),
        step_rewards=np.array([[1, 2], [1, 0], [1, 2]], np.float32),
    )
    obs, chunk = torch.randn(3, 2), torch.randn(3, 3, 1)
    ours = online_transitions(policy, obs, chunk, step, GAMMA)
    assert ours.obs is obs
    assert torch.equal(ours.chunk, chunk.flatten(1))
    assert raw(policy, ours.next_obs) == [[2, 3], [4, 5], [6, 7]]
    assert ours.reward.tolist() == [2, 1, 2]
    assert ours.discount.tolist() == [1 / 4, 1 / 2, 0]


def test_online_transitions_of_a_counter():
    """Through the vector environment: reward = action + 10 t, a time limit of 3 cuts every second chunk of 2."""
    policy = make_policy(Do=3)
    envs = SyncVectorEnv(Counter, n_envs=1, n_obs_steps=2, n_action_steps=2, max_episode_steps=3, seed=0)
    obs, stored = envs.reset(), []
    for _ in range(4):
        chunk = torch.full((1, 3, 1), 1.0)  # 0.5 when it is executed
        step = envs.step(policy.executed_actions(chunk).numpy())
        stored.append(online_transitions(policy, policy.normalized_obs(torch.from_numpy(obs)), chunk, step, GAMMA))
        obs = step.obs
    envs.close()
    assert [float(t.reward) for t in stored] == [10.5 + 10.25, 30.5] * 2
    assert [float(t.discount) for t in stored] == [1 / 4, 1 / 2] * 2
    rows = [(t.next_obs * 2 + 1).view(2, 3)[:, :2].tolist() for t in stored]  # (episode, t) of both steps
    assert rows == [[[e, t - 1], [e, t]] for e in (1, 2) for t in (2, 3)]


def chunks_of(rng, E, n):
    """n chunks of E environments that follow each other."""
    obs = rng.normal(size=(n + 1, E, 2)).astype(np.float32)
    fields = rng.normal(size=(n, E)).astype(np.float32)
    return [
        Transitions(*map(torch.from_numpy, (obs[t], obs[t, :, :1], fields[t], np.full(E, 0.9, np.float32), obs[t + 1])))
        for t in range(n)
    ]


@pytest.mark.parametrize("n", [1, 2, 3])
def test_n_step_returns_by_hand(n):
    """Of 2 environments, 6 chunks; the second one's episode ends with its third, by termination, and with its last."""
    steps, joining = chunks_of(np.random.default_rng(0), 2, 6), NSteps(n, torch.device("cpu"))
    ended = torch.zeros(6, 2, dtype=torch.bool)
    ended[2, 1] = ended[5, 0] = ended[5, 1] = True
    steps[2].discount[1] = 0
    found = [joining.add(step, end) for step, end in zip(steps, ended)]
    envs = torch.cat([joined.envs for joined in found])
    found = Transitions(*(torch.cat(field) for field in zip(*(joined.transitions for joined in found))))
    assert joining.flush() is None or not len(joining.waiting)
    assert len(found.reward) == 12  # each chunk begins one
    for t in range(6):
        for e in range(2):
            end = 3 if e == 1 and t < 3 else 6
            part = steps[t : min(t + n, end)]
            reward = sum(float(step.reward[e]) * 0.9**i for i, step in enumerate(part))
            discount = float(torch.stack([step.discount[e] for step in part]).prod())
            (row,) = (found.obs == steps[t].obs[e]).all(1).nonzero()[:, 0].tolist()
            assert envs[row] == e
            assert float(found.reward[row]) == pytest.approx(reward, abs=1e-6)
            assert float(found.discount[row]) == pytest.approx(discount, abs=1e-6)
            assert torch.equal(found.next_obs[row], part[-1].next_obs[e])
            assert torch.equal(found.chunk[row], steps[t].chunk[e])


def test_n_step_returns_go_on_and_are_flushed():
    steps, running = chunks_of(np.random.default_rng(1), 3, 5), torch.zeros(3, dtype=torch.bool)
    one, other = (NSteps(3, torch.device("cpu")) for _ in range(2))
    for step in steps[:4]:
        one.add(step, running)
    other.load_state_dict(one.state_dict())
    for ours, theirs in zip(one.add(steps[4], running).transitions, other.add(steps[4], running).transitions):
        assert len(ours) == 3 and torch.equal(ours, theirs)
    waiting = one.flush().transitions
    assert len(waiting.reward) == 6 and not one.waiting
    torch.testing.assert_close(waiting.reward[:3], steps[3].reward + 0.9 * steps[4].reward)
    assert torch.equal(waiting.reward[3:], steps[4].reward) and torch.equal(waiting.next_obs[:3], steps[4].next_obs)


def test_demonstrations_of_two_chunks_by_hand():
    """Ta = 2, gamma 1/2, reward 2^t: each full step adds 1 times the first's."""
    policy = make_policy()
    ours = demonstration_transitions(policy, [episode(5)], GAMMA, n_step=2).expanded()
    assert ours.reward.tolist() == [4, 8, 12, 16, 16]
    assert ours.discount.tolist() == [1 / 16, 1 / 16, 1 / 8, 1 / 4, 1 / 2]
    assert raw(policy, ours.next_obs) == [[3, 4], [4, 100], [4, 100], [4, 100], [4, 100]]
    ours = demonstration_transitions(policy, [episode(5, final=False)], GAMMA, n_step=2).expanded()
    assert ours.reward.tolist() == [4, 6, 8]  # up to the last observation, 4
    assert ours.discount.tolist() == [1 / 16, 1 / 8, 1 / 4]
    assert raw(policy, ours.next_obs) == [[3, 4], [3, 4], [3, 4]]


def test_the_critic_is_compared_with_the_returns_that_came():
    """The first of two environments terminates with its second chunk, the other is cut by a time limit."""
    steps = chunks_of(np.random.default_rng(2), 2, 3)
    steps[1].discount[0] = 0
    q = {tuple(obs.tolist()): float(i) for i, obs in enumerate(torch.cat([step.obs for step in steps]))}

    def value(obs, chunk):
        return torch.tensor([q[tuple(each.tolist())] for each in obs])

    monte_carlo = MonteCarlo(2, torch.device("cpu"), value, tail=lambda obs: 10 + 0 * obs[:, 0])
    ends = torch.tensor([[False, False], [True, False], [False, True]])
    assert monte_carlo.report() == {}
    monte_carlo.observe(steps[0], ends[0])
    again = MonteCarlo(2, torch.device("cpu"), value, tail=lambda obs: 10 + 0 * obs[:, 0])
    again.load_state_dict(monte_carlo.state_dict())
    for step, ended in zip(steps[1:], ends[1:]):
        again.observe(step, ended)
    assert len(again.steps) == 1 and again.begun == [0, 1]  # of the first environment's next episode
    r = torch.stack([step.reward for step in steps])
    first = [r[0, 0] + 0.9 * r[1, 0], r[1, 0]]
    second = [r[0, 1] + 0.9 * r[1, 1] + 0.81 * r[2, 1] + 0.729 * 10, r[1, 1] + 0.9 * r[2, 1] + 8.1, r[2, 1] + 9]
    returns, valued = np.array([*first, *second], float), np.array([0, 2, 1, 3, 5])
    report = again.report()
    assert report["critic_bias"] == pytest.approx(float((valued - returns).mean()), rel=1e-5)
    assert report["critic_rank_correlation"] == pytest.approx(spearmanr(valued, returns).statistic)
    assert again.report() == {}


# -- frames, and what the own episodes are -----------------------------------------------------------------------------


def test_frames_that_several_observations_share_are_stored_once():
    """E = 2, To = 3: chunks of 1, 4 and 2 steps, then an episode of the second environment begins anew."""
    E, To = 2, 3
    frames = Frames(100, torch.zeros(1))
    histories = Histories(frames, To)
    windows = {
        0: [[0, 0, 0], [50, 50, 50]],
        1: [[0, 0, 1], [50, 50, 51]],
        5: [[3, 4, 5], [53, 54, 55]],
        7: [[5, 6, 7], [55, 56, 57]],
    }
    steps = [0, 1, 5, 7]
    seen = histories.see(torch.tensor(windows[0], dtype=torch.float))
    assert frames.count == E * To
    for before, after in pairwise(steps):
        assert torch.equal(histories.see(torch.tensor(windows[before]).float()), seen)  # nothing new
        count, h = frames.count, after - before
        seen = histories.follow(torch.tensor(windows[after]).float(), np.full(E, h))
        assert frames.count - count == E * min(h, To)
        assert frames.windows(seen).tolist() == windows[after]
    anew = torch.tensor([[5, 6, 7], [90, 90, 90]]).float()
    count = frames.count
    again = histories.see(anew)
    assert torch.equal(again[0], seen[0]) and frames.windows(again).tolist() == anew.tolist()
    assert frames.count - count == To
    cut = histories.follow(torch.tensor([[7, 8, 9], [90, 90, 91]]).float(), np.array([2, 1]))  # by an episode's end
    assert frames.windows(cut).tolist() == [[7, 8, 9], [90, 90, 91]] and cut[1, 0] == again[1, 1]
    other = torch.tensor([[7, 8, 9], [90, 90, 99]]).float()  # of which one number is not what was seen last
    assert frames.windows(histories.see(other)).tolist() == other.tolist()


@pytest.mark.parametrize(("To", "Ta", "limit"), [(1, 2, 7), (2, 1, 5), (3, 2, 4)])
def test_a_full_ring_has_every_transition_as_it_was(To, Ta, limit):
    """Observations (episode, t, start) of a counter in 3 environments, far beyond the capacity; returns of 2 chunks."""
    policy = make_policy(Do=3, To=To, Ta=Ta)
    E, capacity, n = 3, 12, 2
    envs = SyncVectorEnv(Counter, n_envs=E, n_obs_steps=To, n_action_steps=Ta, max_episode_steps=limit, seed=0)
    replay = Replay(capacity, example_transition(policy), To, spare=(n + 2) * E)
    joining, expected = NSteps(n, torch.device("cpu")), []
    whole = NSteps(n, torch.device("cpu"))
    obs = policy.normalized_obs(envs.reset())
    for _ in range(30):
        chunk = torch.rand(E, 3, 1)
        step = envs.step(policy.executed_actions(chunk).numpy())
        new, ended = (
            online_transitions(policy, obs, chunk, step, GAMMA),
            torch.from_numpy(step.terminated | step.truncated),
        )
        before = replay.histories.see(obs)
        after = replay.histories.follow(new.next_obs, step.steps)
        replay.add(joining.add(new._replace(obs=before, next_obs=after), ended).transitions)
        expected += list(zip(*whole.add(new, ended).transitions))
        obs = policy.normalized_obs(step.obs)
    first = replay.count - capacity
    assert len(expected) == replay.count > 5 * capacity
    found = replay.at(torch.arange(first, replay.count) % capacity)
    for ours, theirs in zip(found[:5], zip(*expected[first:])):
        assert torch.equal(ours, torch.stack(theirs))
    assert replay.frames.count < (1 + To) * (replay.count + n * E)  # not the 2 To of whole observations


def test_what_is_written_back_is_found_again():
    online = Replay(5, transitions(0, 1), extra={"g": torch.zeros(())})
    demos = Replay(3, transitions(0, 1), extra={"g": torch.zeros(()), "h": torch.zeros(2)})
    online.store(transitions(0, 5))
    demos.store(transitions(10, 3))
    batch = Batch.joined([demos.at(torch.tensor([2, 0])), online.at(torch.tensor([1, 4, 3]))])
    assert batch.reward.tolist() == [12, 10, 1, 4, 3] and batch.rows.tolist() == [2, 0, 1, 4, 3]
    assert list(batch.extra) == ["g"]
    batch.write(g=torch.tensor([1.0, 2, 3, 4, 5]), chunk=torch.arange(5.0)[:, None])
    assert demos.extra["g"].tolist() == [2, 0, 1] and online.extra["g"].tolist() == [0, 3, 0, 5, 4]
    assert demos.data.chunk[:, 0].tolist() == pytest.approx([1, 11.1, 0])
    again = online.at(torch.tensor([4]))
    assert (again.extra["g"].item(), again.chunk.item(), again.reward.item()) == (4, 3, 4)
    online.store(transitions(20, 2))  # over the first two
    assert online.extra["g"].tolist() == [0, 0, 0, 5, 4]
    restored = Replay(5, transitions(0, 1), extra={"g": torch.zeros(())})
    restored.load_state_dict(copy.deepcopy(online.state_dict()))
    assert torch.equal(restored.extra["g"], online.extra["g"]) and restored.count == 7


def test_only_own_episodes_that_succeeded_and_are_still_known_are_drawn():
    replay = Replay(8, transitions(0, 1))
    own, generator = OwnEpisodes(replay, 2), torch.Generator().manual_seed(0)
    both, none = torch.tensor([0, 1]), np.zeros(2, bool)
    assert own.sample(4, generator) is None

    def chunk(success=none, ended=none):
        replay.store(transitions(replay.count, 2))
        return own.add(both, np.asarray(success), np.asarray(ended))

    assert chunk(success=[True, False]) == {}
    assert chunk() == {}
    whole = chunk(ended=[True, True])  # rewards 0, 2, 4 of the first, which succeeded; 1, 3, 5 of the second
    assert {e: rows.tolist() for e, rows in whole.items()} == {0: [0, 2, 4], 1: [1, 3, 5]}
    assert set(own.sample(60, generator).reward.tolist()) == {0, 2, 4}
    again = OwnEpisodes(replay, 2)
    again.load_state_dict(copy.deepcopy(own.state_dict()))
    chunk(success=[False, True])
    chunk(ended=[False, True])  # the ring of 8 has forgotten 0 and 1; 7 and 9 succeeded
    assert set(own.sample(60, generator).reward.tolist()) == {2, 4, 7, 9}
    assert set(again.sample(60, generator).reward.tolist()) == {2, 4}
    for _ in range(4):
        chunk()
    assert own.sample(3, generator) is None


def test_returns_to_go_of_demonstrations():
    policy = make_policy()
    found = demonstration_transitions(policy, [episode(4), episode(2)], GAMMA)
    assert found.returns.tolist() == [1 + 1 + 1 + 1, 2 + 2 + 2, 4 + 4, 8, 1 + 1, 2]  # 2^t, halved at each step
    assert len(found.frames) == 5 + 3 and found.transitions.obs.max() == 6
