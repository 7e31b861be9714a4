"""Door: turn the handle and pull the door open by 0.3 rad."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from burnish.datasets.experts.expert import CLOSED, OPEN, Expert, Vector, Waypoint, Workspace, up

HANDLE = np.array([0.1, -0.1, 0.0])  # where it is taken, in the latch's frame
NEAR_AXLE = np.array([0.065, -0.1, 0.0])
UNLATCHED = 1.5  # rad
OPENED = 0.38  # rad


class DoorExpert(Expert):
    """Before the handle, to it, close, turn it up (the wrist's nearer way), pull."""

    workspace = Workspace((-0.5, -0.4, 0.85), (0.2, 0.25, 1.3), starts=(-0.382, -0.34), clear=0.0)
    turn_tolerance = 0.1

    @property
    def body(self) -> int:
        return self.env.object_body_ids["latch"]

    def grasp_point(self) -> Vector:
        return self.body_position(self.body) + self._frame(self.body) @ self._taken()

    def away(self, distance: float) -> Vector:
        return distance * self._outwards()

    def sideways(self, distance: float) -> Vector:
        return up(distance)

    def rotation(self, yaw: float) -> Rotation:
        """The hand facing the door, its fingers above and below the handle when that has turned by `yaw`."""
        facing = -self._outwards()
        upright = Rotation.from_matrix(np.column_stack([up(-1.0), np.cross(facing, up(-1.0)), facing]))
        return Rotation.from_rotvec(yaw * facing) * upright

    def plan(self) -> Iterator[Waypoint]:
        yield from self.grasp(self.faults.grasp_yaw, above=0.12, close=6)
        direction = 1.0 if self.faults.second_way else -1.0
        for latch in np.linspace(0.3, UNLATCHED, 5):
            yield self.moved(direction * latch, opening=0.0)
        for opening in np.linspace(0.1, OPENED, 4):
            yield self.moved(direction * UNLATCHED, opening, self.or_early(0.03))
        yield self.stay(self._waypoint.yaw, OPEN, steps=4)

    def second_way(self, yaw: float, above: float) -> Iterator[Waypoint]:
        """To the handle as always, but near its axle; it is turned the other way."""
        yield self.over(yaw, self.away(above))
        yield self.over(yaw, self.away(0.0))

    def moved(self, latch: float, opening: float, tolerance: float = 0.03) -> Waypoint:
        """Bring the grasped handle to where it is with these angles of the latch and of the door's hinge."""
        hinge = np.array(self.env.sim.data.xanchor[self._joint(0)])
        swing = Rotation.from_rotvec(up(opening - self._angle(0)))
        door = swing * Rotation.from_matrix(self._frame(self.env.object_body_ids["door"]))
        turned = door * Rotation.from_rotvec([0.0, latch, 0.0])
        goal = hinge + swing.apply(self.body_position(self.body) - hinge) + turned.apply(self._taken())
        yaw = latch + self.faults.grasp_yaw
        return Waypoint(lambda: goal, yaw, CLOSED, tolerance, holds=True)

    def _taken(self) -> Vector:
        return NEAR_AXLE if self.faults.second_way else HANDLE

    def _joint(self, number: int) -> int:
        return self.env.sim.model.joint_name2id(self.env.door.joints[number])

    def _angle(self, number: int) -> float:
        return self.env.sim.data.get_joint_qpos(self.env.door.joints[number])

    def _frame(self, body: int) -> NDArray[np.float64]:
        return self.env.sim.data.body_xmat[body].reshape(3, 3)

    def _outwards(self) -> Vector:
        return -self._frame(self.env.object_body_ids["door"])[:, 1]
