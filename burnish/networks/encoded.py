"""What a denoiser computes once for a whole chain."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from burnish.networks.compiled.mlp import CompiledMLP


class Encoded(NamedTuple):
    """What a denoiser computes once for all denoising steps and all candidates."""

    obs: Tensor  # (B, ...), the observations' part
    times: Tensor  # (K, ...), every timestep's part
    compiled: CompiledMLP | None = None  # the rest of the network, where a chain of it can run compiled
