"""Faults inside files of demonstrations: each told for what it is, none read as something else."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest

from burnish.datasets.checking.checks import ERROR, Finding, check
from burnish.datasets.checking.inspect import inspect
from burnish.datasets.episodes import listed, natural_order
from burnish.datasets.formats import hdf5, robosuite_states
from burnish.datasets.load import load, read
from burnish.datasets.split import split_episodes
from burnish.errors import BurnishError

T = 6


def lift(path: Path, names: tuple[str, ...] = ("demo_0", "demo_1")) -> Path:
    """Demonstrations in robomimic's layout, all numbers different."""
    rng = np.random.default_rng(0)
    with h5py.File(path, "w") as file:
        for name in names:
            demo = file.create_group(f"data/{name}")
            demo["actions"] = rng.uniform(-1, 1, (T, 7))
            for key, width in {"object": 10, "eef_pos": 3}.items():
                values = rng.normal(size=(T + 1, width))
                demo[f"obs/{key}"], demo[f"next_obs/{key}"] = values[:-1], values[1:]
            demo["rewards"] = demo["dones"] = (np.arange(T) == T - 1).astype(float)
            demo["states"] = rng.normal(size=(T, 32))
    return path


def put(path: Path, key: str, values: object, names: tuple[str, ...] = ("demo_0", "demo_1")) -> Path:
    """Replace `key` of these episodes."""
    with h5py.File(path, "a") as file:
        for name in names:
            demo = file[f"data/{name}"]
            for old in (key, key.split("/", maxsplit=1)[0]):
                if isinstance(demo.get(old), h5py.Dataset):
                    del demo[old]
            demo[key] = values
    return path


def message(path: Path, **settings: object) -> str:
    """What loading says, in one line, and not that the file is damaged."""
    with pytest.raises(BurnishError) as caught:
        load(path, **settings)
    text = str(caught.value)
    assert "\n" not in text and "damaged" not in text
    assert len(text) < 600
    return text


@pytest.mark.parametrize(
    ("key", "value", "why"),
    [
        ("obs/lang", np.array([b"lift the cube"] * T), "holds words"),
        ("obs/lang", np.array(["lift the cube"] * T, dtype=object), "holds words"),
        ("obs/pair", np.zeros(T, [("x", "f4"), ("y", "i4")]), "holds values of type"),
        ("obs/once", 3.0, "holds no array"),
        ("obs/nested/pose/cube", np.zeros((T, 4, 4)), "is a group of pose"),
        ("states/articulation/robot", np.zeros((T, 9)), "is a group of articulation"),
    ],
)
def test_what_is_no_array_of_numbers_is_left_out_by_name(tmp_path, key: str, value: object, why: str):
    demos = load(put(lift(tmp_path / "a.hdf5"), key, value))
    name = key.split("/")[key.startswith("obs")]
    episode = demos.episodes[0]
    assert demos.left_out == [name] == inspect(demos).left_out
    assert why in episode.left_out[name]
    assert set(episode.obs) == {"object", "eef_pos"}
    assert (episode.states is None) == (name == "states")
    if name != "states":
        with pytest.raises(BurnishError, match=f"no observation '{name}' of numbers: it {why}"):
            episode.obs_spec([name])
        assert why in message(tmp_path / "a.hdf5", sensors=[name])


ARRAYS = ("actions", "rewards", "dones", "next_obs/object")


@pytest.mark.parametrize(
    ("key", "swap"),
    [*((key, "group") for key in ARRAYS), *((key, "words") for key in (*ARRAYS, "obs", "next_obs", ""))],
)
def test_what_is_needed_and_no_array_of_numbers_is_refused_by_name(tmp_path, key: str, swap: str):
    path = lift(tmp_path / "a.hdf5")
    with h5py.File(path, "a") as file:
        place = f"data/demo_1/{key}".rstrip("/")
        del file[place]
        file[f"{place}/deeper" if swap == "group" else place] = (
            np.array([b"up"] * T) if swap == "words" else np.zeros(T)
        )
    said = message(path)
    assert "demo_1" in said and key in said and "expected" in said


