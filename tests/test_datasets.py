"""Readers, writers, checks and summaries of demonstrations."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

import burnish.datasets
from burnish.datasets.checking.checks import check
from burnish.datasets.checking.inspect import inspect
from burnish.datasets.checking.validate import validate
from burnish.datasets.download import download, released_file
from burnish.datasets.episodes import Demonstrations, Episode
from burnish.datasets.formats import d4rl, hdf5, minari_local, robomimic
from burnish.datasets.load import load, read
from burnish.errors import BurnishError

ENV_ARGS = {"env_name": "Lift", "env_version": "1.5.2", "type": 1, "env_kwargs": {"robots": ["Panda"]}}
OBS_KEYS = ["robot0_eef_pos", "object"]


def robosuite_episode(name: str, length: int, seed: int = 0) -> Episode:
    rng = np.random.default_rng([seed, length])
    obs = {
        "object": rng.normal(size=(length, 10)).astype(np.float32),
        "robot0_eef_pos": rng.normal(size=(length, 3)).astype(np.float32),
    }
    final = {key: rng.normal(size=values.shape[1]).astype(np.float32) for key, values in obs.items()}
    rewards = np.zeros(length, np.float32)
    rewards[-1:] = 1
    return Episode(
        name,
        obs,
        actions=rng.uniform(-1, 1, (length, 7)).astype(np.float32),
        rewards=rewards,
        terminated=np.zeros(length, bool),
        final_obs=final,
        states=rng.normal(size=(length, 32)),
        model_file="<mujoco/>",
    )


def robosuite_demos() -> Demonstrations:
    episodes = [
        robosuite_episode("demo_2", 6),
        robosuite_episode("demo_10", 9),
        robosuite_episode("demo_11", 4),
    ]
    return Demonstrations(episodes, ENV_ARGS, {"train": ["demo_2", "demo_10"], "valid": ["demo_11"]})


def flat_demos() -> Demonstrations:
    """Three episodes: ended by the environment, by the time limit, by the environment."""
    episodes = []
    for number, (length, ended) in enumerate([(5, True), (7, False), (1, True)]):
        rng = np.random.default_rng(number)
        terminated = np.zeros(length, bool)
        terminated[-1] = ended
        episodes.append(
            Episode(
                f"demo_{number}",
                {"flat": rng.normal(size=(length, 4)).astype(np.float32)},
                rng.uniform(-1, 1, (length, 2)).astype(np.float32),
                rng.normal(size=length).astype(np.float32),
                terminated,
                {"flat": rng.normal(size=4).astype(np.float32)},
            )
        )
    return Demonstrations(episodes)


def assert_same(read_back: Demonstrations, expected: Demonstrations, final_obs: bool = True) -> None:
    assert [e.name for e in read_back.episodes] == [e.name for e in expected.episodes]
    for a, b in zip(read_back.episodes, expected.episodes):
        assert a.obs.keys() == b.obs.keys()
        for key in b.obs:
            np.testing.assert_array_equal(a.obs[key], b.obs[key])
            assert a.obs[key].dtype == np.float32
        for values, other in ((a.actions, b.actions), (a.rewards, b.rewards), (a.terminated, b.terminated)):
            np.testing.assert_array_equal(values, other)
            assert values.dtype == other.dtype
        if final_obs:
            assert a.final_obs is not None and b.final_obs is not None
            for key in b.final_obs:
                np.testing.assert_array_equal(a.final_obs[key], b.final_obs[key])


def test_robomimic_round_trip(tmp_path: Path) -> None:
    demos = robosuite_demos()
    path = tmp_path / "new folder" / "lift.hdf5"
    robomimic.write(path, demos)
    again = load(path)
    assert_same(again, demos)
    assert again.env_args == ENV_ARGS
    assert again.masks == demos.masks
    assert again.source == str(path)
    states, expected = again.episodes[1].states, demos.episodes[1].states
    assert states is not None and expected is not None and states.dtype == np.float64
    np.testing.assert_array_equal(states, expected)
    assert again.episodes[0].model_file == "<mujoco/>"
    assert [file.name for file in path.parent.iterdir()] == ["lift.hdf5"]


def test_filter_key_selects_and_cuts_the_masks(tmp_path: Path) -> None:
    path = tmp_path / "lift.hdf5"
    robomimic.write(path, robosuite_demos())
    demos = load(path, "train")
    assert [e.name for e in demos.episodes] == ["demo_2", "demo_10"]
    assert demos.masks == {"train": ["demo_2", "demo_10"], "valid": []}


def sequence_dataset(path: Path, obs_keys: list[str], frame_stack: int, horizon: int, load_next_obs: bool):
    from robomimic.utils import obs_utils
    from robomimic.utils.dataset import SequenceDataset

    obs_utils.initialize_obs_utils_with_obs_specs({"obs": {"low_dim": obs_keys}})
    return SequenceDataset(
        str(path),
        obs_keys=obs_keys,
        dataset_keys=["actions", "rewards", "dones"],
        frame_stack=frame_stack,
        seq_length=horizon,
        hdf5_cache_mode="low_dim",
        hdf5_use_swmr=False,
        load_next_obs=load_next_obs,
    )


def test_robomimic_reads_what_we_write(tmp_path: Path) -> None:
    from robomimic.utils import file_utils

    demos = robosuite_demos()
    path = tmp_path / "lift.hdf5"
    robomimic.write(path, demos)
    dataset = sequence_dataset(path, OBS_KEYS, frame_stack=1, horizon=1, load_next_obs=True)
    assert (dataset.n_demos, len(dataset)) == (3, 19)
    trajectory = dataset.get_trajectory_at_index(1)
    episode = demos.episodes[1]
    assert episode.final_obs is not None
    assert trajectory["ep"] == "demo_10"
    np.testing.assert_array_equal(trajectory["actions"], episode.actions)
    np.testing.assert_array_equal(trajectory["rewards"], episode.rewards)
    np.testing.assert_array_equal(trajectory["dones"], [0] * 8 + [1])
    for key in OBS_KEYS:
        np.testing.assert_array_equal(trajectory["obs"][key], episode.obs[key])
        np.testing.assert_array_equal(trajectory["next_obs"][key][:-1], episode.obs[key][1:])
        np.testing.assert_array_equal(trajectory["next_obs"][key][-1], episode.final_obs[key])
    assert file_utils.get_env_metadata_from_dataset(str(path)) == ENV_ARGS
    shapes = file_utils.get_shape_metadata_from_dataset(str(path), all_obs_keys=OBS_KEYS)
    assert shapes["ac_dim"] == 7
    assert shapes["all_shapes"] == {"object": [10], "robot0_eef_pos": [3]}
    assert file_utils.get_demos_for_filter_key(str(path), "valid") == ["demo_11"]
    file_utils.create_hdf5_filter_key(str(path), ["demo_2"], "mine")
    assert [e.name for e in load(path, "mine").episodes] == ["demo_2"]


def test_reads_what_robomimics_scripts_write(tmp_path: Path) -> None:
    """As dataset_states_to_obs.py with --done_mode 2 and cameras: doubles, dones at success and end."""
    path = tmp_path / "low_dim_v141.hdf5"
    rng = np.random.default_rng(0)
    with h5py.File(path, "w") as file:
        data = file.create_group("data")
        for index in (0, 1, 10, 9):
            group = data.create_group(f"demo_{index}")
            group.create_dataset("actions", data=rng.uniform(-1, 1, (5, 7)))
            group.create_dataset("states", data=rng.normal(size=(5, 32)))
            group.create_dataset("rewards", data=np.array([0.0, 0, 0, 1, 1]))
            group.create_dataset("dones", data=np.array([0, 0, 0, 1, 1]))
            for prefix in ("obs", "next_obs"):
                group.create_dataset(f"{prefix}/object", data=rng.normal(size=(5, 10)), compression="gzip")
                group.create_dataset(f"{prefix}/robot0_gripper_qpos", data=rng.normal(size=(5, 2)))
                group.create_dataset(f"{prefix}/agentview_image", data=np.zeros((5, 8, 8, 3), np.uint8))
            group.attrs["model_file"] = "<mujoco/>"
            group.attrs["num_samples"] = 5
        data.attrs["total"] = 20
        data.attrs["env_args"] = json.dumps(ENV_ARGS, indent=4)
        file["mask/20_percent"] = np.array(["demo_9"], dtype="S")
    demos = load(path)
    assert [e.name for e in demos.episodes] == ["demo_0", "demo_1", "demo_9", "demo_10"]
    assert demos.masks == {"20_percent": ["demo_9"]}
    assert set(demos.episodes[0].obs) == {"object", "robot0_gripper_qpos"}
    assert not any(e.terminated.any() for e in demos.episodes), "robosuite never ends an episode by itself"
    with h5py.File(path) as file:
        group = file["data/demo_10"]
        episode = demos.episodes[-1]
        assert episode.final_obs is not None and episode.states is not None
        np.testing.assert_allclose(episode.obs["object"], group["obs/object"][()], rtol=1e-6)
        np.testing.assert_allclose(episode.final_obs["object"], group["next_obs/object"][-1], rtol=1e-6)
        np.testing.assert_array_equal(episode.states, group["states"][()])


def test_dones_of_other_environments_are_terminations(tmp_path: Path) -> None:
    path = tmp_path / "hopper.hdf5"
    demos = robosuite_demos()
    robomimic.write(path, replace(demos, env_args=ENV_ARGS | {"type": 2}))
    with h5py.File(path, "a") as file:
        del file["data/demo_2/terminated"]
    first, second, _ = load(path).episodes
    assert first.terminated.tolist() == [False] * 5 + [True]
    assert not second.terminated.any(), "our own files say it exactly"


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "lift.hdf5"
    robomimic.write(path, robosuite_demos())
    before = path.read_bytes()
    with pytest.raises(RuntimeError, match="half way"), hdf5.writing(path) as file:
        file.create_group("data")
        raise RuntimeError("half way")
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_unwritable_demonstrations(tmp_path: Path) -> None:
    path = tmp_path / "x.hdf5"
    episode = robosuite_episode("demo_0", 3)
    for episodes, message in [
        ([], "no episodes to write"),
        ([replace(episode, name="episode 1")], "robomimic expects demo_0"),
        ([episode, episode], "same name"),
    ]:
        with pytest.raises(BurnishError, match=message):
            robomimic.write(path, Demonstrations(episodes))
    (tmp_path / "file").touch()
    with pytest.raises(BurnishError, match="cannot be written"):
        robomimic.write(tmp_path / "file" / "x.hdf5", Demonstrations([episode]))
    with pytest.raises(BurnishError, match="no observation 'flat'"):
        d4rl.write(path, Demonstrations([episode]))


def test_d4rl_round_trip(tmp_path: Path) -> None:
    path = tmp_path / "hopper_medium-v2.hdf5"
    d4rl.write(path, flat_demos())
    assert_same(load(path), flat_demos())
    with h5py.File(path) as file:
        assert file["terminals"][()].tolist() == [False] * 4 + [True] + [False] * 7 + [True]
        assert np.flatnonzero(file["timeouts"][()]).tolist() == [11]


def test_d4rl_is_cut_where_observations_jump(tmp_path: Path) -> None:
    path = tmp_path / "old.hdf5"
    d4rl.write(path, flat_demos())
    with h5py.File(path, "a") as file:
        del file["timeouts"]
    assert_same(load(path), flat_demos())
    with h5py.File(path, "a") as file:
        del file["next_observations"]
    with pytest.raises(BurnishError, match="where episodes end; found: actions, observations, rewards, terminals"):
        load(path)


def test_d4rl_unfinished_tail_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "tail.hdf5"
    with h5py.File(path, "w") as file:
        file["observations"] = np.arange(10.0).reshape(5, 2)
        file["actions"] = np.zeros((5, 1))
        file["rewards"] = np.ones(5)
        file["terminals"] = np.zeros(5, bool)
        file["timeouts"] = np.array([0, 0, 1, 0, 0], bool)
    demos = load(path)
    assert [len(e) for e in demos.episodes] == [3, 2]
    assert not demos.episodes[1].terminated.any() and demos.episodes[1].final_obs is None


def write_dppo(folder: Path, demos: Demonstrations) -> dict[str, np.ndarray]:
    """As DPPO's script/dataset/get_d4rl_dataset.py scales and stores them."""
    states = np.concatenate([e.obs["flat"] for e in demos.episodes])
    actions = np.concatenate([e.actions for e in demos.episodes])
    bounds = {
        "obs_min": states.min(0),
        "obs_max": states.max(0),
        "action_min": actions.min(0),
        "action_max": actions.max(0),
    }
    obs_range, action_range = (bounds[f"{k}_max"] - bounds[f"{k}_min"] + 1e-6 for k in ("obs", "action"))
    arrays = {
        "states": 2 * (states - bounds["obs_min"]) / obs_range - 1,
        "actions": 2 * (actions - bounds["action_min"]) / action_range - 1,
        "rewards": np.concatenate([e.rewards for e in demos.episodes]),
        "terminals": np.concatenate([e.terminated for e in demos.episodes]),
        "traj_lengths": np.array([len(e) for e in demos.episodes]),
    }
    np.savez_compressed(folder / "train.npz", **arrays)
    np.savez_compressed(folder / "normalization.npz", **bounds)
    return arrays


