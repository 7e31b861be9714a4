"""Time and memory of a gradient step and of an action of DPMD and SDAC from scratch, beside the floor in the same run.

    python benchmarks/bench_rsm.py --tasks halfcheetah --threads 1

The settings are those of `burnish scratch` (Ma et al. 2025: batch 256, 32 candidates, K = 20 DDPM steps, M = 64), the
transitions random numbers, so no simulator is needed. The floor of a step is its matrix products alone, at the rate of
the product of the network's hidden layer, (8192, 256) @ (256, 256): what is above 1 is everything else. All cases take
turns, and a multiple of the floor is taken turn by turn, so that other programs on the machine disturb them alike.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from itertools import product
from pathlib import Path
from typing import NamedTuple
from unittest.mock import patch

import numpy as np
import torch

from burnish.compose import compose
from burnish.config import parse
from burnish.envs.task import TaskConfig
from burnish.finetune.off_policy import OffPolicyStage
from burnish.finetune.stage import Setting, stage_class
from burnish.finetune.storage.replay import Transitions
from burnish.machine.device import resolve_device
from burnish.networks.compiled import mlp as compiled_mlp
from burnish.policies.diffusion import DiffusionPolicy, PolicyConfig

N_ENVS = 5
BATCH_SIZE = 256
HIDDEN_GFLOP = 2 * 8192 * 256 * 256 / 1e9
STATUS = "/proc/self/status"
TRANSITIONS = 2048  # in the replay
TASKS = {"halfcheetah": (17, 6), "humanoid": (348, 17)}  # Do, Da
DDIM = ["stage.sampler=ddim", "stage.ddim_steps=10", "stage.eta=1"]
FEW_TARGETS = ["stage.target_candidates=4"]
HALF = ["stage.draw_precision=float16"]
SHARED = ["stage.draw_at=next"]  # as dpmd_paper has it anyway
VARIANTS = {
    "paper": [],
    "shared draws": SHARED,
    "float16 draws": HALF,
    "ddim 10": DDIM,
    "4 targets": FEW_TARGETS,
    "all": [*SHARED, *DDIM, *FEW_TARGETS],
}
AUTHORS_STEP = {  # ms of the authors' jitted JAX update, lowest and highest, on another machine of this kind
    ("dpmd", "halfcheetah"): (513, 568),
    ("dpmd", "humanoid"): (847, 885),
    ("sdac", "halfcheetah"): (1485, 1733),
    ("sdac", "humanoid"): (1895, 2173),
}
AUTHORS_ACTION = {"halfcheetah": 16, "humanoid": 26}  # ms
AUTHORS_MEMORY = (330, 590)  # MiB, over all four


class Case(NamedTuple):
    algorithm: str
    task: str
    variant: str
    batch_size: int


class Timing(NamedTuple):
    """Of one turn, in ms; a step with and one without the actor's, as `policy_delay` = 2 lets them alternate."""

    actor_step: float
    critic_step: float
    action: float
    hidden_product: float


class Row(NamedTuple):
    algorithm: str
    task: str
    variant: str
    batch_size: int
    step_ms: float  # mean of the two kinds of steps; this and the following are medians over the turns
    step_ms_min: float
    step_ms_max: float
    actor_step_ms: float
    critic_step_ms: float
    step_gflop: float  # matrix products, mean of the two kinds of steps
    times_floor: float
    actor_times_floor: float
    critic_times_floor: float
    action_ms: float  # for N_ENVS environments, 32 candidates each
    memory_mib: float  # peak above that of a bare `import torch`
    steps_memory_mib: float  # peak above that of the built stage: the rest is code that is loaded, and weights
    authors_times_slower: float | None  # step, the fastest of theirs
    authors_action_times_slower: float | None


def build(case: Case, more: Sequence[str] = ()) -> OffPolicyStage:
    """The stage of `burnish scratch` with `more` overrides, with random transitions in its replay."""
    overrides = [f"task={case.task}", f"stage={case.algorithm}_paper", f"stage.buffer_size={TRANSITIONS}"]
    overrides.append(f"stage.batch_size={case.batch_size}")
    config = compose("scratch", [*overrides, *VARIANTS[case.variant], *more])
    obs_dim, action_dim = TASKS[case.task]
    torch.manual_seed(0)
    policy = DiffusionPolicy(parse(PolicyConfig, config["network"]), obs_dim, action_dim, ["flat"]).eval()
    make_stage = stage_class(case.algorithm)
    setting = Setting(parse(TaskConfig, config["task"]), N_ENVS, seed=0)
    stage: OffPolicyStage = make_stage(policy, parse(make_stage.Config, config["stage"]), setting)  # type: ignore
    obs, next_obs = torch.randn(2, TRANSITIONS, obs_dim)
    chunk = 2 * torch.rand(TRANSITIONS, policy.config.horizon * action_dim) - 1
    stage.replay.add(Transitions(obs, chunk, torch.randn(TRANSITIONS), torch.full((TRANSITIONS,), 0.99), next_obs))
    stage.env_steps = stage.config.random_steps
    return stage


