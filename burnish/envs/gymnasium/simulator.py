"""Gymnasium's environments as a `Simulator`: its own MuJoCo tasks, and any other whose actions are a Box."""

from __future__ import annotations

import difflib
import sys
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from burnish.envs.base import Floats, Obs, Simulator, Step
from burnish.envs.opengl import OPENGL, opengl_advice
from burnish.envs.task import TaskConfig
from burnish.errors import BurnishError
from burnish.foreign import MOST, one_line, told_as
from burnish.observations import STATE, ObsSpec, Part

FLAT = "flat"  # the state's key of an environment whose observations have no names
MOST_FRAMES = 1000
SUCCESS = ("is_success", "success")  # of info, where the task does not name another
HARMLESS_WRAPPERS = ("OrderEnforcing", "PassiveEnvChecker")  # that have no state of an episode


def make_gymnasium(task: TaskConfig) -> Simulator:
    """The simulator of a Gymnasium task.

    Raises BurnishError for an unknown `env_id`, refused `env_kwargs`, an environment that cannot be made here
    (`Pusher-v4` needs mujoco < 3), and one that is not for policies of continuous actions.
    """
    from burnish.envs.gymnasium.mujoco import MujocoSimulator

    env = _make(task)
    if type(env.unwrapped).__module__.startswith("gymnasium.envs.mujoco."):
        if task.obs_keys != [FLAT] or task.sensors:
            raise BurnishError(
                f"obs_keys={task.obs_keys}, sensors={task.sensors}: {task.env_id} has one observation, expected [flat] "
                "and no sensors"
            )
        return MujocoSimulator(env.unwrapped)
    return GymnasiumSimulator(env, task)


class GymnasiumSimulator:
    """Any Gymnasium environment, with its wrappers.

    Actions are rescaled from [-1, 1] to the Box's bounds. Observations are a Box, or a Dict of which the task's
    `obs_keys` are joined to the state and its `sensors` are kept as they are. The environment's own `truncated` counts
    beside the task's time limit. Success is what `info` says, where the task is measured by it. Its state can be saved
    where the environment has `get_state() -> dict` and `set_state(dict)` of its own, of plain data, everything that
    decides its future; else a resumed run's episodes start anew.
    """

    def __init__(self, env: Any, task: TaskConfig) -> None:
        self._env, self._task = env, task
        self._success_keys = (task.success_key,) if task.success_key else SUCCESS
        self.obs_spec = _obs_spec(env.observation_space, task)
        self._low, self._high = _action_bounds(env.action_space, task)
        self.action_dim = len(self._low)
        self.action_bounds = self._low, self._high
        if not (np.allclose(self._low, -1) and np.allclose(self._high, 1)):
            _say_once(f"{task.env_id}: actions in [-1, 1] are rescaled to {_bounds(self._low, self._high)}")

    def reset(self, seed: int | None) -> Obs:
        with told_as(f"{self._task.env_id} cannot be reset", place=True):
            return self._observation(self._env.reset(seed=seed)[0])

    def step(self, action: Floats) -> Step:
        share = (np.clip(np.asarray(action, np.float64), -1.0, 1.0) + 1) / 2
        control = (self._low + share * (self._high - self._low)).astype(self._env.action_space.dtype)
        with told_as(f"a step of {self._task.env_id} failed", place=True):
            obs, reward, terminated, truncated, info = self._env.step(control.reshape(self._env.action_space.shape))
            success = self._task.measure == "success_rate" and any(bool(info.get(key)) for key in self._success_keys)
            return Step(self._observation(obs), float(reward), bool(terminated), success, bool(truncated))

    def _observation(self, obs: Any) -> Obs:
        keys, sensors, spec = self._task.obs_keys, self._task.sensors, self.obs_spec
        if not isinstance(obs, dict):
            return spec.record({next(iter(spec.parts)): np.ravel(obs) if not sensors else obs})
        return spec.of_keys(obs, keys)

    def get_state(self) -> dict[str, Any]:
        """Raises NotImplementedError where the environment has none of its own."""
        env, wrappers = self._env, []
        while env is not env.unwrapped:
            wrappers.append(type(env).__name__)
            env = env.env
        stateful = [name for name in wrappers if name not in HARMLESS_WRAPPERS]
        if stateful or not (hasattr(env, "get_state") and hasattr(env, "set_state")):
            reason = f"wrapped in {stateful[0]}" if stateful else "without get_state and set_state"
            raise NotImplementedError(f"{self._task.env_id}, {reason}, cannot be saved: episodes start anew at resume")
        return env.get_state()

    def set_state(self, state: dict[str, Any]) -> None:
        self._env.reset()  # wrappers want an episode to have begun
        self._env.unwrapped.set_state(state)

    def render(self, width: int, height: int) -> NDArray[np.uint8]:
        """RGB image of the size that the environment gives. Raises BurnishError where it gives none."""
        with told_as(f"{self._task.env_id} cannot be drawn", OPENGL, place=True):
            picture = self._env.render() if self._env.render_mode == "rgb_array" else None
        if picture is None:
            raise BurnishError(f"{self._task.env_id} gives no picture: expected env_kwargs={{render_mode: rgb_array}}")
        return np.asarray(picture, np.uint8)

    def close(self) -> None:
        self._env.close()


