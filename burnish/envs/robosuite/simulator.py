"""robosuite's manipulation tasks behind the `Simulator` interface."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from burnish.envs.base import Floats, Step
from burnish.envs.opengl import OPENGL
from burnish.envs.robosuite.env import is_robosuites_own, make_task_env
from burnish.envs.robosuite.fast_step import advance, not_plain
from burnish.envs.robosuite.model import follow, is_lean, whole_simulation
from burnish.envs.robosuite.observables import disable_unneeded, observables_of, read, robosuite_name
from burnish.envs.robosuite.state import episode_state, restore_episode
from burnish.envs.task import TaskConfig
from burnish.errors import BurnishError
from burnish.foreign import told_as
from burnish.observations import ObsSpec

# They keep wiped markers, or the object chosen for the episode, in Python.
_STATEFUL_TASKS = ("Wipe", "PickPlaceSingle", "NutAssemblySingle")


class RobosuiteSimulator:
    """One robosuite environment (Lift, PickPlaceCan, NutAssemblySquare, TwoArmTransport, ToolHang, ...).

    Observations are `task.obs_keys` in robomimic's names ("object" is robosuite's "object-state"),
    concatenated. Reward and success are robosuite's own: sparse 0/1 unless `reward_shaping`.

    Resets: the default `hard_reset=False` keeps the model and only draws robot and object poses (Lift:
    1 ms instead of 70). What robosuite draws while loading a model, like the size of Lift's
    cube (2.0 to 2.2 cm half width), is then that of one fixed seed in every instance; with
    `env_kwargs.hard_reset=true` it is drawn anew in each episode. Either way `reset(seed)` depends on
    the seed alone (but robosuite's PickPlaceSingle and NutAssemblySingle choose from a `set` of names, whose
    order differs between processes unless PYTHONHASHSEED is set).

    Args:
        lean: leave out of the model what is only there to be seen (`burnish.envs.robosuite.model`), with the same
            numbers; what is rendered is built when it is asked for.

    Raises BurnishError for an unknown environment, robot or observation key.
    """

    def __init__(self, task: TaskConfig, *, lean: bool = True) -> None:
        if task.sensors:
            raise BurnishError(
                f"task.sensors=[{', '.join(task.sensors)}]: robosuite gives a state alone here: expected [] (a "
                "policy of recorded pictures is pretrained without a simulator: evaluation.episodes=0)"
            )
        self.env = make_task_env(task.env_id, task.env_kwargs, fast=task.fast, lean=lean)
        self._keys = list(task.obs_keys)
        self._scene: Scene | None = None
        self._reseed(None)
        with told_as(f"robosuite's {task.env_id} cannot be reset"):
            obs = self.env.reset()
        sizes = {key: np.size(select_obs(obs, key)) for key in self._keys}
        self.obs_spec = ObsSpec.of_state(sum(sizes.values()), sizes)
        self._compiled = "step" in vars(self.env)
        if self._compiled:
            if is_robosuites_own(self.env):  # another's reward may look at them
                disable_unneeded(self.env, self._keys)
            self._observables = observables_of(self.env, self._keys)
        low, high = self.env.action_spec
        self.action_dim = len(low)
        self.action_bounds = low, high
        self._action_center, self._action_scale = (high + low) / 2, (high - low) / 2

    def reset(self, seed: int | None) -> Floats:
        if seed is not None:
            self._reseed(seed)
        obs = self._flatten(self.env.reset())
        if self._compiled:
            self._observables = observables_of(self.env, self._keys)  # some tasks choose anew which are active
        return obs

    def step(self, action: Floats) -> Step:
        env, clipped = self.env, np.clip(np.asarray(action, np.float64), -1.0, 1.0)
        command = self._action_center + self._action_scale * clipped
        if self._compiled:
            reward, done, _ = advance(env, command)
            obs = read(self._observables)
        else:
            all_obs, reward, done, _ = env.step(command)
            obs = self._flatten(all_obs)
        at_limit = (
            not env.ignore_done and env.timestep >= env.horizon
        )  # its own time limit, which `done` counts as an end
        return Step(obs, float(reward), done and not at_limit, bool(env._check_success()), done and at_limit)

    def get_state(self) -> dict[str, Any]:
        """Raises NotImplementedError where the model or the task keeps more than `episode_state` knows, as a class of
        one's own may."""
        env = self.env
        stateful = type(env).__name__ in _STATEFUL_TASKS or not is_robosuites_own(env)
        if not_plain(env) or env.hard_reset or stateful:
            raise NotImplementedError(f"{type(env).__name__} cannot be saved: episodes start anew at resume")
        return episode_state(env)

    def set_state(self, state: dict[str, Any]) -> None:
        restore_episode(self.env, state)

    def render(self, width: int, height: int) -> NDArray[np.uint8]:
        """RGB image (height, width, 3) of the "agentview" camera, which every task has.

        Raises BurnishError without OpenGL.
        """
        env = self.env
        if self._scene is None or self._scene.shows is not env.sim:  # a hard reset has made another
            self._scene = Scene(env)
        return self._scene.picture(width, height)

    def close(self) -> None:
        self._scene = None
        self.env.close()

    def _reseed(self, seed: int | None) -> None:
        # In place: samplers and objects of the model hold this very generator.
        self.env.rng.bit_generator.state = np.random.default_rng(seed).bit_generator.state

    def _flatten(self, obs: dict[str, Any]) -> Floats:
        return np.concatenate([np.ravel(select_obs(obs, key)) for key in self._keys], dtype=np.float32)


def select_obs(obs: dict[str, Any], key: str) -> Any:
    """One observation by robomimic's name. Raises BurnishError listing the keys that are there."""
    name = robosuite_name(key)
    if name not in obs:
        keys = ", ".join(sorted("object" if name == "object-state" else name for name in obs))
        raise BurnishError(f"task.obs_keys: robosuite gives no {key!r}; it gives: {keys}")
    return obs[name]


class Scene:
    """What an environment looks like: a lean one has its whole model built here, for that alone.

    Raises BurnishError without OpenGL.
    """

    def __init__(self, env: Any) -> None:
        self.shows = env.sim
        self._env = env
        self._whole = whole_simulation(env) if is_lean(env) else env.sim
        if self._whole._render_context_offscreen is None:
            open_renderer(self._whole)

    def picture(self, width: int, height: int) -> NDArray[np.uint8]:
        if self._whole is not self._env.sim:
            follow(self._whole, self._env)
        self._whole._render_context_offscreen.gl_ctx.make_current()  # another simulator may have rendered since
        return np.ascontiguousarray(self._whole.render(width=width, height=height, camera_name="agentview")[::-1])


def open_renderer(simulation: Any) -> None:
    """Give a robosuite simulation an offscreen OpenGL context that shows visual, not collision, geometry."""
    from robosuite.utils.binding_utils import MjRenderContextOffscreen

    class Context(MjRenderContextOffscreen):
        def __del__(self) -> None:
            if hasattr(self, "con"):  # robosuite's own fails noisily for a context that was never opened
                super().__del__()

    warm_start = simulation.data.qacc_warmstart.copy()
    try:
        with told_as("no OpenGL for rendering", OPENGL):
            context = Context(simulation, device_id=-1)
    finally:
        simulation.data.qacc_warmstart[:] = warm_start  # opening a context runs forward()
    context.vopt.geomgroup[0], context.vopt.geomgroup[1] = 0, 1