def test_dppo_in_raw_units(tmp_path: Path) -> None:
    demos = flat_demos()
    write_dppo(tmp_path, demos)
    again = load(tmp_path / "train.npz")
    for a, b in zip(again.episodes, demos.episodes):
        np.testing.assert_allclose(a.obs["flat"], b.obs["flat"], atol=1e-6)
        np.testing.assert_allclose(a.actions, b.actions, atol=1e-6)
        np.testing.assert_array_equal(a.terminated, b.terminated)
        np.testing.assert_array_equal(a.rewards, b.rewards)


def test_dppo_without_normalization_warns(tmp_path: Path) -> None:
    arrays = write_dppo(tmp_path, flat_demos())
    (tmp_path / "normalization.npz").unlink()
    with pytest.warns(UserWarning, match=r"no normalization\.npz"):
        demos = load(tmp_path / "train.npz")
    np.testing.assert_allclose(demos.episodes[0].actions, arrays["actions"][:5], rtol=1e-6)


def test_dppo_pretraining_file_has_no_rewards(tmp_path: Path) -> None:
    np.savez(tmp_path / "train.npz", states=np.zeros((4, 3)), actions=np.zeros((4, 2)), traj_lengths=[1, 3])
    np.savez(
        tmp_path / "normalization.npz",
        obs_min=-np.ones(3),
        obs_max=np.ones(3),
        action_min=-np.ones(2),
        action_max=np.ones(2),
    )
    episode = load(tmp_path / "train.npz").episodes[1]
    assert episode.rewards.tolist() == [0, 0, 0] and not episode.terminated.any()


