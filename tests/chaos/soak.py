"""Trainings that last: memory, open files, processes and threads stay as they are, and nothing is left at the end.

Each algorithm trains in a small environment, its simulators in workers, until the time is over; then it is asked to
stop (SIGTERM) and must save and end. All its processes are looked at every few seconds. After the first quarter, in
which replay fills and libraries are loaded, each number may grow no more than chance says: a line through the means of
blocks (neighbouring samples are alike), whose slope has a 95 % interval.
"""

from __future__ import annotations

import json
import math
import os
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import psutil

from chaos import warm

TASK = (
    "task=inverted_double_pendulum",
    "evaluation.episodes=2",
    "evaluation.n_envs=2",
    "evaluation.temperatures=[1.0]",
)
SMALL = ("network.denoiser.hidden_dim=32", "network.denoising_steps=5", "n_envs=4", "seed=0")
WORKERS = ("backend=workers", "n_workers=2", "evaluation.backend=workers", "evaluation.n_workers=2")
ENDLESS = ("total_env_steps=1000000000", "eval_every=4000", "checkpoint_every=2000", "run_dir=run")
COMMON = ("scratch", *TASK, *SMALL, *WORKERS, *ENDLESS)
ALGORITHMS = {
    "dppo": (*COMMON, "stage=dppo_scratch", "stage.ft_denoising_steps=5", "stage.n_steps=25", "stage.batch_size=100"),
    "dpmd": (
        *(*COMMON, "stage=dpmd_scratch", "stage.random_steps=100", "stage.learning_starts=200"),
        *("stage.batch_size=32", "stage.buffer_size=4000", "stage.critic.hidden_dim=32", "stage.utd_ratio=0.05"),
    ),
}
WARM_UP = 0.25  # of the samples
BLOCKS = 10
T_95 = 2.306  # Student's t, 97.5 %, of 8 degrees of freedom: BLOCKS - 2
LIMITS = {"rss_mib": 0.02, "files": 0.0, "processes": 0.0, "threads": 0.0}
"""Measured -> the share of its level that it may grow over the whole time even where chance does not explain it."""
ANYHOW = {"rss_mib": 8.0, "files": 0.5, "processes": 0.5, "threads": 0.5}
"""Likewise in its own unit."""


class Sample(NamedTuple):
    """All processes of the training together, at one time."""

    seconds: float
    rss_mib: float
    files: int
    processes: int
    threads: int


class Slope(NamedTuple):
    """Growth of a number an hour, with its 95 % interval, and its level."""

    an_hour: float
    low: float
    high: float
    level: float
    flat: bool


def sample(pid: int, began: float) -> Sample:
    """Of a process and all below it."""
    found = psutil.Process(pid)
    memory, files, count, threads = 0, 0, 0, 0
    for process in [found, *found.children(recursive=True)]:
        with suppress(psutil.Error):
            if process.status() == psutil.STATUS_ZOMBIE:
                continue
            rss, fds, own = process.memory_info().rss, process.num_fds(), process.num_threads()
            memory, files, count, threads = memory + rss, files + fds, count + 1, threads + own
    return Sample(time.monotonic() - began, memory / 2**20, files, count, threads)


def slope(times: Sequence[float], values: Sequence[float], name: str) -> Slope:
    """A straight line through the means of `BLOCKS` blocks of what was measured after the warm-up.

    Flat: the interval has 0 in it or below, or the growth over all of that time is within the limits.
    """
    n = len(times) // BLOCKS * BLOCKS
    if not n:
        raise ValueError(f"{len(times)} samples after the warm-up: expected at least {BLOCKS}")
    size = n // BLOCKS
    x = [statistics.fmean(times[i : i + size]) / 3600 for i in range(0, n, size)]
    y = [statistics.fmean(values[i : i + size]) for i in range(0, n, size)]
    mean_x, mean_y = statistics.fmean(x), statistics.fmean(y)
    spread = sum((each - mean_x) ** 2 for each in x)
    an_hour = sum((a - mean_x) * (b - mean_y) for a, b in zip(x, y)) / spread
    left = sum((b - mean_y - an_hour * (a - mean_x)) ** 2 for a, b in zip(x, y))
    half = T_95 * math.sqrt(left / (BLOCKS - 2) / spread)
    grown = an_hour * (times[n - 1] - times[0]) / 3600
    flat = an_hour - half <= 0 or grown <= max(ANYHOW[name], LIMITS[name] * mean_y)
    return Slope(an_hour, an_hour - half, an_hour + half, mean_y, flat)


