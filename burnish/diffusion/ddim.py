"""DDIM: steps between any two timesteps with any noise (Song et al. 2021, eqs. 12 and 16)."""

from __future__ import annotations

from typing import ClassVar

from burnish.diffusion.transition import Coefficients, Levels


class DDIM:
    """`eta`: 0 deterministic, 1 with the noise of DDPM's posterior."""

    every_step: ClassVar[bool] = False
    flow_only: ClassVar[bool] = False

    @staticmethod
    def coefficients(levels: Levels, eta: float) -> Coefficients:
        p_k, v_k, p_j, v_j = levels
        # sigma = eta sqrt(v_j / v_k) sqrt(added)
        std = eta * (v_j / v_k).sqrt() * levels.added.sqrt()
        # mean = sqrt(p_j) x0 + sqrt(v_j - sigma^2) eps', eps' = (x - sqrt(p_k) x0) / sqrt(v_k)
        x = ((v_j - std**2).clamp(min=0) / v_k).sqrt()
        x0 = p_j.sqrt() - x * p_k.sqrt()
        return Coefficients(x0, x, std)
