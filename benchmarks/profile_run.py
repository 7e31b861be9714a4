"""Where the time of fine-tuning goes: shares of a run's wall-clock, part by part.

    python benchmarks/profile_run.py task=lift policy=runs/pretrain-lift-seed0 stage=dppo total_env_steps=12800
    python benchmarks/profile_run.py task=hopper policy=... stage=dppo_gym n_envs=40 total_env_steps=40000
    python benchmarks/profile_run.py task=lift policy=... stage=dpmd total_env_steps=12800

Takes the overrides of `burnish finetune`; the run folder is temporary. A part's time is its own, without that of the
parts it calls; evaluations are left out. On CUDA the parts would have to wait for the device: this is for the CPU.
"""

from __future__ import annotations

import functools
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import torch

from burnish.compose import compose
from burnish.config import parse
from burnish.finetune import evaluations, loop, start
from burnish.finetune.config import FinetuneConfig
from burnish.finetune.critics import CRITICS, base
from burnish.finetune.losses import rsm
from burnish.finetune.stage import Stage, stage_class
from burnish.policies.diffusion import DiffusionPolicy
from burnish.runs.folder import Run

WHOLE = {"evaluation", "acting"}  # what these call belongs to them
SHARED = {"clipped_step": "backward, clipping and Adam", "polyak": "Polyak averages"}  # functions that updates call


class Clock:
    """Exclusive times of nested calls."""

    def __init__(self) -> None:
        self.seconds: defaultdict[str, float] = defaultdict(float)
        self.calls: defaultdict[str, int] = defaultdict(int)
        self._running: list[str] = []
        self._since = time.perf_counter()

    def _spend(self) -> None:
        now = time.perf_counter()
        if self._running:
            self.seconds[self._running[-1]] += now - self._since
        self._since = now

    def timed(self, label: str, function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def call(*args: Any, **kwargs: Any) -> Any:
            if WHOLE & set(self._running):
                return function(*args, **kwargs)
            self._spend()
            self._running.append(label)
            self.calls[label] += 1
            try:
                return function(*args, **kwargs)
            finally:
                self._spend()
                self._running.pop()

        return call

    def watch(self, owner: Any, name: str, label: str) -> None:
        setattr(owner, name, self.timed(label, getattr(owner, name)))


def watch_parts(clock: Clock, stage: type[Stage]) -> None:
    clock.watch(loop.Loop, "_learn", "the loop itself")
    clock.watch(evaluations.Evaluations, "now", "evaluation")
    clock.watch(Run, "save_checkpoint", "checkpoints")
    clock.watch(stage, "act", "acting")
    clock.watch(stage, "observe", "storing")
    clock.watch(stage, "update", "update, the rest")
    make_vector_env = start.make_vector_env

    def make_watched_env(*args: Any, **kwargs: Any) -> Any:
        envs = make_vector_env(*args, **kwargs)
        clock.watch(envs, "step", "environments")
        return envs

    start.make_vector_env = make_watched_env  # type: ignore[assignment]
    for critic in CRITICS.values():
        if "update" in vars(critic):
            clock.watch(critic, "update", "critic, forward")
    for name, label in stage.PARTS.items():
        clock.watch(stage, name, label)
    clock.watch(DiffusionPolicy, "values", "Q of draws")
    clock.watch(rsm.Weighting, "__call__", "weights")
    for module in {base, *(sys.modules[each.__module__] for each in stage.__mro__)}:
        for name, label in SHARED.items():
            if hasattr(module, name):
                clock.watch(module, name, label)


def main() -> None:
    if len(sys.argv) < 2 or sys.argv[1] in ("-h", "--help"):
        print(__doc__)
        return
    with tempfile.TemporaryDirectory() as folder:
        quiet = ["evaluation.episodes=1", "evaluation.n_envs=1", "evaluation.backend=sync", "eval_every=0"]
        quiet += ["checkpoint_every=0", f"run_dir={folder}/run"]
        config = parse(FinetuneConfig, compose("finetune", [*sys.argv[1:], *quiet]))
        clock = Clock()
        watch_parts(clock, stage_class(config.stage.name))
        start.finetune(config)
    seconds = {label: value for label, value in clock.seconds.items() if label != "evaluation"}
    total = sum(seconds.values())
    print(f"\n{config.total_env_steps:,} environment steps, {torch.get_num_threads()} torch threads: {total:.1f} s")
    print("| part | share | seconds | calls |\n|---|---|---|---|")
    for label, value in sorted(seconds.items(), key=lambda item: -item[1]):
        print(f"| {label} | {value / total:.1%} | {value:.2f} | {clock.calls[label]:,} |")


if __name__ == "__main__":
    main()