def test_bad_dppo_files(tmp_path: Path) -> None:
    arrays = write_dppo(tmp_path, flat_demos())
    path = tmp_path / "bad.npz"
    np.savez(path, states=arrays["states"])
    with pytest.raises(BurnishError, match="no actions, traj_lengths, expected DPPO's layout; found: states"):
        load(path)
    np.savez(path, **arrays | {"traj_lengths": np.array([5, 7])})
    with pytest.raises(BurnishError, match="has 13 steps, but traj_lengths add up to 12"):
        load(path)
    path.write_bytes((tmp_path / "train.npz").read_bytes()[:200])
    with pytest.raises(BurnishError, match="damaged"):
        load(path)
    np.savez(tmp_path / "normalization.npz", obs_min=np.zeros(3))
    with pytest.raises(BurnishError, match=r"obs_min: expected shape \(4,\), found \(3,\)"):
        load(tmp_path / "train.npz")


@pytest.mark.filterwarnings("ignore:`.*is set to None")
def test_minari(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    minari = pytest.importorskip("minari", reason="extra minari")
    from gymnasium import make
    from minari.data_collector import EpisodeBuffer

    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))
    env = make("Pendulum-v1")  # torque in [-2, 2]
    rng = np.random.default_rng(0)
    buffers = [
        EpisodeBuffer(
            id=number,
            observations=rng.normal(size=(length + 1, 3)).astype(np.float32),
            actions=rng.uniform(-2, 2, (length, 1)).astype(np.float32),
            rewards=list(rng.normal(size=length)),
            terminations=[False] * length,
            truncations=[False] * (length - 1) + [True],
        )
        for number, length in enumerate([6, 4])
    ]
    minari.create_dataset_from_buffers("pendulum/random-v0", buffers, env=env)
    demos = load(tmp_path / "pendulum" / "random-v0")
    assert [len(e) for e in demos.episodes] == [6, 4]
    for episode, reference in zip(demos.episodes, buffers):
        assert episode.final_obs is not None
        np.testing.assert_allclose(episode.obs["flat"], reference.observations[:-1], rtol=1e-6)
        np.testing.assert_allclose(episode.final_obs["flat"], reference.observations[-1], rtol=1e-6)
        np.testing.assert_allclose(episode.actions, reference.actions / 2, rtol=1e-6, atol=1e-7)
        assert not episode.terminated.any()
    assert demos.env_args is not None and demos.env_args["env_name"] == "Pendulum-v1"
    (tmp_path / "pendulum" / "random-v0" / "data" / "metadata.json").write_text("{}")
    with pytest.raises(BurnishError, match="damaged Minari dataset"):
        minari_local.read(tmp_path / "pendulum" / "random-v0")


