"""Pretraining without a simulator: errors of actions by hand, what "best" is chosen by, and who refuses."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from burnish.commands.cli import main
from burnish.datasets.episodes import Demonstrations, Episode
from burnish.datasets.formats import robomimic
from burnish.datasets.load import load
from burnish.datasets.split import split_episodes
from burnish.datasets.windows import Windows
from burnish.envs import make_simulator, make_vector_env
from burnish.envs.task import TaskConfig
from burnish.errors import BurnishError
from burnish.networks import DenoiserConfig
from burnish.policies.diffusion import DiffusionPolicy, PolicyConfig
from burnish.policies.load import load_policy
from burnish.pretrain.behaviour_cloning import PretrainConfig, PretrainEvaluationConfig, TrainConfig, pretrain
from burnish.pretrain.held_out import ActionError, HeldOutActions
from burnish.runs.metrics import read_metrics
from burnish.runs.summary import PretrainSummary, converged

TASK = TaskConfig("my_arm", "none", obs_keys=["joint_pos"])


def episode(name: str, actions: np.ndarray) -> Episode:
    T = len(actions)
    obs = {"joint_pos": np.arange(2 * T, dtype=np.float32).reshape(T, 2)}
    return Episode(name, obs, actions.astype(np.float32), np.zeros(T, np.float32), np.zeros(T, bool))


class Constant(DiffusionPolicy):
    """Acts by 0.5 and 0 in each of its two executed steps."""

    def act(self, obs, **_):
        return torch.tensor([[0.5, 0.0]]).expand(len(obs), 2, 2)


def test_errors_of_executed_actions_by_hand():
    """Of three and of one step, chunks of two: what lies behind an episode's end does not count."""
    episodes = [
        episode("demo_0", np.array([[0.5, 0.2], [0.1, 0.0], [0.5, -0.4]])),
        episode("demo_1", np.array([[-0.5, 0.0]])),
    ]
    windows = Windows(episodes, ["joint_pos"], 1, 4)
    policy = Constant(PolicyConfig(n_action_steps=2), 2, 2, ["joint_pos"])
    found = HeldOutActions(episodes, windows).measure(policy, loss=0.7)
    # steps 0 1, 1 2, 2 of the first episode, 0 of the second
    assert found.absolute == pytest.approx([(0 + 0.4 + 0.4 + 0 + 0 + 1) / 6, (0.2 + 0 + 0 + 0.4 + 0.4 + 0) / 6])
    squares = [(0.16 + 0.16 + 1) / 6, (0.04 + 0.16 + 0.16) / 6]
    assert found.rms == pytest.approx(np.sqrt(squares))
    content = found.to_json()
    assert content["action_error"] == pytest.approx((1.8 + 1.0) / 12)
    assert content["action_rms"] == pytest.approx(np.sqrt(sum(squares) / 2))
    assert found.score == (-found.mean_absolute, -0.7) and ActionError.from_json(content) == found
    metrics = found.metrics()
    assert metrics["held_out/action_error/1"] == found.absolute[1] and metrics["held_out/action_rms/0"] == found.rms[0]


def test_many_windows_are_thinned_out_evenly():
    episodes = [episode("demo_0", np.zeros((5000, 2)))]
    rows = HeldOutActions(episodes, Windows(episodes, ["joint_pos"], 1, 1)).rows
    assert len(rows) == len(set(rows.tolist())) == 4096 and (rows[0], rows[-1]) == (0, 4999)
    assert int(rows.diff().max()) == 2


@pytest.fixture
def config(tmp_path):
    """Twelve episodes of an arm that goes where its observation says."""
    rng = np.random.default_rng(0)
    episodes = []
    for i in range(12):
        obs = rng.uniform(-1, 1, (20, 2)).astype(np.float32)
        episodes.append(replace(episode(f"demo_{i}", obs * 0.8), obs={"joint_pos": obs}))
    robomimic.write(tmp_path / "arm.hdf5", Demonstrations(episodes))
    return PretrainConfig(
        task=replace(TASK, dataset=str(tmp_path / "arm.hdf5")),
        policy=PolicyConfig(DenoiserConfig(hidden_dim=32, n_layers=1), horizon=2, n_action_steps=1, denoising_steps=5),
        train=TrainConfig(updates=300, batch_size=32, eval_every=100, learning_rate=3e-3),
        run_dir=str(tmp_path / "run"),
        device="cpu",
    )


