"""Cal-QL: conservative Q-learning, calibrated for what comes online (Nakamoto et al. 2023, arXiv 2303.05479).

CQL (Kumar et al. 2020, arXiv 2006.04779) pushes Q down at the policy's chunks and up at the data's. Cal-QL does not
push below R, the return that truly followed in the data: else online learning would begin by unlearning a Q that is
far too low.

Symbols: those of `burnish.finetune.soft_actor`; n members, N chunks of each kind.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from burnish.config import key
from burnish.finetune.soft_actor import SoftActorConfig, SoftActorStage
from burnish.finetune.storage.replay import Batch


@dataclass(frozen=True)
class CalQLConfig(SoftActorConfig):
    """Settings of Cal-QL, see `SoftActorConfig`; the paper's of Adroit."""

    name: Literal["calql"] = "calql"
    actor_lr: float = 1e-4
    target_candidates: int = 10
    reward_scale: float = 10.0
    conservatism: float = key(
        1.0, "weight of the conservative term (the paper's alpha: 1 on Adroit, 5 on AntMaze), in units of Q", least=0
    )
    conservative_draws: int = key(
        10, "N chunks that Q is pushed down at, of each of: uniform ones, the policy's at s, and at s'", least=1
    )
    calibrated: bool = key(True, "Q is not pushed below the return that followed; false: CQL")


class CalQL(SoftActorStage):
    """See the module's docstring."""

    Config = CalQLConfig
    config: CalQLConfig
    keeps_returns = True
    LOG_STD_OFFSET = -1.0

    def agreed(self, q: Tensor) -> Tensor:
        return q.amin(0)

    def learn(self, batch: Batch) -> dict[str, Tensor]:
        loss, q = self.critic.loss(batch, self.next_values(batch))
        gap = self.conservative_gap(batch, q).mean(1)  # (n,)
        # L_Q = sum_j E (Q_j(s, a) - y)^2 + conservatism E gap_j   (eq. 5.2)
        self.critic.minimise(loss + self.config.conservatism * gap.sum())
        metrics = {"critic_loss": loss.detach() / len(q), "q": q.detach().mean(), "q_gap": gap.detach().mean()}
        metrics |= self.update_actor(batch)
        self.gradient_steps += 1
        return metrics

    def conservative_gap(self, batch: Batch, q: Tensor) -> Tensor:
        """How far Q of all chunks, softly the largest, is above Q of the data's, `q` (n, B) -> (n, B).

            gap = log sum_i exp(max(Q(s, a_i), R) - log p_i(a_i)) - Q(s, a)

        p_i is the density that a_i was drawn from; uniform chunks, which no return says anything of, have no R.
        """
        N, d = self.config.conservative_draws, self.policy.config.n_action_steps * self.policy.action_dim
        with torch.no_grad():
            uniform = 2 * torch.rand(len(batch.obs), N, d, device=q.device, generator=self.generator) - 1
            (at, log_prob), (after, log_prob_after) = self.draw(batch.obs, N), self.draw(batch.next_obs, N)
        q_uniform, q_policy = self.critic.network(batch.obs, torch.cat([uniform, at, after], 1)).split([N, 2 * N], 2)
        if self.config.calibrated:
            q_policy = torch.maximum(q_policy, batch.extra["return_to_go"][:, None])
        weighed = [q_uniform + d * math.log(2), q_policy - torch.cat([log_prob, log_prob_after], 1)]
        return torch.cat(weighed, 2).logsumexp(2) - q