@pytest.mark.parametrize("shape", [(1, 3), (3, 1), (1, 1, 3)])
def test_dimensions_of_one_do_not_count(tmp_path, shape: tuple[int, ...]):
    path = lift(tmp_path / "a.hdf5")
    values = np.arange(T * 3.0).reshape(T, 3)
    put(path, "obs/eef_pos", values.reshape(T, *shape))
    put(path, "next_obs/eef_pos", values.reshape(T, *shape) + 3)
    episode = load(path).episodes[0]
    np.testing.assert_array_equal(episode.obs["eef_pos"], values)
    assert episode.final_obs is not None
    np.testing.assert_array_equal(episode.final_obs["eef_pos"], [18, 19, 20])
    put(path, "obs/eef_pos", np.zeros((T, 2, 3)))
    assert load(path).left_out == ["eef_pos"]
    with pytest.raises(BurnishError, match=r"'eef_pos' of numbers: it has the shape \(2, 3\)"):
        load(path).episodes[0].obs_spec(["eef_pos"])


WRITER = "import h5py, sys; file = h5py.File(sys.argv[1], 'a'); print('open', flush=True); sys.stdin.read()"


def test_a_file_that_another_program_has_open(tmp_path):
    path = lift(tmp_path / "a.hdf5")
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen([sys.executable, "-c", WRITER, str(path)], **pipes) as writer:
        assert writer.stdout is not None and writer.stdin is not None
        writer.stdout.readline()
        said = message(path)
        writer.stdin.close()
    assert "another program has it open" in said and "HDF5_USE_FILE_LOCKING=FALSE" in said
    assert len(load(path).episodes) == 2


@pytest.mark.parametrize(
    ("said", "words"),
    [
        ("unable to lock file, errno = 37, error message = 'No locks available'", "HDF5_USE_FILE_LOCKING=FALSE"),
        ("file is already open for write/SWMR write (may use <h5clear file> to clear it)", "h5clear -s"),
        ("can't open directory (/usr/local/hdf5/lib/plugin). Please verify its existence", "HDF5_PLUGIN_PATH"),
        ("required filter 'lzf' is not registered", "HDF5_PLUGIN_PATH"),
        ("filter returned failure during read", "damaged"),
        ("free block size is zero?", "damaged"),
    ],
)
def test_what_hdf5_says_is_told_for_what_it_is(said: str, words: str):
    assert words in hdf5.what_is_wrong(OSError(said))


def test_a_link_to_a_file_that_is_not_here(tmp_path):
    path = lift(tmp_path / "a.hdf5")
    put(path, "actions", h5py.ExternalLink("part1.hdf5", "/actions"), ("demo_1",))
    assert "/data/demo_1/actions is a link to /actions in part1.hdf5" in message(path)
    put(lift(path), "obs/up", h5py.SoftLink("/nowhere"), ("demo_1",))
    assert "/data/demo_1/obs/up is a link to /nowhere" in message(path)
    put(lift(path), "obs/up", h5py.ExternalLink("part1.hdf5", "/up"), ("demo_1",))
    assert "part1.hdf5" in message(path)


@pytest.mark.parametrize(
    "written", [np.bytes_(b"<mujoco/>"), "<mujoco/>", np.array([b"<mujoco/>"]), np.array("<mujoco/>", object)]
)
def test_attributes_are_text_however_they_were_written(tmp_path, written: object):
    path = lift(tmp_path / "a.hdf5")
    with h5py.File(path, "a") as file:
        file["data/demo_0"].attrs["model_file"] = written
        file["data"].attrs["env_args"] = np.bytes_(b'{"env_name": "Lift", "type": 1}')
    demos = load(path)
    assert [episode.model_file for episode in demos.episodes] == ["<mujoco/>", None]
    assert demos.env_args == {"env_name": "Lift", "type": 1}


@pytest.mark.parametrize("written", ["", "  \n", "{}", "null", np.bytes_(b""), h5py.Empty("S1")])
def test_env_args_of_nothing_are_none(tmp_path, written: object):
    path = lift(tmp_path / "a.hdf5")
    with h5py.File(path, "a") as file:
        file["data"].attrs["env_args"] = written
    assert load(path).env_args is None


@pytest.mark.parametrize("pattern", ["demo_{}", "episode_{}", "traj{}", "{}", "run_{}_of_20"])
def test_episodes_come_in_natural_order(tmp_path, pattern: str):
    names = tuple(pattern.format(i) for i in range(12))
    assert tuple(episode.name for episode in load(lift(tmp_path / "a.hdf5", names)).episodes) == names
    assert sorted(set(names), key=natural_order) == list(names)


def many_at_the_top(path: Path) -> None:
    with h5py.File(path, "w") as file:
        for i in range(2000):
            file.create_group(f"traj_{i}")


