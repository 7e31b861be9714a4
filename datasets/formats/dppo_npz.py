"""The npz files of DPPO (irom-princeton/dppo, agent/dataset/sequence.py and script/dataset/).

All episodes behind one another: states (N, Do), actions (N, Da), traj_lengths (number of episodes,), and in
the files for fine-tuning rewards and terminals (N,). DPPO scales states and actions to [-1, 1] when it makes
them, and stores the range beside the file, in normalization.npz (obs_min, obs_max, action_min, action_max):

    scaled = 2 (raw - min) / (max - min + 1e-6) - 1
"""

from __future__ import annotations

import warnings
import zipfile
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from burnish.datasets.episodes import Demonstrations, Episode, listed
from burnish.errors import BurnishError

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
        found = listed(arrays) or "nothing"
        raise BurnishError(f"{path}: no {', '.join(missing)}, expected DPPO's layout; found: {found}")
    for key in ("states", "actions"):
        if arrays[key].ndim != 2 or arrays[key].dtype.kind not in "biuf":
            found = f"{arrays[key].dtype} of the shape {arrays[key].shape}"
            raise BurnishError(f"{path}: {key} is {found}, expected numbers (steps, dimension)")
    lengths = arrays["traj_lengths"].astype(np.int64).reshape(-1)
    n_steps = int(lengths.sum())
    states, actions = arrays["states"], arrays["actions"]
    rewards = arrays.get("rewards", np.zeros(n_steps)).reshape(-1)
    terminals = arrays.get("terminals", np.zeros(n_steps)).reshape(-1).astype(bool)
    for key, values in {
        "states": states,
        "actions": actions,
        "rewards": rewards,
        "terminals": terminals,
    }.items():
        if len(values) != n_steps:
            raise BurnishError(f"{path}: {key} has {len(values)} steps, but traj_lengths add up to {n_steps}")
    states, actions = _in_raw_units(path, states, actions)
    starts = np.cumsum(lengths) - lengths
    episodes = [
        Episode(
            name=f"demo_{number}",
            obs={"flat": states[start : start + length].astype(np.float32)},
            actions=actions[start : start + length].astype(np.float32),
            rewards=rewards[start : start + length].astype(np.float32),
            terminated=terminals[start : start + length],
        )
        for number, (start, length) in enumerate(zip(starts, lengths))
    ]
    return Demonstrations(episodes, source=str(path))


def _arrays(path: Path) -> dict[str, NDArray[np.float64]]:
    try:
        with np.load(path, allow_pickle=False) as file:
            return {key: file[key] for key in file.files}
    except FileNotFoundError as error:
        raise BurnishError(f"{path}: no such file") from error
    except (OSError, ValueError, EOFError, AttributeError, zipfile.BadZipFile) as error:
        raise BurnishError(f"{path}: damaged, or not an npz file of plain arrays ({error})") from error


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
    bounds = _arrays(beside)
    for key, width in {"obs": states.shape[1], "action": actions.shape[1]}.items():
        for name in (f"{key}_min", f"{key}_max"):
            if name not in bounds or bounds[name].shape != (width,):
                found = bounds[name].shape if name in bounds else "nothing"
                raise BurnishError(f"{beside}: {name}: expected shape ({width},), found {found}")
    return (
        _unscaled(states, bounds["obs_min"], bounds["obs_max"]),
        _unscaled(actions, bounds["action_min"], bounds["action_max"]),
    )


def _unscaled(scaled: NDArray[np.float64], low: NDArray[np.float64], high: NDArray[np.float64]) -> NDArray[np.float64]:
    return (scaled + 1) / 2 * (high - low + 1e-6) + low
