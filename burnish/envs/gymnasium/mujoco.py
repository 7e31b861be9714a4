"""Gymnasium's own MuJoCo tasks (Hopper, Walker2d, HalfCheetah, Ant, ...), whose state is known to be whole."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from burnish.envs.base import Floats, Step
from burnish.envs.opengl import OPENGL
from burnish.errors import BurnishError
from burnish.foreign import told_as
from burnish.observations import ObsSpec

# What Gymnasium's classes and the renderer read from MjData between two steps. After mj_step these belong to
# the last forward pass *inside* the step, so mj_forward on the restored state would not give them again.
_DERIVED_FIELDS = (
    "xpos", "xquat", "xmat", "xipos", "ximat", "xanchor", "xaxis", "geom_xpos", "geom_xmat",
    "site_xpos", "site_xmat", "cam_xpos", "cam_xmat", "light_xpos", "light_xdir", "subtree_com",
    "ten_length", "ten_velocity", "cinert", "cvel", "cacc", "cfrc_int", "cfrc_ext",
    "qacc", "qfrc_actuator", "qfrc_constraint", "actuator_force",
)  # fmt: skip


class MujocoSimulator:
    """One of them, unwrapped."""

    def __init__(self, env: Any) -> None:
        import mujoco

        from burnish.envs.gymnasium.fast_step import fast_step

        self._mujoco = mujoco
        self._env = env
        self.action_bounds = low, high = self._env.action_space.low, self._env.action_space.high
        self._half_range = (high - low) / 2
        self._center = (high + low) / 2
        self.obs_spec = ObsSpec.of_state(self._env.observation_space.shape[0])
        self.action_dim: int = self._env.action_space.shape[0]
        self._lowest = np.full(self.action_dim, -1.0, np.float32)
        self._highest = np.full(self.action_dim, 1.0, np.float32)
        self._step = fast_step(self._env) or self._gymnasium_step
        self._warnings = self._env.data.warning
        self._bad_qpos = int(mujoco.mjtWarning.mjWARN_BADQPOS)
        self._bad_qvel = int(mujoco.mjtWarning.mjWARN_BADQVEL)
        self._bad_qacc = int(mujoco.mjtWarning.mjWARN_BADQACC)
        self._renderer: Any = None

    def reset(self, seed: int | None) -> Floats:
        return self._env.reset(seed=seed)[0].astype(np.float32)

    def step(self, action: Floats) -> Step:
        """One control step -> `Step`; `success` is always False.

        Where the simulation blew up, observation and reward are NaN: MuJoCo itself restarts such a simulation
        silently, in the middle of the episode, from the model's default pose.
        """
        action = np.minimum(np.maximum(np.asarray(action, np.float32), self._lowest), self._highest)
        obs, reward, terminated = self._step(action * self._half_range + self._center)
        number = self._warnings.number
        if number[self._bad_qpos] or number[self._bad_qvel] or number[self._bad_qacc]:
            return Step(np.full(self.obs_spec.state_dim, np.nan, np.float32), float("nan"), False, False)
        return Step(obs, float(reward), terminated, False)

    def _gymnasium_step(self, control: Floats) -> tuple[Floats, float, bool]:
        obs, reward, terminated, _, _ = self._env.step(control)
        return obs.astype(np.float32), reward, bool(terminated)

    def get_state(self) -> dict[str, Any]:
        """mujoco's integration state, the derived arrays that the next step reads, the environment's own
        arrays (goals) and its random generator; integers beyond 64 bits as decimal strings."""
        model, data = self._env.model, self._env.data
        integration = np.empty(self._mujoco.mj_stateSize(model, self._integration), np.float64)
        self._mujoco.mj_getState(model, data, integration, self._integration)
        generator = self._env.np_random.bit_generator.state
        return {
            "integration": integration,
            "derived": {name: getattr(data, name).copy() for name in _DERIVED_FIELDS},
            "attributes": {k: v.copy() for k, v in vars(self._env).items() if isinstance(v, np.ndarray)},
            "generator": generator | {"state": {k: str(v) for k, v in generator["state"].items()}},
        }

    def set_state(self, state: dict[str, Any]) -> None:
        """Take a state from `get_state`. Raises BurnishError where it is another environment's."""
        model, data = self._env.model, self._env.data
        size = self._mujoco.mj_stateSize(model, self._integration)
        if len(state["integration"]) != size:
            raise BurnishError(
                f"saved state has {len(state['integration'])} numbers, {self._env.spec.id} expects {size}: "
                "it was saved with another environment or another mujoco version"
            )
        self._mujoco.mj_resetData(model, data)
        self._mujoco.mj_setState(model, data, state["integration"], self._integration)
        for name, array in state["derived"].items():
            if np.shape(array) != (expected := getattr(data, name).shape):
                raise BurnishError(f"saved state has {name} of the shape {np.shape(array)}, expected {expected}")
            getattr(data, name)[:] = array
        for name, array in state["attributes"].items():
            setattr(self._env, name, array.copy())
        generator = state["generator"]
        self._env.np_random.bit_generator.state = generator | {
            "state": {k: int(v) for k, v in generator["state"].items()}
        }

    @property
    def _integration(self) -> int:
        return int(self._mujoco.mjtState.mjSTATE_INTEGRATION)

    def render(self, width: int, height: int) -> NDArray[np.uint8]:
        """RGB image (height, width, 3), with the camera Gymnasium gives this task.

        Raises BurnishError where there is no offscreen OpenGL.
        """
        if self._renderer is None or (self._renderer.width, self._renderer.height) != (width, height):
            self._close_renderer()
            self._renderer = self._make_renderer(width, height)
        self._renderer.update_scene(self._env.data, camera=self._camera())
        return self._renderer.render()

    def _make_renderer(self, width: int, height: int) -> Any:
        framebuffer = self._env.model.vis.global_
        framebuffer.offwidth = max(framebuffer.offwidth, width)
        framebuffer.offheight = max(framebuffer.offheight, height)
        with told_as("no OpenGL for rendering", OPENGL):
            return self._mujoco.Renderer(self._env.model, height, width)

    def _camera(self) -> Any:
        camera = self._mujoco.MjvCamera()
        self._mujoco.mjv_defaultFreeCamera(self._env.model, camera)
        for name, value in (self._env.mujoco_renderer.default_cam_config or {}).items():
            if isinstance(value, np.ndarray):
                getattr(camera, name)[:] = value
            else:
                setattr(camera, name, value)
        if camera.trackbodyid >= 0:
            camera.type = self._mujoco.mjtCamera.mjCAMERA_TRACKING
        return camera

    def _close_renderer(self) -> None:
        if self._renderer is not None:
            self._renderer.close()
            self._renderer = None

    def close(self) -> None:
        self._close_renderer()
        self._env.close()
