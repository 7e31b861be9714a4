"""PickPlaceCan: take the can out of its bin and put it down in its compartment of the other bin."""

from __future__ import annotations

from collections.abc import Iterator

from burnish.datasets.experts.expert import Expert, Waypoint, Workspace, up


class CanExpert(Expert):
    """Over the can, down, close, up, across, down, let go, up."""

    workspace = Workspace((-0.15, -0.5, 0.82), (0.35, 0.5, 1.25), starts=(-0.42, -0.08), clear=1.05)

    @property
    def body(self) -> int:
        return self.env.obj_body_id["Can"]

    def plan(self) -> Iterator[Waypoint]:
        compartment = self.env.target_bin_placements[self.env.object_id]
        yaw = self.home_yaw + self.faults.grasp_yaw  # the can is round

        yield from self.grasp(yaw, above=0.12, close=8)
        yield self.lift(yaw, 0.25, tolerance=0.04)
        yield self.carry(compartment + up(0.25), yaw, tolerance=0.04)
        yield self.carry(compartment + up(0.08), yaw, tolerance=0.03)
        yield from self.release(yaw, steps=4, height=0.15)
