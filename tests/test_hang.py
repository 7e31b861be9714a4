"""Simulators and workers that hang: noticed in time, named, what can be saved is saved, and nothing is left behind."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from fake_simulator import Counter

from burnish.commands.cli import main
from burnish.datasets.collecting import collect as collecting
from burnish.datasets.collecting.config import CollectConfig
from burnish.envs.base import VectorEnv
from burnish.envs.task import TaskConfig
from burnish.envs.vector.checks import require_finite
from burnish.envs.vector.sync import SyncVectorEnv
from burnish.envs.vector.workers import WorkerVectorEnv
from burnish.errors import BurnishError, SimulatorsLost
from burnish.machine.stop import StopRequest
from burnish.runs.checkpoint import FinetuneState, TrainerFile
from burnish.runs.metrics import read_metrics

SIZES: dict[str, Any] = {
    "n_envs": 4,
    "n_obs_steps": 1,
    "n_action_steps": 1,
    "max_episode_steps": 9,
    "seed": 0,
}


def counters(backend: str, timeout: float, **simulator: Any) -> VectorEnv:
    make = partial(Counter, **simulator)
    if backend == "sync":
        return SyncVectorEnv(make, timeout=timeout, **SIZES)
    return WorkerVectorEnv(make, n_workers=2, timeout=timeout, **SIZES)


def zeros(env: VectorEnv) -> np.ndarray:
    return np.zeros((4, 1, 1), np.float32)


def none_left() -> bool:
    return not [child for child in multiprocessing.active_children() if child.name.startswith("burnish-env")]


@pytest.mark.parametrize(
    ("backend", "fault"),
    [("workers", "sleep"), ("workers", "stop"), ("workers", "spin"), ("sync", "sleep"), ("sync", "spin")],
)
def test_a_simulator_that_hangs_is_noticed_and_named(backend: str, fault: str) -> None:
    env = counters(backend, 1.0, fault_at=2, fault=fault)
    env.reset()
    env.step(zeros(env))
    began = time.monotonic()
    mask = np.array([False, False, False, True])  # environment 3, in the second worker
    named = r"worker 1 \(environments 2 to 3\) .* in environment 3" if backend == "workers" else "environment 3"
    with pytest.raises(SimulatorsLost, match=named + ".*worker_timeout") as first:
        env.step(zeros(env), mask)
    assert time.monotonic() - began < 6
    assert none_left()
    for call in (env.reset, env.state_dict, partial(env.step, zeros(env))):  # it says so ever after
        with pytest.raises(SimulatorsLost) as again:
            call()
        assert str(again.value) == str(first.value)
    env.close()


@pytest.mark.parametrize("backend", ["workers", "sync"])
def test_the_limit_is_for_one_environment_not_for_all_of_them(backend: str) -> None:
    """Two in a worker, or four one after the other, take longer together than each may."""
    env = counters(backend, 1.0, slow=0.7)
    try:
        env.reset()
        assert (env.step(zeros(env)).steps == 1).all()
    finally:
        env.close()


def test_what_a_worker_does_not_take_is_noticed_too() -> None:
    """More than a pipe holds is sent to a worker that was stopped."""
    env = counters("workers", 1.0)
    assert isinstance(env, WorkerVectorEnv)
    env.reset()
    state = env.state_dict()
    for one in state["environments"]:
        one["ballast"] = np.zeros(10**6)
    pid = env.workers.processes[0].pid
    assert pid is not None
    os.kill(pid, signal.SIGSTOP)
    with pytest.raises(SimulatorsLost, match="worker 0"):
        env.load_state_dict(state)
    assert none_left()


def test_a_stopped_worker_does_not_make_a_signal_unheard() -> None:
    env = counters("workers", 600.0)
    assert isinstance(env, WorkerVectorEnv)
    env.reset()
    pid = env.workers.processes[0].pid
    assert pid is not None
    os.kill(pid, signal.SIGSTOP)
    threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGTERM)).start()
    began = time.monotonic()
    with StopRequest() as stop, pytest.raises(SimulatorsLost, match="worker 0") as error:
        env.step(zeros(env))
    assert stop.requested and error.value.asked
    assert time.monotonic() - began < 8
    assert none_left()


def test_a_hanging_worker_ends_with_its_killed_parent(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    parent = context.Process(target=_hang_in_a_worker, args=(theirs,))
    parent.start()
    pids = ours.recv()
    time.sleep(1.0)
    parent.kill()
    parent.join()
    _, alive = psutil.wait_procs([psutil.Process(pid) for pid in pids if psutil.pid_exists(pid)], timeout=5)
    assert not [process for process in alive if process.status() != psutil.STATUS_ZOMBIE]


def _hang_in_a_worker(pipe: Any) -> None:
    env = counters("workers", 600.0, fault_at=1, fault="spin")
    assert isinstance(env, WorkerVectorEnv)
    env.reset()
    pipe.send([process.pid for process in env.workers.processes])
    env.step(zeros(env))


HANGING = '''
import os, signal, time
from pathlib import Path
from fake_simulator import Counter

class Hanging(Counter):
    """Hangs from the moment on that the file is there, in the third step of an episode."""
    def step(self, action):
        if self.t == 2 and Path("hang").exists():
            time.sleep(3600)
        return super().step(action)

def make(task):
    return Hanging()

def make_nan(task):
    return Counter(nan_at=1)
'''
TASK = "name: counting\nsuite: counting_simulators:{}\nenv_id: counter\nmax_episode_steps: 6\n"
SCRATCH = [
    *("scratch", "task=task.yaml", "stage=dppo", "network=mlp", "network.denoising_steps=2", "network.horizon=1"),
    *("network.n_action_steps=1", "network.denoiser.hidden_dim=32", "stage.ft_denoising_steps=2", "stage.n_steps=8"),
    *("n_envs=4", "n_workers=2", "worker_timeout=1", "evaluation.worker_timeout=1", "evaluation.temperatures=[]"),
    *("evaluation.episodes=2", "evaluation.n_envs=2", "evaluation.backend=sync", "run_dir=run", "device=cpu"),
    *("total_env_steps=64", "checkpoint_every=0"),
]


@pytest.fixture
def task(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "counting_simulators.py").write_text(HANGING)
    (tmp_path / "task.yaml").write_text(TASK.format("make"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv(
        "PYTHONPATH", os.pathsep.join([str(tmp_path), str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
    )
    return tmp_path / "task.yaml"


@pytest.mark.parametrize("backend", ["sync", "workers"])
def test_a_training_saves_says_how_to_go_on_and_does(backend: str, task: Path, monkeypatch: Any, capsys: Any) -> None:
    from burnish.finetune.algorithms.dppo import DPPO

    real = DPPO.update

    def update(self: Any) -> Any:
        Path("hang").touch()
        return real(self)

    with monkeypatch.context() as patch:
        patch.setattr(DPPO, "update", update)
        assert main([*SCRATCH, f"backend={backend}"]) == 2
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert "environment" in said and "worker_timeout" in said and "ended after 3" in said  # 32 steps, then some
    assert said.endswith("go on with: burnish finetune resume=run") and none_left()
    steps = int(said.split("ended after ")[1].split()[0])
    state = TrainerFile.read(Path("run/checkpoints/latest")).restore(FinetuneState, Path("run"))
    assert state.envs is None and state.env_steps == steps
    Path("hang").unlink()
    assert main(["finetune", "resume=run"]) == 0
    assert "cannot be restored, its episodes start anew" in capsys.readouterr().err
    assert read_metrics(Path("run/metrics.jsonl"))[-1]["step"] >= 64


def test_an_evaluation_that_hangs_before_the_first_step_leaves_a_run_that_can_go_on(task: Path, capsys: Any) -> None:
    Path("hang").touch()
    assert main([*SCRATCH, "backend=sync"]) == 2
    assert "ended before the first step; go on with: burnish finetune resume=run" in capsys.readouterr().err
    Path("hang").unlink()
    assert main(["finetune", "resume=run"]) == 0


def test_a_simulation_that_is_never_finite_stops_the_run(task: Path, capsys: Any) -> None:
    task.write_text(TASK.format("make_nan"))
    assert main([*SCRATCH, "backend=sync"]) == 2  # two episodes of evaluation are too few to tell
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert "the simulation was not finite in 32 of 32 training episodes" in said
    assert main([*SCRATCH, "backend=sync", "evaluation.episodes=10", "overwrite=true"]) == 2
    assert "not finite in 10 of 10 episodes of an evaluation" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("nonfinite", "episodes", "refused"), [(5, 10, False), (6, 10, True), (9, 9, False), (0, 50, False)]
)
def test_a_few_episodes_may_blow_up(nonfinite: int, episodes: int, refused: bool) -> None:
    if not refused:
        require_finite(nonfinite, episodes, "episodes")
        return
    with pytest.raises(BurnishError, match="6 of 10 episodes"):
        require_finite(nonfinite, episodes, "episodes")


class Sleeper:
    def __init__(self, config: CollectConfig) -> None:
        pass

    def record(self, index: int) -> Any:
        time.sleep(3600)


def test_collecting_has_a_limit_as_well(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(collecting, "Recorder", Sleeper)
    hopper = TaskConfig(name="hopper", suite="gymnasium", env_id="Hopper-v5", max_episode_steps=9)
    config = CollectConfig(hopper, str(tmp_path / "a.hdf5"), behaviour="sac", n_workers=1, worker_timeout=1.0)
    with pytest.raises(SimulatorsLost, match="no episode was finished in worker_timeout=1 s"):
        collecting.collect(config)
