"""How long a fine-tuning takes to its first update, and how much memory it and its workers hold.

    python benchmarks/bench_start.py task=lift stage=dppo policy=runs/demo/lift/pretrain/seed0 evaluation.episodes=100

Takes the words of `burnish finetune`, runs it as a process of its own in a temporary folder and stops it after its
first update. Memory is the proportional set size of the process and its children: pages that they share count once.
`--checkout FOLDER --module burnish.cli` measures another commit's code (that module: before the command line moved).
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil

POLL_SECONDS = 0.05
STAGES = ("environments ready", "evaluated", "first update")  # told by config.yaml and the lines of metrics.jsonl
MIB = 2**20


def memory_mib(process: psutil.Process) -> float:
    """Of a process and all that it started."""
    total = 0
    with contextlib.suppress(psutil.NoSuchProcess):
        for one in [process, *process.children(recursive=True)]:
            with contextlib.suppress(psutil.NoSuchProcess):
                total += one.memory_full_info().pss
    return total / MIB


def reached(run: Path) -> tuple[str, ...]:
    """The stages that a run has come to."""
    if not (run / "config.yaml").exists():
        return ()
    lines = (run / "metrics.jsonl").read_text().count("\n") if (run / "metrics.jsonl").exists() else 0
    return STAGES[: lines + 1]


def measure(command: list[str], environment: dict[str, str], run: Path, log: Path) -> dict[str, float]:
    """Seconds from the start to each stage, and the most memory until the first update."""
    started, seconds, peak = time.perf_counter(), {}, 0.0
    with log.open("wb") as output:
        process = subprocess.Popen(command, env=environment, stdout=output, stderr=subprocess.STDOUT)
    watched = psutil.Process(process.pid)
    while process.poll() is None and STAGES[-1] not in seconds:
        for stage in reached(run):
            seconds.setdefault(stage, time.perf_counter() - started)
        peak = max(peak, memory_mib(watched))
        time.sleep(POLL_SECONDS)
    process.terminate()
    process.wait()
    if STAGES[-1] not in seconds:
        raise SystemExit(f"it ended before its first update:\n{log.read_text(errors='replace')[-2000:]}")
    return {**seconds, "peak memory, MiB": peak}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("words", nargs="+", help="of burnish finetune")
    parser.add_argument("--checkout", type=Path, help="whose code is run (default: what is installed)")
    parser.add_argument("--module", default="burnish.commands.cli", help="of the command (default: %(default)s)")
    parser.add_argument("--json", type=Path, help="write the figures there")
    options = parser.parse_args()
    load_before = os.getloadavg()[0]
    environment = dict(os.environ)
    if options.checkout:
        # before what is installed, and not behind the folder that this is called in
        environment |= {"PYTHONPATH": str(options.checkout.resolve()), "PYTHONSAFEPATH": "1"}
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder, "run")
        command = [sys.executable, "-m", options.module, "finetune", *options.words, f"run_dir={run}"]
        figures = measure(command, environment, run, Path(folder, "log"))
    print(f"{os.cpu_count()} CPUs, load {load_before:.1f} to {os.getloadavg()[0]:.1f}")
    for name, value in figures.items():
        print(f"{name:<22}{value:10.1f}{'' if name.endswith('MiB') else ' s'}")
    if options.json:
        options.json.write_text(json.dumps({"load": load_before, **figures}, indent=2) + "\n")


if __name__ == "__main__":
    main()
