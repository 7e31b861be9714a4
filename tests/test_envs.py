"""The rules of episodes on a counter, the simulators against Gymnasium, worker failures, EnvPool."""

from __future__ import annotations

import importlib.util
import os
import signal
import subprocess
import sys
import time
from ctypes.util import find_library
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import gymnasium
import mujoco
import numpy as np
import pytest

from burnish.envs import TaskConfig, VectorEnv, make_simulator, make_vector_env
from burnish.envs.base import ChunkStep
from burnish.envs.gymnasium.fast_step import fast_step
from burnish.envs.gymnasium.simulator import make_gymnasium
from burnish.envs.vector.sync import SyncVectorEnv
from burnish.envs.vector.workers import WorkerVectorEnv
from burnish.errors import BurnishError, SimulatorsLost

sys.path.insert(0, str(Path(__file__).parent))  # so that spawned workers find it too
from fake_simulator import Counter

FAMILIES = (
    "Hopper", "Walker2d", "HalfCheetah", "Ant", "Humanoid", "Reacher", "Pusher", "Swimmer",
    "InvertedPendulum", "InvertedDoublePendulum",
)  # fmt: skip
V4 = [f"{family}-v4" for family in FAMILIES if family != "Pusher"]  # Pusher-v4 needs mujoco < 3
V5 = [f"{family}-v5" for family in FAMILIES]
HOPPER = TaskConfig(name="hopper", suite="gymnasium", env_id="Hopper-v5", max_episode_steps=1000)
needs_envpool = pytest.mark.skipif(importlib.util.find_spec("envpool") is None, reason="extra envpool is absent")


def task(env_id: str) -> TaskConfig:
    return replace(HOPPER, env_id=env_id)


def counters(
    n_envs: int = 2, n_obs_steps: int = 1, n_action_steps: int = 3, limit: int = 100, **kwargs: Any
) -> SyncVectorEnv:
    settings = {name: kwargs.pop(name) for name in ("autoreset", "seed", "ends_at_success") if name in kwargs}
    return SyncVectorEnv(
        partial(Counter, **kwargs),
        n_envs=n_envs,
        n_obs_steps=n_obs_steps,
        n_action_steps=n_action_steps,
        max_episode_steps=limit,
        **{"seed": 0, **settings},
    )


def worker_counters(
    n_envs: int = 3,
    n_workers: int = 2,
    beside: VectorEnv | None = None,
    ends_at_success: bool = False,
    **kwargs: Any,
) -> WorkerVectorEnv:
    return WorkerVectorEnv(
        partial(Counter, **kwargs),
        n_envs=n_envs,
        n_obs_steps=2,
        n_action_steps=3,
        max_episode_steps=7,
        seed=5,
        n_workers=n_workers,
        ends_at_success=ends_at_success,
        beside=beside,
    )


def zeros(env: VectorEnv) -> np.ndarray:
    return np.zeros((env.n_envs, env.n_action_steps, env.action_dim), np.float32)


def assert_equal_steps(first: ChunkStep, second: ChunkStep) -> None:
    a: Any
    for name, a, b in zip(ChunkStep._fields, first, second):
        np.testing.assert_array_equal(a, b, err_msg=name)
        assert a.dtype == b.dtype, name


def random_steps(env: VectorEnv, n_steps: int, seed: int = 0) -> list[ChunkStep]:
    """Steps with random actions, beyond [-1, 1] too, and random masks."""
    rng = np.random.default_rng(seed)
    shape = (env.n_envs, env.n_action_steps, env.action_dim)
    return [
        env.step(rng.uniform(-1.5, 1.5, shape).astype(np.float32), rng.random(env.n_envs) < 0.8) for _ in range(n_steps)
    ]


# The rules of episodes, on the counter


