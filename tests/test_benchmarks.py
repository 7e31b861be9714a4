"""The benchmarks run; one counts matrix products rightly, the other finds exponents and leaks."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture
def bench_growth(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("bench_growth")


def run_quick(name: str, out: Path, *options: str) -> dict:
    command = [sys.executable, str(BENCHMARKS / name), "--quick", "--threads", "1", *options, "--json", str(out)]
    subprocess.run(command, check=True, capture_output=True)
    return json.loads(out.read_text())


def denoiser_flop(rows: int, hidden: int, action_dim: int) -> int:
    """Of the products of one pass over `rows` chunks, without the observation's, which is shared."""
    return 2 * rows * (action_dim * hidden + 2 * hidden**2 + hidden * action_dim)


def test_quick_run_writes_rows_with_the_floor_of_a_step(tmp_path):
    report = run_quick("bench_rsm.py", tmp_path / "rsm.json", "--algorithms", "dpmd")
    assert report["threads"] == 1
    (row,) = report["rows"]
    assert (row["algorithm"], row["task"], row["variant"]) == ("dpmd", "halfcheetah", "paper")
    for key in ("step_ms", "actor_step_ms", "critic_step_ms", "times_floor", "action_ms", "memory_mib"):
        assert row[key] > 0, key
    # by hand: 20 denoising steps of 8 x 32 candidates, twin Q of those; the rest is of 8 rows and of the timesteps
    candidates = 20 * denoiser_flop(8 * 32, 256, 6)
    values = 2 * 2 * 8 * 32 * (6 * 256 + 2 * 256**2 + 256)
    assert row["step_gflop"] == pytest.approx((candidates + values) / 1e9, rel=0.05)


@pytest.mark.slow
def test_quick_run_of_costs_has_every_cost_beside_its_floor(tmp_path):
    rows = run_quick("bench_costs.py", tmp_path / "costs.json")["rows"]
    names = {"DPMD update", "SDAC update", "RSM action", "DPPO sampling with chain", "DPPO minibatch"}
    names |= {"Pretraining step", "Policy latency", "Gymnasium stepping", "robosuite stepping"}
    assert {row["cost"] for row in rows} == names
    assert all(row["median"] > 0 and row["times_floor"] > 0 and row["target"] > 0 for row in rows)


def test_quick_run_of_environments_measures_each_backend(tmp_path):
    options = ("--n-envs", "4", "--chunks", "2", "--backends", "sync", "workers")
    rows = run_quick("bench_envs.py", tmp_path / "envs.json", *options)["rows"]
    assert [row["backend"] for row in rows] == ["mj_step, 1 process", "sync", "workers"]
    assert all(row["steps_per_second"] > 0 and row["share_of_floor"] > 0 for row in rows)


def test_quick_run_of_workers_and_threads(tmp_path):
    out = tmp_path / "threads.json"
    command = [sys.executable, str(BENCHMARKS / "bench_threads.py"), "--quick", "--runs", "hopper dppo"]
    subprocess.run([*command, "--workers", "0", "1", "--threads", "1", "--json", str(out)], check=True)
    rows = json.loads(out.read_text())["rows"]
    assert [(row["run"], row["n_workers"], row["torch_threads"]) for row in rows] == [
        ("hopper dppo", workers, 1) for workers in (0, 1)
    ]
    assert all(row["steps_per_second"][0] > 0 for row in rows)


@pytest.mark.slow
def test_quick_run_of_growth_writes_every_table(tmp_path):
    report = run_quick("bench_growth.py", tmp_path / "growth.json")
    assert report["threads"] == 1 and report["versions"]["torch"]
    rows = {(row["table"].split(":")[0].split(" for ")[0], row["quantity"]): row for row in report["rows"]}
    names = {"Environments", "Denoising steps", "Horizon", "Draws", "Replay", "Demonstrations"}
    assert {table for table, _ in rows} == names
    for (_, quantity), row in rows.items():
        assert len(row["settings"]) == len(row["values"]) == len(row["ratios"]) == len(row["exponents"]) == 2
        if quantity.endswith((" ms", " us")):
            assert min(row["values"]) > 0, quantity
    for table, held in (("Replay", "filled"), ("Demonstrations", "windows")):
        floor = "floor" if table == "Replay" else "windows' floor"
        for mib, least in zip(rows[table, f"{held}, MiB"]["values"], rows[table, f"{floor}, MiB"]["values"]):
            assert mib >= 0.9 * least > 0, table  # small tensors can lie in pages that were there before
    # by hand: 100,000 chunks of 2 * 11 + 4 * 3 + 2 numbers
    assert rows["Replay", "floor, MiB"]["values"][1] == pytest.approx(100_000 * 36 * 4 / 2**20)
    assert rows["Denoising steps", "DPPO rollout, MiB"]["exponents"][1] > 0
    for run, stage in zip(report["runs"], ("dppo", "dpmd")):
        assert run["stage"] == stage
        assert run["updates"] > run["start"] > 0 and run["mib_at_end"] > 0 and len(run["trace_mib"]) == 41


def test_exponents_are_those_of_a_power_law(bench_growth):
    assert bench_growth.exponents([1, 10, 40], [3.0, 30.0, 30.0 * 4**2]) == [None, pytest.approx(1), pytest.approx(2)]
    assert bench_growth.exponents([1, 2], [0.0, 5.0]) == [None, None]


def test_a_leak_shows_as_its_slope_in_both_halves(bench_growth):
    rng = np.random.default_rng(0)
    warm_up = np.minimum(np.arange(2000), 200) / 10.0  # ends at update 200
    mib = 300 + warm_up + 0.003 * np.arange(2000) + rng.normal(scale=0.05, size=2000)
    run = bench_growth.summary("dppo", mib, 200, seconds=100.0, gradient_steps=None)
    assert run.kib_per_1000_updates == pytest.approx(3 * 1024, rel=0.02)
    assert run.kib_per_1000_updates_halves == pytest.approx((3 * 1024, 3 * 1024), rel=0.05)
    assert run.noise_kib == pytest.approx(0.05 * 1024, rel=0.1)
    assert run.mib_in_two_hours == pytest.approx(0.003 * 2000 * 72, rel=0.02)
