"""Whether a GPU computes what the CPU computes, without waits, and how fast: one table, in under 8 minutes.

    PYTHONPATH=. python benchmarks/gpu_check.py --json gpu.json      # exit status 1 where a number deviates
    PYTHONPATH=. python benchmarks/gpu_check.py --device cpu --quick # the same without a GPU, in seconds

It takes torch, numpy and safetensors, and nothing else. Each workload is run twice from the same weights, with the same
random numbers (drawn on the CPU): by torch's operations on the CPU in float32, and on the device. What comes out may
differ by `TOLERANCE`, relative to its norm: `sample` of chunks, `loss`, and `weights`, by how the training moved them.
On CUDA the host may not wait for the device where the table allows 0 waits: torch raises an error there. A share is
that of the device's own rate of a large product (in float32, or bf16 where the workload runs in it). With
`--device cpu` the compiled networks are compared with torch's operations.
"""

from __future__ import annotations

import argparse
import copy
import gc
import json
import math
import os
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from gpu_workloads import OBS_DIM, TOLERANCE, Case, Drawn, Workload, cases, make_policy
from measuring import products_gflop, setup

from burnish.machine.device import resolve_device
from burnish.networks.compiled import mlp as compiled_mlp
from burnish.policies.diffusion import DiffusionPolicy


def deviations(case: Case, device: torch.device) -> dict[str, float]:
    """Of the device from torch's operations on the CPU: the norm of the difference over that of the latter."""
    reference = (case.reference or case.make)(torch.device("cpu"))
    start = copy.deepcopy(reference.state())
    with Drawn(), patch.object(compiled_mlp, "_library", lambda: None):
        expected = reference.numbers()
    subject = case.make(device)
    subject.load(start)
    with Drawn():
        found = subject.numbers()
    pairs = {
        key: (found[key].detach().cpu().double(), expected[key].detach().double())
        for key in case.tolerance
        if key in expected
    }
    return {key: float((ours - theirs).norm() / theirs.norm()) for key, (ours, theirs) in pairs.items()}


