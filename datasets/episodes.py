"""Demonstrations in memory: what every reader gives and every writer takes."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from burnish.errors import BurnishError


@dataclass(frozen=True)
class Episode:
    """One recorded episode of T steps.

    Attributes:
        name: its name in the file ("demo_0").
        obs: key -> (T, d), the observation BEFORE each action. Sources with one flat observation
            (D4RL, Minari, DPPO) use the key "flat".
        actions: (T, Da), in [-1, 1].
        rewards: (T,)
        terminated: (T,) bool: the environment ended the episode (False at a time limit).
        final_obs: key -> (d,), the observation after the last action, where the source has it.
        states: (T, S) simulator states before each action, or None.
        model_file: the simulator's XML, or None.
        faults: what a scripted expert did wrong on purpose in it -> how much.
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

    def __len__(self) -> int:
        return len(self.actions)

    def flat_obs(self, keys: list[str]) -> NDArray[np.float32]:
        """The observations of `keys`, concatenated in this order -> (T, Do).

        Raises BurnishError naming the episode, the missing key and the keys that are there.
        """
        missing = [key for key in keys if key not in self.obs]
        if missing:
            raise BurnishError(
                f"episode {self.name} has no observation {missing[0]!r}; it has: {', '.join(sorted(self.obs))}"
            )
        return np.concatenate([self.obs[key].reshape(len(self), -1) for key in keys], axis=1).astype(np.float32)


@dataclass(frozen=True)
class Demonstrations:
    """A set of episodes and what is known about where they come from.

    Attributes:
        episodes: in file order (demo_2 before demo_10).
        env_args: robomimic's {"env_name", "env_version", "type", "env_kwargs"}, or None.
        masks: filter key -> names of its episodes.
        source: the file or folder it was read from, for error messages.
    """

    episodes: list[Episode]
    env_args: dict[str, Any] | None = None
    masks: dict[str, list[str]] = field(default_factory=dict)
    source: str = ""
