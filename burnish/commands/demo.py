"""`burnish demo`: the whole way on the shipped Lift demonstrations, with the commands anyone could type."""

from __future__ import annotations

import argparse
import shlex
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from burnish.errors import BurnishError
from burnish.evaluation.intervals import Difference

if TYPE_CHECKING:  # it imports torch, which --help does without
    from burnish.runs.evaluation_file import EvaluationFile

FINETUNED_BY = {"dppo": ("total_env_steps=38400",), "dpmd": ("total_env_steps=12800",)}
"""What is fine-tuned with, from the same checkpoint, and how long: about three minutes each."""

QUICK_WORDS: dict[str, tuple[str, ...]] = {
    "pretrain": ("train.epochs=3", "evaluation.episodes=4", "evaluation.n_envs=4"),
    "dppo": ("total_env_steps=1000", "n_envs=4", "stage.n_steps=20", "evaluation.episodes=4", "evaluation.n_envs=4"),
    "dpmd": (
        "total_env_steps=1000",
        "n_envs=4",
        "stage.learning_starts=500",
        "stage.critic_warmup_updates=10",
        "evaluation.episodes=4",
        "evaluation.n_envs=4",
    ),
}


def main(arguments: Sequence[str]) -> int:
    """Pretrain, evaluate, fine-tune by each stage, evaluate on the same seeds, and print the table -> exit status."""
    parser = argparse.ArgumentParser(prog="burnish demo", description="The whole way in a few minutes.")
    parser.add_argument("--seed", type=int, default=0, help="of all trainings (default: 0)")
    parser.add_argument("--dir", default="runs/demo", help="folder of the runs (default: runs/demo)")
    parser.add_argument("--quick", action="store_true", help="far too short to learn anything: a check that it runs")
    options = parser.parse_args(arguments)
    folder = Path(options.dir)
    pretrained = folder / f"pretrain-seed{options.seed}"
    runs = {name: folder / f"{name}-seed{options.seed}" for name in FINETUNED_BY}
    quick = QUICK_WORDS if options.quick else dict.fromkeys(QUICK_WORDS, ())
    start = time.monotonic()
    shared = ("task=lift", f"seed={options.seed}", "overwrite=true")
    # finetune evaluates the pretrained policy before it starts: here a glance is enough
    imitation = ("train.epochs=300", "train.eval_every=0", "evaluation.episodes=20", f"run_dir={pretrained}")
    _burnish("pretrain", *shared, *imitation, *quick["pretrain"])
    for name, settings in FINETUNED_BY.items():
        words = (f"stage={name}", f"policy={pretrained}", *settings, "evaluation.episodes=100", f"run_dir={runs[name]}")
        _burnish("finetune", *shared, *words, *quick[name])
    _report(runs, time.monotonic() - start)
    return 0


def _burnish(*words: str) -> None:
    from burnish.commands.cli import main as burnish

    print(f"\n$ burnish {shlex.join(words)}", flush=True)
    status = burnish(words)
    if status:
        raise BurnishError(f"burnish {words[0]} ended with status {status}")


def _report(runs: dict[str, Path], seconds: float) -> None:
    from burnish.runs.evaluation_file import BEFORE, EVALUATION, SELECTED, EvaluationFile
    from burnish.runs.summary import FinetuneSummary

    before = EvaluationFile.read(next(iter(runs.values())) / BEFORE)
    print(f"\nLift, success in {len(before.seeds)} episodes from the same initial states (95 % intervals);")
    print("in brackets behind it, the difference to imitation (paired bootstrap)\n")
    print(_row("imitation alone", before))
    for name, run in runs.items():
        steps = FinetuneSummary.read(run).env_steps
        print(_row(f"{name.upper()}, {steps:,} steps", EvaluationFile.read(run / EVALUATION), before))
        if (run / SELECTED).exists():
            selected = EvaluationFile.read(run / SELECTED)
            print(_row(f"  best of {selected.candidates} by its critic", selected, before))
    print(
        f"\n{seconds / 60:.1f} minutes. Curves: {', '.join(str(run / 'plots' / 'curve.png') for run in runs.values())}"
    )
    print(f"The policies evaluate alone: burnish evaluate task=lift policy={next(iter(runs.values()))}")


def _row(name: str, evaluation: EvaluationFile, before: EvaluationFile | None = None) -> str:
    summary = evaluation.summary
    row = f"{name:<28}{summary.success_rate:7.1%}  "
    row += f"[{summary.success_rate_low:.1%}, {summary.success_rate_high:.1%}]"
    if before is None:
        return row
    gain = Difference.between(np.array(before.success), np.array(evaluation.success))
    return f"{row:<54}{gain.mean:+.1%}  [{gain.interval.low:+.1%}, {gain.interval.high:+.1%}]"
