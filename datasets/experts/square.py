"""NutAssemblySquare: take the square nut by its handle and put it over the square peg."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np

from burnish.datasets.experts.expert import Expert, Vector, Waypoint, Workspace, nearest_yaw, up

PEG_HALF_HEIGHT = 0.1
HANDLE = np.array([0.054, 0.0, 0.0])  # from the nut's centre, in its own frame


class SquareExpert(Expert):
    """Over the handle, down, close, up, turn and move over the peg, down, let go."""

    workspace = Workspace((-0.35, -0.3, 0.8), (0.4, 0.4, 1.25), starts=(0.11, 0.225), clear=1.05)

    @property
    def body(self) -> int:
        return self.env.obj_body_id["SquareNut"]

    def grasp_point(self) -> Vector:
        return self.body_position(self.body) + self.env.sim.data.body_xmat[self.body].reshape(3, 3) @ HANDLE

    def plan(self) -> Iterator[Waypoint]:
        yaw = self.grasp_yaw(period=math.pi)
        yield from self.grasp(yaw, above=0.1, close=8)
        yield self.lift(yaw, 0.22)

        slip = self.body_yaw(self.body) - self.hand_yaw()  # the nut may have turned in the fingers
        aligned = nearest_yaw(-slip, self.home_yaw, period=math.pi / 2)
        top = self.body_position(self.env.peg1_body_id) + up(PEG_HALF_HEIGHT)
        yield self.carry(top + up(0.05), aligned, tolerance=0.004, yaw_tolerance=0.05)
        yield self.carry(top - up(0.07), aligned, tolerance=0.01)
        yield from self.release(aligned, steps=6, height=0.12)
