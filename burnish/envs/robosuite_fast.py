"""robosuite's control step, compiled: the operational-space controller between MuJoCo's own substeps.

One control step at 20 Hz is 25 physics substeps, and stock robosuite spends most of it in Python: it looks up names,
computes action limits again, and visits every observable in every substep. Here the substeps run in compiled code
(`robosuite_osc`); goals, grippers, observables and rewards stay robosuite's. Trajectories and observations are bitwise
equal (tests/test_robosuite.py), but robosuite's records of recent forces and torques are not kept: Wipe needs them.

Symbols: A arms, J joints of an arm (the same for all), nv degrees of freedom of the model.
"""

from __future__ import annotations

from types import MethodType
from typing import Any

import mujoco
import numpy as np
from numpy.typing import NDArray


def speed_up(env: Any) -> str | None:
    """Give this robosuite environment the compiled `step` -> what its user should know: why it keeps robosuite's own,
    or that the compiled one is not bitwise equal here."""
    slow = "runs with robosuite's own, slower step: "
    if reason := not_plain(env):
        return slow + reason
    try:
        from burnish.envs.robosuite_osc import IS_EXACT
    except ImportError as error:
        return slow + str(error)
    env.step = MethodType(_step, env)
    env.compiled_arms = None
    return (
        None if IS_EXACT else "runs with a compiled step that equals robosuite's to rounding: numpy's BLAS is not found"
    )


def not_plain(env: Any) -> str | None:
    """Why robosuite steps this environment in another way than the one that is compiled here; None if it does not.

    Compiled: fixed robots with BASIC composite controllers of OSC arms and simple grippers, no interpolation, and
    `lite_physics` (the default).
    """
    from robosuite import macros
    from robosuite.environments.base import MujocoEnv
    from robosuite.environments.robot_env import RobotEnv

    if not macros.ENABLE_NUMBA:
        return "robosuite's macro ENABLE_NUMBA is off"
    if type(env).step is not MujocoEnv.step or type(env)._pre_action is not RobotEnv._pre_action:
        return f"{type(env).__name__} has a step of its own"
    if type(env).__name__ == "Wipe":
        return "its reward needs the forces that robosuite's own step records"
    if not env.lite_physics or env.viewer is not None or env.has_renderer:
        return "lite_physics is off, or there is a viewer"
    if len({len(part.qpos_index) for part in _arm_controllers(env)}) > 1:
        return "the arms have different numbers of joints"
    return next((reason for robot in env.robots if (reason := _not_plain_robot(robot))), None)


def _not_plain_robot(robot: Any) -> str | None:
    from robosuite.controllers.composite.composite_controller import CompositeController
    from robosuite.controllers.parts.arm.osc import OperationalSpaceController
    from robosuite.controllers.parts.gripper.simple_grip import SimpleGripController
    from robosuite.robots.fixed_base_robot import FixedBaseRobot

    if type(robot) is not FixedBaseRobot or type(robot.composite_controller) is not CompositeController:
        return f"{robot.name} is not a fixed robot with a BASIC composite controller"
    model = robot.sim.model
    for name, part in robot.part_controllers.items():
        if name in robot.arms:
            base = model.site_bodyid[model.site_name2id(f"{part.naming_prefix}{part.part_name}_center")]
            plain = type(part) is OperationalSpaceController and part.uncoupling and part.num_ref_sites == 1
            plain = plain and part.interpolator_pos is None and part.interpolator_ori is None
            plain = plain and part.impedance_mode == "fixed" and model.body_weldid[base] == 0  # its base cannot move
        else:
            plain = type(part) is SimpleGripController and part.interpolator is None
        if not plain or not robot._enabled_parts.get(name, False):
            return f"{robot.name}'s {name} is not an OSC arm of fixed impedance or a simple gripper"
    return None


def _step(self: Any, action: Any) -> tuple[Any, float, bool, dict[str, Any]]:
    """`MujocoEnv.step` (robosuite 1.5.2)."""
    if self.done:
        raise ValueError("executing action in terminated episode")
    if len(action) != self.action_dim:
        raise ValueError(f"action has {len(action)} numbers: expected {self.action_dim}")
    self.timestep += 1
    arms, clock = _compiled_arms(self), _ObservableClock(self)
    arms.first_substep(np.asarray(action, np.float64))
    clock.tick()
    left = int(self.control_timestep / self.model_timestep) - 1
    while left > 0:
        n = clock.idle_substeps(left)
        arms.substeps(n)
        clock.tick()
        left -= n
    clock.synchronize()
    self.cur_time += self.control_timestep
    reward, done, info = self._post_action(action)
    return self._get_observations(), reward, done, info


def _arm_controllers(env: Any) -> list[Any]:
    return [robot.part_controllers[arm] for robot in env.robots for arm in robot.arms]


def _compiled_arms(env: Any) -> _CompiledArms:
    """Made anew when a reset has made new controllers or a new model."""
    controllers = _arm_controllers(env)
    if env.compiled_arms is None or env.compiled_arms.controllers != controllers:
        env.compiled_arms = _CompiledArms(env, controllers)
    arms: _CompiledArms = env.compiled_arms
    return arms


