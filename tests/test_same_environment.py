"""What a file or a policy says of its environment is compared with the task; actions mean what they are taken for."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch

from burnish.commands.cli import main
from burnish.config import to_dict
from burnish.datasets.checking.observing import Compared, conventions
from burnish.datasets.checking.validate import validate
from burnish.datasets.collecting.actors import make_actor
from burnish.datasets.collecting.config import CollectConfig
from burnish.datasets.episodes import Demonstrations, Episode
from burnish.datasets.for_task import clamped_share, demonstrations_for, doubt, in_unit_range
from burnish.datasets.formats import d4rl
from burnish.datasets.load import load
from burnish.envs import make_simulator
from burnish.envs.robosuite.env import composite_controllers, env_args, import_robosuite, make_task_env
from burnish.envs.same_environment import (
    ALLOWED,
    differences,
    of_env_args,
    of_task,
    require_same,
    require_trained_in,
)
from burnish.envs.task import TaskConfig, load_task
from burnish.errors import BurnishError
from burnish.networks import DenoiserConfig
from burnish.policies.diffusion import DiffusionPolicy, PolicyConfig
from burnish.policies.load import load_policy

LIFT = load_task("lift")
OLD = {  # robosuite 1.4's controller, as robomimic's files have it
    "type": "OSC_POSE", "input_max": 1, "input_min": -1, "kp": 150, "damping": 1, "impedance_mode": "fixed",
    "output_max": [0.05, 0.05, 0.05, 0.5, 0.5, 0.5], "output_min": [-0.05, -0.05, -0.05, -0.5, -0.5, -0.5],
    "kp_limits": [0, 300], "damping_limits": [0, 10], "position_limits": None, "orientation_limits": None,
    "uncouple_pos_ori": True, "control_delta": True, "interpolation": None, "ramp_ratio": 0.2,
}  # fmt: skip
KEYS = {"robot0_eef_pos": 3, "robot0_eef_quat": 4, "robot0_gripper_qpos": 2, "object": 10}
QUICK = ["device=cpu", "evaluation.episodes=1", "evaluation.n_envs=1", "evaluation.backend=sync", "train.updates=2"]
QUICK += ["train.batch_size=8", "evaluation.temperatures=[]"]


def recorded(name: str = "Lift", arm: dict[str, Any] | None = None, **kwargs: Any) -> dict[str, Any]:
    """A file's env_args: those of task=lift, in the words of robosuite 1.4."""
    kwargs = {"robots": ["Panda"], "control_freq": 20, "controller_configs": {**OLD, **(arm or {})}, **kwargs}
    return {"env_name": name, "env_version": "1.5.2", "type": 1, "env_kwargs": kwargs}


def lift(path: Path, args: dict[str, Any] | None = None, actions: np.ndarray | None = None) -> Path:
    """Two random episodes in robomimic's layout."""
    rng = np.random.default_rng(0)
    with h5py.File(path, "w") as file:
        for i in range(2):
            demo = file.create_group(f"data/demo_{i}")
            demo["actions"] = rng.uniform(-1, 1, (12, 7)) if actions is None else actions
            for key, width in KEYS.items():
                demo[f"obs/{key}"] = rng.normal(size=(12, width))
            demo["rewards"] = (np.arange(12) == 11).astype(float)
        file["data"].attrs["env_args"] = json.dumps(recorded() if args is None else args)
    return path


def found(args: dict[str, Any], task: TaskConfig = LIFT) -> list[str]:
    """The aspects that differ and are refused; those that are warned of in brackets."""
    each = differences(of_env_args(args, "a.hdf5"), of_task(task))
    return [one.aspect if one.decisive else f"({one.aspect})" for one in each]


def with_kwargs(task: TaskConfig = LIFT, **kwargs: Any) -> TaskConfig:
    return replace(task, env_kwargs=kwargs)


def test_one_environment_in_several_writings_is_one():
    """robosuite 1.4's and 1.5's words, defaults written out or left out, what is only seen."""
    new = composite_controllers(["Panda"], OLD)
    nested = [{**new[0], "body_parts": {"arms": new[0]["body_parts"]}}]
    for kwargs in (
        {},
        {"controller_configs": new},
        {"controller_configs": new[0]},
        {"controller_configs": nested},
        {"controller_configs": {**OLD, "output_max": [0.05] * 3 + [0.5] * 3, "kp": [150] * 6, "interpolation": None}},
        {"controller_configs": {**OLD, "input_ref_frame": "base"}},  # one arm, its base along the world's axes
        {"controller_configs": "OSC_POSE"},
        {"robots": "Panda", "gripper_types": "default"},
        {"gripper_types": ["PandaGripper"], "control_freq": 20.0},
        {"has_renderer": True, "camera_names": ["agentview"], "render_gpu_device_id": 0, "horizon": 500, "seed": 3},
        {"table_full_size": [0.8, 0.8, 0.05], "mount_types": "default", "placement_initializer": None},
    ):
        assert found(recorded(**kwargs)) == [], kwargs
    assert found(env_args("Lift", {})) == []
    assert found({"env_name": "Lift", "type": 1}) == found({}) == []  # what is not told is not compared


