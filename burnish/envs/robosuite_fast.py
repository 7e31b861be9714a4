"""robosuite's control step with the same numbers and less Python.

One control step at 20 Hz is 25 physics substeps, and stock robosuite spends most of it on looking up names,
on computing action limits again and on visiting every observable in every substep. Here the first substep,
which takes the new action, is robosuite's own; in the other 24, the goals stand still, the gripper's command
stays what it is, and only the arm's torques are computed: with robosuite's own operations on arrays of the
same memory layout, so that trajectories and observations stay bitwise equal (tests/test_robosuite.py).
"""

from __future__ import annotations

from types import MethodType
from typing import Any

import mujoco
import numpy as np


def speed_up(env: Any) -> None:
    """Give this robosuite environment the fast `step` where it is exactly equivalent; else do nothing."""
    if has_plain_controllers(env):
        env.step = MethodType(_step, env)
        env.arm_torques = None


def has_plain_controllers(env: Any) -> bool:
    """Whether robosuite steps this environment in the way that is copied here: fixed robots with BASIC
    composite controllers of OSC arms and simple grippers, no interpolation, `lite_physics` (the default)."""
    from robosuite.environments.base import MujocoEnv
    from robosuite.environments.robot_env import RobotEnv

    stock = type(env).step is MujocoEnv.step and type(env)._pre_action is RobotEnv._pre_action
    stock = stock and env.lite_physics and env.viewer is None and not env.has_renderer
    return stock and all(_is_plain(robot) for robot in env.robots)


def _is_plain(robot: Any) -> bool:
    from robosuite.controllers.composite.composite_controller import CompositeController
    from robosuite.controllers.parts.arm.osc import OperationalSpaceController
    from robosuite.controllers.parts.gripper.simple_grip import SimpleGripController
    from robosuite.robots.fixed_base_robot import FixedBaseRobot

    if type(robot) is not FixedBaseRobot or type(robot.composite_controller) is not CompositeController:
        return False
    model = robot.sim.model
    for name, part in robot.part_controllers.items():
        if name in robot.arms:
            base = model.site_bodyid[model.site_name2id(f"{part.naming_prefix}{part.part_name}_center")]
            plain = type(part) is OperationalSpaceController and part.uncoupling and part.num_ref_sites == 1
            plain = plain and part.interpolator_pos is None and part.interpolator_ori is None
            plain = plain and model.body_weldid[base] == 0  # its base cannot move
        else:
            plain = type(part) is SimpleGripController and part.interpolator is None
        if not plain:
            return False
    return True


def _step(self: Any, action: Any) -> tuple[Any, float, bool, dict[str, Any]]:
    """`MujocoEnv.step` (robosuite 1.5.2)."""
    if self.done:
        raise ValueError("executing action in terminated episode")
    self.timestep += 1
    model, data = self.sim.model._model, self.sim.data._data
    clock = _ObservableClock(self)
    for substep in range(int(self.control_timestep / self.model_timestep)):
        mujoco.mj_step1(model, data)
        if substep == 0:
            self._pre_action(action, True)
            arms = _arms(self)
        else:
            for arm in arms:
                arm.apply_torques()
        mujoco.mj_step2(model, data)
        clock.tick()
    clock.synchronize()
    self.cur_time += self.control_timestep
    reward, done, info = self._post_action(action)
    return self._get_observations(), reward, done, info


def _arms(env: Any) -> list[_ArmTorques]:
    """The arms' torque loops, made anew when a reset has made new controllers."""
    controllers = [robot.part_controllers[arm] for robot in env.robots for arm in robot.arms]
    if env.arm_torques is None or [arm.controller for arm in env.arm_torques] != controllers:
        env.arm_torques = [_ArmTorques(robot, arm) for robot in env.robots for arm in robot.arms]
    for arm in env.arm_torques:
        arm.fix_goal()
    return env.arm_torques


