"""The config group `task`: read one, list all, try them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from importlib.util import find_spec

from burnish.config import about
from burnish.envs.task import SUITES, TaskConfig, load_task
from burnish.errors import BurnishError
from burnish.registry import find


def try_task(task: TaskConfig) -> str | None:
    """Make the environment, reset it and take one step -> what went wrong, or None."""
    import numpy as np

    from burnish.envs import make_simulator

    try:
        simulator = make_simulator(task)
        try:
            simulator.reset(seed=0)
            obs = simulator.step(np.zeros(simulator.action_dim, np.float32)).obs
        finally:
            simulator.close()
    except Exception as error:  # whatever a simulator raises is the answer
        return f"{type(error).__name__}: {' '.join(str(error).split())}"
    return None if simulator.obs_spec.is_finite(obs) else "its observation is not finite"


def print_tasks(names: Sequence[str] = (), *, check: bool = False, show: bool = False) -> int:
    """Print a table of the tasks `names` (none: all of the package) -> exit status, 1 where one does not run here.

    Without `check` a task counts as running here if its suite is installed. `show` prints their keys instead.
    """
    from burnish.compose import group_options

    tasks = [load_task(name) for name in names or group_options("task")]
    if show:
        print("\n".join(shown(task) for task in tasks), end="")
        return 0
    print(_row("task", "suite", "environment", "steps", "demonstrations", "runs here"))
    all_run = True
    for task in tasks:
        runs = "yes" if task.has_simulator else "data alone"
        problem = missing(task.suite) if task.has_simulator else None
        if check and problem is None and task.has_simulator:
            problem = try_task(task)
        all_run &= problem is None
        dataset = task.dataset or "give dataset=..."
        print(
            _row(task.name, task.suite, task.env_id, str(task.max_episode_steps), dataset, problem or runs),
            flush=True,
        )
    return 0 if all_run else 1


def missing(suite: str) -> str | None:
    """Why tasks of the suite cannot run here, or None."""
    if suite in SUITES:
        return None if find_spec(suite) else f"no: pip install {suite}"
    try:
        find("suite", suite, SUITES, "task.suite")
    except BurnishError as error:
        return f"no: {error}"
    return None


def shown(task: TaskConfig) -> str:
    """The task as a YAML file says it, each key with its meaning."""
    import yaml

    lines = []
    for field in fields(task):
        value = yaml.safe_dump(getattr(task, field.name), default_flow_style=True, width=1000)
        lines.append(f"# {about(TaskConfig, field.name).doc}\n{field.name}: {value.splitlines()[0]}\n")
    return "".join(lines)


def _row(*cells: str) -> str:
    return " ".join(f"{cell:<{width}}" for cell, width in zip(cells, (25, 10, 26, 6, 27, 0)))
