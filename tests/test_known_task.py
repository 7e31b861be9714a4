"""A policy knows the task that it was trained in: no task= is needed, and none that means something else is taken."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from burnish.commands.cli import main
from burnish.commands.configure import configure
from burnish.commands.table import COMMANDS
from burnish.config import to_dict
from burnish.envs.task import load_task
from burnish.machine.checksums import CHECKSUMS
from burnish.networks import DenoiserConfig
from burnish.policies.diffusion import DiffusionPolicy, PolicyConfig
from burnish.policies.load import load_policy

HOPPER = replace(load_task("hopper"), max_episode_steps=40)


@pytest.fixture
def folder(tmp_path) -> Path:
    torch.manual_seed(0)
    policy = DiffusionPolicy(PolicyConfig(denoiser=DenoiserConfig(hidden_dim=16)), 11, 3, ["flat"], "hopper")
    policy.trained_in = to_dict(HOPPER)
    policy.save(tmp_path / "policy")
    return tmp_path / "policy"


def configured(name: str, *words: str) -> dict:
    return configure(next(command for command in COMMANDS if command.name == name), list(words))


@pytest.mark.parametrize("command", ["evaluate", "finetune", "headroom"])
def test_the_task_is_the_policy_s_where_none_is_given(folder, command):
    more = ["stage=dppo"] if command == "finetune" else []
    assert configured(command, f"policy={folder}", *more)["task"] == to_dict(HOPPER)
    changed = configured(command, f"policy={folder}", "task.max_episode_steps=30", *more)
    assert changed["task"] == to_dict(replace(HOPPER, max_episode_steps=30))
    assert configured(command, f"policy={folder}", "task=lift", *more)["task"]["name"] == "lift"
    assert "hopper" in str(configured("finetune", f"policy={folder}", "stage=dppo")["run_dir"])


def test_of_an_older_policy_it_is_the_command_s(folder):
    description = json.loads((folder / "policy.json").read_text())
    del description["trained_in"]
    (folder / CHECKSUMS).unlink()
    (folder / "policy.json").write_text(json.dumps(description))
    assert load_policy(folder).trained_in is None
    assert configured("evaluate", f"policy={folder}")["task"]["name"] == "lift"


def test_what_means_something_else_is_refused_unless_it_is_allowed(folder, tmp_path, capsys):
    words = ["evaluate", f"policy={folder}", "episodes=2", "n_envs=2", "backend=sync", f"out={tmp_path / 'out'}"]
    other = "+task.env_kwargs.healthy_reward=0.5"
    assert main([*words, other]) == 2
    said = capsys.readouterr().err
    assert "env_kwargs: healthy_reward its default in the policy's, 0.5 in the task" in said
    assert "allow=[env_kwargs]" in said and not (tmp_path / "out").exists()
    assert main([*words, other, "allow=[env_kwargs]"]) == 0
    capsys.readouterr()
    assert main([*words, "task.max_episode_steps=20"]) == 0
    assert "max_episode_steps: 40 in the policy's, 20 in the task" in capsys.readouterr().err


def test_a_fine_tuning_keeps_what_it_was_trained_in(folder, tmp_path, capsys):
    words = ["finetune", f"policy={folder}", "stage=dppo", "stage.n_steps=4", "total_env_steps=64", "n_envs=4"]
    words += ["backend=sync", "evaluation.episodes=2", "evaluation.n_envs=2", "evaluation.backend=sync"]
    words += ["evaluation.temperatures=[]", "+task.env_kwargs.healthy_reward=0.5", f"run_dir={tmp_path / 'run'}"]
    assert main(words) == 2
    assert "allow=[env_kwargs]" in capsys.readouterr().err and not (tmp_path / "run").exists()
    assert main([*words, "evaluation.allow=[env_kwargs]"]) == 2
    assert "evaluation.allow is called allow now" in capsys.readouterr().err
    assert main([*words, "allow=[env_kwargs]"]) == 0
    assert load_policy(tmp_path / "run").trained_in["env_kwargs"] == {"healthy_reward": 0.5}