def test_a_chunk_sums_its_rewards_and_shifts_the_history() -> None:
    env = counters(n_envs=1, n_obs_steps=2, n_action_steps=3, success_at=2)
    first = env.reset()
    np.testing.assert_array_equal(first[0, :, :2], [[1, 0], [1, 0]])
    out = env.step(np.array([[[0.5], [-0.5], [0.25]]]))
    np.testing.assert_array_equal(out.obs[0, :, :2], [[1, 2], [1, 3]])
    np.testing.assert_array_equal(out.final_obs, out.obs)
    np.testing.assert_array_equal(out.step_rewards, [[10.5, 19.5, 30.25]])
    assert (out.reward[0], out.steps[0], out.success[0]) == (60.25, 3, True)
    assert not out.terminated[0] and not out.truncated[0]


def test_termination_cuts_the_chunk_and_the_next_episode_starts_in_the_same_step() -> None:
    env = counters(n_obs_steps=2, terminate_at=5)
    env.reset()
    env.step(zeros(env))
    out = env.step(zeros(env))
    np.testing.assert_array_equal(out.steps, [2, 2])
    np.testing.assert_array_equal(out.step_rewards[0], [40, 50, 0])
    np.testing.assert_array_equal(out.reward, [90, 90])
    np.testing.assert_array_equal(out.terminated, [True, True])
    np.testing.assert_array_equal(out.truncated, [False, False])
    np.testing.assert_array_equal(out.final_obs[0, :, :2], [[1, 4], [1, 5]])
    np.testing.assert_array_equal(out.obs[0, :, :2], [[2, 0], [2, 0]])


@pytest.mark.parametrize("ends", [False, True])
def test_an_episode_can_end_at_its_first_success(ends: bool) -> None:
    for backend in ("sync", "workers"):
        env = (counters if backend == "sync" else worker_counters)(n_envs=2, success_at=2, ends_at_success=ends)
        try:
            env.reset()
            out = env.step(zeros(env))
        finally:
            env.close()
        assert out.terminated.tolist() == [ends] * 2 and out.success.all() and not out.truncated.any()
        assert out.steps.tolist() == [2 if ends else 3] * 2
        assert (out.step_rewards != 0).tolist() == [[True, True, not ends]] * 2
        assert out.obs[:, -1, 0].tolist() == [2 if ends else 1] * 2  # the next episode has begun


def test_the_time_limit_truncates_and_the_count_starts_again() -> None:
    env = counters(limit=4)
    env.reset()
    outs = [env.step(zeros(env)) for _ in range(4)]
    assert [int(out.steps[0]) for out in outs] == [3, 1, 3, 1]
    assert [bool(out.truncated[0]) for out in outs] == [False, True, False, True]
    assert not any(out.terminated.any() for out in outs)
    np.testing.assert_array_equal(outs[1].final_obs[0, 0, :2], [1, 4])


def test_termination_at_the_time_limit_is_a_termination_only() -> None:
    env = counters(limit=3, terminate_at=3)
    env.reset()
    out = env.step(zeros(env))
    assert out.terminated.all() and not out.truncated.any()


@pytest.mark.parametrize("fault", ["nan_at", "nan_reward_at"])
def test_a_non_finite_step_truncates_and_never_gets_out(fault: str) -> None:
    env = counters(n_obs_steps=2, **{fault: 2})
    env.reset()
    out = env.step(zeros(env))
    assert out.truncated.all() and not out.terminated.any() and not out.success.any()
    assert all(np.isfinite(field).all() for field in out)
    np.testing.assert_array_equal(out.step_rewards[0], [10, 0, 0])
    np.testing.assert_array_equal(out.reward, [10, 10])
    np.testing.assert_array_equal(out.steps, [2, 2])
    np.testing.assert_array_equal(out.final_obs[0, :, :2], [[1, 0], [1, 1]])
    np.testing.assert_array_equal(out.obs[0, :, :2], [[2, 0], [2, 0]])
    assert env.nonfinite_episodes == 2