@cache
def _say_once(remark: str) -> None:
    print(f"burnish: {remark}", file=sys.stderr, flush=True)


def _bounds(low: NDArray[np.float64], high: NDArray[np.float64]) -> str:
    pairs = [f"[{a:g}, {b:g}]" for a, b in zip(low, high)]
    return pairs[0] if len(set(pairs)) == 1 else ", ".join(pairs)


def _action_bounds(space: Any, task: TaskConfig) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    from gymnasium.spaces import Box

    if not isinstance(space, Box):
        raise BurnishError(f"task.env_id={task.env_id} has actions {space}: expected a Box, continuous ones")
    low, high = (np.ravel(bound).astype(np.float64) for bound in (space.low, space.high))
    if not np.isfinite([low, high]).all():
        raise BurnishError(
            f"task.env_id={task.env_id} has actions without bounds: wrap it in gymnasium.wrappers.RescaleAction or "
            "give its Box bounds, as policies act in [-1, 1]"
        )
    return low, high


def _obs_spec(space: Any, task: TaskConfig) -> ObsSpec:
    """Raises BurnishError naming the keys that there are, where the task's are others or no arrays."""
    from gymnasium.spaces import Box, Dict

    name, keys, sensors = f"task.env_id={task.env_id}", task.obs_keys, task.sensors
    if isinstance(space, Dict):
        missing = [key for key in (*keys, *sensors) if key not in space.spaces]
        if missing:
            raise BurnishError(
                f"{name} gives no observation {missing[0]!r}: expected task.obs_keys (joined to the state) and "
                f"task.sensors (kept as they are) to be of {', '.join(space.spaces)}"
            )
        boxes: dict[str, Any] = dict(space.spaces)
    elif sensors:
        if len(sensors) > 1 or keys:
            raise BurnishError(f"{name} gives one observation: expected obs_keys=[] and one name in sensors")
        boxes = {sensors[0]: space}
    elif keys == [FLAT]:
        boxes = {FLAT: space}
    else:
        raise BurnishError(f"{name} gives one observation without a name: expected obs_keys=[flat], not {keys}")
    for key in (*keys, *sensors):
        if not isinstance(boxes[key], Box):
            raise BurnishError(f"{name} gives {key!r} as {boxes[key]}: expected a Box, an array of numbers")
    sizes = {key: int(np.prod(boxes[key].shape)) for key in keys}
    state = {STATE: Part((sum(sizes.values()),))} if keys else {}
    return ObsSpec(state | {key: _part(boxes[key]) for key in sensors}, sizes)


def _part(box: Any) -> Part:
    return Part(tuple(box.shape), "uint8" if box.dtype == np.uint8 else "float32")


def _make(task: TaskConfig) -> Any:
    import gymnasium

    if ":" not in task.env_id and task.env_id not in gymnasium.registry:
        nearest = difflib.get_close_matches(task.env_id, list(gymnasium.registry), n=3, cutoff=0.3)
        raise BurnishError(
            f"task.env_id={task.env_id}: Gymnasium has no such environment; nearest: {', '.join(nearest)} (of "
            "another package: module:NAME)"
        )
    frames = task.env_kwargs.get("frame_skip", 1)
    if not isinstance(frames, int) or not 1 <= frames <= MOST_FRAMES:
        raise BurnishError(f"task.env_kwargs.frame_skip={frames}: expected simulator steps a control step, 1 to 1000")
    given = one_line(str(task.env_kwargs), MOST)
    with told_as(f"task.env_id={task.env_id} with task.env_kwargs={given} cannot be made", opengl_advice()):
        # -1: the time limit is the task's own
        return gymnasium.make(task.env_id, max_episode_steps=-1, disable_env_checker=True, **task.env_kwargs)
