"""What costs time in Burnish, beside the floor of each cost in the same run: the table of docs/performance.md.

    python benchmarks/bench_costs.py --threads 2 --json costs.json

The floor of a network's cost is the floating-point operations of its matrix products over the best float32 rate that
anything reaches in the same turn (`measuring.ProductRate`: torch's large product, our compiled one, the instruction
set's peak); that of an environment step the physics alone (Hopper: the rate of `mj_step` in one process, times the
workers; Lift: 25 times `mj_step1` and `mj_step2` from each state that was stepped). All costs take turns, and a
multiple of the floor is taken turn by turn, so that other programs on the machine disturb both alike. What cannot run
on this machine is left out, and the table says why. `compare_checkouts.py` sets two checkouts' costs side by side.
"Authors" are the times of the authors' own code on another machine of this kind: DPPO's PyTorch, RSM's jitted JAX,
gymnasium's AsyncVectorEnv, stock robosuite.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import partial
from itertools import product
from pathlib import Path
from typing import NamedTuple

import mujoco
import numpy as np
import torch
from measuring import ProductRate, gflop_per_second, milliseconds, physics_alone, random_actions, setup, torch_product
from rsm_steps import AUTHORS_ACTION, AUTHORS_STEP, Case, build, gradient_step

from burnish.compose import compose
from burnish.config import parse
from burnish.datasets.load import load
from burnish.datasets.windows import Windows
from burnish.envs import make_vector_env
from burnish.envs.base import ChunkStep
from burnish.envs.robosuite.simulator import RobosuiteSimulator
from burnish.envs.task import load_task
from burnish.errors import BurnishError
from burnish.evaluation.evaluate import act
from burnish.finetune.algorithms.dppo import DPPO, DPPOConfig
from burnish.finetune.stage import Setting, stage_class
from burnish.finetune.storage.replay import Transitions
from burnish.machine.device import resolve_device
from burnish.networks.compiled.mlp import why_not
from burnish.policies.diffusion import DiffusionPolicy, PolicyConfig
from burnish.pretrain.behaviour_cloning import BehaviourCloning, PretrainConfig

RSM_TASKS = ("halfcheetah", "humanoid")
DPPO_NET = ["policy.denoiser.hidden_dim=512", "policy.denoiser.residual=true", "policy.denoiser.activation=relu"]


@dataclass
class Cost:
    """One line of the table.

    Attributes:
        run: does it `calls` times -> units of it that were done.
        floor_ms: of one unit, measured in the same turn.
        unit: "ms" of one, or "steps/s".
        authors: their value, lowest and highest, in `unit`. target: what we aim at, in `unit`.
    """

    name: str
    setting: str
    run: Callable[[], int]
    floor_ms: Callable[[], float]
    unit: str = "ms"
    authors: tuple[float, float] | None = None
    target: float | None = None
    close: Callable[[], object] = lambda: None
    ms: list[float] = field(default_factory=list)  # of one unit, turn by turn
    times_floor: list[float] = field(default_factory=list)

    def turn(self) -> None:
        before = self.floor_ms()
        started = time.perf_counter()
        done = self.run()
        self.ms.append(1e3 * (time.perf_counter() - started) / done)
        self.times_floor.append(self.ms[-1] / statistics.mean((before, self.floor_ms())))

    def value(self, ms: float) -> float:
        return ms if self.unit == "ms" else 1e3 / ms

    def row(self) -> dict[str, object]:
        return {
            "cost": self.name,
            "setting": self.setting,
            "unit": self.unit,
            "median": self.value(statistics.median(self.ms)),
            "range": sorted((self.value(min(self.ms)), self.value(max(self.ms)))),
            "times_floor": statistics.median(self.times_floor),
            "authors": self.authors,
            "target": self.target,
        }


class LeftOut(NamedTuple):
    """A cost that this machine does not have."""

    name: str
    setting: str
    why: str


def network_cost(
    rate: ProductRate, name: str, setting: str, once: Callable[[], object], *, calls: int = 1, **known: object
) -> Cost:
    """`calls` in a turn: the first after another cost finds cold caches."""

    def run() -> int:
        for _ in range(calls):
            once()
        return calls

    run()  # the first are slower
    return Cost(name, setting, run, rate.floor_of(run), **known)  # type: ignore[arg-type]


def rsm_costs(rate: ProductRate, quick: bool) -> list[Cost | LeftOut]:
    costs: list[Cost | LeftOut] = []
    for task, variant in product(RSM_TASKS[: 1 if quick else None], ("paper", "float16 draws")):
        try:
            costs += variant_costs(rate, task, variant, quick)
        except BurnishError as error:
            costs.append(LeftOut("RSM updates and action", f"{task}; {variant}", str(error)))
    return costs


def variant_costs(rate: ProductRate, task: str, variant: str, quick: bool) -> list[Cost]:
    """Steps and actions in the paper's setting, where the actor is trained in every second step."""
    costs = []
    note = "" if variant == "paper" else f"; {variant}"
    for algorithm, factor in (("dpmd", 3), ("sdac", 4)):
        stage = build(Case(algorithm, task, variant, 8 if quick else 256))
        known = AUTHORS_STEP[algorithm, task]
        cost = network_cost(
            rate,
            f"{algorithm.upper()} update",
            f"{task}, batch 256, {'32 candidates' if algorithm == 'dpmd' else 'M = 64'}, K = 20, 3x256{note}",
            partial(gradient_step, stage),
            calls=2,  # one with and one without the actor's
            authors=known,
            target=round(known[0] / factor),
        )
        costs.append(cost)
    obs = stage.policy.obs_spec.zeros(5, 1)
    costs.append(
        network_cost(
            rate,
            "RSM action",
            f"{task}, 5 environments, 32 candidates{note}",
            partial(stage.act, obs),
            calls=5,
            authors=(AUTHORS_ACTION[task], AUTHORS_ACTION[task]),
            target=round(AUTHORS_ACTION[task] / 3, 1),
        )
    )
    return costs


