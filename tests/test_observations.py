"""Observations with sensors: the array they are kept in, the environments that give them, the networks that see them.

Symbols: those of `burnish.observations`.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.envs.mujoco.hopper_v5 import HopperEnv
from gymnasium.spaces import Box, Dict, Discrete
from torch import nn

from burnish.datasets.checking.inspect import inspect
from burnish.datasets.episodes import Demonstrations, Episode
from burnish.datasets.formats.robomimic import write
from burnish.datasets.load import load
from burnish.datasets.windows import Windows
from burnish.envs import make_simulator, make_vector_env
from burnish.envs.gymnasium.simulator import _say_once
from burnish.envs.task import TaskConfig, load_task
from burnish.errors import BurnishError
from burnish.finetune.storage.replay import demonstration_transitions
from burnish.networks.encoders.encoder import Encoder, EncoderConfig
from burnish.networks.encoders.points import PointsEncoder
from burnish.networks.encoders.rgb import RGBEncoder, SpatialSoftmax
from burnish.observations import ObsSpec, Part
from burnish.policies.diffusion import DiffusionPolicy, PolicyConfig
from burnish.policies.gaussian import GaussianPolicy, GaussianPolicyConfig
from burnish.policies.load import load_policy
from burnish.runs.state import load_state, save_state

SPEC = ObsSpec({"state": Part((3,)), "picture": Part((4, 5, 3), "uint8"), "points": Part((7, 3))}, {"a": 1, "b": 2})
STATE_ALONE = ObsSpec.of_state(3, {"a": 1, "b": 2})


def parts(*leading: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {
        "state": rng.normal(size=(*leading, 3)).astype(np.float32),
        "picture": rng.integers(0, 256, (*leading, 4, 5, 3), dtype=np.uint8),
        "points": rng.normal(size=(*leading, 7, 3)).astype(np.float32),
    }


# -- the array ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("leading", [(), (6,), (2, 4)])
def test_parts_are_found_again_in_numpy_and_in_torch(leading: tuple[int, ...]) -> None:
    given = parts(*leading)
    records = SPEC.record(given)
    assert records.shape == leading
    tensor = SPEC.tensor(records)
    assert tensor.shape == (*leading, SPEC.width) and tensor.dtype == torch.uint8
    for name, found in SPEC.split(tensor).items():
        np.testing.assert_array_equal(records[name], given[name])
        np.testing.assert_array_equal(found.numpy(), given[name])


def test_a_state_alone_stays_the_plain_array_that_it_is() -> None:
    state = parts(2, 4)["state"]
    assert STATE_ALONE.record({"state": state}) is state
    assert STATE_ALONE.zeros(2, 4).shape == (2, 4, 3)
    assert STATE_ALONE.tensor(state).dtype == torch.float32 and STATE_ALONE.width == 3
    by_key = STATE_ALONE.by_key(state)
    np.testing.assert_array_equal(by_key["a"], state[..., :1])
    np.testing.assert_array_equal(by_key["b"], state[..., 1:])


def test_another_state_leaves_the_sensors() -> None:
    tensor = SPEC.tensor(SPEC.record(parts(5)))
    changed, before = SPEC.split(SPEC.with_state(tensor, torch.full((5, 3), 7.0))), SPEC.split(tensor)
    assert changed["state"].eq(7).all()
    assert changed["picture"].equal(before["picture"]) and changed["points"].equal(before["points"])


@pytest.mark.parametrize("name", ["state", "points"])
def test_what_is_not_finite_is_found_in_every_part_of_numbers(name: str) -> None:
    records = SPEC.record(parts(2))
    assert SPEC.is_finite(records)
    records[name][1].flat[-1] = np.nan
    assert not SPEC.is_finite(records)


def test_records_are_saved_and_read_as_they_are(tmp_path) -> None:
    records = SPEC.record(parts(2, 3))
    save_state(tmp_path / "state.pt", {"obs": records})
    found = load_state(tmp_path / "state.pt")["obs"]
    assert found.dtype == records.dtype and found.shape == (2, 3)
    assert found.tobytes() == records.tobytes()


def test_what_cannot_be_a_part_is_refused() -> None:
    with pytest.raises(BurnishError, match="'x' is of int64: expected float32 or uint8"):
        ObsSpec({"x": Part((3,), "int64")})
    with pytest.raises(BurnishError, match="without parts"):
        ObsSpec({})


# -- Gymnasium's environments ------------------------------------------------------------------------------------------


class Dicts(gymnasium.Env):
    """Counts its steps in both parts of its observation; truncates itself at step 4, succeeds at step 6."""

    observation_space = Dict(
        x=Box(-9, 9, (2,)), goal=Box(-9, 9, ()), picture=Box(0, 255, (3, 3, 1), np.uint8), kind=Discrete(3)
    )
    action_space = Box(np.array([0.0, -5.0], np.float32), np.array([4.0, 5.0], np.float32))

    def __init__(self, truncates: bool = True):
        self.truncates = truncates

    def observation(self):
        return {
            "x": np.array([self.t, 0.5], np.float32),
            "goal": np.array(3.0, np.float32),
            "picture": np.full((3, 3, 1), self.t, np.uint8),
            "kind": 1,
        }

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.t, self.actions = 0, []
        return self.observation(), {}

    def step(self, action):
        self.t += 1
        self.actions.append(action)
        return self.observation(), 1.0, False, self.truncates and self.t == 4, {"won": self.t == 6, "success": False}


class Flat(gymnasium.Env):
    observation_space, action_space = Box(-1, 1, (2, 2)), Box(-1, 1, (1,))

    def reset(self, *, seed=None, options=None):
        return np.arange(4, dtype=np.float32).reshape(2, 2), {}


class Pixels(Flat):
    observation_space = Box(0, 255, (4, 4, 3), np.uint8)

    def reset(self, *, seed=None, options=None):
        return np.full((4, 4, 3), 9, np.uint8), {}


class Unbounded(Flat):
    action_space = Box(-np.inf, np.inf, (1,))


for env in (Dicts, Flat, Pixels, Unbounded):
    gymnasium.register(f"Burnish{env.__name__}-v0", entry_point=env, max_episode_steps=2)

DICTS = TaskConfig(
    name="dicts",
    suite="gymnasium",
    env_id="BurnishDicts-v0",
    max_episode_steps=9,
    obs_keys=["goal", "x"],
    sensors=["picture"],
    success_key="won",
)


def test_keys_of_a_dict_are_joined_in_the_tasks_order_and_sensors_are_kept() -> None:
    simulator = make_simulator(DICTS)
    assert str(simulator.obs_spec) == "state [3] float32, picture [3, 3, 1] uint8"
    obs = simulator.reset(0)
    assert obs["state"].tolist() == [3, 0, 0.5] and obs["picture"].dtype == np.uint8
    assert {key: value.tolist() for key, value in simulator.obs_spec.by_key(obs).items() if key != "picture"} == {
        "goal": [3],
        "x": [0, 0.5],
    }
    assert (simulator.step(np.zeros(2)).obs["picture"] == 1).all()


def test_actions_are_rescaled_to_the_bounds_and_that_is_said(capsys) -> None:
    _say_once.cache_clear()
    simulator = make_simulator(replace(DICTS, env_kwargs={"truncates": False}))
    simulator.reset(0)
    for action in ([-1, -1], [1, 1], [0, 0.5], [-7, 7]):
        simulator.step(np.array(action, np.float32))
    given = simulator._env.unwrapped.actions
    assert np.array(given).tolist() == [[0, -5], [4, 5], [2, 2.5], [0, 5]]
    assert "rescaled to [0, 4], [-5, 5]" in capsys.readouterr().err


def test_an_environments_own_truncation_ends_an_episode_beside_the_tasks_limit() -> None:
    settings: dict[str, Any] = {"n_envs": 2, "n_obs_steps": 2, "n_action_steps": 3, "seed": 0}
    envs = make_vector_env(DICTS, **settings)
    obs = envs.reset()
    assert obs.shape == (2, 2) and obs["picture"].shape == (2, 2, 3, 3, 1)
    first, second = envs.step(np.zeros((2, 3, 2))), envs.step(np.zeros((2, 3, 2)))
    assert not first.truncated.any() and first.obs["state"][0].tolist() == [[3, 2, 0.5], [3, 3, 0.5]]
    assert second.truncated.all() and not second.terminated.any() and second.steps.tolist() == [1, 1]
    assert second.final_obs["picture"][0, :, 0, 0, 0].tolist() == [3, 4]
    assert second.obs["picture"][0, :, 0, 0, 0].tolist() == [0, 0]  # the next episode's first, repeated
    envs = make_vector_env(replace(DICTS, env_kwargs={"truncates": False}), **settings)  # its TimeLimit of 2 is not
    envs.reset()
    ends = [envs.step(np.zeros((2, 3, 2))).truncated.all() for _ in range(3)]
    assert ends == [False, False, True]  # the task's limit of 9


def test_one_observation_is_the_state_or_the_one_sensor() -> None:
    flat = TaskConfig(name="flat", suite="gymnasium", env_id="BurnishFlat-v0", max_episode_steps=9)
    assert make_simulator(flat).reset(0).tolist() == [0, 1, 2, 3]
    pixels = replace(flat, env_id="BurnishPixels-v0", obs_keys=[], sensors=["view"])
    assert (make_simulator(pixels).reset(0)["view"] == 9).all()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"obs_keys": ["flat"]}, r"no observation 'flat'.*to be of x, goal, picture, kind"),
        ({"sensors": ["pictur"]}, "no observation 'pictur'"),
        ({"obs_keys": ["kind"]}, "gives 'kind' as Discrete"),
        ({"env_id": "BurnishFlat-v0"}, "gives one observation: expected obs_keys=\\[\\]"),
        ({"env_id": "BurnishFlat-v0", "sensors": []}, "one observation without a name"),
        ({"env_id": "BurnishUnbounded-v0", "obs_keys": ["flat"], "sensors": []}, "actions without bounds"),
        ({"env_id": "CartPole-v1", "obs_keys": ["flat"], "sensors": []}, "expected a Box, continuous ones"),
        ({"env_id": "Hopper-v5"}, "Hopper-v5 has one observation, expected \\[flat\\]"),
        ({"obs_keys": [], "sensors": []}, "expected at least one observation key"),
    ],
)
def test_a_task_that_does_not_fit_its_environment_is_told(changes, message: str) -> None:
    with pytest.raises(BurnishError, match=message):
        make_simulator(replace(DICTS, **changes))


def test_an_environment_without_a_state_of_its_own_is_not_saved() -> None:
    envs = make_vector_env(DICTS, n_envs=1, n_obs_steps=1, n_action_steps=1, seed=0)
    envs.reset()
    with pytest.raises(NotImplementedError, match=r"without get_state and set_state.*start anew"):
        envs.state_dict()


class AnotherHopper(HopperEnv):
    """Keeps something beside MuJoCo's state, as AdroitHandDoor does."""

    def step(self, action):
        self.total = getattr(self, "total", 0.0) + float(np.sum(action))
        obs, reward, terminated, truncated, info = super().step(action)
        return obs + self.total, reward, terminated, truncated, info


