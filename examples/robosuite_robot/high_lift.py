"""A robosuite environment of one's own: Lift, where the cube must be raised twice as high."""

from robosuite.environments.manipulation.lift import Lift


class HighLift(Lift):
    def _check_success(self) -> bool:
        table = self.model.mujoco_arena.table_offset[2]
        return bool(self.sim.data.body_xpos[self.cube_body_id][2] > table + 0.08)
