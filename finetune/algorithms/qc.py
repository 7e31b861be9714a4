"""Q-chunking: the best of N chunks of a cloned policy, in acting and in the target (Li et al. 2025, arXiv 2507.07969).

    y = sum_{i<h} gamma^i r_i + gamma^h (1 - terminated) Qbar(s', a*),    a* = argmax_n Q(s', a'_n),  a'_n ~ pi(. | s')

The policy clones all chunks, its own among them: what it learns is what the critic chose. Rewards of a chunk are
summed and it is executed whole, so that the return of h steps is that of the policy, without any correction.

Symbols: those of `burnish.finetune.drawing`; Q and Qbar are means or least values of the members.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from burnish.config import WrongValue, key
from burnish.finetune.cloning import CloningConfig, CloningStage
from burnish.finetune.storage.replay import Batch
from burnish.policies.diffusion import choose


@dataclass(frozen=True)
class QChunkingConfig(CloningConfig):
    """Settings of Q-chunking, see `CloningConfig`."""

    name: Literal["qc"] = "qc"
    n_candidates: int = 32
    target_candidates: int = key(32, "N', draws at s', of which the critic (not its average) takes the best", least=1)
    of_members: Literal["mean", "least"] = key("mean", "what counts of the ensemble in the target")

    def check(self) -> None:
        super().check()
        if self.n_candidates < 2:
            raise WrongValue(f"n_candidates={self.n_candidates}: expected at least 2 to choose from")
        if self.target_critics is not None:
            raise WrongValue(f"target_critics={self.target_critics}: expected null, of_members says what counts")


class QChunking(CloningStage):
    """See the module's docstring."""

    Config = QChunkingConfig
    config: QChunkingConfig

    @torch.no_grad()
    def next_values(self, batch: Batch) -> Tensor:
        self._draw_next(batch, 0)  # measures their width where that is due
        obs = batch.next_obs
        x = self._sample(obs, self.target_draws, self.old, self.sampler)
        x = self.best(obs, self.noised(x, self.noise_scale * self.config.draw_noise))
        q = self.critic.target(obs, self.policy.executed(x[:, None]).flatten(2))  # (n, B, 1)
        return self.agreed(q)[None]

    def best(self, obs: Tensor, x: Tensor) -> Tensor:
        """a*, of chunks `x` (B, N, Tp, Da) at `obs` (B, To * W) -> (B, Tp, Da)."""
        return choose(x, self.agreed(self.critic.network(obs, self.policy.executed(x).flatten(2))).argmax(1))

    def agreed(self, q: Tensor) -> Tensor:
        """Of the members' values (n, ...) what counts (...)."""
        return q.mean(0) if self.config.of_members == "mean" else q.amin(0)
