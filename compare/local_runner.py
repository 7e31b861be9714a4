"""Cells as processes of this machine, as many at a time as its cores and memory allow."""

from __future__ import annotations

import ctypes
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import psutil

from burnish.compare.config import CompareConfig
from burnish.compare.grid import STOPPED_STATUS
from burnish.compare.plan import PlannedRun
from burnish.errors import BurnishError

PR_SET_PDEATHSIG = 1  # Linux: a signal to the child when its parent ends
GIGABYTE = 1e9


class LocalRunner:
    """See the module's docstring; a `burnish.compare.grid.Runner`.

    Args:
        config: its cores and memory_gb are shared by cells of cell_cores and cell_memory_gb.
        lock: a file descriptor that the cells keep open, so that its lock is held until the last one has ended.

    Raises:
        BurnishError: not even one cell fits.
    """

    def __init__(self, config: CompareConfig, lock: int):
        cores = config.cores or available_cores()
        memory = config.memory_gb or psutil.virtual_memory().available / GIGABYTE
        self.places = min(cores // config.cell_cores, int(memory // config.cell_memory_gb))
        if self.places < 1:
            raise BurnishError(
                f"a cell takes {config.cell_cores} cores and {config.cell_memory_gb:g} GB, but there are {cores} cores "
                f"and {memory:.1f} GB: lower cell_cores or cell_memory_gb"
            )
        self.lock = lock
        self.environment = cell_environment(config.cell_cores)
        self.running: dict[PlannedRun, subprocess.Popen[bytes]] = {}
        self.asked_to_stop: set[PlannedRun] = set()

    def has_room(self) -> bool:
        return len(self.running) < self.places

    def start(self, cell: PlannedRun, words: Sequence[str], log: Path) -> None:
        with log.open("ab") as output:
            self.running[cell] = subprocess.Popen(
                [*burnish_program(), *words],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=self.environment,
                pass_fds=(self.lock,),
                start_new_session=True,  # Ctrl-C reaches this process, which passes it on once
                preexec_fn=dying_with_parent(),  # noqa: PLW1509 - no threads here
            )

    def ended(self) -> list[tuple[PlannedRun, int]]:
        done = [(cell, process.returncode) for cell, process in self.running.items() if process.poll() is not None]
        for cell, _ in done:
            del self.running[cell]
        return [(cell, STOPPED_STATUS if cell in self.asked_to_stop and status else status) for cell, status in done]

    def stop(self) -> None:
        for cell, process in self.running.items():
            self.asked_to_stop.add(cell)  # before it listens to signals it ends without a word
            process.terminate()


def available_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1


def dying_with_parent() -> Callable[[], object] | None:
    """What a child does before it starts, to be asked to save and end when this process is killed (on Linux)."""
    if sys.platform != "linux":
        return None
    return partial(ctypes.CDLL(None).prctl, PR_SET_PDEATHSIG, signal.SIGTERM)


def burnish_program() -> list[str]:
    """The command of this very installation."""
    script = shutil.which("burnish", path=str(Path(sys.executable).parent))
    return [script] if script else [sys.executable, "-m", "burnish.commands.cli"]


def cell_environment(cores: int) -> dict[str, str]:
    """The environment of a cell that is to keep to its cores."""
    threads = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), str(cores))
    return {**os.environ, **threads}
