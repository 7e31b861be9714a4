"""How time and memory grow with environments, K, horizon, draws, replay and demonstrations - and not with run length.

    python benchmarks/bench_growth.py --threads 1 --json growth.json

Beside each value stand its multiple of the first and the exponent from the setting before: log of the values' ratio
over log of the settings'. 1 is linear, 0 constant; fixed costs lie in between, and above 1 something is wrong. Times
are medians over turns that all settings of a table take, so that other programs on the machine disturb them alike.
Memory is that of a fresh process for each setting, above what it has when everything is imported.

The last table is of whole runs of the fine-tuning loop in one process, with checkpoints and evaluations: the slope of
resident memory over the updates, after a tenth of them and once the replay is full. Its noise is told by the
slopes of both halves: a leak has the same in both, an allocator that settles has not.
"""

from __future__ import annotations

import argparse
import json
import math
import multiprocessing
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from measuring import STATUS, milliseconds, peak_memory, setup
from rsm_steps import Case, build, gradient_step

from burnish.commands.table import COMMANDS
from burnish.compose import compose
from burnish.config import parse
from burnish.datasets.episodes import Episode
from burnish.datasets.windows import Windows
from burnish.envs import make_vector_env
from burnish.envs.base import ChunkStep
from burnish.envs.task import load_task
from burnish.finetune.algorithms.dppo import DPPO, DPPOConfig
from burnish.finetune.stage import Setting, stage_class
from burnish.finetune.start import finetune
from burnish.finetune.storage.replay import Replay, Transitions
from burnish.networks.optimise import clipped_step
from burnish.policies.diffusion import DiffusionPolicy, PolicyConfig

IMPORTED = ["torch", "gymnasium.envs.mujoco", "matplotlib.pyplot", "burnish.compose", "burnish.finetune.loop"]
IMPORTED += ["burnish.finetune.algorithms.dpmd", "burnish.finetune.algorithms.dppo", "burnish.datasets.windows"]
IMPORTED += ["burnish.envs.gymnasium.simulator", "burnish.envs.vector.sync", "scipy.stats"]
MIB = 2**20
SHORTEST_TURN = 5.0  # ms; faster calls are repeated
DIMS = {"hopper": (11, 3), "lift": (19, 7)}  # Do, Da
TP = 4
CAPACITY = 1_000_000  # of the replay, its default
PAIRS = 1000  # of a DPPO minibatch
KIB_PER_1000 = 1024 * 1000  # of MiB for one update
NO_LR = 1e-12  # updates may be repeated on one rollout
SAMPLES = 1_000_000  # updates of a run whose memory can be written down
NAMES = ["environments", "denoising", "horizon", "draws", "replay", "demonstrations", "runs"]
RUN = [
    "task=reacher",
    "backend=sync",
    "n_envs=8",
    "eval_every=64000",
    "checkpoint_every=32000",
    "evaluation.episodes=4",
    "evaluation.n_envs=4",
    "evaluation.backend=sync",
    "network.denoiser.hidden_dim=64",
    "network.denoising_steps=5",
    "network.horizon=4",
    "network.n_action_steps=4",
]
RUNS = {
    "dppo": ["stage=dppo", "stage.ft_denoising_steps=5", "stage.n_steps=10", "stage.update_epochs=2"],
    "dpmd": ["stage=dpmd_scratch", "stage.buffer_size=1000", "stage.learning_starts=1000", "stage.batch_size=64"]
    + ["stage.random_steps=0", "stage.update_every=4", "stage.critic.hidden_dim=64"],
}
QUICK_RUNS = {"dppo": ["total_env_steps=3200"], "dpmd": ["total_env_steps=3200", "stage.buffer_size=400"]}


