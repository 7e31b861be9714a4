"""The RSM benchmark runs, and counts the matrix products it is measured against rightly."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARK = Path(__file__).parents[1] / "benchmarks" / "bench_rsm.py"


def denoiser_flop(rows: int, hidden: int, action_dim: int) -> int:
    """Of the products of one pass over `rows` chunks, without the observation's, which is shared."""
    return 2 * rows * (action_dim * hidden + 2 * hidden**2 + hidden * action_dim)


def test_quick_run_writes_rows_with_the_floor_of_a_step(tmp_path):
    out = tmp_path / "rsm.json"
    command = [sys.executable, str(BENCHMARK), "--quick", "--threads", "1", "--algorithms", "dpmd", "--json", str(out)]
    subprocess.run(command, check=True, capture_output=True)
    report = json.loads(out.read_text())
    assert report["threads"] == 1
    (row,) = report["rows"]
    assert (row["algorithm"], row["task"], row["variant"]) == ("dpmd", "halfcheetah", "paper")
    for key in ("step_ms", "actor_step_ms", "critic_step_ms", "times_floor", "action_ms", "memory_mib"):
        assert row[key] > 0, key
    # by hand: 20 denoising steps of 8 x 32 candidates, twin Q of those; the rest is of 8 rows and of the timesteps
    candidates = 20 * denoiser_flop(8 * 32, 256, 6)
    values = 2 * 2 * 8 * 32 * (6 * 256 + 2 * 256**2 + 256)
    assert row["step_gflop"] == pytest.approx((candidates + values) / 1e9, rel=0.05)
