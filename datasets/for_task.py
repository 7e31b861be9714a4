"""Demonstrations that are to be learned from for a task: of the same environment, their actions in [-1, 1].

Symbols: T steps of an episode, Da action dimensions.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from burnish.datasets.episodes import Demonstrations, Episode
from burnish.datasets.load import load
from burnish.envs import make_simulator
from burnish.envs.same_environment import ACTIONS, Environment, all_of, as_key, of_env_args, of_task, require_same
from burnish.envs.task import SUITES, TaskConfig
from burnish.errors import BurnishError, warn

MOST_OUTSIDE = 0.1  # share of the action values outside [-1, 1] that may be a hand's excess (human ones: 0.011)
MOST_OF_ONE = 0.5  # likewise of one dimension (human ones: 0.046)
ROUNDING = 1e-4  # beyond a bound that 32 bits and a conversion may lead
NEAR = 0.1  # metres between a commanded position and the hand, where actions are positions
HAND = "robot0_eef_pos"


class Bounds(NamedTuple):
    """Of actions in an environment's own units."""

    low: NDArray[np.float64]  # (Da,)
    high: NDArray[np.float64]  # (Da,)

    @property
    def are_unit(self) -> bool:
        return bool(np.allclose(self.low, -1) and np.allclose(self.high, 1))

    def contain(self, actions: NDArray[np.float32]) -> bool:
        margin = ROUNDING * np.maximum(1, self.high - self.low)
        return bool(((actions >= self.low - margin) & (actions <= self.high + margin)).all())

    def contain_more_than(self, other: Bounds) -> bool:
        """Whether some action of these is beyond the others."""
        return bool((self.low < other.low - ROUNDING).any() or (self.high > other.high + ROUNDING).any())

    def to_unit(self, actions: NDArray[np.float32]) -> NDArray[np.float32]:
        return (2 * (actions - self.low) / (self.high - self.low) - 1).astype(np.float32)

    def __str__(self) -> str:
        pairs = [f"[{low:g}, {high:g}]" for low, high in zip(self.low, self.high)]
        return pairs[0] if len(set(pairs)) == 1 else ", ".join(pairs)


UNIT = Bounds(np.array([-1.0]), np.array([1.0]))


def demonstrations_for(
    task: TaskConfig,
    source: str | Path,
    filter_key: str | None = None,
    *,
    allow: Sequence[str] = (),
    rewards_matter: bool = False,
) -> Demonstrations:
    """`load`, and everything that a file can say against the task; a line says what share of the actions is clamped.

    Actions in the task's own units are rescaled to [-1, 1] where its bounds tell that they are.

    Raises BurnishError as `load` does, and unless it is allowed where the file was recorded in another environment, or
    where what its actions mean cannot be known.
    """
    demos = load(source, filter_key, task.sensors)
    require_same(*environments(demos, task), allow, rewards_matter=rewards_matter)
    demos, said, reason = in_unit_range(demos, task)
    if said is not None:
        warn(f"{demos.source}: {said}")
    if reason is not None and ACTIONS not in all_of(allow):
        raise BurnishError(
            f"{demos.source}: {reason}: task={task.name} takes actions in [-1, 1], and would clamp them; convert them "
            f"to what it takes, or, if clamping is wanted: {as_key([ACTIONS])}"
        )
    share = clamped_share(demos.episodes)
    told = f"{share:.2%} of the action values are outside [-1, 1]{' and clamped' if share else ''}"
    print(f"burnish: {demos.source}: {len(demos.episodes)} episodes, {told}", file=sys.stderr, flush=True)
    return demos


def environments(demos: Demonstrations, task: TaskConfig) -> tuple[Environment, Environment]:
    """What the file tells of where it was recorded, and the task's."""
    known, now = of_env_args(demos.env_args, demos.source), of_task(task)
    if demos.action_bounds is not None and (bounds := own_bounds(task)) is not None:
        known.aspects["bounds"] = {"low": demos.action_bounds[0], "high": demos.action_bounds[1]}
        now.aspects["bounds"] = {"low": bounds.low.tolist(), "high": bounds.high.tolist()}
    return known, now