def test_masked_environments_stand_still() -> None:
    env = counters(n_envs=3)
    before = env.reset()
    out = env.step(zeros(env), np.array([True, False, True]))
    np.testing.assert_array_equal(out.steps, [3, 0, 3])
    np.testing.assert_array_equal(out.reward, [60, 0, 60])
    np.testing.assert_array_equal(out.obs[1], before[1])
    np.testing.assert_array_equal(out.final_obs[1], before[1])
    np.testing.assert_array_equal(env.step(zeros(env)).obs[:, 0, 1], [6, 3, 6])


def test_without_autoreset_an_ended_environment_waits_for_a_reset() -> None:
    env = counters(terminate_at=2, autoreset=False)
    env.reset()
    out = env.step(zeros(env), np.array([True, False]))
    np.testing.assert_array_equal(out.obs, out.final_obs)
    np.testing.assert_array_equal(out.obs[0, 0, :2], [1, 2])
    with pytest.raises(RuntimeError, match="environment 0 has no running episode"):
        env.step(zeros(env))
    masked = env.step(zeros(env), np.array([False, True]))
    assert not masked.terminated[0] and masked.terminated[1]
    env.reset()
    assert env.step(zeros(env)).terminated.all()


def test_a_step_before_the_first_reset_is_refused() -> None:
    env = counters()
    with pytest.raises(RuntimeError, match="reset it first"):
        env.step(zeros(env))


def test_results_of_earlier_steps_do_not_change() -> None:
    env = counters()
    first_obs = env.reset()
    first = env.step(zeros(env))
    copies: list[Any] = [np.copy(field) for field in first]
    env.step(zeros(env))
    assert_equal_steps(first, ChunkStep(*copies))
    assert (first_obs[:, 0, 1] == 0).all()


def test_generators_are_seeded_from_the_seed_and_the_index_once() -> None:
    def starts(e: int, n: int) -> list[np.float32]:
        rng = np.random.default_rng(int(np.random.SeedSequence([7, e]).generate_state(1)[0]))
        return [np.float32(rng.uniform()) for _ in range(n)]

    env = counters(seed=7)
    drawn = [env.reset()[:, 0, 2] for _ in range(3)]
    np.testing.assert_array_equal(np.transpose(drawn), [starts(0, 3), starts(1, 3)])
    seeded = env.reset([3, 3])
    assert seeded[0, 0, 2] == seeded[1, 0, 2] == np.float32(np.random.default_rng(3).uniform())


def test_wrong_arguments_are_refused() -> None:
    env = counters()
    env.reset()
    with pytest.raises(ValueError, match=r"\(2, 2, 1\), expected \(E, Ta, Da\) = \(2, 3, 1\)"):
        env.step(np.zeros((2, 2, 1), np.float32))
    with pytest.raises(ValueError, match="mask has shape"):
        env.step(zeros(env), np.array([True]))
    with pytest.raises(ValueError, match="1 seeds for 2 environments"):
        env.reset([1])
    actions = zeros(env)
    actions[1, 2, 0] = np.nan
    with pytest.raises(BurnishError, match="action for environment 1 is not finite"):
        env.step(actions)
    env.step(actions, np.array([True, False]))
    with pytest.raises(BurnishError, match="n_envs=0"):
        counters(n_envs=0)


# Gymnasium's simulators


@pytest.mark.parametrize("env_id", V5 + V4)
@pytest.mark.filterwarnings("ignore")
def test_steps_are_bitwise_gymnasiums(env_id: str) -> None:
    simulator, env = make_gymnasium(task(env_id)), gymnasium.make(env_id).unwrapped
    rng = np.random.default_rng(0)
    np.testing.assert_array_equal(simulator.reset(3), env.reset(seed=3)[0].astype(np.float32))
    box: Any = env.action_space
    for _ in range(300):
        action = rng.uniform(-1.2, 1.2, simulator.action_dim).astype(np.float32)
        step = simulator.step(action)
        scaled = np.clip(action, -1, 1) * ((box.high - box.low) / 2) + (box.high + box.low) / 2
        obs, reward, terminated, _, _ = env.step(scaled)
        np.testing.assert_array_equal(step.obs, obs.astype(np.float32))
        assert step.reward == float(reward)
        assert step.terminated is bool(terminated) and step.success is False
        if terminated:
            np.testing.assert_array_equal(simulator.reset(None), env.reset()[0].astype(np.float32))


