"""`burnish demo`: the whole way on the shipped demonstrations of Lift, with the commands anyone could type."""

from __future__ import annotations

import argparse
import shlex
import time
from collections.abc import Sequence
from importlib import resources
from pathlib import Path

QUICK = (
    "tasks.lift.pretrain=[dataset=shipped:lift-offset, train.updates=60, evaluation.episodes=4, evaluation.n_envs=4]",
    "methods.dppo=[stage=dppo, n_envs=4, stage.n_steps=20]",
    "methods.dpmd=[stage=dpmd, n_envs=4, stage.demos=shipped:lift-offset, stage.learning_starts=500,"
    " stage.critic_warmup_updates=10]",
    "settings=[total_env_steps=1000, evaluation.episodes=4, evaluation.n_envs=4, checkpoint_every=0]",
)


def main(arguments: Sequence[str]) -> int:
    """Run the comparison configs/demo.yaml -> its exit status."""
    parser = argparse.ArgumentParser(
        prog="burnish demo",
        description="The whole way in a few minutes: imitation, fine-tuning by DPPO and by DPMD, and their report. "
        "Started again, it goes on where it stopped; what is finished stays.",
    )
    parser.add_argument("--seed", type=int, default=0, help="of all trainings (default: 0)")
    parser.add_argument("--dir", default="runs/demo", help="folder of the runs (default: runs/demo)")
    parser.add_argument("--quick", action="store_true", help="far too short to learn anything: a check that it runs")
    options = parser.parse_args(arguments)
    from burnish.compare.config import read_config  # they import torch, which --help does without
    from burnish.compare.plan import plan
    from burnish.compare.start import compare

    file = Path(str(resources.files("burnish.configs"))) / "demo.yaml"
    words = [f"seeds=[{options.seed}]", f"run_dir={options.dir}", *(QUICK if options.quick else ())]
    config = read_config(file, words)
    print("What anyone could type, or `burnish compare` does with a file of theirs:\n")
    for cell in plan(config):
        print("  burnish", cell.command, shlex.join(cell.words))
    print(flush=True)
    start = time.monotonic()
    status = compare(config)
    print(f"{(time.monotonic() - start) / 60:.1f} minutes. Each policy evaluates alone:")
    print(
        f"  burnish evaluate task=lift policy={Path(config.run_dir) / 'lift' / 'dppo' / f'seed{options.seed}'} video=3"
    )
    return status