def wait_for(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def host_waits(workload: Workload, device: torch.device) -> int | None:
    """How often the host waits in one unit of work; None where there is no device to wait for.

    Raises RuntimeError, at the line that waits, where it may not wait at all.
    """
    if device.type != "cuda":
        return None
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn" if workload.waits else "error")
        try:
            workload.work()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    return sum("synchronizing" in str(warning.message) for warning in caught)


def milliseconds(work: Callable[[], object], device: torch.device, seconds: float) -> list[float]:
    """Of one unit, in five turns of about `seconds` each."""
    turns, units = [], 1
    while True:
        wait_for(device)
        started = time.perf_counter()
        for _ in range(units):
            work()
        wait_for(device)
        took = time.perf_counter() - started
        if took >= seconds / 2:
            turns.append(1e3 * took / units)
            if len(turns) == 5:
                return turns
        units = max(units, min(10 * units, math.ceil(units * seconds / max(took, 1e-6))))


def product_rate(device: torch.device, dtype: torch.dtype, quick: bool) -> float:
    """GFLOP/s of a large square product; the best of three."""
    size = 512 if quick else 8192 if device.type == "cuda" else 2048
    x = torch.randn(size, size, device=device, dtype=dtype)
    out = torch.empty_like(x)
    work = partial(torch.mm, x, x, out=out)
    work()
    return 2 * size**3 / 1e6 / min(milliseconds(work, device, 0.02 if quick else 0.2))


def check(case: Case, device: torch.device, rates: Mapping[torch.dtype, float], quick: bool) -> dict[str, Any]:
    """One row of the table."""
    row: dict[str, Any] = {"name": case.name, "setting": case.setting, "wrong": []}
    row["deviation"], row["tolerance"] = deviations(case, device), dict(case.tolerance)
    for key, deviation in row["deviation"].items():
        if not deviation <= case.tolerance[key]:
            row["wrong"].append(f"{key} deviates by {deviation:.1e}, allowed: {case.tolerance[key]:.0e}")
    gc.collect()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    workload = case.make(device)
    for _ in range(2):  # the first makes what stays
        workload.work()
    try:
        row["waits"], row["waits_allowed"] = host_waits(workload, device), workload.waits
        if row["waits"] is not None and row["waits"] > workload.waits:
            row["wrong"].append(f"the host waits {row['waits']} times, allowed: {workload.waits}")
    except RuntimeError as error:
        row["waits"] = None
        row["wrong"].append(f"the host waits, allowed: {workload.waits}: {str(error).splitlines()[0]}")
    ms = milliseconds(workload.work, device, 0.02 if quick else 0.3)
    row["ms"], row["ms_range"] = statistics.median(ms), (min(ms), max(ms))
    row["gflop"] = products_gflop(workload.work)
    row["share"] = row["gflop"] / (row["ms"] / 1e3) / rates[case.precision]
    row["peak_mib"] = torch.cuda.max_memory_allocated(device) / 2**20 if device.type == "cuda" else None
    return row


def saved_policy(device: torch.device) -> dict[str, Any]:
    """A policy that was saved on the device acts the same on the CPU."""
    policy = make_policy(device)
    with tempfile.TemporaryDirectory() as folder:
        policy.save(Path(folder, "policy"))
        loaded = DiffusionPolicy.load(Path(folder, "policy"), "cpu")
    with Drawn():
        obs = torch.randn(8, 1, OBS_DIM)
        noise = policy.draw_noise(8)
    here, there = loaded.act(obs, noise=noise.cpu()), policy.act(obs, noise=noise)
    deviation = float((there.cpu() - here).norm() / here.norm())  # type: ignore[union-attr]
    wrong = [] if deviation <= TOLERANCE["sample"] else [f"sample deviates by {deviation:.1e}"]
    return {"name": "policy folder", "setting": "device to CPU", "deviation": {"sample": deviation}, "wrong": wrong}


def table(rows: list[dict[str, Any]]) -> str:
    lines = [
        "| what | setting | deviation | waits (allowed) | ms (range) | GFLOP | share of the product's rate | MiB |"
    ]
    lines.append("|---|---|---|---|---|---|---|---|")
    for row in rows:
        deviation = ", ".join(f"{key} {value:.0e}" for key, value in row["deviation"].items())
        cells = [row["name"], row["setting"], deviation + (" **wrong**" if row["wrong"] else "")]
        if "ms" in row:
            low, high = row["ms_range"]
            cells.append("" if row["waits"] is None else f"{row['waits']} ({row['waits_allowed']})")
            cells += [f"{row['ms']:.3g} ({low:.3g} to {high:.3g})", f"{row['gflop']:.3g}", f"{row['share']:.1%}"]
            cells.append("" if row["peak_mib"] is None else f"{row['peak_mib']:.0f}")
        lines.append("| " + " | ".join([*cells, *[""] * (8 - len(cells))]) + " |")
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda", help="cuda, cuda:N, or cpu")
    parser.add_argument("--threads", type=int, default=1, help="of torch on the CPU")
    parser.add_argument("--quick", action="store_true", help="does it run: small networks and batches")
    parser.add_argument("--json", type=Path, help="write the rows there")
    options = parser.parse_args()

    device = resolve_device(options.device, options.threads)
    started, load_before = time.perf_counter(), os.getloadavg()[0]
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "the CPU"
    dtypes = (torch.float32, torch.bfloat16)
    rates = {dtype: product_rate(device, dtype, options.quick) for dtype in dtypes}
    shown = ", ".join(f"{rate:,.0f} in {str(dtype).removeprefix('torch.')}" for dtype, rate in rates.items())
    print(f"{name}, torch {torch.__version__}; GFLOP/s of a large product: {shown}\n", flush=True)
    rows = [check(case, device, rates, options.quick) for case in cases(options.quick)]
    rows.append(saved_policy(device))
    print(table(rows))
    wrong = [f"{row['name']}, {row['setting']}: {what}" for row in rows for what in row["wrong"]]
    print(
        f"\n{time.perf_counter() - started:.0f} s; " + ("\n".join(["wrong:", *wrong]) if wrong else "nothing deviates")
    )
    if options.json:
        report = {**setup(options.threads, load_before), "device": name, "wrong": wrong, "rows": rows}
        report["gflop_per_second"] = {str(dtype).removeprefix("torch."): rate for dtype, rate in rates.items()}
        options.json.write_text(json.dumps(report, indent=2) + "\n")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