def many_in_an_episode(path: Path) -> None:
    with h5py.File(path, "w") as file:
        for i in range(2000):
            file[f"data/demo_0/obs_of_joint_{i}"] = 0


def many_masks(path: Path) -> None:
    with h5py.File(lift(path), "a") as file:
        for i in range(2000):
            file[f"mask/{i}_percent"] = [b"demo_0"]


@pytest.mark.parametrize("make", [many_at_the_top, many_in_an_episode, many_masks])
def test_messages_list_few_names_and_how_many_there_are(tmp_path, make: Callable[[Path], None]):
    make(tmp_path / "a.hdf5")
    with pytest.raises(BurnishError) as caught:
        read(tmp_path / "a.hdf5", "none of these" if make is many_masks else None)
    assert len(str(caught.value)) < 600 and "(2000)" in str(caught.value)


def test_few_names_are_listed_whole():
    assert listed(f"a{i}" for i in range(10)) == "a0, a1, a2, a3, a4, a5, a6, a7, a8, a9"
    assert listed(f"a{i}" for i in range(11)) == "a0, a1, a2, a3, a4, a5, a6, a7, a8, ... (11)"


def test_a_virtual_dataset_whose_source_is_missing(tmp_path, monkeypatch):
    """HDF5 itself reads zeros."""
    path, part = lift(tmp_path / "a.hdf5"), tmp_path / "part1.hdf5"
    layout = h5py.VirtualLayout((T, 7), "f8")
    layout[:] = h5py.VirtualSource("part1.hdf5", "there/actions", shape=(T, 7))
    with h5py.File(path, "a") as file:
        del file["data/demo_1/actions"]
        file["data/demo_1"].create_virtual_dataset("actions", layout)
    said = message(path)
    assert "episode demo_1: actions is a virtual dataset of part1.hdf5, which is not here" in said
    with h5py.File(part, "w") as file:
        file["other"] = 0
    assert "virtual dataset of there/actions in" in message(path)
    with h5py.File(part, "w") as file:
        file["there/actions"] = np.full((T, 7), 0.5)
    assert (load(path).episodes[1].actions == 0.5).all()
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    part.rename(elsewhere / "part1.hdf5")
    monkeypatch.setenv("HDF5_VDS_PREFIX", str(elsewhere))
    assert (load(path).episodes[1].actions == 0.5).all()


def test_a_virtual_dataset_of_the_same_file_and_of_a_row_of_files(tmp_path):
    path = lift(tmp_path / "a.hdf5")
    same = h5py.VirtualLayout((T, 7), "f8")
    with h5py.File(path, "a") as file:
        same[:] = h5py.VirtualSource(file["data/demo_0/actions"])
        file["data/demo_1"].create_virtual_dataset("same", same)
        file["data/demo_1"].move("same", "obs/same")
        file["data/demo_0/obs/same"] = np.zeros((T, 7))
    demos = load(path)
    np.testing.assert_array_equal(demos.episodes[1].obs["same"], demos.episodes[0].actions)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("key", ["object", "eef_pos"])
def test_the_last_observation_is_looked_at(tmp_path, key: str, bad: float):
    path = lift(tmp_path / "a.hdf5")
    with h5py.File(path, "a") as file:
        file[f"data/demo_1/next_obs/{key}"][-1, 0] = bad
    text = f"observation {key!r} after the last action (step 5) has NaN or infinity"
    assert f"episode demo_1: {text}" in message(path)
    assert [(finding.episode, finding.message) for finding in errors(path)] == [("demo_1", text)]
    assert not errors(path, ["object" if key == "eef_pos" else "eef_pos"]), "the policy does not use it"


def errors(path: Path, keys: list[str] | None = None) -> list[Finding]:
    return [finding for finding in check(read(path), keys) if finding.level == ERROR]


@pytest.mark.parametrize("width", [2, 4])
def test_the_last_observation_has_the_shape_of_the_others(tmp_path, width: int):
    path = put(lift(tmp_path / "a.hdf5"), "next_obs/eef_pos", np.zeros((T, width)), ("demo_1",))
    text = f"observation 'eef_pos' after the last action has shape ({width},), those before it (3,)"
    assert f"episode demo_1: {text}" in message(path)
    assert [finding.message for finding in errors(path)] == [text]


