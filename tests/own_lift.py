"""robosuite environments of somebody else's, for tests/test_robots.py."""

from robosuite.environments.manipulation.lift import Lift
from robosuite.environments.manipulation.two_arm_lift import TwoArmLift


class OwnLift(Lift):
    """Rewarded by an observation that no policy asks for."""

    def reward(self, action=None):
        return float(self._observables["robot0_joint_vel"].obs[0])


class Watching(Lift):
    """Adds to what is observed."""

    def _get_observations(self, force_update=False):
        found = super()._get_observations(force_update)
        return {**found, "robot0_eef_pos": found["robot0_eef_pos"] + 1}


class OwnTwoArmLift(TwoArmLift):
    pass


class NoEnvironment:
    pass
