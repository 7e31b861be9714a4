"""Steps per second of every environment backend, beside the simulation's own floor in the same run.

    python benchmarks/bench_envs.py --task hopper --n-envs 40

The floor is the mj_step calls alone, over states of random episodes, times the number of processes. On a busy
machine look at the CPU time for one step, which other programs disturb less: 1e6 * CPUs / (CPU us per step)
is the rate on idle CPUs.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import NamedTuple

import psutil
from measuring import physics_alone, random_actions

from burnish.envs import TaskConfig, VectorEnv, make_vector_env
from burnish.errors import BurnishError
from burnish.runs.origin import origin

TASKS = {
    name: TaskConfig(name=name, suite="gymnasium", env_id=env_id, max_episode_steps=limit)
    for name, env_id, limit in (
        ("hopper", "Hopper-v5", 1000),
        ("walker2d", "Walker2d-v5", 1000),
        ("halfcheetah", "HalfCheetah-v5", 1000),
        ("ant", "Ant-v5", 1000),
        ("humanoid", "Humanoid-v5", 1000),
        ("reacher", "Reacher-v5", 50),
    )
}


class Rate(NamedTuple):
    backend: str
    chunk: int  # Ta
    steps_per_second: float
    cpu_microseconds_per_step: float  # this process and its workers
    share_of_floor: float


def cpu_seconds() -> float:
    """CPU time of this process, its threads and its living children."""
    this = psutil.Process()
    times = [process.cpu_times() for process in (this, *this.children())]
    return sum(time.user + time.system for time in times)


def backend_rate(env: VectorEnv, backend: str, floor: float, seconds: float) -> Rate:
    env.reset()
    steps = 0
    started, cpu_started = time.perf_counter(), cpu_seconds()
    for actions in random_actions((env.n_envs, env.n_action_steps, env.action_dim)):
        steps += int(env.step(actions).steps.sum())
        elapsed = time.perf_counter() - started
        if elapsed >= seconds:
            break
    rate = steps / elapsed
    return Rate(backend, env.n_action_steps, rate, 1e6 * (cpu_seconds() - cpu_started) / steps, rate / floor)


def measure(task: TaskConfig, options: argparse.Namespace) -> Iterator[Rate]:
    """The floor, then each backend with each chunk size; the fastest of `--repeats` runs."""
    physics = max(physics_alone(task, options.seconds) for _ in range(options.repeats))
    yield Rate("mj_step, 1 process", 1, *physics, 1.0)
    for chunk, backend in product(options.chunks, options.backends):
        try:
            env = make_vector_env(
                task,
                n_envs=options.n_envs,
                n_obs_steps=1,
                n_action_steps=chunk,
                seed=0,
                backend=backend,
                n_workers=options.n_workers,
            )
        except BurnishError as error:
            print(f"{backend}: left out: {error}")
            continue
        processes = 1 if backend == "sync" else min(options.n_workers, options.n_envs)
        attainable = physics.steps_per_second * processes
        runs = (backend_rate(env, backend, attainable, options.seconds) for _ in range(options.repeats))
        yield max(runs, key=fastest)
        env.close()


def fastest(rate: Rate) -> float:
    return rate.steps_per_second


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", choices=TASKS, default="hopper")
    parser.add_argument("--n-envs", type=int, default=40)
    parser.add_argument(
        "--n-workers",
        "--threads",
        type=int,
        default=2,
        help="worker processes and EnvPool threads (--threads: the same)",
    )
    parser.add_argument("--chunks", type=int, nargs="+", default=[1, 4], help="Ta")
    parser.add_argument("--backends", nargs="+", default=["sync", "workers", "envpool"])
    parser.add_argument("--seconds", type=float, default=3.0, help="of each measurement")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="does it run: a moment of each, once")
    parser.add_argument("--json", type=Path, help="write the rows there")
    options = parser.parse_args()
    if options.quick:
        options.seconds, options.repeats = 0.1, 1

    task = TASKS[options.task]
    print(f"{task.env_id}, {options.n_envs} environments, {options.n_workers} workers or threads")
    print(f"{'backend':20} {'Ta':>3} {'steps/s':>9} {'CPU us/step':>12} {'of the floor':>13}")
    rows = []
    for rate in measure(task, options):
        rows.append(rate._asdict())
        print(
            f"{rate.backend:20} {rate.chunk:3} {rate.steps_per_second:9,.0f} "
            f"{rate.cpu_microseconds_per_step:12.0f} {rate.share_of_floor:13.0%}",
            flush=True,
        )
    if options.json:
        setup = {"env_id": task.env_id, "n_envs": options.n_envs, "n_workers": options.n_workers}
        options.json.write_text(json.dumps({**origin()._asdict(), **setup, "rows": rows}, indent=2) + "\n")


if __name__ == "__main__":
    main()