@pytest.mark.parametrize("robosuite", [False, True])
@pytest.mark.parametrize("length", [T - 1, T + 1, 0])
@pytest.mark.parametrize("key", ["dones", "terminated", "rewards", "states", "next_obs/object", "obs/object"])
def test_everything_has_one_entry_for_each_action(tmp_path, key: str, length: int, robosuite: bool):
    path = put(lift(tmp_path / "a.hdf5"), key, np.zeros((length, 10) if "/" in key else length), ("demo_1",))
    if key == "states":
        put(path, key, np.zeros((length, 32)), ("demo_1",))
    with h5py.File(path, "a") as file:
        file["data"].attrs["env_args"] = f'{{"env_name": "Lift", "type": {1 if robosuite else 2}}}'
    name = "observation 'object'" if key == "obs/object" else key
    text = f"{name} has {length} steps, but there are 6 actions"
    assert f"episode demo_1: {text}" in message(path)
    assert text in [finding.message for finding in errors(path)]


def d4rl(path: Path, ends: tuple[int, ...], marked: tuple[int, ...], **other: object) -> Path:
    """20 steps in D4RL's layout, of which episodes end at `ends` by a time limit and `marked` says so."""
    rng = np.random.default_rng(0)
    obs = rng.normal(size=(20, 3)).astype(np.float32)
    after = np.roll(obs, -1, axis=0)
    after[list(ends)] += 0.1
    arrays = {
        "observations": obs,
        "actions": rng.uniform(-1, 1, (20, 2)),
        "rewards": np.ones(20),
        "terminals": np.zeros(20, bool),
        "timeouts": np.isin(np.arange(20), marked),
        "next_observations": after,
    }
    with h5py.File(path, "w") as file:
        for key, values in {**arrays, **other}.items():
            if values is not None:
                file[key] = values
    return path


@pytest.mark.parametrize(
    ("ends", "marked", "lengths", "said"),
    [
        ((4, 11, 19), (4, 11, 19), [5, 7, 8], ""),
        (
            (4, 11, 19),
            (11, 19),
            [5, 7, 8],
            "(1 times, first at step 4)",
        ),
        ((4, 11, 19), (), [5, 7, 8], "(2 times, first at step 4)"),
        ((19,), (4, 19), [5, 15], ""),
    ],
)
def test_d4rl_is_cut_where_the_next_observation_does_not_follow(tmp_path, capsys, ends, marked, lengths, said: str):
    path = d4rl(tmp_path / "a.hdf5", ends, marked)
    assert [len(episode) for episode in load(path).episodes] == lengths
    assert said in (heard := capsys.readouterr().err)
    assert bool(said) == bool(heard)
    d4rl(path, ends, marked, timeouts=None)
    assert [len(episode) for episode in load(path).episodes] == ([5, 7, 8] if len(ends) > 1 else [20])
    assert not capsys.readouterr().err, "that is how files without timeouts are read"


def test_rounding_and_nan_are_no_jumps(tmp_path, capsys):
    path = d4rl(tmp_path / "a.hdf5", (19,), (19,))
    with h5py.File(path, "a") as file:
        rounded = file["next_observations"][()].astype(float) * (1 + 1e-7)
        del file["next_observations"]
        file["next_observations"] = rounded
    assert [len(episode) for episode in load(path).episodes] == [20]
    with h5py.File(path, "a") as file:
        file["observations"][7, 1] = np.nan
    assert "episode demo_0: observation 'flat' has NaN or infinity, first at step 7" in message(path)
    assert not capsys.readouterr().err


@pytest.mark.parametrize("timeouts", [None, np.isin(np.arange(20), (9, 19))])
def test_d4rl_in_no_order_is_refused(tmp_path, timeouts):
    path = d4rl(tmp_path / "a.hdf5", tuple(range(20)), (), timeouts=timeouts)
    assert "not the following observations" in message(path) and "first at step 0" in message(path)


@pytest.mark.parametrize(
    ("key", "values", "words"),
    [
        ("timeouts", np.zeros(19, bool), "timeouts has 19 steps, but there are 20 actions"),
        ("terminals", np.zeros(21, bool), "terminals has 21 steps"),
        ("next_observations", np.zeros((19, 3)), "next_observations has 19 steps"),
        ("next_observations", np.zeros((20, 4)), "next_observations have the shape (20, 4), but observations (20, 3)"),
        ("terminals", np.zeros((20, 2)), "terminals has the shape (20, 2)"),
        ("rewards", np.zeros((20, 2)), "rewards has the shape (20, 2)"),
        ("observations", np.zeros(20), "observations has the shape (20,), expected (steps, dimension)"),
        ("observations", np.array([b"up"] * 20), "observations holds words"),
        ("rewards", None, "no rewards"),
    ],
)
def test_d4rl_arrays_that_do_not_fit(tmp_path, key: str, values: object, words: str):
    assert words in message(d4rl(tmp_path / "a.hdf5", (9, 19), (9, 19), **{key: values}))


