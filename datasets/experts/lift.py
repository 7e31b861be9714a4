"""Lift: take the cube and raise it by 4 cm."""

from __future__ import annotations

import math
from collections.abc import Iterator

from burnish.datasets.experts.expert import CLOSED, Expert, Waypoint, nearest_yaw, up


class LiftExpert(Expert):
    """Over the cube, down, close, up."""

    def plan(self) -> Iterator[Waypoint]:
        cube = self.env.cube_body_id
        yaw = nearest_yaw(self.body_yaw(cube), self.home_yaw, period=math.pi / 2)

        yield self.over(cube, yaw, height=0.06)
        yield self.over(cube, yaw, height=0.0)
        yield self.stay(yaw, CLOSED, steps=6)
        raised = self.hand_position() + up(0.12)
        yield Waypoint(lambda: raised, yaw, CLOSED, tolerance=0.02)