def train(name: str, folder: Path, minutes: float, every: float) -> tuple[list[Sample], list[str]]:
    """Train for so long, ask it to stop -> the samples, and what went wrong."""
    folder.mkdir(parents=True, exist_ok=True)
    mark, faults, samples = f"soak-{name}-{os.getpid()}", [], []
    command = [sys.executable, "-m", "burnish.commands.cli", *ALGORITHMS[name], "overwrite=true"]
    with (folder / "log.txt").open("wb") as log:
        process = subprocess.Popen(
            command,
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env={**os.environ, warm.MARK: mark},
            start_new_session=True,
        )
    metrics = folder / "run" / "metrics.jsonl"
    deadline = time.monotonic() + 120
    while process.poll() is None and not (metrics.exists() and metrics.read_bytes().count(b"\n") > 2):
        if time.monotonic() > deadline:
            break
        time.sleep(0.2)
    began = time.monotonic()
    while process.poll() is None and time.monotonic() - began < 60 * minutes:
        with suppress(psutil.NoSuchProcess):
            samples.append(sample(process.pid, began))
        time.sleep(every)
    if process.poll() is not None:
        faults.append(f"it ended by itself, with status {process.returncode}")
    else:
        process.send_signal(signal.SIGTERM)
        try:
            if process.wait(60) != 130:
                faults.append(f"asked to stop it ended with status {process.returncode}, expected 130")
        except subprocess.TimeoutExpired:
            faults.append("asked to stop it had not ended after 60 seconds")
    if left := warm.left_after(process.pid, mark, 10):
        faults.append(f"left running: {', '.join(each.name for each in left)}")
        warm.kill_all(process.pid, mark)
    process.wait(10)
    return samples, faults


def report(name: str, samples: Sequence[Sample], faults: list[str]) -> dict[str, object]:
    """Print a line for each number -> what is written."""
    kept = samples[int(WARM_UP * len(samples)) :]
    slopes: dict[str, Slope] = {}
    if len(kept) < BLOCKS:
        faults.append(f"{len(kept)} samples after the warm-up: expected at least {BLOCKS}")
    for key in LIMITS if len(kept) >= BLOCKS else ():
        found = slopes[key] = slope([each.seconds for each in kept], [getattr(each, key) for each in kept], key)
        if not found.flat:
            faults.append(f"{key} grows by {found.an_hour:.3g} an hour")
        print(
            f"{name:6}{key:10} {found.level:9.1f}, an hour {found.an_hour:+9.3f} "
            f"({found.low:+.3f} to {found.high:+.3f}): {'flat' if found.flat else 'GROWS'}"
        )
    seconds = samples[-1].seconds if samples else 0.0
    print(
        f"{name:6}{seconds / 60:.1f} minutes, {len(samples)} samples: {'; '.join(faults) or 'nothing left'}", flush=True
    )
    return {
        "seconds": seconds,
        "faults": faults,
        "slopes": {key: found._asdict() for key, found in slopes.items()},
        "samples": [each._asdict() for each in samples],
    }


def run(folder: Path, words: Sequence[str], minutes: float, every: float) -> int:
    """The algorithms that are asked for, one after another -> 1 if one of them grows or leaves something."""
    written, status = {}, 0
    for name in ALGORITHMS:
        if words and not any(word in name for word in words):
            continue
        samples, faults = train(name, folder / "soak" / name, minutes, every)
        written[name] = report(name, samples, faults)
        status |= bool(faults)
    if not written:
        raise SystemExit(f"chaos: no algorithm has {' or '.join(words)} in its name: {', '.join(ALGORITHMS)}")
    (folder / "soak.json").write_text(json.dumps(written, indent=1) + "\n")
    return status