def test_d4rls_last_observation_is_looked_at(tmp_path):
    path = d4rl(tmp_path / "a.hdf5", (9, 19), (9, 19))
    with h5py.File(path, "a") as file:
        file["next_observations"][9, 2] = np.inf
    assert "episode demo_0: observation 'flat' after the last action (step 9) has NaN or infinity" in message(path)


@pytest.mark.parametrize("states", [np.zeros(6), np.array([["a"] * 2] * 6), np.zeros((6, 2, 2))])
def test_dppos_arrays_are_numbers_of_two_dimensions(tmp_path, states):
    np.savez(tmp_path / "a.npz", states=states, actions=np.zeros((6, 2)), traj_lengths=[6])
    assert "expected numbers (steps, dimension)" in message(tmp_path / "a.npz")


def minari_folder(path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    minari = pytest.importorskip("minari")
    from gymnasium.spaces import Box
    from minari.data_collector import EpisodeBuffer

    monkeypatch.setenv("MINARI_DATASETS_PATH", str(path))
    ends = {"terminations": [False] * T, "truncations": [False] * (T - 1) + [True], "rewards": [1.0] * T, "infos": {}}
    obs, actions = np.random.default_rng(0).normal(size=(T + 1, 4)), np.full((T, 2), 0.5, np.float32)
    buffers = [EpisodeBuffer(i, i, None, obs, actions, **ends) for i in range(2)]
    spaces = {"observation_space": Box(-np.inf, np.inf, (4,), np.float64), "action_space": Box(-1, 1, (2,))}
    minari.create_dataset_from_buffers("mine-v0", buffers, requirements=[], **spaces)
    return path / "mine-v0"


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("key", "shape", "words"),
    [
        ("observations", (T, 4), "episode 1 has 6 observations of 6 steps: expected 7"),
        ("observations", (T + 2, 4), "episode 1 has 8 observations of 6 steps: expected 7"),
        ("rewards", (T - 1,), "episode demo_1: rewards has 5 steps, but there are 6 actions"),
        ("terminations", (T + 1,), "episode demo_1: terminated has 7 steps, but there are 6 actions"),
    ],
)
def test_minari_with_lengths_that_do_not_fit(tmp_path, monkeypatch, key: str, shape: tuple[int, ...], words: str):
    path = minari_folder(tmp_path, monkeypatch)
    with h5py.File(path / "data" / "main_data.hdf5", "a") as file:
        del file[f"episode_1/{key}"]
        file[f"episode_1/{key}"] = np.zeros(shape)
    assert words in message(path)


@pytest.mark.filterwarnings("ignore")
def test_minari_in_a_format_that_cannot_be_read_here(tmp_path, monkeypatch):
    path = minari_folder(tmp_path, monkeypatch)
    metadata = path / "data" / "metadata.json"
    metadata.write_text(json.dumps({**json.loads(metadata.read_text()), "data_format": "arrow"}))
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    assert 'pip install "minari[arrow]"' in message(path)


def with_env_args(path: Path, **env_args: object) -> Path:
    with h5py.File(lift(path), "a") as file:
        file["data"].attrs["env_args"] = json.dumps(env_args)
    return path


@pytest.mark.parametrize("written", ["high", np.zeros(2), np.bytes_(b"1")])
def test_sizes_of_faults_are_numbers(tmp_path, written: object):
    with h5py.File(lift(tmp_path / "a.hdf5"), "a") as file:
        file["data/demo_1"].attrs["fault_noise"] = written
    assert "episode demo_1: attribute fault_noise is" in message(tmp_path / "a.hdf5")


def test_env_kwargs_of_nothing_are_empty(tmp_path):
    path = with_env_args(tmp_path / "a.hdf5", env_name="Lift", type=1, env_kwargs=None)
    assert load(path).env_args == {"env_name": "Lift", "type": 1, "env_kwargs": {}}
    path = with_env_args(tmp_path / "a.hdf5", env_name="Lift", type=1, env_kwargs=["robots"])
    assert "env_kwargs in attribute env_args of data is list" in message(path)


