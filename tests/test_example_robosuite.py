"""The commands of examples/robosuite_robot, as its README has them, in another folder, with fewer episodes."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from burnish.datasets.load import load

EXAMPLE = Path(__file__).parents[1] / "examples" / "robosuite_robot"


@pytest.mark.slow
def test_another_robot_and_an_environment_of_ones_own(tmp_path):
    folder = tmp_path / "mine"
    shutil.copytree(EXAMPLE, folder)
    lines = (EXAMPLE / "README.md").read_text(encoding="utf-8").splitlines()
    first, *commands = [line.strip() for line in lines if line.startswith("    ")]
    assert first == "export PYTHONPATH=$PWD"
    environment = {**os.environ, "PYTHONPATH": f"{folder}{os.pathsep}{EXAMPLE.parents[1]}", "PYTHONSAFEPATH": "1"}
    for command in commands:
        fewer = re.sub(r"updates=\d+", "updates=20", re.sub(r"episodes=\d+", "episodes=4", command))
        words = shlex.split(fewer)[1:] + (["evaluation.episodes=2"] if " pretrain " in command else [])
        program = [sys.executable, "-m", "burnish.commands.cli", *words]
        ran = subprocess.run(program, cwd=folder, env=environment, capture_output=True, text=True, check=False)
        assert ran.returncode == 0, (fewer, ran.stderr)
        assert "slower step" not in ran.stderr
    for name in ("ur5e_lift", "high_lift"):
        demos = load(folder / f"{name}.hdf5")
        assert all(episode.rewards.max() == 1 for episode in demos.episodes)
        (evaluation,) = (folder / "runs" / f"pretrain-{name}-seed0").glob("evaluation/*/evaluation.json")
        assert json.loads(evaluation.read_text())["summary"]["episodes"] == 4
