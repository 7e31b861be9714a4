"""robosuite's tasks behind `Simulator`: seeds, steps, saved episodes, a fast step equal to robosuite's."""

from __future__ import annotations

import dataclasses
import pickle
import sys

import mujoco
import numpy as np
import pytest

from burnish.envs.robosuite import env as robosuite_env
from burnish.envs.robosuite.env import env_args_of, make_task_env, task_from_env_args
from burnish.envs.robosuite.fast_step import speed_up
from burnish.envs.robosuite.model import is_lean, lean_model, whole_xml
from burnish.envs.robosuite.simulator import RobosuiteSimulator, select_obs
from burnish.envs.task import TaskConfig
from burnish.errors import BurnishError

KEYS = ["robot0_eef_pos", "robot0_eef_quat", "robot0_gripper_qpos", "object"]
LIFT = TaskConfig("lift", "robosuite", "Lift", 80, KEYS)
HARD_LIFT = TaskConfig("lift", "robosuite", "Lift", 80, KEYS, {"hard_reset": True})
CAN = TaskConfig("can", "robosuite", "PickPlaceCan", 300, KEYS)
DOOR = TaskConfig("door", "robosuite", "Door", 200, KEYS)
SQUARE = TaskConfig("square", "robosuite", "NutAssemblySquare", 400, KEYS)
TOOL_HANG = TaskConfig("tool_hang", "robosuite", "ToolHang", 700, KEYS)
TRANSPORT = TaskConfig("transport", "robosuite", "TwoArmTransport", 700, [*KEYS, "robot1_eef_pos"])
FOUR = (LIFT, CAN, SQUARE, DOOR)

OLD_OSC = {  # as in robomimic's files of robosuite 1.2
    "type": "OSC_POSE",
    "input_max": 1,
    "input_min": -1,
    "output_max": [0.05, 0.05, 0.05, 0.5, 0.5, 0.5],
    "output_min": [-0.05, -0.05, -0.05, -0.5, -0.5, -0.5],
    "kp": 150,
    "damping": 1,
    "impedance_mode": "fixed",
    "kp_limits": [0, 300],
    "damping_limits": [0, 10],
    "position_limits": None,
    "orientation_limits": None,
    "uncouple_pos_ori": True,
    "control_delta": True,
    "interpolation": None,
    "ramp_ratio": 0.2,
}


def physics(env) -> np.ndarray:
    return env.sim.get_state().flatten()


def random_actions(n_steps: int, action_dim: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).uniform(-1, 1, (n_steps, action_dim))


@pytest.mark.parametrize(("task", "action_dim"), [(LIFT, 7), (TRANSPORT, 14)], ids=["lift", "transport"])
def test_shapes_and_types(task, action_dim):
    simulator = RobosuiteSimulator(task)
    obs = simulator.reset(0)
    step = simulator.step(np.zeros(action_dim, np.float32))
    sizes = {"robot0_eef_pos": 3, "robot0_eef_quat": 4, "robot0_gripper_qpos": 2, "robot1_eef_pos": 3}
    proprioception = sum(sizes[key] for key in task.obs_keys if key != "object")
    n_object = 10 if task is LIFT else 41
    assert simulator.action_dim == action_dim
    assert obs.shape == step.obs.shape == (simulator.obs_spec.state_dim,) == (proprioception + n_object,)
    assert obs.dtype == np.float32
    assert (step.reward, step.terminated, step.success) == (0.0, False, False)
    assert type(step.terminated) is type(step.success) is bool


@pytest.mark.parametrize("task", [LIFT, HARD_LIFT, CAN, DOOR], ids=["lift", "hard-lift", "can", "door"])
def test_the_seed_alone_decides_an_episode(task):
    fresh, used = RobosuiteSimulator(task), RobosuiteSimulator(task)
    used.reset(5)
    for action in random_actions(3, used.action_dim):
        used.step(action)
    np.testing.assert_array_equal(fresh.reset(7), used.reset(7))
    for action in random_actions(10, fresh.action_dim):
        np.testing.assert_array_equal(fresh.step(action).obs, used.step(action).obs)
    assert not np.array_equal(fresh.reset(8), used.reset(7))
    np.testing.assert_array_equal(used.reset(8), fresh.reset(8))