def rival_costs(rate: ProductRate, quick: bool) -> list[Cost]:
    """Gradient steps of the algorithms that RSM was compared with, of the same networks; DACER's actor is trained in
    every second. Aims are a third of the authors' time, and 2.5 times the floor of a gradient through a whole chain."""
    costs = []
    work = {"qsm": "one draw", "qvpo": "64 draws, 10 uniform", "dacer": "back through the chain", "dipo": "20 ascents"}
    for task, (algorithm, what) in product(RSM_TASKS[: 1 if quick else None], work.items()):
        stage = build(Case(algorithm, task, "paper", 8 if quick else 256))
        stage.gradient_steps = 1  # the entropy is measured once in thousands of steps
        cost = network_cost(
            rate,
            f"{algorithm.upper()} update",
            f"{task}, batch 256, {what}, K = 20, 3x256",
            partial(gradient_step, stage),
            calls=2,
            authors=AUTHORS_STEP.get((algorithm, task)),
        )
        if cost.authors:
            cost.target = round(cost.authors[0] / 3)
        elif algorithm == "dacer":
            cost.target = round(2.5 * cost.floor_ms(), 1)
        costs.append(cost)
    return costs


def dppo_costs(rate: ProductRate, quick: bool) -> list[Cost]:
    """Hopper's shapes; a rollout of one minibatch of 5,000 samples with all their 10 steps."""
    n_envs, T = 40, 2 if quick else 125
    policy = DiffusionPolicy(parse(PolicyConfig, compose("pretrain", DPPO_NET)["policy"]), 11, 3, ["flat"]).eval()
    config = DPPOConfig(
        n_steps=T, update_epochs=1, batch_size=n_envs * T * 10, critic_warmup_iterations=0, target_kl=1e9
    )
    stage = DPPO(policy, config, Setting(load_task("hopper"), n_envs, seed=0))
    obs = np.random.default_rng(0).normal(size=(n_envs, 1, 11)).astype(np.float32)
    step = ChunkStep(
        obs=obs,
        final_obs=obs,
        reward=np.ones(n_envs, np.float32),
        terminated=np.zeros(n_envs, bool),
        truncated=np.zeros(n_envs, bool),
        success=np.zeros(n_envs, bool),
        steps=np.full(n_envs, 4),
        step_rewards=np.ones((n_envs, 4), np.float32),
    )

    def sample() -> None:
        stage.rollout.clear()
        stage.act(obs)

    def update() -> None:
        stage.update_critic(torch.ones(n_envs * T))
        stage.update_actor(torch.randn(n_envs * T))

    for _ in range(T):
        stage.act(obs)
        stage.observe(step)
    # every update is on this rollout, so that the likelihood ratio is 1 for the first alone
    stage.check_first_ratio = lambda ratio: torch.zeros(())  # type: ignore[method-assign]
    setting = "40 environments, K = 20, K' = 10, 3x512 residual"
    return [
        network_cost(rate, "DPPO sampling with chain", setting, sample, calls=10, authors=(16.5, 25.6), target=8.2),
        network_cost(
            rate,
            "DPPO minibatch",
            "5,000 samples x 10 steps, 3x512 residual; the critic's too",
            update,
            authors=(1986, 2457),
            target=993,
        ),
    ]