class _ArmTorques:
    """`OperationalSpaceController.run_controller` and what it calls, names and indices looked up once."""

    def __init__(self, robot: Any, arm: str) -> None:
        from robosuite.utils.control_utils import nullspace_torques, opspace_matrices, orientation_error

        self._orientation_error = orientation_error
        self._opspace_matrices = opspace_matrices
        self._nullspace_torques = nullspace_torques
        self.controller = controller = robot.part_controllers[arm]
        self._model, self._data = controller.sim.model._model, controller.sim.data._data
        self._site = controller.sim.model.site_name2id(controller.ref_name)
        self._qpos = np.asarray(controller.qpos_index)
        self._qvel = np.asarray(controller.qvel_index)
        self._actuators = np.asarray(robot._ref_actuators_indexes_dict[arm])
        self._ctrl_low, self._ctrl_high = self._model.actuator_ctrlrange[self._actuators].T.copy()
        self._jac_pos = np.zeros((3, self._model.nv))
        self._jac_ori = np.zeros((3, self._model.nv))
        self._mass = np.zeros((self._model.nv, self._model.nv))

    def fix_goal(self) -> None:
        """The goal in the world: constant until the next action, because the base does not move."""
        controller = self.controller
        self._goal_pos, self._goal_ori = controller.goal_pos, controller.goal_ori
        if controller.input_ref_frame == "base":
            self._goal_pos = controller.origin_pos + np.dot(controller.origin_ori, controller.goal_pos)
            self._goal_ori = np.dot(controller.origin_ori, controller.goal_ori)

    def apply_torques(self) -> None:
        controller, data = self.controller, self._data
        self._update()
        position_error = self._goal_pos - controller.ref_pos
        ori_error = self._orientation_error(self._goal_ori, controller.ref_ori_mat)
        kp, kd = controller.kp, controller.kd
        desired_force = position_error * kp[0:3] + -controller.ref_pos_vel * kd[0:3]
        desired_torque = ori_error * kp[3:6] + -controller.ref_ori_vel * kd[3:6]
        _, lambda_pos, lambda_ori, nullspace = self._opspace_matrices(
            controller.mass_matrix, controller.J_full, controller.J_pos, controller.J_ori
        )
        wrench = np.concatenate([np.dot(lambda_pos, desired_force), np.dot(lambda_ori, desired_torque)])
        torques = np.dot(controller.J_full.T, wrench) + data.qfrc_bias[self._qvel]
        torques += self._nullspace_torques(
            controller.mass_matrix,
            nullspace,
            controller.initial_joint,
            controller.joint_pos,
            controller.joint_vel,
        )
        controller.torques = torques
        data.ctrl[self._actuators] = np.clip(torques, self._ctrl_low, self._ctrl_high)

    def _update(self) -> None:
        """`Controller.update`, in the controller's own arrays."""
        controller, data = self.controller, self._data
        qvel = data.qvel
        mujoco.mj_jacSite(self._model, data, self._jac_pos, self._jac_ori, self._site)
        controller.ref_pos[:] = data.site_xpos[self._site]
        controller.ref_ori_mat.flat = data.site_xmat[self._site]
        controller.ref_pos_vel[:] = np.dot(self._jac_pos, qvel)
        controller.ref_ori_vel[:] = np.dot(self._jac_ori, qvel)
        controller.J_pos[:] = self._jac_pos[:, self._qvel]
        controller.J_ori[:] = self._jac_ori[:, self._qvel]
        controller.J_full[:3] = controller.J_pos
        controller.J_full[3:] = controller.J_ori
        controller.joint_pos = data.qpos[self._qpos]
        controller.joint_vel = qvel[self._qvel]
        mujoco.mj_fullM(self._model, self._mass, data.qM)
        controller.mass_matrix = self._mass[self._qvel, :][:, self._qvel]


class _ObservableClock:
    """Visits the observables only in the substeps in which they sample or begin a new period.

    They are all ticked together, so one clock stands for all, as long as they show the same time.
    """

    def __init__(self, env: Any) -> None:
        self._env = env
        self._observables = [item for item in env._observables.values() if item.is_enabled()]
        first = self._observables[0]
        self._time: float = first._time_since_last_sample
        self._sampled: bool = first._sampled
        self._period = first._sampling_timestep
        self._together = all(
            item._time_since_last_sample == self._time
            and item._sampled == self._sampled
            and item._sampling_timestep == self._period
            for item in self._observables
        )

    def tick(self) -> None:
        later = self._time + self._env.model_timestep
        if self._together and self._sampled and later < self._period:
            self._time = later
            return
        if self._together:
            self.synchronize()
        self._env._update_observables()
        self._read()

    def synchronize(self) -> None:
        if self._together:
            for item in self._observables:
                item._time_since_last_sample = self._time

    def _read(self) -> None:
        self._time = self._observables[0]._time_since_last_sample
        self._sampled = self._observables[0]._sampled
