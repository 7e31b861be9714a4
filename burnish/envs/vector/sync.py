"""E environments in one process.

Symbols: E environments.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from burnish.envs.base import Bools, ChunkStep, Floats, Obs, VectorEnv
from burnish.envs.vector.checks import check_actions, check_seeds, check_sizes, check_state
from burnish.envs.vector.episode import ChunkedEnv, MakeSimulator, chunk_arrays


class SyncVectorEnv(VectorEnv):
    """E simulators stepped one after the other in this process.

    Args:
        make: gives a new simulator.
        max_episode_steps: primitive steps after which an episode is truncated.
        seed: environment e starts from SeedSequence([seed, e]) if the first reset gives no seeds.
        autoreset: False leaves an ended environment at its end (`obs` equals `final_obs`); stepping it again
            without a reset is a RuntimeError, so mask it.
    """

    def __init__(
        self,
        make: MakeSimulator,
        *,
        n_envs: int,
        n_obs_steps: int,
        n_action_steps: int,
        max_episode_steps: int,
        seed: int,
        autoreset: bool = True,
        ends_at_success: bool = False,
    ) -> None:
        check_sizes(n_envs, n_obs_steps, n_action_steps, max_episode_steps)
        self._envs = [
            ChunkedEnv(
                make(),
                n_obs_steps=n_obs_steps,
                n_action_steps=n_action_steps,
                max_episode_steps=max_episode_steps,
                seed=seed,
                index=e,
                autoreset=autoreset,
                ends_at_success=ends_at_success,
            )
            for e in range(n_envs)
        ]
        self.n_envs = n_envs
        self.obs_spec = self._envs[0].simulator.obs_spec
        self.action_dim = self._envs[0].simulator.action_dim
        self.n_obs_steps = n_obs_steps
        self.n_action_steps = n_action_steps
        self.nonfinite_episodes = 0

    def reset(self, seeds: Sequence[int] | None = None) -> Obs:
        for env, seed in zip(self._envs, check_seeds(seeds, self.n_envs)):
            env.reset(seed)
        return np.stack([env.history for env in self._envs])

    def step(self, actions: Floats, mask: Bools | None = None) -> ChunkStep:
        actions, mask = check_actions(self, actions, mask)
        out = chunk_arrays(self.n_envs, self.n_obs_steps, self.n_action_steps, self.obs_spec)
        for env, chunk, moves in zip(self._envs, actions, mask.tolist()):
            if moves:
                env.step(chunk, out)
            else:
                env.stand_still(out)
        self.nonfinite_episodes = sum(env.nonfinite_episodes for env in self._envs)
        return out

    def state_dict(self) -> dict[str, Any]:
        return {"environments": [env.state_dict() for env in self._envs]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for env, env_state in zip(self._envs, check_state(state, self.n_envs)):
            env.load_state_dict(env_state)
        self.nonfinite_episodes = sum(env.nonfinite_episodes for env in self._envs)

    def close(self) -> None:
        for env in self._envs:
            env.simulator.close()
