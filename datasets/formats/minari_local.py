"""Minari's dataset folders (https://minari.farama.org), read from the disk, without its server."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from burnish.datasets.episodes import Demonstrations, Episode, require_flags
from burnish.datasets.formats import hdf5
from burnish.errors import BurnishError
from burnish.foreign import MOST, cause, one_line, told_as

METADATA, MAIN_DATA = "metadata.json", "main_data.hdf5"
GYM_TYPE = 2  # robomimic.envs.env_base.EnvType.GYM_TYPE


def is_dataset(path: Path) -> bool:
    """Whether the folder is a Minari dataset: NAME-vN, with data/metadata.json in it."""
    return (path / "data" / METADATA).is_file()


def read(path: Path) -> Demonstrations:
    """Read a Minari dataset with Box observations and actions, observation key "flat".

    Actions are rescaled from the bounds of the action space to [-1, 1].

    Raises BurnishError if the extra `minari` is missing, the folder is no dataset or damaged, or a space
    is no box.
    """
    try:
        import minari
        from gymnasium.spaces import Box
    except ImportError as error:
        raise BurnishError(f'{path}: Minari data need the extra: pip install "burnish[minari]"') from error
    if not is_dataset(path):
        raise BurnishError(f"{path}: not a Minari dataset, expected data/metadata.json in it")
    damaged = f"{path}: damaged Minari dataset"
    with told_as(damaged):
        _check(path)
    try:
        dataset = minari.MinariDataset(path / "data")
        recorded = list(dataset.iterate_episodes())
    except ImportError as error:
        raise BurnishError(
            f'{path}: what reads its data_format is not installed ({error}): pip install "minari[arrow]"'
        ) from error
    except OSError as error:
        raise BurnishError(f"{path}: {hdf5.what_is_wrong(error)}") from error
    except Exception as error:
        raise BurnishError(f"{damaged} ({cause(error)})") from error
    for name, space in (("observation", dataset.observation_space), ("action", dataset.action_space)):
        if not isinstance(space, Box):
            raise BurnishError(f"{path}: {name} space is {one_line(str(space), MOST)}, expected a Box")
    if not recorded:
        raise BurnishError(f"{path}: no episodes")
    low, high = dataset.action_space.low, dataset.action_space.high
    if not (high > low).all():
        raise BurnishError(f"{path}: the action space has bounds {low} to {high}: expected the lower ones below")
    with told_as(damaged):
        episodes = [_episode(path, number, episode, low, high) for number, episode in enumerate(recorded)]
    bounded = bool(np.isfinite(low).all() and np.isfinite(high).all())
    with told_as(damaged):
        env_args = _env_args(dataset.spec.env_spec)
    return Demonstrations(
        episodes,
        env_args,
        source=str(path),
        unit_actions=bounded,
        action_bounds=(low.ravel().tolist(), high.ravel().tolist()) if bounded else None,
    )


def _check(path: Path) -> None:
    """Look at what Minari would believe. Raises BurnishError, or whatever a damaged file leads to.

    Without spaces it would make the environment that the file describes, with any module's function for that.
    """
    metadata = json.loads((path / "data" / METADATA).read_text(encoding="utf-8"))
    where = f"{path}: damaged Minari dataset, {METADATA}"
    if not isinstance(metadata, dict):
        raise BurnishError(f"{where}: expected keys and values")
    for key in ("observation_space", "action_space"):
        if not isinstance(metadata.get(key), str):
            raise BurnishError(
                f"{where}: {key} is {one_line(str(metadata.get(key)), 40)}, expected a space as JSON text"
            )
    n_episodes = metadata.get("total_episodes")
    most = sum(file.stat().st_size for file in (path / "data").rglob("*") if file.is_file())
    if type(n_episodes) is not int or not 0 <= n_episodes <= most:
        raise BurnishError(f"{where}: total_episodes is {one_line(str(n_episodes), 40)}, expected how many there are")
    main = path / "data" / MAIN_DATA
    if main.is_file():
        with hdf5.reading(main) as file:
            for name in file:
                if isinstance(file[name], h5py.Group):
                    file[name].visititems(lambda key, found, name=name: hdf5.take(found, f"{main}: {name}/{key}"))


def _episode(
    path: Path, number: int, episode: Any, low: NDArray[np.floating[Any]], high: NDArray[np.floating[Any]]
) -> Episode:
    n_steps = len(episode.actions)
    obs = np.asarray(episode.observations, np.float32)
    if len(obs) != n_steps + 1:
        raise BurnishError(
            f"{path}: episode {number} has {len(obs)} observations of {n_steps} steps: expected {n_steps + 1}, "
            "one before each action and one after the last"
        )
    if episode.actions.shape[1:] != low.shape:
        raise BurnishError(
            f"{path}: episode {number} has actions of the shape {episode.actions.shape[1:]}, expected {low.shape}"
        )
    terminations = np.asarray(episode.terminations)
    require_flags(terminations, f"{path}: episode {number}: terminations")
    obs = obs.reshape(n_steps + 1, -1)
    return Episode(
        name=f"demo_{number}",
        obs={"flat": obs[:-1]},
        actions=_unit_actions(episode.actions, low, high).reshape(n_steps, -1),
        rewards=np.asarray(episode.rewards, np.float32).reshape(-1),
        terminated=terminations.astype(bool).reshape(-1),
        final_obs={"flat": obs[-1]},
    )


def _unit_actions(
    actions: NDArray[Any], low: NDArray[np.floating[Any]], high: NDArray[np.floating[Any]]
) -> NDArray[np.float32]:
    if not (np.isfinite(low).all() and np.isfinite(high).all()):
        return actions.astype(np.float32)
    return (2 * (actions - low) / (high - low) - 1).astype(np.float32)


def _env_args(spec: Any) -> dict[str, Any] | None:
    return None if spec is None else {"env_name": spec.id, "type": GYM_TYPE, "env_kwargs": spec.kwargs}