gymnasium.register("BurnishHopper-v0", entry_point=AnotherHopper)


def test_the_state_of_a_mujoco_environment_of_another_package_is_not_taken_for_whole() -> None:
    hopper = TaskConfig("hopper", "gymnasium", "BurnishHopper-v0", 50)
    envs = make_vector_env(hopper, n_envs=1, n_obs_steps=1, n_action_steps=1, seed=0)
    envs.reset()
    with pytest.raises(NotImplementedError, match="cannot be saved: episodes start anew"):
        envs.state_dict()
    own = make_vector_env(replace(hopper, env_id="Hopper-v5"), n_envs=1, n_obs_steps=1, n_action_steps=1, seed=0)
    own.reset()
    assert own.state_dict()["environments"]


# -- encoders and policies ---------------------------------------------------------------------------------------------


def test_a_spatial_softmax_tells_where_a_channel_is_bright() -> None:
    x = torch.zeros(1, 2, 5, 3)
    x[0, 0, 4, 0] = x[0, 1, 2, 2] = 100.0
    row, middle, column, right = SpatialSoftmax()(x)[0].tolist()
    assert (row, column) == pytest.approx((1, -1)) and (middle, right) == pytest.approx((0, 1))


def test_points_have_no_order_and_pictures_do() -> None:
    torch.manual_seed(0)
    config = EncoderConfig(features=6, channels=[8], point_dims=[8])
    cloud, pictures = torch.randn(2, 1, 7, 3), torch.randint(0, 256, (2, 1, 8, 8, 3), dtype=torch.uint8)
    points, rgb = PointsEncoder(config, (7, 3), 1), RGBEncoder(config, (8, 8, 3), 1)
    torch.testing.assert_close(points(cloud), points(cloud.flip(2)))
    assert points(cloud).shape == rgb(pictures).shape == (2, 6)
    assert (rgb(pictures) - rgb(pictures.flip(2))).abs().max() > 1e-4


