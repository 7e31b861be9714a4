"""V and Q by expectiles: implicit Q-learning (Kostrikov et al. 2021, arXiv 2110.06169), IDQL's critics.

V is an expectile of Q at the data's own chunks, and Q bootstraps from V: no chunk is asked about that is not in the
data, which is what makes learning from data alone safe.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from burnish.config import key
from burnish.finetune.critics.base import Critic, Learning
from burnish.finetune.losses.critic import expectile_loss
from burnish.finetune.storage.replay import Batch
from burnish.networks import CriticConfig, ValueNetwork
from burnish.networks.optimise import clipped_step
from burnish.policies.base import Policy


@dataclass(frozen=True)
class ExpectileCriticConfig(CriticConfig):
    """A Q ensemble, and a value network of the same size."""

    kind: Literal["expectile"] = field(default="expectile", kw_only=True)  # type: ignore[assignment]
    expectile: float = key(
        0.7, "of Q over the data's chunks, which V is: 0.5 their mean, towards 1 the best of them", least=0.5, below=1
    )

    @property
    def network(self) -> CriticConfig:
        names = [each.name for each in fields(CriticConfig) if each.name != "kind"]
        return CriticConfig(**{name: getattr(self, name) for name in names})


class ExpectileCritic(Critic[ExpectileCriticConfig]):
    """See the module's docstring.

    Attributes:
        value: V of prepared observations (B, To * W) -> (B,).
    """

    bootstraps_from_chunks: ClassVar[bool] = False

    def __init__(
        self,
        policy: Policy,
        config: ExpectileCriticConfig,
        learning: Learning,
        generator: torch.Generator,
    ):
        super().__init__(policy, config, learning, generator)
        value = ValueNetwork(policy.features, config.hidden_dim, config.n_layers)
        self.value = policy.seeing(value).to(policy.device)
        self.value_optimizer = torch.optim.Adam(self.value.parameters(), lr=learning.lr, fused=True)

    def update(self, batch: Batch, next_outputs: Tensor | None = None) -> dict[str, Tensor]:
        """V first, then Q with the new V, then its average: the order of the released code."""
        # L_V = E L_2^tau(min_j Qbar_j(s, a) - V(s))   (eq. 5)
        u = self.advantages(batch)
        value_loss = expectile_loss(u, self.config.expectile)
        clipped_step(self.value_optimizer, value_loss, self.learning.max_grad_norm)
        # y = r + gamma^h (1 - terminated) V(s'), L_Q = sum_j E (Q_j(s, a) - y)^2   (eq. 6)
        with torch.no_grad():
            v_next = self.value(batch.next_obs)
        target = batch.reward + batch.discount * v_next
        q = self.network(batch.obs, self.executed(batch)).squeeze(2)  # (n, B)
        loss = F.mse_loss(q, target.expand_as(q)) * len(q)
        self.minimise(loss)
        means = {"q": q.detach().mean(), "v": v_next.mean(), "advantage": u.detach().mean()}
        return {"critic_loss": loss.detach() / len(q), "value_loss": value_loss.detach()} | means

    def advantages(self, batch: Batch) -> Tensor:
        """u = min_j Qbar_j(s, a) - V(s) of the batch's chunks (B,), with V's gradient."""
        with torch.no_grad():
            q = self.target(batch.obs, self.executed(batch)).amin(0).squeeze(1)
        return q - self.value(batch.obs)

    def state_dict(self) -> dict[str, Any]:
        of_value = {"value": self.value.state_dict(), "value_optimizer": self.value_optimizer.state_dict()}
        return super().state_dict() | of_value

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        self.value.load_state_dict(state["value"])
        self.value_optimizer.load_state_dict(state["value_optimizer"])
