"""Minari's dataset folders (https://minari.farama.org), read from the disk, without its server."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from burnish.datasets.episodes import Demonstrations, Episode
from burnish.datasets.formats.hdf5 import what_is_wrong
from burnish.errors import BurnishError

GYM_TYPE = 2  # robomimic.envs.env_base.EnvType.GYM_TYPE


def is_dataset(path: Path) -> bool:
    """Whether the folder is a Minari dataset: NAME-vN, with data/metadata.json in it."""
    return (path / "data" / "metadata.json").is_file()


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
    try:
        dataset = minari.MinariDataset(path / "data")
        recorded = list(dataset.iterate_episodes())
    except ImportError as error:
        raise BurnishError(
            f'{path}: what reads its data_format is not installed ({error}): pip install "minari[arrow]"'
        ) from error
    except (OSError, ValueError, KeyError, AssertionError) as error:
        if isinstance(error, OSError) and "damaged" not in (said := what_is_wrong(error)):
            raise BurnishError(f"{path}: {said}") from error
        raise BurnishError(f"{path}: damaged Minari dataset ({type(error).__name__}: {error})") from error
    for name, space in (("observation", dataset.observation_space), ("action", dataset.action_space)):
        if not isinstance(space, Box):
            raise BurnishError(f"{path}: {name} space is {space}, expected a Box")
    if not recorded:
        raise BurnishError(f"{path}: no episodes")
    low, high = dataset.action_space.low, dataset.action_space.high
    episodes = []
    for number, episode in enumerate(recorded):
        n_steps = len(episode.actions)
        obs = np.asarray(episode.observations, np.float32)
        if len(obs) != n_steps + 1:
            raise BurnishError(
                f"{path}: episode {number} has {len(obs)} observations of {n_steps} steps: expected {n_steps + 1}, "
                "one before each action and one after the last"
            )
        obs = obs.reshape(n_steps + 1, -1)
        episodes.append(
            Episode(
                name=f"demo_{number}",
                obs={"flat": obs[:-1]},
                actions=_unit_actions(episode.actions, low, high).reshape(n_steps, -1),
                rewards=np.asarray(episode.rewards, np.float32),
                terminated=np.asarray(episode.terminations, bool),
                final_obs={"flat": obs[-1]},
            )
        )
    bounded = bool(np.isfinite(low).all() and np.isfinite(high).all())
    return Demonstrations(
        episodes,
        _env_args(dataset.spec.env_spec),
        source=str(path),
        unit_actions=bounded,
        action_bounds=(low.ravel().tolist(), high.ravel().tolist()) if bounded else None,
    )


def _unit_actions(
    actions: NDArray[Any], low: NDArray[np.floating[Any]], high: NDArray[np.floating[Any]]
) -> NDArray[np.float32]:
    if not (np.isfinite(low).all() and np.isfinite(high).all()):
        return actions.astype(np.float32)
    return (2 * (actions - low) / (high - low) - 1).astype(np.float32)


def _env_args(spec: Any) -> dict[str, Any] | None:
    return None if spec is None else {"env_name": spec.id, "type": GYM_TYPE, "env_kwargs": spec.kwargs}
