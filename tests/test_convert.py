"""Raw robosuite recordings become training data; recorded episodes are replayed."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest

from burnish.datasets.checking.replaying import replay
from burnish.datasets.checking.validate import validate
from burnish.datasets.collecting.convert import convert_robosuite
from burnish.datasets.episodes import Demonstrations, Episode
from burnish.datasets.formats import robomimic
from burnish.datasets.formats.robosuite_states import model_xml
from burnish.envs.robosuite.env import env_args, make_task_env
from burnish.envs.task import load_task
from burnish.errors import BurnishError

HUMAN = {  # file -> (task, version, steps of each episode)
    "lift_panda_2020.hdf5": ("Lift", "1.0.0", [412]),
    "lift_panda_2022.hdf5": ("Lift", "1.4.0", [482, 510, 392]),
    "stack_panda_2020.hdf5": ("Stack", "1.0.0", [532]),
}
OBJECT_SIZE = {"Lift": 10, "Stack": 23}


@pytest.fixture(scope="module")
def converted(shared_data, tmp_path_factory):
    """file name -> (report, what robomimic's reader gives of the result); each file is converted once."""
    folder, done = tmp_path_factory.mktemp("converted"), {}

    def get(name: str):
        if name not in done:
            report = convert_robosuite(shared_data / "human" / name, folder / name)
            done[name] = report, robomimic.read(folder / name)
        return done[name]

    return get


def record(env_name: str, n_steps: int = 8) -> tuple[Episode, list[dict]]:
    """A recording of random actions with states and XML, and the observations made on the way."""
    env = make_task_env(env_name)
    env.rng.bit_generator.state = np.random.default_rng(4).bit_generator.state
    env.reset()
    actions = np.random.default_rng(1).uniform(-1, 1, (n_steps, env.action_dim))
    states, observations, rewards = [], [], []
    xml = model_xml(env)
    for action in actions:
        states.append(env.sim.get_state().flatten())
        env.sim.forward()  # what a restored state shows: everything follows from the positions
        observations.append(dict(env._get_observations(force_update=True)))
        rewards.append(env.step(action)[1])
    ended = np.zeros(n_steps, bool)
    episode = Episode("demo_1", {}, actions, np.array(rewards), ended, states=np.array(states), model_file=xml)
    return episode, observations


def write_raw(path: Path, episode: Episode, env_name: str) -> Path:
    """As robosuite's `gather_demonstrations_as_hdf5` writes it."""
    with h5py.File(path, "w") as file:
        data = file.create_group("data")
        data.attrs["env"] = env_name
        data.attrs["repository_version"] = "1.5.2"
        data.attrs["env_info"] = json.dumps({"env_name": env_name, "robots": "Panda"})
        group = data.create_group(episode.name)
        group["states"], group["actions"] = episode.states, episode.actions
        group.attrs["model_file"] = episode.model_file
    return path


@pytest.mark.parametrize("name", HUMAN)
def test_human_demonstrations_convert_and_reach_success(name, converted):
    report, demos = converted(name)
    task, version, lengths = HUMAN[name]
    assert (report.env_name, report.robots, report.recorded_with) == (task, ["Panda"], version)
    assert [episode.n_steps for episode in report.episodes] == lengths == [len(e) for e in demos.episodes]
    assert all(episode.success for episode in report.episodes)
    assert demos.env_args["env_name"] == task
    for episode in demos.episodes:
        assert episode.obs["object"].shape == (len(episode), OBJECT_SIZE[task])
        assert episode.obs["robot0_eef_pos"].shape == (len(episode), 3)
        assert episode.states.shape[0] == len(episode)
        assert episode.final_obs.keys() == episode.obs.keys()
        assert episode.rewards[-1] == 1.0  # the demonstrations end lifted or stacked
        assert set(np.unique(episode.rewards)) == {0.0, 1.0}
        assert not episode.terminated.any()
        assert 'file="robosuite/models/assets/' in episode.model_file
        assert 'file="/' not in episode.model_file


@pytest.mark.parametrize("name", HUMAN)
def test_converted_human_demonstrations_load_in_robomimic(name, converted):
    """robomimic's own SequenceDataset gives the observations and actions that our reader gives."""
    from robomimic.utils import obs_utils
    from robomimic.utils.dataset import SequenceDataset

    report, demos = converted(name)
    keys = ["robot0_eef_pos", "robot0_eef_quat", "robot0_gripper_qpos", "object"]
    obs_utils.initialize_obs_utils_with_obs_specs({"obs": {"low_dim": keys}})
    theirs = SequenceDataset(
        str(report.out),
        obs_keys=keys,
        dataset_keys=["actions", "rewards", "dones"],
        hdf5_cache_mode="low_dim",
        hdf5_use_swmr=False,
        load_next_obs=True,
    )
    assert len(theirs) == sum(HUMAN[name][2])
    step = theirs[100]
    np.testing.assert_array_equal(step["actions"][0], demos.episodes[0].actions[100])
    for key in keys:
        np.testing.assert_array_equal(step["obs"][key][0], demos.episodes[0].obs[key][100])
    validation = validate(report.out, k=1, obs_keys=keys)
    assert validation.n_errors == 0
    assert "1 succeed by states" in validation.note


def test_observations_come_from_the_recorded_states(converted):
    _, demos = converted("lift_panda_2022.hdf5")
    episode = demos.episodes[0]
    cube = episode.states[:, 1 + 9 : 1 + 12]  # time; 7 arm and 2 finger joints; the cube's position
    np.testing.assert_allclose(episode.obs["object"][:, :3], cube, atol=1e-6)
    np.testing.assert_allclose(episode.obs["robot0_gripper_qpos"], episode.states[:, 8:10], atol=1e-6)
    to_cube = episode.obs["object"][:, 7:10]
    between = cube - episode.obs["robot0_eef_pos"]
    np.testing.assert_allclose(np.linalg.norm(to_cube, axis=1), np.linalg.norm(between, axis=1), atol=1e-5)


def test_rewards_belong_to_the_state_after_the_action(converted):
    _, demos = converted("lift_panda_2022.hdf5")
    for episode in demos.episodes:
        lifted = episode.obs["object"][:, 2] > 0.84  # robosuite: 4 cm above the table, which is at 0.8 m
        np.testing.assert_array_equal(episode.rewards[:-1] == 1.0, lifted[1:])


def test_actions_outside_the_range_are_kept_and_reported(converted):
    report, demos = converted("lift_panda_2022.hdf5")
    for line, episode in zip(report.episodes, demos.episodes):
        outside = (np.abs(episode.actions) > 1).any(axis=1)
        assert line.n_clipped == outside.sum() > 0
        assert line.max_action == pytest.approx(3.75)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "least"), [("stack_panda_2020.hdf5", 1), ("lift", 3)])