def write_changed(path: Path, **changes) -> Path:
    demos = robosuite_demos()
    episodes = [demos.episodes[0], replace(demos.episodes[1], **changes), demos.episodes[2]]
    robomimic.write(path, replace(demos, episodes=episodes))
    return path


def with_value(values: np.ndarray, row: int, value: float) -> np.ndarray:
    changed = values.copy()
    changed[row, 1] = value
    return changed


def test_values_that_could_not_be_trained_on(tmp_path: Path) -> None:
    good = robosuite_demos().episodes[1]
    bad_obs = good.obs | {"object": with_value(good.obs["object"], 4, np.inf)}
    longer = good.obs | {"object": np.zeros((12, 10), np.float32)}
    wider = good.obs | {"object": np.zeros((9, 11), np.float32)}
    cases: list[tuple[dict[str, Any], str]] = [
        (
            {"actions": with_value(good.actions, 3, np.nan)},
            "demo_10: actions has NaN or infinity, first at step 3",
        ),
        ({"obs": bad_obs}, "demo_10: observation 'object' has NaN or infinity, first at step 4"),
        (
            {"obs": longer, "final_obs": None},
            "demo_10: observation 'object' has 12 steps, but there are 9",
        ),
        (
            {"obs": wider, "final_obs": None},
            r"'object' has shape \(11,\) per step, in episode demo_2 \(10,\)",
        ),
        (
            {"actions": good.actions[:, :6]},
            r"demo_10: actions has shape \(6,\) per step, in episode demo_2 \(7,\)",
        ),
    ]
    for number, (changes, message) in enumerate(cases):
        path = write_changed(tmp_path / f"{number}.hdf5", **changes)
        with pytest.raises(BurnishError, match=message) as caught:
            load(path)
        assert str(path) in str(caught.value) and "\n" not in str(caught.value)
        assert any(finding.level == "error" and finding.episode == "demo_10" for finding in check(read(path)))
        inspect(read(path))


