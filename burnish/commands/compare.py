"""`burnish compare FILE [key=value ...]`: run a grid of trainings and report on it."""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Sequence
from pathlib import Path

from burnish.commands.explain import explain
from burnish.compare.config import CompareConfig, TaskGrid, TuningGrid, read_config
from burnish.compare.grid import Grid, State, in_words, is_finished
from burnish.compare.plan import check_needs, plan
from burnish.compare.start import compare, tune
from burnish.compare.tune import plan_tuning, tuning_comparison
from burnish.config import completed

HELP = """\
Compares fine-tuning methods: tasks x methods x seeds, each from the same pretrained checkpoint, then one report
(report.html, report.md, figures and tables as CSV) in the comparison's folder.

FILE is YAML:

    name: lift
    tasks:
      lift:
        pretrain: []            # words of burnish pretrain, once a seed (or policy: runs/a-seed{seed};
                                # neither: from scratch, by burnish scratch)
    settings: [n_envs=16]       # words of every burnish finetune
    methods:                    # a name and its words
      dppo: [stage=dppo]
      dpmd: [stage=dpmd, total_env_steps=12800]
    seeds: [0, 1, 2]
    total_env_steps: 51200      # the budget, where a method has none of its own
    max_minutes: null           # of training, likewise
    tuning:                     # settings that --tune tries first, as many for each method
      methods:
        dppo: {low: [stage.actor_lr=1e-5], high: [stage.actor_lr=1e-4]}
        dpmd: {low: [stage.actor_lr=1e-4], high: [stage.actor_lr=3e-4]}
    tuned: tuned.yaml           # what --tune chose, to be used
    cores: 2                    # of this machine that may be used (default: all)
    memory_gb: 8                # and memory (default: what is free)

Started again, it goes on where it stopped: finished cells stay, unless their configuration changed. A failed cell is
reported, the others go on, and the exit status is 1.
"""


def keys() -> str:
    """All keys of FILE, as the --help shows them."""
    lines = explain(CompareConfig, completed(CompareConfig, {}))
    lines += explain(TaskGrid, completed(TaskGrid, {}), "tasks.TASK.")
    return "\n".join(["keys:", *lines, *explain(TuningGrid, completed(TuningGrid, {}), "tuning.")])


def main(arguments: Sequence[str]) -> int:
    """Run the comparison -> 0, or 1 if a cell failed."""
    parser = argparse.ArgumentParser(
        prog="burnish compare",
        description=HELP,
        epilog=keys(),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("file", metavar="FILE", help="the comparison, in YAML")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="in place of what the file says")
    parser.add_argument(
        "--plan", action="store_true", help="check everything, print the commands and what is finished, and stop"
    )
    parser.add_argument(
        "--tune",
        action="store_true",
        help="run the settings of the key tuning on its seeds, in RUN_DIR/tuning, and write their table and tuned.yaml",
    )
    parser.add_argument("--report", action="store_true", help="only write the report anew, of what is finished")
    options = parser.parse_intermixed_args(list(arguments))
    config = read_config(Path(options.file), options.overrides, only_report=options.report)
    if options.plan:
        cells = plan_tuning(config) if options.tune else plan(config)
        check_needs(cells, [cell for cell in cells if not is_finished(cell)])
        grid = Grid(Path((tuning_comparison(config) if options.tune else config).run_dir), cells)
        for cell in cells:
            found = in_words(cell)
            source = grid.source(cell)
            if found and source is not None and source.state is not State.FINISHED:
                found += ", if its policy comes out the same" if is_finished(cell) else ""
            print("burnish", cell.command, shlex.join(cell.words), *(["#", found] if found else []))
        if config.tuning and not options.tune:
            tuning = plan_tuning(config)
            done = sum(map(is_finished, tuning))
            used = (
                f"its choice in {config.tuned} is used" if config.tuned else "its choice is not used: see the key tuned"
            )
            print(f"# {len(tuning)} cells more with --tune, {done} finished; {used}")
        return 0
    return (tune if options.tune else compare)(config, only_report=options.report)