def test_an_encoder_gives_the_state_first_and_then_each_sensor() -> None:
    config = EncoderConfig(features=4, channels=[8], point_dims=[8])
    encoder = Encoder(SPEC, 2, config)
    raw = SPEC.tensor(SPEC.record(parts(5, 2)))
    features = encoder(raw.flatten(1))
    assert features.shape == (5, config.count(SPEC, 2)) == (5, 2 * 3 + 2 * 4)
    split = SPEC.split(raw)
    torch.testing.assert_close(features[:, :6], split["state"].flatten(1))
    torch.testing.assert_close(features[:, 6:10], encoder.sensors["picture"](split["picture"]))
    torch.testing.assert_close(features[:, 10:], encoder.sensors["points"](split["points"]))
    assert not list(Encoder(STATE_ALONE, 2, config).parameters())


class Mean(nn.Module):
    """An encoder of one's own."""

    def __init__(self, config, shape, n_obs_steps):
        super().__init__()
        self.features = config.features

    def forward(self, x):
        return x.float().flatten(1).mean(1, keepdim=True).expand(-1, self.features)


def test_a_sensor_may_have_an_encoder_of_ones_own() -> None:
    config = EncoderConfig(features=2, kinds={"picture": f"{__name__}:Mean"})
    spec = ObsSpec({"picture": Part((4, 5, 3), "uint8")})
    raw = spec.tensor(spec.record({"picture": parts(5, 1)["picture"]}))
    torch.testing.assert_close(Encoder(spec, 1, config)(raw.flatten(1))[:, 0], raw.flatten(1).float().mean(1))
    with pytest.raises(BurnishError, match=r"encoder.kinds.picture=rbg: expected one of rgb, points"):
        Encoder(spec, 1, EncoderConfig(kinds={"picture": "rbg"}))
    with pytest.raises(BurnishError, match=r"sensor 'x' has shape \[3\].*encoder.kinds"):
        Encoder(ObsSpec({"x": Part((3,))}), 1, EncoderConfig())