def test_human_demonstrations_replay(name, least, converted):
    """3 of the 4 Lift episodes and the Stack one succeed open-loop, as measured with robosuite 1.5.2."""
    files = ["lift_panda_2020.hdf5", "lift_panda_2022.hdf5"] if name == "lift" else [name]
    results = [result for file in files for result in replay(converted(file)[1], 10)]
    assert len(results) == (4 if name == "lift" else 1)
    assert all(result.states_success for result in results)
    assert sum(result.open_loop_success for result in results) >= least


@pytest.mark.parametrize(
    ("env_name", "keys"),
    [
        ("Door", ["door_pos", "handle_pos", "hinge_qpos"]),
        ("NutAssembly", ["SquareNut_pos", "RoundNut_quat"]),
        ("PickPlace", ["Can_pos", "Milk_quat"]),
        ("Wipe", ["wipe_centroid", "wipe_radius"]),
    ],
)
def test_recordings_of_other_tasks_show_what_was_observed(env_name, keys, tmp_path):
    episode, observations = record(env_name)
    raw = write_raw(tmp_path / "raw.hdf5", episode, env_name)
    keys = ["robot0_eef_pos", *keys]
    report = convert_robosuite(raw, tmp_path / "out.hdf5", obs_keys=keys)
    (result,) = robomimic.read(tmp_path / "out.hdf5").episodes
    assert report.obs_keys == keys
    for key in keys:
        expected = np.stack([np.ravel(obs[key]) for obs in observations])
        np.testing.assert_allclose(result.obs[key], expected, atol=1e-6, err_msg=key)


