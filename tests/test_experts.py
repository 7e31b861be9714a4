"""Scripted experts, collecting demonstrations, and the shipped Lift set."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import h5py
import numpy as np
import pytest

from burnish.datasets.collecting.actors import PolicyActor
from burnish.datasets.collecting.collect import collect
from burnish.datasets.collecting.config import CollectConfig
from burnish.datasets.collecting.recorder import STEPS_AFTER_SUCCESS, Recorder
from burnish.datasets.experts import make_expert
from burnish.datasets.experts.expert import hand_rotation, nearest_yaw
from burnish.datasets.experts.faults import Faults
from burnish.datasets.load import load
from burnish.datasets.sources import resolve
from burnish.envs import make_simulator
from burnish.envs.task import load_task
from burnish.errors import BurnishError

LIFT = load_task("lift")
HOPPER = replace(load_task("hopper"), max_episode_steps=30)
OFFSET = Faults(grasp_offset=0.025, region=0.6, no_recovery=True)
SHIPPED_SKILL = {"action_noise": 0.3, "grasp_bias": 0.006, "speed": 0.5}


def successes(recorder: Recorder, seeds: range) -> list[bool]:
    return [recorder.record(seed).success for seed in seeds]


@pytest.fixture(scope="module")
def clean_lift() -> Recorder:
    return Recorder(CollectConfig(LIFT, "unused.hdf5"))


def test_hand_points_down_with_its_fingers_along_the_yaw():
    matrix = hand_rotation(np.pi / 2).as_matrix()
    assert np.allclose(matrix[:, 1], [0, 1, 0])
    assert np.allclose(matrix[:, 2], [0, 0, -1])
    assert np.linalg.det(matrix) == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("yaw", "reference", "period", "expected"),
    [(3.0, 0.0, np.pi, 3.0 - np.pi), (0.2, 0.1, np.pi / 2, 0.2), (-3.0, 3.0, 2 * np.pi, 2 * np.pi - 3.0)],
)
def test_nearest_yaw(yaw, reference, period, expected):
    assert nearest_yaw(yaw, reference, period) == pytest.approx(expected)


def test_lift_expert_succeeds(clean_lift):
    assert successes(clean_lift, range(5)) == [True] * 5


@pytest.mark.slow
@pytest.mark.parametrize(
    ("task", "seeds", "at_least"), [("stack", 4, 3), ("can", 3, 3), ("square", 4, 3), ("door", 4, 4)]
)
def test_expert_succeeds(task, seeds, at_least):
    recorder = Recorder(CollectConfig(load_task(task), "unused.hdf5", states=False))
    assert sum(successes(recorder, range(seeds))) >= at_least


def test_an_episode_ends_shortly_after_success(clean_lift):
    rewards = clean_lift.record(0).episode.rewards
    assert len(rewards) - 1 - rewards.argmax() == STEPS_AFTER_SUCCESS


def test_noise_lowers_success(clean_lift):
    noisy = Recorder(CollectConfig(replace(LIFT, max_episode_steps=35), "unused.hdf5", action_noise=2.0))
    assert sum(successes(noisy, range(3))) < sum(successes(clean_lift, range(3)))


def test_the_grasp_bias_moves_the_goal_by_its_length(clean_lift):
    clean_lift.simulator.reset(0)
    goals = []
    for bias in (0.0, 0.02):
        expert = make_expert("Lift", grasp_bias=bias)
        expert.reset(clean_lift.simulator, np.random.default_rng(0))
        goals.append(expert._waypoint.position())
    assert np.linalg.norm(goals[1] - goals[0]) == pytest.approx(0.02)
    assert goals[1][2] == goals[0][2]


def test_half_speed_halves_the_largest_command(clean_lift):
    slow = Recorder(CollectConfig(LIFT, "unused.hdf5", speed=0.5))
    fast_motion = clean_lift.record(0).episode.actions[:, :6]
    slow_motion = slow.record(0).episode.actions[:, :6]
    assert np.abs(fast_motion).max() == 1.0
    assert np.abs(slow_motion).max() == 0.5


def test_replaying_the_recorded_actions_reproduces_the_recorded_states():
    """So what is recorded is what was executed: after noise and clipping."""
    config = CollectConfig(LIFT, "unused.hdf5", seed=7, **SHIPPED_SKILL)
    episode = Recorder(config).record(2).episode
    assert np.abs(episode.actions).max() <= 1.0
    assert set(np.unique(episode.actions[:, 6])) == {-1.0, 1.0}  # no noise on the gripper
    simulator = make_simulator(LIFT)
    simulator.reset(9)
    for state, action in zip(episode.states, episode.actions):
        assert np.array_equal(simulator.env.sim.get_state().flatten(), state)
        obs = simulator.step(action).obs
    assert np.array_equal(np.concatenate([episode.final_obs[key] for key in LIFT.obs_keys]), obs)


@pytest.mark.slow
def test_the_file_does_not_depend_on_the_number_of_workers(tmp_path):
    files = [tmp_path / f"{n}.hdf5" for n in (1, 2)]
    for n_workers, file in enumerate(files, start=1):
        collect(CollectConfig(LIFT, str(file), episodes=3, n_workers=n_workers, **SHIPPED_SKILL))
    one, two = (load(file) for file in files)
    assert one.env_args == two.env_args
    for a, b in zip(one.episodes, two.episodes, strict=True):
        assert a.name == b.name and a.model_file == b.model_file
        assert np.array_equal(a.actions, b.actions)
        assert np.array_equal(a.states, b.states)
        assert np.array_equal(a.flat_obs(LIFT.obs_keys), b.flat_obs(LIFT.obs_keys))


def test_successes_only_and_no_overwriting(tmp_path):
    short = replace(LIFT, max_episode_steps=27)  # seed 2 takes 26 steps, seed 3 takes 28
    config = CollectConfig(short, str(tmp_path / "a.hdf5"), seed=2, episodes=2, n_workers=1, successes_only=True)
    collect(config)
    (kept,) = load(config.out).episodes
    assert kept.name == "demo_0"
    assert kept.rewards.max() == 1.0
    with pytest.raises(BurnishError, match=r"a\.hdf5 exists already.*overwrite=true"):
        collect(config)
    with pytest.raises(BurnishError, match=r"none of the 1 episodes succeeded"):
        collect(replace(config, task=replace(LIFT, max_episode_steps=2), episodes=1, overwrite=True))


def test_the_model_file_names_no_folder_of_this_machine(clean_lift):
    episode = clean_lift.record(0).episode
    files = re.findall(r'file="([^"]+)"', episode.model_file)
    assert files and all(file.startswith("robosuite/models/assets/") for file in files)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"episodes": 0}, "episodes=0: expected at least 1"),
        ({"seed": -1}, "seed=-1: expected 0 to 2147483647"),
        ({"action_noise": -0.1}, "action_noise=-0.1"),
        ({"grasp_bias": float("nan")}, "grasp_bias=nan"),
        ({"speed": 0.0}, "speed=0.0: expected more than 0"),
        ({"behaviour": "sac"}, "behaviour=sac is for gymnasium tasks, lift is of robosuite"),
        ({"behaviour": "runs/a/policy", "speed": 2.0}, "are for behaviour=expert"),
        ({"behaviour": "runs/a/policy", "faults": Faults(detour=0.1)}, "faults are for behaviour=expert"),
        ({"mixture": ["sac"]}, "mixture=[sac] with behaviour=expert"),
        ({"behaviour": "sac", "task": HOPPER, "mixture": ["expert"]}, "mixture=[expert] with behaviour=sac"),
        ({"task": HOPPER}, "behaviour=expert is for robosuite tasks, hopper is of gymnasium"),
        ({"out": "lift.npz"}, "expected a file name ending in .hdf5"),
    ],
)
def test_settings_are_checked(changes, message):
    with pytest.raises(BurnishError, match=re.escape(message)):
        CollectConfig(**{"task": LIFT, "out": "lift.hdf5", **changes})


def test_tasks_without_expert_are_refused():
    with pytest.raises(BurnishError, match=r"no scripted expert for Wipe.*Lift, PickPlaceCan"):
        make_expert("Wipe")


class CountingPolicy:
    """Acts with what it sees: chunks of 2, from the last 3 observations."""

    config = SimpleNamespace(n_obs_steps=3)

    def act(self, obs, generator):
        assert obs.shape == (1, 3, 1)
        return np.stack([obs[0, :, 0], -obs[0, :, 0]])[None]  # (1, Ta = 2, Da = 3)


def test_policy_actor_keeps_history_and_works_through_its_chunks():
    actor = PolicyActor(CountingPolicy())
    for _ in range(2):  # the second episode must not see the first
        actor.reset(None, np.random.default_rng(0))
        actions = [actor.act(np.array([t], np.float32)).tolist() for t in range(1, 5)]
        assert actions == [[1, 1, 1], [-1, -1, -1], [1, 2, 3], [-1, -2, -3]]


@pytest.fixture
def hopper_behaviour(request, tmp_path) -> str:
    simulator = make_simulator(HOPPER)
    if request.param == "actor":
        from burnish.datasets.collecting.sac_actor import SACActor

        actor = SACActor(simulator.obs_spec.state_dim, simulator.action_dim, (8,))
        return str(actor.save(tmp_path / "hopper.safetensors", {"task": "hopper"}))
    from burnish.policies.diffusion import DiffusionPolicy, PolicyConfig

    policy = DiffusionPolicy(PolicyConfig(), simulator.obs_spec.state_dim, simulator.action_dim, ["flat"], "hopper")
    policy.save(tmp_path / "policy")
    return str(tmp_path / "policy")


@pytest.mark.parametrize("hopper_behaviour", ["actor", "policy"], indirect=True)
def test_gymnasium_tasks_are_collected_into_d4rl(hopper_behaviour, tmp_path):
    out = tmp_path / "hopper.hdf5"
    demos = collect(CollectConfig(HOPPER, str(out), behaviour=hopper_behaviour, episodes=2, n_workers=1))
    with h5py.File(out) as file:
        assert file["observations"].shape == (sum(len(episode) for episode in demos.episodes), 11)
    for written, read in zip(demos.episodes, load(out).episodes, strict=True):
        assert np.array_equal(written.actions, read.actions)
        assert np.array_equal(written.final_obs["flat"], read.final_obs["flat"])
    episode = demos.episodes[1]
    simulator = make_simulator(HOPPER)
    assert np.array_equal(simulator.reset(1), episode.obs["flat"][0])
    rewards = [simulator.step(action).reward for action in episode.actions]
    assert np.array_equal(np.array(rewards, np.float32), episode.rewards)


@pytest.mark.parametrize("n_workers", [1, 2])
@pytest.mark.parametrize("hopper_behaviour", ["policy"], indirect=True)
def test_the_behaviours_of_a_mixture_take_turns(hopper_behaviour, tmp_path, n_workers):
    def episodes(behaviour: str, **kwargs: Any) -> list[np.ndarray]:
        out = str(tmp_path / "hopper.hdf5")
        config = CollectConfig(HOPPER, out, behaviour=behaviour, overwrite=True, n_workers=n_workers, **kwargs)
        return [episode.actions for episode in collect(config).episodes]

    mixed = episodes(hopper_behaviour, mixture=["sac"], episodes=3)
    one, other = episodes(hopper_behaviour, episodes=3), episodes("sac", episodes=2)
    for ours, theirs in zip(mixed, (one[0], other[1], one[2]), strict=True):
        assert np.array_equal(ours, theirs)


@pytest.fixture(scope="module")
def shipped() -> Path:
    return resolve("shipped:lift")


@pytest.mark.parametrize("name", ["lift", "lift-offset"])
def test_a_shipped_file_is_as_its_readme_says(name):
    shipped = resolve(f"shipped:{name}")
    episodes = load(shipped).episodes
    lengths = np.array([len(episode) for episode in episodes])
    succeeded = np.array([episode.rewards.max() == 1.0 for episode in episodes])
    _, section = (shipped.parent / "README.md").read_text().split(f"## {name}.hdf5")
    table = dict(re.findall(r"^\| ([a-z ]+) \| ([\d.]+) \|$", section.split("\n## ")[0], re.M))
    assert table == {
        "episodes": str(len(episodes)),
        "successes": str(succeeded.sum()),
        "steps": str(lengths.sum()),
        "shortest episode": str(lengths.min()),
        "longest episode": str(lengths.max()),
        "mean length of successes": f"{lengths[succeeded].mean():.1f}",
    }
    assert shipped.stat().st_size < 2e6


@pytest.mark.parametrize(
    ("name", "skill"), [("lift", SHIPPED_SKILL), ("lift-offset", {"action_noise": 0.05, "faults": OFFSET})]
)
def test_the_shipped_episodes_are_what_the_command_in_the_readme_makes(name, skill):
    """The first steps: another mujoco rounds differently, and small differences grow."""
    made = Recorder(CollectConfig(LIFT, "unused.hdf5", seed=0, **skill)).record(3).episode
    there = load(f"shipped:{name}").episodes[3]
    assert np.allclose(made.actions[:10], there.actions[:10], atol=1e-4)
    assert np.allclose(made.flat_obs(LIFT.obs_keys)[:10], there.flat_obs(LIFT.obs_keys)[:10], atol=1e-4)


def test_robomimic_reads_the_shipped_file(shipped):
    from robomimic.utils.dataset import SequenceDataset

    dataset = SequenceDataset(
        hdf5_path=str(shipped),
        obs_keys=LIFT.obs_keys,
        dataset_keys=("actions", "rewards", "dones"),
        load_next_obs=True,
        seq_length=4,
        hdf5_cache_mode=None,
    )
    episodes = load(shipped).episodes
    assert len(dataset) == sum(len(episode) for episode in episodes)
    assert dataset.n_demos == 120
    sample = dataset[10]
    first = min(episodes, key=lambda episode: episode.name)  # robomimic sorts by number: demo_0
    assert np.allclose(sample["actions"], first.actions[10:14])
    assert np.allclose(sample["next_obs"]["object"], first.obs["object"][11:15])
