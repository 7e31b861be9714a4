"""A comparison, and the tuning before it, from its start to its report."""

from __future__ import annotations

import errno
import os
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from burnish.compare.config import CompareConfig
from burnish.compare.display import Display
from burnish.compare.grid import Grid, Runner, is_finished
from burnish.compare.local_runner import LocalRunner
from burnish.compare.plan import PlannedRun, check_needs, plan
from burnish.compare.tune import plan_tuning, tuning_blocks, tuning_comparison, write_choice
from burnish.errors import BurnishError, Stopped
from burnish.machine.lock import FolderLock, Held

LOCK_SECONDS = 1800.0  # that the runs of a comparison that was killed may take to save and end


def compare(config: CompareConfig, only_report: bool = False) -> int:
    """Run what is not finished and write the report -> 0, or 1 if a cell has no result.

    Raises:
        BurnishError: bad input; nothing was started.
        Stopped: asked to stop; started again, the comparison goes on.
    """
    cells = plan(config, only_report=only_report)
    more = tuning_blocks(config)
    unfinished = _run(config, cells, only_report)
    from burnish.compare.document import print_blocks
    from burnish.compare.report import headline, write_report  # draws: not needed before

    compared = [cell for cell in cells if cell.is_compared]
    report = write_report(config.name, compared, unfinished, Path(config.run_dir), more)
    print_blocks(headline([cell for cell in compared if cell not in unfinished]))
    print(f"{len(cells) - len(unfinished)} of {len(cells)} cells finished; report: {report}")
    return 1 if unfinished else 0


def tune(config: CompareConfig, only_report: bool = False) -> int:
    """Run the settings that are not finished, write their table and the chosen words -> 0, or 1 if one has no result.

    Raises like `compare`.
    """
    cells = plan_tuning(config)
    trial = tuning_comparison(config)
    unfinished = _run(trial, cells, only_report)
    print(f"{len(cells) - len(unfinished)} of {len(cells)} cells finished")
    if unfinished:
        print("compare: no setting is chosen before all have a result", file=sys.stderr)
        return 1
    print(f"chosen: {write_choice(config, cells, Path(trial.run_dir))}; the comparison takes it with the key tuned")
    return 0


def _run(config: CompareConfig, cells: list[PlannedRun], only_look: bool) -> dict[PlannedRun, str]:
    """Run what is not finished, unless `only_look` -> the cells without a result, and why."""
    if not only_look:
        check_needs(cells, [cell for cell in cells if not is_finished(cell)])
    folder = Path(config.run_dir)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not os.access(folder, os.W_OK | os.X_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    except OSError as error:
        raise BurnishError(f"run_dir={folder} cannot be written: {error.strerror or error}") from error
    if only_look:
        grid = Grid(folder, cells)
    else:
        with locked(folder) as lock, ExitStack() as stack:
            grid = Grid(folder, cells)  # now that nothing runs any more
            runner = make_runner(config, lock, stack)
            display = stack.enter_context(Display(folder))
            if not grid.run(runner, display.show):
                raise Stopped("all cells are saved; the same command goes on")
    for cell, message in grid.unfinished.items():
        print(f"compare: no result of {cell}: {message}", file=sys.stderr)
    return grid.unfinished


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
    deadline, told = time.monotonic() + LOCK_SECONDS, False
    while True:
        try:
            lock = FolderLock(folder, lasting=True)
            break
        except Held as error:
            if time.monotonic() > deadline:
                raise BurnishError(
                    f"run_dir={error} (another comparison runs in it, or runs of a killed one still save)"
                ) from None
            if not told:
                print(f"compare: waiting: {error}", file=sys.stderr, flush=True)
                told = True
        time.sleep(1)
    with lock:
        yield lock.descriptor