def test_faulty_robomimic_files(tmp_path: Path) -> None:
    path = tmp_path / "lift.hdf5"
    robomimic.write(path, robosuite_demos())
    with pytest.raises(BurnishError, match="no filter key 'best'; filter keys of this file: train, valid"):
        load(path, "best")
    with h5py.File(path, "a") as file:
        file["data/demo_2/obs"].clear()
        for key in ("object", "robot0_eef_pos"):
            file[f"data/demo_2/obs/{key}"] = np.zeros((0, 3))
        del file["data/demo_2/actions"]
        file["data/demo_2/actions"] = np.zeros((0, 7))
    with pytest.raises(BurnishError, match="episode demo_2 has no steps"):
        load(path)
    with h5py.File(path, "a") as file:
        del file["data/demo_2/actions"]
    with pytest.raises(BurnishError, match="episode demo_2 has no actions; it has: dones, next_obs, obs"):
        load(path)
    with h5py.File(path, "a") as file:
        file["data"].attrs["env_args"] = "{"
    with pytest.raises(BurnishError, match="env_args of data is not JSON"):
        load(path)
    with h5py.File(path, "a") as file:
        del file["data"]
        file.create_group("data")
    with pytest.raises(BurnishError, match="no episodes"):
        load(path)


def test_files_that_are_not_demonstrations(tmp_path: Path) -> None:
    with pytest.raises(BurnishError, match="no such file"):
        load(tmp_path / "nothing.hdf5")
    with pytest.raises(BurnishError, match="is a folder without Minari data"):
        load(tmp_path)
    with pytest.raises(BurnishError, match="is a folder, expected an HDF5 file"):
        robomimic.read(tmp_path)
    text = tmp_path / "text.hdf5"
    text.write_text("not what it says")
    with pytest.raises(BurnishError, match=r"not an HDF5 file \(16 bytes"):
        load(text)
    empty = tmp_path / "empty.hdf5"
    empty.touch()
    with pytest.raises(BurnishError, match="not an HDF5 file"):
        load(empty)
    whole = tmp_path / "whole.hdf5"
    robomimic.write(whole, robosuite_demos())
    cut = tmp_path / "cut.hdf5"
    cut.write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
    with pytest.raises(BurnishError, match="damaged or incomplete HDF5 file") as caught:
        load(cut)
    assert "\n" not in str(caught.value)
    damaged = bytearray(whole.read_bytes())
    header = damaged.rindex(b"OHDR")  # of the last object
    damaged[header : header + 4] = b"ohdr"
    cut.write_bytes(bytes(damaged))
    with pytest.raises(BurnishError, match="damaged or incomplete HDF5 file"):
        load(cut)
    other = tmp_path / "other.hdf5"
    with h5py.File(other, "w") as file:
        file["weights"] = np.zeros(3)
    with pytest.raises(BurnishError, match="unknown layout; found weights at the top level"):
        load(other)


