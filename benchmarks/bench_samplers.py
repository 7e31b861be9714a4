"""Success and latency of one policy against denoising steps, for several samplers: which one, and how few steps do.

    python benchmarks/bench_samplers.py task=lift policy=runs/pretrain-lift-seed0 --episodes 50

Every entry is measured in the same episodes. CPU time is of one `act` for one observation, the median of 20, which on
an idle machine is its latency, and which other programs disturb less. An entry that cannot be (ddpm in fewer than K
steps) is left out; Heun calls the network twice a step, all but the last time.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from itertools import product
from pathlib import Path
from typing import Any

import torch
from measuring import setup

from burnish.envs.same_environment import require_trained_in
from burnish.envs.task import load_task
from burnish.errors import BurnishError
from burnish.evaluation.evaluate import EvaluationConfig, evaluate, evaluation_envs
from burnish.evaluation.temperatures import Sampling
from burnish.policies.base import Policy
from burnish.policies.folder import fingerprint
from burnish.policies.load import load_policy

SAMPLERS = (
    "ddpm",
    "ddim",
    "diffusers:DPMSolverMultistepScheduler",
    "diffusers:UniPCMultistepScheduler",
    "diffusers:HeunDiscreteScheduler",
    "diffusers:LCMScheduler",
)
STEPS = (1, 2, 5, 10, 20)
CALLS = 20  # whose median is taken


def possible(policy: Policy, sampling: Sampling) -> bool:
    """Whether the policy can act so."""
    try:
        with policy.sampling(*sampling):
            return True
    except BurnishError:
        return False


def cpu_ms(policy: Policy) -> float:
    """Median CPU time of `act` for one observation."""
    times = []
    for _ in range(CALLS):
        started = time.process_time()
        policy.act(policy.typical_obs())
        times.append(time.process_time() - started)
    return 1e3 * statistics.median(times)


def measured(policy: Policy, samplings: list[Sampling], options: argparse.Namespace) -> list[dict[str, Any]]:
    """A row for each."""
    task = load_task(options.task)
    require_trained_in(policy, task)
    config = EvaluationConfig(episodes=options.episodes, seed=options.seed, n_envs=options.n_envs)
    rows = []
    with evaluation_envs(policy, task, config) as envs:
        for sampling in samplings:
            with policy.sampling(*sampling):
                found = evaluate(policy, task, config, envs=envs)
                milliseconds = cpu_ms(policy)
            row = {
                "sampler": sampling.sampler,
                "steps": sampling.sampler_steps,
                "calls": found.sampler_steps,
                "cpu_ms": milliseconds,
            }
            rows.append(row | {"measure": task.measure} | found.summary().to_json())
            print(entry(rows[-1]), flush=True)
    return rows


def entry(row: dict[str, Any]) -> str:
    """A line of the table."""
    if row["measure"] == "success_rate":
        value = f"{row['success_rate']:.0%} [{row['success_rate_low']:.0%}, {row['success_rate_high']:.0%}]"
    else:
        value = f"{row['return']:.0f} [{row['return_low']:.0f}, {row['return_high']:.0f}]"
    name = row["sampler"].removeprefix("diffusers:").removesuffix("Scheduler")
    return f"| {name} | {row['steps']} | {row['calls']} | {value} | {row['cpu_ms']:.2f} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("words", nargs=2, metavar="key=value", help="task=NAME policy=FOLDER")
    parser.add_argument("--samplers", nargs="+", default=SAMPLERS)
    parser.add_argument("--steps", type=int, nargs="+", default=STEPS)
    parser.add_argument("--episodes", type=int, default=50)
    parser.add_argument("--seed", type=int, default=200_000, help="of the first episode")
    parser.add_argument("--n-envs", type=int, default=20)
    parser.add_argument("--threads", type=int, default=1, help="of torch")
    parser.add_argument("--quick", action="store_true", help="two steps, two episodes: whether it runs")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    words = dict(word.split("=", 1) for word in options.words if "=" in word)
    if words.keys() != {"task", "policy"}:
        parser.error("expected task=NAME policy=FOLDER")
    if options.quick:
        options.steps, options.episodes = (2,), 2
    options.task, load_before = words["task"], os.getloadavg()[0]
    torch.set_num_threads(options.threads)
    policy = load_policy(words["policy"])
    each = [Sampling(policy.config.temperature, 1, *pair) for pair in product(options.samplers, options.steps)]
    each = [sampling for sampling in each if possible(policy, sampling)]
    print("| sampler | steps | calls of the network | measure [95 %] | CPU ms |\n|---|---|---|---|---|")
    rows = measured(policy, each, options)
    if options.json:
        about = {"task": options.task, "weights": fingerprint(words["policy"]), "seed": options.seed}
        content = {**setup(options.threads, load_before), **about, "rows": rows}
        options.json.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
