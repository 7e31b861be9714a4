"""Best of N: the pretrained policy stays as it is; a critic is learned online and chooses among its chunks.

The baseline for everything that trains a policy with the same critic: what selection alone gives, at N times the
sampling. N is `n_candidates`; the policy's single samples are those of the pretrained one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from burnish.errors import BurnishError
from burnish.finetune.off_policy import OffPolicyConfig, OffPolicyStage
from burnish.finetune.replay import Transitions


@dataclass(frozen=True)
class BestOfNConfig(OffPolicyConfig):
    """Settings of best of N: those of `OffPolicyConfig` that do not concern an actor's training."""

    name: Literal["best_of_n"] = "best_of_n"
    freeze_actor: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.freeze_actor:
            raise BurnishError("stage.freeze_actor=false: stage=best_of_n learns the critic alone (else: stage=dpmd)")
        if self.n_candidates < 2:
            raise BurnishError(f"stage.n_candidates={self.n_candidates}: expected at least 2 to choose from")


class BestOfN(OffPolicyStage):
    """See the module's docstring."""

    Config = BestOfNConfig
    config: BestOfNConfig

    @property
    def draws_for_actor(self) -> int:
        return 0

    def actor_loss(self, batch: Transitions, draws: Tensor, q: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        raise AssertionError("the actor is frozen")