def test_filter_key_is_robomimics(tmp_path: Path) -> None:
    path = tmp_path / "hopper.hdf5"
    d4rl.write(path, flat_demos())
    with pytest.raises(BurnishError, match="filter key 'train': only robomimic files have them, this is D4RL"):
        load(path, "train")


def test_raw_robosuite_files_name_the_conversion(shared_data: Path) -> None:
    with pytest.raises(BurnishError, match=r"no observations .*burnish data convert"):
        load(shared_data / "human" / "lift_panda_2022.hdf5")


def test_shipped_names_are_looked_up_in_the_package() -> None:
    with pytest.raises(BurnishError, match=r"shipped:nonesuch: no such file in the package; it has: "):
        load("shipped:nonesuch")


def test_summary() -> None:
    demos = robosuite_demos()
    failed = replace(demos.episodes[2], rewards=np.full(4, 0.5, np.float32))
    summary = inspect(replace(demos, episodes=[*demos.episodes[:2], failed]))
    assert (summary.n_episodes, summary.n_steps, summary.n_successes) == (3, 19, 2)
    assert tuple(summary.lengths) == (4, 6, 9)
    assert tuple(summary.returns) == (1, 1, 2)
    assert [(signal.name, signal.dim) for signal in summary.observations] == [
        ("object", 10),
        ("robot0_eef_pos", 3),
    ]
    assert summary.observations[0].maximum == max(e.obs["object"].max() for e in demos.episodes)
    assert summary.actions[6].minimum == min(e.actions[:, 6].min() for e in demos.episodes)
    assert summary.masks == {"train": 2, "valid": 1}
    text = str(summary)
    for expected in ("robot0_eef_pos", "3 (19 steps)", "2 of 3", "train (2), valid (1)", "Lift 1.5.2"):
        assert expected in text
    assert inspect(flat_demos()).n_successes is None
    with pytest.raises(BurnishError, match="no episodes"):
        inspect(Demonstrations([], source="x"))


