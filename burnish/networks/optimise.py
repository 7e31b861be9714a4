"""One clipped gradient step, the same for all trainings."""

from __future__ import annotations

import torch
from torch import Tensor


def clipped_step(optimizer: torch.optim.Optimizer, loss: Tensor, max_grad_norm: float) -> None:
    """One clipped gradient step."""
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    torch.nn.utils.clip_grad_norm_((p for group in optimizer.param_groups for p in group["params"]), max_grad_norm)
    optimizer.step()
