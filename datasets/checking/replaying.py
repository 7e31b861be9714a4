"""Do recorded robosuite episodes mean today what they meant when they were recorded?"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from burnish.datasets.checking.observing import Compared, compare_step, observe
from burnish.datasets.episodes import Demonstrations, Episode
from burnish.datasets.formats.robosuite_states import begin_episode, restore
from burnish.errors import BurnishError

MOST_COMPARED = 12  # steps of an episode whose observations are compared


class NoEnvironment(BurnishError):
    """The environment of the file's env_args cannot be made here."""


class ReplayResult(NamedTuple):
    """One episode, restored state by state and replayed from its first state."""

    name: str
    n_steps: int
    states_success: bool  # the task is solved in a restored state, or after the last action from there
    open_loop_success: bool  # the task is solved while the recorded actions run from the first state
    max_position_error: float  # largest difference of a joint position on the way (m, rad, or of a quaternion)
    compared: Sequence[Compared] = ()  # recorded observations, and those of the restored states


def replay(demos: Demonstrations, k: int) -> list[ReplayResult]:
    """Replay `k` episodes, spread evenly over the file, in the environment that its env_args tell.

    Open-loop replay is the harder test: contacts amplify the rounding errors of another MuJoCo version, so
    some episodes fail although their states are sound.

    Raises BurnishError if there is nothing to replay (no env_args of robosuite, no states), naming the
    episode; NoEnvironment if the environment is not here.
    """
    from burnish.envs.robosuite.env import make_task_env, task_from_env_args

    source = demos.source or "these demonstrations"
    if demos.env_args is None:
        raise BurnishError(f"{source}: no env_args, so the environment to replay in is unknown")
    if k < 1:
        raise BurnishError(f"replaying {k} episodes: expected at least 1")
    picked = np.unique(np.linspace(0, len(demos.episodes) - 1, min(k, len(demos.episodes))).astype(int))
    try:
        env = make_task_env(*task_from_env_args(demos.env_args))
    except BurnishError as error:
        raise NoEnvironment(str(error)) from error
    try:
        return [_replay(env, demos.episodes[i], f"{source}: episode {demos.episodes[i].name}") for i in picked]
    finally:
        env.close()


def _replay(env: Any, episode: Episode, where: str) -> ReplayResult:
    if episode.states is None or len(episode.states) != len(episode) or len(episode) == 0:
        found = "none" if episode.states is None else str(len(episode.states))
        raise BurnishError(f"{where}: cannot be replayed: {len(episode)} actions, states: {found}")
    if episode.actions.shape[1] != env.action_dim:
        raise BurnishError(
            f"{where}: actions of {episode.actions.shape[1]} numbers, but {type(env).__name__} takes "
            f"{env.action_dim}: the file's env_args do not describe where it was recorded"
        )
    begin_episode(env, episode.model_file, episode.states[0], where)
    states_success = bool(env._check_success())
    observed_at = set(np.linspace(0, len(episode) - 1, MOST_COMPARED).astype(int))
    compared = [compare_step(env, episode, 0)]
    for step, state in enumerate(episode.states[1:], 1):
        restore(env, state, where)
        states_success |= bool(env._check_success())
        if step in observed_at:
            compared.append(compare_step(env, episode, step))
        elif step + 1 in observed_at:
            observe(env)  # poses relative to the hand are computed from what was observed one step earlier
    env.step(episode.actions[-1])
    states_success |= bool(env._check_success())

    begin_episode(env, episode.model_file, episode.states[0], where)
    open_loop_success, max_error = bool(env._check_success()), 0.0
    positions = slice(1, 1 + env.sim.model.nq)
    for action, after in zip(episode.actions, [*episode.states[1:], None]):
        env.step(action.astype(np.float64))
        open_loop_success |= bool(env._check_success())
        if after is not None:
            max_error = max(max_error, float(np.abs(env.sim.data.qpos - after[positions]).max()))
    return ReplayResult(episode.name, len(episode), states_success, open_loop_success, max_error, compared)