@pytest.mark.parametrize(
    ("args", "aspects", "words"),
    [
        (recorded(robots=["UR5e"], gripper_types="PandaGripper"), ["robot"], "UR5e in the file, Panda in the task"),
        (recorded(robots="Sawyer"), ["robot"], "Sawyer"),
        (recorded(robots=["PandaFromElsewhere"]), ["robot"], "PandaFromElsewhere"),
        (recorded(gripper_types="Robotiq85Gripper"), ["gripper"], "Robotiq85Gripper in the file, PandaGripper in the"),
        (recorded(gripper_types=[None]), ["gripper"], "None"),
        (recorded(arm={"kp": 300}), ["controller"], "right.kp 300 in the file, 150 in the task"),
        (recorded(arm={"output_max": 0.1}), ["controller"], "right.output_max 0.1"),
        (recorded(arm={"input_max": 2}), ["controller"], "right.input_max 2 in the file, 1 in the task"),
        (recorded(arm={"damping": 2}), ["controller"], "right.damping_ratio 2"),
        (recorded(arm={"control_delta": False}), ["controller"], "input_type absolute in the file, delta in the task"),
        (recorded(arm={"impedance_mode": "variable_kp"}), ["controller"] * 3, "impedance_mode variable_kp"),
        (recorded(controller_configs="OSC_POSITION"), ["controller"] * 3, "right.type OSC_POSITION"),
        (recorded(control_freq=10), ["control_freq"], "10 in the file, 20 in the task"),
        (recorded("Stack"), ["name"], "Stack in the file, Lift in the task"),
        (recorded("Lift_D0"), ["name"], "Lift_D0"),
        (recorded(table_full_size=[1, 1, 0.05]), ["env_kwargs"], "table_full_size"),
        (recorded(reward_shaping=True), ["(reward)"], "reward_shaping True in the file, False in the task"),
        (recorded(initialization_noise={"magnitude": 0.1, "type": "gaussian"}), ["(initialization_noise)"], "0.1"),
        ({**recorded(), "env_version": "1.4.1"}, ["(versions)"], "robosuite 1.4.1 in the file"),
        ({"env_name": "Hopper-v5", "type": 2}, ["suite"], "gymnasium in the file, robosuite in the task"),
        ({"env_name": "x", "type": 7}, ["suite"], "robomimic's type 7"),
    ],
)
def test_what_differs_is_named(args: dict[str, Any], aspects: list[str], words: str):
    assert found(args) == aspects
    said = "\n".join(map(str, differences(of_env_args(args, "a.hdf5"), of_task(LIFT))))
    assert words in said


def test_frames_of_two_arms_differ():
    two = load_task("transport")
    args = env_args("TwoArmTransport", {})
    assert found(args, two) == []
    for controller in args["env_kwargs"]["controller_configs"]:
        controller["body_parts"]["right"]["input_ref_frame"] = "base"
    assert found(args, two) == ["controller", "controller"]


@pytest.mark.parametrize(
    ("args", "task", "aspects"),
    [
        ({"env_name": "Hopper-v5", "type": 2, "env_kwargs": {"render_mode": "rgb_array"}}, "hopper", []),
        ({"env_name": "Hopper-v5", "type": 2, "env_kwargs": {"healthy_reward": 1.0}}, "hopper", []),  # its default
        ({"env_name": "Hopper-v5", "type": 2, "env_kwargs": {"healthy_reward": 2.0}}, "hopper", ["env_kwargs"]),
        ({"env_name": "Hopper-v4", "type": 2}, "hopper", ["(versions)"]),
        ({"env_name": "Walker2d-v5", "type": 2}, "hopper", ["name"]),
        ({"env_name": "Lift", "type": 1}, "hopper", ["suite"]),
    ],
)
def test_gymnasium_s_environments(args: dict[str, Any], task: str, aspects: list[str]):
    assert found(args, load_task(task)) == aspects


def test_nothing_is_said_of_tasks_that_cannot_be_compared():
    for suite in ("none", "my_package.envs:make"):
        task = replace(LIFT, suite=suite)
        assert found(recorded(robots=["Sawyer"]), task) == []