def test_unseeded_resets_go_on_with_the_generator():
    one, other = RobosuiteSimulator(LIFT), RobosuiteSimulator(LIFT)
    assert not np.array_equal(one.reset(None), other.reset(None))  # no seed yet: nothing in common
    first = one.reset(3)
    other.reset(3)
    second = one.reset(None)
    assert not np.array_equal(first, second)
    np.testing.assert_array_equal(second, other.reset(None))


def test_the_cube_is_the_same_in_every_episode_unless_resets_are_hard():
    def cube_sizes(simulator: RobosuiteSimulator) -> np.ndarray:
        sizes = []
        for seed in range(3):
            simulator.reset(seed)
            model = simulator.env.sim.model
            sizes.append(model.geom_size[model.geom_name2id("cube_g0")].copy())
        return np.array(sizes)

    assert np.ptp(cube_sizes(RobosuiteSimulator(LIFT)), axis=0).max() == 0
    assert np.ptp(cube_sizes(RobosuiteSimulator(HARD_LIFT)), axis=0).max() > 0


def test_actions_are_clipped():
    one, other = RobosuiteSimulator(LIFT), RobosuiteSimulator(LIFT)
    one.reset(0)
    other.reset(0)
    action = np.array([3.0, -3.0, 0.5, 9.0, 0.0, -1.5, 2.0])
    np.testing.assert_array_equal(one.step(action).obs, other.step(np.clip(action, -1, 1)).obs)


def test_a_delta_of_one_moves_the_goal_by_five_centimetres_in_the_world():
    """robosuite's OSC_POSE: output_max 0.05 m. The robots of TwoArmTransport are turned against the world."""
    env = make_task_env("TwoArmTransport")
    env.reset()
    for index, robot in enumerate(env.robots):
        action = np.zeros(14)
        action[7 * index] = 1.0
        site = robot.eef_site_id["right"]
        before = env.sim.data.site_xpos[site].copy()
        env.step(action)
        moved = env.sim.data.site_xpos[site] - before
        assert abs(moved[0]) > 5 * np.abs(moved[1:]).max()
        assert 0.005 < moved[0] < 0.05


def test_success_gives_reward_one():
    simulator = RobosuiteSimulator(LIFT)
    simulator.reset(0)
    cube = simulator.env.sim.data.get_joint_qpos("cube_joint0").copy()
    cube[2] = 1.2  # 40 cm above the table; success is 4 cm
    simulator.env.sim.data.set_joint_qpos("cube_joint0", cube)
    step = simulator.step(np.zeros(7))
    assert step.success
    assert step.reward == 1.0
    assert not step.terminated


def test_shaped_rewards_are_robosuites():
    task = TaskConfig("lift", "robosuite", "Lift", 80, KEYS, {"reward_shaping": True})
    simulator = RobosuiteSimulator(task)
    obs = simulator.reset(0)
    reward = simulator.step(np.zeros(7)).reward
    distance = np.linalg.norm(obs[-3:])  # gripper_to_cube_pos
    assert reward == pytest.approx((1 - np.tanh(10 * distance)) / 2.25, abs=5e-3)


BASE_FRAME = {
    "controller_configs": {**{k: v for k, v in OLD_OSC.items() if k != "control_delta"}, "input_ref_frame": "base"}
}


@pytest.mark.parametrize("fast", [True, False])
def test_robosuites_own_time_limit_is_a_truncation(fast: bool) -> None:
    simulator = RobosuiteSimulator(
        dataclasses.replace(LIFT, env_kwargs={"horizon": 3, "ignore_done": False}, fast=fast)
    )
    simulator.reset(0)
    steps = [simulator.step(np.zeros(7, np.float32)) for _ in range(3)]
    assert [(step.terminated, step.truncated) for step in steps] == [(False, False), (False, False), (False, True)]


