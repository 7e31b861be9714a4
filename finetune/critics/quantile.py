"""Quantiles of the return, by quantile regression (QR-DQN, Dabney et al. 2018, arXiv 1710.10044).

The target's are those of the member whose mean is the least, at the chunk where that is the largest.
"""

from __future__ import annotations

from torch import Tensor

from burnish.finetune.critics.base import Critic
from burnish.finetune.losses.critic import quantile_loss
from burnish.finetune.storage.replay import Batch
from burnish.networks import QuantileCriticConfig


class QuantileCritic(Critic[QuantileCriticConfig]):
    """See the module's docstring."""

    def update(self, batch: Batch, next_outputs: Tensor | None) -> dict[str, Tensor]:
        assert next_outputs is not None
        z_next, _ = self.least_of_best(self.target_members(next_outputs))  # (B, M)
        # T z_i = r + gamma^h (1 - terminated) zbar_i(s', a')
        targets = batch.reward[:, None] + batch.discount[:, None] * z_next
        z = self.network.outputs(batch.obs, self.executed(batch)).squeeze(2)  # (n, B, M)
        loss = quantile_loss(z, targets, self.config.huber) * len(z)
        self.minimise(loss)
        return {"critic_loss": loss.detach() / len(z), "q": z.detach().mean()}