def gradient_step(stage: OffPolicyStage) -> None:
    stage.owed = 1.0
    stage.update()


def gflop(stage: OffPolicyStage) -> tuple[float, float]:
    """Of the matrix products in a step with the actor's and in one without."""
    return products_gflop(lambda: gradient_step(stage)), products_gflop(lambda: gradient_step(stage))


def products_gflop(run: Callable[[], object]) -> float:
    """Of the matrix products in `run`, which has torch make them: what runs compiled cannot be counted."""
    from torch.utils.flop_counter import FlopCounterMode  # here, because it would count as memory

    with patch.object(compiled_mlp, "_library", lambda: None), FlopCounterMode(display=False) as counter:
        run()
    return counter.get_total_flops() / 1e9


def milliseconds(function: Callable[[], object]) -> float:
    started = time.perf_counter()
    function()
    return 1e3 * (time.perf_counter() - started)


def turn(stage: OffPolicyStage, hidden_product: Callable[[], object]) -> Timing:
    obs = np.zeros((N_ENVS, 1, stage.policy.obs_dim), np.float32)
    before = hidden_product_ms(hidden_product)
    actor_step = milliseconds(lambda: gradient_step(stage))
    critic_step = milliseconds(lambda: gradient_step(stage))
    action = milliseconds(lambda: stage.act(obs))
    return Timing(actor_step, critic_step, action, (before + hidden_product_ms(hidden_product)) / 2)


def hidden_product_ms(hidden_product: Callable[[], object]) -> float:
    return statistics.median(milliseconds(hidden_product) for _ in range(5))


def take_turns(stages: Iterable[OffPolicyStage], repeats: int) -> list[list[Timing]]:
    """Timings of each stage; a turn of every stage, `repeats` times."""
    x, weight = torch.randn(8192, 256), torch.randn(256, 256)
    out = torch.empty(8192, 256)
    rounds = [[turn(stage, lambda: torch.mm(x, weight, out=out)) for stage in stages] for _ in range(repeats)]
    return [list(timings) for timings in zip(*rounds)]


def memory_of(case: Case, threads: int) -> tuple[float, float]:
    """Peak of a fresh process after it built the stage, and after it also acted and took steps, in MiB."""
    command = [sys.executable, __file__, "--threads", str(threads), "--memory-of", *map(str, case)]
    built, peak = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()
    return float(built), float(peak)


def memory_of_torch() -> float:
    """Peak of a process that only imports torch, in MiB."""
    source = f"import pathlib, torch; print(pathlib.Path('{STATUS}').read_text())"
    return peak_memory(
        subprocess.run([sys.executable, "-c", source], check=True, capture_output=True, text=True).stdout
    )


def peak_memory(status: str) -> float:
    """In MiB, of the kernel's `STATUS`; what getrusage gives begins at the parent's peak."""
    return int(status.split("VmHWM:")[1].split(maxsplit=1)[0]) / 1024


def print_memory(case: Case) -> None:
    stage = build(case)
    print(peak_memory(Path(STATUS).read_text()))
    stage.act(np.zeros((N_ENVS, 1, stage.policy.obs_dim), np.float32))
    gradient_step(stage)
    gradient_step(stage)
    print(peak_memory(Path(STATUS).read_text()))


def row(
    case: Case, timings: list[Timing], gflops: tuple[float, float], memory: tuple[float, float], bare: float
) -> Row:
    def median(values: Iterable[float]) -> float:
        return round(statistics.median(values), 3)

    def times_floor(ms: Callable[[Timing], float], step_gflop: float) -> float:
        return median(ms(t) / (step_gflop / HIDDEN_GFLOP * t.hidden_product) for t in timings)

    steps = [(t.actor_step + t.critic_step) / 2 for t in timings]
    step_gflop = sum(gflops) / 2
    action = median(t.action for t in timings)
    paper = case.variant == "paper" and case.batch_size == BATCH_SIZE
    return Row(
        *case,
        step_ms=median(steps),
        step_ms_min=round(min(steps), 3),
        step_ms_max=round(max(steps), 3),
        actor_step_ms=median(t.actor_step for t in timings),
        critic_step_ms=median(t.critic_step for t in timings),
        step_gflop=round(step_gflop, 3),
        times_floor=times_floor(lambda t: (t.actor_step + t.critic_step) / 2, step_gflop),
        actor_times_floor=times_floor(lambda t: t.actor_step, gflops[0]),
        critic_times_floor=times_floor(lambda t: t.critic_step, gflops[1]),
        action_ms=action,
        memory_mib=round(memory[1] - bare, 1),
        steps_memory_mib=round(memory[1] - memory[0], 1),
        authors_times_slower=round(AUTHORS_STEP[case[:2]][0] / median(steps), 2) if paper else None,
        authors_action_times_slower=round(AUTHORS_ACTION[case.task] / action, 2) if paper else None,
    )