def test_an_end_that_is_not_the_time_limit_is_a_termination() -> None:
    """Wipe's, where the arm touches the table or reaches a joint's limit."""
    limit = {"horizon": 40, "ignore_done": False}
    simulator = RobosuiteSimulator(TaskConfig("wipe", "robosuite", "Wipe", 50, ["robot0_eef_pos"], limit))
    simulator.reset(0)
    simulator.env._check_terminated = lambda: simulator.env.timestep == 2
    steps = [simulator.step(np.zeros(simulator.action_dim, np.float32)) for _ in range(2)]
    assert [(step.terminated, step.truncated) for step in steps] == [(False, False), (True, False)]


@pytest.mark.parametrize(
    ("env_name", "env_kwargs", "n_starts"),
    [
        *((name, {}, 20) for name in ("Lift", "PickPlaceCan", "NutAssemblySquare", "Stack")),
        *((name, {}, 2) for name in ("TwoArmTransport", "ToolHang", "Door")),
        ("Lift", {"robots": "UR5e"}, 2),
        ("Lift", {"reward_shaping": True}, 2),
        ("Lift", {"hard_reset": True}, 2),
        ("TwoArmLift", BASE_FRAME, 2),
    ],
    ids=lambda value: next(iter(value), "") if isinstance(value, dict) else str(value),
)
def test_the_compiled_step_is_robosuites(env_name, env_kwargs, n_starts):
    """States within 1e-8 is what was asked for. In long episodes that wants equality bit by bit, which this shows where
    numpy is a wheel of its own project: a contact makes 1e-4 of a difference of 1e-15."""
    fast, stock = make_task_env(env_name, env_kwargs), make_task_env(env_name, env_kwargs, fast=False)
    pytest.importorskip("burnish.envs.robosuite.osc", reason="not numpy's own wheel", exc_type=ImportError)
    assert "step" in vars(fast)
    assert "step" not in vars(stock)
    for start in range(n_starts):
        for env in (fast, stock):
            env.rng.bit_generator.state = np.random.default_rng(start).bit_generator.state
            env.reset()
        for action in random_actions(100, fast.action_dim, start):
            obs, reward, done, _ = fast.step(action)
            stock_obs, stock_reward, stock_done, _ = stock.step(action)
            np.testing.assert_array_equal(physics(fast), physics(stock))
            assert (reward, done, fast._check_success()) == (stock_reward, stock_done, stock._check_success())
            assert obs.keys() == stock_obs.keys()
            for key, value in stock_obs.items():
                np.testing.assert_array_equal(obs[key], value, err_msg=key)


EVERYTHING = ["robot0_joint_pos_cos", "robot0_eef_quat_site", "robot0_gripper_qvel", *KEYS, "robot0_proprio-state"]


@pytest.mark.parametrize(
    ("env_name", "keys", "env_kwargs"),
    [
        *((name, keys, {}) for name in ("Lift", "PickPlaceCan", "NutAssemblySquare") for keys in (KEYS, EVERYTHING)),
        *((name, [*KEYS, "robot1_eef_pos"], {}) for name in ("TwoArmTransport", "TwoArmLift")),
        *((name, KEYS, {}) for name in ("Stack", "ToolHang", "Door", "PickPlaceSingle", "NutAssembly")),
        ("PickPlaceCan", ["Can_to_robot0_eef_quat"], {}),  # written into the cache by another sensor
        ("Lift", ["robot0_joint_pos_sin"], {"hard_reset": True}),
    ],
    ids=lambda value: f"{len(value)}-keys" if isinstance(value, list) else str(value),
)
def test_an_observation_is_made_from_robosuites_own(env_name, keys, env_kwargs):
    """The simulator computes only the sensors that these keys need: robosuite's environment computes all."""
    task = TaskConfig("t", "robosuite", env_name, 80, keys, env_kwargs)
    simulator, stock = RobosuiteSimulator(task), make_task_env(env_name, env_kwargs, fast=False)
    pytest.importorskip("burnish.envs.robosuite.osc", reason="not numpy's own wheel", exc_type=ImportError)

    def expected(observations: dict[str, np.ndarray]) -> np.ndarray:
        return np.concatenate([np.ravel(select_obs(observations, key)) for key in keys], dtype=np.float32)

    for start in range(3):
        stock.rng.bit_generator.state = np.random.default_rng(start).bit_generator.state
        np.testing.assert_array_equal(simulator.reset(start), expected(stock.reset()))
        for action in random_actions(30, simulator.action_dim, start):
            observations, reward, done, _ = stock.step(action)
            step = simulator.step(action)
            np.testing.assert_array_equal(step.obs, expected(observations))
            assert step[1:] == (reward, done, stock._check_success(), False)