def frozen_base_costs(rate: ProductRate, quick: bool) -> list[Cost]:
    """Gradient steps beside a pretrained policy at Hopper's shapes, defaults, random transitions in the replay."""
    M, B = (64, 16) if quick else (2048, 256)
    few = {"states": 4, "group_size": 4} if quick else {}
    costs = []
    for stage_name, name, settings, calls, setting in (
        (
            "dsrl",
            "DSRL update",
            {"critic_of": "actions"},
            2,
            "batch 256, critic of actions, DDIM 5",
        ),
        ("dsrl", "DSRL update", {"critic_of": "noise"}, 2, "batch 256, critic of noise"),
        ("residual", "Residual update", {}, 1, "batch 256, K = 20"),
        ("ogpo", "OGPO update", {"actor_every": 10**9, **few}, 1, "batch 256, K = 20; the critic's alone"),
        ("ogpo", "OGPO update", {"actor_every": 1, **few}, 1, "and a round: 32 states x 32 draws x K' = 10, twice"),
    ):
        torch.manual_seed(0)
        policy = DiffusionPolicy(parse(PolicyConfig, compose("pretrain", [])["policy"]), 11, 3, ["flat"]).eval()
        make_stage = stage_class(stage_name)
        own = {"demos": None, "demo_ratio": 0.0, "batch_size": B, "buffer_size": M, "critic_warmup_updates": 0}
        if stage_name == "ogpo":
            own["bc_coef"] = 0.0
        config = parse(make_stage.Config, {"name": stage_name, **own, **settings})
        stage = make_stage(policy, config, Setting(load_task("hopper"), 40, seed=0))  # type: ignore[call-arg]
        obs, next_obs = torch.randn(2, M, 11)
        chunk = 2 * torch.rand(M, policy.config.horizon * 3) - 1
        stage.replay.store(Transitions(obs, chunk, torch.randn(M), torch.full((M,), 0.99), next_obs))
        stage.gradient_steps = 1  # of OGPO the critic's alone then, where rounds are rare
        step = partial(gradient_step, stage)
        costs.append(network_cost(rate, name, f"Hopper, {setting}", step, calls=calls))
    return costs


def pretraining_cost(rate: ProductRate) -> Cost:
    """On the shipped demonstrations of Lift."""
    config = parse(PretrainConfig, compose("pretrain", ["train.batch_size=128", *DPPO_NET]))
    demos = load(config.task.dataset or "")
    windows = Windows(demos.episodes, config.task.obs_keys, config.policy.n_obs_steps, config.policy.horizon)
    policy = DiffusionPolicy(config.policy, windows.obs.shape[1], windows.actions.shape[1], config.task.obs_keys)
    policy.obs_normalizer.fit(windows.obs, config.policy.obs_normalization)
    policy.action_normalizer.fit(windows.actions, config.policy.action_normalization)
    trainer = BehaviourCloning(config, policy, windows, None)
    return network_cost(
        rate, "Pretraining step", "batch 128, with EMA, 3x512", trainer.update, calls=20, authors=(6.8, 8.0), target=3.4
    )


def latency_costs(rate: ProductRate) -> list[Cost]:
    """One observation of Lift -> one chunk."""
    costs = []
    for steps, target in ((5, 2.0), (1, 0.5)):
        overrides = ["policy.sampler=ddim", f"policy.ddim_steps={steps}"]
        policy = DiffusionPolicy(parse(PolicyConfig, compose("pretrain", overrides)["policy"]), 19, 7, ["flat"]).eval()
        obs, generators = np.zeros((1, 1, 19), np.float32), [torch.Generator().manual_seed(0)]
        run = partial(act, policy, obs, generators)
        costs.append(
            network_cost(rate, "Policy latency", f"one observation of Lift, DDIM {steps}", run, calls=50, target=target)
        )
    return costs


