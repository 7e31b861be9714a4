"""What is in a set of demonstrations, at a glance."""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from burnish.datasets.episodes import Demonstrations
from burnish.datasets.for_task import clamped_share
from burnish.datasets.formats.robomimic import success_reward
from burnish.errors import BurnishError


class Spread(NamedTuple):
    """Smallest, median and largest of some numbers."""

    minimum: float
    median: float
    maximum: float

    def __str__(self) -> str:
        return f"{self.minimum:g} / {self.median:g} / {self.maximum:g}"


class Signal(NamedTuple):
    """One observation key, or the actions: dimensions, and the range over all of them (NaN is left out)."""

    name: str
    dim: int
    minimum: float
    maximum: float
    n_episodes: int  # episodes that have it


@dataclass(frozen=True)
class Summary:
    """What `inspect` found; `str` renders it as a table.

    Attributes:
        n_steps: steps of all episodes together.
        actions: range of every action dimension, one Signal each.
        n_successes: episodes with the reward of a success; None where rewards do not tell (shaped, not robosuite's).
        masks: filter key -> number of its episodes.
        faults: what scripted experts did wrong on purpose -> number of episodes with it.
        clamped: share of the action values outside [-1, 1].
        left_out: what is no flat observation: words, groups, and pictures that no sensor names.
    """

    source: str
    n_episodes: int
    n_steps: int
    lengths: Spread
    returns: Spread
    n_successes: int | None
    n_terminated: int
    observations: list[Signal]
    actions: list[Signal]
    masks: dict[str, int]
    env_args: dict[str, Any] | None
    has_states: bool
    faults: dict[str, int]
    clamped: float
    left_out: list[str]

    def __str__(self) -> str:
        from rich.console import Console
        from rich.table import Table

        table = Table("signal", "dims", "min", "max", "episodes", title=self.source, title_justify="left")
        for signal in [*self.observations, *self.actions]:
            name, dim, low, high, count = signal
            table.add_row(name, str(dim), f"{low:.4g}", f"{high:.4g}", str(count))
        text = io.StringIO()
        console = Console(file=text, width=100, highlight=False)
        console.print(table)
        for label, value in self._lines().items():
            console.print(f"{label:<22}{value}", markup=False, soft_wrap=True)
        return text.getvalue().rstrip()

    def _lines(self) -> dict[str, str]:
        env = self.env_args or {}
        known = self.n_successes is not None
        return {
            "episodes": f"{self.n_episodes} ({self.n_steps} steps)",
            "length min/median/max": str(self.lengths),
            "return min/median/max": str(self.returns),
            "successful": f"{self.n_successes} of {self.n_episodes}" if known else "not told by the data",
            "terminated": f"{self.n_terminated} of {self.n_episodes}",
            "simulator states": "yes" if self.has_states else "no",
            "filter keys": _counts(self.masks),
            "faults on purpose": _counts(self.faults),
            "actions clamped": f"{self.clamped:.2%} of the values are outside [-1, 1]",
            "left out": ", ".join(self.left_out) or "none",
            "environment": f"{env.get('env_name', 'not named')} {env.get('env_version', '') or ''}".strip(),
        }


def inspect(demos: Demonstrations) -> Summary:
    """Count and measure demonstrations, also faulty ones: nothing but an empty set is refused.

    Raises BurnishError if there are no episodes.
    """
    episodes = demos.episodes
    if not episodes:
        raise BurnishError(f"{demos.source}: no episodes")
    keys = sorted({key for episode in episodes for key in episode.obs})
    action_dim = max(episode.actions.shape[1] for episode in episodes)
    columns = [[e.actions[:, i] for e in episodes if i < e.actions.shape[1]] for i in range(action_dim)]
    success = success_reward(demos.env_args)
    return Summary(
        source=demos.source,
        n_episodes=len(episodes),
        n_steps=sum(len(episode) for episode in episodes),
        lengths=_spread([len(episode) for episode in episodes]),
        returns=_spread([float(episode.rewards.sum()) for episode in episodes]),
        n_successes=None if success is None else sum(bool((one.rewards >= success).any()) for one in episodes),
        n_terminated=sum(bool(episode.terminated.any()) for episode in episodes),
        observations=[_signal(key, [e.obs[key] for e in episodes if key in e.obs]) for key in keys],
        actions=[_signal(f"action[{index}]", column) for index, column in enumerate(columns)],
        masks={key: len(names) for key, names in demos.masks.items()},
        env_args=demos.env_args,
        has_states=all(episode.states is not None for episode in episodes),
        faults=dict(Counter(name for episode in episodes for name in episode.faults)),
        clamped=clamped_share(episodes),
        left_out=demos.left_out,
    )


def _counts(counts: dict[str, int]) -> str:
    return ", ".join(f"{name} ({count})" for name, count in counts.items()) or "none"


def _spread(values: Sequence[float]) -> Spread:
    return Spread(float(np.min(values)), float(np.median(values)), float(np.max(values)))


def _signal(name: str, arrays: list[NDArray[np.float32]]) -> Signal:
    values = np.concatenate([array.reshape(-1) for array in arrays])
    finite = values[np.isfinite(values)]
    low, high = (float(finite.min()), float(finite.max())) if len(finite) else (np.nan, np.nan)
    dim = arrays[0].shape[1] if arrays[0].ndim > 1 else 1
    return Signal(name, dim, low, high, len(arrays))