def test_an_observation_that_is_not_needed_is_not_computed():
    simulator = RobosuiteSimulator(LIFT)
    computed = {name for name, item in simulator.env._observables.items() if item.is_enabled()}
    assert computed == {*KEYS[:3], "cube_pos", "cube_quat", "gripper_to_cube_pos"}
    simulator = RobosuiteSimulator(dataclasses.replace(LIFT, obs_keys=["gripper_to_cube_pos"]))
    computed = {name for name, item in simulator.env._observables.items() if item.is_enabled()}
    assert computed == {"robot0_eef_pos", "cube_pos", "gripper_to_cube_pos"}


def test_an_episode_can_be_saved_right_after_a_reset():
    one, other = RobosuiteSimulator(LIFT), RobosuiteSimulator(LIFT)
    one.reset(0)
    other.reset(9)
    other.set_state(one.get_state())
    for action in random_actions(5, 7):
        np.testing.assert_array_equal(other.step(action).obs, one.step(action).obs)


def test_other_controllers_keep_robosuites_step_and_say_so(capfd):
    robosuite = pytest.importorskip("robosuite")
    robosuite_env._say_once.cache_clear()  # other tests have made these environments before
    config = robosuite.load_composite_controller_config(robot="Panda")
    config["body_parts"]["right"] = {
        **robosuite.load_part_controller_config(default_controller="JOINT_POSITION"),
        "gripper": {"type": "GRIP"},
    }
    env = make_task_env("Lift", {"controller_configs": config})
    assert "step" not in vars(env)
    assert "Lift runs with robosuite's own, slower step: Panda's right is not" in capfd.readouterr().err
    assert "step" not in vars(make_task_env("Wipe"))
    assert "Wipe runs with robosuite's own, slower step: its reward needs the forces" in capfd.readouterr().err
    assert RobosuiteSimulator(dataclasses.replace(LIFT, fast=False)).env.step.__func__ is type(env).step


@pytest.mark.parametrize("task", [LIFT, CAN, DOOR, TRANSPORT], ids=lambda task: task.name)
def test_a_saved_episode_goes_on_bitwise_in_another_instance(task):
    one, other = RobosuiteSimulator(task), RobosuiteSimulator(task)
    one.reset(0)
    other.reset(9)
    actions = random_actions(30, one.action_dim)
    for action in actions[:15]:
        one.step(action)
    other.set_state(pickle.loads(pickle.dumps(one.get_state())))
    for action in actions[15:]:
        step, expected = other.step(action), one.step(action)
        np.testing.assert_array_equal(step.obs, expected.obs)
        np.testing.assert_array_equal(physics(other.env), physics(one.env))
        assert step[1:] == expected[1:]
    np.testing.assert_array_equal(other.reset(None), one.reset(None))


def everything(env) -> list[np.ndarray]:
    """The whole state of the simulation and what was computed from it, contacts and their forces included."""
    model, data = env.sim.model._model, env.sim.data._data
    state = np.empty(mujoco.mj_stateSize(model, mujoco.mjtState.mjSTATE_INTEGRATION))
    mujoco.mj_getState(model, data, state, mujoco.mjtState.mjSTATE_INTEGRATION)
    contact = [data.contact.geom, data.contact.dist, data.contact.pos, data.contact.frame]
    return [state, *contact, data.efc_force.copy(), data.sensordata.copy(), data.xpos.copy(), model.body_pos.copy()]


