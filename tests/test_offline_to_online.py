# ruff: noqa: F811
"""The stages that learn offline and then online, as one run: it resumes bitwise, and tells what it cannot train."""

from __future__ import annotations

import json
import re
from dataclasses import fields
from pathlib import Path

import pytest
import torch
from stopped import assert_same_run, untimed_metrics
from test_offline import signal_at
from test_training import EVALUATION, HOPPER, POLICY, dataset  # noqa: F401 - a fixture

from burnish.commands.cli import main
from burnish.errors import BurnishError, Stopped
from burnish.finetune.config import FinetuneConfig, OfflinePhaseConfig
from burnish.finetune.stage import stage_class
from burnish.finetune.start import finetune
from burnish.networks import CriticConfig
from burnish.policies.diffusion import DiffusionPolicy
from burnish.policies.gaussian import GaussianPolicy, GaussianPolicyConfig

NAMES = ("dql", "calql", "rlpd", "qc")
OFFLINE = OfflinePhaseConfig(steps=8, eval_every=0, checkpoint_every=0, report_every=3)
SMALL = {"batch_size": 16, "learning_starts": 100, "update_every": 5, "critic_warmup_updates": 3, "utd_ratio": 0.25}
SMALL |= {"n_candidates": 3, "target_candidates": 2, "conservative_draws": 2, "ddim_steps": 5}


@pytest.fixture(scope="module")
def policies(tmp_path_factory) -> dict[str, Path]:
    """Of each kind, as if they were pretrained."""
    folder = tmp_path_factory.mktemp("policies")
    torch.manual_seed(0)
    gaussian = GaussianPolicyConfig(hidden_sizes=[32], squash=True, n_obs_steps=2, obs_normalization="none")
    DiffusionPolicy(POLICY, 11, 3, ["flat"], "hopper").save(folder / "diffusion")
    GaussianPolicy(gaussian, 11, 3, ["flat"], "hopper").save(folder / "gaussian")
    return {kind: folder / kind for kind in ("diffusion", "gaussian")}


def stage_config(name: str, dataset: Path, **settings):
    config = stage_class(name).Config
    critic = CriticConfig(hidden_dim=32, n_layers=2, n_critics=3)
    known = {field.name for field in fields(config)}
    given = {key: value for key, value in (SMALL | {"critic": critic} | settings).items() if key in known}
    return config(demos=str(dataset), **given)


def run_config(folder: Path, name: str, policies: dict[str, Path], dataset: Path, **settings) -> FinetuneConfig:
    of = {"offline": OFFLINE, "total_env_steps": 300, "checkpoint_every": 0, "n_envs": 4, "backend": "sync"} | settings
    return FinetuneConfig(
        task=HOPPER,
        stage=stage_config(name, dataset),
        policy=str(policies[stage_class(name).kinds[0]]),
        run_dir=str(folder),
        evaluation=EVALUATION,
        device="cpu",
        **of,
    )


@pytest.mark.parametrize("name", NAMES)
def test_a_run_stopped_in_either_phase_goes_on_bitwise(name, policies, dataset, tmp_path, monkeypatch):
    finetune(run_config(tmp_path / "whole", name, policies, dataset))
    stage = stage_class(name)
    with monkeypatch.context() as patch:
        signal_at(patch, stage, "update_offline", 2)
        with pytest.raises(Stopped, match="after 6 offline gradient steps"):
            finetune(run_config(tmp_path / "run", name, policies, dataset))
    again = run_config(tmp_path / "run", name, policies, dataset, resume=str(tmp_path / "run"))
    torch.manual_seed(99)  # another process would start from another state
    with monkeypatch.context() as patch:
        signal_at(patch, stage, "update", 2)
        with pytest.raises(Stopped, match="environment steps"):
            finetune(again)
    torch.manual_seed(98)
    finetune(again)
    assert_same_run(tmp_path / "run", tmp_path / "whole")
    lines = untimed_metrics(tmp_path / "whole")
    assert {line["phase"] for line in lines} == {"offline", "online"}
    trained = [line for line in lines if "actor_loss" in line]
    assert {line["phase"] for line in trained} == {"offline", "online"}


@pytest.mark.parametrize("name", NAMES)
def test_a_policy_of_the_other_kind_is_refused_in_one_line(name, policies, dataset, tmp_path):
    kind = stage_class(name).kinds[0]
    other = {kind: policies["gaussian" if kind == "diffusion" else "diffusion"]}
    with pytest.raises(BurnishError, match=rf"^stage={name} trains a {kind}.* policy, but policy=\S+ is a") as caught:
        finetune(run_config(tmp_path / "run", name, other, dataset))
    assert "\n" not in str(caught.value) and not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", NAMES)
def test_without_demonstrations_there_is_no_offline_phase(name, policies, tmp_path):
    config = run_config(tmp_path / "run", name, policies, Path("none"))
    object.__setattr__(config.stage, "demo_ratio", 0.0)
    with pytest.raises(BurnishError, match=f"stage={name} has no offline phase .stage.demo_ratio=0 leaves"):
        finetune(config)


PAGE = Path(__file__).resolve().parent.parent / "docs" / "offline_to_online.md"


def test_the_docs_example(policies, dataset, tmp_path, monkeypatch, capsys):
    """RLPD from nothing, as the page has it, in less; its policy evaluates alone."""
    (command,) = re.findall(r"^    burnish (scratch .*stage=rlpd.*?)(?:  #.*)?$", PAGE.read_text(), re.MULTILINE)
    monkeypatch.chdir(tmp_path)
    Path("demonstrations.hdf5").symlink_to(dataset)
    few = ["stage.batch_size=16", "stage.critic.hidden_dim=32", "total_env_steps=120", "stage.utd_ratio=2"]
    few += ["stage.learning_starts=60", "stage.random_steps=60", "evaluation.episodes=2", "evaluation.n_envs=2"]
    few += ["task.max_episode_steps=50", "backend=sync", "run_dir=run", "stage.critic_warmup_updates=2"]
    assert main([*command.split(), *few]) == 0
    assert json.loads(Path("run/summary.json").read_text())["env_steps"] >= 120
    assert main(["evaluate", "policy=run", "episodes=2", "n_envs=2", "backend=sync"]) == 0
