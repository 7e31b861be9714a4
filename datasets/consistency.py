"""What training relies on, checked once when demonstrations are loaded."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from burnish.datasets.episodes import Demonstrations, Episode
from burnish.errors import BurnishError


def require_consistent(demos: Demonstrations) -> None:
    """Raise BurnishError at the first thing that training would trip over: no episodes, an episode without steps or
    observations, and what `faults` finds. The message names the source, the episode, the key and the first bad step.
    """
    if not demos.episodes:
        raise BurnishError(f"{demos.source}: no episodes")
    for episode in demos.episodes:
        place = f"{demos.source}: episode {episode.name}"
        if len(episode) == 0:
            raise BurnishError(f"{place} has no steps; delete it from the file")
        if not episode.obs:
            raise BurnishError(f"{place} has no observations of one dimension")
        for fault in faults(episode, demos.episodes[0]):
            raise BurnishError(f"{place}: {fault}")


def faults(episode: Episode, first: Episode, keys: Sequence[str] | None = None) -> Iterator[str]:
    """What is wrong with an episode that has steps, one sentence each; of the observations those of `keys` (None: all).

    That is: actions that are not (steps, dimension); whatever has not one entry for each action; a dimension that
    differs from the `first` episode's; NaN or infinity in actions, rewards or observations; a last observation of
    another shape than those before it.
    """
    T = len(episode)
    if episode.actions.ndim != 2:
        yield f"actions have the shape {episode.actions.shape}, expected (steps, dimension)"
    reference = signals(first)
    for name, values in signals(episode, keys).items():
        if len(values) != T:
            yield f"{name} has {len(values)} steps, but there are {T} actions"
        shape, expected = values.shape[1:], reference[name].shape[1:] if name in reference else values.shape[1:]
        if shape != expected:
            yield f"{name} has shape {shape} per step, in episode {first.name} {expected}"
        step = first_nonfinite(values)
        if step is not None:
            yield f"{name} has NaN or infinity, first at step {step}"
    lengths = dict(episode.lengths)
    if len(episode.terminated) not in lengths.values():
        lengths["terminated"] = len(episode.terminated)
    if episode.states is not None:
        lengths["states"] = len(episode.states)
    for name, length in lengths.items():
        if length != T:
            yield f"{name} has {length} steps, but there are {T} actions"
    yield from _faults_of_the_last_observation(episode, keys)


def _faults_of_the_last_observation(episode: Episode, keys: Sequence[str] | None) -> Iterator[str]:
    for key, values in (episode.final_obs or {}).items():
        if key not in episode.obs or (keys is not None and key not in keys):
            continue
        after, expected = f"observation {key!r} after the last action", episode.obs[key].shape[1:]
        if values.shape != expected:
            yield f"{after} has shape {values.shape}, those before it {expected}"
        elif first_nonfinite(values[None]) is not None:
            yield f"{after} (step {len(episode) - 1}) has NaN or infinity"


def signals(episode: Episode, keys: Sequence[str] | None = None) -> dict[str, NDArray[np.float32]]:
    """Actions, rewards and the observations of `keys` (None: all), by what a message calls them."""
    present = [key for key in (episode.obs if keys is None else keys) if key in episode.obs]
    observations = {f"observation {key!r}": episode.obs[key] for key in present}
    return {"actions": episode.actions, "rewards": episode.rewards, **observations}


def first_nonfinite(values: NDArray[np.float32]) -> int | None:
    """The first step (row) with NaN or infinity, or None."""
    if not np.issubdtype(values.dtype, np.inexact):
        return None
    bad = ~np.isfinite(values).reshape(len(values), math.prod(values.shape[1:])).all(axis=1)
    return int(bad.argmax()) if bad.any() else None