class Table(NamedTuple):
    """Quantities against one setting.

    Attributes:
        quantities: what (with its unit) -> a value for each of `settings`.
    """

    name: str
    axis: str
    settings: Sequence[int]
    quantities: dict[str, list[float]]

    def rows(self) -> list[dict[str, Any]]:
        return [
            {
                "table": self.name,
                "axis": self.axis,
                "quantity": quantity,
                "settings": list(self.settings),
                "values": values,
                "ratios": [ratio(value, values[0]) for value in values],
                "exponents": exponents(self.settings, values),
            }
            for quantity, values in self.quantities.items()
        ]

    def print(self) -> None:
        print(f"\n**{self.name}**\n\n| {' | '.join([self.axis, *self.quantities])} |")
        print("|---" * (1 + len(self.quantities)) + "|")
        rows = self.rows()
        for i, setting in enumerate(self.settings):
            cells = [cell(row["values"][i], row["ratios"][i], row["exponents"][i]) for row in rows]
            print(f"| {' | '.join([f'{setting:,}', *cells])} |")


def ratio(value: float, first: float) -> float | None:
    return value / first if first > 0 else None


def exponents(settings: Sequence[int], values: Sequence[float]) -> list[float | None]:
    """Of a power law through each point and the one before it; None for the first and where a value is not positive."""
    return [None] + [
        math.log(values[i] / values[i - 1]) / math.log(settings[i] / settings[i - 1])
        if values[i] > 0 and values[i - 1] > 0
        else None
        for i in range(1, len(values))
    ]


def cell(value: float, times: float | None, exponent: float | None) -> str:
    text = f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
    return text if exponent is None or times is None else f"{text} ({times:.3g}x, {exponent:.2f})"


def table(name: str, axis: str, settings: Sequence[int], results: Sequence[dict[str, float]]) -> Table:
    """Of one `result` for each of `settings`, with the same quantities."""
    return Table(name, axis, settings, {quantity: [result[quantity] for result in results] for quantity in results[0]})


def resident_mib() -> float:
    """Of this process, from the page tables: the counters of /proc/self/status lag behind."""
    for line in Path("/proc/self/smaps_rollup").read_text().splitlines():
        if line.startswith("Rss:"):
            return int(line.split()[1]) / 1024
    raise RuntimeError("/proc/self/smaps_rollup has no Rss")


def peak_mib() -> float:
    return peak_memory(Path(STATUS).read_text())


def fresh(threads: int, function: Callable[..., Any], *arguments: Any) -> Any:
    """What `function` gives in a process that has imported everything and done nothing."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(IMPORTED)
    with ProcessPoolExecutor(1, context, torch.set_num_threads, (threads,)) as pool:
        return pool.submit(function, *arguments).result()


def per_call_ms(run: Callable[[], object]) -> float:
    """Mean over as many calls as make a turn long enough for the clock."""
    calls, spent = 0, 0.0
    while spent < SHORTEST_TURN:
        spent += milliseconds(run)
        calls += 1
    return spent / calls


def take_turns(cases: Sequence[dict[str, Callable[[], object]]], repeats: int) -> list[dict[str, float]]:
    """Median ms of each call of each case."""
    for case in cases:  # the first are slower
        for run in case.values():
            run()
    turns = [[{name: per_call_ms(run) for name, run in case.items()} for case in cases] for _ in range(repeats)]
    return [{name: statistics.median(turn[i][name] for turn in turns) for name in case} for i, case in enumerate(cases)]


def network(K: int = 20, horizon: int = TP) -> PolicyConfig:
    overrides = [f"policy.denoising_steps={K}", f"policy.horizon={horizon}", f"policy.n_action_steps={horizon}"]
    return parse(PolicyConfig, compose("pretrain", overrides)["policy"])


class Acting:
    """DPPO's acting in Hopper, in this process."""

    def __init__(self, n_envs: int) -> None:
        task = load_task("hopper")
        torch.manual_seed(0)
        policy = DiffusionPolicy(network(), *DIMS["hopper"], task.obs_keys).eval()
        self.stage = DPPO(policy, DPPOConfig(), Setting(task, n_envs, seed=0))
        self.envs = make_vector_env(task, n_envs=n_envs, n_obs_steps=1, n_action_steps=TP, seed=0, backend="sync")
        self.obs = self.envs.reset()
        self.actions = self.stage.act(self.obs)

    def act(self) -> None:
        self.stage.rollout.clear()
        self.actions = self.stage.act(self.obs)

    def step(self) -> ChunkStep:
        step = self.envs.step(self.actions)
        self.obs = step.obs
        return step


