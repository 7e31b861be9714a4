"""RLPD: SAC with demonstrations in every batch (Ball et al. 2023, arXiv 2302.02948).

An ensemble of 10 critics with layer normalisation, of which 2 are the target each time; many of their gradient steps
for one of the actor, which climbs the mean of all; half of each batch is demonstrations.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from burnish.config import key
from burnish.finetune.soft_actor import SoftActorConfig, SoftActorStage
from burnish.networks import CriticConfig


@dataclass(frozen=True)
class RLPDConfig(SoftActorConfig):
    """Settings of RLPD, see `SoftActorConfig`; the paper's of its locomotion."""

    name: Literal["rlpd"] = "rlpd"
    critic: CriticConfig = key(factory=lambda: CriticConfig(n_critics=10, n_layers=2))
    target_critics: int | None = 2
    utd_ratio: float = key(
        20.0, "gradient steps of the critic per stored chunk; the actor and the temperature have one for all", above=0
    )
    entropy_in_target: bool = key(
        True, "the critic's target has the entropy (the paper: false where rewards are sparse)"
    )


class RLPD(SoftActorStage):
    """See the module's docstring."""

    Config = RLPDConfig
    config: RLPDConfig
    ENTROPY = -0.5

    def agreed(self, q: Tensor) -> Tensor:
        # sum_j Q_j(s, a) / n   (algorithm 1)
        return q.mean(0)