def test_what_differs_is_refused_unless_it_is_allowed(capsys):
    known, now = of_env_args(recorded(robots=["UR5e"], control_freq=10, reward_shaping=True), "a.hdf5"), of_task(LIFT)
    with pytest.raises(BurnishError) as caught:
        require_same(known, now)
    said = str(caught.value)
    for words in (
        "a.hdf5 and task=lift",
        "\n  robot: UR5e",
        "\n  control_freq: 10",
        "allow=[robot,control_freq]",
    ):
        assert words in said
    assert "task.env_kwargs.robots=[UR5e]" in said and "task.env_kwargs.control_freq=10" in said
    assert "reward_shaping True" in capsys.readouterr().err and "reward_shaping" not in said
    with pytest.raises(BurnishError, match=r"allow=\[control_freq\]") as caught:
        require_same(known, now, ["robot"])
    assert "\n" not in str(caught.value)
    require_same(known, now, ["robot", "control_freq"])
    said = capsys.readouterr().err
    assert "robot: UR5e" in said and "control_freq: 10" in said
    require_same(known, now, ["env_kwargs"])  # a key of the task stands for what is in it
    with pytest.raises(BurnishError, match=r"allow=\[reward\]"):
        require_same(known, now, ["robot", "control_freq"], rewards_matter=True)
    with pytest.raises(BurnishError, match=r"allow: 'robots': expected of suite, name, robot"):
        require_same(known, now, ["robots"])


def test_every_command_takes_the_same_option(capsys):
    for command in ("pretrain", "finetune", "offline", "evaluate", "headroom", "data collect"):
        words = ["policy=x"] if command in ("finetune", "evaluate", "headroom", "offline") else []
        words += ["out=x.hdf5"] if command == "data collect" else []
        assert main([*command.split(), *words, "allow=[robots]", "--cfg"]) in (0, 2)
        capsys.readouterr()
        assert main([*command.split(), *words, "allow=[robots]"]) == 2
        said = capsys.readouterr().err
        assert "allow=" in said and "expected one of" in said and "control_freq" in said, command
    assert "controller" in ALLOWED and "actions" in ALLOWED


# -- policies


def policy_of(task: TaskConfig) -> DiffusionPolicy:
    torch.manual_seed(0)
    policy = DiffusionPolicy(PolicyConfig(denoiser=DenoiserConfig(hidden_dim=16)), 19, 7, task.obs_keys, task.name)
    policy.trained_in = to_dict(task)
    return policy


@pytest.mark.parametrize(
    ("now", "aspect"),
    [
        (with_kwargs(robots=["UR5e"], gripper_types="PandaGripper"), "robot"),
        (with_kwargs(gripper_types="Robotiq85Gripper"), "gripper"),
        (with_kwargs(control_freq=10), "control_freq"),
        (with_kwargs(controller_configs={**OLD, "kp": 100}), "controller"),
        (with_kwargs(table_friction=[0.1, 0.005, 0.0001]), "env_kwargs"),
        (replace(LIFT, obs_keys=[*LIFT.obs_keys[1:], LIFT.obs_keys[0]]), "obs_keys"),
        (replace(LIFT, env_id="Stack"), "name"),
        (load_task("hopper"), "suite"),
    ],
)
def test_a_policy_is_held_against_the_task(now: TaskConfig, aspect: str, capsys):
    policy = policy_of(LIFT)
    with pytest.raises(BurnishError, match=rf"{aspect}: .* in the policy's, .* in the task"):
        require_trained_in(policy, now)
    if aspect != "suite":
        require_trained_in(policy, now, [aspect])
        assert f"{aspect}: " in capsys.readouterr().err


def test_a_policy_in_the_same_task_with_other_words(capsys):
    policy = policy_of(LIFT)
    require_trained_in(policy, with_kwargs(robots="Panda", control_freq=20, controller_configs="OSC_POSE"))
    require_trained_in(policy, replace(LIFT, fast=False, dataset=None, judged_by="return"))
    assert capsys.readouterr().err == ""
    require_trained_in(policy, replace(LIFT, max_episode_steps=20))
    require_trained_in(policy, with_kwargs(reward_shaping=True))
    policy.trained_with = {"mujoco": "2.3.2", "torch": "1.0"}
    require_trained_in(policy, LIFT)
    said = capsys.readouterr().err
    assert "max_episode_steps: 80 in the policy's, 20 in the task" in said and "reward_shaping" in said
    assert "versions: mujoco 2.3.2 in the policy's" in said and "torch" not in said


