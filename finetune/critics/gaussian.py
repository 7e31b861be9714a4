"""Mean and standard deviation of the return: DSAC-T's critic (Duan et al. 2023, arXiv 2310.05858), which DACER has.

The target of the mean is the least mean of the target's members; that of the standard deviation has a sampled return
of the same member. Errors are bounded by the running mean b of the standard deviation, which also sets the scale of the
gradient: rewards of another size ask for no other learning rate.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from burnish.finetune.critics.base import Critic, Learning
from burnish.finetune.losses.critic import gaussian_loss
from burnish.finetune.storage.replay import Batch
from burnish.networks import GaussianCriticConfig
from burnish.policies.base import Policy

SAMPLED_WITHIN = 3.0  # standard deviations


class GaussianCritic(Critic[GaussianCriticConfig]):
    """See the module's docstring."""

    def __init__(
        self,
        policy: Policy,
        config: GaussianCriticConfig,
        learning: Learning,
        generator: torch.Generator,
    ):
        super().__init__(policy, config, learning, generator)
        self.typical_std: Tensor | None = None  # b (n,), from the first batch on

    def update(self, batch: Batch, next_outputs: Tensor | None) -> dict[str, Tensor]:
        assert next_outputs is not None
        outputs_next, _ = self.least_of_best(self.target_members(next_outputs))  # (B, 2)
        mean_next, std_next = self.config.mean(outputs_next), self.config.std(outputs_next)
        z = torch.randn(mean_next.shape, device=mean_next.device, generator=self.generator)
        sampled = mean_next + std_next * z.clamp(-SAMPLED_WITHIN, SAMPLED_WITHIN)
        y, y_sampled = (batch.reward + batch.discount * each for each in (mean_next, sampled))
        outputs = self.network.outputs(batch.obs, self.executed(batch)).squeeze(2)  # (n, B, 2)
        mean, std = self.config.mean(outputs), self.config.std(outputs)
        loss = gaussian_loss(mean, std, y, y_sampled, self._typical(std.detach().mean(1)))
        self.minimise(loss)
        error = (mean.detach() - y).square().mean()  # the loss's value says nothing
        return {"critic_loss": error, "q": mean.detach().mean(), "q_std": std.detach().mean()}

    def _typical(self, std: Tensor) -> Tensor:
        """b after a batch whose mean is `std` (n,)."""
        b, tau = self.typical_std, self.learning.tau
        # b <- (1 - tau) b + tau E std
        self.typical_std = std if b is None else torch.lerp(b, std, tau)
        return self.typical_std

    def state_dict(self) -> dict[str, Any]:
        return super().state_dict() | {"typical_std": self.typical_std}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        b = state["typical_std"]
        self.typical_std = None if b is None else b.to(self.policy.device)
