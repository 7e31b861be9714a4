"""What scripted experts do wrong on purpose, and what they do when a grasp fails."""

from __future__ import annotations

import re
from dataclasses import replace

import numpy as np
import pytest

from burnish.commands.table import COMMANDS
from burnish.datasets.checking.inspect import inspect
from burnish.datasets.collecting.collect import collect
from burnish.datasets.collecting.config import CollectConfig
from burnish.datasets.collecting.recorder import Recorder
from burnish.datasets.episodes import Episode
from burnish.datasets.experts import make_expert
from burnish.datasets.experts.faults import EpisodeFaults, Faults
from burnish.datasets.load import load
from burnish.envs.task import load_task
from burnish.errors import BurnishError

LIFT = load_task("lift")
STACK = load_task("stack")


@pytest.fixture(scope="module")
def lift():
    """Records an episode of Lift with some faults."""
    recorder = Recorder(CollectConfig(LIFT, "unused.hdf5", states=False))

    def record(seed: int = 0, **faults) -> Episode:
        recorder.actor.settings = Faults(**faults)
        return recorder.record(seed).episode

    return record


@pytest.fixture(scope="module")
def stack():
    """Records an episode of Stack with some faults."""
    recorder = Recorder(CollectConfig(STACK, "unused.hdf5", states=False))

    def record(seed: int = 0, **faults) -> Episode:
        recorder.actor.settings = Faults(**faults)
        return recorder.record(seed).episode

    return record


def hand(episode: Episode) -> np.ndarray:
    return episode.obs["robot0_eef_pos"]


def closing(episode: Episode, nth: int = 0) -> int:
    """The step in which the fingers begin to close for the n-th time."""
    return closings(episode)[nth]


def closings(episode: Episode) -> list[int]:
    gripper = np.concatenate([[-1.0], episode.actions[:, 6]])
    return np.flatnonzero((gripper[:-1] < 0) & (gripper[1:] > 0)).tolist()


def to_object(episode: Episode, step: int) -> np.ndarray:
    """From the object to the hand."""
    return hand(episode)[step] - episode.obs["object"][step, :3]


# What is drawn


def test_an_episodes_faults_depend_on_its_generator_alone():
    settings = Faults(probability=0.5, grasp_offset=0.02, detour=0.1, hesitation=0.3, speed_low=0.5)
    first, again, other = (settings.draw(np.random.default_rng(seed), 0.5) for seed in (3, 3, 4))
    assert first == again != other


def test_one_fault_does_not_change_which_episodes_have_another():
    few, many = (
        Faults(probability=0.5, detour=0.1),
        Faults(probability=0.5, detour=0.1, grasp_yaw=1.0, no_recovery=True),
    )
    for seed in range(20):
        drawn = [settings.draw(np.random.default_rng(seed), 0.5).detour for settings in (few, many)]
        assert drawn[0] == drawn[1]


def test_the_shares_of_episodes_are_as_asked_for():
    settings = Faults(probability=0.3, detour=0.1, skill_levels=[0.5, 0.25, 0.25], skill_scales=[0.1, 0.5, 1])
    drawn = [settings.draw(np.random.default_rng(seed), 0.5) for seed in range(2000)]
    assert np.mean([faults.detour > 0 for faults in drawn]) == pytest.approx(0.3, abs=0.04)
    assert np.mean([faults.level == "better" for faults in drawn]) == pytest.approx(0.5, abs=0.04)
    for faults in drawn:
        assert faults.detour in (0.0, pytest.approx({"better": 0.01, "okay": 0.05, "worse": 0.1}[faults.level]))


@pytest.mark.parametrize(("place", "happens"), [(-0.1, True), (0.29, True), (0.31, False), (1.2, False)])
def test_faults_happen_in_their_region(place, happens):
    drawn = Faults(region=0.3, grasp_offset=0.02).draw(np.random.default_rng(0), place)
    assert (drawn.grasp_offset > 0) == happens
    assert Faults(grasp_offset=0.02).draw(np.random.default_rng(0), place).grasp_offset == 0.02


