"""Stack: put the small cube A on the larger cube B."""

from __future__ import annotations

import math
from collections.abc import Iterator

from burnish.datasets.experts.expert import Expert, Waypoint, Workspace, up


class StackExpert(Expert):
    """Over cube A, down, close, up, over cube B, down, let go, up."""

    workspace = Workspace((-0.25, -0.25, 0.8), (0.2, 0.25, 1.15), starts=(-0.08, 0.08), clear=0.95)
    short = 0.02  # holds by the cube's side, not by its corner

    @property
    def body(self) -> int:
        return self.env.cubeA_body_id

    def plan(self) -> Iterator[Waypoint]:
        large = self.env.cubeB_body_id
        yaw = self.grasp_yaw(period=math.pi / 2)

        yield from self.grasp(yaw, above=0.1, close=6)
        yield self.lift(yaw, 0.12)
        yield self.carry(self.body_position(large) + up(0.12), yaw, tolerance=0.015)
        yield self.carry(self.body_position(large) + up(0.048), yaw, tolerance=0.008)
        yield from self.release(yaw, steps=4, height=0.1)