@pytest.mark.parametrize("kind", ["diffusion", "gaussian"])
def test_a_policy_with_sensors_normalises_the_state_alone_and_is_saved_whole(kind: str, tmp_path) -> None:
    torch.manual_seed(0)
    encoder = EncoderConfig(features=4, channels=[8], point_dims=[8])
    make, config = {
        "diffusion": (DiffusionPolicy, PolicyConfig(n_obs_steps=2, encoder=encoder)),
        "gaussian": (GaussianPolicy, GaussianPolicyConfig(n_obs_steps=2, encoder=encoder)),
    }[kind]
    policy = make(config, SPEC, 2, ["a", "b"]).eval()
    obs = SPEC.record(parts(8, 2))
    policy.fit_normalizers(SPEC.tensor(obs).flatten(0, 1), torch.rand(16, 2) * 2 - 1)
    prepared = SPEC.split(policy.normalized_obs(obs).unflatten(1, (2, -1)))
    raw = SPEC.split(SPEC.tensor(obs))
    torch.testing.assert_close(prepared["state"], policy.obs_normalizer.normalize(raw["state"]))
    assert prepared["state"].abs().amax((0, 1)).tolist() == pytest.approx([1, 1, 1])
    assert prepared["picture"].equal(raw["picture"]) and prepared["points"].equal(raw["points"])
    policy.save(tmp_path / "policy")
    again = load_policy(tmp_path / "policy")
    assert again.obs_spec == SPEC
    noise = torch.randn(policy.noise_shape()[0], 8, *policy.noise_shape()[1:])
    assert np.array_equal(again.act(obs, noise=noise), policy.act(obs, noise=noise))
    darker = obs.copy()
    darker["picture"] //= 2
    assert not np.array_equal(policy.act(darker, noise=noise), policy.act(obs, noise=noise))
    with pytest.raises(BurnishError, match=r"expected records \(B, To\) = \(B, 2\) of state \[3\] float32, picture"):
        policy.act(parts(8, 2)["state"], noise=noise)


