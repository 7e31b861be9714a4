"""Putting a robosuite environment into recorded simulator states."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from typing import Any

import numpy as np
from numpy.typing import NDArray

from burnish.envs.robosuite.model import whole_xml
from burnish.envs.robosuite.state import forget_last_update
from burnish.errors import BurnishError
from burnish.foreign import one_line, told_as

# Where these put their door and their dirt is part of the model, not of the state.
PLACED_IN_MODEL = ("Door", "Wipe")


def begin_episode(env: Any, model_file: str | None, first_state: NDArray[np.float64], where: str) -> None:
    """Reset `env` for a recorded episode and restore its first state.

    The arms' rest posture (towards which the controller's null space pulls) becomes that of the first state:
    with it 4 of 5 human demonstrations succeed open-loop, with robosuite 1.5's standard posture 3.

    Arguments:
        model_file: the recorded XML, which places fixed objects; None, or only a file's name in old files.
        first_state: (S,) flattened MuJoCo state: time, positions, velocities.
        where: file and episode, for the error message.

    Raises BurnishError if the state does not fit the model, or the task needs the XML and there is none.
    """
    env.deterministic_reset = True  # no poses are drawn: all come from the recording
    env.reset()
    env.deterministic_reset = False
    xml = _parse(model_file, where)
    if xml is not None:
        _place_fixed_bodies(env, xml, where)
    elif type(env).__name__ in PLACED_IN_MODEL:
        raise BurnishError(
            f"{where}: no XML in attribute model_file, which tells where {type(env).__name__} has its fixed "
            f"objects: record it anew with robosuite 1.4 or later"
        )
    restore(env, first_state, where)
    env._obs_cache = {}
    for robot in env.robots:
        for arm in robot.arms:
            part = robot.part_controllers[arm]
            part.initial_joint = np.array(env.sim.data.qpos[part.qpos_index])


def restore(env: Any, state: NDArray[np.float64], where: str) -> None:
    """Set a flattened MuJoCo state (S,) and compute everything that follows from it.

    Raises BurnishError if its size is not that of the model.
    """
    model = env.sim.model
    expected = 1 + model.nq + model.nv
    if len(state) != expected:
        raise BurnishError(
            f"{where}: states of {len(state)} numbers, but {type(env).__name__} with "
            f"{', '.join(robot.name for robot in env.robots)} has {expected} (time, {model.nq} positions, "
            f"{model.nv} velocities): give the task and robot it was recorded with"
        )
    env.sim.set_state_from_flattened(state)
    env.sim.forward()
    forget_last_update(env)


def model_xml(env: Any) -> str:
    """The XML of the present model, with assets relative to where robosuite is installed."""
    return re.sub(r'file="[^"]*/(robosuite/models/assets/)', r'file="\1', whole_xml(env))


def _parse(model_file: str | None, where: str) -> ET.Element | None:
    """The XML's root, or None if there is only a file's name (robosuite 1.0 to 1.3) or nothing."""
    if model_file is None or not model_file.lstrip().startswith("<"):
        return None
    with told_as(f"{where}: attribute model_file is no complete XML"):
        return ET.fromstring(model_file)


def _place_fixed_bodies(env: Any, xml: ET.Element, where: str) -> None:
    """Move bodies that are welded to the world (doors, targets; not robots) to where the XML has them.

    Raises BurnishError for places that are not three finite numbers, and orientations that are not four.
    """
    model = env.sim.model
    of_robots = {name for robot in env.robots for name in robot.robot_model.bodies}
    for body in xml.iter("body"):
        name = body.get("name", "")
        if name not in model.body_names or name in of_robots:
            continue
        index = model.body_name2id(name)
        if model.body_weldid[index] == 0:
            model.body_pos[index] = _numbers(body.get("pos", "0 0 0"), 3, f"{where}: pos of {name} in model_file")
            model.body_quat[index] = _numbers(body.get("quat", "1 0 0 0"), 4, f"{where}: quat of {name} in model_file")


def _numbers(text: str, n: int, where: str) -> NDArray[np.float64]:
    try:
        found = np.array([float(word) for word in text.split()])
    except ValueError:
        found = np.zeros(0)
    if found.shape != (n,) or not np.isfinite(found).all():
        raise BurnishError(f"{where} is {one_line(text, 60)}: expected {n} numbers")
    return found