def test_as_numbers_has_what_there_is():
    assert EpisodeFaults().as_numbers() == {}
    assert EpisodeFaults(detour=0.1, no_recovery=True, level="okay").as_numbers() == {"detour": 0.1, "no_recovery": 1.0}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"region": 1.5}, "region=1.5: expected 0 to 1"),
        ({"grasp_offset": -0.1}, "grasp_offset=-0.1: expected at least 0"),
        ({"speed_low": 2.0}, "speed_low=2.0 above speed_high=1.0"),
        ({"skill_levels": [0.5, 0.5]}, "expected three shares that sum to 1"),
        ({"skill_levels": [0.5, 0.4, 0.4]}, "expected three shares that sum to 1"),
        ({"skill_scales": [0.5]}, "expected three factors"),
    ],
)
def test_settings_are_checked(settings, message):
    with pytest.raises(BurnishError, match=re.escape(message)):
        Faults(**settings)


def test_the_help_explains_every_fault():
    (command,) = [command for command in COMMANDS if command.name == "data collect"]
    text = command.help()
    for name in Faults.__dataclass_fields__:
        assert re.search(rf"^  faults\.{name}=", text, re.M), name


# What it does


def test_without_faults_the_actions_are_those_of_the_plain_expert(lift):
    plain = lift()
    assert plain.faults == {}
    unlucky = lift(probability=0.0, grasp_offset=0.02, detour=0.1, hesitation=0.5, speed_low=0.5, two_ways=True)
    assert np.array_equal(plain.actions, unlucky.actions)


def test_the_grasp_offset_is_seen_where_the_fingers_close(lift):
    plain, wrong = lift(), lift(grasp_offset=0.02, grasp_direction=np.pi / 2)
    shift = to_object(wrong, closing(wrong)) - to_object(plain, closing(plain))
    assert shift == pytest.approx([0.0, 0.02, 0.0], abs=0.008)
    assert wrong.faults == {"grasp_offset": 0.02}


def test_the_grasp_offset_happens_only_in_its_region(lift):
    for seed in range(6):
        episode = lift(seed, region=0.5, grasp_offset=0.02)
        on_the_right = bool(episode.obs["object"][0, 1] < 0.0)  # the cube starts between -0.03 and 0.03
        assert ("grasp_offset" in episode.faults) == on_the_right


def test_the_grasp_yaw_turns_the_hand(lift):
    def quaternion(episode: Episode) -> np.ndarray:
        return episode.obs["robot0_eef_quat"][closing(episode)]

    between = 2 * np.arccos(abs(quaternion(lift()) @ quaternion(lift(grasp_yaw=0.4))))
    assert between == pytest.approx(0.4, abs=0.1)


def test_a_late_close_lifts_sooner_after_closing(lift):
    def held_still(episode: Episode) -> int:
        start = closing(episode)
        return int(np.argmax(episode.actions[start:, 2] > 0.5))

    assert held_still(lift()) - held_still(lift(late_close=3)) == 3


@pytest.mark.slow
def test_an_early_release_lets_go_before_the_goal(stack):
    def let_go(episode: Episode) -> float:
        """The height of cube A over cube B when the fingers open."""
        step = closing(episode) + int(np.argmax(episode.actions[closing(episode) :, 6] < 0))
        cubes = episode.obs["object"][step]
        return cubes[2] - cubes[9]

    assert let_go(stack()) == pytest.approx(0.048, abs=0.015)
    assert let_go(stack(early_release=0.05)) > let_go(stack()) + 0.02


def test_an_early_release_drops_the_cube_of_lift(lift):
    assert lift().rewards.max() == 1.0
    assert lift(early_release=0.2, no_recovery=True).rewards.max() == 0.0


def test_a_detour_pushes_the_object_before_it_is_grasped(lift):
    def pushed(episode: Episode) -> float:
        cube = episode.obs["object"][:, :2]
        return float(np.linalg.norm(cube[closing(episode)] - cube[0]))

    assert pushed(lift()) < 0.005
    assert pushed(lift(detour=0.1)) > 0.02


def test_without_recovery_the_hand_hovers_after_a_miss(lift):
    again = lift(grasp_offset=0.05)
    assert len(closings(again)) > 1
    still = lift(grasp_offset=0.05, no_recovery=True)
    assert len(closings(still)) == 1
    assert np.ptp(hand(still)[-20:], axis=0).max() < 0.01
    assert len(still) == LIFT.max_episode_steps


@pytest.mark.slow
def test_the_second_way_fails_with_turned_cubes(lift):
    """The hand of the second way stays as it is at home, so a cube that is turned by 45 degrees slips out."""
    ways = {True: [], False: []}
    for seed in range(16):
        episode = lift(seed, two_ways=True, no_recovery=True)
        low = hand(episode)[: closing(episode)]
        before = low[low[:, 2] < 0.85]
        second = "second_way" in episode.faults
        assert (np.ptp(before[:, 0]) > 0.05) == second  # it comes along the table
        ways[second].append(episode.rewards.max())
    assert np.mean(ways[False]) == 1.0
    assert 0.0 < np.mean(ways[True]) < 1.0


