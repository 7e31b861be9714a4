"""PickPlaceCan: take the can out of its bin and put it down in its compartment of the other bin."""

from __future__ import annotations

from collections.abc import Iterator

from burnish.datasets.experts.expert import CLOSED, OPEN, Expert, Waypoint, up


class CanExpert(Expert):
    """Over the can, down, close, up, across, down, let go, up."""

    def plan(self) -> Iterator[Waypoint]:
        can = self.env.obj_body_id["Can"]
        compartment = self.env.target_bin_placements[self.env.object_id]
        yaw = self.home_yaw  # the can is round

        yield self.over(can, yaw, height=0.12)
        yield self.over(can, yaw, height=0.0)
        yield self.stay(yaw, CLOSED, steps=8)
        raised = self.hand_position() + up(0.25)
        yield Waypoint(lambda: raised, yaw, CLOSED, tolerance=0.04)
        yield self.carry(can, compartment + up(0.25), yaw, tolerance=0.04)
        yield self.carry(can, compartment + up(0.08), yaw, tolerance=0.03)
        yield self.stay(yaw, OPEN, steps=4)
        cleared = self.hand_position() + up(0.15)
        yield Waypoint(lambda: cleared, yaw, OPEN, tolerance=0.03)
