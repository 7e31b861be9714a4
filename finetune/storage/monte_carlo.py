"""What the critic said of executed chunks against the returns that came: its bias, and whether it ranks them.

Symbols: E environments, C chunks of an episode, To, Tp, Do, Da as in `burnish.policies.diffusion`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from burnish.finetune.storage.replay import Transitions
from burnish.finetune.storage.returns import endless, returns_to_go


class MonteCarlo:
    """Collects the chunks of running episodes, and compares when one ends.

    An episode that a time limit ends has a return from the value at its last observation on.

    Args:
        value: observations (B, To * W), chunks (B, Tp * Da) -> Q (B,).
        tail: observations (B, To * W) -> value of the policy there (B,).
    """

    def __init__(
        self,
        n_envs: int,
        device: torch.device,
        value: Callable[[Tensor, Tensor], Tensor],
        tail: Callable[[Tensor], Tensor],
    ):
        self.device, self.value, self.tail = device, value, tail
        self.steps: list[tuple[Tensor, ...]] = []  # observation, chunk, reward, discount: E rows each, oldest first
        self.begun = [0] * n_envs  # where in `steps` the running episode of each environment begins
        self.found: list[tuple[Tensor, Tensor]] = []  # Q and return of the chunks of ended episodes, (C,) each

    def observe(self, new: Transitions, ended: Tensor) -> dict[int, Tensor]:
        """Take a chunk of each environment; `ended` (E,) bool -> environment: returns of the chunks (C,) of its
        episode, where one ended, by its rewards alone (see `endless`)."""
        found = {}
        self.steps.append((new.obs, new.chunk, new.reward, new.discount))
        for e in ended.nonzero()[:, 0].tolist():
            episode = self.steps[self.begun[e] :]
            obs, chunk, reward, discount = (torch.stack([row[e] for row in field]) for field in zip(*episode))
            self.begun[e] = len(self.steps)
            cut = bool(discount[-1] > 0)  # by a time limit; it is 0 where the environment terminated
            tail = self.tail(new.next_obs[e : e + 1])[0] if cut else torch.zeros_like(reward[0])
            returns = returns_to_go(reward, discount, tail)
            self.found.append((self.value(obs, chunk), returns))
            found[e] = returns_to_go(reward, discount, endless(reward, discount)) if cut else returns
        self._forget(min(self.begun))
        return found

    def _forget(self, n: int) -> None:
        """The first `n` steps belong to no running episode."""
        del self.steps[:n]
        self.begun = [begun - n for begun in self.begun]

    def report(self) -> dict[str, float]:
        """Mean of Q - return, and their rank correlation, over the episodes that ended since; nothing if none did."""
        if not self.found:
            return {}
        q, returns = (torch.cat(field) for field in zip(*self.found))
        self.found = []
        return {"critic_bias": float((q - returns).mean()), "critic_rank_correlation": rank_correlation(q, returns)}

    def cut(self) -> None:
        """The running episodes will not be continued."""
        self.steps, self.begun = [], [0] * len(self.begun)

    def state_dict(self) -> dict[str, Any]:
        return {"steps": [torch.stack(field) for field in zip(*self.steps)], "begun": self.begun, "found": self.found}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.steps = list(zip(*(field.to(self.device) for field in state["steps"])))
        self.begun = list(state["begun"])
        self.found = [(q.to(self.device), returns.to(self.device)) for q, returns in state["found"]]


def rank_correlation(x: Tensor, y: Tensor) -> float:
    """Spearman's, of (n,) and (n,); 0 where one of them is constant."""
    from scipy.stats import spearmanr

    x, y = x.double().cpu(), y.double().cpu()
    if len(x) < 2 or x.eq(x[0]).all() or y.eq(y[0]).all():
        return 0.0
    return float(spearmanr(x.numpy(), y.numpy()).statistic)
