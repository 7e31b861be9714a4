"""`burnish compare FILE [key=value ...]`: run a grid of trainings and report on it."""

from __future__ import annotations

import argparse
import fcntl
import os
import shlex
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from burnish.compare.display import Display
from burnish.compare.grid import Grid, Runner, State, in_words, is_finished
from burnish.compare.local_runner import LocalRunner
from burnish.compare.plan import CompareConfig, check_needs, plan, read_config
from burnish.errors import BurnishError, Stopped

LOCK = ".lock"
LOCK_SECONDS = 1800.0  # that the runs of a comparison that was killed may take to save and end

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
    cores: 2                    # of this machine that may be used (default: all)
    memory_gb: 8                # and memory (default: what is free)

More keys: run_dir, cell_cores, cell_memory_gb, runner=local|ray, tasks.TASK.settings, tasks.TASK.methods.METHOD.
Started again, it goes on where it stopped: finished cells stay, unless their configuration changed. A failed cell is
reported, the others go on, and the exit status is 1.
"""


def main(arguments: Sequence[str]) -> int:
    """Run the comparison -> 0, or 1 if a cell failed."""
    parser = argparse.ArgumentParser(
        prog="burnish compare", description=HELP, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("file", metavar="FILE", help="the comparison, in YAML")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="in place of what the file says")
    parser.add_argument(
        "--plan", action="store_true", help="check everything, print the commands and what is finished, and stop"
    )
    parser.add_argument("--report", action="store_true", help="only write the report anew, of what is finished")
    options = parser.parse_intermixed_args(list(arguments))
    config = read_config(Path(options.file), options.overrides)
    if options.plan:
        cells = plan(config)
        check_needs(cells, [cell for cell in cells if not is_finished(cell)])
        grid = Grid(Path(config.run_dir), cells)
        for cell in cells:
            found = in_words(cell)
            source = grid.source(cell)
            if found and source is not None and source.state is not State.FINISHED:
                found += ", if its policy comes out the same" if is_finished(cell) else ""
            print("burnish", cell.command, shlex.join(cell.words), *(["#", found] if found else []))
        return 0
    return compare(config, only_report=options.report)


def compare(config: CompareConfig, only_report: bool = False) -> int:
    """Run what is not finished and write the report -> 0, or 1 if a cell has no result.

    Raises:
        BurnishError: bad input; nothing was started.
        Stopped: asked to stop; started again, the comparison goes on.
    """
    cells = plan(config)
    if not only_report:
        check_needs(cells, [cell for cell in cells if not is_finished(cell)])
    folder = Path(config.run_dir)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / LOCK).touch()
    except OSError as error:
        raise BurnishError(f"run_dir={folder} cannot be written: {error.strerror or error}") from error
    if only_report:
        grid = Grid(folder, cells)
    else:
        with locked(folder) as lock, ExitStack() as stack:
            grid = Grid(folder, cells)  # now that nothing runs any more
            runner = make_runner(config, lock, stack)
            display = stack.enter_context(Display(folder))
            if not grid.run(runner, display.show):
                raise Stopped("all cells are saved; the same command goes on")
    from burnish.compare.report import write_report  # draws: not needed before

    compared = [cell for cell in cells if cell.is_compared]
    report = write_report(config.name, compared, grid.unfinished, folder)
    for cell, message in grid.unfinished.items():
        print(f"compare: no result of {cell}: {message}", file=sys.stderr)
    print(f"{len(cells) - len(grid.unfinished)} of {len(cells)} cells finished; report: {report}")
    return 1 if grid.unfinished else 0


def make_runner(config: CompareConfig, lock: int, stack: ExitStack) -> Runner:
    """The runner that `config` names; `stack` closes it."""
    if config.runner == "local":
        return LocalRunner(config, lock)
    from burnish.compare.ray_runner import RayRunner

    runner = RayRunner(config)
    stack.callback(runner.close)
    return runner


@contextmanager
def locked(folder: Path) -> Iterator[int]:
    """Hold the folder's lock -> its file descriptor. Waits for cells that a killed comparison has left.

    Raises BurnishError where another comparison keeps it.
    """
    descriptor = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT)
    try:
        deadline, told = time.monotonic() + LOCK_SECONDS, False
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise BurnishError(
                        f"run_dir={folder}: another comparison runs in it, or runs of a killed one still save: "
                        "wait, or choose another"
                    ) from None
            if not told:
                print(f"compare: waiting for what still runs in {folder}", file=sys.stderr, flush=True)
                told = True
            time.sleep(1)
        yield descriptor
    finally:
        os.close(descriptor)
