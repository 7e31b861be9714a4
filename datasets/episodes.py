"""Demonstrations in memory: what every reader gives and every writer takes."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from burnish.errors import BurnishError
from burnish.observations import STATE, ObsSpec, Part


def natural_order(name: str) -> list[str | int]:
    """Key to sort names by, numbers in them by their size: episode_2 before episode_10."""
    return [int(part) if part.isdecimal() else part for part in re.split(r"([0-9]+)", name)]


def listed(names: Iterable[str], most: int = 10) -> str:
    """Names for a message, in natural order: all of a few, the first of many and how many there are."""
    ordered = sorted(names, key=natural_order)
    return ", ".join(ordered if len(ordered) <= most else [*ordered[: most - 1], f"... ({len(ordered)})"])


def require_flags(values: NDArray[Any], where: str) -> None:
    """Raise BurnishError, beginning with `where`, for numbers that are neither 0 nor 1."""
    wrong = np.flatnonzero((values != 0) & (values != 1))
    if len(wrong):
        raise BurnishError(f"{where} is {values.flat[wrong[0]]} at step {wrong[0]}: expected 0 or 1")


@dataclass(frozen=True)
class Episode:
    """One recorded episode of T steps.

    Attributes:
        name: its name in the file ("demo_0").
        obs: key -> (T, d), or (T, ...) of pictures and the like, the observation BEFORE each action. Sources with one
            flat observation (D4RL, Minari, DPPO) use the key "flat".
        actions: (T, Da), in [-1, 1].
        rewards: (T,)
        terminated: (T,) bool: the environment ended the episode (False at a time limit).
        final_obs: key -> (d,), the observation after the last action, where the source has it.
        states: (T, S) simulator states before each action, or None.
        model_file: the simulator's XML, or None.
        faults: what a scripted expert did wrong on purpose in it -> how much.
        left_out: what the file has under a name that was not read -> why ("holds words").
        lengths: steps of what the file has for each step, but is not kept here ("dones", "next_obs/object").
    """

    name: str
    obs: dict[str, NDArray[np.float32]]
    actions: NDArray[np.float32]
    rewards: NDArray[np.float32]
    terminated: NDArray[np.bool_]
    final_obs: dict[str, NDArray[np.float32]] | None = None
    states: NDArray[np.float64] | None = None
    model_file: str | None = None
    faults: dict[str, float] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)
    lengths: dict[str, int] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.actions)

    def obs_spec(self, keys: Sequence[str], sensors: Sequence[str] = ()) -> ObsSpec:
        """Of the observations whose state is of `keys`, with `sensors` beside it.

        Raises BurnishError naming the episode, the missing key and the keys that are there.
        """
        missing = [key for key in (*keys, *sensors) if key not in self.obs]
        if missing:
            raise BurnishError(f"episode {self.name} has {self.without(missing[0])}")
        sizes = {key: math.prod(self.obs[key].shape[1:]) for key in keys}
        state = {STATE: Part((sum(sizes.values()),))} if keys else {}
        beside = {name: Part(self.obs[name].shape[1:], self.obs[name].dtype.name) for name in sensors}
        return ObsSpec(state | beside, sizes)

    def without(self, key: str) -> str:
        """What to say where observation `key` is needed and not here."""
        if key in self.left_out:
            return f"no observation {key!r} of numbers: it {self.left_out[key]}; it has: {listed(self.obs)}"
        return f"no observation {key!r}; it has: {listed(self.obs)}"

    def flat_obs(self, keys: Sequence[str]) -> NDArray[np.float32]:
        """The observations of `keys`, joined in this order -> (T, Do)."""
        return self.observations(self.obs_spec(keys), keys)

    def observations(self, spec: ObsSpec, keys: Sequence[str]) -> NDArray[Any]:
        """Those of `spec`, its state of `keys` joined in this order -> (T, Do), or records (T,) with sensors."""
        return spec.of_keys(self.obs, keys, leading=1)

    def final_observation(self, spec: ObsSpec, keys: Sequence[str]) -> NDArray[Any]:
        """The last one -> (Do,), or one record. Raises BurnishError naming a missing key."""
        final = self.final_obs or {}
        missing = [key for key in (*keys, *spec.sensors) if key not in final]
        if missing:
            raise BurnishError(f"episode {self.name}: its final observation has no {missing[0]!r}")
        return spec.of_keys(final, keys)


@dataclass(frozen=True)
class Demonstrations:
    """A set of episodes and what is known about where they come from.

    Attributes:
        episodes: in file order (demo_2 before demo_10).
        env_args: robomimic's {"env_name", "env_version", "type", "env_kwargs"}, or None.
        masks: filter key -> names of its episodes.
        source: the file or folder it was read from, for error messages.
        left_out: observations of the file that were not read: no sensor has their name, or they are no numbers.
        unit_actions: they are known to be in [-1, 1], whatever the environment's own bounds are.
        action_bounds: lowest and highest action of the environment that it was recorded in, where the source tells.
    """

    episodes: list[Episode]
    env_args: dict[str, Any] | None = None
    masks: dict[str, list[str]] = field(default_factory=dict)
    source: str = ""
    left_out: list[str] = field(default_factory=list)
    unit_actions: bool = False
    action_bounds: tuple[list[float], list[float]] | None = None