def test_the_best_is_that_with_the_least_error(config, monkeypatch):
    errors = iter([0.3, 0.1, 0.2])
    measure = HeldOutActions.measure
    losses = []

    def scripted(self, policy, loss):
        losses.append(loss)
        return ActionError(loss, [next(errors)], measure(self, policy, loss).rms)

    monkeypatch.setattr(HeldOutActions, "measure", scripted)
    summary = pretrain(config)
    folder = Path(config.run_dir)
    assert json.loads((folder / "summary.json").read_text()) == summary
    lines = read_metrics(folder / "metrics.jsonl")
    assert [line["held_out/action_error"] for line in lines if "held_out/action_error" in line] == [0.3, 0.1, 0.2]
    assert losses == [line["validation_loss"] for line in lines if "held_out/action_error" in line]
    assert (folder / "checkpoints" / "best").resolve().name == "step_00000200"
    assert summary["held_out"]["action_error"] == 0.2 and summary["held_out"]["loss"] == losses[-1]
    assert "success_rate" not in summary and not (folder / "evaluation.json").exists()
    assert all("success" not in reason for reason in summary["improving"])
    read = PretrainSummary.read(folder)
    assert read.evaluation is None and read.to_json() == summary
    assert converged(config.run_dir) == (not summary["improving"])


def test_it_learns_and_the_error_says_so(config, tmp_path):
    """The same without evaluations in a simulator that there is; and the policy acts alone."""
    with_simulator = TaskConfig("hopper", "gymnasium", "Hopper-v5", 100)
    none = replace(config, evaluation=PretrainEvaluationConfig(episodes=0))
    assert not config.in_simulator and not none.in_simulator
    assert not replace(none, task=with_simulator).in_simulator
    assert PretrainConfig(task=with_simulator, run_dir="x").in_simulator
    summary = pretrain(replace(config, train=replace(config.train, updates=1500)))
    lines = [line for line in read_metrics(tmp_path / "run" / "metrics.jsonl") if "held_out/action_error" in line]
    assert lines[-1]["held_out/action_error"] == summary["held_out"]["action_error"] < 0.2  # constant actions: 0.4
    policy = load_policy(config.run_dir)
    held_out = split_episodes(load(config.task.dataset), 0.05, config.seed)[1]
    measured = HeldOutActions(held_out, Windows(held_out, ["joint_pos"], 1, 2)).measure(policy, 0.0)
    assert measured.absolute == pytest.approx(summary["held_out"]["action_error_each"])
    obs = np.array([[[0.5, -0.5]]], np.float32)
    acted = np.mean([policy.act(obs)[0, 0] for _ in range(20)], axis=0)
    np.testing.assert_allclose(acted, [0.4, -0.4], atol=0.15)


def test_nothing_to_hold_out_is_refused(config, tmp_path):
    with pytest.raises(BurnishError, match=r"validation_fraction=0: without evaluations in a simulator"):
        replace(config, train=TrainConfig(validation_fraction=0))
    with pytest.raises(BurnishError, match=r"my_arm has no simulator"):
        replace(config, evaluation=PretrainEvaluationConfig(video=1))
    robomimic.write(tmp_path / "one.hdf5", Demonstrations([episode("demo_0", np.zeros((3, 2)))]))
    with pytest.raises(BurnishError, match=r"one\.hdf5: one episode, expected at least two"):
        pretrain(replace(config, dataset=str(tmp_path / "one.hdf5")))


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"suite": "gymnasium", "max_episode_steps": 5}, "env_id is missing: give env_id"),
        ({"suite": "robosuite", "env_id": "Lift"}, "max_episode_steps=0: expected at least 1"),
    ],
)
def test_a_task_with_a_simulator_needs_an_environment_and_a_time_limit(keys, message):
    with pytest.raises(BurnishError, match=message):
        TaskConfig("mine", **keys)


@pytest.mark.parametrize(
    "words",
    [
        ["evaluate", "policy=none", "task={task}"],
        ["finetune", "policy=none", "task={task}"],
        ["scratch", "task={task}"],
        ["headroom", "policy=none", "task={task}"],
        ["data", "collect", "task={task}", "behaviour=runs/x", "out={out}.hdf5"],
        ["data", "train-behaviour", "task={task}", "target_return=1", "out={out}.safetensors"],
    ],
    ids=lambda words: " ".join(words[:2]),
)
def test_what_needs_a_simulator_refuses_in_one_line(words, tmp_path, capsys):
    task = tmp_path / "my_arm.yaml"
    task.write_text("name: my_arm\nsuite: none\nobs_keys: [joint_pos]\n")
    assert main([word.format(task=task, out=tmp_path / "out") for word in words]) == 2
    told = capsys.readouterr().err
    assert told.startswith("burnish: error: task=my_arm has no simulator (suite=none)") and told.count("\n") == 1
    assert list(tmp_path.iterdir()) == [task]


def test_no_environment_of_it_can_be_made():
    for make in (make_simulator, lambda task: make_vector_env(task, n_envs=1, n_obs_steps=1, n_action_steps=1, seed=0)):
        with pytest.raises(BurnishError, match="has no simulator"):
            make(TASK)


def test_it_is_listed_among_tasks(tmp_path, capsys):
    task = tmp_path / "my_arm.yaml"
    task.write_text("name: my_arm\nsuite: none\nobs_keys: [joint_pos]\n")
    assert main(["tasks", str(task), "--check"]) == 0
    assert "data alone" in capsys.readouterr().out