def print_rows(rows: list[Row]) -> None:
    print(
        f"{'':28}{'ms of a step':>24}{'with':>9}{'without':>9}{'times':>7}{'with':>7}{'without':>8}{'ms of an':>9}"
        f"{'peak MiB':>11}{'authors slower':>16}\n"
        f"{'':28}{'median (min to max)':>24}{'actor':>9}{'actor':>9}{'floor':>7}{'actor':>7}{'actor':>8}{'action':>9}"
        f"{'all steps':>11}{'step   action':>16}"
    )
    for r in rows:
        spread = f"{r.step_ms:.0f} ({r.step_ms_min:.0f} to {r.step_ms_max:.0f})"
        authors = (
            f"{r.authors_times_slower:.1f}x{r.authors_action_times_slower:8.1f}x" if r.authors_times_slower else ""
        )
        print(
            f"{r.algorithm:5}{r.task:13}{r.variant:10}{spread:>24}{r.actor_step_ms:9.0f}{r.critic_step_ms:9.0f}"
            f"{r.times_floor:7.2f}{r.actor_times_floor:7.2f}{r.critic_times_floor:8.2f}{r.action_ms:9.1f}"
            f"{r.memory_mib:5.0f}{r.steps_memory_mib:6.0f}{authors:>16}"
        )
    low, high = AUTHORS_MEMORY
    print(
        f"authors: their JAX code's fastest step and action, on another machine of this kind; peak {low} to {high} MiB"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--algorithms", choices=("dpmd", "sdac"), nargs="+", default=["dpmd", "sdac"])
    parser.add_argument("--tasks", choices=TASKS, nargs="+", default=list(TASKS))
    possible = [variant for variant in VARIANTS if variant != "float16 draws" or compiled_mlp.has_float16()]
    parser.add_argument("--variants", choices=VARIANTS, nargs="+", default=possible)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--repeats", type=int, default=5, help="turns of each case")
    parser.add_argument("--quick", action="store_true", help="does it run: small batches, one turn of one task")
    parser.add_argument("--json", type=Path, help="write the rows there")
    parser.add_argument("--memory-of", nargs=4, help=argparse.SUPPRESS)
    options = parser.parse_args()

    resolve_device("cpu", options.threads)
    if options.memory_of:
        algorithm, task, variant, batch_size = options.memory_of
        print_memory(Case(algorithm, task, variant, int(batch_size)))
        return
    if options.quick:
        options.tasks, options.variants, options.repeats = options.tasks[:1], ["paper"], 1
    batch_size = 8 if options.quick else BATCH_SIZE
    cases = [
        Case(algorithm, task, variant, batch_size)
        for algorithm, task, variant in product(options.algorithms, options.tasks, options.variants)
        if (algorithm, variant) != ("dpmd", "shared draws")
    ]
    if not cases:
        parser.error("dpmd_paper shares its draws as it is: expected another variant")
    load_before = os.getloadavg()[0]
    bare = memory_of_torch()
    memory = [memory_of(case, options.threads) for case in cases]
    stages = [build(case) for case in cases]
    for stage in stages:  # the first steps of each kind are slower
        gradient_step(stage)
        gradient_step(stage)
    gflops = [gflop(stage) for stage in stages]
    timings = take_turns(stages, options.repeats)
    rows = [row(*values, bare) for values in zip(cases, timings, gflops, memory)]
    hidden_ms = statistics.median(t.hidden_product for turns in timings for t in turns)
    load = load_before, os.getloadavg()[0]
    print(
        f"batch {batch_size}, {options.threads} threads on {os.cpu_count()} CPUs, load {load[0]:.1f} to {load[1]:.1f}"
    )
    print(f"hidden product {hidden_ms:.2f} ms, {HIDDEN_GFLOP / hidden_ms * 1e3:.0f} GFLOP/s")
    print_rows(rows)
    if options.json:
        setup = {
            "threads": options.threads,
            "cpus": os.cpu_count(),
            "load": load,
            "hidden_product_ms": hidden_ms,
            "repeats": options.repeats,
            "versions": {"python": platform.python_version(), "torch": torch.__version__},
            "compiled_networks": compiled_mlp.why_not() is None,
        }
        rows_json = [r._asdict() for r in rows]
        options.json.write_text(json.dumps({**setup, "rows": rows_json}, indent=2) + "\n")


if __name__ == "__main__":
    main()
