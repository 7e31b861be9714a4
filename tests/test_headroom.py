"""`burnish headroom`: what is measured of a frozen policy, and what is said of it."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from burnish.commands.cli import main
from burnish.commands.headroom import Row, row, verdict
from burnish.envs.task import TaskConfig
from burnish.evaluation.evaluate import EvaluationConfig, evaluate
from burnish.networks import DenoiserConfig
from burnish.policies.diffusion import DiffusionPolicy, PolicyConfig

HOPPER = TaskConfig(name="hopper", suite="gymnasium", env_id="Hopper-v5", max_episode_steps=40)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    torch.manual_seed(0)
    config = PolicyConfig(denoiser=DenoiserConfig(hidden_dim=32), denoising_steps=5)
    folder = tmp_path_factory.mktemp("policy")
    DiffusionPolicy(config, 11, 3, ["flat"], "hopper").save(folder)
    return folder


def words(folder: Path, out: Path, *more: str) -> list[str]:
    fixed = ["headroom", "task=hopper", "task.max_episode_steps=40", f"policy={folder}", "episodes=4", "n_envs=4"]
    return [*fixed, "backend=sync", "temperatures=[1,0]", "means_of=[4]", f"out={out}", *more]


ROWS = [Row("frozen, a", 0.5, None), Row("frozen, b", 0.7, None), Row("frozen, c", 0.6, None)]


@pytest.mark.parametrize(
    ("expert", "measure", "said"),
    [
        (
            Row("expert", 0.96, None),
            "success_rate",
            "frozen, b has 70%, the expert 96%: 26% are left. A fine-tuning can",
        ),
        (Row("expert", 0.94, None), "success_rate", "24% are left, less than 25%. A fine-tuning cannot"),
        (None, "success_rate", "frozen, b has 70%, always succeeding 100%: 30% are left. A fine-tuning can"),
        (Row("expert", 1.2, None), "return", "are left. A fine-tuning can"),
        (Row("expert", 1.0, None), "return", "A fine-tuning cannot"),
        (None, "return", "without an expert nobody knows the most"),
    ],
)
def test_what_is_left_above_the_best_row(expert, measure, said):
    assert said in verdict(ROWS, expert, measure)


def test_a_row_has_wilson_s_interval_or_the_bootstrap_s():
    successes = row("a", np.array([True] * 5 + [False] * 5), "success_rate")
    assert successes.value == 0.5 and successes.interval == pytest.approx((0.2366, 0.7634), abs=1e-4)
    returns = row("a", np.arange(10.0), "return")
    assert returns.value == 4.5 and returns.interval.low < 3.5 and returns.interval.high > 5.5


def test_every_row_is_an_evaluation_of_the_frozen_policy(folder, tmp_path, capsys):
    assert main(words(folder, tmp_path, "demos=null", "critic_steps=2200", "expert=3500")) == 0
    content = json.loads((tmp_path / "headroom.json").read_text())
    names = ["frozen, temperature=1", "frozen, temperature=0", "frozen, temperature=1, mean of 4"]
    *plain, chosen = content["rows"]
    assert plain == names and chosen == "frozen, best of 8 by its critic"
    policy = DiffusionPolicy.load(folder)
    for name, settings in zip(names, ({}, {"temperature": 0.0}, {"mean_of": 4})):
        how = EvaluationConfig(episodes=4, n_envs=4, backend="sync", seed=200_000, **settings)
        assert content["rows"][name]["value"] == pytest.approx(evaluate(policy, HOPPER, how).returns.mean())
    printed = capsys.readouterr().out
    assert content["verdict"] in printed and "expert (given)" in printed and "3500.0" in printed
    summary = json.loads((tmp_path / "best-of-n" / "summary.json").read_text())
    assert content["rows"][chosen]["value"] == pytest.approx(summary["after_selected"]["return"])
    assert summary["before"]["return"] == pytest.approx(summary["after"]["return"])  # it is frozen


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["expert=expert", "demos=null"], "there is no scripted one of hopper: give its return"),
        (["expert=3500", "demos=nothing.hdf5"], "nothing.hdf5"),
        (["expert=3500", "task.dataset=null"], "task=hopper names none: give a file, or demos=null"),
    ],
)
def test_what_cannot_be_is_said_before_anything_is_evaluated(folder, tmp_path, capsys, monkeypatch, more, said):
    monkeypatch.setattr("burnish.commands.headroom.compare_samplings", lambda *_, **__: pytest.fail("evaluated"))
    assert main(words(folder, tmp_path, *more)) == 2
    assert said in capsys.readouterr().err


def test_the_expert_of_robosuite_is_the_scripted_one(tmp_path, capsys):
    torch.manual_seed(0)
    config = PolicyConfig(denoiser=DenoiserConfig(hidden_dim=32), denoising_steps=5)
    keys = ["robot0_eef_pos", "robot0_eef_quat", "robot0_gripper_qpos", "object"]
    DiffusionPolicy(config, 19, 7, keys, "lift").save(tmp_path / "policy")
    words = ["headroom", "task=lift", f"policy={tmp_path / 'policy'}", "episodes=2", "n_envs=2", "temperatures=[0]"]
    assert main([*words, "means_of=[]", "critic_steps=0", "n_workers=1"]) == 0
    content = json.loads((tmp_path / "policy" / "headroom" / "headroom.json").read_text())
    assert content["expert"]["value"] == 1.0 and content["rows"]["frozen, temperature=0"]["value"] == 0.0
    assert "100% are left. A fine-tuning can be told apart" in content["verdict"]
