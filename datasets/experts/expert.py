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

from burnish.datasets.experts.faults import EpisodeFaults, Faults
from burnish.errors import BurnishError

Vector = NDArray[np.float64]  # (3,) in the world, metres

OPEN, CLOSED = -1.0, 1.0
METRES_PER_ACTION = 0.05
RADIANS_PER_ACTION = 0.5
POSITION_GAIN = 1.5
ROTATION_GAIN = 1.0
LOST = 0.05  # metres from the grip site at which the object is not in the hand
ASIDE = 0.12  # metres from the object at which the second way comes down


@dataclass(frozen=True)
class Waypoint:
    """Where the hand is to go next.

    Attributes:
        position: gives the goal of the grip site; asked again in every step, so that a goal tied to an
            object follows it.
        yaw: the goal's direction of the hand's y axis, an angle in the horizontal plane; the fingers close across it.
        gripper: OPEN or CLOSED.
        tolerance, yaw_tolerance: metres and radians from the goal within which the waypoint is reached.
        dwell: steps to stay after it was reached, for the fingers to move.
        patience: steps after which the waypoint is given up and the next one begins.
        holds: the object is in the hand; where it is not, the attempt has failed.
    """

    position: Callable[[], Vector]
    yaw: float
    gripper: float
    tolerance: float
    yaw_tolerance: float = math.inf
    dwell: int = 0
    patience: int = 60
    holds: bool = False


@dataclass(frozen=True)
class Workspace:
    """Where a task happens, in metres of the world.

    Attributes:
        low, high: corners of the box that the hand is kept in.
        starts: range of y in which the object starts.
        clear: height at which the hand passes over everything.
    """

    low: tuple[float, float, float]
    high: tuple[float, float, float]
    starts: tuple[float, float]
    clear: float

    def keep(self, position: Vector) -> Vector:
        """The nearest place in the box."""
        return np.clip(position, self.low, self.high)

    def place(self, y: float) -> float:
        """0 at the right end of `starts`, 1 at the left one."""
        right, left = self.starts
        return (y - right) / (left - right)


