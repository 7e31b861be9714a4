"""Saving and restoring a running robosuite episode, so that it goes on bitwise where it stopped."""

from __future__ import annotations

from typing import Any

import mujoco
import numpy as np
from numpy.typing import NDArray

_PHYSICS = mujoco.mjtState.mjSTATE_INTEGRATION
_MODEL_FIELDS = ("body_pos", "body_quat")  # some tasks place fixed objects (a door, targets) in the model

# The rest posture, and what the arm's controller last read from the simulator: used once more after a reset.
_ARM_FIELDS = (
    *("initial_joint", "joint_pos", "joint_vel", "ref_pos", "ref_ori_mat", "ref_pos_vel", "ref_ori_vel"),
    *("J_pos", "J_ori", "J_full", "mass_matrix"),
)


def episode_state(env: Any) -> dict[str, Any]:
    """What decides the future of the episode: physics with warm start, poses drawn into the model, generator,
    the arms' controllers, gripper commands (robosuite integrates them), the clocks of the observables and
    their cache, from which some sensors read what others measured one step earlier.

    The environment must run robosuite's plain controllers (`robosuite_fast.not_plain` gives None), whose goals are set
    anew by each action.
    """
    observables = list(env._observables.values())
    return {
        "physics": _physics(env),
        "model": {field: getattr(env.sim.model, field).copy() for field in _MODEL_FIELDS},
        "rng": env.rng.bit_generator.state,
        "arms": [{field: getattr(part, field).copy() for field in _ARM_FIELDS} for part in _arms(env)],
        "arms_read_again": [bool(part.new_update) for part in _arms(env)],
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
    for part, fields, again in zip(_arms(env), state["arms"], state["arms_read_again"], strict=True):
        for field, value in fields.items():
            setattr(part, field, value.copy())
        part.mass_matrix = np.asfortranarray(part.mass_matrix)  # robosuite's layout: the last bit depends on it
        part.new_update = again
    for gripper, action in zip(_grippers(env), state["gripper_action"], strict=True):
        gripper.current_action = action.copy()
    clocks = zip(state["observable_time"], state["observable_sampled"], strict=True)
    for item, (time, sampled) in zip(env._observables.values(), clocks, strict=True):
        item._time_since_last_sample, item._sampled = time, sampled
    env._obs_cache = {name: value.copy() for name, value in state["obs_cache"].items()}
    env.timestep, env.cur_time, env.done = state["timestep"], state["cur_time"], state["done"]


def forget_last_update(env: Any) -> None:
    """Let the controllers look at the simulator in the next step. After a reset they would still use the
    pose of the reset, and a delta action would start from there."""
    for robot in env.robots:
        for part in robot.part_controllers.values():
            part.new_update = True


def _physics(env: Any) -> NDArray[np.float64]:
    model, data = env.sim.model._model, env.sim.data._data
    state = np.empty(mujoco.mj_stateSize(model, _PHYSICS))
    mujoco.mj_getState(model, data, state, _PHYSICS)
    return state


def _set_physics(env: Any, state: NDArray[np.float64]) -> None:
    mujoco.mj_setState(env.sim.model._model, env.sim.data._data, state, _PHYSICS)


def _arms(env: Any) -> list[Any]:
    return [robot.part_controllers[arm] for robot in env.robots for arm in robot.arms]


def _grippers(env: Any) -> list[Any]:
    return [robot.gripper[arm] for robot in env.robots for arm in robot.arms if robot.has_gripper[arm]]