class _CompiledArms:
    """All arms and grippers of an environment: names and indices looked up once, numbers in arrays for `control`."""

    def __init__(self, env: Any, controllers: list[Any]) -> None:
        from burnish.envs.robosuite_osc import control  # imports robosuite, and compiles

        self.controllers, self._control = controllers, control
        self._env, self._simulation = env, (env.sim.model._model, env.sim.data._data)
        model, data = self._simulation
        sites = [env.sim.model.site_name2id(controller.ref_name) for controller in controllers]
        actuators = [robot._ref_actuators_indexes_dict[arm] for robot in env.robots for arm in robot.arms]
        A, J = np.shape(actuators)
        self._goal_pos, self._goal_ori, self._posture = np.zeros((A, 3)), np.zeros((A, 3, 3)), np.zeros((A, J))
        self._arguments = (
            (model._address, data._address),
            (data.site_xpos, data.site_xmat, data.qpos, data.qvel, data.qM, data.qfrc_bias, data.ctrl),
            (
                np.array(sites, np.int32),
                np.array([controller.qpos_index for controller in controllers], np.int64),
                np.array([controller.qvel_index for controller in controllers], np.int64),
                np.array(actuators, np.int64),
                model.actuator_ctrlrange[actuators, 0],
                model.actuator_ctrlrange[actuators, 1],
            ),
            (self._goal_pos, self._goal_ori, self._posture),
            (
                np.array([controller.kp for controller in controllers], np.float64),
                np.array([controller.kd for controller in controllers], np.float64),
            ),
            (np.zeros((3, model.nv)), np.zeros((3, model.nv)), np.zeros((model.nv, model.nv))),
        )

    def first_substep(self, action: NDArray[np.float64]) -> None:
        """The substep that takes the action, as `RobotEnv._pre_action` does."""
        mujoco.mj_step1(*self._simulation)
        if all(controller.new_update for controller in self.controllers):
            self._set_goals(action)
            self._fix_goals()
            self._control(1, True, *self._arguments)
            return
        # the first of an episode: robosuite's controllers still have pose and inertia of the reset
        self._env._pre_action(action, True)
        self._fix_goals()
        mujoco.mj_step2(*self._simulation)

    def substeps(self, n: int) -> None:
        """`n` further ones."""
        self._control(n, False, *self._arguments)

    def _set_goals(self, action: NDArray[np.float64]) -> None:
        """`FixedBaseRobot.control`, with the arms' poses read once, their torques left to `control`."""
        data, sites = self._simulation[1], self._arguments[2][0]
        for controller, site in zip(self.controllers, sites):
            controller.ref_pos[:] = data.site_xpos[site]
            controller.ref_ori_mat.flat = data.site_xmat[site]
        start = 0
        for robot in self._env.robots:
            composite = robot.composite_controller
            composite.update_state()
            for part in robot.part_controllers.values():
                part.new_update = False  # nothing else of what `set_goal` would read again is needed
            composite.set_goal(action[start : start + robot.action_dim])
            for name, part in robot.part_controllers.items():
                if name not in robot.arms:
                    actuators = robot._ref_actuators_indexes_dict[name]
                    low, high = self._simulation[0].actuator_ctrlrange[actuators].T
                    data.ctrl[actuators] = np.clip(part.run_controller(), low, high)
                part.new_update = True
            start += robot.action_dim

    def _fix_goals(self) -> None:
        """The goals in the world: constant until the next action, because the bases do not move."""
        for i, controller in enumerate(self.controllers):
            pos, ori = controller.goal_pos, controller.goal_ori
            if controller.input_ref_frame == "base":
                pos = controller.origin_pos + np.dot(controller.origin_ori, pos)
                ori = np.dot(controller.origin_ori, ori)
            self._goal_pos[i], self._goal_ori[i], self._posture[i] = pos, ori, controller.initial_joint


class _ObservableClock:
    """Visits the observables only in the substeps in which they sample or begin a new period.

    They are all ticked together, so one clock stands for all, as long as they show the same time.
    """

    def __init__(self, env: Any) -> None:
        self._env = env
        self._observables = [item for item in env._observables.values() if item.is_enabled()]
        self._read()
        self._period = self._observables[0]._sampling_timestep
        self._together = all(
            item._time_since_last_sample == self._time
            and item._sampled == self._sampled
            and item._sampling_timestep == self._period
            for item in self._observables
        )

    def idle_substeps(self, most: int) -> int:
        """How many substeps, at most `most`, may run before the next `tick`."""
        n = 1
        while n < most and self._idle():
            self._time += self._env.model_timestep
            n += 1
        return n

    def tick(self) -> None:
        """After the last of these substeps."""
        if self._idle():
            self._time += self._env.model_timestep
            return
        self.synchronize()
        self._env._update_observables()
        self._read()

    def synchronize(self) -> None:
        if self._together:
            for item in self._observables:
                item._time_since_last_sample = self._time

    def _idle(self) -> bool:
        """Whether nothing happens at the end of the coming substep."""
        return self._together and self._sampled and self._time + self._env.model_timestep < self._period

    def _read(self) -> None:
        self._time: float = self._observables[0]._time_since_last_sample
        self._sampled: bool = self._observables[0]._sampled