@pytest.mark.parametrize("env_id", ["Hopper-v5", "Walker2d-v5", "HalfCheetah-v5"])
def test_the_planar_robots_take_the_fast_step(env_id: str) -> None:
    assert fast_step(gymnasium.make(env_id).unwrapped) is not None
    assert fast_step(gymnasium.make("Ant-v5").unwrapped) is None


def test_env_kwargs_reach_the_fast_step() -> None:
    kwargs: dict[str, Any] = {
        "terminate_when_unhealthy": False,
        "ctrl_cost_weight": 0.5,
        "exclude_current_positions_from_observation": False,
        "healthy_reward": 3.0,
    }
    simulator = make_gymnasium(replace(HOPPER, env_kwargs=kwargs))
    env = gymnasium.make("Hopper-v5", **kwargs).unwrapped
    np.testing.assert_array_equal(simulator.reset(0), env.reset(seed=0)[0].astype(np.float32))
    for _ in range(60):
        action = np.full(3, 0.9, np.float32)
        step, (obs, reward, terminated, _, _) = simulator.step(action), env.step(action)
        np.testing.assert_array_equal(step.obs, obs.astype(np.float32))
        assert (step.reward, step.terminated) == (float(reward), terminated)
    assert simulator.obs_spec.state_dim == 12 and not terminated


@pytest.mark.parametrize("env_id", V5)
def test_a_restored_state_goes_on_bitwise_in_a_fresh_simulator(env_id: str) -> None:
    original = make_gymnasium(task(env_id))
    rng = np.random.default_rng(1)
    original.reset(11)
    for _ in range(15):
        original.step(rng.uniform(-1, 1, original.action_dim).astype(np.float32))
    state = original.get_state()
    restored = make_gymnasium(task(env_id))
    restored.reset(99)
    restored.set_state(state)
    for i in range(200):
        action = rng.uniform(-1, 1, original.action_dim).astype(np.float32)
        a, b = original.step(action), restored.step(action)
        np.testing.assert_array_equal(a.obs, b.obs)
        assert a[1:] == b[1:]
        if a.terminated or i % 50 == 49:
            np.testing.assert_array_equal(original.reset(None), restored.reset(None))


def test_a_state_holds_only_plain_types() -> None:
    def check(value: Any) -> None:
        if isinstance(value, dict):
            for key, item in value.items():
                assert isinstance(key, str)
                check(item)
        else:
            assert isinstance(value, (np.ndarray, int, float, str))
            assert not isinstance(value, int) or abs(value) < 2**63

    simulator = make_gymnasium(task("Pusher-v5"))
    simulator.reset(0)
    check(simulator.get_state())


def test_another_environments_state_is_refused() -> None:
    hopper, ant = make_gymnasium(HOPPER), make_gymnasium(task("Ant-v5"))
    hopper.reset(0)
    with pytest.raises(BurnishError, match="another environment"):
        ant.set_state(hopper.get_state())


def test_a_seed_alone_decides_the_initial_state() -> None:
    used, fresh = make_gymnasium(HOPPER), make_gymnasium(HOPPER)
    push = np.ones(3, np.float32)
    used.reset(1)
    for _ in range(5):
        used.step(push)
    np.testing.assert_array_equal(used.reset(4), fresh.reset(4))
    for _ in range(10):
        np.testing.assert_array_equal(used.step(push).obs, fresh.step(push).obs)


