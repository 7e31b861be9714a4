"""Where in the replay the own episodes are: to draw from those that succeeded, and to write back what became of them.

Symbols: E environments, n rows.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from burnish.finetune.storage.replay import Batch, Replay


class OwnEpisodes:
    """Follows the rows of running episodes in a replay.

    Attributes:
        succeeded: numbers (`Replay.count` when they were stored) of the transitions of episodes with a success, those
            that the replay may have forgotten among them.
    """

    def __init__(self, replay: Replay, n_envs: int):
        self.replay = replay
        self.running: list[list[int]] = [[] for _ in range(n_envs)]
        self.success = [False] * n_envs
        self.succeeded = torch.empty(0, dtype=torch.int64, device=replay.device)

    def add(self, envs: Tensor, success: np.ndarray, ended: np.ndarray) -> dict[int, Tensor]:
        """Take the transitions that were stored last -> environment: rows (n,) of its episode, oldest first, where one
        ended.

        Args:
            envs: (n,) environment of each, in the order in which they were stored.
            success, ended: (E,) of the chunk that was executed last.
        """
        first = self.replay.count - len(envs)
        for i, e in enumerate(envs.tolist()):
            self.running[e].append(first + i)
        whole = {}
        for e, has_ended in enumerate(ended.tolist()):
            self.success[e] |= bool(success[e])
            if has_ended:
                numbers = torch.tensor(self.running[e], dtype=torch.int64, device=self.replay.device)
                if self.success[e]:
                    self.succeeded = torch.cat([self._known(self.succeeded), numbers])
                whole[e] = numbers % self.replay.capacity
                self.running[e], self.success[e] = [], False
        return whole

    def sample(self, n: int, generator: torch.Generator) -> Batch | None:
        """`n` transitions of episodes that succeeded, drawn uniformly; None where there are none."""
        self.succeeded = self._known(self.succeeded)
        if not len(self.succeeded):
            return None
        drawn = torch.randint(len(self.succeeded), (n,), device=self.replay.device, generator=generator)
        return self.replay.at(self.succeeded[drawn] % self.replay.capacity)

    def _known(self, numbers: Tensor) -> Tensor:
        """Those that the ring has not written over."""
        oldest = self.replay.count - self.replay.capacity
        return numbers if oldest <= 0 else numbers[numbers >= oldest]

    def cut(self) -> None:
        """The running episodes will not be continued."""
        self.running, self.success = [[] for _ in self.running], [False] * len(self.success)

    def state_dict(self) -> dict[str, Any]:
        return {"running": self.running, "success": self.success, "succeeded": self.succeeded}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.running, self.success = [list(numbers) for numbers in state["running"]], list(state["success"])
        self.succeeded = state["succeeded"].to(self.replay.device)
