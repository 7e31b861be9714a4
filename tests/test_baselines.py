"""Gaussian policies, and Stable-Baselines3's SAC, TD3 and PPO as stages: what is stored, learned, saved and resumed."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from bandit import DA, TA, chunk_step
from baseline_stages import STAGES, E, make_policy, make_stage, observations, play, score
from stopped import StopAfter, untimed_metrics

from burnish.commands.evaluate import EvaluateConfig, evaluate_policy
from burnish.datasets.episodes import Demonstrations, Episode
from burnish.datasets.formats import d4rl
from burnish.envs.task import TaskConfig
from burnish.errors import BurnishError, Stopped
from burnish.evaluation.evaluate import evaluate
from burnish.evaluation.temperatures import TrainingEvaluationConfig
from burnish.finetune import loop
from burnish.finetune.baselines.ppo import PPOConfig
from burnish.finetune.baselines.sac import SACConfig
from burnish.finetune.baselines.td3 import TD3Config
from burnish.finetune.config import FinetuneConfig
from burnish.finetune.stage import StageConfig
from burnish.finetune.start import finetune
from burnish.machine.checksums import CHECKSUMS
from burnish.networks import DenoiserConfig
from burnish.policies.diffusion import DiffusionPolicy, PolicyConfig
from burnish.policies.gaussian import GaussianPolicy, GaussianPolicyConfig
from burnish.policies.load import load_policy
from burnish.pretrain.behaviour_cloning import PretrainConfig, TrainConfig, pretrain
from burnish.runs.metrics import read_metrics
from burnish.runs.state import load_state, save_state

HOPPER = TaskConfig(name="hopper", suite="gymnasium", env_id="Hopper-v5", max_episode_steps=40)
EVALUATION = TrainingEvaluationConfig(episodes=2, n_envs=2, backend="sync", temperatures=[0.0])


@pytest.mark.parametrize(
    ("name", "chunks", "settings"),
    [
        ("sac", 60, {"learning_rate": 3e-3, "ent_coef": 0.01}),
        ("td3", 60, {"learning_rate": 3e-3}),
        ("ppo", 160, {"learning_rate": 3e-3}),
    ],
)
def test_a_bandit_is_learned(name, chunks, settings):
    stage = make_stage(name, **settings)
    before = score(stage.policy)
    metrics = play(stage, np.random.default_rng(0), chunks)
    assert abs(before) < 0.1
    assert score(stage.policy) > 0.3  # of 0.5, the greatest raw action
    assert all(np.isfinite(list(m.values())).all() for m in metrics)


@pytest.mark.parametrize("name", ["sac", "td3"])
def test_the_replay_by_hand(name):
    """Discounted rewards of the executed steps, the true final observation, terminations but not time limits."""
    stage = make_stage(name, gamma=0.9)
    obs, after, rng = (
        observations(np.random.default_rng(0)),
        np.full((E, 1, 2), 7, np.float32),
        np.random.default_rng(1),
    )
    rewards = rng.normal(size=(E, TA)).astype(np.float32)
    rewards[3, 1] = 0
    steps = np.full(E, TA)
    steps[3] = 1
    actions = stage.act(obs)
    index = np.arange(E)
    stage.observe(chunk_step(obs + 1, rewards, index < 2, (index == 2) | (index == 3), after, steps))
    buffer = stage.model.replay_buffer
    assert buffer.pos == 1 and buffer.n_envs == E
    np.testing.assert_allclose(buffer.observations[0], obs[:, 0] - 0.25)
    np.testing.assert_allclose(buffer.next_observations[0], np.full((E, 2), 6.75))
    np.testing.assert_allclose(buffer.actions[0], actions.reshape(E, -1) / 0.5, rtol=1e-6)
    np.testing.assert_allclose(buffer.rewards[0], rewards[:, 0] + 0.9 * rewards[:, 1], rtol=1e-6)
    assert buffer.dones[0].tolist() == [1, 1, 1, 1, 0, 0, 0, 0]
    assert buffer.timeouts[0].tolist() == [0, 0, 1, 1, 0, 0, 0, 0]
    batch = buffer._get_samples(np.zeros(200, int))
    terminated = torch.isin(batch.observations[:, 0], torch.from_numpy(buffer.observations[0, :2, 0]))
    assert torch.equal(batch.dones[:, 0], terminated.float()) and 0 < terminated.sum() < 200
    assert stage.model.gamma == pytest.approx(0.81)
    assert stage.env_steps == E * TA - 1


@pytest.mark.parametrize("name", ["sac", "td3"])
def test_gradient_steps_are_those_due(name):
    stage = make_stage(name, utd_ratio=0.3125, train_freq=2)
    done = []
    for _ in range(6):
        play(stage, np.random.default_rng(0), 1)
        done.append(stage.gradient_steps)
    assert done == [0, 2, 2, 7, 7, 12]  # floor(2.5 n), from the second round of chunks on
    assert stage.model._n_updates == 12


@pytest.mark.parametrize("name", ["sac", "td3", "ppo"])
def test_the_saved_policy_acts_as_the_model_predicts(name, tmp_path):
    stage = make_stage(name)
    play(stage, np.random.default_rng(0), 20)
    stage.policy.save(tmp_path / "policy")
    loaded = load_policy(tmp_path / "policy")
    obs = np.random.default_rng(1).normal(size=(50, 1, 2)).astype(np.float32)
    normalized = stage.normalized(obs)
    with torch.no_grad():
        exact = stage.model.policy._predict(normalized, deterministic=True)
    expected = stage.policy.executed_actions(stage.policy.chunks(exact)).numpy()
    np.testing.assert_array_equal(loaded.act(obs), expected)
    predicted, _ = stage.model.predict(normalized.numpy(), deterministic=True)  # rescaled from [-1, 1] to [-1, 1]
    np.testing.assert_allclose(loaded.act(obs), 0.5 * predicted.reshape(50, TA, DA), atol=1e-6)
    np.testing.assert_array_equal(loaded.act(obs), stage.policy.act(obs))
    assert expected.std(0).min() > 0


@pytest.mark.parametrize("name", ["sac", "td3", "ppo"])
@pytest.mark.parametrize("chunks", [1, 21])
def test_a_restored_stage_goes_on_bitwise(name, chunks, tmp_path):
    """Through the file, from random actions, a part of a rollout, or the middle of learning."""
    settings = {} if name == "ppo" else {"buffer_size": 10 * E, "train_freq": 2}  # the ring is full
    stage = make_stage(name, **settings)
    play(stage, np.random.default_rng(0), chunks)
    save_state(tmp_path / "state.pt", stage.state_dict())
    torch.manual_seed(99)
    again = make_stage(name, **settings)
    again.load_state_dict(load_state(tmp_path / "state.pt"))
    metrics = [play(one, np.random.default_rng(1), 20) for one in (stage, again)]
    assert metrics[0] and metrics[0] == metrics[1]
    for ours, theirs in ((stage.policy, again.policy), (stage.model.policy, again.model.policy)):
        for key, tensor in ours.state_dict().items():
            assert torch.equal(tensor, theirs.state_dict()[key]), key


@pytest.mark.parametrize("name", ["sac", "td3", "ppo"])
def test_the_global_generators_are_left_alone_and_do_not_matter(name):
    runs = []
    for seed in (5, 6):
        torch.manual_seed(seed)
        np.random.seed(seed)  # noqa: NPY002
        stage = make_stage(name)  # its policy is made with seed 0
        torch.manual_seed(seed)
        play(stage, np.random.default_rng(0), 18)
        drawn = torch.rand(3), np.random.rand()  # noqa: NPY002
        torch.manual_seed(seed)
        np.random.seed(seed)  # noqa: NPY002
        assert torch.equal(drawn[0], torch.rand(3)) and drawn[1] == np.random.rand()  # noqa: NPY002
        runs.append(score(stage.policy))
    assert runs[0] == runs[1]


@pytest.mark.parametrize("name", ["sac", "td3"])
def test_the_replay_is_filled_with_demonstrations(name, tmp_path):
    obs = np.arange(22, dtype=np.float32).reshape(11, 2)
    episode = Episode(
        "demo_0",
        {"flat": obs[:10]},
        np.full((10, DA), 0.25, np.float32),
        np.arange(10, dtype=np.float32),
        np.arange(10) == 9,
        {"flat": obs[10]},
    )
    d4rl.write(tmp_path / "demos.hdf5", Demonstrations([episode]))
    stage = make_stage(name, demos=str(tmp_path / "demos.hdf5"), gamma=0.5)
    buffer = stage.model.replay_buffer
    n = buffer.pos * E
    assert n == 16  # 10 chunks, the second row completed with the first six again
    rows = [
        getattr(buffer, key)[:2].reshape(n, -1) for key in ("observations", "next_observations", "rewards", "dones")
    ]
    order = np.arange(n) % 10
    np.testing.assert_allclose(rows[0], obs[order] - 0.25)
    np.testing.assert_allclose(rows[1], obs[np.minimum(order + 2, 10)] - 0.25)
    np.testing.assert_allclose(rows[2][:, 0], np.where(order == 9, 9, order + 0.5 * (order + 1)))
    assert rows[3][:, 0].tolist() == (order >= 8).astype(float).tolist()
    assert (buffer.actions[:2] == 0.5).all()  # normalised
    with pytest.raises(BurnishError, match="buffer_size=8 is too small for 10 demonstrated chunks"):
        make_stage(name, demos=str(tmp_path / "demos.hdf5"), buffer_size=8)
    with pytest.raises(BurnishError, match="task=bandit names no demonstrations"):
        make_stage(name, demos="task")


@pytest.mark.parametrize("name", ["sac", "td3", "ppo"])
def test_the_kind_of_actor_must_fit(name):
    wrong = make_policy("sac" if name == "ppo" else "ppo")
    with pytest.raises(BurnishError, match=f"stage={name} needs a Gaussian policy with squash="):
        make_stage(name, wrong)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (lambda: SACConfig(gamma=0.0), "gamma=0.0"),
        (lambda: SACConfig(ent_coef=-1.0), "ent_coef=-1.0"),
        (lambda: TD3Config(policy_delay=0), "policy_delay=0"),
        (lambda: TD3Config(utd_ratio=0.0), "utd_ratio=0.0"),
        (lambda: PPOConfig(batch_size=1), "batch_size=1"),
        (lambda: PPOConfig(clip_range_vf=0.0), "clip_range_vf=0.0"),
        (lambda: GaussianPolicyConfig(n_action_steps=0), "n_action_steps=0"),
        (lambda: GaussianPolicyConfig(hidden_sizes=[0]), "hidden_sizes"),
    ],
)
def test_impossible_settings(config, message):
    with pytest.raises(BurnishError, match=message):
        config()


def test_cloning_recovers_a_linear_map():
    """The least-squares solution and the standard deviation of its residuals, in normalised space."""
    rng = np.random.default_rng(0)
    obs = torch.from_numpy(rng.normal(size=(400, 1, 2)).astype(np.float32))
    noise = np.array([0.02, 0.1, 0.2, 0.05]) * rng.normal(size=(400, 4))
    raw = obs[:, 0].numpy() @ rng.uniform(-0.2, 0.2, (2, 4)) + 0.1 + noise
    actions = torch.from_numpy(raw.astype(np.float32)).view(400, TA, DA)
    policy = make_policy(hidden_sizes=[], log_std_init=0.0)
    optimizer = torch.optim.Adam(policy.parameters(), 0.02)
    for _ in range(500):
        optimizer.zero_grad()
        policy.loss(obs, actions).backward()
        optimizer.step()
    design = np.c_[policy.normalized_obs(obs).numpy(), np.ones(400)]
    solution, *_ = np.linalg.lstsq(design, raw / 0.5, rcond=None)
    (layer,) = policy.network
    np.testing.assert_allclose(layer.weight.detach().numpy().T, solution[:2], atol=1e-3)
    np.testing.assert_allclose(layer.bias.detach().numpy(), solution[2], atol=1e-3)
    residuals = raw / 0.5 - design @ solution
    np.testing.assert_allclose(policy.log_std.detach().exp().numpy(), residuals.std(0), rtol=0.01)


def test_a_saved_gaussian_policy_evaluates_alone(tmp_path):
    policy = make_policy(n_obs_steps=2)
    policy.save(tmp_path / "policy")
    loaded = load_policy(tmp_path / "policy")
    assert isinstance(loaded, GaussianPolicy) and loaded.config == policy.config
    obs = np.random.default_rng(0).normal(size=(9, 2, 2)).astype(np.float32)
    np.testing.assert_array_equal(loaded.act(obs), policy.act(obs))
    assert loaded.act(obs).shape == (9, TA, DA) and np.abs(loaded.act(obs)).max() <= 0.5
    with pytest.raises(BurnishError, match="candidates=2: this policy has no critic"):
        loaded.act(obs, candidates=2)
    with pytest.raises(BurnishError, match="holds a gaussian policy: expected a DiffusionPolicy"):
        DiffusionPolicy.load(tmp_path / "policy")


def test_a_policy_folder_without_a_kind_is_a_diffusion_policy(tmp_path):
    """As written before there were others."""
    DiffusionPolicy(PolicyConfig(denoiser=DenoiserConfig(hidden_dim=16)), 2, 2, ["flat"]).save(tmp_path / "policy")
    path = tmp_path / "policy" / "policy.json"
    description = json.loads(path.read_text())
    assert description.pop("kind") == description["config"].pop("kind") == "diffusion"
    path.with_name(CHECKSUMS).unlink()
    path.write_text(json.dumps(description))
    assert isinstance(load_policy(tmp_path / "policy"), DiffusionPolicy)
    path.write_text(json.dumps(description | {"kind": "tabular"}))
    with pytest.raises(BurnishError, match="kind=tabular: expected one of diffusion, flow, gaussian"):
        load_policy(tmp_path / "policy")


@pytest.fixture(scope="module")
def dataset(tmp_path_factory) -> Path:
    rng = np.random.default_rng(0)
    episodes = [
        Episode(
            name=f"episode_{i}",
            obs={"flat": rng.normal(size=(30, 11)).astype(np.float32)},
            actions=np.tanh(rng.normal(size=(30, 3))).astype(np.float32),
            rewards=np.ones(30, np.float32),
            terminated=np.zeros(30, bool),
        )
        for i in range(4)
    ]
    path = tmp_path_factory.mktemp("data") / "hopper.hdf5"
    d4rl.write(path, Demonstrations(episodes))
    return path


@pytest.fixture(scope="module")
def pretrained(dataset, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("pretrained") / "run"
    policy = GaussianPolicyConfig(hidden_sizes=[32], n_obs_steps=2, n_action_steps=3)
    train = TrainConfig(epochs=3, batch_size=32, validation_fraction=0.25, eval_every=2)
    given = {"dataset": str(dataset), "run_dir": str(folder), "device": "cpu"}
    pretrain(PretrainConfig(task=HOPPER, policy=policy, train=train, evaluation=EVALUATION, **given))
    return folder


def finetune_config(folder: Path, stage: StageConfig, **kwargs) -> FinetuneConfig:
    settings = {"total_env_steps": 400, "n_envs": 4, "backend": "sync", "checkpoint_every": 100, "device": "cpu"}
    return FinetuneConfig(task=HOPPER, stage=stage, run_dir=str(folder), evaluation=EVALUATION, **(settings | kwargs))


def start(name: str, pretrained: Path) -> dict:
    """PPO goes on from the pretrained policy, the others start from nothing."""
    if name == "ppo":
        return {"policy": str(pretrained)}
    network = GaussianPolicyConfig(
        hidden_sizes=[32], squash=True, n_action_steps=2, obs_normalization="none", action_normalization="none"
    )
    return {"network": network}


@pytest.mark.parametrize("name", ["sac", "td3", "ppo"])
def test_an_interrupted_run_is_bitwise_the_uninterrupted(name, dataset, pretrained, tmp_path, monkeypatch):
    own = {"n_steps": 8, "batch_size": 16, "n_epochs": 2} if name == "ppo" else {"demos": str(dataset), "train_freq": 5}
    stage = STAGES[name][1](**({"critic_hidden_sizes": [16]} | own))
    given = start(name, pretrained)
    finetune(finetune_config(tmp_path / "whole", stage, **given))
    monkeypatch.setattr(StopAfter, "n", 22)
    monkeypatch.setattr(loop, "StopRequest", StopAfter)
    with pytest.raises(Stopped, match="go on with: burnish finetune resume="):
        finetune(finetune_config(tmp_path / "run", stage, **given))
    monkeypatch.setattr(StopAfter, "n", -1)
    torch.manual_seed(99)
    finetune(finetune_config(tmp_path / "run", stage, resume=str(tmp_path / "run"), **given))
    assert untimed_metrics(tmp_path / "run") == untimed_metrics(tmp_path / "whole")
    one, other = (load_policy(tmp_path / run).state_dict() for run in ("run", "whole"))
    assert all(torch.equal(one[key], other[key]) for key in other)
    evaluation = json.loads((tmp_path / "run" / "evaluation.json").read_text())
    again = evaluate(load_policy(tmp_path / "run"), HOPPER, EVALUATION)
    assert again.returns.tolist() == evaluation["return"]


def test_a_cloned_policy_evaluates_by_the_command(pretrained, tmp_path):
    how = {"episodes": 2, "n_envs": 1, "backend": "sync", "seed": 100_000, "device": "cpu"}
    config = EvaluateConfig(policy=str(pretrained), task=HOPPER, out=str(tmp_path), **how)
    summary = evaluate_policy(config)
    assert summary["return"] == pytest.approx(json.loads((pretrained / "summary.json").read_text())["return"], rel=1e-5)
    losses = [line["loss"] for line in read_metrics(pretrained / "metrics.jsonl")]
    assert losses[-1] < losses[0]


def test_stage_and_policy_must_be_of_one_kind(pretrained, tmp_path):
    diffusion = PolicyConfig(
        denoiser=DenoiserConfig(hidden_dim=16), obs_normalization="none", action_normalization="none"
    )
    with pytest.raises(BurnishError, match=r"stage=sac trains a gaussian policy, but the network is a diffusion one: "):
        finetune(finetune_config(tmp_path / "run", SACConfig(), network=diffusion))
    from burnish.finetune.algorithms.dppo import DPPOConfig

    message = r"stage=dppo trains a diffusion or a flow policy, but policy=.* is a gaussian one: pretrain one: burnish "
    with pytest.raises(BurnishError, match=message):
        finetune(finetune_config(tmp_path / "run", DPPOConfig(), policy=str(pretrained)))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", ["sac", "ppo"])
def test_a_network_of_nan_is_told(name):
    stage = make_stage(name)
    stage.env_steps = 10**6  # no random actions any more
    with torch.no_grad():
        stage.policy.network[0].weight.fill_(float("nan"))
    with pytest.raises(BurnishError, match=f"stage={name} diverged, .*: lower stage.learning_rate"):
        stage.act(np.zeros((E, 1, 2), np.float32))
