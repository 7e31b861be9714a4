"""Training windows and the split into training and validation."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from burnish.datasets.episodes import Demonstrations, Episode
from burnish.datasets.formats import robomimic
from burnish.datasets.split import split_episodes
from burnish.datasets.windows import Windows
from burnish.errors import BurnishError


def episode(name: str, length: int, offset: float = 0) -> Episode:
    """Key "a" counts from the offset (1 dimension), "b" follows it (2 dimensions), actions are a / 8192."""
    steps = np.arange(length, dtype=np.float32)[:, None] + offset
    return Episode(
        name,
        {"a": steps, "b": np.concatenate([-steps, steps / 10], axis=1)},
        np.repeat(steps / 8192, 2, axis=1),
        np.zeros(length, np.float32),
        np.zeros(length, bool),
    )


def reference_window(e: Episode, keys: list[str], t: int, n_obs: int, horizon: int) -> tuple[np.ndarray, np.ndarray]:
    """The convention, one step at a time."""
    obs = [np.concatenate([e.obs[key][max(t - back, 0)] for key in keys]) for back in reversed(range(n_obs))]
    actions = [e.actions[min(t + ahead, len(e) - 1)] for ahead in range(horizon)]
    return np.stack(obs), np.stack(actions)


def test_hand_written_example() -> None:
    windows = Windows([episode("demo_0", 3), episode("demo_1", 2, offset=50)], ["a"], n_obs_steps=2, horizon=3)
    obs, actions = windows.batch(torch.arange(5))
    assert obs[..., 0].tolist() == [[0, 0], [0, 1], [1, 2], [50, 50], [50, 51]]
    assert (8192 * actions[..., 1]).tolist() == [[0, 1, 2], [1, 2, 2], [2, 2, 2], [50, 51, 51], [51, 51, 51]]


def test_actions_are_clipped_as_environments_clip_them() -> None:
    e = episode("demo_0", 3)
    e.actions[:] = [[3.75, -2.0], [0.5, -0.5], [-1.0, 1.0]]
    assert Windows([e], ["a"], 1, 1).actions.tolist() == [[1.0, -1.0], [0.5, -0.5], [-1.0, 1.0]]


@pytest.mark.parametrize(("n_obs", "horizon"), [(1, 1), (2, 8), (4, 3), (9, 30)])
def test_against_a_slow_reference(n_obs: int, horizon: int) -> None:
    episodes = [episode(f"demo_{i}", length, 1000 * i) for i, length in enumerate([5, 1, 17, 8])]
    keys = ["b", "a"]
    windows = Windows(episodes, keys, n_obs, horizon)
    expected = [reference_window(e, keys, t, n_obs, horizon) for e in episodes for t in range(len(e))]
    assert len(windows) == len(expected) == 31
    indices = torch.randperm(len(windows), generator=torch.Generator().manual_seed(0))
    obs, actions = windows.batch(indices)
    assert obs.dtype == actions.dtype == torch.float32
    assert obs.shape == (31, n_obs, 3) and actions.shape == (31, horizon, 2)
    np.testing.assert_array_equal(obs, np.stack([expected[i][0] for i in indices]))
    np.testing.assert_array_equal(actions, np.stack([expected[i][1] for i in indices]))


def test_against_robomimics_sequence_dataset(tmp_path: Path) -> None:
    from robomimic.utils import obs_utils
    from robomimic.utils.dataset import SequenceDataset

    demos = Demonstrations([episode("demo_0", 6), episode("demo_1", 3, 40)])
    robomimic.write(tmp_path / "x.hdf5", demos)
    obs_utils.initialize_obs_utils_with_obs_specs({"obs": {"low_dim": ["a", "b"]}})
    theirs = SequenceDataset(
        str(tmp_path / "x.hdf5"),
        obs_keys=["a", "b"],
        dataset_keys=["actions"],
        frame_stack=3,
        seq_length=4,
        hdf5_use_swmr=False,
        load_next_obs=False,
    )
    windows = Windows(demos.episodes, ["a", "b"], n_obs_steps=3, horizon=4)
    obs, actions = windows.batch(torch.arange(len(windows)))
    assert len(theirs) == len(windows)
    for index in range(len(windows)):
        item = theirs[index]  # To - 1 + Tp steps of everything
        np.testing.assert_array_equal(obs[index, :, :1], item["obs"]["a"][:3])
        np.testing.assert_array_equal(obs[index, :, 1:], item["obs"]["b"][:3])
        np.testing.assert_array_equal(actions[index], item["actions"][2:])


def test_flat_storage_is_every_step_once() -> None:
    episodes = [episode("demo_0", 4), episode("demo_1", 3, 9)]
    windows = Windows(episodes, ["a"], 2, 5)
    assert windows.obs[:, 0].tolist() == [0, 1, 2, 3, 9, 10, 11]
    assert windows.actions.shape == (7, 2)


def test_unusable_windows() -> None:
    with pytest.raises(BurnishError, match="no episodes"):
        Windows([], ["a"], 1, 1)
    for n_obs, horizon in [(0, 1), (1, 0)]:
        with pytest.raises(BurnishError, match="must be at least 1"):
            Windows([episode("demo_0", 3)], ["a"], n_obs, horizon)
    with pytest.raises(BurnishError, match="episode demo_0 has no observation 'c'; it has: a, b"):
        Windows([episode("demo_0", 3)], ["c"], 1, 1)


def names(episodes: list[Episode]) -> list[str]:
    return [e.name for e in episodes]


def demonstrations(count: int, masks: dict[str, list[str]] | None = None) -> Demonstrations:
    return Demonstrations([episode(f"demo_{i}", 2) for i in range(count)], masks=masks or {}, source="x.hdf5")


def test_split_is_by_episode_and_seeded() -> None:
    demos = demonstrations(20)
    train, valid = split_episodes(demos, 0.1, seed=3)
    assert len(valid) == 2 and len(train) == 18
    assert set(names(train)) | set(names(valid)) == set(names(demos.episodes))
    assert names(train) == [name for name in names(demos.episodes) if name in names(train)]
    assert names(split_episodes(demos, 0.1, seed=3)[1]) == names(valid)
    assert len({tuple(names(split_episodes(demos, 0.1, seed)[1])) for seed in range(10)}) > 5


@pytest.mark.parametrize(
    ("count", "fraction", "n_valid"), [(5, 0.0, 0), (5, 0.01, 1), (5, 0.99, 4), (1, 0.5, 0), (2, 0.5, 1)]
)
def test_split_sizes(count: int, fraction: float, n_valid: int) -> None:
    train, valid = split_episodes(demonstrations(count), fraction, seed=0)
    assert (len(train), len(valid)) == (count - n_valid, n_valid)


def test_split_by_the_files_own_masks() -> None:
    masks = {"train": ["demo_4", "demo_0"], "valid": ["demo_2"]}
    train, valid = split_episodes(demonstrations(5, masks), 0.1, seed=0)
    assert (names(train), names(valid)) == (["demo_0", "demo_4"], ["demo_2"])
    train, valid = split_episodes(demonstrations(5, masks), 0, seed=0)
    assert (len(train), len(valid)) == (5, 0)
    train, valid = split_episodes(demonstrations(5, {"train": ["demo_0"], "valid": []}), 0.2, seed=0)
    assert (len(train), len(valid)) == (4, 1), "one mask alone, as after selecting a filter key, does not count"


def test_impossible_splits() -> None:
    for fraction in (-0.1, 1.0):
        with pytest.raises(BurnishError, match="at least 0 and less than 1"):
            split_episodes(demonstrations(3), fraction, seed=0)
    with pytest.raises(BurnishError, match="no episodes"):
        split_episodes(demonstrations(0), 0.1, seed=0)
    with pytest.raises(BurnishError, match="demo_1 is in both masks"):
        split_episodes(demonstrations(3, {"train": ["demo_0", "demo_1"], "valid": ["demo_1"]}), 0.1, seed=0)
