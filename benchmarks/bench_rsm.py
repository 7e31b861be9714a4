"""Time and memory of a gradient step and of an action of DPMD and SDAC from scratch, beside the floor in the same run.

    python benchmarks/bench_rsm.py --tasks halfcheetah --threads 1

The settings are those of `burnish scratch` (Ma et al. 2025: batch 256, 32 candidates, K = 20 DDPM steps, M = 64), the
transitions random numbers, so no simulator is needed. The floor of a step is its matrix products alone, at the best
rate that anything reaches here (`measuring.ProductRate`): what is above 1 is everything else. All cases take turns, and
a multiple of the floor is taken turn by turn, so that other programs on the machine disturb them alike. A variant that
cannot run on this machine is left out, and the table says why.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterable
from itertools import product
from pathlib import Path
from typing import NamedTuple

from measuring import STATUS, ProductRate, milliseconds, peak_memory, products_gflop, setup
from rsm_steps import (
    AUTHORS_ACTION,
    AUTHORS_MEMORY,
    AUTHORS_STEP,
    BATCH_SIZE,
    N_ENVS,
    TASKS,
    VARIANTS,
    Case,
    build,
    gradient_step,
)

from burnish.errors import BurnishError
from burnish.finetune.off_policy import OffPolicyStage
from burnish.machine.device import resolve_device


class Timing(NamedTuple):
    """Of one turn, in ms; a step with and one without the actor's, as `policy_delay` = 2 lets them alternate."""

    actor_step: float
    critic_step: float
    action: float
    gflop_per_ms: float  # the floor's rate


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


def gflop(stage: OffPolicyStage) -> tuple[float, float]:
    """Of the matrix products in a step with the actor's and in one without."""
    return products_gflop(lambda: gradient_step(stage)), products_gflop(lambda: gradient_step(stage))


def turn(stage: OffPolicyStage, rate: ProductRate) -> Timing:
    obs = stage.policy.obs_spec.zeros(N_ENVS, 1)
    before = rate.gflop_per_ms()
    actor_step = milliseconds(lambda: gradient_step(stage))
    critic_step = milliseconds(lambda: gradient_step(stage))
    action = milliseconds(lambda: stage.act(obs))
    return Timing(actor_step, critic_step, action, statistics.harmonic_mean((before, rate.gflop_per_ms())))


def take_turns(stages: Iterable[OffPolicyStage], rate: ProductRate, repeats: int) -> list[list[Timing]]:
    """Timings of each stage; a turn of every stage, `repeats` times."""
    rounds = [[turn(stage, rate) for stage in stages] for _ in range(repeats)]
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


def print_memory(case: Case) -> None:
    stage = build(case)
    print(peak_memory(Path(STATUS).read_text()))
    stage.act(stage.policy.obs_spec.zeros(N_ENVS, 1))
    gradient_step(stage)
    gradient_step(stage)
    print(peak_memory(Path(STATUS).read_text()))


def row(
    case: Case, timings: list[Timing], gflops: tuple[float, float], memory: tuple[float, float], bare: float
) -> Row:
    def median(values: Iterable[float]) -> float:
        return round(statistics.median(values), 3)

    def times_floor(ms: Callable[[Timing], float], step_gflop: float) -> float:
        return median(ms(t) / (step_gflop / t.gflop_per_ms) for t in timings)

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


def build_each(cases: Iterable[Case]) -> tuple[dict[Case, OffPolicyStage], dict[Case, str]]:
    """The stages, and why others cannot be built on this machine."""
    stages, left_out = {}, {}
    for case in cases:
        try:
            stages[case] = build(case)
        except BurnishError as error:
            left_out[case] = str(error)
    return stages, left_out


def measure(stages: dict[Case, OffPolicyStage], rate: ProductRate, options: argparse.Namespace) -> list[Row]:
    bare = memory_of_torch()
    memory = [memory_of(case, options.threads) for case in stages]
    for stage in stages.values():  # the first steps of each kind are slower
        gradient_step(stage)
        gradient_step(stage)
    gflops = [gflop(stage) for stage in stages.values()]
    timings = take_turns(stages.values(), rate, options.repeats)
    return [row(*values, bare) for values in zip(stages, timings, gflops, memory)]


def print_rows(rows: list[Row], left_out: dict[Case, str]) -> None:
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
    for case, why in left_out.items():
        print(f"{case.algorithm:5}{case.task:13}{case.variant:10} left out: {why}")
    low, high = AUTHORS_MEMORY
    print(
        f"authors: their JAX code's fastest step and action, on another machine of this kind; peak {low} to {high} MiB"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--algorithms", choices=("dpmd", "sdac"), nargs="+", default=["dpmd", "sdac"])
    parser.add_argument("--tasks", choices=TASKS, nargs="+", default=list(TASKS))
    parser.add_argument("--variants", choices=VARIANTS, nargs="+", help="all, with --quick paper")
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
        options.tasks, options.repeats = options.tasks[:1], 1
    variants = options.variants or (["paper"] if options.quick else list(VARIANTS))
    cases = [
        Case(algorithm, task, variant, 8 if options.quick else BATCH_SIZE)
        for algorithm, task, variant in product(options.algorithms, options.tasks, variants)
        if (algorithm, variant) != ("dpmd", "shared draws")
    ]
    if not cases:
        parser.error("dpmd_paper shares its draws as it is: expected another variant")
    load_before = os.getloadavg()[0]
    stages, left_out = build_each(cases)
    rate = ProductRate(options.quick)
    rate.gflop_per_ms()
    rows = measure(stages, rate, options)
    load = f"load {load_before:.1f} to {os.getloadavg()[0]:.1f}"
    print(f"batch {cases[0].batch_size}, {options.threads} threads on {os.cpu_count()} CPUs, {load}")
    print(rate.sentence())
    print_rows(rows, left_out)
    if options.json:
        report = {
            **setup(options.threads, load_before),
            "gflop_per_second": rate.to_json(),
            "repeats": options.repeats,
            "rows": [r._asdict() for r in rows],
            "left_out": [{**case._asdict(), "why": why} for case, why in left_out.items()],
        }
        options.json.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