def environment_costs(quick: bool) -> list[Cost]:
    """Hopper in 40 environments and Lift in one, chunks of 4 random actions."""
    hopper, n_workers = load_task("hopper"), min(2, os.cpu_count() or 1)
    envs = make_vector_env(
        hopper, n_envs=40, n_obs_steps=1, n_action_steps=4, seed=0, backend="workers", n_workers=n_workers
    )
    envs.reset()
    actions = random_actions((40, 4, envs.action_dim))
    n_chunks, n_steps, seconds = (5, 5, 0.05) if quick else (100, 200, 1.0)
    lift = RobosuiteSimulator(load_task("lift"))
    lift.reset(0)
    lift.step(np.zeros(7))  # compiles
    lift_actions = random_actions((7,))
    model, data = lift.env.sim.model._model, lift.env.sim.data._data
    kind = mujoco.mjtState.mjSTATE_INTEGRATION
    states = np.empty((n_steps, mujoco.mj_stateSize(model, kind)))

    def hopper_chunks() -> int:
        return sum(int(envs.step(next(actions)).steps.sum()) for _ in range(n_chunks))

    def lift_steps() -> int:
        for state in states:
            lift.step(next(lift_actions))
            mujoco.mj_getState(model, data, state, kind)  # some microseconds
        return n_steps

    def lift_physics() -> None:
        for state in states:
            mujoco.mj_setState(model, data, state, kind)
            for _ in range(25):
                mujoco.mj_step1(model, data)
                mujoco.mj_step2(model, data)

    def lift_floor() -> float:
        """After the turn's steps; before them there are those of the last turn."""
        ms = milliseconds(lift_physics) / n_steps
        lift.reset(None)
        return ms

    lift_steps()
    return [
        Cost(
            "Gymnasium stepping",
            f"Hopper, 40 environments, {n_workers} workers, chunks of 4",
            hopper_chunks,
            lambda: 1e3 / (n_workers * physics_alone(hopper, seconds).steps_per_second),
            "steps/s",
            authors=(2947, 2947),
            target=15000,
            close=envs.close,
        ),
        Cost(
            "robosuite stepping",
            "Lift, Panda, OSC_POSE, 20 Hz, one core",
            lift_steps,
            lift_floor,
            "steps/s",
            authors=(120, 170),
            target=600,
            close=lift.close,
        ),
    ]


def all_costs(rate: ProductRate, quick: bool) -> list[Cost | LeftOut]:
    """In the table's order."""
    return [
        *rsm_costs(rate, quick),
        *rival_costs(rate, quick),
        *dppo_costs(rate, quick),
        *frozen_base_costs(rate, quick),
        pretraining_cost(rate),
        *latency_costs(rate),
        *environment_costs(quick),
    ]


def print_table(rows: list[dict[str, object]], left_out: Iterable[LeftOut]) -> None:
    print("| cost | setting | ours (range) | times its floor | authors | aim |\n|---|---|---|---|---|---|")
    for row in rows:
        low, high = row["range"]  # type: ignore[misc]
        authors = row["authors"]
        theirs = "" if authors is None else "-".join(dict.fromkeys(f"{value:,g}" for value in authors))  # type: ignore[attr-defined]
        sign = "<=" if row["unit"] == "ms" else ">="
        ours = f"{number(row['median'])} {row['unit']} ({number(low)} to {number(high)})"  # type: ignore[arg-type]
        aim = "" if row["target"] is None else f"{sign} {row['target']:,}"
        print(f"| {row['cost']} | {row['setting']} | {ours} | {row['times_floor']:.1f} | {theirs} | {aim} |")
    for cost in left_out:
        print(f"| {cost.name} | {cost.setting} | left out | | | |")
    for why in dict.fromkeys(cost.why for cost in left_out):
        print(f"\nleft out: {why}")


def number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1, help="of torch")
    parser.add_argument("--repeats", type=int, default=5, help="turns of each cost")
    parser.add_argument("--quick", action="store_true", help="does it run: small batches, one turn")
    parser.add_argument("--json", type=Path, help="write the rows there")
    options = parser.parse_args()

    resolve_device("cpu", options.threads)
    load_before = os.getloadavg()[0]
    rate = ProductRate(options.quick)
    bf16 = torch_product(rate.size, torch.bfloat16)
    wanted = all_costs(rate, options.quick)
    costs = [cost for cost in wanted if isinstance(cost, Cost)]
    left_out = [cost for cost in wanted if isinstance(cost, LeftOut)]
    bf16_rates = []
    for _ in range(1 if options.quick else options.repeats):
        bf16_rates.append(gflop_per_second(bf16))
        for cost in costs:
            cost.turn()
    for cost in costs:
        cost.close()
    rows = [cost.row() for cost in costs]
    print(f"{options.threads} threads on {os.cpu_count()} CPUs, load {load_before:.1f} to {os.getloadavg()[0]:.1f}")
    if options.quick:
        print("--quick: smaller batches and shorter runs than the settings that are named")
    print(f"{rate.sentence()}; torch's product in bf16 {statistics.median(bf16_rates):.0f}\n")
    if why_not():
        print(f"networks are not compiled: {why_not()}\n")
    print_table(rows, left_out)
    if options.json:
        report = {
            **setup(options.threads, load_before),
            "gflop_per_second": {**rate.to_json(), "torch_bf16": statistics.median(bf16_rates)},
            "rows": rows,
            "left_out": [cost._asdict() for cost in left_out],
        }
        options.json.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
