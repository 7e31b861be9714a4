"""A gradient step of the algorithms that learn offline and then online, beside its floor in the same run.

    python benchmarks/bench_offline_to_online.py --threads 2 --json offline_to_online.json

HalfCheetah's sizes, batch 256 of random transitions, one action at a time; the denoiser has 3 layers of 256 and 5
denoising steps (DQL, IDQL; Q-chunking: 10, 32 candidates), the Gaussian actor 2 of 256. A step is the mean of
a round: RLPD's has 20 of the critic and one of the actor. The floor is the matrix products alone, at the best rate that
anything reaches in the same turn (`measuring.ProductRate`).
"""

from __future__ import annotations

import argparse
import json
import os
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from bench_costs import Cost, network_cost
from measuring import ProductRate, setup
from rsm_steps import TASKS, TRANSITIONS, fill

from burnish.compose import compose
from burnish.config import parse
from burnish.envs.task import TaskConfig
from burnish.finetune.off_policy import OffPolicyStage
from burnish.finetune.stage import Setting, stage_class
from burnish.machine.device import resolve_device
from burnish.policies.base import ChunkConfig, policy_class

OBS_DIM, ACTION_DIM = TASKS["halfcheetah"]
ALONE = ["stage.demos=null", "stage.demo_ratio=0", "stage.critic_warmup_updates=0"]
DIFFUSION, GAUSSIAN = ["network=mlp", "network.denoising_steps=5"], ["network=gaussian"]


class Measured(NamedTuple):
    """`steps` gradient steps are a round; `aim`: of the floor."""

    name: str
    keys: list[str]
    steps: int = 1
    aim: float | None = None


CASES = [
    Measured("dql", DIFFUSION, aim=2.5),
    Measured("idql", DIFFUSION),
    Measured("qc", ["network=mlp", "network.denoising_steps=10"]),
    Measured("calql", GAUSSIAN),
    Measured("rlpd", GAUSSIAN, steps=20, aim=1.5),
]


def build(case: Measured, batch_size: int) -> OffPolicyStage:
    """The stage of `burnish scratch`, with random transitions in its replay."""
    words = ["task=halfcheetah", f"stage={case.name}", f"stage.batch_size={batch_size}", *ALONE, *case.keys]
    config = compose("scratch", [*words, f"stage.buffer_size={TRANSITIONS}"])
    torch.manual_seed(0)
    keys = parse(ChunkConfig, config["network"])
    make_policy, make_stage = policy_class(keys.kind), stage_class(case.name)
    policy = make_policy(keys, OBS_DIM, ACTION_DIM, ["flat"]).eval()
    setting = Setting(parse(TaskConfig, config["task"]), 1, 0, pretrained=False)
    stage: OffPolicyStage = make_stage(policy, parse(make_stage.Config, config["stage"]), setting)  # type: ignore[assignment]
    fill(stage, OBS_DIM, policy.config.horizon * ACTION_DIM)
    return stage


def gradient_steps(stage: OffPolicyStage, n: int) -> None:
    stage.owed = float(n)
    stage.update()


def cost_of(rate: ProductRate, case: Measured, batch_size: int) -> Cost:
    stage = build(case, batch_size)
    return network_cost(rate, case.name, f"batch {batch_size}", partial(gradient_steps, stage, case.steps))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1, help="of torch")
    parser.add_argument("--repeats", type=int, default=5, help="turns of each")
    parser.add_argument("--quick", action="store_true", help="does it run: small batches, one turn")
    parser.add_argument("--json", type=Path, help="write the rows there")
    options = parser.parse_args()

    resolve_device("cpu", options.threads)
    load_before = os.getloadavg()[0]
    rate = ProductRate(options.quick)
    costs = [cost_of(rate, case, 8 if options.quick else 256) for case in CASES]
    for _ in range(1 if options.quick else options.repeats):
        for cost in costs:
            cost.turn()
    print(f"{options.threads} threads on {os.cpu_count()} CPUs, load {load_before:.1f} to {os.getloadavg()[0]:.1f}")
    print(f"{rate.sentence()}\n\n| gradient step | ms (range) | times its floor | aim |\n|---|---|---|---|")
    rows = []
    for case, cost in zip(CASES, costs):
        row = cost.row()
        ms, low, high = (value / case.steps for value in (row["median"], *row["range"]))  # type: ignore[misc, operator]
        rows.append({"stage": case.name, "ms": ms, "range": (low, high), "times_floor": row["times_floor"]})
        aim = f"<= {case.aim}" if case.aim else ""
        print(f"| {case.name} | {ms:.1f} ({low:.1f} to {high:.1f}) | {row['times_floor']:.1f} | {aim} |")
    if options.json:
        report = {**setup(options.threads, load_before), "gflop_per_second": rate.to_json(), "rows": rows}
        options.json.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
