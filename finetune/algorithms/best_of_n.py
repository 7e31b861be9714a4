"""Best of N: the pretrained policy stays as it is; a critic is learned online and chooses among its chunks.

The baseline for everything that trains a policy with the same critic: what selection alone gives, at N times the
sampling. N is `n_candidates`; the policy's single samples are those of the pretrained one. It is DPMD whose actor is
frozen, so what concerns the actor's training has no effect.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from burnish.errors import BurnishError
from burnish.finetune.algorithms.dpmd import DPMD, DPMDConfig


@dataclass(frozen=True)
class BestOfNConfig(DPMDConfig):
    """Settings of best of N, see `OffPolicyConfig`."""

    name: Literal["best_of_n"] = "best_of_n"  # type: ignore[assignment]
    freeze_actor: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.freeze_actor:
            raise BurnishError("stage.freeze_actor=false: stage=best_of_n learns the critic alone (else: stage=dpmd)")
        if self.n_candidates < 2:
            raise BurnishError(f"stage.n_candidates={self.n_candidates}: expected at least 2 to choose from")


class BestOfN(DPMD):
    """See the module's docstring."""

    Config = BestOfNConfig  # type: ignore[assignment]