@pytest.mark.parametrize(
    ("env_args", "terminated", "said"),
    [
        ({"env_kwargs": {"robots": ["Panda"]}}, False, False),
        ({"env_kwargs": {"controller_configs": {}}, "type": None}, False, False),
        ({"env_kwargs": {"robots": ["Panda"]}, "type": 2}, True, False),
        ({"env_kwargs": {}}, True, True),
        ({}, True, True),
        ({"type": 1}, False, False),
        ({"type": "1"}, False, False),
        ({"type": "2"}, True, False),
    ],
)
def test_env_args_without_a_type(tmp_path, capsys, env_args: dict[str, object], terminated: bool, said: bool):
    episodes = load(with_env_args(tmp_path / "a.hdf5", env_name="Lift", **env_args)).episodes
    assert [episode.terminated.any() for episode in episodes] == [terminated] * 2
    assert ("env_args have no type" in capsys.readouterr().err) == said


@pytest.mark.parametrize(
    ("kwargs", "reward", "successes"),
    [
        ({}, 1.0, 2),
        ({}, 0.9, 0),
        ({"reward_scale": None}, 1.0, 2),
        ({"reward_scale": 0.1}, 0.1, 2),
        ({"reward_scale": 10.0}, 1.0, 0),
        ({"reward_scale": 10.0}, 10.0, 2),
        ({"reward_shaping": True}, 1.0, None),
        ({"reward_shaping": True, "reward_scale": 10}, 10.0, None),
        ({"reward_scale": "high"}, 1.0, None),
    ],
)
def test_success_is_read_from_sparse_rewards_by_their_scale(tmp_path, kwargs, reward: float, successes: int | None):
    path = with_env_args(tmp_path / "a.hdf5", env_name="Lift", type=1, env_kwargs=kwargs)
    put(path, "rewards", np.append(np.zeros(T - 1), reward))
    summary = inspect(load(path))
    assert summary.n_successes == successes
    assert (f"{successes} of 2" if successes is not None else "not told by the data") in str(summary)


@pytest.mark.parametrize(
    ("train", "valid", "unused"), [((0, 1), (2,), "demo_3, demo_4"), ((4,), (0,), "demo_1, demo_2, demo_3")]
)
def test_masks_that_leave_episodes_unused_are_told(tmp_path, capsys, train, valid, unused: str):
    path = lift(tmp_path / "a.hdf5", tuple(f"demo_{i}" for i in range(5)))
    with h5py.File(path, "a") as file:
        file["mask/train"], file["mask/valid"] = ([f"demo_{i}".encode() for i in part] for part in (train, valid))
    demos = load(path)
    parts = split_episodes(demos, 0.3, seed=0)
    assert [[episode.name for episode in part] for part in parts] == [
        [f"demo_{i}" for i in part] for part in (train, valid)
    ]
    said = capsys.readouterr().err
    assert f"{len(train)} and {len(valid)} of 5 episodes, so these are not used: {unused} (" in said
    split_episodes(demos, 0, seed=0)
    split_episodes(replace(demos, masks={}), 0.3, seed=0)
    split_episodes(
        replace(demos, masks={"train": ["demo_0"], "valid": [f"demo_{i}" for i in range(1, 5)]}), 0.3, seed=0
    )
    assert not capsys.readouterr().err


def test_masks_of_episodes_that_are_not_there_are_told(tmp_path, capsys):
    with h5py.File(lift(tmp_path / "a.hdf5"), "a") as file:
        file["mask/all"], file["mask/old"] = [b"demo_0", b"demo_1"], [b"demo_1", b"demo_7"]
    assert load(tmp_path / "a.hdf5", "old").masks == {"all": ["demo_1"], "old": ["demo_1"]}
    assert capsys.readouterr().err.strip().endswith("mask/old names episodes that the file has not: demo_7")


@pytest.mark.parametrize("values", [np.zeros((2, 2)), np.arange(3), "demo_0"])
def test_masks_that_are_no_lists_of_names(tmp_path, values: object):
    with h5py.File(lift(tmp_path / "a.hdf5"), "a") as file:
        file["mask/train"] = values
    assert "mask/train is no list of names" in message(tmp_path / "a.hdf5")


@pytest.mark.parametrize("xml", ["<mujoco>", "<mujoco", "<a></b>"])
def test_a_model_that_is_cut_off_is_one_line(xml: str):
    with pytest.raises(BurnishError, match=r"^a\.hdf5: demo_0: attribute model_file is no complete XML"):
        robosuite_states._parse(xml, "a.hdf5: demo_0")
