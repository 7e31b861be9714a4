"""`step` of Gymnasium's planar robots without the Python that costs as much as the simulation itself.

Bitwise the numbers of `HopperEnv.step`, `Walker2dEnv.step` and `HalfCheetahEnv.step` (v5; the tests compare),
without the info dict and without computing twice whether the robot is healthy.
`benchmarks/bench_envs.py` measures it beside the simulation alone.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from burnish.envs.base import Floats

FastStep = Callable[[Floats], tuple[Floats, float, bool]]


def fast_step(env: Any) -> FastStep | None:
    """The fast `step` of an unwrapped Gymnasium environment -> control -> (observation, reward, terminated);
    None where there is none for this class (or a subclass: it may have changed what a step means)."""
    from gymnasium.envs.mujoco.half_cheetah_v5 import HalfCheetahEnv
    from gymnasium.envs.mujoco.hopper_v5 import HopperEnv
    from gymnasium.envs.mujoco.walker2d_v5 import Walker2dEnv

    is_healthy = {HopperEnv: _hopper_is_healthy, Walker2dEnv: _walker2d_is_healthy}.get(type(env))
    if env.render_mode is not None:
        return None
    if is_healthy is not None:
        return _walker_step(env, is_healthy(env))
    return _half_cheetah_step(env) if type(env) is HalfCheetahEnv else None


IsHealthy = Callable[[NDArray[np.float64], NDArray[np.float64]], bool]


def _hopper_is_healthy(env: Any) -> IsHealthy:
    min_state, max_state = env._healthy_state_range
    min_z, max_z = env._healthy_z_range
    min_angle, max_angle = env._healthy_angle_range

    def is_healthy(qpos: NDArray[np.float64], qvel: NDArray[np.float64]) -> bool:
        z, angle = qpos.item(1), qpos.item(2)
        return (
            min_z < z < max_z
            and min_angle < angle < max_angle
            and all(min_state < value < max_state for value in qpos.tolist()[2:] + qvel.tolist())
        )

    return is_healthy


def _walker2d_is_healthy(env: Any) -> IsHealthy:
    min_z, max_z = env._healthy_z_range
    min_angle, max_angle = env._healthy_angle_range

    def is_healthy(qpos: NDArray[np.float64], qvel: NDArray[np.float64]) -> bool:
        return min_z < qpos.item(1) < max_z and min_angle < qpos.item(2) < max_angle

    return is_healthy


def _walker_step(env: Any, is_healthy: IsHealthy) -> FastStep:
    simulate, data, dt = _simulate(env), env.data, env.dt
    skipped = int(env._exclude_current_positions_from_observation)
    lowest, highest = np.full(env.model.nv, -10.0), np.full(env.model.nv, 10.0)

    def step(control: Floats) -> tuple[Floats, float, bool]:
        x_before = data.qpos[0]
        simulate(control)
        qpos, qvel = data.qpos, data.qvel
        healthy = is_healthy(qpos, qvel)
        velocity = np.minimum(np.maximum(qvel, lowest), highest)
        obs = np.concatenate((qpos[skipped:], velocity), dtype=np.float32, casting="same_kind")
        forward_reward = env._forward_reward_weight * ((qpos[0] - x_before) / dt)
        control_cost = env._ctrl_cost_weight * np.add.reduce(np.square(control))
        reward = forward_reward + healthy * env._healthy_reward - control_cost
        return obs, reward, not healthy and env._terminate_when_unhealthy

    return step


def _half_cheetah_step(env: Any) -> FastStep:
    simulate, data, dt = _simulate(env), env.data, env.dt
    skipped = int(env._exclude_current_positions_from_observation)

    def step(control: Floats) -> tuple[Floats, float, bool]:
        x_before = data.qpos[0]
        simulate(control)
        qpos = data.qpos
        obs = np.concatenate((qpos[skipped:], data.qvel), dtype=np.float32, casting="same_kind")
        forward_reward = env._forward_reward_weight * ((qpos[0] - x_before) / dt)
        control_cost = env._ctrl_cost_weight * np.add.reduce(np.square(control))
        return obs, forward_reward - control_cost, False

    return step


def _simulate(env: Any) -> Callable[[Floats], None]:
    """`MujocoEnv.do_simulation` without mj_rnePostConstraint: these robots observe no contact forces."""
    from mujoco import mj_step

    model, data, frame_skip = env.model, env.data, env.frame_skip

    def simulate(control: Floats) -> None:
        data.ctrl[:] = control
        mj_step(model, data, frame_skip)

    return simulate
