"""No number that a user can measure changed since the reference commit: short runs of every kind, bit for bit.

On a machine like the one that made `short_runs.json` the digests are compared with those in it, with compiled networks
where they run. Elsewhere processor and libraries round otherwise, so both sides are made here: the reference commit's
code is taken from git, and both run by torch's operations.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import tarfile
from importlib import metadata
from pathlib import Path

import pytest
import torch
from short_runs import RUNS

from burnish.networks.compiled.mlp import level

ROOT = Path(__file__).resolve().parent.parent
REFERENCE = ROOT / "tests" / "short_runs.json"
LIBRARIES = ("torch", "numpy", "scipy", "numba", "mujoco", "gymnasium", "robosuite", "stable-baselines3")


def machine() -> dict[str, str]:
    """What decides how numbers are rounded: the processor's model and instructions, and the libraries."""
    told = {"python": platform.python_version(), "blas": os.environ.get("OPENBLAS_CORETYPE", "")}
    told |= {"torch's kernels": torch.backends.cpu.get_cpu_capability(), "compiled networks": str(level())}
    if Path("/proc/cpuinfo").exists():
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").split("\n\n")[0].splitlines()
        values = dict(line.replace("\t", "").split(":", 1) for line in lines if ":" in line)
        told |= {key: values[key].strip() for key in ("model name", "cpu family", "model", "flags") if key in values}
    return told | {name: metadata.version(name) for name in LIBRARIES}


def digests(checkout: Path, folder: Path, **environment: str) -> dict[str, dict[str, str]]:
    """Those of the short runs, by the code of `checkout`."""
    command = [sys.executable, str(ROOT / "tests" / "short_runs.py"), str(folder)]
    variables = {**os.environ, "PYTHONPATH": str(checkout), "WANDB_MODE": "disabled", **environment}
    result = subprocess.run(command, env=variables, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout[-2000:] + result.stderr[-4000:]
    return json.loads((folder / "digests.json").read_text())


@pytest.fixture(scope="module")
def before_and_after(tmp_path_factory):
    reference = json.loads(REFERENCE.read_text())
    folder = tmp_path_factory.mktemp("short-runs")
    if machine() == reference["machine"]:
        return reference["digests"], digests(ROOT, folder / "after")
    before = folder / "before"
    archive = subprocess.run(
        ["git", "archive", "--format=tar", "-o", str(folder / "before.tar"), reference["commit"]],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    if archive.returncode:
        pytest.skip(
            f"another machine than the one that made {REFERENCE.name}, and commit {reference['commit']} is not in this "
            f"checkout's history, to make both sides here: {archive.stderr.strip()}"
        )
    with tarfile.open(folder / "before.tar") as tar:
        tar.extractall(before, filter="fully_trusted")  # our own commit, whose folders are links to one another
    torchs = {"BURNISH_COMPILED": "0"}
    return digests(before, folder / "old", **torchs), digests(ROOT, folder / "new", **torchs)


@pytest.mark.slow
@pytest.mark.parametrize("run", RUNS)
def test_metrics_and_weights_are_those_of_the_reference_commit(run, before_and_after):
    before, after = before_and_after
    assert after[run] == before[run]
