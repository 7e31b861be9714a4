"""The npz files of DPPO (irom-princeton/dppo, agent/dataset/sequence.py and script/dataset/).

All episodes behind one another: states (N, Do), actions (N, Da), traj_lengths (number of episodes,), and in
the files for fine-tuning rewards and terminals (N,). DPPO scales states and actions to [-1, 1] when it makes
them, and stores the range beside the file, in normalization.npz (obs_min, obs_max, action_min, action_max):

    scaled = 2 (raw - min) / (max - min + 1e-6) - 1
"""

from __future__ import annotations

import math
import warnings
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from burnish.datasets.episodes import Demonstrations, Episode, listed, require_flags
from burnish.errors import BurnishError
from burnish.foreign import told_as
from burnish.machine.memory import Room

NORMALIZATION = "normalization.npz"


def read(path: Path) -> Demonstrations:
    """Read all episodes in raw units, observation key "flat".

    Scaling is undone with the normalization.npz beside the file; without it the values stay as they are and a
    warning says so. `terminated` is False where the file has no terminals. There is no `final_obs`.

    Raises BurnishError for a damaged file, missing keys, and lengths that do not add up.
    """
    arrays = _arrays(path)
    missing = [key for key in ("states", "actions", "traj_lengths") if key not in arrays]
    if missing:
        with zipfile.ZipFile(path) as archive:
            found = listed(name.removesuffix(".npy") for name in archive.namelist()) or "nothing"
        raise BurnishError(f"{path}: no {', '.join(missing)}, expected DPPO's layout; found: {found}")
    for key, values in arrays.items():
        expected = "(steps, dimension)" if key in ("states", "actions") else "of at least one dimension"
        if values.ndim < 1 or (values.ndim != 2 and "," in expected) or values.dtype.kind not in "biuf":
            found = f"{values.dtype} of the shape {values.shape}"
            raise BurnishError(f"{path}: {key} is {found}, expected numbers {expected}")
    lengths = _lengths(path, arrays["traj_lengths"])
    n_steps = int(lengths.sum())
    states, actions = arrays["states"], arrays["actions"]
    rewards = arrays.get("rewards", np.zeros(n_steps))
    terminals = arrays.get("terminals", np.zeros(n_steps))
    for key, values in {
        "states": states,
        "actions": actions,
        "rewards": rewards,
        "terminals": terminals,
    }.items():
        if len(values) != n_steps:
            raise BurnishError(f"{path}: {key} has {len(values)} steps, but traj_lengths add up to {n_steps}")
        if key in ("rewards", "terminals") and values.size != n_steps:
            raise BurnishError(f"{path}: {key} has the shape {values.shape}, expected one number for each step")
    require_flags(terminals, f"{path}: terminals")
    rewards, terminated = rewards.reshape(-1), terminals.reshape(-1).astype(bool)
    states, actions = _in_raw_units(path, states, actions)
    starts = np.cumsum(lengths) - lengths
    episodes = [
        Episode(
            name=f"demo_{number}",
            obs={"flat": states[start : start + length].astype(np.float32)},
            actions=actions[start : start + length].astype(np.float32),
            rewards=rewards[start : start + length].astype(np.float32),
            terminated=terminated[start : start + length],
        )
        for number, (start, length) in enumerate(zip(starts, lengths))
    ]
    return Demonstrations(episodes, source=str(path))


def _lengths(path: Path, values: NDArray[np.float64]) -> NDArray[np.int64]:
    """(number of episodes,)"""
    lengths = values.reshape(-1)
    wrong = lengths[~((lengths >= 1) & (lengths < 2**53) & (lengths % 1 == 0))]  # NaN among them
    if not len(lengths) or len(wrong):
        found = wrong[0] if len(wrong) else "nothing"
        raise BurnishError(f"{path}: traj_lengths has {found}: expected the steps of each episode, at least 1")
    return lengths.astype(np.int64)


KEYS = ("states", "actions", "traj_lengths", "rewards", "terminals")
BOUNDS = ("obs_min", "obs_max", "action_min", "action_max")


def _arrays(path: Path, keys: tuple[str, ...] = KEYS) -> dict[str, NDArray[np.float64]]:
    """Those of `keys` that the file has."""
    if not path.is_file():
        raise BurnishError(f"{path}: no such file")
    with told_as(f"{path}: damaged, or not an npz file of plain arrays"):
        room = Room(path.stat().st_size)
        with _known_zip(path) as archive:
            members = {name.removesuffix(".npy"): name for name in archive.namelist()}
            for key in members.keys() & set(keys):
                _require_room(archive, members[key], f"{path}: {key}", room)
        with np.load(path, allow_pickle=False) as file:
            return {key: file[key] for key in file.files if key in keys}


@contextmanager
def _known_zip(path: Path) -> Iterator[zipfile.ZipFile]:
    """zipfile raises NotImplementedError for a version or a compression that it does not know."""
    try:
        with zipfile.ZipFile(path) as archive:
            yield archive
    except NotImplementedError as error:
        raise ValueError(str(error)) from error


def _require_room(archive: zipfile.ZipFile, name: str, where: str, room: Room) -> None:
    """Raise BurnishError where an array that its header declares is not what follows, or more than it may be."""
    with archive.open(name) as member:
        version = np.lib.format.read_magic(member)
        read_header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, _, dtype = read_header(member)
        follows = archive.getinfo(name).file_size - member.tell()
    declared = math.prod(shape) * dtype.itemsize
    if declared > follows:
        raise BurnishError(f"{where} declares {declared:,} bytes, but has {follows:,}: the file is damaged")
    room.take(follows, where)


def _in_raw_units(
    path: Path, states: NDArray[np.float64], actions: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    beside = path.with_name(NORMALIZATION)
    if not beside.exists():
        warnings.warn(
            f"{path}: no {NORMALIZATION} beside it, values are taken as they are (DPPO scales to [-1, 1])",
            stacklevel=3,
        )
        return states, actions
    bounds = _arrays(beside, BOUNDS)
    for key, width in {"obs": states.shape[1], "action": actions.shape[1]}.items():
        for name in (f"{key}_min", f"{key}_max"):
            if name not in bounds or bounds[name].shape != (width,):
                found = bounds[name].shape if name in bounds else "nothing"
                raise BurnishError(f"{beside}: {name}: expected shape ({width},), found {found}")
            if bounds[name].dtype.kind not in "biuf":
                raise BurnishError(f"{beside}: {name}: expected numbers, found {bounds[name].dtype}")
    return (
        _unscaled(states, bounds["obs_min"], bounds["obs_max"]),
        _unscaled(actions, bounds["action_min"], bounds["action_max"]),
    )


def _unscaled(scaled: NDArray[np.float64], low: NDArray[np.float64], high: NDArray[np.float64]) -> NDArray[np.float64]:
    return (scaled + 1) / 2 * (high - low + 1e-6) + low
