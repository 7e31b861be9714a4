"""What one denoising step is: a Gaussian, and the numbers that a sampler's equations give for all of its steps.

Symbols: S steps; k and j a step's start and end, p = signal^2 and v = noise^2 there (p_j = 1, v_j = 0 after the last);
of diffusion p = abar and v = 1 - abar.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, NamedTuple, Protocol

from torch import Tensor

from burnish.errors import BurnishError


class Levels(NamedTuple):
    """Of the steps' ends, float64 (S,)."""

    p_k: Tensor
    v_k: Tensor
    p_j: Tensor
    v_j: Tensor

    @property
    def added(self) -> Tensor:
        """Variance of x_k given x_j: v_k - p_k / p_j v_j, written so that diffusion's is 1 - abar_k / abar_j."""
        return (self.p_k + self.v_k) - self.p_k / self.p_j * (self.p_j + self.v_j)


class Coefficients(NamedTuple):
    """mean = x0 * x0hat + x * x_k and std of the steps, float64 (S,)."""

    x0: Tensor
    x: Tensor
    std: Tensor


class Equations(Protocol):
    """A kind of samplers."""

    every_step: ClassVar[bool]  # it goes through all K timesteps
    flow_only: ClassVar[bool]

    @staticmethod
    def coefficients(levels: Levels, eta: float) -> Coefficients:
        """`eta`: how much noise, 0 to 1; each says what that means."""
        ...


class Gaussian(NamedTuple):
    """A denoising step: N(mean, std^2), element by element."""

    mean: Tensor  # (B, ...)
    std: Tensor  # broadcasts against it, before floor and ceiling

    def log_prob(self, x: Tensor) -> Tensor:
        """Of each element of `x` (B, ...)."""
        return gaussian_log_prob(x, self.mean, self.std)


@dataclass(frozen=True)
class StdBounds:
    """Floor and ceiling of a transition's standard deviation; sampling and log-probability have their own."""

    floor: float = 0.0
    ceiling: float = math.inf

    def __post_init__(self) -> None:
        if not 0 <= self.floor <= self.ceiling:
            raise BurnishError(f"std floor {self.floor} and ceiling {self.ceiling}: expected 0 <= floor <= ceiling")

    def of(self, std: Tensor) -> Tensor:
        """`std`, within these bounds."""
        return std.clamp(self.floor, self.ceiling)


def gaussian_log_prob(x: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """log N(x; mean, std^2), element by element (broadcasting)."""
    return -0.5 * ((x - mean) / std) ** 2 - std.log() - 0.5 * math.log(2 * math.pi)
