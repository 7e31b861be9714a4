"""robomimic's HDF5 format: read and write.

The layout (robomimic 0.1 to 0.5, https://robomimic.github.io/docs/datasets/overview.html):

    data                    attrs: env_args (JSON), total (steps)
    data/demo_N             attrs: num_samples (T), model_file (XML), fault_NAME (ours: `Episode.faults`)
    data/demo_N/obs/KEY     (T, d) before each action          data/demo_N/next_obs/KEY   (T, d), optional
    data/demo_N/actions     (T, Da)     rewards, dones (T,)    states (T, S)
    mask/FILTER_KEY         names of the demos of a subset

`dones` is no termination: robomimic's scripts set it at success, at the last step, or both (`done_mode`; the
released ph and mh files have both, mg success alone). robosuite never ends an episode by itself, so for its
data `terminated` is False everywhere and a value function bootstraps at the end. For other environments
`dones` is all that there is. Files written here carry `terminated` beside it, which robomimic ignores and
`read` prefers.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from burnish.datasets.episodes import Demonstrations, Episode, listed, natural_order
from burnish.datasets.formats import hdf5
from burnish.errors import BurnishError, warn

ROBOSUITE_TYPE = 1  # robomimic.envs.env_base.EnvType.ROBOSUITE_TYPE
_FAULT = "fault_"
_EPISODE_NAME = re.compile(r"demo_(\d+)")


def read(path: Path, filter_key: str | None = None, sensors: Sequence[str] = ()) -> Demonstrations:
    """Read a robomimic file, or the episodes of one of its filter keys.

    Observations of more than one dimension per step (pictures) are read where `sensors` names them, and else left out,
    as are words and groups: `left_out` has their names. Dimensions of 1 do not count: (T, 1, d) is (T, d). `final_obs`
    comes from the last row of `next_obs`, where the file has it. Masks are cut to the episodes that are read.

    Raises BurnishError naming the file and the episode for a damaged file, missing observations or actions,
    and an unknown filter key.
    """
    with hdf5.reading(path) as file:
        data = file.get("data")
        if not isinstance(data, h5py.Group) or not len(data):
            raise BurnishError(f"{path}: no episodes, expected groups data/demo_0, data/demo_1, ...")
        masks = read_masks(path, file)
        env_args = read_env_args(path, data)
        names = sorted(data, key=natural_order)
        _tell_absent(path, masks, set(names))
        if filter_key is not None:
            names = [name for name in names if name in _names_of(path, masks, filter_key)]
        if not names:
            raise BurnishError(f"{path}: none of the episodes of filter key {filter_key!r} is in the file")
        unit_actions = hdf5.text(data.attrs.get(hdf5.ACTION_RANGE)) == hdf5.UNIT
        from_robosuite = env_args is not None and env_args.get("type") == ROBOSUITE_TYPE
        episodes = [_read_episode(path, name, data[name], from_robosuite, sensors) for name in names]
    left_out = sorted(episodes[0].left_out)
    kept = set(names)
    masks = {key: [name for name in members if name in kept] for key, members in masks.items()}
    return Demonstrations(episodes, env_args, masks, source=str(path), left_out=left_out, unit_actions=unit_actions)


def write(path: Path, demos: Demonstrations) -> None:
    """Write a file that robomimic's `SequenceDataset` reads, gzip-compressed and atomically.

    `next_obs` is written for episodes with `final_obs`; `dones` is 1 where the environment ended the episode
    and at the last step (robomimic's `done_mode` 1).

    Raises BurnishError without episodes, for a name that is not demo_N or not unique, or where `path` cannot
    be written.
    """
    names = [episode.name for episode in demos.episodes]
    if not names:
        raise BurnishError(f"{path}: there are no episodes to write")
    for name in names:
        if not _EPISODE_NAME.fullmatch(name):
            raise BurnishError(f"{path}: episode name {name!r}: robomimic expects demo_0, demo_1, ...")
    if len(set(names)) != len(names):
        raise BurnishError(f"{path}: two episodes have the same name")
    with hdf5.writing(path) as file:
        data = file.create_group("data")
        for episode in demos.episodes:
            _write_episode(data.create_group(episode.name), episode)
        data.attrs["total"] = sum(len(episode) for episode in demos.episodes)
        if demos.unit_actions:
            data.attrs[hdf5.ACTION_RANGE] = hdf5.UNIT
        if demos.env_args is not None:
            data.attrs["env_args"] = json.dumps(demos.env_args, indent=4)
        for key, members in demos.masks.items():
            file[f"mask/{key}"] = np.array(members, dtype="S")


def _tell_absent(path: Path, masks: dict[str, list[str]], present: set[str]) -> None:
    for key, names in masks.items():
        absent = [name for name in names if name not in present]
        if absent:
            warn(f"{path}: mask/{key} names episodes that the file has not: {listed(absent)}")


def _names_of(path: Path, masks: dict[str, list[str]], filter_key: str) -> set[str]:
    if filter_key not in masks:
        present = listed(masks) or "none"
        raise BurnishError(f"{path}: no filter key {filter_key!r}; filter keys of this file: {present}")
    return set(masks[filter_key])


def read_masks(path: Path, file: h5py.File) -> dict[str, list[str]]:
    group = file.get("mask")
    if not isinstance(group, h5py.Group):
        return {}
    for key in group:
        names = group[key]
        if not isinstance(names, h5py.Dataset) or names.ndim != 1 or (names.size and names.dtype.kind not in "SO"):
            raise BurnishError(f"{path}: mask/{key} is no list of names, expected such as demo_0, demo_1")
        if names.external or names.is_virtual:
            raise BurnishError(f"{path}: mask/{key} has its names in another file: expected them in this one")
    read = {key: hdf5.values(group[key], f"{path}: mask/{key}").astype("S") for key in group}
    return {key: [name.decode() for name in names] for key, names in read.items()}


def read_env_args(path: Path, data: h5py.Group) -> dict[str, Any] | None:
    text = hdf5.text(data.attrs.get("env_args"))
    if not text.strip():
        return None
    try:
        env_args = json.loads(text)
    except ValueError as error:
        raise BurnishError(f"{path}: attribute env_args of data is not JSON ({error})") from error
    if not env_args:  # null, {}: a merge of files that do not tell
        return None
    if not isinstance(env_args, dict):
        raise BurnishError(f"{path}: attribute env_args of data is {type(env_args).__name__}, expected an object")
    kwargs = env_args.get("env_kwargs")
    if kwargs is None and "env_kwargs" in env_args:
        kwargs = env_args["env_kwargs"] = {}
    if kwargs is not None and not isinstance(kwargs, dict):
        found = type(kwargs).__name__
        raise BurnishError(f"{path}: env_kwargs in attribute env_args of data is {found}, expected an object")
    if str(env_args.get("type", "")).isdecimal():
        env_args["type"] = int(env_args["type"])
    if env_args.get("type") is None:
        _tell_the_type(path, env_args, kwargs or {})
    return env_args


def _tell_the_type(path: Path, env_args: dict[str, Any], kwargs: dict[str, Any]) -> None:
    """Hand-made files leave it out; who has `robots` is robosuite's."""
    if "robots" in kwargs or "controller_configs" in kwargs:
        env_args["type"] = ROBOSUITE_TYPE
    else:
        warn(
            f"{path}: env_args have no type, so `dones` are taken for terminations: expected "
            f'"type": {ROBOSUITE_TYPE} where they are robosuite\'s, else 2'
        )


def success_reward(env_args: dict[str, Any] | None) -> float | None:
    """The reward from which on a step is a success, or None where rewards do not tell it.

    They tell it for robosuite's sparse rewards, which are `reward_scale` (1) at success and 0 elsewhere.
    """
    if env_args is None or env_args.get("type") != ROBOSUITE_TYPE:
        return None
    kwargs = env_args.get("env_kwargs") or {}
    scale = kwargs.get("reward_scale")
    scale = 1.0 if scale is None else scale
    if kwargs.get("reward_shaping") or not isinstance(scale, (int, float)) or scale <= 0:
        return None
    return scale * (1 - 1e-6)  # rewards have 32 bits


def _read_episode(
    path: Path, name: str, group: h5py.Group, from_robosuite: bool, sensors: Sequence[str] = ()
) -> Episode:
    where = f"{path}: episode {name}"
    if not isinstance(group, h5py.Group):
        raise BurnishError(f"{path}: data/{name} is an array, expected a group with the actions and obs of an episode")
    if "actions" not in group:
        raise BurnishError(f"{where} has no actions; it has: {listed(group) or 'nothing'}")
    if "obs" not in group:
        raise BurnishError(
            f"{where} has {listed(group)}, but no observations (robosuite's raw format); "
            f"make them from the states with `burnish data convert`"
        )
    for key in ("obs", "next_obs"):
        if key in group and not isinstance(group[key], h5py.Group):
            raise BurnishError(f"{where}: {key} is an array, expected a group of named ones, such as {key}/object")
    present = [key for key in ("actions", "rewards", "terminated", "dones") if key in group]
    arrays = {key: hdf5.array(group[key], f"{where}: {key}") for key in present}
    observed, left_out = _observed(group["obs"], where, sensors)
    states = None
    if "states" in group:
        found = group["states"]
        if (why := hdf5.not_an_array(found)) is not None:
            left_out["states"] = why
        else:
            states = hdf5.values(hdf5.array(found, f"{where}: states"), f"{where}: states").astype(np.float64)
    read = {key: hdf5.values(found, f"{where}: {key}") for key, found in arrays.items()}
    actions = _rows(read["actions"])
    n_steps = len(actions)
    seen = {key: hdf5.values(found, f"{where}: obs/{key}") for key, found in observed.items()}
    obs = {key: _sensor(values) if key in sensors else _rows(values) for key, values in seen.items()}
    final_obs = None
    lengths = {"dones": len(arrays["dones"])} if "dones" in arrays else {}
    if "next_obs" in group and n_steps:
        next_obs = group["next_obs"]
        present = [key for key in obs if key in next_obs]
        after = {key: hdf5.array(next_obs[key], f"{where}: next_obs/{key}") for key in present}
        lengths |= {f"next_obs/{key}": len(values) for key, values in after.items()}
        last = {key: hdf5.last_row(v, f"{where}: next_obs/{key}") for key, v in after.items() if len(v)}
        final_obs = {k: _sensor(v) if k in sensors else v.astype(np.float32).reshape(-1) for k, v in last.items()}
    rewards = read.get("rewards", np.zeros(n_steps))
    if "terminated" in read:
        terminated = read["terminated"]
    elif "dones" in read and not from_robosuite:
        terminated = read["dones"]
    else:
        terminated = np.zeros(n_steps)
    model_file = hdf5.text(group.attrs.get("model_file"))
    return Episode(
        name=name,
        obs=obs,
        actions=actions,
        rewards=rewards.astype(np.float32).reshape(-1),
        terminated=terminated.astype(bool).reshape(-1),
        final_obs=final_obs,
        states=states,
        model_file=model_file or None,
        faults=_read_faults(group, where),
        left_out=left_out,
        lengths=lengths,
    )


def _read_faults(group: h5py.Group, where: str) -> dict[str, float]:
    faults = {key: group.attrs[key] for key in group.attrs if key.startswith(_FAULT)}
    for key, size in faults.items():
        if np.size(size) != 1 or np.asarray(size).dtype.kind not in "biuf":
            raise BurnishError(f"{where}: attribute {key} is {hdf5.text(size)!r}, expected a number")
    return {key.removeprefix(_FAULT): float(size) for key, size in faults.items()}


def _observed(group: h5py.Group, where: str, sensors: Sequence[str]) -> tuple[dict[str, h5py.Dataset], dict[str, str]]:
    """-> (what is read, what is not and why). A sensor that cannot be read is an error, not an omission."""
    observed, left_out = {}, {}
    for key in group:
        found = group[key]  # not items(): that gives None where the file is damaged
        why = None if key in sensors else hdf5.not_an_array(found)
        if why is None:
            values = hdf5.array(found, f"{where}: obs/{key}")
            sizes = values.shape[1:]
            if key in sensors or len(sizes) < 2 or math.prod(sizes) in (0, max(sizes)):
                observed[key] = values
            else:
                left_out[key] = f"has the shape {sizes} per step, and no sensor has its name"
        else:
            left_out[key] = why
    return observed, left_out


def _rows(values: NDArray[Any]) -> NDArray[np.float32]:
    values = values.astype(np.float32)
    return values.reshape(len(values), math.prod(values.shape[1:]))


def _sensor(values: NDArray[Any]) -> NDArray[Any]:
    """Pictures stay uint8."""
    return values if values.dtype == np.uint8 else values.astype(np.float32)


def _write_episode(group: h5py.Group, episode: Episode) -> None:
    def store(name: str, values: NDArray[Any]) -> None:
        group.create_dataset(name, data=values, compression="gzip")

    for key, values in episode.obs.items():
        store(f"obs/{key}", values)
        if episode.final_obs is not None:
            store(f"next_obs/{key}", np.concatenate([values[1:], episode.final_obs[key][None]]))
    dones = episode.terminated.astype(np.int32)
    dones[-1] = 1
    store("actions", episode.actions)
    store("rewards", episode.rewards)
    store("dones", dones)
    store("terminated", episode.terminated.astype(np.int32))
    if episode.states is not None:
        store("states", episode.states)
    if episode.model_file is not None:
        group.attrs["model_file"] = episode.model_file
    for name, size in episode.faults.items():
        group.attrs[_FAULT + name] = size
    group.attrs["num_samples"] = len(episode)