class Expert(ABC):
    """A scripted expert for one robosuite task. Attempts follow one another until the episode ends.

    Args:
        grasp_bias: metres by which the grasp is misjudged, in a random horizontal direction drawn once
            per episode.
        speed: scales the gains and, below 1, the largest command.
        settings: what it does wrong; each episode draws its own of it.

    Attributes:
        faults: what is wrong with the present episode.
    """

    workspace: Workspace
    turn_tolerance = math.inf  # radians within which the hand must be turned before it goes on to the object
    short = 0.0  # metres before the object at which the second way closes the fingers
    faults = EpisodeFaults()

    def __init__(self, grasp_bias: float = 0.0, speed: float = 1.0, settings: Faults | None = None) -> None:
        if not (grasp_bias >= 0 and speed > 0):
            raise BurnishError(
                f"grasp_bias={grasp_bias}, speed={speed}: expected grasp_bias of at least 0 and speed above 0"
            )
        self.grasp_bias = grasp_bias
        self.speed = speed
        self.settings = settings or Faults()

    @property
    @abstractmethod
    def body(self) -> int:
        """The body that is grasped."""

    @abstractmethod
    def plan(self) -> Iterator[Waypoint]:
        """The waypoints of one attempt. What stands between two `yield`s sees the scene at that moment."""

    def reset(self, simulator: Any, rng: np.random.Generator) -> None:
        """Begin an episode in a `RobosuiteSimulator`, just reset; `rng` draws the episode's misjudgement and faults."""
        self.env = simulator.env
        self._site = self.env.robots[0].eef_site_id["right"]
        self.home_yaw = self.hand_yaw()
        direction = rng.uniform(0.0, 2.0 * math.pi)
        self.faults = self.settings.draw(rng, self.workspace.place(self.body_position(self.body)[1]))
        self._rng = rng
        self._bias = self.faults.scale * self.grasp_bias * along(direction)
        self._bias = self._bias + self.faults.grasp_offset * along(self.settings.grasp_direction)
        self._waypoint = Waypoint(self.hand_position, self.home_yaw, OPEN, tolerance=math.inf)
        self._waypoints = self._attempts()
        self._advance()

    def act(self, obs: NDArray[np.float32] | None = None) -> NDArray[np.float32]:
        """The action (7,) in [-1, 1]: displacement, rotation vector, gripper. Experts look at the simulator's
        state, not at `obs`."""
        if self._waypoint.holds and _norm(self.grasp_point() - self.hand_position()) > LOST:
            self._waypoints = self._attempts(lost=True)
            self._advance()
        waypoint = self._waypoint
        shift = self.workspace.keep(waypoint.position()) - self.hand_position()  # (3,) metres
        turn = (self.rotation(waypoint.yaw) * Rotation.from_matrix(self._hand_matrix()).inv()).as_rotvec()
        self._count(near=_norm(shift) < waypoint.tolerance and _norm(turn) < waypoint.yaw_tolerance)
        command = [POSITION_GAIN / METRES_PER_ACTION * shift, ROTATION_GAIN / RADIANS_PER_ACTION * turn]
        speed = self.faults.speed * self.speed
        limit = min(1.0, speed)
        motion = np.clip(speed * np.concatenate(command), -limit, limit)
        return np.append(motion, waypoint.gripper).astype(np.float32)

    def grasp(self, yaw: float, above: float, close: int) -> Iterator[Waypoint]:
        """Over the object, down, close the fingers."""
        if self.faults.detour > 0:
            yield from self._sweep(yaw, above, self.sideways(self.faults.detour))
        if self.faults.second_way:
            yield from self.second_way(yaw, above)
        else:
            yield self.over(yaw, self.away(above))
            yield self.over(yaw, self.away(0.0))
        yield self.stay(yaw, CLOSED, steps=max(round(close - self.faults.late_close), 0))

    def over(self, yaw: float, offset: Vector) -> Waypoint:
        """Go, open, to where the object is thought to be, plus `offset`."""
        return Waypoint(lambda: self.grasp_point() + self._bias + offset, yaw, OPEN, 0.015, self.turn_tolerance)

    def second_way(self, yaw: float, above: float) -> Iterator[Waypoint]:
        """Down before the object, and low from there to it, between the open fingers. The hand is not turned."""
        aside = -ASIDE * along(yaw)
        yield self.over(yaw, aside + self.away(above))
        yield self.over(yaw, aside)
        yield self.over(yaw, -self.short * along(yaw))

    def stay(self, yaw: float, gripper: float, steps: int, holds: bool = False) -> Waypoint:
        """Hold the hand where it is now while the fingers move."""
        here = self.hand_position()
        return Waypoint(lambda: here, yaw, gripper, tolerance=math.inf, dwell=steps, holds=holds)

    def lift(self, yaw: float, height: float, tolerance: float = 0.02) -> Waypoint:
        """Straight up from where the hand is now, the object in it."""
        raised = self.hand_position() + up(height)
        return Waypoint(lambda: raised, yaw, CLOSED, tolerance, holds=True)

    def carry(self, goal: Vector, yaw: float, tolerance: float, yaw_tolerance: float = math.inf) -> Waypoint:
        """Bring the grasped object (not the hand) to `goal`."""
        return Waypoint(
            lambda: goal + self.hand_position() - self.body_position(self.body),
            yaw,
            CLOSED,
            self.or_early(tolerance),
            yaw_tolerance,
            holds=True,
        )

    def release(self, yaw: float, steps: int, height: float) -> Iterator[Waypoint]:
        """Let go, and up."""
        yield self.stay(yaw, OPEN, steps)
        yield self._rise(yaw, height)

    def grasp_yaw(self, period: float) -> float:
        """The hand's yaw for an object that looks the same each `period`, as near as can be to that at home."""
        seen = self.home_yaw if self.faults.second_way else self.body_yaw(self.body)
        return nearest_yaw(seen, self.home_yaw, period) + self.faults.grasp_yaw

    def or_early(self, tolerance: float) -> float:
        """The distance from a goal at which the object is let go."""
        return max(tolerance, self.faults.early_release)

    def grasp_point(self) -> Vector:
        """Where the grip site is to be to grasp the object."""
        return self.body_position(self.body)

    def away(self, distance: float) -> Vector:
        """From the object to where the hand comes from."""
        return up(distance)

    def sideways(self, distance: float) -> Vector:
        """From the object to where a detour comes in."""
        return distance * along(math.pi / 2)

    def rotation(self, yaw: float) -> Rotation:
        """The hand's orientation for a waypoint's `yaw`."""
        return hand_rotation(yaw)

    def hand_position(self) -> Vector:
        """The grip site, between the finger tips."""
        return np.array(self.env.sim.data.site_xpos[self._site])

    def hand_yaw(self) -> float:
        """The direction of the hand's y axis, an angle in the horizontal plane."""
        return _y_axis_yaw(self._hand_matrix())

    def body_position(self, body: int) -> Vector:
        return np.array(self.env.sim.data.body_xpos[body])

    def body_yaw(self, body: int) -> float:
        """The direction of a body's y axis, an angle in the horizontal plane."""
        return _y_axis_yaw(self.env.sim.data.body_xmat[body].reshape(3, 3))

    def _attempts(self, lost: bool = False) -> Iterator[Waypoint]:
        """Attempt after attempt; `lost`: one was just given up, without the object in the hand."""
        failed = lost
        while True:
            if failed:
                still = self.stay(self._waypoint.yaw, self._waypoint.gripper, steps=10)
                while self.faults.no_recovery or not self._in_reach():
                    yield still
            if lost:
                missing = max(self.workspace.clear - self.hand_position()[2], 0.0)
                yield self._rise(self._waypoint.yaw, missing)
            for waypoint in self.plan():
                if self._rng.random() < self.faults.hesitation:
                    now = self._waypoint
                    yield self.stay(now.yaw, now.gripper, self.settings.pause, now.holds)
                yield waypoint
            failed, lost = True, False

    def _rise(self, yaw: float, height: float) -> Waypoint:
        cleared = self.hand_position() + up(height)
        return Waypoint(lambda: cleared, yaw, OPEN, tolerance=0.03)

    def _sweep(self, yaw: float, above: float, aside: Vector) -> Iterator[Waypoint]:
        """Down beside the object, and low through where it is to the other side."""
        yield self.over(yaw, aside + self.away(above))
        yield self.over(yaw, aside)
        beyond = self.grasp_point() - aside
        yield Waypoint(lambda: beyond, yaw, OPEN, tolerance=0.03)
        yield self.over(yaw, self.away(above) - aside)

    def _in_reach(self) -> bool:
        place = self.grasp_point()
        return bool(_norm(self.workspace.keep(place) - place) < LOST)

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


def along(yaw: float) -> Vector:
    """The horizontal direction at an angle from the world's x axis."""
    return np.array([math.cos(yaw), math.sin(yaw), 0.0])


def hand_rotation(yaw: float) -> Rotation:
    """The hand pointing straight down with its y axis at `yaw`; its fingers close along its x axis."""
    across = along(yaw)
    return Rotation.from_matrix(np.column_stack([np.cross(across, up(-1.0)), across, up(-1.0)]))


def nearest_yaw(yaw: float, reference: float, period: float) -> float:
    """Of the angles yaw + n * period, the one nearest to `reference`."""
    return reference + (yaw - reference + period / 2) % period - period / 2


def _norm(vector: NDArray[np.float64]) -> float:
    return float(np.linalg.norm(vector))


def _y_axis_yaw(matrix: NDArray[np.float64]) -> float:
    return math.atan2(matrix[1, 1], matrix[0, 1])
