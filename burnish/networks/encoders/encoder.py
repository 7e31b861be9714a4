"""From observations to the features that networks see: the state as it is, each sensor through a network of its own.

Every network that sees observations has an encoder of its own, so that a copy of the network is whole, and what trains
the network trains its encoder. Of a state alone it has no parameters.

Symbols: B batch, To observation steps, W an observation's numbers or bytes (`burnish.observations`), F features.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from burnish.config import Checked, key
from burnish.errors import BurnishError
from burnish.networks.base import MOST_WIDTH
from burnish.observations import STATE, ObsSpec, Part
from burnish.registry import load

ENCODERS = {
    "rgb": "burnish.networks.encoders.rgb:RGBEncoder",
    "points": "burnish.networks.encoders.points:PointsEncoder",
}
"""Kind of sensor -> module:class, made of (config, shape of the part, To)."""


@dataclass(frozen=True)
class EncoderConfig(Checked):
    """The encoders of sensors; without sensors it has no effect."""

    features: int = key(64, "that each sensor gives", least=1, most=MOST_WIDTH)
    channels: list[int] = key(
        [32, 64, 64], "of a picture's convolutions, each of half the size of the one before", least=1, most=MOST_WIDTH
    )
    point_dims: list[int] = key(
        [64, 128], "of the network that every point goes through, before the maximum", least=1, most=MOST_WIDTH
    )
    kinds: dict[str, str] = key(
        factory=dict,
        doc="sensor -> rgb, points or module:Class; those not named by shape: (H, W, 3) uint8 is rgb, (P, d) points",
    )

    def count(self, spec: ObsSpec, n_obs_steps: int) -> int:
        """F"""
        return n_obs_steps * spec.state_dim + len(spec.sensors) * self.features


class Encoder(nn.Module):
    """Prepared observations (B, To * W), of what the policy prepares, -> features (B, F).

    Args:
        spec: the parts of an observation.

    Raises:
        BurnishError: a sensor that no encoder is for.
    """

    def __init__(self, spec: ObsSpec, n_obs_steps: int, config: EncoderConfig):
        super().__init__()
        self.spec, self.n_obs_steps = spec, n_obs_steps
        self.sensors = nn.ModuleDict(
            {name: _encoder(name, part, n_obs_steps, config) for name, part in spec.sensors.items()}
        )

    def forward(self, obs: Tensor) -> Tensor:
        if self.spec.is_state:
            return obs
        parts = self.spec.split(obs.unflatten(-1, (self.n_obs_steps, self.spec.width)))
        state = [parts[STATE].flatten(1)] if STATE in parts else []
        return torch.cat([*state, *(sensor(parts[name]) for name, sensor in self.sensors.items())], dim=1)


def _encoder(name: str, part: Part, n_obs_steps: int, config: EncoderConfig) -> nn.Module:
    kind = config.kinds.get(name) or _kind(name, part)
    if kind not in ENCODERS and ":" not in kind:
        raise BurnishError(f"encoder.kinds.{name}={kind}: expected one of {', '.join(ENCODERS)}, or module:Class")
    return load(ENCODERS.get(kind, kind))(config, part.shape, n_obs_steps)


def _kind(name: str, part: Part) -> str:
    if part.dtype == "uint8" and len(part.shape) == 3:
        return "rgb"
    if part.dtype == "float32" and len(part.shape) == 2:
        return "points"
    raise BurnishError(
        f"sensor {name!r} has shape {list(part.shape)} and type {part.dtype}: expected a picture (H, W, channels) of "
        f"uint8, points (P, d) of float32, or policy.encoder.kinds={{{name}: module:Class}}"
    )
