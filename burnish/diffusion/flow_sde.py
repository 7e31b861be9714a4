"""Flow-GRPO's stochastic steps of a flow: an SDE whose distributions are those of the ODE (Liu et al. 2025,
arXiv 2505.05470, eqs. 7 to 9; `sd3_sde_with_logprob.py` of yifan123/flow_grpo).

Its clock runs backwards, s = 1 - t from 1 (noise) to 0; with x0hat = x - s v and x1hat = x + (1 - s) v of its velocity
v = eps - x_0 one Euler-Maruyama step from s to s' is

    sigma^2 = a^2 s / (1 - s)
    mean = (1 - s') x0hat + (s' - sigma^2 (s - s') / (2 s)) x1hat        std = sigma sqrt(s - s')

so the distributions are kept as the steps become small; Euler with `eta` keeps them in steps of any size. The last step
has noise too, of about a / sqrt(S).
"""

from __future__ import annotations

from typing import ClassVar

import torch

from burnish.diffusion.transition import Coefficients, Levels


class FlowSDE:
    """`eta`: the level a of the noise, 0 Euler's (released: 0.7)."""

    every_step: ClassVar[bool] = False
    flow_only: ClassVar[bool] = True

    @staticmethod
    def coefficients(levels: Levels, eta: float) -> Coefficients:
        s, s_next = levels.v_k.sqrt(), levels.v_j.sqrt()
        # in 1 - s the noisiest s = 1 is replaced by the next level, as they do
        clean = 1 - torch.where(s == 1, s_next, s)
        sigma = eta * (s / clean).sqrt()
        of_x1 = s_next - sigma**2 * (s - s_next) / (2 * s)
        # x1hat = (x - (1 - s) x0hat) / s
        return Coefficients((1 - s_next) - of_x1 * (1 - s) / s, of_x1 / s, sigma * (s - s_next).sqrt())
