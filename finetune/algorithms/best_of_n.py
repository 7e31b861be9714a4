"""Best of N: the pretrained policy stays as it is; a critic is learned online and chooses among its chunks.

The baseline for everything that trains a policy with the same critic: what selection alone gives, at N times the
sampling. N is `n_candidates`; the policy's single samples are those of the pretrained one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from burnish.config import WrongValue
from burnish.finetune.drawing import DrawingConfig, DrawingStage
from burnish.finetune.storage.replay import Batch


@dataclass(frozen=True)
class BestOfNConfig(DrawingConfig):
    """Settings of best of N, see `DrawingConfig`."""

    name: Literal["best_of_n"] = "best_of_n"

    def check(self) -> None:
        super().check()
        if self.n_candidates < 2:
            raise WrongValue(f"n_candidates={self.n_candidates}: expected at least 2 to choose from")


class BestOfN(DrawingStage):
    """See the module's docstring."""

    trains_policy = False
    Config = BestOfNConfig

    def update_actor(self, batch: Batch) -> dict[str, Tensor]:
        return {}
