"""Q by temporal differences, with the least of an ensemble (clipped double Q; Fujimoto et al. 2018).

    y = sum_{i<h} gamma^i r_i + gamma^h (1 - terminated) max_{n<=N'} min_j Qbar_j(s', a'_n),    a'_n ~ pi(. | s')

min_j is over all members, or over some that are drawn for each gradient step (REDQ, Chen et al. 2021, arXiv
2101.05982).
"""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from burnish.finetune.critics.base import Critic
from burnish.finetune.storage.replay import Batch
from burnish.networks import CriticConfig


class QCritic(Critic[CriticConfig]):
    """See the module's docstring."""

    def update(self, batch: Batch, next_outputs: Tensor | None) -> dict[str, Tensor]:
        loss, q = self.loss(batch, next_outputs)
        self.minimise(loss)
        return {"critic_loss": loss.detach() / len(q), "q": q.detach().mean()}

    def loss(self, batch: Batch, next_outputs: Tensor | None) -> tuple[Tensor, Tensor]:
        """L_Q, the sum over the members, and Q of the batch's chunks (n, B)."""
        assert next_outputs is not None
        q_next = self.target_members(next_outputs)  # (n, B, N')
        # y = r + gamma^h (1 - terminated) max_n min_j Qbar_j(s', a'_n)
        target = batch.reward + batch.discount * q_next.amin(0).amax(1)
        q = self.network(batch.obs, self.executed(batch)).squeeze(2)  # (n, B)
        # L_Q = sum_j E (Q_j(s, a) - y)^2
        return F.mse_loss(q, target.expand_as(q)) * len(q), q
