"""Environment steps per second of whole runs from scratch, for numbers of simulator workers and torch threads.

    python benchmarks/bench_threads.py --json threads.json

Simulators and torch fight for the same cores: which division of them is fastest depends on the algorithm and the task.
Runs of `burnish scratch` need no policy (one action a chunk; DPPO with 5 DDIM steps); evaluations are not counted, and
settings take turns.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from itertools import product
from pathlib import Path
from typing import NamedTuple

import yaml

from burnish.runs.origin import origin
from burnish.runs.summary import FinetuneSummary

AT_ONCE = ["stage.random_steps=0", "stage.learning_starts=400"]  # a gradient step for two environment steps


class Run(NamedTuple):
    words: list[str]  # of `burnish scratch`
    steps: int  # for a few seconds to half a minute
    fewest: int  # that make an update
    quick: list[str] = []  # noqa: RUF012 - words with which that is enough to see whether it runs


ONE_EPOCH = ["stage.update_epochs=1"]
RUNS = {
    "hopper dppo": Run(["task=hopper", "stage=dppo_scratch", "n_envs=40"], 30_720, 2_560, ONE_EPOCH),
    "hopper dpmd": Run(["task=hopper", "stage=dpmd_scratch", "n_envs=40", *AT_ONCE], 2_400, 1_200),
    "lift dppo": Run(["task=lift", "stage=dppo_scratch", "n_envs=16"], 8_192, 1_024, ONE_EPOCH),
}
WORKERS = (0, 1, 2)  # 0: in the training process
THREADS = (1, 2)


class Setting(NamedTuple):
    run: str
    n_workers: int
    torch_threads: int


def steps_per_second(setting: Setting, quick: bool) -> float:
    """Of acting, simulation and updates."""
    run = RUNS[setting.run]
    backend = ["backend=workers", f"n_workers={setting.n_workers}"] if setting.n_workers else ["backend=sync"]
    words = [
        *run.words,
        *backend,
        f"total_env_steps={run.fewest if quick else run.steps}",
        f"torch_threads={setting.torch_threads}",
        "checkpoint_every=0",
    ]
    words += run.quick if quick else []
    words += ["eval_every=0", "evaluation.episodes=1", "evaluation.n_envs=1", "evaluation.backend=sync"]
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "burnish.commands.cli", "scratch", *words, f"run_dir={folder}/run"]
        result = subprocess.run(command, capture_output=True, text=True, check=False)
        if result.returncode:
            raise SystemExit(f"{' '.join(command)}:\n{result.stderr}")
        check(Path(folder, "run", "config.yaml"), setting)
        summary = FinetuneSummary.read(Path(folder, "run"))
    assert summary.training_minutes is not None
    return summary.env_steps / summary.training_minutes / 60


def check(config: Path, setting: Setting) -> None:
    """That the run was of this setting."""
    found = yaml.safe_load(config.read_text(encoding="utf-8"))
    backend = "workers" if setting.n_workers else "sync"
    assert (found["backend"], found["torch_threads"]) == (backend, setting.torch_threads), found
    assert not setting.n_workers or found["n_workers"] == setting.n_workers, found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", choices=RUNS, nargs="+", default=list(RUNS))
    parser.add_argument("--workers", type=int, nargs="+", default=WORKERS, help="processes; 0: in the training process")
    parser.add_argument("--threads", type=int, nargs="+", default=THREADS, help="of torch")
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--quick", action="store_true", help="few steps, once: whether it runs")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    if min(options.workers) < 0 or min(options.threads) < 1 or options.repeats < 1:
        parser.error("expected workers of at least 0, threads and repeats of at least 1")
    settings = [Setting(*words) for words in product(options.runs, options.workers, options.threads)]
    rates: dict[Setting, list[float]] = {setting: [] for setting in settings}
    for _ in range(1 if options.quick else options.repeats):
        for setting in settings:
            rates[setting].append(steps_per_second(setting, options.quick))
    print(f"environment steps per second (median, min to max), {os.cpu_count()} CPUs\n")
    print("| run | simulator workers | torch threads | steps/s |\n|---|---|---|---|")
    for setting, values in rates.items():
        workers = setting.n_workers or "in process"
        print(
            f"| {setting.run} | {workers} | {setting.torch_threads} | {statistics.median(values):,.0f} "
            f"({min(values):,.0f} to {max(values):,.0f}) |"
        )
    if options.json:
        rows = [{**setting._asdict(), "steps_per_second": values} for setting, values in rates.items()]
        options.json.write_text(json.dumps({**origin()._asdict(), "rows": rows}, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
