"""What users have stays valid: policies, checkpoints and finished comparisons of format 1 (tests/data/format1)."""

from __future__ import annotations

import gzip
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from burnish.commands.cli import main
from burnish.compare.config import read_config
from burnish.compare.grid import is_finished
from burnish.compare.plan import plan
from burnish.policies.load import load_policy
from burnish.runs.checkpoint import TRAINER, TrainerFile
from burnish.runs.evaluation_file import EVALUATION, EvaluationFile
from burnish.runs.metrics import METRICS, read_metrics
from burnish.runs.summary import FinetuneSummary, PretrainSummary

FILES = Path(__file__).resolve().parent / "data" / "format1"
ACTIONS = json.loads((FILES / "actions.json").read_text())
COMPARED = "comparison/inverted_double_pendulum"
LONGER = {
    f"{COMPARED}/pretrain/seed3": ("pretrain", "train.epochs=6"),
    f"{COMPARED}/dppo/seed3": ("finetune", "total_env_steps=96"),
    f"{COMPARED}/dpmd/seed3": ("finetune", "total_env_steps=96"),
    "runs/best_of_n": ("finetune", "total_env_steps=96"),
    "runs/sac": ("finetune", "total_env_steps=96"),
}
"""Run -> the command that resumes it, and its new length."""


@pytest.fixture
def files(tmp_path, monkeypatch) -> Path:
    """A copy to write in, unpacked; the paths in it are relative to it."""
    folder = tmp_path / "files"
    shutil.copytree(FILES, folder, symlinks=True)
    for packed in folder.rglob(f"{TRAINER}.gz"):
        packed.with_name(TRAINER).write_bytes(gzip.decompress(packed.read_bytes()))
        packed.unlink()
    monkeypatch.chdir(folder)
    return folder


@pytest.mark.parametrize("folder", ACTIONS)
def test_a_policy_acts_as_it_did(folder):
    policy = load_policy(FILES / folder)
    shape = (2, policy.config.n_obs_steps, policy.obs_dim)
    obs = policy.obs_normalizer.unnormalize(torch.linspace(-1, 1, int(np.prod(shape))).reshape(shape)).numpy()
    for n, actions in ACTIONS[folder].items():
        first, *others = policy.noise_shape(int(n))
        noise = torch.linspace(-0.5, 0.5, 2 * int(np.prod((first, *others)))).reshape(first, 2, *others)
        np.testing.assert_allclose(policy.act(obs, noise=noise, candidates=int(n)), actions, atol=1e-5)


@pytest.mark.parametrize("run", LONGER)
def test_a_run_goes_on(run, files):
    command, longer = LONGER[run]
    saved = TrainerFile.read(next(Path(run, "checkpoints").glob("step_*")))
    before = read_metrics(Path(run, METRICS))[: saved.n_metric_lines]
    assert main([command, f"resume={run}", longer]) == 0
    lines = read_metrics(Path(run, METRICS))
    assert lines[: len(before)] == before
    assert lines[-1]["step"] > before[-1]["step"]
    if command == "finetune":
        summary = FinetuneSummary.read(Path(run))
        assert (summary.env_steps, summary.before.episodes) == (lines[-1]["step"], 3)
        assert summary.env_steps >= 96
    else:
        assert PretrainSummary.read(Path(run)).steps == lines[-1]["step"]


def test_a_comparison_is_finished_and_can_be_reported(files, monkeypatch, capsys):
    monkeypatch.setattr("burnish.compare.statistics.RESAMPLES", 100)
    monkeypatch.setattr("burnish.compare.figures.DPI", 30)
    cells = plan(read_config(Path("compare.yaml")))
    assert [cell.method for cell in cells if is_finished(cell)] == ["pretrain", "dppo", "dpmd"]
    assert main(["compare", "compare.yaml", "--report"]) == 0
    assert "3 of 3 cells finished" in capsys.readouterr().out
    report = Path("comparison", "report.md").read_text()
    assert "2 of 2 runs finished" in report and "a90f0bf0a1e9c2ff9ff4490273ac14edead56e74, nothing changed" in report


def test_an_evaluation_tells_how_it_came_about():
    file = EvaluationFile.read(FILES / COMPARED / "dpmd" / "seed3" / EVALUATION)
    assert file.about.weights is not None and len(file.about.weights) == 64
    assert file.about.task["env_id"] == "InvertedDoublePendulum-v5" and file.candidates == 1
    assert file.about.origin.compiled_networks and file.about.origin.versions["torch"]
    assert file.summary.mean_return == pytest.approx(np.mean(file.values("return")))
    assert file.values("success_rate") == [0.0, 0.0, 0.0]