def test_collecting_with_a_policy_or_an_actor_of_another_environment(tmp_path):
    policy_of(LIFT).save(tmp_path / "policy")
    config = CollectConfig(task=with_kwargs(control_freq=10), out="x.hdf5", behaviour=str(tmp_path / "policy"))
    with pytest.raises(BurnishError, match=r"control_freq: 20 in the policy's, 10 in the task"):
        make_actor(config, config.behaviour)
    make_actor(replace(config, allow=["control_freq"]), config.behaviour)
    hopper = replace(load_task("hopper"), env_kwargs={"healthy_reward": 0.5})
    with pytest.raises(BurnishError, match=r"env_kwargs: healthy_reward its default in the actor's, 0.5 in the task"):
        make_actor(CollectConfig(task=hopper, out="x.hdf5", behaviour="sac"), "sac")


def test_pretraining_writes_what_the_next_command_compares(tmp_path, capsys):
    """Recorded with a UR5e, trained as one, evaluated as a Panda."""
    path, run = lift(tmp_path / "a.hdf5", recorded(robots=["UR5e"], gripper_types="PandaGripper")), tmp_path / "run"
    words = ["pretrain", "task=lift", f"dataset={path}", f"run_dir={run}", *QUICK]
    assert main(words) == 2
    assert "robot: UR5e in the file" in capsys.readouterr().err and not run.exists()
    own = ["task.env_kwargs.robots=[UR5e]", "task.env_kwargs.gripper_types=PandaGripper"]
    assert main([*words, *own, "task.max_episode_steps=2"]) == 0
    said = capsys.readouterr()
    assert "2 episodes, 0.00% of the action values are outside [-1, 1]" in said.err
    assert json.loads((run / "summary.json").read_text())["clamped_actions"] == 0
    assert set(load_policy(run).trained_with) >= {"robosuite", "mujoco"}
    evaluate = ["evaluate", "task=lift", f"policy={run}", "episodes=1", "n_envs=1", "backend=sync", "device=cpu"]
    assert main(evaluate) == 2
    assert "robot: UR5e in the policy's, Panda in the task" in capsys.readouterr().err


def test_rewards_of_demonstrations_matter_to_a_critic(tmp_path):
    path = lift(tmp_path / "a.hdf5", recorded(reward_shaping=True))
    assert len(demonstrations_for(LIFT, path).episodes) == 2
    with pytest.raises(BurnishError, match=r"reward: reward_shaping True .* allow=\[reward\]"):
        demonstrations_for(LIFT, path, rewards_matter=True)
    demonstrations_for(LIFT, path, rewards_matter=True, allow=["reward"])


@pytest.mark.parametrize("stage", ["dpmd", "sac"])
def test_the_demonstrations_of_a_stage_are_compared(tmp_path, capsys, stage: str):
    path = lift(tmp_path / "a.hdf5", recorded(control_freq=10))
    words = ["scratch", "task=lift", f"stage={stage}", f"stage.demos={path}", f"run_dir={tmp_path / 'run'}", "n_envs=2"]
    words += ["network=gaussian"] if stage == "sac" else ["stage.demo_ratio=0.5"]
    words += ["backend=sync", "evaluation.backend=sync", "evaluation.episodes=1", "evaluation.n_envs=1"]
    assert main(words) == 2
    assert "control_freq: 10 in the file, 20 in the task" in capsys.readouterr().err


# -- actions


def demos_of(actions: np.ndarray, **obs: np.ndarray) -> Demonstrations:
    n = len(actions)
    obs = obs or {"flat": np.zeros((n, 3), np.float32)}
    return Demonstrations(
        [Episode("demo_0", obs, actions.astype(np.float32), np.zeros(n), np.zeros(n, bool))], source="a"
    )


RNG = np.random.default_rng(0)
SIX = RNG.uniform(-1, 1, (50, 6))


@pytest.mark.parametrize(
    ("actions", "words"),
    [
        (SIX + [0, 0, 0, 3, 0, 0], "dimension 3 (from 2"),  # a turn in axis-angle
        (SIX * 100, "% of the action values are outside"),  # degrees, millimetres
        (SIX + [0, 0, 0, 0, -2.4, 1.6], "outside [-1, 1]"),  # angles of joints
        (SIX * [1, 1, 1, 1, 1, 2.5], "of those in dimension 5"),  # one in other units
    ],
)
def test_actions_of_another_kind_are_refused(actions: np.ndarray, words: str):
    task = replace(load_task("ant"), env_id="Unknown-v0")
    scaled = in_unit_range(demos_of(actions), task)
    assert scaled.doubt is not None
    assert words in scaled.doubt