def test_hesitation_pauses_before_each_waypoint(lift):
    plain, hesitant = lift(), lift(hesitation=1.0, pause=5)
    assert closing(hesitant) == closing(plain) + 3 * 6  # over, down, close: 5 more steps after the first of the pause


def test_the_speed_is_drawn_for_each_episode(lift):
    speeds = [lift(seed, speed_low=0.3, speed_high=0.9).faults["speed"] for seed in range(4)]
    assert len(set(speeds)) == 4
    assert all(0.3 < speed < 0.9 for speed in speeds)
    episode = lift(0, speed_low=0.5, speed_high=0.5)
    assert np.abs(episode.actions[:, :6]).max() == 0.5


def test_levels_of_skill_are_filter_keys_and_scale_faults_and_noise(tmp_path):
    faults = Faults(skill_levels=[0.3, 0.3, 0.4], skill_scales=[0.0, 0.5, 1.0], grasp_offset=0.02)
    task = replace(LIFT, max_episode_steps=10)
    config = CollectConfig(task, str(tmp_path / "a.hdf5"), episodes=8, action_noise=0.1, faults=faults, n_workers=1)
    collect(config)
    demos = load(config.out)
    assert sorted(name for names in demos.masks.values() for name in names) == [f"demo_{i}" for i in range(8)]
    assert set(demos.masks) == {"better", "okay", "worse"}
    offsets = {"better": None, "okay": 0.01, "worse": 0.02}
    for level in demos.masks:
        for episode in load(config.out, filter_key=level).episodes:
            assert episode.faults.get("grasp_offset") == offsets[level]
    noiseless = Recorder(replace(config, action_noise=0.0))
    for index, episode in enumerate(demos.episodes):
        same = np.array_equal(noiseless.record(index).episode.actions, episode.actions)
        assert same == (episode.name in demos.masks["better"])
    n_worse = len(demos.masks["worse"]) + len(demos.masks["okay"])
    assert inspect(demos).faults["grasp_offset"] == n_worse
    assert f"grasp_offset ({n_worse})" in str(inspect(demos))


# When a grasp fails


@pytest.mark.slow
@pytest.mark.parametrize(("task", "noise", "bias"), [("can", 0.3, 0.06), ("square", 0.05, 0.04)])
def test_failed_grasps_are_retried_inside_the_workspace(task, noise, bias):
    short = replace(load_task(task), max_episode_steps=250)
    recorder = Recorder(CollectConfig(short, "unused.hdf5", action_noise=noise, grasp_bias=bias, states=False))
    low, high = np.array(recorder.actor.workspace.low), np.array(recorder.actor.workspace.high)
    for seed in range(2):
        episode = recorder.record(seed).episode
        assert len(closings(episode)) > 1
        assert (hand(episode) > low - 0.03).all() and (hand(episode) < high + 0.03).all()


@pytest.mark.parametrize("task", ["lift", "can", "stack", "square", "door"])
def test_objects_start_within_the_expected_range(task):
    recorder = Recorder(CollectConfig(load_task(task), "unused.hdf5", states=False))
    places = []
    for seed in range(40):
        recorder.simulator.reset(seed)
        recorder.actor.reset(recorder.simulator, np.random.default_rng(0))
        places.append(recorder.actor.workspace.place(recorder.actor.body_position(recorder.actor.body)[1]))
    assert -0.05 < min(places) < 0.25  # 0 and 1 are its ends
    assert 0.75 < max(places) < 1.05


def test_an_object_out_of_reach_is_left_alone(lift):
    recorder = Recorder(CollectConfig(LIFT, "unused.hdf5", states=False))
    recorder.simulator.reset(0)
    expert = make_expert("Lift")
    expert.reset(recorder.simulator, np.random.default_rng(0))
    env = recorder.simulator.env
    expert._waypoint = expert.lift(0.0, 0.1)
    env.sim.data.set_joint_qpos(env.cube.joints[0], np.array([0.6, 0.0, 0.4, 1, 0, 0, 0]))  # fallen off the table
    env.sim.forward()
    assert np.allclose(expert.act()[:3], 0.0, atol=1e-6)
