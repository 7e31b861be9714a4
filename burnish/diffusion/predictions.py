"""What a network is trained to give at x = signal x_0 + noise eps, and what that says of x_0.

A class a kind, each with `target` (the regression target), `x0` (the estimate of x_0, not clipped) and `coefs`, the
a, b, c of x_0 = (a x - b output) / c, as compiled chains take them. The names are diffusers', and "velocity".
"""

from __future__ import annotations

from torch import Tensor

Coefs = tuple[Tensor, Tensor, Tensor]
Level = Tensor | float


class Epsilon:
    """The noise eps (Ho et al. 2020, eq. 14)."""

    @staticmethod
    def target(x0: Tensor, eps: Tensor, signal: Level, noise: Level) -> Tensor:
        return eps

    @staticmethod
    def x0(output: Tensor, x: Tensor, signal: Level, noise: Level) -> Tensor:
        return (x - noise * output) / signal

    @staticmethod
    def coefs(signal: Tensor, noise: Tensor) -> Coefs:
        return noise.new_ones(len(noise)), noise, signal


class Sample:
    """The clean action x_0 itself."""

    @staticmethod
    def target(x0: Tensor, eps: Tensor, signal: Level, noise: Level) -> Tensor:
        return x0

    @staticmethod
    def x0(output: Tensor, x: Tensor, signal: Level, noise: Level) -> Tensor:
        return output

    @staticmethod
    def coefs(signal: Tensor, noise: Tensor) -> Coefs:
        one = noise.new_ones(len(noise))
        return 0 * one, -one, one


class VPrediction:
    """v = signal eps - noise x_0, where signal^2 + noise^2 = 1 (Salimans & Ho 2022, arXiv 2202.00512, app. D)."""

    @staticmethod
    def target(x0: Tensor, eps: Tensor, signal: Level, noise: Level) -> Tensor:
        return signal * eps - noise * x0

    @staticmethod
    def x0(output: Tensor, x: Tensor, signal: Level, noise: Level) -> Tensor:
        return signal * x - noise * output

    @staticmethod
    def coefs(signal: Tensor, noise: Tensor) -> Coefs:
        return signal, noise, noise.new_ones(len(noise))


class Velocity:
    """x_0 - eps, where signal + noise = 1 (Lipman et al. 2023, arXiv 2210.02747, eq. 23 with sigma_min = 0)."""

    @staticmethod
    def target(x0: Tensor, eps: Tensor, signal: Level, noise: Level) -> Tensor:
        return x0 - eps

    @staticmethod
    def x0(output: Tensor, x: Tensor, signal: Level, noise: Level) -> Tensor:
        return x + noise * output

    @staticmethod
    def coefs(signal: Tensor, noise: Tensor) -> Coefs:
        one = noise.new_ones(len(noise))
        return one, -noise, one