def test_checks_find_what_is_wrong() -> None:
    demos = robosuite_demos()
    assert check(demos) == []
    first, second, third = demos.episodes
    constant = [replace(e, obs=e.obs | {"object": with_constant(e.obs["object"])}) for e in demos.episodes]
    for episodes, expected in [
        (
            [first, replace(second, actions=second.actions * 3), third],
            ("warning", "demo_10", "outside [-1, 1]"),
        ),
        ([first, replace(first, name="demo_3")], ("warning", "demo_3", "the same actions as episode demo_2")),
        (
            [first, replace(second, obs={"object": second.obs["object"]})],
            ("error", "demo_10", "'robot0_eef_pos'"),
        ),
        (constant, ("warning", "all", "observation 'object' is constant in dimension 0, 3")),
        ([], ("error", "all", "no episodes")),
    ]:
        findings = check(replace(demos, episodes=episodes))
        assert len(findings) == 1
        assert (findings[0].level, findings[0].episode) == expected[:2]
        assert expected[2] in findings[0].message
    assert [f.episode for f in check(demos, horizon=6)] == ["demo_11"]
    assert [f.level for f in check(demos, obs_keys=["object", "camera"])] == ["error"] * 3


def with_constant(values: np.ndarray) -> np.ndarray:
    changed = values.copy()
    changed[:, [0, 3]] = 0.5
    return changed


def test_validation_weighs_the_replays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from burnish.datasets.checking import replaying as replay

    path = tmp_path / "lift.hdf5"
    robomimic.write(path, robosuite_demos())
    results = [
        replay.ReplayResult("demo_2", 6, True, True, 0.0),
        replay.ReplayResult("demo_10", 9, True, False, 0.1),
        replay.ReplayResult("demo_11", 4, False, False, 0.1),
    ]
    monkeypatch.setattr(replay, "replay", lambda demos, k: results[:k])
    validation = validate(path, k=3)
    assert [(f.level, f.episode) for f in validation.findings] == [
        ("warning", "demo_10"),
        ("error", "demo_11"),
    ]
    assert validation.n_errors == 1
    assert validation.note == "3 episodes replayed: 2 succeed by states, 1 by actions"
    assert validate(path).findings == []


def test_validation_does_not_replay_what_it_cannot(tmp_path: Path) -> None:
    path = tmp_path / "hopper.hdf5"
    d4rl.write(path, flat_demos())
    assert validate(path, k=2).note == "no episode replayed: only robosuite's data carry simulator states"
    stateless = [replace(e, states=None) for e in robosuite_demos().episodes]
    robomimic.write(path, replace(robosuite_demos(), episodes=stateless))
    assert validate(path, k=2).note == "no episode replayed: the file has no simulator states"
    validation = validate(path, k=2, obs_keys=["camera"])
    assert validation.n_errors == 3 and validation.note == "no episode replayed: the errors come first"


def test_offline_download_says_what_to_fetch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    def unreachable(*_args, **_kwargs):
        raise ConnectionError("no route")

    monkeypatch.setattr(huggingface_hub, "get_hf_file_metadata", unreachable)
    with pytest.raises(BurnishError) as caught:
        download("can", "mg", "low_dim_sparse", tmp_path)
    message = str(caught.value)
    name = "v1.5/can/mg/low_dim_sparse_v15.hdf5"
    assert f"robomimic/robomimic_datasets/resolve/main/{name} by hand" in message
    assert str(tmp_path / name) in message and "\n" not in message
    (tmp_path / name).parent.mkdir(parents=True)
    (tmp_path / name).touch()
    assert download("can", "mg", "low_dim_sparse", tmp_path) == tmp_path / name, "put there by hand"


def test_download_knows_what_was_released() -> None:
    assert released_file("lift", "ph", "raw") == "v1.5/lift/ph/demo_v15.hdf5"
    for wrong, message in [
        (("lift", "best", "raw"), "expected one of ph, mh, mg, paired"),
        (("square", "mg", "raw"), "the mg datasets are of lift, can"),
        (("lift", "ph", "image"), "the ph datasets have raw, low_dim"),
    ]:
        with pytest.raises(BurnishError, match=message):
            released_file(*wrong)


def test_package_refuses_its_bare_name() -> None:
    spec = importlib.util.spec_from_file_location("datasets", burnish.datasets.__file__)
    assert spec is not None and spec.loader is not None
    with pytest.raises(ImportError, match=r"import burnish\.datasets"):
        spec.loader.exec_module(importlib.util.module_from_spec(spec))


def test_importing_needs_no_simulator() -> None:
    program = (
        "from burnish.datasets import load, download, windows; "
        "from burnish.datasets.checking import inspect, checks, validate; import sys; "
        "print([m for m in ('robosuite', 'robomimic', 'mujoco', 'minari') if m in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