def acting_memory(n_envs: int) -> dict[str, float]:
    before = resident_mib()
    acting = Acting(n_envs)
    for _ in range(acting.stage.chunks_per_update):
        acting.actions = acting.stage.act(acting.obs)
        acting.stage.observe(acting.step())
    rollout = acting.stage.rollout.nbytes / MIB
    return {"peak memory, MiB": peak_mib() - before, "rollout of 40 chunks, MiB": rollout}


def environments(settings: Sequence[int], options: argparse.Namespace) -> Table:
    memory = [fresh(options.threads, acting_memory, n_envs) for n_envs in settings]
    actings = [Acting(n_envs) for n_envs in settings]
    times = take_turns([{"chunk of 4 steps, ms": a.step, "acting, ms": a.act} for a in actings], options.repeats)
    for n_envs, result in zip(settings, times):
        result["both for one environment step, us"] = 1e3 * sum(result.values()) / (n_envs * TP)
    for acting in actings:
        acting.envs.close()
    results = [{**time_, **memory_} for time_, memory_ in zip(times, memory)]
    return table("Environments: Hopper, sync, K = 20, chunks of 4", "n_envs", settings, results)


def filled_dppo(policy: DiffusionPolicy, config: DPPOConfig, n_envs: int) -> DPPO:
    """The stage with a whole rollout."""
    stage = DPPO(policy, config, Setting(load_task("hopper"), n_envs, seed=0))
    obs, Ta = policy.obs_spec.zeros(n_envs, 1), policy.config.n_action_steps
    no = np.zeros(n_envs, bool)
    rewards = np.ones((n_envs, Ta), np.float32)
    for _ in range(stage.chunks_per_update):
        stage.act(obs)
        stage.observe(ChunkStep(obs, rewards.sum(1), no, no, obs, no, np.full(n_envs, Ta), rewards))
    return stage


def dpmd_cost(K: int = 20, horizon: int = 1, draws: int = 32, quick: bool = False) -> dict[str, Callable[[], object]]:
    """Calls of DPMD in the paper's setting (HalfCheetah)."""
    overrides = [f"network.denoising_steps={K}", f"network.horizon={horizon}", f"network.n_action_steps={horizon}"]
    overrides += [f"stage.{key}={draws}" for key in ("draws", "target_candidates", "n_candidates")]
    stage = build(Case("dpmd", "halfcheetah", "paper", 8 if quick else 256), overrides)
    obs = stage.policy.obs_spec.zeros(5, 1)

    def steps() -> None:
        """One with and one without the actor's."""
        gradient_step(stage)
        gradient_step(stage)

    return {"two DPMD gradient steps, ms": steps, "DPMD action, ms": partial(stage.act, obs)}


def dppo_cost(K: int = 20, horizon: int = TP, quick: bool = False) -> tuple[dict[str, Callable[[], object]], float]:
    """Calls of DPPO with K' = K (Hopper's dimensions, 40 environments), and its rollout's MiB."""
    n_envs = 8 if quick else 40
    torch.manual_seed(0)
    policy = DiffusionPolicy(network(K, horizon), *DIMS["hopper"], ["flat"]).eval()
    config = DPPOConfig(ft_denoising_steps=K, n_steps=5, update_epochs=1, batch_size=PAIRS, actor_lr=NO_LR)
    stage = filled_dppo(policy, config, n_envs)
    n, i = torch.randint(5 * n_envs, (PAIRS,)), torch.randint(K, (PAIRS,))
    advantages = torch.randn(5 * n_envs)
    obs = policy.obs_spec.zeros(n_envs, 1)

    def minibatch() -> None:
        clipped_step(stage.actor_optimizer, -stage.new_log_prob(n, i).mean(), stage.config.max_grad_norm)

    def sample() -> None:
        stage.rollout.clear()
        stage.act(obs)

    calls: dict[str, Callable[[], object]] = {
        "DPPO sampling, ms": sample,
        f"DPPO minibatch of {PAIRS:,} pairs, ms": minibatch,
        f"DPPO epoch of {5 * n_envs} chains, ms": partial(stage.update_actor, advantages),
    }
    return calls, stage.rollout.nbytes / MIB


