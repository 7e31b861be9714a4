"""E environments in W worker processes; actions and results pass through shared memory.

Workers are spawned: a script that makes a `WorkerVectorEnv` needs the usual `if __name__ == "__main__":`.

Symbols: E environments, W workers.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from multiprocessing.shared_memory import SharedMemory
from typing import Any

from burnish.envs.base import Bools, ChunkStep, Floats, Obs, VectorEnv
from burnish.envs.vector.checks import check_actions, check_seeds, check_sizes, check_state
from burnish.envs.vector.episode import WORKER_TIMEOUT, MakeSimulator
from burnish.envs.vector.processes import Limit, SharedArrays, Sizes, WorkerPlan, Workers, shared_arrays
from burnish.errors import BurnishError

START_TIMEOUT = 120.0  # seconds that a worker always has to start, and to make an environment


class WorkerVectorEnv(VectorEnv):
    """E environments in W processes, bitwise equal to `SyncVectorEnv` with the same arguments.

    A worker that raises closes the whole vector environment (and those it shares workers with) and raises here, naming
    the worker. A user's mistake (BurnishError) inside a worker is a BurnishError here too. One that dies, or does not
    answer for `timeout` seconds, does the same: SimulatorsLost, then and ever after.

    Args:
        make: gives a new simulator; must be picklable (a function of a module, `functools.partial` of one).
        n_workers: processes; at most `n_envs` are started.
        beside: a vector environment whose workers these environments move into, if it has as many.
        timeout: seconds that one environment may take for its part of a command.
        others: as in `SyncVectorEnv`.
    """

    workers: Workers

    def __init__(
        self,
        make: MakeSimulator,
        *,
        n_envs: int,
        n_obs_steps: int,
        n_action_steps: int,
        max_episode_steps: int,
        seed: int,
        n_workers: int,
        autoreset: bool = True,
        ends_at_success: bool = False,
        beside: VectorEnv | None = None,
        timeout: float = WORKER_TIMEOUT,
    ) -> None:
        check_sizes(n_envs, n_obs_steps, n_action_steps, max_episode_steps)
        if n_workers < 1:
            raise BurnishError(f"n_workers={n_workers}: expected at least 1")
        n_workers = min(n_workers, n_envs)
        bounds = [w * n_envs // n_workers for w in range(n_workers + 1)]
        self._indices = [range(start, stop) for start, stop in pairwise(bounds)]
        self._arrays: SharedArrays | None = None  # before the memory: it is released in this order
        self._memory: SharedMemory | None = None
        self._closed = False
        plans = [
            WorkerPlan(make, indices, n_obs_steps, n_action_steps, max_episode_steps, seed, autoreset, ends_at_success)
            for indices in self._indices
        ]
        shared = beside.workers if isinstance(beside, WorkerVectorEnv) else None
        if shared is None or shared.closed or len(shared) != n_workers:
            shared = Workers(n_workers, timeout)
        self.workers = shared
        self._vector = self.workers.admit()
        self._limit = Limit(max(timeout, START_TIMEOUT))
        try:
            self._command("make", plans)
            obs_spec, action_dim = self._command("sizes", [None] * n_workers)[0]
            self._share(Sizes(n_envs, n_obs_steps, n_action_steps, obs_spec, action_dim))
        except BaseException:
            self.close()
            raise
        self._limit = Limit(timeout, self._at)
        self.n_envs = n_envs
        self.obs_spec = obs_spec
        self.action_dim = action_dim
        self.n_obs_steps = n_obs_steps
        self.n_action_steps = n_action_steps
        self.nonfinite_episodes = 0

    def _share(self, sizes: Sizes) -> None:
        _, size = shared_arrays(sizes, None)
        self._memory = SharedMemory(create=True, size=size)
        try:
            self._arrays, _ = shared_arrays(sizes, self._memory)
            self._command("attach", [(self._memory.name, sizes)] * len(self.workers))
        finally:
            self._memory.unlink()  # all have it open, and now nothing can be left behind, even by kill -9

    def _command(self, command: str, arguments: Sequence[Any]) -> list[Any]:
        if self._closed:
            raise RuntimeError("this WorkerVectorEnv is closed")
        return self.workers.command(self._vector, command, arguments, self._indices, self._limit)

    def _at(self, worker: int) -> int:
        """The environment that the worker has come to."""
        first = self._indices[worker].start
        return first if self._arrays is None else int(self._arrays.at[first])

    @property
    def _shared(self) -> SharedArrays:
        if self._arrays is None:
            raise RuntimeError("this WorkerVectorEnv is closed")
        return self._arrays

    def reset(self, seeds: Sequence[int] | None = None) -> Obs:
        all_seeds = check_seeds(seeds, self.n_envs)
        self._command("reset", [all_seeds[indices.start : indices.stop] for indices in self._indices])
        return self._shared.out.obs.copy()

    def step(self, actions: Floats, mask: Bools | None = None) -> ChunkStep:
        actions, mask = check_actions(self, actions, mask)
        shared = self._shared
        self.workers.settle()  # before the workers of an interrupted step read other actions
        shared.actions[:] = actions
        shared.mask[:] = mask
        self._command("step", [None] * len(self.workers))
        self.nonfinite_episodes = int(shared.nonfinite_episodes.sum())
        return _copy(shared.out)

    def state_dict(self) -> dict[str, Any]:
        answers = self._command("state_dict", [None] * len(self.workers))
        return {"environments": [state for states in answers for state in states]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        environments = check_state(state, self.n_envs)
        self._command("load_state_dict", [environments[indices.start : indices.stop] for indices in self._indices])
        self.nonfinite_episodes = int(self._shared.nonfinite_episodes.sum())

    def close(self) -> None:
        """End the environments, and the workers where no other vector environment lives in them."""
        if self._closed:
            return
        self._closed = True
        self.workers.drop(self._vector, self._indices)
        self._arrays = None  # numpy's views must go before the memory can
        if self._memory is not None:
            self._memory.close()


def _copy(out: ChunkStep) -> ChunkStep:
    arrays: list[Any] = [array.copy() for array in out]
    return ChunkStep(*arrays)