def test_observations_are_also_given_by_their_names(tmp_path) -> None:
    config = PolicyConfig(n_obs_steps=2, encoder=EncoderConfig(features=4, channels=[8], point_dims=[8]))
    policy = DiffusionPolicy(config, SPEC, 2, ["a", "b"]).eval()
    given = parts(8, 2)
    noise = torch.randn(policy.noise_shape()[0], 8, *policy.noise_shape()[1:])
    named = {"a": given["state"][..., 0], "b": given["state"][..., 1:], "picture": given["picture"]}
    with pytest.raises(BurnishError, match="a, b, picture: expected a, b, picture, points; points is missing"):
        policy.act(named, noise=noise)
    acted = policy.act({**named, "points": given["points"], "beside": given["points"]}, noise=noise)
    np.testing.assert_array_equal(acted, policy.act(SPEC.record(given), noise=noise))
    alone = DiffusionPolicy(PolicyConfig(), STATE_ALONE, 2, ["a", "b"]).eval()
    noise = torch.randn(alone.noise_shape()[0], 4, *alone.noise_shape()[1:])
    state = parts(4, 1)["state"]
    by_name = {"b": state[..., 1:], "a": state[..., :1]}
    np.testing.assert_array_equal(alone.act(by_name, noise=noise), alone.act(state, noise=noise))


def test_gradients_reach_the_encoder_of_the_network_that_is_trained() -> None:
    policy = DiffusionPolicy(
        PolicyConfig(encoder=EncoderConfig(features=4, channels=[8], point_dims=[8])), SPEC, 2, ["a"]
    )
    policy.start_finetuning()
    obs = policy.normalized_obs(SPEC.record(parts(8, 1)))
    output, target = policy.denoise_noised(policy.finetuned, obs, torch.rand(8, 4, 2))
    (output - target).square().mean().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in policy.finetuned.encoder.parameters())
    assert all(p.grad is None for p in policy.denoiser.encoder.parameters())


# -- demonstrations ----------------------------------------------------------------------------------------------------

VIEW = "agentview_image"


@pytest.fixture
def with_pictures(tmp_path) -> tuple[Path, list[Episode]]:
    """A robomimic file of episodes of 4 and 3 steps, with pictures before and after each action."""
    rng = np.random.default_rng(0)
    episodes = []
    for i, T in enumerate((4, 3)):
        obs = {
            "x": rng.normal(size=(T + 1, 2)).astype(np.float32),
            VIEW: rng.integers(0, 256, (T + 1, 5, 4, 3), np.uint8),
        }
        before, after = ({key: values[part] for key, values in obs.items()} for part in (slice(T), T))
        actions = rng.uniform(-1, 1, (T, 2)).astype(np.float32)
        reward, terminated = np.eye(T, dtype=np.float32)[-1], np.arange(T) == T - 1
        episodes.append(Episode(f"demo_{i}", before, actions, reward, terminated, after))
    write(tmp_path / "pictures.hdf5", Demonstrations(episodes))
    return tmp_path / "pictures.hdf5", episodes