def both(name: str, axis: str, key: str, settings: Sequence[int], options: argparse.Namespace) -> Table:
    """DPMD and DPPO against `key`, a parameter of `dpmd_cost` and `dppo_cost`."""
    dppo = [dppo_cost(**{key: setting}, quick=options.quick) for setting in settings]
    few = {"draws": 4} if options.quick else {}
    cases = [
        {**dpmd_cost(**{key: setting, **few}, quick=options.quick), **calls}
        for setting, (calls, _) in zip(settings, dppo)
    ]
    results = take_turns(cases, options.repeats)
    for result, (_, rollout) in zip(results, dppo):
        result["DPPO rollout, MiB"] = rollout
    return table(name, axis, settings, results)


def draws(settings: Sequence[int], options: argparse.Namespace) -> Table:
    results = take_turns([dpmd_cost(draws=N, quick=options.quick) for N in settings], options.repeats)
    return table("Draws: DPMD with as many in the target and candidates, K = 20", "N", settings, results)


def replay(task: str, size: int, capacity: int) -> dict[str, float]:
    """A ring for `capacity` chunks with `size` of them in it."""
    obs_dim, chunk_dim = DIMS[task][0], TP * DIMS[task][1]
    rows = min(size, 1000)
    obs, chunk, number = torch.randn(rows, obs_dim), torch.randn(rows, chunk_dim), torch.randn(rows)
    new = Transitions(obs, chunk, number, number, obs)
    generator = torch.Generator().manual_seed(0)
    few = Transitions(*(tensor[:40] for tensor in new))
    Replay(40, few).store(few)  # the first brings in code
    before = resident_mib()
    ring = Replay(capacity, few)
    empty = resident_mib() - before
    for _ in range(size // rows):
        ring.store(new)
    filled = resident_mib() - before
    state = ring.state_dict()
    saved = resident_mib() - before
    del state
    floor = size * (sum(tensor[0].nbytes for tensor in ring.data) + 2 * ring.frames.data[0].nbytes) / MIB
    return {
        "empty, MiB": empty,
        "filled, MiB": filled,
        "floor, MiB": floor,
        "times the floor": filled / floor,
        "copied for a checkpoint, MiB": saved - filled,
        "sampling 256, us": 1e3 * statistics.median(per_call_ms(lambda: ring.sample(256, generator)) for _ in range(9)),
        "adding 40, us": 1e3 * statistics.median(per_call_ms(lambda: ring.store(few)) for _ in range(9)),
    }


def replays(task: str, settings: Sequence[int], options: argparse.Namespace) -> Table:
    results = [fresh(options.threads, replay, task, size, settings[-1]) for size in settings]
    Do, Da = DIMS[task]
    name = f"Replay for {settings[-1]:,} chunks: {task.capitalize()}, Do = {Do}, Tp Da = {TP * Da}"
    return table(name, "chunks in it", settings, results)


def windows(n_episodes: int) -> dict[str, float]:
    """Of synthetic episodes of 100 steps with Lift's dimensions."""
    Do, Da = DIMS["lift"]
    T, rng = 100, np.random.default_rng(0)

    def episode(i: int) -> Episode:
        return Episode(
            name=f"demo_{i}",
            obs={"flat": rng.normal(size=(T, Do)).astype(np.float32)},
            actions=rng.uniform(-1, 1, (T, Da)).astype(np.float32),
            rewards=np.zeros(T, np.float32),
            terminated=np.zeros(T, bool),
        )

    Windows([episode(0)], ["flat"], 1, TP)  # the first brings in code
    before = resident_mib()
    episodes = [episode(i) for i in range(n_episodes)]
    read = resident_mib() - before
    made = Windows(episodes, ["flat"], 1, TP)
    held = resident_mib() - before - read
    peak = peak_mib() - before - read
    floor = sum(t.nbytes for t in (made.obs, made.actions, made._obs_rows, made._action_rows)) / MIB
    generator = torch.Generator().manual_seed(0)
    indices = [torch.randint(len(made), (256,), generator=generator) for _ in range(64)]
    turn = iter(indices * 10_000)
    return {
        "episodes, MiB": read,
        "episodes' floor, MiB": n_episodes * T * (4 * (Do + Da + 1) + 1) / MIB,
        "windows, MiB": held,
        "windows' floor, MiB": floor,
        "times the floor": held / floor,
        "while they are made, MiB": peak,
        "gathering 256, us": 1e3 * statistics.median(per_call_ms(lambda: made.batch(next(turn))) for _ in range(9)),
    }


def demonstrations(settings: Sequence[int], options: argparse.Namespace) -> Table:
    results = [fresh(options.threads, windows, n_episodes) for n_episodes in settings]
    return table("Demonstrations: episodes of 100 steps, Lift, To = 1, Tp = 4", "episodes", settings, results)


class Flatness(NamedTuple):
    """Resident memory of a run."""

    stage: str
    updates: int  # calls of `Stage.update`
    gradient_steps: int | None
    start: int  # updates that do not count: a tenth, or until the replay is full
    seconds: float
    mib_at_start: float  # median over the following 5 % of the updates
    mib_at_end: float  # median over the last 5 %
    peak_mib: float  # of the process, with the last evaluation and the curve
    kib_per_1000_updates: float
    kib_per_1000_updates_halves: tuple[float, float]
    noise_kib: float  # standard deviation about the line
    mib_in_two_hours: float  # slope of the second half times the updates of two hours
    trace_mib: list[float]  # 41 values, from 0 to 100 %


def flatness(stage_name: str, length: list[str]) -> Flatness:
    """Of one run of the loop itself; `length` are the overrides that make it end."""
    make_stage: Any = stage_class(stage_name)
    mib, count, growing = np.ones(SAMPLES), 0, 0  # ones: a page that is touched for the first time would be growth
    gradient_steps, stored = None, 0.0
    update = make_stage.update

    def watched(stage: Any) -> Any:
        nonlocal count, growing, gradient_steps, stored
        metrics = update(stage)
        mib[count] = resident_mib()
        count += 1
        gradient_steps = metrics.get("gradient_steps")
        if metrics.get("replay_size", 0) > stored:
            growing, stored = count, metrics["replay_size"]
        return metrics

    make_stage.update = watched
    with tempfile.TemporaryDirectory() as folder:
        overrides = [*RUN, *RUNS[stage_name], *length, f"run_dir={folder}/run"]
        command = next(command for command in COMMANDS if command.name == "scratch")
        config = command.parse(compose("scratch", overrides))
        started = time.perf_counter()
        finetune(config)
        seconds = time.perf_counter() - started
    assert count >= growing + 8, "too short: the replay was not full"
    return summary(stage_name, mib[:count], max(growing, count // 10), seconds, gradient_steps)


def summary(name: str, mib: np.ndarray, start: int, seconds: float, gradient_steps: int | None) -> Flatness:
    """`mib` after each update, of which those from `start` on count."""
    n, updates = len(mib), np.arange(len(mib))
    part, middle = max(1, n // 20), (start + n) // 2

    def line(first: int, end: int) -> np.ndarray:
        return np.polyfit(updates[first:end], mib[first:end], 1)

    whole, second = line(start, n), KIB_PER_1000 * line(middle, n)[0]
    return Flatness(
        name,
        n,
        gradient_steps,
        start,
        seconds,
        mib_at_start=float(np.median(mib[start : start + part])),
        mib_at_end=float(np.median(mib[-part:])),
        peak_mib=peak_mib(),
        kib_per_1000_updates=KIB_PER_1000 * whole[0],
        kib_per_1000_updates_halves=(KIB_PER_1000 * line(start, middle)[0], second),
        noise_kib=1024 * float((mib - np.polyval(whole, updates))[start:].std()),
        mib_in_two_hours=second / KIB_PER_1000 * n * 7200 / seconds,
        trace_mib=[float(mib[round(i * (n - 1) / 40)]) for i in range(41)],
    )


def print_flatness(runs: Sequence[Flatness]) -> None:
    print("\n**Run length: Reacher, 8 environments, checkpoints and evaluations on the way**\n")
    columns = [
        "stage",
        "updates (gradient steps)",
        "MiB after so many",
        "MiB at the end",
        "KiB per 1,000 updates (halves)",
    ]
    columns += ["noise, KiB", "MiB in two hours at the second's", "peak MiB"]
    print(f"| {' | '.join(columns)} |\n{'|---' * len(columns)}|")
    for run in runs:
        steps = "" if run.gradient_steps is None else f" ({run.gradient_steps:,})"
        first, second = run.kib_per_1000_updates_halves
        print(
            f"| {run.stage} | {run.updates:,}{steps} in {run.seconds:.0f} s | {run.mib_at_start:.1f} ({run.start:,}) "
            f"| {run.mib_at_end:.1f} | {run.kib_per_1000_updates:+.1f} ({first:+.1f}, {second:+.1f}) "
            f"| {run.noise_kib:.0f} | {run.mib_in_two_hours:+.1f} | {run.peak_mib:.0f} |"
        )


def tables(options: argparse.Namespace) -> dict[str, list[Callable[[], Table]]]:
    """What makes them, under the names of `--only`."""
    quick = options.quick
    Ks, horizons = ((5, 10), (1, 4)) if quick else ((5, 10, 20, 50, 100), (1, 4, 8, 16))
    sizes = (10_000, 100_000) if quick else (10_000, 100_000, CAPACITY)
    K_name = "Denoising steps: DPMD with Tp = 1 and 32 draws, DPPO with K' = K and Tp = 4"
    return {
        "environments": [partial(environments, (1, 4) if quick else (1, 8, 40, 160), options)],
        "denoising": [partial(both, K_name, "K", "K", Ks, options)],
        "horizon": [partial(both, "Horizon: Ta = Tp, K = 20", "Tp", "horizon", horizons, options)],
        "draws": [partial(draws, (2, 8) if quick else (1, 4, 16, 64), options)],
        "replay": [partial(replays, task, sizes, options) for task in (("hopper",) if quick else DIMS)],
        "demonstrations": [partial(demonstrations, (100, 1000) if quick else (100, 1000, 4000), options)],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1, help="of torch")
    parser.add_argument("--repeats", type=int, default=5, help="turns of each time")
    parser.add_argument("--minutes", type=float, default=3.0, help="of each run whose memory is watched")
    parser.add_argument("--runs", choices=RUNS, nargs="+", default=tuple(RUNS), help="these of them")
    parser.add_argument("--only", choices=NAMES, nargs="+", default=NAMES, help="these tables; runs: the last")
    parser.add_argument("--quick", action="store_true", help="does it run: few small settings, one turn, some seconds")
    parser.add_argument("--json", type=Path, help="write the rows there")
    options = parser.parse_args()
    if options.quick:
        options.repeats = 1

    torch.set_num_threads(options.threads)
    load_before = os.getloadavg()[0]
    print(f"{options.threads} threads on {os.cpu_count()} CPUs, load {load_before:.1f} at the start")
    rows = []
    makers = tables(options)
    for make in (make for name in options.only if name in makers for make in makers[name]):
        made = make()
        made.print()
        rows += made.rows()
    whole = [f"max_minutes={options.minutes}", "total_env_steps=1e9"]
    watched = options.runs if "runs" in options.only else ()
    runs = [fresh(options.threads, flatness, name, QUICK_RUNS[name] if options.quick else whole) for name in watched]
    if runs:
        print_flatness(runs)
    print(f"\nload {os.getloadavg()[0]:.1f} at the end")
    if options.json:
        report = {
            **setup(options.threads, load_before),
            "repeats": options.repeats,
            "rows": rows,
            "runs": [run._asdict() for run in runs],
        }
        options.json.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
