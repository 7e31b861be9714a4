"""The check of a GPU: runs on a machine that has torch, numpy and safetensors alone, and notices what deviates."""

from __future__ import annotations

import importlib
import json
import re
import subprocess
import sys
import warnings
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[1]
BARE = """
import importlib.machinery, runpy, sys

blocked = set(sys.argv.pop(1).split(","))

class Bare(importlib.machinery.PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        return None if name.partition(".")[0] in blocked else super().find_spec(name, path, target)

sys.meta_path[sys.meta_path.index(importlib.machinery.PathFinder)] = Bare
sys.argv.pop(0)
sys.path.insert(0, sys.argv[0].rpartition("/")[0])
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.fixture
def gpu_check(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    return importlib.import_module("gpu_check")


def needed_by(*names: str) -> set[str]:
    """The distributions that come with these."""
    found: set[str] = set()
    waiting = list(names)
    while waiting:
        name = re.sub(r"[-_.]+", "-", waiting.pop()).lower()
        if name in found:
            continue
        try:
            required = [Requirement(text) for text in metadata.requires(name) or []]
        except metadata.PackageNotFoundError:
            continue
        found.add(name)
        waiting += [each.name for each in required if each.marker is None or each.marker.evaluate({"extra": ""})]
    return found


def test_it_runs_where_there_is_torch_numpy_and_safetensors_alone(tmp_path):
    there = needed_by("torch", "numpy", "safetensors") | {"burnish", "optree"}  # torch finds the latter by its metadata
    installed = metadata.packages_distributions()
    blocked = {
        module
        for module, owners in installed.items()
        if not {re.sub(r"[-_.]+", "-", o).lower() for o in owners} & there
    }
    assert {"gymnasium", "robosuite", "hydra", "h5py", "yaml", "psutil", "mujoco"} <= blocked
    command = [sys.executable, "-c", BARE, ",".join(sorted(blocked)), str(ROOT / "benchmarks" / "gpu_check.py")]
    command += ["--device", "cpu", "--quick", "--json", str(tmp_path / "gpu.json")]
    ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    report = json.loads((tmp_path / "gpu.json").read_text())
    assert report["wrong"] == [] and report["gflop_per_second"]["float32"] > 0
    names = {row["name"] for row in report["rows"]}
    assert names >= {"pretraining step", "sampling", "DPPO update, one epoch", "DPMD gradient step"}
    timed = [row for row in report["rows"] if "ms" in row]
    assert all(row["ms"] > 0 and row["gflop"] > 0 and row["share"] > 0 and row["deviation"] for row in timed)
    # by hand: forward and backward passes of an MLP of 3 x 512 over 32 chunks of 4 x 7, its input's gradient not taken
    (row,) = [row for row in timed if row["setting"] == "batch 32, 3x512"]
    assert row["gflop"] == pytest.approx(2 * 32 * (3 * 2 * 512**2 + 3 * 28 * 512 + 2 * 512 * 19) / 1e9, rel=0.1)
    for setting in ("bf16", "U-Net"):
        assert any(setting in row["setting"] for row in timed)


def test_a_number_that_deviates_is_told_and_fails(gpu_check, monkeypatch, capsys, tmp_path):
    """As if the device rounded products to TF32's 10 bits."""
    (case,) = [case for case in gpu_check.cases(quick=True) if case.name == "DPMD gradient step"]
    made = []

    def rounded(device):
        workload = case.make(device)
        made.append(workload)
        if len(made) == 1:  # the CPU's
            return workload
        return workload._replace(
            numbers=lambda: {key: value * (1 + 2**-10) for key, value in workload.numbers().items()}
        )

    monkeypatch.setattr(gpu_check, "cases", lambda quick: [case._replace(make=rounded)])
    out = tmp_path / "gpu.json"
    monkeypatch.setattr(sys, "argv", ["gpu_check.py", "--device", "cpu", "--quick", "--json", str(out)])
    assert gpu_check.main() == 1
    assert "**wrong**" in capsys.readouterr().out
    told = json.loads(out.read_text())["wrong"]
    assert "DPMD gradient step, batch 32: loss deviates by 9.8e-04, allowed: 1e-04" in told
    assert [what.split(": ")[1].split()[0] for what in told] == ["sample", "loss"]


def test_random_numbers_are_the_same_on_every_device(gpu_check):
    generator = torch.Generator().manual_seed(7)
    with gpu_check.Drawn():
        drawn = torch.randn(3, device="meta", generator=generator), torch.randint(5, (2,)), torch.randn(2)
    assert drawn[0].device.type == "meta"  # drawn on the CPU, and moved there
    expected = torch.Generator().manual_seed(0)
    torch.randn(3, generator=expected), torch.randint(5, (2,), generator=expected)
    assert torch.equal(drawn[2], torch.randn(2, generator=expected))
    assert torch.equal(generator.get_state(), torch.Generator().manual_seed(7).get_state())


def test_waits_of_the_host_are_counted_and_refused_where_there_are_none(gpu_check, monkeypatch):
    """With a stand-in for CUDA's own accounting."""
    mode = []

    def wait() -> None:
        if mode[-1] == "error":
            raise RuntimeError("called a synchronizing CUDA operation")
        warnings.warn("called a synchronizing CUDA operation", stacklevel=1)

    monkeypatch.setattr(torch.cuda, "set_sync_debug_mode", mode.append)
    device = SimpleNamespace(type="cuda")
    waits = gpu_check.Workload(lambda: [wait(), wait()], dict, dict, dict, waits=1)
    assert gpu_check.host_waits(waits, device) == 2 and mode == ["warn", "default"]
    with pytest.raises(RuntimeError, match="synchronizing"):
        gpu_check.host_waits(waits._replace(waits=0), device)
    assert mode[2:] == ["error", "default"]
    assert gpu_check.host_waits(waits, torch.device("cpu")) is None