@pytest.mark.parametrize(
    ("task", "n_steps"),
    [
        *[pytest.param(task, 60, id=task.name) for task in FOUR],
        pytest.param(HARD_LIFT, 30, id="lift-hard"),
        *[pytest.param(t, 300, id=f"{t.name}-long", marks=pytest.mark.slow) for t in (*FOUR, TOOL_HANG, TRANSPORT)],
    ],
)
def test_a_lean_environment_goes_bitwise_where_the_whole_one_goes(task, n_steps):
    lean, whole = RobosuiteSimulator(task), RobosuiteSimulator(task, lean=False)
    touched = 0
    for seed in range(2):
        np.testing.assert_array_equal(lean.reset(seed), whole.reset(seed))
        for i, action in enumerate(random_actions(n_steps, whole.action_dim, seed)):
            action[2] = -1 if i < 25 else action[2]  # down to where there is something to touch
            step, expected = lean.step(action), whole.step(action)
            np.testing.assert_array_equal(step.obs, expected.obs)
            assert step[1:] == expected[1:]
            for ours, theirs in zip(everything(lean.env), everything(whole.env), strict=True):
                np.testing.assert_array_equal(ours, theirs)
            touched += whole.env.sim.data.ncon
            if i == n_steps // 2 and task is not HARD_LIFT:
                lean.set_state(whole.get_state())
    assert touched or task is DOOR


@pytest.mark.parametrize("task", [LIFT, CAN, SQUARE, DOOR, TOOL_HANG, TRANSPORT], ids=lambda task: task.name)
def test_a_lean_model_differs_only_in_what_is_seen(task):
    lean, whole = (make_task_env(task.env_id, lean=lean).sim.model._model for lean in (True, False))
    seen_only = (whole.geom_contype == 0) & (whole.geom_conaffinity == 0)
    # dof_length is a size for MuJoCo's sleeping bodies, which robosuite's models do not have
    seen = ("mesh_", "tex_", "bvh_", "name", "path", "mat_texid", "geom_dataid", "dof_length", "_sizes")
    for field in dir(whole):
        ours, theirs = getattr(lean, field), getattr(whole, field)
        if not isinstance(theirs, np.ndarray) or field.startswith(seen):
            continue
        if field.startswith("geom_"):
            ours, theirs = ours[~seen_only], theirs[~seen_only]
        np.testing.assert_array_equal(ours, theirs, err_msg=field)
    assert (lean.ngeom, lean.stat.meaninertia) == (whole.ngeom, whole.stat.meaninertia)
    assert lean.nbuffer < 7 * 2**20 < 50 * 2**20 < whole.nbuffer


def test_a_model_whose_sensors_see_keeps_what_they_see():
    xml = """<mujoco><asset><mesh name="m" vertex="0 0 0 1 0 0 0 1 0 0 0 1"/></asset><worldbody>
        <site name="s"/><geom name="g" type="mesh" mesh="m" contype="0" conaffinity="0" group="1"/></worldbody>
        <compiler inertiagrouprange="0 0"/>{}</mujoco>"""
    assert lean_model(xml.format("")).nmesh == 0
    assert lean_model(xml.format('<sensor><rangefinder site="s"/></sensor>')).nmesh == 1


def test_pictures_of_the_environment_itself_need_the_whole_model():
    assert not is_lean(make_task_env("Lift", lean=False))
    assert is_lean(make_task_env("Lift"))
    try:
        env = make_task_env("Lift", {"has_offscreen_renderer": True})
    except Exception as error:  # robosuite opens OpenGL at once
        pytest.skip(str(error))
    assert not is_lean(env)


@pytest.mark.parametrize("task", [LIFT, DOOR], ids=lambda task: task.name)
def test_a_recording_has_the_whole_model(task):
    whole = RobosuiteSimulator(task, lean=False)
    whole.reset(3)
    expected = whole_xml(whole.env)  # MuJoCo can write only the one that it compiled last
    lean = RobosuiteSimulator(task)
    for seed in (2, 3):
        lean.reset(seed)
        assert (whole_xml(lean.env) == expected) == (seed == 3 or task is LIFT)


def test_saving_is_refused_where_the_model_is_redrawn():
    with pytest.raises(NotImplementedError, match="start anew"):
        RobosuiteSimulator(HARD_LIFT).get_state()


def test_rendering_shows_the_scene_and_changes_nothing():
    one, other = RobosuiteSimulator(LIFT), RobosuiteSimulator(LIFT)
    one.reset(0)
    other.reset(0)
    try:
        image = one.render(160, 120)
    except BurnishError as error:
        pytest.skip(str(error))
    assert image.shape == (120, 160, 3)
    assert image.dtype == np.uint8
    assert image.std() > 10
    for action in random_actions(5, 7):
        np.testing.assert_array_equal(one.step(action).obs, other.step(action).obs)
        image = one.render(160, 120)
    other.render(160, 120)
    np.testing.assert_array_equal(one.render(160, 120), image)  # with the other one's context opened since


