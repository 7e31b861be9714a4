"""Raw robosuite demonstrations (states and actions), or a table of numbers -> training data in robomimic's format."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import h5py
import numpy as np
from numpy.typing import NDArray

from burnish.datasets.consistency import require_consistent
from burnish.datasets.episodes import Demonstrations, Episode, listed, natural_order
from burnish.datasets.formats import csv_file, hdf5, robomimic
from burnish.datasets.formats.robosuite_states import begin_episode, model_xml, restore
from burnish.envs.same_environment import all_of, as_option, of_env_args, of_task, require_same
from burnish.envs.task import TaskConfig
from burnish.errors import BurnishError


class ConvertedEpisode(NamedTuple):
    """What became of one episode."""

    name: str
    n_steps: int
    success: bool  # the task is solved in a restored state
    max_action: float  # largest absolute value; robosuite clips at 1
    n_clipped: int  # steps with a value outside [-1, 1]


class ConversionReport(NamedTuple):
    """What `convert_robosuite` wrote."""

    out: Path
    env_name: str
    robots: list[str]
    obs_keys: list[str]
    recorded_with: str  # robosuite's version, or "unknown"
    episodes: list[ConvertedEpisode]


RESTORED = ("suite", "name", "robot", "gripper", "controller", "control_freq", "env_kwargs")
"""The aspects of an environment that decide what a state shows and an action does."""
ARGUMENTS = {
    "robot": "robots",
    "gripper": "gripper_types",
    "controller": "controller_configs",
    "control_freq": "control_freq",
}
"""Aspect -> the argument of robosuite.make."""


class _Raw(NamedTuple):
    """What a recording has; `env_args` as robomimic has them, as far as it tells."""

    env_args: dict[str, Any]
    version: str
    masks: dict[str, list[str]]
    episodes: list[_RawEpisode]


class _RawEpisode(NamedTuple):
    name: str
    states: NDArray[np.float64]  # (T, S) before each action
    actions: NDArray[np.float64]  # (T, Da)
    model_file: str | None


def convert_robosuite(
    path: Path,
    out: Path,
    *,
    task: TaskConfig | None = None,
    robots: list[str] | None = None,
    obs_keys: list[str] | None = None,
    allow: Sequence[str] = (),
    overwrite: bool = False,
) -> ConversionReport:
    """Restore each recorded state in today's robosuite and write what it observes there.

    Rewards and observations are robosuite's in the restored states; the reward of an action and the
    observation after it belong to the next state, and the last action is executed once to get them. Actions
    stay as they are, also outside [-1, 1], where robosuite clips them. The XML written is today's.

    Arguments:
        path: an HDF5 file of robosuite's `gather_demonstrations_as_hdf5` (any version from 1.0 on), or robomimic's raw
            one, whose env_args tell the environment; filter keys are kept.
        out: the HDF5 file to write (robomimic's format).
        task: that it was recorded in. What the file does not tell of its environment is the task's.
        robots: likewise, e.g. ["Panda"].
        obs_keys: by default the task's; without one robomimic's low-dim keys, as far as there are any.
        allow: in what the file tells it wrongly, so that the task's is taken, e.g. ["robot"].
        overwrite: replace an `out` that is there.

    Raises BurnishError naming the file and the episode where something is missing or does not fit, where the file tells
    another environment than the task, and where `out` is there.
    """
    from burnish.envs.robosuite.env import env_args, make_task_env

    _require_new(path, out, overwrite)
    raw = _read(path)
    name, env_kwargs = _recorded_in(path, raw.env_args, task, robots, allow)
    raw_episodes = raw.episodes
    env = make_task_env(name, env_kwargs)
    try:
        keys = obs_keys or (task.obs_keys if task is not None else _default_keys(env))
        episodes = [_convert(env, raw, keys, f"{path}: episode {raw.name}") for raw in raw_episodes]
        robot_names = [robot.name for robot in env.robots]
        report = [
            _report(raw, episode, success) for raw, (episode, success) in zip(raw_episodes, episodes, strict=True)
        ]
    finally:
        env.close()
    written = [episode for episode, _ in episodes]
    demos = Demonstrations(written, env_args(name, env_kwargs), raw.masks, source=str(out))
    robomimic.write(out, demos)
    return ConversionReport(out, name, robot_names, keys, raw.version, report)


def convert_csv(
    path: Path,
    out: Path,
    action_scale: Sequence[float] = (1.0,),
    *,
    obs_keys: Sequence[str] = (),
    overwrite: bool = False,
) -> Demonstrations:
    """Read a table (`burnish.datasets.formats.csv_file`) and write it in robomimic's format -> what was written.

    Raises BurnishError naming the file, the line and the column of what could not be trained on, where an observation
    of `obs_keys` is missing, and where `out` is there and not to be replaced.
    """
    _require_new(path, out, overwrite)
    demos = csv_file.read(path, action_scale)
    require_consistent(demos)
    demos.episodes[0].obs_spec(obs_keys or list(demos.episodes[0].obs))
    robomimic.write(out, demos)
    return demos


def _require_new(path: Path, out: Path, overwrite: bool) -> None:
    """Raise BurnishError where writing `out` would cost the recording, or another file without being asked to."""
    if path.exists() and out.exists() and path.samefile(out):
        raise BurnishError(f"{out} is the recording itself, which would be lost: choose another name")
    if out.exists() and not overwrite:
        raise BurnishError(f"{out} exists already: choose another name or give --overwrite")


def _convert(env: Any, raw: _RawEpisode, keys: list[str], where: str) -> tuple[Episode, bool]:
    """-> (episode, whether the task is solved in one of its states)."""
    from burnish.envs.robosuite.simulator import select_obs

    if raw.actions.shape[1] != env.action_dim:
        raise BurnishError(
            f"{where}: actions of {raw.actions.shape[1]} numbers, but {type(env).__name__} takes "
            f"{env.action_dim}: give the task and robot it was recorded with"
        )
    begin_episode(env, raw.model_file, raw.states[0], where)
    xml = model_xml(env)
    observations, rewards, successes = [], [], []
    for step, action in enumerate(raw.actions):
        if step > 0:
            restore(env, raw.states[step], where)
            rewards.append(env.reward(raw.actions[step - 1]))
        observations.append(env._get_observations(force_update=True))
        successes.append(bool(env._check_success()))
        _command_grippers(env, action)
    last_obs, last_reward, _, _ = env.step(raw.actions[-1])
    n_steps = len(raw.actions)
    episode = Episode(
        name=raw.name,
        obs={key: np.stack([_row(select_obs(obs, key)) for obs in observations]) for key in keys},
        actions=raw.actions.astype(np.float32),
        rewards=np.array([*rewards, last_reward], np.float32),
        terminated=np.zeros(n_steps, bool),
        final_obs={key: _row(select_obs(last_obs, key)) for key in keys},
        states=raw.states,
        model_file=xml,
    )
    return episode, any(successes) or bool(env._check_success())


def _command_grippers(env: Any, action: NDArray[np.float64]) -> None:
    """Let the grippers follow the commands of skipped steps: robosuite adds them up, outside of the state."""
    start = 0
    for robot in env.robots:
        for part, (first, last) in robot.composite_controller._action_split_indexes.items():
            if part in robot.composite_controller.grippers:
                robot.composite_controller.grippers[part].format_action(action[start + first : start + last])
        start += robot.action_dim


def _row(value: Any) -> NDArray[np.float32]:
    return np.ravel(value).astype(np.float32)


def _default_keys(env: Any) -> list[str]:
    """robomimic's low-dim keys, without those that are empty here (Wipe's gripper has no joints)."""
    present = {name for name, value in env._get_observations(force_update=True).items() if np.size(value)}
    keys = [f"robot{i}_{name}" for i in range(len(env.robots)) for name in ("eef_pos", "eef_quat", "gripper_qpos")]
    return [*(key for key in keys if key in present), "object"]


def _report(raw: _RawEpisode, episode: Episode, success: bool) -> ConvertedEpisode:
    largest = np.abs(raw.actions).max(axis=1)
    return ConvertedEpisode(episode.name, len(episode), success, float(largest.max()), int((largest > 1).sum()))


def _read(path: Path) -> _Raw:
    with hdf5.reading(path) as file:
        data = file.get("data")
        if not isinstance(data, h5py.Group) or not len(data):
            raise BurnishError(f"{path}: no episodes, expected groups data/demo_1, data/demo_2, ...")
        env_args = robomimic.read_env_args(path, data)
        told = _env_info(path, data) if env_args is None else env_args
        version = str((env_args or {}).get("env_version") or hdf5.text(data.attrs.get("repository_version")))
        names = sorted(data, key=natural_order)
        masks = robomimic.read_masks(path, file)
        return _Raw(told, version or "unknown", masks, [_read_episode(path, name, data[name]) for name in names])


def _recorded_in(
    path: Path, told: dict[str, Any], task: TaskConfig | None, robots: list[str] | None, allow: Sequence[str]
) -> tuple[str, dict[str, Any]]:
    """(env_name, env_kwargs): the file's, and the task's where it tells none or is not to be believed.

    Raises BurnishError where they contradict one another, or nobody tells the environment.
    """
    from burnish.envs.robosuite.env import task_from_env_args

    if task is not None and task.suite != "robosuite":
        raise BurnishError(f"--task {task.name} is of suite {task.suite}, expected one of robosuite")
    kwargs = dict(task.env_kwargs) if task is not None else {}
    kwargs |= {"robots": robots} if robots is not None else {}
    if told.get("env_name") is None and task is None:
        raise BurnishError(f"{path}: does not tell its task (attribute env or env_args of data): give --task")
    told = {"type": robomimic.ROBOSUITE_TYPE, **told, "env_kwargs": told.get("env_kwargs") or {}}
    asked = {"suite": "robosuite", "env_id": task.env_id if task else told["env_name"], "env_kwargs": kwargs}
    given = [f"--task {task.name}"] if task is not None else []
    given += [f"--robots {' '.join(robots)}"] if robots is not None else []
    now = of_task(asked, " ".join(given), " ".join(given))
    compared = RESTORED if task is not None else ["robot"] if robots is not None else []
    now = now._replace(aspects={key: now.aspects[key] for key in compared if key in now.aspects})
    require_same(of_env_args(told, str(path)), now, allow, write=as_option)
    believed = all_of(allow)
    name = told.get("env_name")
    if task is not None and (name is None or "name" in believed):
        name = task.env_id
    name, recorded = task_from_env_args({**told, "env_name": name})
    for aspect, argument in ARGUMENTS.items():
        if argument not in recorded or aspect in believed:
            recorded.pop(argument, None)
            recorded |= {argument: kwargs[argument]} if argument in kwargs else {}
    return name, recorded


def _env_info(path: Path, data: h5py.Group) -> dict[str, Any]:
    """robosuite's own attributes as robomimic's `env_args`, as far as the file has them."""
    text = hdf5.text(data.attrs.get("env_info")) or "{}"
    try:
        info = dict(json.loads(text))
    except (ValueError, TypeError) as error:
        raise BurnishError(f"{path}: attribute env_info of data is not a JSON object ({error})") from error
    name = info.pop("env_name", None) or hdf5.text(data.attrs.get("env")) or None
    return {"env_name": name, "env_version": hdf5.text(data.attrs.get("repository_version")), "env_kwargs": info}


def _read_episode(path: Path, name: str, group: h5py.Group) -> _RawEpisode:
    if not isinstance(group, h5py.Group):
        raise BurnishError(f"{path}: data/{name} is an array, expected a group with states and actions")
    missing = [key for key in ("states", "actions") if key not in group]
    if missing:
        raise BurnishError(f"{path}: episode {name} has no {missing[0]}; it has: {listed(group) or 'nothing'}")
    where = f"{path}: episode {name}"
    found = {key: hdf5.array(group[key], f"{where}: {key}") for key in ("states", "actions")}
    states, actions = (hdf5.values(array, f"{where}: {key}").astype(np.float64) for key, array in found.items())
    if states.ndim != 2 or actions.ndim != 2 or len(states) != len(actions) or len(actions) == 0:
        raise BurnishError(
            f"{path}: episode {name} has states {states.shape} and actions {actions.shape}: expected as many "
            f"states as actions, at least 1"
        )
    for key, values in (("states", states), ("actions", actions)):
        if not np.isfinite(values).all():
            raise BurnishError(f"{path}: episode {name} has NaN or infinity in its {key}: remove the episode")
    return _RawEpisode(name, states, actions, hdf5.text(group.attrs.get("model_file")) or None)