def test_what_a_hand_does_too_much_is_clamped_and_said(tmp_path, capsys):
    """Human demonstrations of robosuite have 1.1 % of their values outside, up to 3.75."""
    actions = RNG.uniform(-1, 1, (12, 7))
    actions[3, 2], actions[4, 2] = 3.75, -1.5
    path = lift(tmp_path / "a.hdf5", actions=actions)
    assert doubt(load(path).episodes) is None
    assert clamped_share(demonstrations_for(LIFT, path).episodes) == pytest.approx(2 / 84)
    assert "2.38% of the action values are outside [-1, 1] and clamped" in capsys.readouterr().err
    assert main(["data", "inspect", str(path)]) == 0
    assert "2.38% of the values are outside [-1, 1]" in capsys.readouterr().out


def test_positions_of_the_hand_are_no_changes_of_it():
    """Inside of [-1, 1], but where the hand is."""
    hand = np.array([0.1, -0.05, 0.9]) + RNG.uniform(-0.1, 0.1, (50, 3))
    absolute = np.concatenate([hand[1:], hand[-1:]]) * 1.001
    said = doubt(demos_of(np.hstack([absolute, SIX[:, :1]]), robot0_eef_pos=hand).episodes)
    assert said is not None and "absolute poses" in said
    assert doubt(demos_of(np.hstack([0.1 * SIX[:, :3], SIX[:, :1]]), robot0_eef_pos=hand).episodes) is None
    assert doubt(demos_of(np.zeros((50, 4)), robot0_eef_pos=np.zeros((50, 3))).episodes) is None


def test_refused_actions_can_be_allowed(tmp_path, capsys):
    actions = np.concatenate([RNG.uniform(-1, 1, (12, 3)), np.full((12, 1), 3.0), RNG.uniform(-1, 1, (12, 3))], axis=1)
    path = lift(tmp_path / "a.hdf5", actions=actions)
    with pytest.raises(BurnishError, match=r"14.3% .* 100% of those in dimension 3 .* task=lift .* allow=\[actions\]"):
        demonstrations_for(LIFT, path)
    demonstrations_for(LIFT, path, allow=["actions"])
    assert "14.29% of the action values are outside [-1, 1] and clamped" in capsys.readouterr().err
    assert main(["data", "validate", str(path), "--task", "lift"]) == 1
    assert "to have them clamped: --allow actions" in capsys.readouterr().out
    assert main(["data", "validate", str(path), "--task", "lift", "--allow", "actions"]) == 0


@pytest.mark.parametrize(
    ("name", "bound", "Da"), [("pusher", 2, 7), ("inverted_pendulum", 3, 1), ("humanoid", 0.4, 17)]
)
def test_actions_in_the_environment_s_units_are_rescaled(name: str, bound: float, Da: int):
    task = load_task(name)
    unit = RNG.uniform(-1, 1, (60, Da))
    scaled = in_unit_range(demos_of(bound * unit), task)
    np.testing.assert_allclose(scaled.demos.episodes[0].actions, unit, atol=1e-6)
    assert scaled.said is not None and "rescaled to [-1, 1]" in scaled.said and f"[-{bound}, {bound}]" in scaled.said
    assert clamped_share(scaled.demos.episodes) == 0 and scaled.doubt is None
    marked = replace(demos_of(unit), unit_actions=True)  # ours
    assert in_unit_range(marked, task) == (marked, None, None)


def test_what_may_be_both_is_taken_for_unit_actions_and_said():
    """A file of Pusher (bounds of 2) within [-1, 1]; of Humanoid (0.4) beyond 0.4."""
    for name, Da, words in (("pusher", 7, "taken to be in [-1, 1], which stands for [-2, 2]"), ("humanoid", 17, None)):
        demos = demos_of(RNG.uniform(-1, 1, (60, Da)))
        scaled = in_unit_range(demos, load_task(name))
        assert scaled.demos is demos and scaled.doubt is None
        assert (scaled.said is None) if words is None else words in str(scaled.said)


def test_what_is_beyond_both_cannot_be_known():
    scaled = in_unit_range(demos_of(5 * RNG.uniform(-1, 1, (60, 7))), load_task("pusher"))
    assert scaled.doubt is not None and "and beyond [-2, 2], the bounds of Pusher-v5" in scaled.doubt


def test_bounds_that_are_not_symmetric(tmp_path, monkeypatch):
    """[0, 4] and [-1, 3]: 0, 2, 4 and -1, 1, 3 are -1, 0, 1."""
    import gymnasium
    from gymnasium.envs.registration import registry

    class Shifted(gymnasium.Env):
        observation_space = gymnasium.spaces.Box(-1, 1, (3,), np.float32)
        action_space = gymnasium.spaces.Box(np.array([0, -1], np.float32), np.array([4, 3], np.float32))

        def reset(self, **_: Any) -> Any:
            return np.zeros(3, np.float32), {}

    spec = gymnasium.envs.registration.EnvSpec("Shifted-v0", entry_point=Shifted)
    monkeypatch.setitem(registry, "Shifted-v0", spec)
    task = TaskConfig("shifted", "gymnasium", "Shifted-v0", 10)
    scaled = in_unit_range(demos_of(np.array([[0, -1], [2, 1], [4, 3]])), task)
    np.testing.assert_allclose(scaled.demos.episodes[0].actions, [[-1, -1], [0, 0], [1, 1]], atol=1e-7)