@pytest.mark.parametrize("task", [LIFT, DOOR, HARD_LIFT], ids=["lift", "door", "lift-hard"])
def test_a_lean_environment_looks_like_the_whole_one(task):
    lean, whole = RobosuiteSimulator(task), RobosuiteSimulator(task, lean=False)
    for seed in range(2):
        lean.reset(seed)
        whole.reset(seed)
        try:
            expected = whole.render(160, 120)
        except BurnishError as error:
            pytest.skip(str(error))
        np.testing.assert_array_equal(lean.render(160, 120), expected)
        for action in random_actions(5, 7, seed):
            lean.step(action)
            whole.step(action)
        np.testing.assert_array_equal(lean.render(160, 120), whole.render(160, 120))


@pytest.mark.parametrize(
    ("env_id", "keys", "env_kwargs", "message"),
    [
        ("Lft", KEYS, {}, r"no environment 'Lft'; it has: .*Lift"),
        ("Lift", ["robot0_eef_pos", "cube"], {}, r"no 'cube'; it gives: .*cube_pos.* object"),
        ("Lift", KEYS, {"reward_shapin": True}, r"reward_shapin"),
        ("Lift", KEYS, {"robots": "Pandora"}, r"task\.env_kwargs.*Pandora"),
        ("Lift", KEYS, {"controller_configs": {**OLD_OSC, "control_delta": False}}, "absolute"),
    ],
)
def test_mistakes_are_named(env_id, keys, env_kwargs, message):
    with pytest.raises(BurnishError, match=message):
        RobosuiteSimulator(TaskConfig("t", "robosuite", env_id, 80, keys, env_kwargs))


def test_env_args_build_the_same_environment():
    args = env_args_of(LIFT)
    assert (args["env_name"], args["type"]) == ("Lift", 1)
    assert args["env_kwargs"]["controller_configs"][0]["body_parts"]["right"]["type"] == "OSC_POSE"
    simulator = RobosuiteSimulator(LIFT)
    name, env_kwargs = task_from_env_args(args)
    rebuilt = RobosuiteSimulator(TaskConfig("lift", "robosuite", name, 80, KEYS, env_kwargs))
    np.testing.assert_array_equal(rebuilt.reset(1), simulator.reset(1))
    action = random_actions(1, 7)[0]
    np.testing.assert_array_equal(rebuilt.step(action).obs, simulator.step(action).obs)


def test_env_args_of_robosuite_1_2_become_todays_controller():
    old = {
        "env_name": "Lift",
        "type": 1,
        "env_kwargs": {
            "has_renderer": False,
            "has_offscreen_renderer": True,
            "ignore_done": True,
            "use_object_obs": True,
            "use_camera_obs": True,
            "control_freq": 20,
            "controller_configs": OLD_OSC,
            "robots": ["Panda"],
            "camera_depths": False,
            "camera_heights": 84,
            "camera_widths": 84,
            "reward_shaping": False,
        },
    }
    name, env_kwargs = task_from_env_args(old)
    task = TaskConfig("lift", "robosuite", name, 80, KEYS, env_kwargs)
    simulator, default = RobosuiteSimulator(task), RobosuiteSimulator(LIFT)
    np.testing.assert_array_equal(simulator.reset(2), default.reset(2))
    for action in random_actions(5, 7):
        np.testing.assert_array_equal(simulator.step(action).obs, default.step(action).obs)


def test_env_args_of_another_simulator_are_refused():
    with pytest.raises(BurnishError, match="type 2"):
        task_from_env_args({"env_name": "Hopper-v2", "type": 2, "env_kwargs": {}})


def test_without_numpys_blas_robosuites_own_step_runs(monkeypatch):
    monkeypatch.setitem(sys.modules, "burnish.envs.robosuite.osc", None)  # as where it raises ImportError
    env = make_task_env("Lift", {}, fast=False)
    assert "runs with robosuite's own, slower step: " in speed_up(env)
    assert "step" not in vars(env)