def test_a_blown_up_simulation_is_not_taken_for_a_new_episode() -> None:
    """MuJoCo restarts it silently; the observation would be finite."""
    simulator = make_gymnasium(task("HalfCheetah-v5"))
    simulator.reset(0)
    simulator._env.data.qvel[2] = 1e11
    step = simulator.step(np.zeros(6, np.float32))
    assert np.isnan(step.obs).all() and np.isnan(step.reward) and not step.terminated
    assert np.isfinite(simulator.reset(None)).all()
    assert np.isfinite(simulator.step(np.zeros(6, np.float32)).obs).all()


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (task("Hoper-v5"), "task.env_id=Hoper-v5.*nearest: Hopper-v5"),
        (task("CartPole-v1"), "expected a Box, continuous ones"),
        (replace(HOPPER, env_kwargs={"gravity": 1}), "cannot be made.*gravity"),
    ],
)
def test_a_task_that_cannot_be_made_is_a_users_mistake(config: TaskConfig, message: str) -> None:
    with pytest.raises(BurnishError, match=message) as error:
        make_simulator(config)
    assert "\n" not in str(error.value)


RENDER = """
import numpy as np
from burnish.envs import TaskConfig, make_simulator
simulator = make_simulator(TaskConfig("hopper", "gymnasium", "Hopper-v5", 1000))
simulator.reset(0)
first = simulator.render(640, 520)
assert first.shape == (520, 640, 3) and first.dtype == np.uint8 and first.std() > 5, first.std()
for _ in range(10):
    simulator.step(np.ones(3))
assert (simulator.render(640, 520) != first).any() and simulator.render(64, 48).shape == (48, 64, 3)
simulator.close()
"""


def run_python(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), **environment},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.mark.skipif(find_library("EGL") is None, reason="libegl1 is not installed")
def test_rendering() -> None:
    done = run_python("-c", RENDER, MUJOCO_GL="egl")
    assert done.returncode == 0, done.stderr


def test_rendering_without_opengl_says_what_to_install() -> None:
    done = run_python("-c", RENDER, MUJOCO_GL="disabled")
    assert "BurnishError" in done.stderr
    assert all(word in done.stderr for word in ("MUJOCO_GL=egl", "libegl1", "libosmesa6"))


# Workers


@pytest.mark.parametrize("n_workers", [1, 2])
def test_workers_are_bitwise_the_sync_environment(n_workers: int) -> None:
    def make(backend: str) -> VectorEnv:
        limited = replace(HOPPER, max_episode_steps=15)
        return make_vector_env(
            limited, n_envs=3, n_obs_steps=2, n_action_steps=4, seed=3, backend=backend, n_workers=n_workers
        )

    sync, workers = make("sync"), make("workers")
    try:
        np.testing.assert_array_equal(sync.reset(), workers.reset())
        steps = [random_steps(env, 40) for env in (sync, workers)]
        for first, second in zip(*steps):
            assert_equal_steps(first, second)
        assert any(out.terminated.any() for out in steps[0]) and any(out.truncated.any() for out in steps[0])
        np.testing.assert_array_equal(sync.reset([1, 2, 3]), workers.reset([1, 2, 3]))
    finally:
        workers.close()


def test_a_state_goes_on_bitwise_in_either_backend() -> None:
    def make(backend: str) -> VectorEnv:
        limited = replace(HOPPER, max_episode_steps=30)
        return make_vector_env(limited, n_envs=3, n_obs_steps=2, n_action_steps=4, seed=8, backend=backend, n_workers=2)

    original, copies = make("workers"), [make("sync"), make("workers")]
    try:
        original.reset()
        random_steps(original, 4)
        state = original.state_dict()
        expected = random_steps(original, 30, seed=1)
        for copy in copies:
            copy.load_state_dict(state)
            for first, second in zip(expected, random_steps(copy, 30, seed=1)):
                assert_equal_steps(first, second)
        with pytest.raises(BurnishError, match="3 environments, expected n_envs=2"):
            counters(n_envs=2).load_state_dict(state)
    finally:
        for env in (original, *copies):
            env.close()


def test_non_finite_episodes_are_counted_and_restored() -> None:
    workers = worker_counters(nan_at=2)
    try:
        workers.reset()
        workers.step(zeros(workers))
        assert workers.nonfinite_episodes == 3
        fresh = counters(n_envs=3, n_obs_steps=2, nan_at=2)
        fresh.load_state_dict(workers.state_dict())
        assert fresh.nonfinite_episodes == 3
    finally:
        workers.close()