def test_the_simulators_tell_their_bounds():
    assert np.abs(make_simulator(load_task("pusher")).action_bounds).max() == 2
    variable = with_kwargs(controller_configs={**OLD, "impedance_mode": "variable_kp"})
    low, high = make_simulator(variable).action_bounds
    assert (low[:6], high[:6], high[6:].tolist()) == (pytest.approx(0), pytest.approx(300), [1] * 7)
    actions = low + (high - low) * RNG.uniform(size=(40, len(low)))
    scaled = in_unit_range(demos_of(actions), variable)
    np.testing.assert_allclose(scaled.demos.episodes[0].actions[:, :6], actions[:, :6] / 150 - 1, atol=1e-5)


def test_files_of_ours_say_that_their_actions_are_in_the_unit_range(tmp_path):
    demos = replace(demos_of(0.3 * RNG.uniform(-1, 1, (60, 17))), unit_actions=True)
    d4rl.write(tmp_path / "a.hdf5", demos)
    assert load(tmp_path / "a.hdf5").unit_actions
    np.testing.assert_array_equal(
        demonstrations_for(load_task("humanoid"), tmp_path / "a.hdf5").episodes[0].actions, demos.episodes[0].actions
    )
    d4rl.write(tmp_path / "b.hdf5", replace(demos, unit_actions=False))
    assert not load(tmp_path / "b.hdf5").unit_actions


def test_bounds_of_a_source_are_compared():
    pusher = load_task("pusher")
    from burnish.datasets.for_task import environments

    demos = replace(demos_of(np.zeros((5, 7))), action_bounds=([-2.0] * 7, [2.0] * 7), unit_actions=True)
    assert differences(*environments(demos, pusher)) == []
    demos = replace(demos, action_bounds=([-1.0] * 7, [1.0] * 7))
    aspects = {(one.aspect, one.decisive) for one in differences(*environments(demos, pusher))}
    assert aspects == {("bounds", True)}


def absolute(part: str, nested: bool = False, **changes: Any) -> Callable[[dict[str, Any]], dict[str, Any]]:
    def change(config: dict[str, Any]) -> dict[str, Any]:
        config["body_parts"][part].update(changes or {"input_type": "absolute"})
        return {**config, "body_parts": {"arms": config["body_parts"]}} if nested else config

    return change


@pytest.mark.parametrize(
    ("robots", "change"),
    [
        (["Panda"], absolute("right")),
        (["Panda"], absolute("right", nested=True)),
        (["Panda"], absolute("right", type="JOINT_POSITION", input_type="absolute")),
        (["Panda"], absolute("right", type="IK_POSE", control_delta=False)),
        (["Panda"], absolute("right", input_type="absolute", input_max=2, input_min=-2)),
        (["Baxter"], absolute("left")),
        (["GR1ArmsOnly"], lambda config: config),  # its own: the whole body follows poses of the hands
    ],
)
def test_absolute_controllers_are_refused_in_every_form(robots: list[str], change: Callable):
    config = import_robosuite().load_composite_controller_config(robot=robots[0])
    with pytest.raises(BurnishError, match=r"controller_configs: .*absolute actions are not in \[-1, 1\]"):
        make_task_env("Lift", {"robots": robots, "controller_configs": [change(config)]})


def test_absolute_controllers_from_a_file(tmp_path):
    config = import_robosuite().load_composite_controller_config(robot="Panda")
    config["body_parts"]["right"]["input_type"] = "absolute"
    (tmp_path / "abs.json").write_text(json.dumps(config))
    with pytest.raises(BurnishError, match=r"body_parts\.right\.input_type=absolute"):
        make_task_env("Lift", {"controller_configs": str(tmp_path / "abs.json")})


# -- validate