def test_pictures_of_robomimics_files_are_read_by_name_or_left_out_by_name(with_pictures) -> None:
    path, written = with_pictures
    without = load(path)
    assert without.left_out == [VIEW] and list(without.episodes[0].obs) == ["x"]
    assert VIEW in str(inspect(without)) and list(without.episodes[0].final_obs) == ["x"]
    found = load(path, sensors=[VIEW])
    assert found.left_out == []
    for ours, theirs in zip(found.episodes, written):
        assert ours.obs[VIEW].dtype == np.uint8
        np.testing.assert_array_equal(ours.obs[VIEW], theirs.obs[VIEW])
        np.testing.assert_array_equal(ours.final_obs[VIEW], theirs.final_obs[VIEW])
    with pytest.raises(BurnishError, match=r"pictures.hdf5: no observation 'wrist' of task.sensors; .*agentview_image"):
        load(path, sensors=["wrist"])


def test_windows_and_transitions_have_the_pictures_of_their_steps(with_pictures) -> None:
    path, (first, second) = with_pictures
    episodes = load(path, sensors=[VIEW]).episodes
    windows = Windows(episodes, ["x"], n_obs_steps=2, horizon=3, sensors=[VIEW])
    assert str(windows.spec) == f"state [2] float32, {VIEW} [5, 4, 3] uint8"
    parts_of = windows.spec.split(windows.batch(torch.tensor([0, 2, 4])).obs)  # steps 0 and 2 of one, 0 of the other
    expected = [first.obs[VIEW][[0, 0]], first.obs[VIEW][[1, 2]], second.obs[VIEW][[0, 0]]]
    np.testing.assert_array_equal(parts_of[VIEW].numpy(), np.stack(expected))
    np.testing.assert_array_equal(parts_of["state"].numpy()[1], first.obs["x"][[1, 2]])
    encoder = EncoderConfig(features=2, channels=[8])
    config = PolicyConfig(n_obs_steps=2, horizon=3, n_action_steps=3, encoder=encoder)
    policy = DiffusionPolicy(config, windows.spec, 2, ["x"])
    found = demonstration_transitions(policy, episodes, gamma=0.9)
    assert len(found.frames) == (4 + 1) + (3 + 1) and found.frames.dtype == torch.uint8
    after = policy.obs_spec.split(found.expanded().next_obs.unflatten(1, (2, -1)))
    np.testing.assert_array_equal(after[VIEW][0].numpy(), first.obs[VIEW][[2, 3]])
    np.testing.assert_array_equal(after[VIEW][1].numpy(), [first.obs[VIEW][3], first.final_obs[VIEW]])
    with pytest.raises(BurnishError, match=r"demo_0 has no observation 'agentview_image'"):
        demonstration_transitions(policy, load(path).episodes, gamma=0.9)


def test_robosuite_does_not_leave_out_a_sensor_in_silence() -> None:
    lift = replace(load_task("lift"), sensors=["agentview_image"])
    with pytest.raises(BurnishError, match=r"task.sensors=\[agentview_image\]: robosuite.*state alone"):
        make_simulator(lift)


def test_pictures_of_two_sizes_are_refused(with_pictures) -> None:
    _, (first, second) = with_pictures
    smaller = replace(second, obs=second.obs | {VIEW: second.obs[VIEW][:, :4]})
    with pytest.raises(BurnishError, match=r"demo_1 has the observations .*\[4, 4, 3\].*others have .*\[5, 4, 3\]"):
        Windows([first, smaller], ["x"], 1, 1, sensors=[VIEW])
