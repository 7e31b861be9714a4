"""E environments in one process.

Symbols: E environments.
"""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from typing import Any

import numpy as np

from burnish.envs.base import Bools, ChunkStep, Floats, Obs, VectorEnv
from burnish.envs.vector.checks import check_actions, check_seeds, check_sizes, check_state
from burnish.envs.vector.episode import WORKER_TIMEOUT, ChunkedEnv, MakeSimulator, chunk_arrays
from burnish.errors import SimulatorsLost
from burnish.machine.stop import Overdue
from burnish.machine.watch import Watch


class SyncVectorEnv(VectorEnv):
    """E simulators stepped one after the other in this process.

    Args:
        make: gives a new simulator.
        max_episode_steps: primitive steps after which an episode is truncated.
        seed: environment e starts from SeedSequence([seed, e]) if the first reset gives no seeds.
        autoreset: False leaves an ended environment at its end (`obs` equals `final_obs`); stepping it again
            without a reset is a RuntimeError, so mask it.
        timeout: seconds that a simulator may take for its part of a step or a reset; then SimulatorsLost is raised,
            now and ever after.
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
        timeout: float = WORKER_TIMEOUT,
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
        self._at = 0  # the environment that it has come to
        self._lost: str | None = None  # what was said when they were lost
        self._watch = Watch(timeout, "a simulator")
        weakref.finalize(self, self._watch.close)

    def reset(self, seeds: Sequence[int] | None = None) -> Obs:
        self._require_whole()
        try:
            for e, (env, seed) in enumerate(zip(self._envs, check_seeds(seeds, self.n_envs))):
                self._at = e
                self._watch.begin()
                env.reset(seed)
        except KeyboardInterrupt as interrupt:
            self._lose(interrupt)
            raise
        finally:
            self._watch.end()
        return np.stack([env.history for env in self._envs])

    def step(self, actions: Floats, mask: Bools | None = None) -> ChunkStep:
        actions, mask = check_actions(self, actions, mask)
        out = chunk_arrays(self.n_envs, self.n_obs_steps, self.n_action_steps, self.obs_spec)
        self._require_whole()
        begin = self._watch.begin
        try:
            for e, (env, chunk, moves) in enumerate(zip(self._envs, actions, mask.tolist())):
                if moves:
                    self._at = e
                    begin()
                    env.step(chunk, out)
                else:
                    env.stand_still(out)
        except KeyboardInterrupt as interrupt:
            self._lose(interrupt)
            raise
        finally:
            self._watch.end()
        self.nonfinite_episodes = sum(env.nonfinite_episodes for env in self._envs)
        return out

    def _lose(self, interrupt: KeyboardInterrupt) -> None:
        """Raises SimulatorsLost where it was not the user who interrupted, but what must not wait for ever."""
        if self._watch.fired:
            self._lost = (
                f"environment {self._at} has not answered for {self._watch.seconds:.0f} s: its simulator hangs, or "
                "takes longer than worker_timeout allows"
            )
            raise SimulatorsLost(self._lost) from interrupt
        if isinstance(interrupt, Overdue):
            self._lost = f"environment {self._at} did not answer in time"
            raise SimulatorsLost(self._lost, asked=True) from interrupt

    def _require_whole(self) -> None:
        if self._lost:
            raise SimulatorsLost(self._lost)

    def state_dict(self) -> dict[str, Any]:
        self._require_whole()
        return {"environments": [env.state_dict() for env in self._envs]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for env, env_state in zip(self._envs, check_state(state, self.n_envs)):
            env.load_state_dict(env_state)
        self.nonfinite_episodes = sum(env.nonfinite_episodes for env in self._envs)

    def close(self) -> None:
        self._watch.close()
        for env in self._envs:
            env.simulator.close()
