"""What algorithms share that clone the batch's chunks with the denoiser, by whatever else they change of that.

The actor is trained as in `burnish.finetune.actor`; chunks are drawn, in few steps, as in `burnish.finetune.drawing`,
but of the actor's average: there is no other old policy.

Symbols: those of `burnish.finetune.drawing`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor
from torch.nn import functional as F

from burnish.config import key
from burnish.finetune.actor import ActorConfig, ActorStage
from burnish.finetune.drawing import DrawingConfig, DrawingStage
from burnish.finetune.stage import Setting
from burnish.finetune.storage.replay import Batch
from burnish.networks import CriticConfig
from burnish.policies.diffusion import DiffusionPolicy


@dataclass(frozen=True)
class CloningConfig(DrawingConfig, ActorConfig):
    """Settings of the draws and of the actor, see `DrawingConfig` and `ActorConfig`."""

    critic: CriticConfig = key(factory=CriticConfig)
    n_step: int = 1


class CloningStage(DrawingStage, ActorStage):
    """See the module's docstring."""

    config: CloningConfig
    PARTS: ClassVar[dict[str, str]] = {**ActorStage.PARTS, **DrawingStage.PARTS}
    STATEFUL = ActorStage.STATEFUL

    def __init__(self, policy: DiffusionPolicy, config: CloningConfig, setting: Setting):
        super().__init__(policy, config, setting)
        self.old = self.averaged

    def actor_loss(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        # L = E || f(sqrt(abar_k) a + sqrt(1 - abar_k) eps, k, s) - target ||^2
        output, target = self.policy.denoise_noised(
            self.actor, batch.obs, self.chunks(batch), self.generator, self.policy.finetuned_timesteps
        )
        return F.mse_loss(output, target), {}
