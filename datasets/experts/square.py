"""NutAssemblySquare: take the square nut by its handle and put it over the square peg."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np

from burnish.datasets.experts.expert import CLOSED, OPEN, Expert, Vector, Waypoint, nearest_yaw, up

PEG_HALF_HEIGHT = 0.1
HANDLE = np.array([0.054, 0.0, 0.0])  # from the nut's centre, in its own frame


class SquareExpert(Expert):
    """Over the handle, down, close, up, turn and move over the peg, down, let go."""

    def plan(self) -> Iterator[Waypoint]:
        nut, peg = self.env.obj_body_id["SquareNut"], self.env.peg1_body_id
        yaw = nearest_yaw(self.body_yaw(nut), self.home_yaw, period=math.pi)

        def handle() -> Vector:
            return self.env.sim.data.body_xmat[nut].reshape(3, 3) @ HANDLE

        yield self.over(nut, yaw, height=0.1, offset=handle)
        yield self.over(nut, yaw, height=0.0, offset=handle)
        yield self.stay(yaw, CLOSED, steps=8)
        raised = self.hand_position() + up(0.22)
        yield Waypoint(lambda: raised, yaw, CLOSED, tolerance=0.02)

        slip = self.body_yaw(nut) - self.hand_yaw()  # the nut may have turned in the fingers
        aligned = nearest_yaw(-slip, self.home_yaw, period=math.pi / 2)
        top = self.body_position(peg) + up(PEG_HALF_HEIGHT)
        yield self.carry(nut, top + up(0.05), aligned, tolerance=0.004, yaw_tolerance=0.05)
        yield self.carry(nut, top - up(0.07), aligned, tolerance=0.01)
        yield self.stay(aligned, OPEN, steps=6)
        cleared = self.hand_position() + up(0.12)
        yield Waypoint(lambda: cleared, aligned, OPEN, tolerance=0.03)