@pytest.fixture(scope="module")
def collected(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("collected") / "lift.hdf5"
    assert main(["data", "collect", "task=lift", "episodes=2", "n_workers=1", f"out={path}"]) == 0
    return path


Edit = Callable[[np.ndarray], np.ndarray]


@pytest.mark.parametrize(
    ("key", "edit", "words"),
    [
        ("robot0_eef_quat", lambda q: q[:, [3, 0, 1, 2]], "in another order"),
        ("robot0_eef_quat", lambda q: -q, "of the other sign"),
        ("robot0_eef_quat", lambda q: q * [1, 1, 1, -1] @ np.diag([1, -1, -1, 1]), "is not what is observed"),
        ("robot0_eef_pos", lambda p: p * [1, -1, 1], "is not what is observed"),
        ("robot0_eef_pos", lambda p: p - [-0.56, 0, 0.912], "another frame"),
        ("robot0_eef_pos", lambda p: 1000 * p, "times 1000: other units"),
        ("robot0_eef_pos", lambda p: p[::-1], "is not what is observed"),
        ("object", lambda o: np.hstack([o[:, 7:], o[:, :7]]), "in another order"),
        ("object", lambda o: np.hstack([o[:, :3], np.zeros((len(o), 4)), o[:, 7:]]), "is not what is observed"),
        ("robot0_gripper_qpos", lambda g: g[:, :1], "has 1 numbers, 2 are observed"),
    ],
)
def test_observations_of_another_convention(collected, tmp_path, capsys, key: str, edit: Edit, words: str):
    path = tmp_path / "a.hdf5"
    path.write_bytes(collected.read_bytes())
    with h5py.File(path, "a") as file:
        for demo in file["data"].values():
            for group in ("obs", "next_obs"):
                values = edit(demo[f"{group}/{key}"][()])
                del demo[f"{group}/{key}"]
                demo[f"{group}/{key}"] = values
    assert main(["data", "validate", str(path), "--task", "lift", "--replay", "2"]) == 1
    said = [line for line in capsys.readouterr().out.splitlines() if line.startswith("error")]
    assert len(said) == 1 and repr(key) in said[0] and words in said[0]
    result = validate(path, k=1)
    assert result.n_errors == 0 and any(repr(key) in finding.message for finding in result.findings)


def test_what_is_recorded_as_it_is_observed_is_not_remarked_upon(collected):
    result = validate(collected, k=2, task=LIFT)
    assert result.findings == [] and "2 succeed by states" in result.note


def test_poses_in_the_hand_are_those_of_one_step_earlier(tmp_path):
    """robosuite computes them from what it observed before; Can's objects have them."""
    path = tmp_path / "can.hdf5"
    words = ["task=can", "task.max_episode_steps=60", "episodes=1", "n_workers=1", f"out={path}"]
    assert main(["data", "collect", *words]) == 0
    assert not [
        finding for finding in validate(path, k=1, task=load_task("can")).findings if "object" in finding.message
    ]


def test_the_sign_of_half_a_turn_is_a_rounding_error():
    """w is next to 0, so the same turn is written now as q, now as -q."""
    q = np.array([0.99, 0.1, 0.0, 0.001])
    signs = np.where(np.arange(12) % 3 == 0, -1, 1)
    mixed = [Compared({"quat": sign * q}, {"quat": q}) for sign in signs]
    assert list(conventions(mixed)) == []
    assert len(list(conventions([Compared({"quat": -q}, {"quat": q})] * 12))) == 1
    far = [Compared({"quat": q + (0.3 if i < 4 else 0)}, {"quat": q}) for i in range(12)]
    assert len(list(conventions(far))) == 1 and list(conventions(far[3:])) == []


@pytest.mark.parametrize("args", [recorded("Stack_D0"), recorded(robots=["PandaFromElsewhere"])])
def test_environments_that_are_not_here_are_not_replayed(tmp_path, capsys, args: dict[str, Any]):
    path = lift(tmp_path / "a.hdf5", args)
    with h5py.File(path, "a") as file:
        for demo in file["data"].values():
            demo["states"] = np.zeros((12, 60))
        file["data/demo_1/actions"][...] = file["data/demo_0/actions"][()]
    assert main(["data", "validate", str(path)]) == 0
    said = capsys.readouterr().out
    assert "the same actions" in said
    assert "no episode replayed: task.env" in said and ("Stack_D0" in said or "PandaFromElsewhere" in said)


def test_states_that_do_not_fit_are_an_error_beside_the_others(tmp_path, capsys):
    path = lift(tmp_path / "a.hdf5")
    with h5py.File(path, "a") as file:
        for demo in file["data"].values():
            demo["states"] = np.zeros((12, 60))
    assert main(["data", "validate", str(path)]) == 1
    assert "error: episode all" in (said := capsys.readouterr().out) and "states of 60 numbers" in said


# -- convert


def raw(path: Path, robots: list[str], *, as_robomimic: bool = True, **kwargs: Any) -> np.ndarray:
    """A recording without observations -> where the hand was (T, 3)."""
    env = make_task_env("Lift", {"robots": robots, **kwargs}, fast=False, lean=False)
    env.reset()
    rng, states, actions, hand = np.random.default_rng(0), [], [], []
    for _ in range(4):
        states.append(env.sim.get_state().flatten())
        env.sim.forward()
        hand.append(env._get_observations(force_update=True)["robot0_eef_pos"])
        actions.append(rng.uniform(-1, 1, env.action_dim))
        env.step(actions[-1])
    with h5py.File(path, "w") as file:
        for name in ("demo_0", "demo_1"):
            demo = file.create_group(f"data/{name}")
            demo["states"], demo["actions"] = np.array(states), np.array(actions)
            demo.attrs["model_file"] = env.sim.model.get_xml()
        if as_robomimic:
            file["data"].attrs["env_args"] = json.dumps(env_args("Lift", {"robots": robots, **kwargs}))
            file["mask/train"], file["mask/valid"] = [b"demo_0"], [b"demo_1"]
        else:
            file["data"].attrs["env"] = "Lift"
            file["data"].attrs["env_info"] = json.dumps({"robots": robots, **kwargs})
    return np.array(hand)


@pytest.mark.parametrize("as_robomimic", [True, False])
def test_a_recording_is_converted_in_the_environment_that_it_tells(tmp_path, capsys, as_robomimic: bool):
    hand = raw(
        tmp_path / "raw.hdf5", ["UR5e"], as_robomimic=as_robomimic, gripper_types="PandaGripper", control_freq=10
    )
    convert = ["data", "convert", str(tmp_path / "raw.hdf5"), str(tmp_path / "out.hdf5")]
    assert main(convert) == 0
    demos = load(tmp_path / "out.hdf5")
    np.testing.assert_allclose(demos.episodes[0].obs["robot0_eef_pos"], hand, atol=1e-6)
    assert demos.env_args is not None and demos.env_args["env_kwargs"]["control_freq"] == 10
    assert demos.masks == ({"train": ["demo_0"], "valid": ["demo_1"]} if as_robomimic else {})
    assert main([*convert, "--overwrite", "--task", "lift"]) == 2
    said = capsys.readouterr().err
    assert "robot: UR5e in the file, Panda in --task lift" in said and "--allow robot control_freq" in said
    assert main([*convert, "--overwrite", "--robots", "Sawyer"]) == 2
    assert "robot: UR5e in the file, Sawyer in --robots Sawyer" in capsys.readouterr().err
    assert main([*convert, "--overwrite", "--robots", "UR5e"]) == 0


def test_who_is_believed_where_it_is_allowed(tmp_path):
    hand = raw(tmp_path / "raw.hdf5", ["Panda"])
    with h5py.File(tmp_path / "raw.hdf5", "a") as file:
        file["data"].attrs["env_args"] = json.dumps(env_args("Lift", {"robots": ["IIWA"]}))  # tells it wrongly
    words = ["data", "convert", str(tmp_path / "raw.hdf5"), str(tmp_path / "out.hdf5"), "--task", "lift"]
    assert main(words) == 2
    assert main([*words, "--allow", "robot", "gripper", "controller"]) == 0
    np.testing.assert_allclose(load(tmp_path / "out.hdf5").episodes[0].obs["robot0_eef_pos"], hand, atol=1e-6)


@pytest.mark.parametrize("how", ["same", "dotted", "symbolic", "hard"])
def test_a_recording_is_never_replaced(tmp_path, monkeypatch, capsys, how: str):
    monkeypatch.chdir(tmp_path)
    for name in ("raw.hdf5", "arm.csv"):
        source = Path(name)
        source.write_bytes(b"the only copy")
        out = Path(f"out_{name}") if how in ("symbolic", "hard") else source
        if how in ("symbolic", "hard"):
            (os.symlink if how == "symbolic" else os.link)(source, out)
        for more in ([], ["--overwrite"]):
            text = f"../{tmp_path.name}/{out}" if how == "dotted" else str(out)
            assert main(["data", "convert", name, text, *more]) == 2
            assert "is the recording itself" in capsys.readouterr().err
        assert source.read_bytes() == b"the only copy"


def test_another_file_is_replaced_only_when_asked(tmp_path, capsys):
    raw(tmp_path / "raw.hdf5", ["Panda"])
    out = tmp_path / "out.hdf5"
    out.write_bytes(b"something")
    words = ["data", "convert", str(tmp_path / "raw.hdf5"), str(out)]
    assert main(words) == 2
    assert "--overwrite" in capsys.readouterr().err and out.read_bytes() == b"something"
    assert main([*words, "--overwrite"]) == 0
    assert len(load(out).episodes) == 2
