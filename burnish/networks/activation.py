"""Activations by name, and a Mish that costs less than the matrix products around it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def _mish(x: Tensor) -> Tensor:
    """x tanh(log(1 + e^x)) = x - x / (1 + e^x + e^2x / 2): one exponential, where torch's CPU kernel takes three
    transcendental functions and five times as long. An infinite e^x gives x, as it shall."""
    y = x.exp()
    torch.addcmul(y, y, y, value=0.5, out=y).add_(1)
    return torch.addcdiv(x, x, y, value=-1, out=y)


class _Mish(torch.autograd.Function):
    """`_mish` and its gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return _mish(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        # t = tanh(softplus(x)) = 1 - 2 / ((1 + e^x)^2 + 1);  d/dx = t + x (1 - t^2) sigmoid(x)
        t = x.exp().add_(1)
        t.mul_(t).add_(1).reciprocal_().mul_(-2).add_(1)
        slope = (1 - t * t).mul_(x).mul_(x.sigmoid()).add_(t)
        return slope.mul_(gradient)


class Mish(nn.Module):
    """Misra 2019. On a CPU in float32 by `_Mish`, the same function in training and in sampling; else torch's."""

    def forward(self, x: Tensor) -> Tensor:
        if x.device.type == "cpu" and x.dtype == torch.float32:
            return _Mish.apply(x) if torch.is_grad_enabled() else _mish(x)
        return F.mish(x)


ACTIVATIONS: dict[str, type[nn.Module]] = {
    "relu": nn.ReLU,
    "tanh": nn.Tanh,
    "mish": Mish,
    "silu": nn.SiLU,
    "gelu": nn.GELU,
}
