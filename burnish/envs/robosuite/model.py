"""robosuite's environments on models without what is only there to be seen, and the whole model where it is seen.

Lift's model takes 61 MiB: 3 for what moves and touches, the others for textures and for meshes that touch nothing. A
lean environment has spheres in their place, so that every number keeps its index. Nothing that is simulated depends on
them: robosuite's `inertiagrouprange` leaves them out of all masses. Trajectories are the same bitwise
(tests/test_robosuite.py).
"""

from __future__ import annotations

import copy
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from types import MethodType
from typing import Any

import mujoco
import numpy as np

# What robosuite asks for when it makes pictures itself.
_PICTURES = ("has_renderer", "has_offscreen_renderer", "use_camera_obs")

# Sensors that see geometry, also such that touches nothing; older MuJoCos do not have all of them.
_SEEING_SENSORS = ("mjSENS_RANGEFINDER", "mjSENS_GEOMDIST", "mjSENS_GEOMNORMAL", "mjSENS_GEOMFROMTO")

# What an episode, or robosuite's display of it, writes into a model.
_WRITTEN_FIELDS = ("body_pos", "body_quat", "site_size", "site_rgba", "geom_rgba")

# What a picture is drawn from, beside the geoms.
_DRAWN_FIELDS = (
    *("xpos", "xquat", "xmat", "xipos", "ximat", "subtree_com", "site_xpos", "site_xmat"),
    *("cam_xpos", "cam_xmat", "light_xpos", "light_xdir"),
    *("ten_length", "ten_wrapadr", "ten_wrapnum", "wrap_obj", "wrap_xpos"),
)


def make_env(env_class: Any, kwargs: dict[str, Any], *, lean: bool) -> Any:
    """A robosuite environment, on a lean model unless it makes pictures itself.

    One that is lean has an attribute `whole_xml`: what its model would be compiled from.
    """
    env = env_class.__new__(env_class)
    if lean and not any(kwargs.get(key) for key in _PICTURES):
        env._load_model = MethodType(_load_model, env)
        env._initialize_sim = MethodType(_initialize_sim, env)
    env.__init__(**kwargs)
    return env


def is_lean(env: Any) -> bool:
    return "whole_xml" in vars(env)


def whole_simulation(env: Any) -> Any:
    """robosuite's simulation of a lean environment's whole model, to be brought up to date by `follow`."""
    from robosuite.utils.binding_utils import MjSim

    return MjSim.from_xml_string(env.whole_xml)


def follow(whole: Any, env: Any) -> None:
    """Put everything that is drawn of the whole simulation where the lean environment has it.

    Copied, not computed from the joints' positions: these are one substep ahead of the rest after a step.
    """
    model, data = whole.model._model, whole.data._data
    for field in _WRITTEN_FIELDS:
        getattr(model, field)[:] = getattr(env.sim.model, field)
    for field in _DRAWN_FIELDS:
        getattr(data, field)[:] = getattr(env.sim.data, field)
    for geom, body in enumerate(model.geom_bodyid):
        position, orientation = model.geom_pos[geom], model.geom_quat[geom]
        frame = model.geom_sameframe[geom]
        mujoco.mj_local2Global(data, data.geom_xpos[geom], data.geom_xmat[geom], position, orientation, body, frame)


def whole_xml(env: Any) -> str:
    """The XML of the environment's whole model as the episode has made it (a door's place is written into it).

    Without `content_type`, which MuJoCo writes for the files that it has not read before in this process.
    """
    if is_lean(env):
        saved = _saved_xml(env.whole_xml, tuple(getattr(env.sim.model, field).tobytes() for field in _WRITTEN_FIELDS))
    else:
        saved = env.sim.model.get_xml()
    return re.sub(r' content_type="[^"]*"', "", saved)


@lru_cache(maxsize=1)  # most tasks' episodes write the same
def _saved_xml(xml: str, written: tuple[bytes, ...]) -> str:
    model = mujoco.MjModel.from_xml_string(xml)
    for field, content in zip(_WRITTEN_FIELDS, written, strict=True):
        array = getattr(model, field)
        array.flat = np.frombuffer(content, array.dtype)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.xml"
        mujoco.mj_saveLastXML(str(path), model)
        return path.read_text()


def _load_model(self: Any) -> None:
    with _no_robot_models():
        type(self)._load_model(self)


@contextmanager
def _no_robot_models() -> Iterator[None]:
    """Robots that are loaded inside are not compiled for themselves as well: nothing in robosuite 1.5.2 asks for it."""
    from robosuite.models.robots.robot_model import RobotModel

    compile_robot = RobotModel.set_mujoco_model
    RobotModel.set_mujoco_model = lambda self, mujoco_model=None: None
    try:
        yield
    finally:
        RobotModel.set_mujoco_model = compile_robot


def _initialize_sim(self: Any, xml_string: str | None = None) -> None:
    """`MujocoEnv._initialize_sim` (robosuite 1.5.2)."""
    from robosuite.utils.binding_utils import MjSim

    xml = xml_string if xml_string else self.model.get_xml()
    for processor in self._xml_processors:
        xml = processor(xml)
    self.whole_xml = xml
    self.sim = MjSim(copy.copy(lean_model(xml)))  # a copy: tasks write into their models
    self.sim.forward()
    self.initialize_time(self.control_freq)


@lru_cache(maxsize=1)  # one task's environments are made one after the other
def lean_model(xml: str) -> mujoco.MjModel:
    """The model of an XML without what is only there to be seen; not to be written into."""
    spec = mujoco.MjSpec.from_string(xml)
    if not _sees_geometry(spec):
        _leave_out_what_is_seen_only(spec)
    return spec.compile()


def _sees_geometry(spec: mujoco.MjSpec) -> bool:
    """Whether something in this model may depend on geometry that touches nothing (sleep, among the flags, does)."""
    seeing = [getattr(mujoco.mjtSensor, name) for name in _SEEING_SENSORS if hasattr(mujoco.mjtSensor, name)]
    return any(sensor.type in seeing for sensor in spec.sensors) or bool(spec.pairs) or bool(spec.option.enableflags)


def _leave_out_what_is_seen_only(spec: mujoco.MjSpec) -> None:
    first_weighed, last_weighed = spec.compiler.inertiagrouprange
    for geom in spec.geoms:
        weighed = first_weighed <= geom.group <= last_weighed
        if geom.type == mujoco.mjtGeom.mjGEOM_MESH and not (geom.contype or geom.conaffinity or weighed):
            geom.type, geom.meshname, geom.size = mujoco.mjtGeom.mjGEOM_SPHERE, "", [0.01, 0, 0]
    used = {geom.meshname for geom in spec.geoms}
    unused: list[Any] = [mesh for mesh in spec.meshes if mesh.name not in used]
    for material in spec.materials:
        material.textures = [""] * len(material.textures)
    for element in [*unused, *spec.textures]:
        if hasattr(spec, "delete"):
            spec.delete(element)
        else:  # MuJoCo 3.3.0
            element.delete()
