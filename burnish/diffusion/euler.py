"""Euler's steps of a flow, x + (t' - t) v: DDIM's of its levels with eta = 0, as eps' = x - t v.

sqrt(p_j) x0 + sqrt(v_j) eps' = t' (x + (1 - t) v) + (1 - t') (x - t v) = x + (t' - t) v
"""

from __future__ import annotations

from typing import ClassVar

from burnish.diffusion.ddim import DDIM


class Euler(DDIM):
    """`eta`: 0 deterministic, 1 with the noise of the posterior in each step, which keeps the line's distribution."""

    flow_only: ClassVar[bool] = True
