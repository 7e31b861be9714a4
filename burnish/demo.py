"""`burnish demo`: the whole way on the shipped Lift demonstrations, with the commands anyone could type."""

from __future__ import annotations

import argparse
import json
import shlex
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from burnish.errors import BurnishError
from burnish.evaluation import Difference

QUICK: dict[str, tuple[str, ...]] = {
    "pretrain": ("train.epochs=3", "evaluation.episodes=4", "evaluation.n_envs=4"),
    "finetune": (
        "total_env_steps=1000",
        "n_envs=4",
        "stage.n_steps=20",
        "evaluation.episodes=4",
        "evaluation.n_envs=4",
    ),
}


def main(arguments: Sequence[str]) -> int:
    """Pretrain, evaluate, fine-tune, evaluate on the same seeds, and print the table -> exit status."""
    parser = argparse.ArgumentParser(prog="burnish demo", description="The whole way in a few minutes.")
    parser.add_argument("--seed", type=int, default=0, help="of both trainings (default: 0)")
    parser.add_argument("--dir", default="runs/demo", help="folder of the two runs (default: runs/demo)")
    parser.add_argument("--quick", action="store_true", help="far too short to learn anything: a check that it runs")
    options = parser.parse_args(arguments)
    folder = Path(options.dir)
    pretrained, finetuned = folder / f"pretrain-seed{options.seed}", folder / f"dppo-seed{options.seed}"
    quick = QUICK if options.quick else dict.fromkeys(QUICK, ())
    start = time.monotonic()
    shared = (f"seed={options.seed}", "overwrite=true")
    # finetune evaluates the pretrained policy on its 200 seeds before it starts: here a glance is enough
    _burnish(
        "pretrain",
        "task=lift",
        "evaluation.episodes=20",
        f"run_dir={pretrained}",
        *shared,
        *quick["pretrain"],
    )
    _burnish(
        "finetune",
        "task=lift",
        f"policy={pretrained}",
        "eval_every=0",
        f"run_dir={finetuned}",
        *shared,
        *quick["finetune"],
    )
    _report(finetuned, time.monotonic() - start)
    return 0


def _burnish(*words: str) -> None:
    from burnish.cli import main as burnish

    print(f"\n$ burnish {shlex.join(words)}", flush=True)
    status = burnish(words)
    if status:
        raise BurnishError(f"burnish {words[0]} ended with status {status}")


def _report(run: Path, seconds: float) -> None:
    before, after = (json.loads((run / name).read_text()) for name in ("evaluation_before.json", "evaluation.json"))
    gain = Difference.between(np.array(before["success"]), np.array(after["success"]))
    low, high = gain.interval
    env_steps = json.loads((run / "summary.json").read_text())["env_steps"]
    print(f"\nLift, success in {len(before['seeds'])} episodes from the same initial states (95 % intervals)\n")
    print(_row("imitation alone", before["summary"], "success_rate"))
    print(_row(f"after DPPO, {env_steps:,} steps", after["summary"], "success_rate"))
    print(f"{'difference':<28}{gain.mean:+7.1%}  [{low:+.1%}, {high:+.1%}]  (paired bootstrap)")
    print(f"\n{seconds / 60:.1f} minutes. Curve: {run / 'plots' / 'curve.png'}")
    print(f"The policy evaluates alone: burnish evaluate task=lift policy={run}")


def _row(name: str, summary: dict[str, Any], key: str) -> str:
    return f"{name:<28}{summary[key]:7.1%}  [{summary[f'{key}_low']:.1%}, {summary[f'{key}_high']:.1%}]"
