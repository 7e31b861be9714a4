"""What the training episodes gave."""

from __future__ import annotations

from typing import Any

import numpy as np

from burnish.envs.base import ChunkStep


class EpisodeStatistics:
    """Success, return and length of the training episodes that ended since the last report."""

    def __init__(self, n_envs: int):
        self.success = np.zeros(n_envs, bool)
        self.returns = np.zeros(n_envs)
        self.lengths = np.zeros(n_envs, np.int64)
        self.finished: list[tuple[float, float, float]] = []
        self.ended_in: list[int] = []  # the environment of each

    def observe(self, step: ChunkStep) -> None:
        self.success |= step.success
        self.returns += step.reward
        self.lengths += step.steps
        for e in np.flatnonzero(step.terminated | step.truncated):
            self.finished.append((float(self.success[e]), float(self.returns[e]), float(self.lengths[e])))
            self.ended_in.append(int(e))
            self.success[e], self.returns[e], self.lengths[e] = False, 0.0, 0

    def forget_running(self) -> None:
        """The running episodes will not be continued."""
        self.success[:], self.returns[:], self.lengths[:] = False, 0.0, 0

    def report(self) -> dict[str, float]:
        """Means over the episodes that ended, which are then forgotten; nothing if none did."""
        if not self.finished:
            return {}
        success, returns, lengths = np.mean(self.finished, axis=0)
        report = {
            "train/success_rate": float(success),
            "train/return": float(returns),
            "train/episode_length": float(lengths),
            "train/episodes": len(self.finished),
        }
        self.finished.clear()
        self.ended_in.clear()
        return report

    def successes(self) -> list[tuple[int, bool]]:
        """(environment, success) of the episodes that the next report is about, in the order of their ends."""
        return [(e, bool(success)) for e, (success, _, _) in zip(self.ended_in, self.finished)]

    def state_dict(self) -> dict[str, Any]:
        return vars(self)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
