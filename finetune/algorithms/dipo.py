"""DIPO: a diffusion policy of actions that were improved by gradient ascent (Yang et al. 2023, arXiv 2305.13122).

Every stored chunk has a twin in a memory of the actor's own. Twins are ascended in Q and written back, so that they
climb from visit to visit, and the policy is cloned from them. The critic learns from the chunks that were executed,
which are never touched: of an improved one nobody knows what it leads to.

The memory is the replay's `improvement`, what ascent has added to each chunk: 0 where it is new.

Symbols: B batch, Tp, Da as in `burnish.policies.diffusion`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from burnish.config import key
from burnish.finetune.actor import ActorConfig, ActorStage
from burnish.finetune.losses.rsm import weighted_denoising_loss
from burnish.finetune.storage.replay import Batch, Transitions

ADAM_EPS = 1e-5  # of the ascent: the slope's size matters only next to it


@dataclass(frozen=True)
class DIPOConfig(ActorConfig):
    """Settings of DIPO, see `ActorConfig`."""

    name: Literal["dipo"] = "dipo"
    action_steps: int = key(20, "steps of ascent in a gradient step", least=1)
    action_lr: float = key(
        0.03, "of their Adam, which begins anew: about what a step moves each number of a normalised chunk", above=0
    )
    action_grad_norm: float = key(
        0.1, "bound of the batch's slopes, their norm together, a dimension of the executed chunk", above=0
    )
    write_back: bool = key(
        True, "improved chunks go on from where they are (the paper); false: from the executed ones (the released code)"
    )
    n_candidates: int = key(1, "chunks sampled for each that is executed", least=1)


class DIPO(ActorStage):
    """See the module's docstring."""

    Config = DIPOConfig
    config: DIPOConfig

    def kept_besides(self, example: Transitions) -> dict[str, Tensor]:
        return super().kept_besides(example) | {"improvement": example.chunk[0]}

    def actor_loss(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        x = self.improved(batch)
        improvement = x.flatten(1) - batch.chunk
        if self.config.write_back:
            batch.write(improvement=improvement)
        # L = E || f(sqrt(abar_k) a* + sqrt(1 - abar_k) eps, k, s) - target ||^2
        below = self.policy.finetuned_timesteps
        output, target = self.policy.denoise_noised(self.actor, batch.obs, x, self.generator, below)
        return weighted_denoising_loss(output, target, x.new_ones(len(x), 1)), {"improvement": improvement.abs().mean()}

    def improved(self, batch: Batch) -> Tensor:
        """The batch's chunks as the memory has them, after this gradient step's ascent (B, 1, Tp, Da)."""
        x = self.chunks(batch) + batch.extra["improvement"].view_as(self.chunks(batch))

        def slope(x: Tensor) -> Tensor:
            return self.critic.action_gradient(batch.obs, x)  # of min_j Q_j(s, a)

        config, d = self.config, self.policy.config.n_action_steps * self.policy.action_dim
        bound = config.action_grad_norm * d
        return ascend(x, slope, config.action_steps, config.action_lr, bound, self.policy.within_bounds)

    def state_dict(self) -> dict[str, Any]:
        demos = None if self.demos is None else self.demos.extra["improvement"]
        return super().state_dict() | {"demos_improvement": demos}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        if self.demos is not None:
            self.demos.extra["improvement"].copy_(state["demos_improvement"])


def ascend(
    x: Tensor,
    slope: Callable[[Tensor], Tensor],
    steps: int,
    lr: float,
    max_norm: float,
    within_bounds: Callable[[Tensor], Tensor],
) -> Tensor:
    """`x`, of any shape, after `steps` of Adam up `slope` of it, which is shortened to `max_norm` in all; x stays."""
    x = x.clone()
    optimizer = torch.optim.Adam([x], lr, eps=ADAM_EPS, maximize=True)
    for _ in range(steps):
        x.grad = slope(x)
        torch.nn.utils.clip_grad_norm_([x], max_norm)
        optimizer.step()
        x.copy_(within_bounds(x))
    return x
