"""DDPM: each step draws from the posterior of x_{k-1} given x_k and the predicted x_0 (Ho et al. 2020, eq. 7)."""

from __future__ import annotations

from typing import ClassVar

from burnish.diffusion.transition import Coefficients, Levels


class DDPM:
    """All K steps; `eta` has no effect."""

    every_step: ClassVar[bool] = True
    flow_only: ClassVar[bool] = False

    @staticmethod
    def coefficients(levels: Levels, eta: float) -> Coefficients:
        p_k, v_k, p_j, v_j = levels
        added = levels.added
        # mean = added sqrt(p_j) / v_k x0 + v_j sqrt(p_k / p_j) / v_k x
        x0 = added * p_j.sqrt() / v_k
        x = v_j * (p_k / p_j).sqrt() / v_k
        # var = added v_j / v_k
        std = (added * v_j / v_k).sqrt()
        return Coefficients(x0, x, std)
