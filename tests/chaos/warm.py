"""Burnish in forks of one process that has imported it already: a try costs a second, not six.

A fork is a session of its own, so that all of it can be found and ended. What it starts in sessions of their own (the
cells of a comparison) is found by a word in its environment.
"""

from __future__ import annotations

import atexit
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import NamedTuple

MARK = "BURNISH_CHAOS_TRY"
TRACEBACK_STATUS = 70  # of a fork that an exception ended
ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS"), "1")
QUIET = {"WANDB_MODE": "disabled", "MPLBACKEND": "Agg", "COLUMNS": "120", "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0"}


IMPORTED = (
    *(
        "h5py",
        "matplotlib.pyplot",
        "gymnasium.envs.mujoco",
        "safetensors.torch",
        "yaml",
        "rich.progress",
        "scipy.stats",
    ),
    *("torch._dynamo", "burnish.commands.cli", "burnish.pretrain.behaviour_cloning", "burnish.finetune.start"),
    *("burnish.runs.plot", "burnish.datasets.formats.robomimic", "burnish.diffusion.ddim"),
)
"""Of what runs import, what takes long; torch._dynamo, which every optimizer imports, most of all."""


class Process(NamedTuple):
    """One of a try."""

    pid: int
    name: str


def prepare() -> None:
    """Variables for this process and all that come from it. To be called before torch is imported."""
    os.environ.update(ONE_THREAD | QUIET)


def import_everything() -> None:
    """What a run imports, except what starts threads."""
    for name in IMPORTED:
        import_module(name)
    import torch

    from burnish.compose import compose
    from burnish.finetune.stage import STAGES, stage_class

    torch.set_num_threads(1)
    compose("pretrain", ["task=hopper"])  # Hydra
    for name in STAGES:
        with suppress(ImportError):
            stage_class(name)


def start(work: Callable[[], int], folder: Path, log: Path, mark: str) -> int:
    """Do `work` in a fork, in `folder`, its output added to `log` -> its process id. `work` gives its status."""
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if pid:
        return pid
    status = TRACEBACK_STATUS
    try:
        os.setsid()
        os.chdir(folder)
        os.environ[MARK] = mark
        output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        nothing = os.open(os.devnull, os.O_RDONLY)
        os.dup2(nothing, 0)
        os.dup2(output, 1)
        os.dup2(output, 2)
        _seed_global_generators()
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, signal.SIG_DFL if number is signal.SIGTERM else signal.default_int_handler)
        try:
            status = work()
        except SystemExit as end:
            status = end.code if isinstance(end.code, int) else int(end.code is not None)
        atexit._run_exitfuncs()
    except BaseException:
        traceback.print_exc()
    finally:
        with suppress(BaseException):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(status)


def _seed_global_generators() -> None:
    """A checkpoint has them, and nothing else would make them the same in two runs."""
    import random

    import numpy as np

    random.seed(0)
    np.random.seed(0)  # noqa: NPY002


def start_burnish(
    words: Sequence[str], folder: Path, log: Path, mark: str, before: Callable[[], None] | None = None
) -> int:
    """`burnish WORDS` in a fork -> its process id; `before` is called in the fork."""

    def work() -> int:
        from burnish.commands.cli import main

        print(f"$ burnish {' '.join(words)}", flush=True)
        if before is not None:
            before()
        return main(list(words))

    return start(work, folder, log, mark)


def wait(pid: int, seconds: float) -> int | None:
    """The exit status of a fork, negative for a signal; None where it has not ended in time."""
    deadline = time.monotonic() + seconds
    pause = 0.001
    while True:
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status)
        if time.monotonic() > deadline:
            return None
        time.sleep(pause)
        pause = min(0.05, 1.5 * pause)


def of_try(session: int, mark: str) -> list[Process]:
    """The processes of a try that live: those of its session, and those that have its mark in their environment."""
    found, wanted = [], f"{MARK}={mark}".encode()
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        with suppress(OSError, ValueError, IndexError):
            name, rest = entry.joinpath("stat").read_text().split("(", 1)[1].rsplit(")", 1)
            fields = rest.split()
            if fields[0] == "Z":
                continue
            if int(fields[3]) == session or wanted in entry.joinpath("environ").read_bytes().split(b"\0"):
                found.append(Process(int(entry.name), name))
    return found


def kill_all(session: int, mark: str) -> None:
    """Kill -9 of all processes of a try."""
    for process in of_try(session, mark):
        with suppress(ProcessLookupError):
            os.kill(process.pid, signal.SIGKILL)


def left_after(session: int, mark: str, seconds: float) -> list[Process]:
    """Those of a try that are still there after some seconds."""
    deadline = time.monotonic() + seconds
    while (left := of_try(session, mark)) and time.monotonic() < deadline:
        time.sleep(0.05)
    return left


def in_jobs(work: Callable[[int], None], jobs: int) -> bool:
    """Do `work` of 0, 1, ... in so many forks at a time -> whether all of them came to their end."""
    pids = []
    for job in range(jobs):
        sys.stdout.flush()
        pid = os.fork()
        if pid:
            pids.append(pid)
            continue
        status = 1
        try:
            work(job)
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            os._exit(status)
    statuses = [os.waitpid(pid, 0)[1] for pid in pids]  # of all of them, also after one that failed
    return not any(statuses)
