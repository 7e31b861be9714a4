"""Environments: one vector interface over Gymnasium MuJoCo and robosuite.

`TaskConfig` -> `make_simulator` (one environment) or `make_vector_env` (many, in action chunks).
"""

from __future__ import annotations

import os
from functools import partial

from burnish.envs.base import ChunkStep, Simulator, Step, VectorEnv
from burnish.envs.task import SUITES, TaskConfig
from burnish.envs.vector.episode import WORKER_TIMEOUT
from burnish.errors import BurnishError
from burnish.registry import find

BACKENDS = ("auto", "sync", "workers", "envpool")

_ENVS_FOR_WORKERS = {"gymnasium": 8}  # of the others 2

__all__ = [
    "BACKENDS",
    "WORKER_TIMEOUT",
    "ChunkStep",
    "Simulator",
    "Step",
    "TaskConfig",
    "VectorEnv",
    "make_simulator",
    "make_vector_env",
]


def make_simulator(task: TaskConfig) -> Simulator:
    """The simulator of a task. Raises BurnishError for an unknown `env_id`, with the nearest names, and for a suite
    that cannot be imported."""
    task.require_simulator()
    return find("suite", task.suite, SUITES, "task.suite")(task)


def make_vector_env(
    task: TaskConfig,
    *,
    n_envs: int,
    n_obs_steps: int,
    n_action_steps: int,
    seed: int,
    backend: str = "auto",
    n_workers: int | None = None,
    autoreset: bool = True,
    ends_at_success: bool = False,
    beside: VectorEnv | None = None,
    worker_timeout: float = WORKER_TIMEOUT,
) -> VectorEnv:
    """E environments of a task.

    Args:
        seed: of the environments' generators; with "sync" and "workers" it fixes every number bitwise, so the
            two give the same, whatever `n_workers` is.
        backend: "sync" (this process), "workers" (spawned processes), "envpool" (C++ threads, Gymnasium tasks
            only, numbers of its own), or "auto": workers where there are two CPUs and environments enough (2
            in general, 8 of Gymnasium, whose steps are cheap beside a worker's messages), else sync.
        n_workers: worker processes, or EnvPool's threads; None for one per CPU. At most `n_envs` are used.
        autoreset: start the next episode in the step that ended the last; False for evaluation.
        ends_at_success: the first success terminates the episode (Gymnasium's tasks have none).
        worker_timeout: seconds that one environment may take for a step or a reset, with "sync" and "workers";
            then SimulatorsLost is raised.
        beside: others, into whose worker processes these move where they have as many; they may be closed before.
    """
    task.require_simulator()
    if backend not in BACKENDS:
        raise BurnishError(f"backend={backend}: expected one of {', '.join(BACKENDS)}")
    if n_workers is None:
        n_workers = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if backend == "auto":
        backend = "workers" if n_workers > 1 and n_envs >= _ENVS_FOR_WORKERS.get(task.suite, 2) else "sync"
    if backend == "envpool":
        from burnish.envs.gymnasium.envpool import EnvPoolVectorEnv

        return EnvPoolVectorEnv(
            task,
            n_envs=n_envs,
            n_obs_steps=n_obs_steps,
            n_action_steps=n_action_steps,
            seed=seed,
            autoreset=autoreset,
            n_threads=n_workers,
        )
    from burnish.envs.vector.sync import SyncVectorEnv
    from burnish.envs.vector.workers import WorkerVectorEnv

    workers = partial(WorkerVectorEnv, n_workers=n_workers, beside=beside)
    vector_env = workers if backend == "workers" else SyncVectorEnv
    return vector_env(
        partial(make_simulator, task),
        n_envs=n_envs,
        n_obs_steps=n_obs_steps,
        n_action_steps=n_action_steps,
        max_episode_steps=task.max_episode_steps,
        seed=seed,
        autoreset=autoreset,
        ends_at_success=ends_at_success,
        timeout=worker_timeout,
    )
