"""Chunks, observation history, time limit and autoreset: the rules of an episode.

Symbols: E environments, To observation steps, Ta executed action steps, Do and Da dimensions.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from burnish.envs.base import ChunkStep, Floats, Obs, Simulator
from burnish.errors import BurnishError
from burnish.observations import ObsSpec

MakeSimulator = Callable[[], Simulator]

# Rewards beyond this are taken for a blown-up simulation: the sum of a chunk must fit into float32.
LARGEST_REWARD = 1e30
WORKER_TIMEOUT = 300.0  # seconds that an environment may take for a step: robosuite's first compiles for up to a minute


class ChunkedEnv:
    """One simulator that executes chunks of actions. Every rule of `VectorEnv` about episodes is here.

    - A chunk is cut where the episode ends.
    - With ends_at_success the first success is a termination.
    - The time limit truncates; a termination at the same step is a termination only.
    - A non-finite observation or reward truncates: the history keeps the last finite observation, the step's
      reward is 0, and what the simulator said about termination and success is not believed.
    - With autoreset the next episode starts in the same step. Without, the environment must be reset before
      it can step again.

    Args:
        index: the environment's number; its generator is seeded from SeedSequence([seed, index]) if its first
            reset gives no seed.
    """

    def __init__(
        self,
        simulator: Simulator,
        *,
        n_obs_steps: int,
        n_action_steps: int,
        max_episode_steps: int,
        seed: int,
        index: int,
        autoreset: bool,
        ends_at_success: bool,
    ) -> None:
        self.simulator = simulator
        self.history: Obs = simulator.obs_spec.zeros(n_obs_steps)  # (To, Do) or records (To,), newest last
        self._is_finite = simulator.obs_spec.is_finite
        self.nonfinite_episodes = 0
        self._n_action_steps = n_action_steps
        self._max_episode_steps = max_episode_steps
        self._entropy = [seed, index]
        self._index = index
        self._autoreset = autoreset
        self._ends_at_success = ends_at_success
        self._elapsed = 0
        self._seeded = False
        self._active = False  # an episode is running

    def reset(self, seed: int | None) -> None:
        """Start an episode and fill the history with its first observation."""
        if seed is None and not self._seeded:
            seed = int(np.random.SeedSequence(self._entropy).generate_state(1)[0])
        obs = self.simulator.reset(None if seed is None else int(seed))
        if not self._is_finite(obs):
            raise RuntimeError(f"environment {self._index}: an episode's first observation is not finite")
        self.history[:] = obs
        self._elapsed, self._seeded, self._active = 0, True, True

    def step(self, actions: Floats, out: ChunkStep) -> None:
        """Execute a chunk (Ta, Da) and write this environment's row of the result."""
        if not self._active:
            raise RuntimeError(f"environment {self._index} has no running episode: reset it first, or mask it out")
        e, history, step = self._index, self.history, self.simulator.step
        total, success, truncated = 0.0, False, False
        executed = 0
        out.step_rewards[e] = 0
        while True:
            obs, reward, terminated, step_success, step_truncated = step(actions[executed])
            executed += 1
            self._elapsed += 1
            if not (-LARGEST_REWARD < reward < LARGEST_REWARD and self._is_finite(obs)):
                terminated, truncated = False, True
                self.nonfinite_episodes += 1
                break
            history[:-1] = history[1:]
            history[-1] = obs
            total += reward
            out.step_rewards[e, executed - 1] = reward
            success = success or step_success
            terminated = terminated or (step_success and self._ends_at_success)
            truncated = not terminated and (step_truncated or self._elapsed >= self._max_episode_steps)
            if terminated or truncated or executed == self._n_action_steps:
                break
        out.reward[e] = total
        out.terminated[e] = terminated
        out.truncated[e] = truncated
        out.success[e] = success
        out.steps[e] = executed
        out.final_obs[e] = history
        if terminated or truncated:
            self._active = False
            if self._autoreset:
                self.reset(None)
        out.obs[e] = history

    def stand_still(self, out: ChunkStep) -> None:
        """Write this environment's row of a step that is masked out."""
        e = self._index
        for field in (out.reward, out.terminated, out.truncated, out.success, out.steps, out.step_rewards):
            field[e] = 0
        out.obs[e] = self.history
        out.final_obs[e] = self.history

    def state_dict(self) -> dict[str, Any]:
        return {
            "simulator": self.simulator.get_state(),
            "history": self.history.copy(),
            "elapsed": self._elapsed,
            "seeded": self._seeded,
            "active": self._active,
            "nonfinite_episodes": self.nonfinite_episodes,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        saved = state["history"]
        if saved.shape != self.history.shape or saved.dtype != self.history.dtype:
            raise BurnishError(
                f"saved environment has observation histories {saved.shape}, expected "
                f"{self.history.shape} (To, Do): resume with the task and policy it was saved with"
            )
        for name, kind in {"elapsed": int, "seeded": bool, "active": bool, "nonfinite_episodes": int}.items():
            if (found := type(state[name])) is not kind:
                raise BurnishError(f"saved environment: {name} is {found.__name__}, expected {kind.__name__}")
        self.simulator.set_state(state["simulator"])
        self.history[:] = saved
        self._elapsed = state["elapsed"]
        self._seeded = state["seeded"]
        self._active = state["active"]
        self.nonfinite_episodes = state["nonfinite_episodes"]


def chunk_arrays(n_envs: int, n_obs_steps: int, n_action_steps: int, obs_spec: ObsSpec) -> ChunkStep:
    """A `ChunkStep` of zeros, to be filled row by row."""
    return ChunkStep(
        obs=obs_spec.zeros(n_envs, n_obs_steps),
        reward=np.zeros(n_envs, np.float32),
        terminated=np.zeros(n_envs, np.bool_),
        truncated=np.zeros(n_envs, np.bool_),
        final_obs=obs_spec.zeros(n_envs, n_obs_steps),
        success=np.zeros(n_envs, np.bool_),
        steps=np.zeros(n_envs, np.int64),
        step_rewards=np.zeros((n_envs, n_action_steps), np.float32),
    )
