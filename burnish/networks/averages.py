"""Moving averages of a module's parameters: EMA with a counter that is saved, and Polyak's."""

from __future__ import annotations

import copy
from typing import Any, Generic, TypeVar

import torch
from torch import nn

M = TypeVar("M", bound=nn.Module)


class EMA(Generic[M]):
    """theta_ema <- d_n theta_ema + (1 - d_n) theta, with d_n = min(decay, (1 + n) / (10 + n)) after n updates.

    The warm-up makes early averages forget the initial weights (as in TensorFlow's ExponentialMovingAverage). The
    counter n is part of the state: an average resumed without it would start over from the raw weights.
    """

    def __init__(self, module: M, decay: float):
        self.module = copy.deepcopy(module)
        self.module.requires_grad_(False).eval()
        self.decay = decay
        self.updates = 0

    @torch.no_grad()
    def update(self, module: nn.Module) -> None:
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        torch._foreach_lerp_(list(self.module.parameters()), list(module.parameters()), 1 - decay)
        self.updates += 1

    def state_dict(self) -> dict[str, Any]:
        return {"module": self.module.state_dict(), "updates": self.updates}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.module.load_state_dict(state["module"])
        self.updates = state["updates"]


@torch.no_grad()
def polyak(average: nn.Module, module: nn.Module, tau: float) -> None:
    """average <- (1 - tau) average + tau module"""
    torch._foreach_lerp_(list(average.parameters()), list(module.parameters()), tau)
