"""What every scripted expert shares: waypoints one after the other, tracked by a proportional controller.

The robot is a Panda under robosuite's OSC_POSE controller with delta commands: an action of 1 asks for
0.05 m (along the robot base's axes, which are the world's) or 0.5 rad from where the hand is now.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from burnish.errors import BurnishError

Vector = NDArray[np.float64]  # (3,) in the world, metres

OPEN, CLOSED = -1.0, 1.0
METRES_PER_ACTION = 0.05
RADIANS_PER_ACTION = 0.5
POSITION_GAIN = 1.5
ROTATION_GAIN = 1.0


@dataclass(frozen=True)
class Waypoint:
    """Where the hand is to go next.

    Attributes:
        position: gives the goal of the grip site; asked again in every step, so that a goal tied to an
            object follows it.
        yaw: the goal's closing direction of the fingers, an angle in the horizontal plane.
        gripper: OPEN or CLOSED.
        tolerance, yaw_tolerance: metres and radians from the goal within which the waypoint is reached.
        dwell: steps to stay after it was reached, for the fingers to move.
        patience: steps after which the waypoint is given up and the next one begins.
    """

    position: Callable[[], Vector]
    yaw: float
    gripper: float
    tolerance: float
    yaw_tolerance: float = math.inf
    dwell: int = 0
    patience: int = 60


class Expert(ABC):
    """A scripted expert for one robosuite task. Attempts follow one another until the episode ends.

    Args:
        grasp_bias: metres by which the grasp is misjudged, in a random horizontal direction drawn once
            per episode.
        speed: scales the gains and, below 1, the largest command.
    """

    def __init__(self, grasp_bias: float = 0.0, speed: float = 1.0) -> None:
        if not (grasp_bias >= 0 and speed > 0):
            raise BurnishError(
                f"grasp_bias={grasp_bias}, speed={speed}: expected grasp_bias of at least 0 and speed above 0"
            )
        self.grasp_bias = grasp_bias
        self.speed = speed

    @abstractmethod
    def plan(self) -> Iterator[Waypoint]:
        """The waypoints of one attempt. What stands between two `yield`s sees the scene at that moment."""

    def reset(self, simulator: Any, rng: np.random.Generator) -> None:
        """Begin an episode in a `RobosuiteSimulator`, just reset; `rng` draws the episode's misjudgement."""
        self.env = simulator.env
        self._site = self.env.robots[0].eef_site_id["right"]
        self.home_yaw = self.hand_yaw()
        direction = rng.uniform(0.0, 2.0 * math.pi)
        self._bias = self.grasp_bias * np.array([math.cos(direction), math.sin(direction), 0.0])
        self._waypoints = self._attempts()
        self._advance()

    def act(self, obs: NDArray[np.float32] | None = None) -> NDArray[np.float32]:
        """The action (7,) in [-1, 1]: displacement, rotation vector, gripper. Experts look at the simulator's
        state, not at `obs`."""
        waypoint = self._waypoint
        shift = waypoint.position() - self.hand_position()  # (3,) metres
        turn = (hand_rotation(waypoint.yaw) * Rotation.from_matrix(self._hand_matrix()).inv()).as_rotvec()
        self._count(near=_norm(shift) < waypoint.tolerance and _norm(turn) < waypoint.yaw_tolerance)
        command = [POSITION_GAIN / METRES_PER_ACTION * shift, ROTATION_GAIN / RADIANS_PER_ACTION * turn]
        limit = min(1.0, self.speed)
        motion = np.clip(self.speed * np.concatenate(command), -limit, limit)
        return np.append(motion, waypoint.gripper).astype(np.float32)

    def over(
        self, body: int, yaw: float, height: float, offset: Callable[[], Vector] = lambda: np.zeros(3)
    ) -> Waypoint:
        """Go, open, to where `body` (plus `offset`) is thought to be, `height` metres above it."""
        return Waypoint(
            lambda: self.body_position(body) + offset() + self._bias + up(height), yaw, OPEN, tolerance=0.015
        )

    def stay(self, yaw: float, gripper: float, steps: int) -> Waypoint:
        """Hold the hand where it is now while the fingers move."""
        here = self.hand_position()
        return Waypoint(lambda: here, yaw, gripper, tolerance=math.inf, dwell=steps)

    def carry(self, body: int, goal: Vector, yaw: float, tolerance: float, yaw_tolerance: float = math.inf) -> Waypoint:
        """Bring the grasped `body` (not the hand) to `goal`."""
        return Waypoint(
            lambda: goal + self.hand_position() - self.body_position(body),
            yaw,
            CLOSED,
            tolerance,
            yaw_tolerance,
        )

    def hand_position(self) -> Vector:
        """The grip site, between the finger tips."""
        return np.array(self.env.sim.data.site_xpos[self._site])

    def hand_yaw(self) -> float:
        """The closing direction of the fingers, an angle in the horizontal plane."""
        return _y_axis_yaw(self._hand_matrix())

    def body_position(self, body: int) -> Vector:
        return np.array(self.env.sim.data.body_xpos[body])

    def body_yaw(self, body: int) -> float:
        """The direction of a body's y axis, an angle in the horizontal plane."""
        return _y_axis_yaw(self.env.sim.data.body_xmat[body].reshape(3, 3))

    def _attempts(self) -> Iterator[Waypoint]:
        while True:
            yield from self.plan()

    def _count(self, near: bool) -> None:
        """One more step on the way to the waypoint: is it time for the next?"""
        self._steps += 1
        if near or self._steps_near:
            self._steps_near += 1
        if self._steps_near > self._waypoint.dwell or self._steps >= self._waypoint.patience:
            self._advance()

    def _advance(self) -> None:
        self._waypoint = next(self._waypoints)
        self._steps = self._steps_near = 0

    def _hand_matrix(self) -> NDArray[np.float64]:
        return self.env.sim.data.site_xmat[self._site].reshape(3, 3)


def up(height: float) -> Vector:
    return np.array([0.0, 0.0, height])


def hand_rotation(yaw: float) -> Rotation:
    """The hand pointing straight down with its closing direction (its y axis) at `yaw`."""
    closing = np.array([math.cos(yaw), math.sin(yaw), 0.0])
    return Rotation.from_matrix(np.column_stack([np.cross(closing, up(-1.0)), closing, up(-1.0)]))


def nearest_yaw(yaw: float, reference: float, period: float) -> float:
    """Of the angles yaw + n * period, the one nearest to `reference`."""
    return reference + (yaw - reference + period / 2) % period - period / 2


def _norm(vector: NDArray[np.float64]) -> float:
    return float(np.linalg.norm(vector))


def _y_axis_yaw(matrix: NDArray[np.float64]) -> float:
    return math.atan2(matrix[1, 1], matrix[0, 1])
