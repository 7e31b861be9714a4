"""SAC behaviours: exported actors act as Stable-Baselines3's policy; the shipped one is of medium level."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

import gymnasium
import numpy as np
import pytest
import torch

from burnish.datasets.collecting.collect import collect
from burnish.datasets.collecting.config import CollectConfig
from burnish.datasets.collecting.sac_actor import BehaviourConfig, SACActor, export_actor, roll_out, train_behaviour
from burnish.datasets.load import load
from burnish.datasets.sources import SHIPPED_FOLDER
from burnish.envs.task import TaskConfig
from burnish.errors import BurnishError

HOPPER = TaskConfig("hopper", "gymnasium", "Hopper-v5", 1000)
PENDULUM = TaskConfig("inverted_pendulum", "gymnasium", "InvertedPendulum-v5", 1000)  # actions in [-3, 3]
RNG = np.random.default_rng


def new_sac(env_id: str):
    sb3 = pytest.importorskip("stable_baselines3", reason="needs the extra 'baselines'")
    return sb3.SAC("MlpPolicy", gymnasium.make(env_id), policy_kwargs={"net_arch": [16, 8]}, seed=3, device="cpu")


@pytest.mark.parametrize("env_id", ["Hopper-v5", "InvertedPendulum-v5"])
def test_exported_actor_predicts_what_stable_baselines3_predicts(env_id, tmp_path):
    sac = new_sac(env_id)
    actor = SACActor.load(export_actor(sac).save(tmp_path / "actor.safetensors", {"task": "t"}))
    assert actor.hidden_sizes == (16, 8)
    for obs in RNG(0).normal(0, 3, (20, actor.obs_dim)):
        expected, _ = sac.predict(obs, deterministic=True)  # in the environment's own range
        scaled = actor.act(obs, RNG(0), deterministic=True) * sac.action_space.high
        np.testing.assert_allclose(scaled, expected, atol=1e-6)


def test_exported_actor_has_stable_baselines3s_distribution():
    sac = new_sac("Hopper-v5")
    with torch.no_grad():
        sac.actor.log_std.bias += torch.tensor([5.0, -30.0, 0.0])  # both clamps and the interior
    obs = RNG(1).normal(0, 1, (5, 11)).astype(np.float32)
    with torch.no_grad():
        mean, log_std, _ = sac.actor.get_action_dist_params(torch.from_numpy(obs))
        own_mean, own_std = export_actor(sac)(torch.from_numpy(obs))
    torch.testing.assert_close(own_mean, mean)
    torch.testing.assert_close(own_std, log_std.exp())


def test_sampled_actions_are_the_squashed_gaussian():
    actor = SACActor.load("shipped:hopper-medium")
    obs = gymnasium.make("Hopper-v5").reset(seed=0)[0]
    with torch.no_grad():
        mean, std = (x.numpy() for x in actor(torch.from_numpy(obs.astype(np.float32))))
    rng = RNG(0)
    gaussian = np.arctanh(np.array([actor.act(obs, rng) for _ in range(4000)], np.float64).clip(-1 + 1e-7, 1 - 1e-7))
    np.testing.assert_allclose(np.median(gaussian, axis=0), mean, atol=0.1)
    np.testing.assert_allclose(np.abs(gaussian - mean).mean(axis=0), std * np.sqrt(2 / np.pi), rtol=0.1)


def test_shipped_actor_acts_in_range_and_repeatably():
    actor = SACActor.load("shipped:hopper-medium")
    observations = RNG(0).normal(0, 5, (200, 11))
    actions = np.array([actor.act(obs, RNG(i)) for i, obs in enumerate(observations)])
    assert actions.shape == (200, 3) and actions.dtype == np.float32
    assert np.abs(actions).max() <= 1
    again = np.array([actor.act(obs, RNG(i)) for i, obs in enumerate(observations)])
    np.testing.assert_array_equal(actions, again)


def test_shipped_files_are_small_and_say_where_they_come_from():
    files = sorted(SHIPPED_FOLDER.glob("hopper-medium.*"))
    assert [f.suffix for f in files] == [".json", ".safetensors"]
    assert sum(f.stat().st_size for f in files) < 200_000
    metadata = SACActor.load("shipped:hopper-medium").metadata
    assert metadata["env_id"] == "Hopper-v5"
    assert {"stable-baselines3", "torch", "gymnasium", "mujoco"} <= set(metadata["versions"])


@pytest.mark.parametrize("kind", ["deterministic", "stochastic"])
def test_shipped_actor_returns_what_its_metadata_says(kind):
    actor = SACActor.load("shipped:hopper-medium")
    stated = actor.metadata[kind]
    measured = roll_out(actor, HOPPER, 10, seed=77, deterministic=kind == "deterministic")
    standard_error = stated["std_return"] / np.sqrt(len(measured.returns))
    assert abs(measured.returns.mean() - stated["mean_return"]) < 4 * standard_error + 50
    assert 900 < stated["mean_return"] < 1500  # a third of an expert's 3,000 to 3,500


def test_rollouts_depend_on_the_seed_alone():
    actor = SACActor.load("shipped:hopper-medium")
    first, again = (roll_out(actor, HOPPER, 2, seed=5, deterministic=False) for _ in range(2))
    np.testing.assert_array_equal(first.returns, again.returns)


def test_collecting_with_sac_records_the_shipped_actors_episodes(tmp_path):
    out = str(tmp_path / "hopper.hdf5")
    collect(CollectConfig(HOPPER, out, behaviour="sac", episodes=5, n_workers=1))
    episodes = load(out).episodes
    assert len(episodes) == 5
    for episode in episodes:
        assert episode.obs["flat"].shape == (len(episode), 11)
        assert episode.terminated[-1] or len(episode) == 1000
    stated = SACActor.load("shipped:hopper-medium").metadata["stochastic"]
    mean_return = np.mean([episode.rewards.sum() for episode in episodes])
    assert abs(mean_return - stated["mean_return"]) < 4 * stated["std_return"] / np.sqrt(5)


def test_training_stops_at_the_target_and_writes_a_loadable_actor(tmp_path):
    pytest.importorskip("stable_baselines3", reason="needs the extra 'baselines'")
    config = BehaviourConfig(
        PENDULUM, str(tmp_path / "new" / "p.safetensors"), target_return=-1.0, max_steps=200, eval_every=100,
        eval_episodes=2, report_episodes=3, hidden_sizes=(8,),
    )  # fmt: skip
    path = train_behaviour(config)
    metadata = json.loads(path.with_suffix(".json").read_text())
    assert metadata["steps"] == 100
    assert metadata["stochastic"]["episodes"] == 3
    assert SACActor.load(path).hidden_sizes == (8,)
    assert sorted(f.name for f in path.parent.iterdir()) == ["p.json", "p.safetensors"]


def test_training_below_the_target_writes_nothing(tmp_path):
    pytest.importorskip("stable_baselines3", reason="needs the extra 'baselines'")
    config = BehaviourConfig(
        PENDULUM,
        str(tmp_path / "p.safetensors"),
        target_return=1e6,
        max_steps=150,
        eval_every=100,
        eval_episodes=1,
    )
    with pytest.raises(BurnishError, match="below target_return=1e\\+06"):
        train_behaviour(config)
    assert not list(tmp_path.iterdir())


def test_missing_stable_baselines3_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "stable_baselines3", None)
    with pytest.raises(BurnishError, match=r"burnish\[baselines\]"):
        train_behaviour(BehaviourConfig(PENDULUM, str(tmp_path / "p.safetensors"), target_return=1.0))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"task": TaskConfig("lift", "robosuite", "Lift", 400)}, "gymnasium"),
        ({"out": "actor.pt"}, "safetensors"),
        ({"target_return": float("nan")}, "target_return"),
        ({"max_steps": 0}, "max_steps=0"),
        ({"hidden_sizes": ()}, "hidden_sizes"),
        ({"seed": -1}, "seed=-1"),
    ],
)
def test_impossible_settings_are_refused(change, message):
    with pytest.raises(BurnishError, match=message):
        replace(BehaviourConfig(HOPPER, "actor.safetensors", target_return=1000.0), **change)


def test_unknown_environment_is_named(tmp_path):
    pytest.importorskip("stable_baselines3", reason="needs the extra 'baselines'")
    task = replace(HOPPER, env_id="Hoper-v5")
    with pytest.raises(BurnishError, match=r"task\.env_id=Hoper-v5"):
        train_behaviour(BehaviourConfig(task, str(tmp_path / "a.safetensors"), target_return=1.0))


def copy_of_shipped(folder: Path) -> Path:
    for file in SHIPPED_FOLDER.glob("hopper-medium.*"):
        (folder / file.name).write_bytes(file.read_bytes())
    return folder / "hopper-medium.safetensors"


def test_load_names_what_is_wrong(tmp_path):
    with pytest.raises(BurnishError, match=r"shipped:hoper.*hopper-medium"):
        SACActor.load("shipped:hoper")
    with pytest.raises(BurnishError, match=r"none\.safetensors: no such file"):
        SACActor.load(tmp_path / "none.safetensors")

    path = copy_of_shipped(tmp_path)
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(BurnishError, match=r"hopper-medium\.json: hopper-medium\.safetensors is too small"):
        SACActor.load(path)

    path = copy_of_shipped(tmp_path)
    description = path.with_suffix(".json")
    whole = json.loads(description.read_text())
    description.write_text(json.dumps(whole | {"obs_dim": 17}))
    with pytest.raises(BurnishError, match=r"does not fit hopper-medium\.json") as error:
        SACActor.load(path)
    assert "\n" not in str(error.value)
    description.write_text(json.dumps({k: v for k, v in whole.items() if k != "action_dim"}))
    with pytest.raises(BurnishError, match="action_dim"):
        SACActor.load(path)
    description.write_text("{")
    with pytest.raises(BurnishError, match=r"hopper-medium\.json"):
        SACActor.load(path)
    description.unlink()
    with pytest.raises(BurnishError, match=r"hopper-medium\.json: no such file"):
        SACActor.load(path)


def test_act_refuses_another_tasks_observation():
    with pytest.raises(BurnishError, match=r"hopper.*\(17,\).*\(11,\)"):
        SACActor.load("shipped:hopper-medium").act(np.zeros(17), RNG(0))
