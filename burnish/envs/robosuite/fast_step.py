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

from burnish.envs.robosuite.observables import advance_clocks

# What the compiled step does itself, or goes around.
_REPLACED = ("step", "_get_observations", "_update_observables")


def speed_up(env: Any) -> str | None:
    """Give this robosuite environment the compiled `step`, bitwise equal to its own -> why it keeps that, or None."""
    slow = "runs with robosuite's own, slower step: "
    if reason := not_plain(env):
        return slow + reason
    try:
        import burnish.envs.robosuite.osc  # noqa: F401 - compiles
    except ImportError as error:
        return slow + str(error)
    env.step = MethodType(_step, env)
    env.compiled_arms = None
    return None


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
    kind = type(env)
    replaced = [name for name in _REPLACED if getattr(kind, name) is not getattr(MujocoEnv, name)]
    if replaced or kind._pre_action is not RobotEnv._pre_action:
        return f"{kind.__name__} has a {(replaced or ['_pre_action'])[0]} of its own"
    if any(base.__name__ == "Wipe" for base in kind.__mro__):
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
            plain = type(part) is SimpleGripController and part.interpolator is None and part.use_action_scaling
        if not plain or not robot._enabled_parts.get(name, False):
            return f"{robot.name}'s {name} is not an OSC arm of fixed impedance or a simple gripper"
    return None


def _step(self: Any, action: Any) -> tuple[Any, float, bool, dict[str, Any]]:
    """`MujocoEnv.step` (robosuite 1.5.2)."""
    reward, done, info = advance(self, action)
    return self._get_observations(), reward, done, info


def advance(env: Any, action: Any) -> tuple[float, bool, dict[str, Any]]:
    """The compiled `step` of an environment that has it, without collecting the observations."""
    if env.done:
        raise ValueError("executing action in terminated episode")
    if len(action) != env.action_dim:
        raise ValueError(f"action has {len(action)} numbers: expected {env.action_dim}")
    env.timestep += 1
    arms = _compiled_arms(env)
    left = int(env.control_timestep / env.model_timestep)
    n, visit = advance_clocks(env, 1)
    arms.first_substep(np.asarray(action, np.float64))
    while True:
        if visit:
            env._update_observables()
        left -= n
        if left == 0:
            break
        n, visit = advance_clocks(env, left)
        arms.substeps(n)
    env.cur_time += env.control_timestep
    result: tuple[float, bool, dict[str, Any]] = env._post_action(action)
    return result


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
        from burnish.envs.robosuite.osc import control  # imports robosuite, and compiles

        self.controllers, self._control = controllers, control
        self._env, self._simulation = env, (env.sim.model._model, env.sim.data._data)
        model, data = self._simulation
        sites = [env.sim.model.site_name2id(controller.ref_name) for controller in controllers]
        actuators = [robot._ref_actuators_indexes_dict[arm] for robot in env.robots for arm in robot.arms]
        A, J = np.shape(actuators)
        self._goal_pos, self._goal_ori, self._posture = np.zeros((A, 3)), np.zeros((A, 3, 3)), np.zeros((A, J))
        self._sites, self._arm_actions, self._grippers = sites, [], []
        start = 0
        for robot in env.robots:
            robot.composite_controller.update_state()  # once: their bases do not move
            for name, (first, end) in robot.composite_controller._action_split_indexes.items():
                numbers = slice(start + first, start + end)
                if name in robot.arms:
                    self._arm_actions.append(numbers)
                else:
                    self._grippers.append(_Gripper(robot, name, numbers, model))
            start += robot.action_dim
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
        data = self._simulation[1]
        for controller, site, numbers in zip(self.controllers, self._sites, self._arm_actions):
            controller.ref_pos[:] = data.site_xpos[site]
            controller.ref_ori_mat.flat = data.site_xmat[site]
            controller.new_update = False  # nothing else of what `set_goal` would read again is needed
            controller.set_goal(action[numbers])
            controller.new_update = True
        for gripper in self._grippers:
            data.ctrl[gripper.actuators] = gripper.command(action[gripper.numbers])

    def _fix_goals(self) -> None:
        """The goals in the world: constant until the next action, because the bases do not move."""
        for i, controller in enumerate(self.controllers):
            pos, ori = controller.goal_pos, controller.goal_ori
            if controller.input_ref_frame == "base":
                pos = controller.origin_pos + np.dot(controller.origin_ori, pos)
                ori = np.dot(controller.origin_ori, ori)
            self._goal_pos[i], self._goal_ori[i], self._posture[i] = pos, ori, controller.initial_joint


class _Gripper:
    """A gripper, and `SimpleGripController` with its ranges looked up once."""

    def __init__(self, robot: Any, name: str, numbers: slice, model: Any) -> None:
        self.numbers, self.actuators = numbers, robot._ref_actuators_indexes_dict[name]
        self._gripper, self._controller = robot.composite_controller.grippers[name], robot.part_controllers[name]
        self._low, self._high = model.actuator_ctrlrange[self.actuators].T
        low, high = self._controller.actuator_min, self._controller.actuator_max
        self._bias, self._weight = 0.5 * (high + low), 0.5 * (high - low)

    def command(self, action: NDArray[np.float64]) -> NDArray[np.float64]:
        goal = self._controller.scale_action(self._gripper.format_action(action))
        control: NDArray[np.float64] = np.clip(self._bias + self._weight * goal, self._low, self._high)
        return control