@pytest.mark.parametrize("first_closed", [0, 1])
def test_two_vector_environments_share_workers(first_closed: int) -> None:
    one = worker_counters(n_envs=3)
    other = worker_counters(n_envs=2, beside=one)
    envs = (one, other)
    assert other.workers is one.workers and len(one.workers) == 2
    alone = worker_counters(n_envs=3, n_workers=1, beside=one)
    assert alone.workers is not one.workers
    alone.close()
    sync = [counters(n_envs=n, n_obs_steps=2, limit=7, seed=5) for n in (3, 2)]
    for env, expected in zip(envs, sync):
        np.testing.assert_array_equal(env.reset(), expected.reset())
    for _ in range(4):
        for env, expected in zip(envs, sync):
            assert_equal_steps(env.step(zeros(env)), expected.step(zeros(expected)))
    closed, left = envs[first_closed], envs[1 - first_closed]
    closed.close()
    with pytest.raises(RuntimeError, match="closed"):
        closed.step(zeros(closed))
    assert_equal_steps(left.step(zeros(left)), sync[1 - first_closed].step(zeros(left)))
    left.close()
    assert_all_ended(left)
    fresh = worker_counters(beside=left)  # whose workers are gone
    fresh.reset()
    fresh.close()


def test_a_fault_ends_all_that_share_its_workers() -> None:
    one = worker_counters()
    other = worker_counters(fault_at=2, fault="kill", beside=one)
    other.reset()
    with pytest.raises(SimulatorsLost, match=r"worker 1 \(environments 1 to 2\) died"):
        other.step(zeros(other), np.array([False, True, True]))
    assert_all_ended(other)
    assert_all_ended(one)
    one.close()


def assert_all_ended(env: WorkerVectorEnv) -> None:
    assert not any(process.is_alive() for process in env.workers.processes)
    with pytest.raises((RuntimeError, SimulatorsLost), match=r"closed|died"):
        env.reset()


def test_an_exception_in_a_worker_is_told_with_its_traceback() -> None:
    env = worker_counters(fault_at=2)
    env.reset()
    with pytest.raises(RuntimeError, match=r"(?s)worker 1 failed in environment 1.*fail.*joint of length zero"):
        env.step(zeros(env), np.array([False, True, True]))
    assert_all_ended(env)


def test_a_users_mistake_in_a_worker_stays_one_line() -> None:
    env = worker_counters(fault_at=1, fault="user")
    env.reset()
    with pytest.raises(BurnishError, match=r"^worker 0, environment 0: model.xml: not found$"):
        env.step(zeros(env), np.array([True, False, False]))
    assert_all_ended(env)


def test_a_simulator_that_cannot_be_made_is_told_at_once() -> None:
    with pytest.raises(BurnishError, match=r"worker (0, environment 0|1, environment 1): task\.env_id=Hoper-v5"):
        make_vector_env(
            task("Hoper-v5"),
            n_envs=2,
            n_obs_steps=1,
            n_action_steps=1,
            seed=0,
            backend="workers",
            n_workers=2,
        )


def test_a_worker_that_dies_in_a_step_is_noticed() -> None:
    env = worker_counters(fault_at=2, fault="kill")
    env.reset()
    with pytest.raises(SimulatorsLost, match=r"worker 1 \(environments 1 to 2\) died \(exit code -9\)"):
        env.step(zeros(env), np.array([False, True, True]))
    assert_all_ended(env)


def test_a_worker_that_is_killed_between_steps_is_noticed_at_once() -> None:
    env = worker_counters()
    env.reset()
    pid = env.workers.processes[0].pid
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    started = time.monotonic()
    with pytest.raises(SimulatorsLost, match=r"worker 0 \(environments 0 to 0\) died \(exit code -9\)"):
        env.step(zeros(env))
    assert time.monotonic() - started < 3
    assert_all_ended(env)


