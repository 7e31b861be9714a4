"""E Gymnasium MuJoCo environments inside EnvPool's C++ threads (extra `envpool`).

EnvPool 1.2.5 against Gymnasium 1.4 with mujoco 3.9.0, same initial state and actions, 60 random steps of all v5
tasks but Pusher and all v4 tasks but Humanoid, Swimmer and Pusher: terminations agree, observations to 4e-8,
rewards to 5e-7 (EnvPool gives them in float32); Humanoid to 0.02 after 24 steps, as its contacts amplify the
last bit. What differs:

- a seed gives another initial state than in Gymnasium (another random generator);
- states can be neither saved nor set, so a run cannot be resumed bitwise, and seeds need a new pool;
- MuJoCo restarts a simulation that blows up silently, inside an episode. The other backends see that and
  count a non-finite episode; here the warning counters are out of reach.

Symbols: E environments, To observation steps, Ta executed action steps, Do and Da dimensions.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Sequence
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from burnish.envs.base import Bools, ChunkStep, Floats, VectorEnv
from burnish.envs.task import TaskConfig
from burnish.envs.vector.checks import check_actions, check_seeds, check_sizes
from burnish.envs.vector.episode import LARGEST_REWARD, chunk_arrays
from burnish.errors import BurnishError
from burnish.foreign import told_as
from burnish.observations import ObsSpec

_NO_LIMIT = 2**31 - 1  # the time limit is counted here: EnvPool's own would start the next episode by itself


class EnvPoolVectorEnv(VectorEnv):
    """A Gymnasium task run by EnvPool, with the semantics of `SyncVectorEnv` but numbers of its own.

    EnvPool resets an ended environment at its *next* step. Here only running environments are sent an action
    (a partial send), and those that ended are sent a reset within the same step.

    Args:
        task: a Gymnasium task; `env_kwargs` must be empty (EnvPool spells them differently).
        n_threads: of EnvPool; None for one per CPU.
        others: as in `SyncVectorEnv`. Seeds are taken modulo 2^31.

    Raises BurnishError without the extra, for a task that EnvPool does not have, and for `env_kwargs`.
    """

    def __init__(
        self,
        task: TaskConfig,
        *,
        n_envs: int,
        n_obs_steps: int,
        n_action_steps: int,
        seed: int,
        autoreset: bool = True,
        n_threads: int | None = None,
    ) -> None:
        check_sizes(n_envs, n_obs_steps, n_action_steps, task.max_episode_steps)
        _check_task(task)
        self._task = task
        self._n_threads = min(n_threads or os.cpu_count() or 1, n_envs)
        self._max_episode_steps = task.max_episode_steps
        self._autoreset = autoreset
        self.n_envs = n_envs
        self.n_obs_steps = n_obs_steps
        self.n_action_steps = n_action_steps
        self.nonfinite_episodes = 0
        self._make_pool([int(np.random.SeedSequence([seed, e]).generate_state(1)[0]) for e in range(n_envs)])
        space = self._pool.action_space
        self._half_range = ((space.high - space.low) / 2).astype(np.float32)
        self._center = ((space.high + space.low) / 2).astype(np.float32)
        self.obs_spec = ObsSpec.of_state(self._pool.observation_space.shape[0])
        self.action_dim: int = space.shape[0]
        self._history: Floats = self.obs_spec.zeros(n_envs, n_obs_steps)
        self._elapsed = np.zeros(n_envs, np.int64)
        self._active = np.zeros(n_envs, np.bool_)

    def _make_pool(self, seeds: Sequence[int]) -> None:
        import envpool

        with told_as(f"task.env_id={self._task.env_id} cannot be made by EnvPool"):
            self._pool: Any = envpool.make(
                self._task.env_id,
                env_type="gymnasium",
                num_envs=self.n_envs,
                num_threads=self._n_threads,
                seed=[seed % 2**31 for seed in seeds],
                max_episode_steps=_NO_LIMIT,
            )

    def reset(self, seeds: Sequence[int] | None = None) -> Floats:
        """As in `VectorEnv`. With seeds EnvPool is built anew, since its seeds are fixed at construction
        (about 0.1 s for 40 Hoppers)."""
        check_seeds(seeds, self.n_envs)
        if seeds is not None:
            self._make_pool([int(seed) for seed in seeds])
        self._start_episodes(np.arange(self.n_envs, dtype=np.int32))
        return self._history.copy()

    def _start_episodes(self, ids: NDArray[np.int32]) -> None:
        obs, info = self._pool.reset(ids)
        ids = info["env_id"]
        self._history[ids] = obs[:, None]
        self._elapsed[ids] = 0
        self._active[ids] = True

    def step(self, actions: Floats, mask: Bools | None = None) -> ChunkStep:
        actions, mask = check_actions(self, actions, mask)
        if (mask & ~self._active).any():
            e = np.flatnonzero(mask & ~self._active)[0]
            raise RuntimeError(f"environment {e} has no running episode: reset it first, or mask it out")
        controls = np.clip(actions, -1.0, 1.0) * self._half_range + self._center
        out = chunk_arrays(self.n_envs, self.n_obs_steps, self.n_action_steps, self.obs_spec)
        moving = np.flatnonzero(mask).astype(np.int32)
        for t in range(self.n_action_steps):
            if not len(moving):
                break
            moving = self._primitive_step(t, controls[moving, t], moving, out)
        out.reward[:] = out.step_rewards.sum(axis=1, dtype=np.float64)
        out.final_obs[:] = self._history
        ended = np.flatnonzero(out.terminated | out.truncated).astype(np.int32)
        if len(ended):
            self._active[ended] = False
            if self._autoreset:
                self._start_episodes(ended)
        out.obs[:] = self._history
        return out

    def _primitive_step(self, t: int, controls: Floats, ids: NDArray[np.int32], out: ChunkStep) -> NDArray[np.int32]:
        """Step t of a chunk in the environments `ids` -> those whose episode goes on."""
        obs, reward, terminated, _, info = self._pool.step(controls, ids)
        ids = info["env_id"]
        finite = np.isfinite(obs).all(axis=1) & (np.abs(reward) < LARGEST_REWARD)
        self._elapsed[ids] += 1
        out.steps[ids] += 1
        good = ids[finite]
        self._history[good, :-1] = self._history[good, 1:]
        self._history[good, -1] = obs[finite]
        out.step_rewards[good, t] = reward[finite]
        out.terminated[good] = terminated[finite]
        out.truncated[ids] = ~out.terminated[ids] & (~finite | (self._elapsed[ids] >= self._max_episode_steps))
        self.nonfinite_episodes += int((~finite).sum())
        return ids[~(out.terminated[ids] | out.truncated[ids])]

    def state_dict(self) -> NoReturn:
        """Raises NotImplementedError: EnvPool gives no access to its simulators' states."""
        raise NotImplementedError(
            "EnvPool cannot save its environments: use backend=sync or backend=workers to resume runs bitwise"
        )

    def load_state_dict(self, state: dict[str, Any]) -> NoReturn:
        """Raises NotImplementedError: EnvPool gives no access to its simulators' states."""
        raise NotImplementedError("EnvPool cannot restore environments: use backend=sync or backend=workers")

    def close(self) -> None:
        self._pool.close()


def _check_task(task: TaskConfig) -> None:
    if task.suite != "gymnasium":
        raise BurnishError(f"task.suite={task.suite}: EnvPool has Gymnasium tasks only; use backend=workers")
    if task.env_kwargs:
        raise BurnishError(
            f"task.env_kwargs={task.env_kwargs}: EnvPool takes none; use backend=sync or backend=workers"
        )
    try:
        import envpool
    except ImportError as error:
        raise BurnishError("backend=envpool needs the extra: pip install 'burnish[envpool]'") from error
    if task.env_id not in envpool.list_all_envs():
        nearest = difflib.get_close_matches(task.env_id, envpool.list_all_envs(), n=3, cutoff=0.3)
        raise BurnishError(f"task.env_id={task.env_id}: EnvPool has no such environment; nearest: {', '.join(nearest)}")
