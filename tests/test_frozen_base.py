"""docs/frozen_base.md: its commands run, shortened, and what they leave is taken by all that takes a policy."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import pytest
from test_checkpoint_contents import CLONED, DRAWING, RL, SHORT

from burnish.commands.cli import main

PAGE = (Path(__file__).resolve().parent.parent / "docs" / "frozen_base.md").read_text().splitlines()
COMMANDS = {
    next(word for word in words if word.startswith("stage=")).removeprefix("stage="): words[1:]
    for words in (shlex.split(line) for line in PAGE if line.startswith("    burnish "))
}
MORE = {"dsrl": (), "residual": ("stage.demo_ratio_final=0",), "ogpo": ("stage.states=4", "stage.bc_coef=0")}


@pytest.mark.parametrize("stage", MORE)
def test_the_commands_run_and_their_policies_are_taken_everywhere(stage, tmp_path, capsys):
    assert COMMANDS.keys() == MORE.keys()
    run, again = tmp_path / "run", tmp_path / "again"
    words = [word for word in COMMANDS[stage] if word not in ("task=lift", "policy=RUN")]
    assert main([*words, *RL, *DRAWING, *MORE[stage], f"run_dir={run}"]) == 0
    policy = f"policy={run}"
    assert main(["evaluate", policy, "episodes=2", "backend=sync", "temperature=[1,0]", f"out={tmp_path / 'out'}"]) == 0
    assert "temperature=0" in capsys.readouterr().out
    one = ["episodes=1", "backend=sync", f"out={tmp_path / 'best'}"]
    assert main(["evaluate", policy, *one, "temperature=1", "candidates=3"]) == 0
    assert main(["policy", "set", str(run), "temperature=0.5"]) == 0
    saved = json.loads((run / "checkpoints" / "latest" / "policy.json").read_text())
    assert saved["config"]["temperature"] == 0.5
    frozen = ["stage=frozen", policy, "total_env_steps=4", f"run_dir={tmp_path / 'frozen'}"]
    assert main(["finetune", *SHORT, "n_envs=2", "backend=sync", *frozen]) == 0
    on = [word for word in (*RL, *DRAWING, *MORE[stage]) if not word.startswith("policy=")]
    assert main([*words, *on, policy, f"run_dir={again}"]) == 0  # it goes on with it
    assert json.loads((again / "checkpoints" / "latest" / "policy.json").read_text())["kind"] == saved["kind"]


def test_what_cannot_be_is_told_in_a_line(tmp_path, capsys):
    run = tmp_path / "run"
    assert main(["finetune", "stage=dsrl", *RL, *DRAWING, f"run_dir={run}"]) == 0
    capsys.readouterr()
    words = ["task=inverted_double_pendulum", f"run_dir={tmp_path / 'none'}"]
    for given, message in (
        (["finetune", "stage=dpmd", f"policy={run}"], "stage=dpmd trains a diffusion or a flow policy, but policy="),
        (["finetune", "stage=residual", f"policy={run}"], "stage=residual trains a diffusion or a flow or a residual"),
        (["scratch", "stage=dsrl"], "stage=dsrl steers a pretrained policy: expected policy=FOLDER"),
        (
            ["finetune", "stage=dsrl", f"policy={CLONED}", "stage.base_steps=3"],
            "sampler_steps=3: expected a div",
        ),
        (["finetune", "stage=dsrl", f"policy={CLONED}", "stage.critic.kind=quantile"], "stage.critic.kind=quantile"),
        (["finetune", "stage=dsrl", f"policy={CLONED}", "offline.steps=5"], "stage.demo_ratio=0 leaves the demonstr"),
        (["evaluate", f"policy={run}", "sampler=ddim"], "sampler=ddim: a steered policy has no sampler"),
        (["evaluate", f"policy={run}", "mean_of=4"], "mean_of=4: expected 1, a steered policy acts by one chunk"),
    ):
        more = [f"out={tmp_path / 'out'}"] if given[0] == "evaluate" else words[1:]
        assert main([*given, words[0], *more]) != 0
        said = capsys.readouterr().err.strip()
        assert message in said and "\n" not in said, said
    assert not (tmp_path / "none").exists()
