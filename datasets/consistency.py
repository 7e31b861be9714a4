"""What training relies on, checked once when demonstrations are loaded."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from burnish.datasets.episodes import Demonstrations, Episode
from burnish.errors import BurnishError


def require_consistent(demos: Demonstrations) -> None:
    """Raise BurnishError at the first thing that training would trip over.

    That is: no episodes, an episode without steps or observations, actions
    that are not (steps, dimension), a length that differs from that of the
    actions, a dimension that differs from that of the first episode, and NaN or infinity in actions, rewards
    or observations. The message names the source, the episode, the key and the first bad step.
    """
    if not demos.episodes:
        raise BurnishError(f"{demos.source}: no episodes")
    first = demos.episodes[0]
    shapes = {key: values.shape[1:] for key, values in _arrays(first).items()}
    for episode in demos.episodes:
        place = f"{demos.source}: episode {episode.name}"
        if len(episode) == 0:
            raise BurnishError(f"{place} has no steps; delete it from the file")
        if not episode.obs:
            raise BurnishError(f"{place} has no observations of one dimension")
        if episode.actions.ndim != 2:
            raise BurnishError(f"{place}: actions have the shape {episode.actions.shape}, expected (steps, dimension)")
        for key, values in _arrays(episode).items():
            if len(values) != len(episode):
                raise BurnishError(f"{place}: {key} has {len(values)} steps, but there are {len(episode)} actions")
            shape, expected = values.shape[1:], shapes.get(key)
            if expected is not None and shape != expected:
                raise BurnishError(f"{place}: {key} has shape {shape} per step, in episode {first.name} {expected}")
            step = first_nonfinite(values)
            if step is not None:
                raise BurnishError(f"{place}: {key} has NaN or infinity, first at step {step}")


def first_nonfinite(values: NDArray[np.float32]) -> int | None:
    """The first step (row) with NaN or infinity, or None."""
    bad = ~np.isfinite(values).reshape(len(values), -1).all(axis=1)
    return int(bad.argmax()) if bad.any() else None


def _arrays(episode: Episode) -> dict[str, NDArray[np.float32]]:
    observations = {f"observation {key!r}": values for key, values in episode.obs.items()}
    return {"actions": episode.actions, "rewards": episode.rewards, **observations}
