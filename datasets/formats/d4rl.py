"""D4RL's flat HDF5 (https://github.com/Farama-Foundation/D4RL): read and write.

All episodes behind one another: observations (N, Do), actions (N, Da), rewards, terminals, timeouts (N,) and
optionally next_observations (N, Do). An episode ends at a terminal or a timeout.
"""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
from numpy.typing import NDArray

from burnish.datasets.episodes import Demonstrations, Episode, listed, require_flags
from burnish.datasets.formats import hdf5
from burnish.errors import BurnishError, warn

_SAME = 1e-5  # relative and absolute: what rounding to 32 bits and back may change


def is_layout(file: h5py.File) -> bool:
    """Whether the open file is laid out as D4RL's are."""
    return "observations" in file and "actions" in file


def read(path: Path) -> Demonstrations:
    """Read all episodes, observation key "flat". Steps after the last end become an unfinished last episode.

    Episodes are also cut where `next_observations` is not the following observation; a warning says so where the file
    has `timeouts` and they do not mark it.

    Raises BurnishError for missing keys, differing lengths and widths, if the ends cannot be told, and if most steps do
    not follow one another.
    """
    with hdf5.reading(path) as file:
        found = listed(file) or "nothing"
        missing = [key for key in ("observations", "actions", "rewards", "terminals") if key not in file]
        if missing:
            raise BurnishError(f"{path}: no {', '.join(missing)}, expected D4RL's layout; found: {found}")
        if "timeouts" not in file and "next_observations" not in file:
            raise BurnishError(
                f"{path}: no timeouts and no next_observations to tell where episodes end; found: {found}"
            )
        keys = ("observations", "actions", "rewards", "terminals", "timeouts", "next_observations")
        unit_actions = hdf5.text(file.attrs.get(hdf5.ACTION_RANGE)) == hdf5.UNIT
        found_arrays = {key: hdf5.array(file[key], f"{path}: {key}") for key in keys if key in file}
        arrays = {key: hdf5.values(array, f"{path}: {key}") for key, array in found_arrays.items()}
    n_steps = len(arrays["actions"])
    for key, values in arrays.items():
        if len(values) != n_steps:
            raise BurnishError(f"{path}: {key} has {len(values)} steps, but there are {n_steps} actions")
        if key in ("rewards", "terminals", "timeouts") and values.size != n_steps:
            raise BurnishError(f"{path}: {key} has the shape {values.shape}, expected one number for each step")
        if key in ("terminals", "timeouts"):
            require_flags(values, f"{path}: {key}")
        if key in ("observations", "next_observations") and values.ndim < 2:
            raise BurnishError(f"{path}: {key} has the shape {values.shape}, expected (steps, dimension)")
    if n_steps == 0:
        raise BurnishError(f"{path}: no episodes, the arrays are empty")
    next_obs = arrays.get("next_observations")
    terminals = arrays["terminals"].astype(bool).reshape(-1)
    ends = _ends(path, arrays)
    episodes = []
    start = 0
    for number, end in enumerate(np.flatnonzero(ends) + 1):
        steps = slice(start, end)
        episodes.append(
            Episode(
                name=f"demo_{number}",
                obs={"flat": arrays["observations"][steps].astype(np.float32)},
                actions=arrays["actions"][steps].astype(np.float32),
                rewards=arrays["rewards"][steps].astype(np.float32).reshape(-1),
                terminated=terminals[steps],
                final_obs=None if next_obs is None else {"flat": next_obs[end - 1].astype(np.float32)},
            )
        )
        start = end
    return Demonstrations(episodes, source=str(path), unit_actions=unit_actions)


def write(path: Path, demos: Demonstrations) -> None:
    """Write episodes with the observation key "flat", atomically and gzip-compressed.

    `next_observations` is written if every episode has its `final_obs`.

    Raises BurnishError without episodes, without the key "flat", or where `path` cannot be written.
    """
    episodes = demos.episodes
    if not episodes:
        raise BurnishError(f"{path}: there are no episodes to write")
    observations = [episode.flat_obs(["flat"]) for episode in episodes]
    last = [np.arange(len(episode)) == len(episode) - 1 for episode in episodes]
    arrays = {
        "observations": np.concatenate(observations),
        "actions": np.concatenate([episode.actions for episode in episodes]),
        "rewards": np.concatenate([episode.rewards for episode in episodes]),
        "terminals": np.concatenate([episode.terminated for episode in episodes]),
        "timeouts": np.concatenate([end & ~episode.terminated for end, episode in zip(last, episodes)]),
    }
    final = [episode.final_obs["flat"] for episode in episodes if episode.final_obs is not None]
    if len(final) == len(episodes):
        following = [np.concatenate([obs[1:], after[None]]) for obs, after in zip(observations, final)]
        arrays["next_observations"] = np.concatenate(following)
    with hdf5.writing(path) as file:
        for key, values in arrays.items():
            file.create_dataset(key, data=values, compression="gzip")
        if demos.unit_actions:
            file.attrs[hdf5.ACTION_RANGE] = hdf5.UNIT


def _ends(path: Path, arrays: dict[str, NDArray[np.float32]]) -> NDArray[np.bool_]:
    """(N,) whether an episode ends with a step: it is marked, or what follows is not what it led to."""
    ends = arrays["terminals"].astype(bool).reshape(-1)
    if "timeouts" in arrays:
        ends = ends | arrays["timeouts"].astype(bool).reshape(-1)
    ends[-1] = True
    if "next_observations" not in arrays:
        return ends
    led_to, following = arrays["next_observations"], arrays["observations"]
    if led_to.shape != following.shape:
        raise BurnishError(
            f"{path}: next_observations have the shape {led_to.shape}, but observations {following.shape}"
        )
    with np.errstate(invalid="ignore", over="ignore"):  # NaN is no jump: it is found elsewhere
        difference = np.abs(led_to[:-1].astype(np.float32) - following[1:].astype(np.float32))
    jumps = (difference > _SAME + _SAME * np.abs(following[1:])).reshape(len(ends) - 1, -1).any(axis=1) & ~ends[:-1]
    unmarked = np.flatnonzero(jumps)
    if len(unmarked) > len(ends) / 2:
        raise BurnishError(
            f"{path}: next_observations are not the following observations at {len(unmarked)} of {len(ends)} steps, "
            f"first at step {unmarked[0]}: expected steps in their order (if noise was added: delete next_observations)"
        )
    if len(unmarked) and "timeouts" in arrays:
        warn(
            f"{path}: next_observations jump where neither terminals nor timeouts mark an end ({len(unmarked)} times, "
            f"first at step {unmarked[0]}): cut into episodes there"
        )
    ends[unmarked] = True
    return ends
