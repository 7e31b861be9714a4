"""Any robot, gripper, controller and environment class of robosuite: the same numbers as its own, or its own step."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from burnish.datasets.collecting.config import CollectConfig
from burnish.datasets.collecting.recorder import Recorder
from burnish.datasets.experts import make_expert
from burnish.datasets.experts.lift import LiftExpert
from burnish.envs.robosuite import env as robosuite_env
from burnish.envs.robosuite.env import complete_env_kwargs, env_args_of, make_task_env, task_from_env_args
from burnish.envs.robosuite.simulator import RobosuiteSimulator
from burnish.envs.task import TaskConfig
from burnish.errors import BurnishError

KEYS = ["robot0_eef_pos", "robot0_eef_quat", "object"]
OWN = TaskConfig("own", "robosuite", "own_lift:OwnLift", 80, KEYS)
UR5E = {"robots": "UR5e", "gripper_types": "PandaGripper"}


def course(env_id: str, env_kwargs: dict, *, fast: bool, lean: bool, n_steps: int = 60) -> list[np.ndarray]:
    """State, observations, reward and success of each step under random actions."""
    env = make_task_env(env_id, env_kwargs, fast=fast, lean=lean)
    assert ("step" in vars(env)) == fast
    env.rng.bit_generator.state = np.random.default_rng(3).bit_generator.state
    env.reset()
    low, high = env.action_spec
    found = []
    for action in np.random.default_rng(0).uniform(low, high, (n_steps, len(low))):
        obs, reward, _, _ = env.step(action)
        seen = [np.ravel(obs[key]) for key in sorted(obs)]
        found.append(np.concatenate([env.sim.get_state().flatten(), *seen, [reward, env._check_success()]]))
    env.close()
    return found


@pytest.mark.parametrize(
    "env_kwargs",
    [
        {"robots": "Sawyer"},
        UR5E,
        {"robots": "Kinova3"},
        {"robots": "Jaco"},
        {"robots": "Baxter"},
        {"controller_configs": "OSC_POSITION"},
        {"gripper_types": "Robotiq85Gripper"},
    ],
    ids=lambda kwargs: "-".join(kwargs.values()),
)
def test_the_compiled_step_and_the_lean_model_are_robosuites_for_other_robots(env_kwargs):
    pytest.importorskip("burnish.envs.robosuite.osc", reason="not numpy's own wheel", exc_type=ImportError)
    ours, theirs = (course("Lift", env_kwargs, fast=own, lean=own) for own in (True, False))
    np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize(
    ("env_kwargs", "reason"),
    [
        ({"robots": "IIWA"}, "IIWA's right is not an OSC arm"),  # its base turns with a link
        ({"robots": "UR5e", "controller_configs": "JOINT_POSITION"}, "UR5e's right is not an OSC arm"),
        ({"robots": "PandaOmron"}, "PandaOmron is not a fixed robot"),
    ],
    ids=["IIWA", "JOINT_POSITION", "PandaOmron"],
)
def test_what_is_not_compiled_takes_robosuites_step_and_says_so(env_kwargs, reason, capfd):
    robosuite_env._say_once.cache_clear()
    simulator = RobosuiteSimulator(TaskConfig("t", "robosuite", "Lift", 80, ["object"], env_kwargs))
    assert f"Lift runs with robosuite's own, slower step: {reason}" in capfd.readouterr().err
    assert np.isfinite(simulator.step(np.ones(simulator.action_dim, np.float32)).obs).all()
    with pytest.raises(NotImplementedError, match="episodes start anew at resume"):
        simulator.get_state()


@pytest.mark.parametrize(
    ("env_id", "env_kwargs", "message"),
    [
        ("Lift", {"robots": "Pandora"}, r"task\.env_kwargs\.robots: robosuite has no robot 'Pandora'; it has: .*UR5e"),
        ("Lift", {"gripper_types": "Hook"}, r"gripper_types: robosuite has no gripper 'Hook'; it has: .*PandaGripper"),
        ("Lift", {"controller_configs": "OSC"}, r"no controller 'OSC'; it has: .*OSC_POSE.*, or a JSON file"),
        ("Lift", {"controller_configs": "none.json"}, r"controller_configs=none\.json cannot be read"),
        ("Lift", {"controller_configs": "JOINT_VELOCITY"}, r"refuses task\.env_kwargs \(AttributeError"),
        ("Lft", {}, r"task\.env_id: robosuite has no environment 'Lft'; it has: .*Lift.*, or module:Class"),
        ("no_such_module:Lift", {}, r"task\.env_id=no_such_module:Lift: there is no module .* on PYTHONPATH"),
        ("own_lift:Lost", {}, r"task\.env_id=own_lift:Lost: .*Lost.*; expected module:Class"),
        ("own_lift:NoEnvironment", {}, r"own_lift:NoEnvironment is no class of robosuite environments"),
    ],
)
def test_names_that_there_are_not_are_told(env_id, env_kwargs, message):
    with pytest.raises(BurnishError, match=message) as told:
        make_task_env(env_id, env_kwargs)
    assert "\n" not in str(told.value)


def test_a_controller_by_name_is_robosuites_default_in_the_worlds_frame():
    by_name, default = (complete_env_kwargs("Lift", kwargs) for kwargs in ({"controller_configs": "OSC_POSE"}, {}))
    arm, of_default = (kwargs["controller_configs"][0]["body_parts"]["right"] for kwargs in (by_name, default))
    assert arm == of_default and arm["input_ref_frame"] == "world"
    two = complete_env_kwargs("TwoArmLift", {"controller_configs": ["OSC_POSITION", "BASIC"]})
    assert [config["body_parts"]["right"]["type"] for config in two["controller_configs"]] == [
        "OSC_POSITION",
        "OSC_POSE",
    ]


def test_a_class_of_ones_own_steps_as_robosuite_would():
    """Also where its reward looks at an observation that the policy does not have."""
    pytest.importorskip("burnish.envs.robosuite.osc", reason="not numpy's own wheel", exc_type=ImportError)
    ours, theirs = (course(OWN.env_id, UR5E, fast=own, lean=own) for own in (True, False))
    np.testing.assert_array_equal(ours, theirs)
    simulators = [RobosuiteSimulator(dataclasses.replace(OWN, fast=fast)) for fast in (True, False)]
    for simulator in simulators:
        simulator.reset(1)
    for action in np.random.default_rng(0).uniform(-1, 1, (10, 7)):
        fast, own = (simulator.step(action) for simulator in simulators)
        np.testing.assert_array_equal(fast.obs, own.obs)
        assert fast.reward == own.reward != 0
    with pytest.raises(NotImplementedError, match="OwnLift cannot be saved"):  # it may keep what nobody knows of
        simulators[0].get_state()


def test_a_class_that_observes_otherwise_is_heard(capfd):
    robosuite_env._say_once.cache_clear()
    watching = RobosuiteSimulator(dataclasses.replace(OWN, env_id="own_lift:Watching"))
    plain = RobosuiteSimulator(dataclasses.replace(OWN, env_id="Lift"))
    assert "Watching has a _get_observations of its own" in capfd.readouterr().err
    np.testing.assert_array_equal(watching.reset(2)[:3], plain.reset(2)[:3] + 1)
    action = np.full(7, 0.3, np.float32)
    np.testing.assert_allclose(watching.step(action).obs[:3], plain.step(action).obs[:3] + 1, rtol=1e-6)


def test_a_class_of_ones_own_has_its_parents_robots_expert_and_recordings():
    assert len(complete_env_kwargs("own_lift:OwnTwoArmLift", {})["robots"]) == 2
    assert type(make_expert("own_lift:OwnLift")) is LiftExpert
    with pytest.raises(BurnishError, match="no scripted expert for own_lift:OwnTwoArmLift"):
        make_expert("own_lift:OwnTwoArmLift")
    name, env_kwargs = task_from_env_args(env_args_of(dataclasses.replace(OWN, env_kwargs=UR5E)))
    rebuilt = make_task_env(name, env_kwargs)
    assert (type(rebuilt).__name__, rebuilt.robots[0].name) == ("OwnLift", "UR5e")


def test_the_expert_lifts_with_another_robot():
    task = TaskConfig("t", "robosuite", "Lift", 100, KEYS, UR5E)
    recorder = Recorder(CollectConfig(task=task, out="none.hdf5", states=False))
    assert all(recorder.record(i).success for i in range(3))
