"""`burnish toy`: RSM's toy experiment."""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from burnish.errors import BurnishError
from burnish.finetune.toy.learner import QUICK, Budget
from burnish.finetune.toy.toy import run, table
from burnish.machine.device import resolve_device


def main(arguments: Sequence[str]) -> int:
    """Sample both energies in every way, print and write the distances, draw the figure -> exit status."""
    parser = argparse.ArgumentParser(prog="burnish toy", description="RSM's toy experiment: densities from energies.")
    parser.add_argument("--dir", default="runs/toy", help="folder of toy.json and toy.png (default: runs/toy)")
    parser.add_argument("--seeds", type=int, default=3, help="how many, from 0 (default: 3)")
    parser.add_argument("--steps", type=int, help=f"gradient steps of each training (default: {Budget.steps})")
    parser.add_argument("--quick", action="store_true", help="far too short to learn anything: a check that it runs")
    options = parser.parse_args(arguments)
    for name in ("seeds", "steps"):
        if (value := getattr(options, name)) is not None and value < 1:
            raise BurnishError(f"--{name} {value}: expected at least 1")
    budget = QUICK if options.quick else Budget()
    if options.steps is not None:
        budget = replace(budget, steps=options.steps)
    folder = Path(options.dir)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise BurnishError(f"--dir {folder}: cannot be made ({error.strerror or error})") from error
    resolve_device("cpu")
    start = time.monotonic()
    distances = run(budget, options.seeds, folder)
    print(f"Distance to exact samples, mean of {options.seeds} seeds [95 % t interval over seeds]\n")
    print(table(distances))
    print(f"\n{(time.monotonic() - start) / 60:.1f} minutes. {folder / 'toy.json'}, {folder / 'toy.png'}")
    return 0
