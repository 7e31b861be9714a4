"""Lift: take the cube and raise it by 4 cm."""

from __future__ import annotations

import math
from collections.abc import Iterator

from burnish.datasets.experts.expert import Expert, Waypoint, Workspace


class LiftExpert(Expert):
    """Over the cube, down, close, up."""

    workspace = Workspace((-0.25, -0.25, 0.8), (0.2, 0.25, 1.15), starts=(-0.03, 0.03), clear=0.9)
    short = 0.02  # holds by the cube's side, not by its corner

    @property
    def body(self) -> int:
        return self.env.cube_body_id

    def plan(self) -> Iterator[Waypoint]:
        yaw = self.grasp_yaw(period=math.pi / 2)
        yield from self.grasp(yaw, above=0.06, close=6)
        yield self.lift(yaw, 0.12, self.or_early(0.02))
        if self.faults.early_release > 0:
            yield from self.release(yaw, steps=4, height=0.0)