def test_a_simulator_that_cannot_be_saved_can_go_on() -> None:
    env = worker_counters(fault="unsupported")
    try:
        env.reset()
        with pytest.raises(NotImplementedError, match="cannot be saved"):
            env.state_dict()
        assert (env.step(zeros(env)).steps == 3).all()
    finally:
        env.close()


def test_workers_ignore_ctrl_c() -> None:
    env = worker_counters()
    try:
        env.reset()
        for process in env.workers.processes:
            assert process.pid is not None
            os.kill(process.pid, signal.SIGINT)
        assert (env.step(zeros(env)).steps == 3).all()
    finally:
        env.close()


ORPHANS = """
import os, signal, sys
from functools import partial
sys.path.insert(0, {tests!r})
from fake_simulator import Counter
from burnish.envs.vector.workers import WorkerVectorEnv
if __name__ == "__main__":
    sizes = dict(n_envs=2, n_obs_steps=1, n_action_steps=1, max_episode_steps=9)
    env = WorkerVectorEnv(Counter, **sizes, seed=0, n_workers=2)
    env.reset()
    print(*[process.pid for process in env.workers.processes], flush=True)
    if {kill}:
        os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.parametrize("kill", [True, False])
def test_workers_end_with_their_parent_and_leave_nothing(kill: bool, tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(ORPHANS.format(tests=str(Path(__file__).parent), kill=kill))
    done = run_python(str(script))
    assert done.returncode == (-signal.SIGKILL if kill else 0) and done.stderr == ""
    pids = [int(pid) for pid in done.stdout.split()]
    assert len(pids) == 2
    wait_until = time.monotonic() + 5
    while any(is_running(pid) for pid in pids) and time.monotonic() < wait_until:
        time.sleep(0.02)
    assert not any(is_running(pid) for pid in pids)


def is_running(pid: int) -> bool:
    status = Path(f"/proc/{pid}/stat")
    try:
        return status.read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


# Backends


def test_backends() -> None:
    sizes: dict[str, Any] = {"n_obs_steps": 1, "n_action_steps": 1, "seed": 0}
    assert isinstance(make_vector_env(HOPPER, n_envs=1, **sizes), SyncVectorEnv)
    assert isinstance(make_vector_env(HOPPER, n_envs=8, n_workers=1, **sizes), SyncVectorEnv)
    assert isinstance(make_vector_env(HOPPER, n_envs=7, n_workers=2, **sizes), SyncVectorEnv)
    workers = make_vector_env(HOPPER, n_envs=8, n_workers=2, **sizes)
    assert isinstance(workers, WorkerVectorEnv)
    workers.close()
    capped = worker_counters(n_envs=2, n_workers=5)
    assert len(capped.workers) == 2
    capped.close()
    with pytest.raises(BurnishError, match="backend=threads: expected one of auto, sync, workers, envpool"):
        make_vector_env(HOPPER, n_envs=1, backend="threads", **sizes)
    lift = TaskConfig(name="lift", suite="robosuite", env_id="Lift", max_episode_steps=300)
    with pytest.raises(BurnishError, match="Gymnasium tasks only"):
        make_vector_env(lift, n_envs=1, backend="envpool", **sizes)


def envpool_env(config: TaskConfig = HOPPER, **kwargs: Any) -> VectorEnv:
    settings: dict[str, Any] = {"n_envs": 4, "n_obs_steps": 2, "n_action_steps": 4, "seed": 0, **kwargs}
    return make_vector_env(config, backend="envpool", n_workers=2, **settings)


@needs_envpool
@pytest.mark.parametrize("env_id", ["Hopper-v5", "Walker2d-v5", "HalfCheetah-v5", "InvertedPendulum-v5"])
def test_envpool_follows_gymnasium_from_the_same_state(env_id: str) -> None:
    """The first observation fixes the state but for x, on which no reward or later observation depends."""
    env = envpool_env(task(env_id), n_envs=2, n_obs_steps=1)
    oracle: Any = gymnasium.make(env_id).unwrapped
    obs = env.reset()
    rng = np.random.default_rng(0)
    hidden = oracle.model.nq + oracle.model.nv - env.obs_spec.state_dim
    mujoco.mj_resetData(oracle.model, oracle.data)
    state = np.concatenate([np.zeros(hidden), obs[0, -1]])
    oracle.set_state(state[: oracle.model.nq], state[oracle.model.nq :])
    for _ in range(6):
        actions = rng.uniform(-1, 1, (2, 4, env.action_dim)).astype(np.float32)
        out = env.step(actions)
        rewards, terminated = [], False
        for action in actions[0]:
            last_obs, reward, terminated, _, _ = oracle.step(action * oracle.action_space.high)
            rewards.append(reward)
            if terminated:
                break
        # the oracle starts from float32 numbers: contacts make 1e-8 grow to 1e-4 within these 24 steps
        np.testing.assert_allclose(out.final_obs[0, -1], last_obs, atol=2e-3)
        np.testing.assert_allclose(out.step_rewards[0, : len(rewards)], rewards, atol=2e-3)
        assert (out.steps[0], out.terminated[0]) == (len(rewards), terminated)
        if terminated:
            break


@needs_envpool
def test_envpool_keeps_the_rules_of_episodes() -> None:
    env = envpool_env(replace(HOPPER, max_episode_steps=10))
    previous = env.reset()
    length = np.zeros(4, int)
    ends = {"terminated": 0, "truncated": 0}
    rng = np.random.default_rng(0)
    for _ in range(60):
        mask = rng.random(4) < 0.8
        out = env.step(rng.uniform(0.5, 1, (4, 4, 3)).astype(np.float32), mask)
        length += out.steps
        np.testing.assert_array_equal(out.steps[~mask], 0)
        np.testing.assert_array_equal(out.obs[~mask], previous[~mask])
        np.testing.assert_allclose(out.reward, out.step_rewards.sum(1), rtol=1e-6)
        ended = out.terminated | out.truncated
        np.testing.assert_array_equal(out.steps[mask & ~ended], 4)
        np.testing.assert_array_equal(length[out.truncated], 10)
        np.testing.assert_array_equal(out.obs[~ended], out.final_obs[~ended])
        assert not (out.terminated & out.truncated).any() and (length <= 10).all()
        unhealthy = (out.final_obs[:, -1, 0] < 0.7) | (np.abs(out.final_obs[:, -1, 1]) > 0.2)
        np.testing.assert_array_equal(unhealthy[mask], out.terminated[mask])
        assert np.abs(out.obs[ended, :, 0] - 1.25).max(initial=0) < 0.006  # reset noise is 0.005
        np.testing.assert_array_equal(out.obs[ended, 0], out.obs[ended, 1])
        length[ended] = 0
        previous = out.obs
        ends["terminated"] += out.terminated.sum()
        ends["truncated"] += out.truncated.sum()
    assert ends["truncated"] > 5
    env.close()


@needs_envpool
def test_envpool_without_autoreset_and_with_seeds() -> None:
    env = envpool_env(replace(HOPPER, max_episode_steps=4), autoreset=False)
    first = env.reset([1, 2, 3, 1])
    np.testing.assert_array_equal(first[0], first[3])
    assert (first[0] != first[1]).any()
    out = env.step(zeros(env))
    assert out.truncated.all()
    np.testing.assert_array_equal(out.obs, out.final_obs)
    with pytest.raises(RuntimeError, match="environment 0 has no running episode"):
        env.step(zeros(env))
    assert (env.reset() != first).any()
    np.testing.assert_array_equal(env.reset([1, 2, 3, 1]), first)
    with pytest.raises(NotImplementedError, match="backend=sync"):
        env.state_dict()


@needs_envpool
def test_envpool_refuses_what_it_does_not_have() -> None:
    with pytest.raises(BurnishError, match="nearest: Hopper-v"):
        envpool_env(task("Hoper-v5"))
    with pytest.raises(BurnishError, match="env_kwargs"):
        envpool_env(replace(HOPPER, env_kwargs={"ctrl_cost_weight": 1}))
