"""What every vector environment asks of its arguments."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from burnish.envs.base import Bools, Floats, VectorEnv
from burnish.errors import BurnishError


def check_sizes(n_envs: int, n_obs_steps: int, n_action_steps: int, max_episode_steps: int) -> None:
    """Raises BurnishError where a size is below 1."""
    for name, value in (
        ("n_envs", n_envs),
        ("n_obs_steps", n_obs_steps),
        ("n_action_steps", n_action_steps),
        ("max_episode_steps", max_episode_steps),
    ):
        if value < 1:
            raise BurnishError(f"{name}={value}: expected at least 1")


MOST_NONFINITE = 0.5  # of the episodes
LEAST_EPISODES = 10  # of which that is said


def require_finite(nonfinite: int, episodes: int, what: str) -> None:
    """Raise BurnishError where most of at least 10 `episodes` were cut because the simulation gave no finite numbers;
    `what` they are, "training episodes"."""
    if episodes >= LEAST_EPISODES and nonfinite > MOST_NONFINITE * episodes:
        raise BurnishError(
            f"the simulation was not finite in {nonfinite} of {episodes} {what}: what they give means nothing; look at "
            "the simulator (`burnish tasks TASK --check`), its version, and how large the actions are"
        )


def check_seeds(seeds: Sequence[int] | None, n_envs: int) -> list[int | None]:
    """One seed, or None, for each environment. Raises ValueError where the number of seeds is wrong."""
    if seeds is None:
        return [None] * n_envs
    if len(seeds) != n_envs:
        raise ValueError(f"{len(seeds)} seeds for {n_envs} environments: expected one for each")
    return [int(seed) for seed in seeds]


def check_actions(env: VectorEnv, actions: Floats, mask: Bools | None) -> tuple[Floats, Bools]:
    """The arguments of `VectorEnv.step` as arrays: (E, Ta, Da) float32 and (E,) bool.

    Raises ValueError for a wrong shape, BurnishError for a non-finite action: MuJoCo would silently replace
    it by 0.
    """
    actions = np.asarray(actions, np.float32)
    expected = (env.n_envs, env.n_action_steps, env.action_dim)
    if actions.shape != expected:
        raise ValueError(f"actions have shape {actions.shape}, expected (E, Ta, Da) = {expected}")
    mask = np.ones(env.n_envs, np.bool_) if mask is None else np.asarray(mask, np.bool_)
    if mask.shape != (env.n_envs,):
        raise ValueError(f"mask has shape {mask.shape}, expected (E,) = {(env.n_envs,)}")
    if not np.isfinite(actions).all():
        bad = np.flatnonzero(mask & ~np.isfinite(actions).all(axis=(1, 2)))
        if len(bad):
            raise BurnishError(f"the action for environment {bad[0]} is not finite: the policy has diverged")
    return actions, mask


def check_state(state: dict[str, Any], n_envs: int) -> list[dict[str, Any]]:
    """The states of E environments. Raises BurnishError where there are more or fewer."""
    environments = state["environments"]
    if len(environments) != n_envs:
        raise BurnishError(
            f"saved state has {len(environments)} environments, expected n_envs={n_envs}: resume with the same n_envs"
        )
    return environments
