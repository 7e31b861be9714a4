"""The commands of examples/csv_data, as its README has them, in another folder."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

EXAMPLE = Path(__file__).parents[1] / "examples" / "csv_data"


def commands() -> list[list[str]]:
    lines = (EXAMPLE / "README.md").read_text(encoding="utf-8").splitlines()
    return [shlex.split(line) for line in lines if line.startswith("    ")]


def test_from_csv_to_a_policy_that_acts(tmp_path):
    shutil.copytree(EXAMPLE, tmp_path / "mine")
    outputs = []
    for words in commands():
        program = [sys.executable] if words[0] == "python" else [sys.executable, "-m", "burnish.commands.cli"]
        fewer = ["train.updates=600" if word.startswith("train.updates=") else word for word in words[1:]]
        ran = subprocess.run(
            [*program, *fewer],
            cwd=tmp_path / "mine",
            env={**os.environ, "PYTHONPATH": str(EXAMPLE.parents[1]), "PYTHONSAFEPATH": "1"},
            capture_output=True,
            text=True,
            check=False,
        )
        assert ran.returncode == 0, (words, ran.stderr)
        outputs.append(ran.stdout)
    assert len(outputs) == 5 and "0 errors, 0 warnings" in outputs[2]
    run = tmp_path / "mine" / "runs" / "pretrain-my_arm-seed0"
    held_out = json.loads((run / "summary.json").read_text())["held_out"]
    assert len(held_out["action_error_each"]) == 3 and held_out["action_error"] < 0.4
    assert float(outputs[4].split(":")[1]) < 0.4  # it began 0.8 rad away
