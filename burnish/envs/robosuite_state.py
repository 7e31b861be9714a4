"""Saving and restoring a running robosuite episode, so that it goes on bitwise where it stopped."""

from __future__ import annotations

from typing import Any

import mujoco
import numpy as np
from numpy.typing import NDArray

_PHYSICS = mujoco.mjtState.mjSTATE_INTEGRATION
_MODEL_FIELDS = ("body_pos", "body_quat")  # some tasks place fixed objects (a door, targets) in the model


def episode_state(env: Any) -> dict[str, Any]:
    """What decides the future of the episode: physics with warm start, poses drawn into the model, generator,
    rest posture of the arms, gripper commands (robosuite integrates them), the clocks of the observables and
    their cache, from which some sensors read what others measured one step earlier.

    The environment must run robosuite's plain controllers (`robosuite_fast.speed_up` gives True), whose
    goals are set anew by each action.
    """
    observables = list(env._observables.values())
    return {
        "physics": _physics(env),
        "model": {field: getattr(env.sim.model, field).copy() for field in _MODEL_FIELDS},
        "rng": env.rng.bit_generator.state,
        "initial_joint": [part.initial_joint.copy() for part in _arm_controllers(env)],
        "gripper_action": [gripper.current_action.copy() for gripper in _grippers(env)],
        "observable_time": [float(item._time_since_last_sample) for item in observables],
        "observable_sampled": [bool(item._sampled) for item in observables],
        "obs_cache": {name: np.array(value) for name, value in env._obs_cache.items()},
        "timestep": int(env.timestep),
        "cur_time": float(env.cur_time),
        "done": bool(env.done),
    }


def restore_episode(env: Any, state: dict[str, Any]) -> None:
    """The inverse of `episode_state`, in any instance of the same task."""
    for field, value in state["model"].items():
        getattr(env.sim.model, field)[:] = value
    _set_physics(env, state["physics"])
    env.sim.forward()  # positions of bodies and sites, for rendering and success
    _set_physics(env, state["physics"])  # forward has overwritten the warm start
    env.rng.bit_generator.state = state["rng"]
    for part, joint in zip(_arm_controllers(env), state["initial_joint"], strict=True):
        part.initial_joint = joint.copy()
    for gripper, action in zip(_grippers(env), state["gripper_action"], strict=True):
        gripper.current_action = action.copy()
    clocks = zip(state["observable_time"], state["observable_sampled"], strict=True)
    for item, (time, sampled) in zip(env._observables.values(), clocks, strict=True):
        item._time_since_last_sample, item._sampled = time, sampled
    env._obs_cache = {name: value.copy() for name, value in state["obs_cache"].items()}
    env.timestep, env.cur_time, env.done = state["timestep"], state["cur_time"], state["done"]


def _physics(env: Any) -> NDArray[np.float64]:
    model, data = env.sim.model._model, env.sim.data._data
    state = np.empty(mujoco.mj_stateSize(model, _PHYSICS))
    mujoco.mj_getState(model, data, state, _PHYSICS)
    return state


def _set_physics(env: Any, state: NDArray[np.float64]) -> None:
    mujoco.mj_setState(env.sim.model._model, env.sim.data._data, state, _PHYSICS)


def _arm_controllers(env: Any) -> list[Any]:
    return [robot.part_controllers[arm] for robot in env.robots for arm in robot.arms]


def _grippers(env: Any) -> list[Any]:
    return [robot.gripper[arm] for robot in env.robots for arm in robot.arms if robot.has_gripper[arm]]
