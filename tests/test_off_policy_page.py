"""The commands of docs/off_policy.md that begin from scratch, shortened."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from burnish.commands.cli import main

PAGE = Path(__file__).resolve().parent.parent / "docs" / "off_policy.md"
COMMANDS = [line.split() for line in PAGE.read_text().splitlines() if line.startswith("    burnish scratch ")]
SHORT = ["n_envs=2", "backend=sync", "eval_every=0", "evaluation.episodes=2", "evaluation.backend=sync"]
SHORT += ["total_env_steps=80", "stage.learning_starts=40", "stage.random_steps=40", "stage.batch_size=8"]
SHORT += ["network.denoiser.hidden_dim=32", "stage.critic.hidden_dim=32", "evaluation.temperatures=[]"]


@pytest.mark.parametrize("words", COMMANDS, ids=lambda words: words[3].removeprefix("stage="))
def test_a_command_of_the_page_runs(words, tmp_path):
    assert main([*words[1:], *SHORT, f"run_dir={tmp_path / 'run'}"]) == 0
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["updates"] > 0 and summary["env_steps"] >= 80


def test_there_is_one_of_each():
    assert [words[3] for words in COMMANDS] == [f"stage={name}_paper" for name in ("qsm", "qvpo", "dacer", "dipo")]
