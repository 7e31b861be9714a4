"""`burnish reproduce RECIPE`: run a committed comparison again, and say whether its figures agree."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace

from burnish.compare.config import read_config
from burnish.compare.plan import plan
from burnish.compare.reproduce import COMPARISON, FIGURES, commit, find, judge, measured, read_figures
from burnish.compare.start import compare


def main(arguments: Sequence[str]) -> int:
    """Run the recipe -> 0 where every figure agrees, 1 where one does not or a cell failed."""
    parser = argparse.ArgumentParser(prog="burnish reproduce", description=__doc__)
    parser.add_argument("recipe", metavar="RECIPE", help="its folder, or its name in results/")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="such as cores=8 or run_dir=runs/again")
    parser.add_argument("--commit", action="store_true", help="write figures.json from what is finished, and stop")
    options = parser.parse_intermixed_args(list(arguments))
    folder = find(options.recipe)
    config = read_config(folder / COMPARISON, options.overrides)
    if not any(override.startswith("run_dir=") for override in options.overrides) and not options.commit:
        config = replace(config, run_dir=f"runs/reproduce-{folder.resolve().name}")
    if options.commit:
        figures = commit(folder, config)
        print(f"wrote {folder / FIGURES}: {len(figures)} figures")
        return 0
    committed = read_figures(folder / FIGURES)
    status = compare(config)
    return judge(committed, measured(plan(config))) or status
