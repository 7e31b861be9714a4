"""The benchmarks run and say what they leave out; products are counted rightly, floors are at the best rate, exponents
and leaks are found, two checkouts take turns."""

from __future__ import annotations

import argparse
import importlib
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from burnish.networks import DenoiserConfig
from burnish.networks.compiled.mlp import has_float16, why_not
from burnish.policies.diffusion import DiffusionPolicy, PolicyConfig

PENDULUM_POLICY = DiffusionPolicy(
    PolicyConfig(denoiser=DenoiserConfig(hidden_dim=32, n_layers=1)), 9, 1, ["flat"], "inverted_double_pendulum"
)
BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture
def bench_growth(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("bench_growth")


@pytest.fixture
def measuring(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("measuring")


@pytest.fixture
def compare_checkouts(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("compare_checkouts")


def run_quick(name: str, out: Path, *options: str, **environment: str) -> dict:
    command = [sys.executable, str(BENCHMARKS / name), "--quick", "--threads", "1", *options, "--json", str(out)]
    subprocess.run(command, check=True, capture_output=True, env={**os.environ, **environment})
    return json.loads(out.read_text())


def denoiser_flop(rows: int, hidden: int, action_dim: int) -> int:
    """Of the products of one pass over `rows` chunks, without the observation's, which is shared."""
    return 2 * rows * (action_dim * hidden + 2 * hidden**2 + hidden * action_dim)


def test_samplers_are_measured_in_the_same_episodes(tmp_path):
    PENDULUM_POLICY.save(tmp_path / "policy")
    words = ["task=inverted_double_pendulum", f"policy={tmp_path / 'policy'}"]
    samplers = ["--samplers", "ddpm", "ddim", "diffusers:HeunDiscreteScheduler"]
    report = run_quick("bench_samplers.py", tmp_path / "samplers.json", *words, *samplers)
    assert [(row["sampler"], row["steps"], row["calls"]) for row in report["rows"]] == [
        ("ddim", 2, 2),  # ddpm takes all of its steps
        ("diffusers:HeunDiscreteScheduler", 2, 3),
    ]
    assert all(row["measure"] == "return" and row["episodes"] == 2 and row["cpu_ms"] > 0 for row in report["rows"])


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


def test_a_variant_that_cannot_run_here_is_left_out_and_says_why(tmp_path):
    """Nothing compiled: nowhere float16, then."""
    options = ("--algorithms", "dpmd", "--variants", "float16 draws")
    report = run_quick("bench_rsm.py", tmp_path / "rsm.json", *options, BURNISH_COMPILED="0")
    assert report["rows"] == []
    (left_out,) = report["left_out"]
    assert (left_out["algorithm"], left_out["task"], left_out["variant"]) == ("dpmd", "halfcheetah", "float16 draws")
    assert "stage.draw_precision=float16: expected float32 here" in left_out["why"]


@pytest.mark.slow
def test_quick_run_of_costs_has_every_cost_beside_its_floor(tmp_path):
    report = run_quick("bench_costs.py", tmp_path / "costs.json")
    rows, rates = report["rows"], report["gflop_per_second"]
    assert rates["best"] >= rates["torch"] > 0
    left_out = [(cost["setting"], "draw_precision=float16" in cost["why"]) for cost in report["left_out"]]
    assert left_out == ([] if has_float16() else [("halfcheetah; float16 draws", True)])
    names = {"DPMD update", "SDAC update", "RSM action", "DPPO sampling with chain", "DPPO minibatch"}
    names |= {"QSM update", "QVPO update", "DACER update", "DIPO update"}
    frozen_base = {"DSRL update", "Residual update", "OGPO update"}
    names |= frozen_base
    names |= {"Pretraining step", "Policy latency", "Gymnasium stepping", "robosuite stepping"}
    assert {row["cost"] for row in rows} == names
    assert all(row["median"] > 0 and row["times_floor"] > 0 for row in rows)
    assert {row["cost"] for row in rows if row["target"] is None} == {"QVPO update", "DIPO update", *frozen_base}
    assert all(row["target"] is None or row["target"] > 0 for row in rows)


@pytest.mark.slow
def test_quick_run_of_what_learns_offline_and_online(tmp_path):
    report = run_quick("bench_offline_to_online.py", tmp_path / "offline_to_online.json")
    assert [row["stage"] for row in report["rows"]] == ["dql", "idql", "qc", "calql", "rlpd"]
    assert all(row["ms"] > 0 and row["times_floor"] > 0 for row in report["rows"])


def test_the_floors_rate_is_the_best_that_anything_reaches(measuring, monkeypatch):
    rate = measuring.ProductRate(quick=True)
    best = 1e3 * rate.gflop_per_ms()
    (rates,) = rate.measured
    assert best == rates.best == max(value for value in rates if value is not None) >= rates.torch > 0
    assert measuring.Rates(torch=80.0, ours=110.0, peak=None).best == 110
    assert (rates.ours is None) == (why_not() is not None)
    if rate.why_no_peak is None:  # no product is faster; of some moments, as other programs disturb single ones
        for _ in range(10):
            rate.gflop_per_ms()
        assert max(rates.peak for rates in rate.measured) > 0.9 * max(rates.torch for rates in rate.measured)
    monkeypatch.setenv("CXX", "no-such-compiler")
    rate = measuring.ProductRate(quick=True)
    rate.gflop_per_ms()
    assert rate.medians().peak is None and "no-such-compiler" in rate.why_no_peak
    assert f"not measured ({rate.why_no_peak})" in rate.sentence()


def test_a_floor_is_the_known_operations_over_the_rate(measuring, monkeypatch):
    a, b = torch.randn(3, 5), torch.randn(5, 7)
    assert measuring.products_gflop(lambda: a @ b) == 2 * 3 * 5 * 7 / 1e9
    rate = measuring.ProductRate(quick=True)
    monkeypatch.setattr(rate, "gflop_per_ms", lambda: 0.5)

    def three_products() -> int:
        for _ in range(3):
            torch.mm(a, b)
        return 3

    assert rate.floor_of(three_products)() == pytest.approx(2 * 3 * 5 * 7 / 1e9 / 0.5)


def test_our_product_and_the_peak_do_what_they_say(measuring):
    """Twice as many operations take about twice as long: nothing was left out by a compiler."""
    if why_not():
        pytest.skip(why_not())
    size = measuring.WIDTH
    assert measuring.our_product(96)() == 2 * 96 * size**2 * (measuring.HIDDEN + 2)
    few, many = measuring.peak(1e7), measuring.peak(16e7)
    assert few() == pytest.approx(1e7, rel=0.01) and many() == pytest.approx(16e7, rel=0.01)
    few_ms, many_ms = (min(measuring.milliseconds(run) for _ in range(20)) for run in (few, many))
    assert many_ms > 4 * few_ms


def test_two_checkouts_are_compared_turn_by_turn(compare_checkouts, tmp_path):
    """Stand-ins whose turns take 1 ms and 2 ms; one has a cost that the other lacks."""
    folders = []
    for ms, names in ((1.0, ["fast", "old"]), (2.0, ["fast"])):
        folder = tmp_path / str(ms) / "benchmarks"
        folder.mkdir(parents=True)
        (folder / "bench_costs.py").write_text(STAND_IN.format(ms=ms, names=names))
        folders.append(folder.parent)
    options = argparse.Namespace(before=folders[0], after=folders[1], threads=1, quick=False, repeats=3, only="")
    (row,) = compare_checkouts.compare(options)
    assert (row["cost"], row["before_ms"], row["after_ms"], row["ratios"]) == ("fast", 1.0, 2.0, [2.0] * 3)


STAND_IN = """
print("what costs print is no answer")
ProductRate = dict
def resolve_device(device, threads): assert (device, threads) == ("cpu", 1)
class Cost:
    setting, times_floor = "alone", [1.0]
    def __init__(self, name): self.name, self.ms = name, []
    def run(self): return 1
    def turn(self): self.ms.append({ms} * self.run())
    def close(self): pass
def all_costs(rate, quick): return [*map(Cost, {names}), "left out"]
"""


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
    # by hand: 100,000 chunks of 2 * 11 + 4 * 3 + 2 numbers, and of two frames' numbers, each of 8 bytes
    assert rows["Replay", "floor, MiB"]["values"][1] == pytest.approx(100_000 * (36 * 4 + 16) / 2**20)
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


def test_a_profile_has_the_parts_of_each_algorithm(tmp_path):
    """In processes of its own: it replaces parts of the modules."""
    torch.manual_seed(0)
    PENDULUM_POLICY.save(tmp_path / "policy")
    settings = ["task=inverted_double_pendulum", f"policy={tmp_path / 'policy'}", "n_envs=4", "backend=sync"]
    settings += ["total_env_steps=160", "stage.batch_size=32"]
    for stage, parts in (
        (["stage=dppo", "stage.n_steps=5"], ("environments", "actor, forward", "backward, clipping and Adam")),
        (
            ["stage=dpmd", "stage.demo_ratio=0", "stage.learning_starts=40", "stage.critic_warmup_updates=1"],
            ("environments", "draws (denoising steps)", "Polyak averages", "backward, clipping and Adam"),
        ),
    ):
        command = [sys.executable, str(BENCHMARKS / "profile_run.py"), *settings, *stage]
        table = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        calls = {row.split(" | ")[0].strip("| "): row.split(" | ")[-1].strip(" |") for row in table.splitlines()}
        assert all(int(calls[part].replace(",", "")) > 0 for part in parts), table


def test_a_start_is_measured_to_its_first_update(tmp_path):
    torch.manual_seed(0)
    PENDULUM_POLICY.save(tmp_path / "policy")
    words = ["task=inverted_double_pendulum", f"policy={tmp_path / 'policy'}", "stage=dppo", "stage.n_steps=5"]
    words += ["n_envs=4", "backend=sync", "total_env_steps=4000", "evaluation.episodes=4"]
    command = [sys.executable, str(BENCHMARKS / "bench_start.py"), *words, "--json", str(tmp_path / "start.json")]
    subprocess.run(command, check=True, capture_output=True)
    figures = json.loads((tmp_path / "start.json").read_text())
    assert 0 < figures["environments ready"] <= figures["evaluated"] <= figures["first update"]
    assert figures["peak memory, MiB"] > 50