class Scaled(NamedTuple):
    """Demonstrations with actions as a task takes them; what is left outside [-1, 1] will be clamped.

    Attributes:
        said: what was taken for granted, or None.
        doubt: why their meaning cannot be known, or None.
    """

    demos: Demonstrations
    said: str | None = None
    doubt: str | None = None


def in_unit_range(demos: Demonstrations, task: TaskConfig | None) -> Scaled:
    """Rescale actions that are in the task's own units to [-1, 1], where its bounds tell that they are."""
    actions = np.concatenate([episode.actions for episode in demos.episodes])
    known = demos.unit_actions or task is None or (task.suite not in SUITES and UNIT.contain(actions))
    bounds = None if known or task is None else own_bounds(task)
    if task is None or bounds is None or bounds.are_unit or len(bounds.low) != actions.shape[1]:
        return Scaled(demos, doubt=doubt(demos.episodes))
    if not bounds.contain(actions):
        reason = doubt(demos.episodes)
        return Scaled(demos, doubt=reason and f"{reason} (and beyond {bounds}, the bounds of {task.env_id})")
    if UNIT.contain(actions) and not UNIT.contain_more_than(bounds):
        return Scaled(
            demos,
            f"actions are taken to be in [-1, 1], which stands for {bounds} of {task.env_id}: if they were recorded in "
            "its own units, rescale them",
        )
    each = [replace(one, actions=bounds.to_unit(one.actions)) for one in demos.episodes]
    scaled = replace(demos, episodes=each, unit_actions=True)
    return Scaled(scaled, f"actions are in the units of {task.env_id}, {bounds}: rescaled to [-1, 1]")


def clamped_share(episodes: Sequence[Episode]) -> float:
    """Of all action values, those outside [-1, 1]."""
    n = sum(episode.actions.size for episode in episodes)
    return sum(int(_outside(episode.actions).sum()) for episode in episodes) / n if n else 0.0


def doubt(episodes: Sequence[Episode]) -> str | None:
    """Why the actions are not what an environment takes in [-1, 1], in words; None where they may well be."""
    actions = np.concatenate([episode.actions for episode in episodes if episode.actions.ndim == 2])
    if not len(actions):
        return None
    if _are_positions(episodes):
        return f"the first three action values are where the hand is ({HAND}): absolute poses, not changes of them"
    outside = _outside(actions)
    share, of_one = outside.mean(), outside.mean(axis=0)
    if share <= MOST_OUTSIDE and of_one.max() <= MOST_OF_ONE:
        return None
    worst = int(of_one.argmax())
    return (
        f"{share:.1%} of the action values are outside [-1, 1], {of_one[worst]:.0%} of those in dimension {worst} "
        f"(from {actions[:, worst].min():.3g} to {actions[:, worst].max():.3g}), as absolute poses or other units are"
    )


def _outside(actions: NDArray[np.float32]) -> NDArray[np.bool_]:
    return np.abs(actions) > 1 + ROUNDING


def _are_positions(episodes: Sequence[Episode]) -> bool:
    """Whether actions follow the hand: it goes where the last ones said."""
    fit = [
        one for one in episodes if HAND in one.obs and one.obs[HAND].shape == (len(one), 3) and one.actions.shape[1] > 2
    ]
    if len(fit) < len(episodes):
        return False
    hand = np.concatenate([one.obs[HAND] for one in fit])
    distance = np.abs(np.concatenate([one.actions[:, :3] for one in fit]) - hand).max(axis=1)
    return bool(np.median(np.abs(hand).max(axis=1)) > 3 * NEAR and np.median(distance) < NEAR)


def own_bounds(task: TaskConfig) -> Bounds | None:
    """Of the task's actions, in its own units; None where they are [-1, 1] anyway, or not known here."""
    if not task.has_simulator:
        return None
    try:
        if task.suite == "robosuite":
            from burnish.envs.robosuite.env import takes_unit_actions

            if takes_unit_actions(task):
                return None
        simulator = make_simulator(task)
    except BurnishError:
        if task.suite in SUITES:
            return None
        raise
    try:
        found = getattr(simulator, "action_bounds", None)
    finally:
        simulator.close()
    return None if found is None else Bounds(*(np.ravel(bound).astype(np.float64) for bound in found))