def test_default_keys_leave_out_what_the_gripper_lacks(tmp_path):
    episode, _ = record("Wipe", 2)
    report = convert_robosuite(write_raw(tmp_path / "raw.hdf5", episode, "Wipe"), tmp_path / "out.hdf5")
    assert report.obs_keys == ["robot0_eef_pos", "robot0_eef_quat", "object"]


def test_replay_follows_a_recording_of_today():
    episode, _ = record("Lift", 10)
    demos = Demonstrations([episode, replace(episode, name="demo_2")], env_args("Lift", {}))
    (result,) = replay(demos, 1)
    assert (result.name, result.n_steps) == ("demo_1", 10)
    assert (result.states_success, result.open_loop_success) == (False, False)
    assert result.max_position_error < 1e-5
    shifted = replace(episode, states=episode.states + 0.1)
    (worse,) = replay(replace(demos, episodes=[shifted]), 5)
    assert worse.max_position_error > 10 * result.max_position_error


@pytest.mark.parametrize("missing", ["env_args", "states"])
def test_what_cannot_be_replayed_is_named(missing):
    episode = Episode("demo_3", {}, np.zeros((4, 7)), np.zeros(4), np.zeros(4, bool))
    demos = Demonstrations([episode], None if missing == "env_args" else env_args("Lift", {}), source="f.hdf5")
    with pytest.raises(BurnishError, match=rf"f\.hdf5.*{missing}"):
        replay(demos, 1)


def test_states_of_another_model_are_refused(shared_data, tmp_path):
    raw = shared_data / "human" / "lift_panda_2020.hdf5"
    with pytest.raises(BurnishError, match=r"lift_panda_2020.*demo_1: states of 32 numbers, but Stack .* 45"):
        convert_robosuite(raw, tmp_path / "out.hdf5", task=load_task("stack"), allow=["name"])
    assert not (tmp_path / "out.hdf5").exists()


def test_a_door_without_its_xml_is_refused(tmp_path):
    episode, _ = record("Door", 2)
    raw = write_raw(tmp_path / "raw.hdf5", replace(episode, model_file="model_1.xml"), "Door")
    with pytest.raises(BurnishError, match=r"raw\.hdf5: episode demo_1: no XML.*Door"):
        convert_robosuite(raw, tmp_path / "out.hdf5")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda data: data.clear(), "no episodes"),
        (lambda data: data["demo_1"].pop("states"), "episode demo_1 has no states; it has: actions"),
        (lambda data: data["demo_1"]["actions"].write_direct(np.full((3, 7), np.nan)), "NaN or infinity"),
        (lambda data: data.attrs.update(env_info="{"), "env_info"),
        (lambda data: data.attrs.update(env_info=json.dumps({"env_name": "SawyerLift"})), "no environment"),
    ],
    ids=["empty", "no-states", "nan", "bad-json", "unknown-task"],
)
def test_damaged_recordings_are_named(change, message, tmp_path):
    path = tmp_path / "raw.hdf5"
    states, actions = np.zeros((3, 32)), np.zeros((3, 7))
    ended = np.zeros(3, bool)
    episode = Episode("demo_1", {}, actions, np.zeros(3), ended, states=states, model_file="model_1.xml")
    write_raw(path, episode, "Lift")
    with h5py.File(path, "r+") as file:
        change(file["data"])
    with pytest.raises(BurnishError, match=message):
        convert_robosuite(path, tmp_path / "out.hdf5")
