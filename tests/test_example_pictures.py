"""examples/picture_reach: its README's commands, shortened, in another folder; and its runs, stopped and resumed."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from stopped import StopAfter, assert_same_run, untimed_metrics

from burnish.commands.cli import main
from burnish.datasets.load import load
from burnish.finetune import loop
from burnish.policies.load import load_policy

ROOT = Path(__file__).resolve().parent.parent
EXAMPLE = ROOT / "examples" / "picture_reach"
SMALL = ["policy.encoder.features=8", "policy.encoder.channels=[8,16]", "policy.denoiser.hidden_dim=32"]
FEW = ["evaluation.episodes=4", "evaluation.n_envs=4", "evaluation.temperatures=[]"]
SHORT = {
    "tasks": [],
    "data": ["episodes=6"],
    "pretrain": ["train.updates=40", "train.batch_size=32", *SMALL, *FEW],
    "finetune": ["n_envs=4", "backend=workers", "n_workers=2", "total_env_steps=320", "eval_every=160", *FEW],
    "evaluate": ["episodes=4", "n_envs=4"],
    "compare": [
        "tasks.picture_reach.pretrain=" + json.dumps(["dataset=data/reach.hdf5", "train.updates=40", *SMALL, *FEW]),
        "settings=[n_envs=4, backend=sync, evaluation.episodes=4, evaluation.n_envs=4]",
        "methods.dppo=[stage=dppo, stage.n_steps=10]",
        "methods.dpmd=[stage=dpmd, stage.demos=data/reach.hdf5, stage.learning_starts=64, stage.batch_size=16]",
        *("total_env_steps=320", "memory_gb=8", "cell_memory_gb=2"),
    ],
}
STAGES = {
    "dppo": ["stage.n_steps=10", "stage.batch_size=100", "stage.update_epochs=1"],
    "dpmd": ["stage.learning_starts=64", "stage.critic_warmup_updates=2", "stage.batch_size=16", "stage.n_step=2"],
}


@pytest.fixture(scope="module")
def played(tmp_path_factory) -> tuple[Path, dict[str, str]]:
    """The folder in which the README's commands ran, and what each printed."""
    folder, outputs = tmp_path_factory.mktemp("theirs"), {}
    (folder / "examples").symlink_to(ROOT / "examples")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(EXAMPLE), str(ROOT)]), "PYTHONSAFEPATH": "1"}
    lines = [line for line in (EXAMPLE / "README.md").read_text().splitlines() if line.startswith("    burnish ")]
    assert len(lines) == 7
    for line in lines:
        words = shlex.split(line)[1:]
        stage = next((word.removeprefix("stage=") for word in words if word.startswith("stage=")), None)
        few = [*SHORT[words[0]], *STAGES.get(stage, [])]
        ran = subprocess.run(
            [sys.executable, "-m", "burnish.commands.cli", *words, *few],
            cwd=folder,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert ran.returncode == 0, f"{line}: {ran.stdout[-2000:]} {ran.stderr[-2000:]}"
        outputs[stage or words[0]] = ran.stdout + ran.stderr
    return folder, outputs


@pytest.mark.slow
def test_the_commands_of_the_readme_run(played) -> None:
    folder, outputs = played
    assert "actions in [-1, 1] are rescaled to [-0.2, 0.2]" in outputs["tasks"]
    episodes = load(folder / "data" / "reach.hdf5", sensors=["picture"]).episodes
    assert len(episodes) == 6 and sum(episode.rewards.any() for episode in episodes) >= 5
    assert episodes[0].obs["picture"].shape[1:] == (16, 16, 3) and episodes[0].obs["position"].shape[1] == 2
    assert "dppo" in outputs["compare"] and "dpmd" in outputs["compare"] and "frozen" in outputs["compare"]
    policy = load_policy(folder / "runs" / "dpmd-picture_reach-seed0")
    assert str(policy.obs_spec) == "state [2] float32, picture [16, 16, 3] uint8"
    assert policy.finetuned is not None and policy.critic is not None
    pretrained = load_policy(folder / "runs" / "pretrain-picture_reach-seed0")
    for ours, theirs in zip(policy.finetuned.encoder.parameters(), pretrained.denoiser.encoder.parameters()):
        assert not torch.equal(ours, theirs)  # fine-tuning trains what sees
    assert json.loads((folder / "runs" / "dppo-picture_reach-seed0" / "summary.json").read_text())["env_steps"] >= 320


@pytest.mark.slow
@pytest.mark.parametrize(("stage", "stop_after"), [("dppo", 13), ("dpmd", 14)])  # in the midst of episodes
def test_a_run_that_is_stopped_goes_on_bitwise(played, stage, stop_after, tmp_path, monkeypatch) -> None:
    folder, _ = played
    monkeypatch.chdir(folder)
    monkeypatch.syspath_prepend(str(EXAMPLE))
    before = os.environ.get("PYTHONPATH")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(EXAMPLE), str(ROOT), *([before] if before else [])]))
    words = [
        "finetune",
        "policy=runs/pretrain-picture_reach-seed0",
        f"stage={stage}",
        *SHORT["finetune"],
        *STAGES[stage],
    ]
    monkeypatch.setattr(StopAfter, "n", stop_after)
    monkeypatch.setattr(loop, "StopRequest", StopAfter)
    run, whole = tmp_path / "run", folder / "runs" / f"{stage}-picture_reach-seed0"
    assert main([*words, f"run_dir={run}"]) == 130
    assert 0 < len(untimed_metrics(run)) < len(untimed_metrics(whole))
    monkeypatch.setattr(StopAfter, "n", -1)
    torch.manual_seed(99)
    assert main(["finetune", f"resume={run}"]) == 0
    assert_same_run(run, whole)


@pytest.mark.slow
def test_a_policy_with_a_picture_acts_from_python(played) -> None:
    policy = load_policy(played[0] / "runs" / "pretrain-picture_reach-seed0")
    obs = policy.obs_spec.record(
        {"state": np.zeros((2, 1, 2), np.float32), "picture": np.zeros((2, 1, 16, 16, 3), np.uint8)}
    )
    assert policy.act(obs).shape == (2, 4, 2)
