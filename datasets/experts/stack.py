"""Stack: put the small cube A on the larger cube B."""

from __future__ import annotations

import math
from collections.abc import Iterator

from burnish.datasets.experts.expert import CLOSED, OPEN, Expert, Waypoint, nearest_yaw, up


class StackExpert(Expert):
    """Over cube A, down, close, up, over cube B, down, let go, up."""

    def plan(self) -> Iterator[Waypoint]:
        small, large = self.env.cubeA_body_id, self.env.cubeB_body_id
        yaw = nearest_yaw(self.body_yaw(small), self.home_yaw, period=math.pi / 2)

        yield self.over(small, yaw, height=0.1)
        yield self.over(small, yaw, height=0.0)
        yield self.stay(yaw, CLOSED, steps=6)
        raised = self.hand_position() + up(0.12)
        yield Waypoint(lambda: raised, yaw, CLOSED, tolerance=0.02)
        yield self.carry(small, self.body_position(large) + up(0.12), yaw, tolerance=0.015)
        yield self.carry(small, self.body_position(large) + up(0.048), yaw, tolerance=0.008)
        yield self.stay(yaw, OPEN, steps=4)
        cleared = self.hand_position() + up(0.1)
        yield Waypoint(lambda: cleared, yaw, OPEN, tolerance=0.03)
