"""Evaluation: intervals against closed forms, episodes that do not depend on how they are run."""

import hashlib
import json
import math

import numpy as np
import pytest
import torch

from burnish.envs.task import TaskConfig
from burnish.errors import BurnishError
from burnish.evaluation.evaluate import EvaluationConfig, about, act, evaluate
from burnish.evaluation.intervals import Difference, bootstrap_interval, wilson_interval
from burnish.networks import CriticConfig, DenoiserConfig
from burnish.networks.compiled import mlp as compiled_mlp
from burnish.policies.diffusion import DiffusionPolicy, PolicyConfig
from burnish.policies.gaussian import GaussianPolicy, GaussianPolicyConfig

HOPPER = TaskConfig(name="hopper", suite="gymnasium", env_id="Hopper-v5", max_episode_steps=50)


@pytest.fixture(scope="module")
def policy() -> DiffusionPolicy:
    torch.manual_seed(0)
    config = PolicyConfig(denoiser=DenoiserConfig(hidden_dim=32), n_obs_steps=2, horizon=4, n_action_steps=3)
    return DiffusionPolicy(config, 11, 3, ["flat"], "hopper").eval()


def test_wilson_interval_closed_form():
    successes, n, z = 9, 20, 1.959963984540054
    p = successes / n
    centre = (p + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * math.sqrt(p * (1 - p) / n + z**2 / (4 * n**2))
    assert wilson_interval(successes, n) == pytest.approx((centre - half, centre + half))
    assert wilson_interval(0, 50).low == 0 and wilson_interval(0, 50).high > 0.05


def test_bootstrap_interval_is_about_the_normal_one():
    values = np.random.default_rng(1).normal(3, 2, 400)
    half = 1.96 * values.std() / 20
    assert bootstrap_interval(values) == pytest.approx((values.mean() - half, values.mean() + half), abs=0.05)
    assert bootstrap_interval(np.full(5, 2.0)) == (2.0, 2.0)


def test_paired_difference_is_narrower_than_unpaired():
    before = np.arange(100) % 2 == 0
    after = before | (np.arange(100) % 10 == 1)
    difference = Difference.between(before, after)
    assert difference.mean == pytest.approx(0.1)
    assert 0 < difference.interval.low < 0.1 < difference.interval.high < 0.2


@pytest.mark.parametrize("n_envs", [1, 5])
def test_result_does_not_depend_on_the_number_of_environments(policy, n_envs):
    reference = evaluate(policy, HOPPER, EvaluationConfig(episodes=7, n_envs=7, backend="sync"))
    other = evaluate(policy, HOPPER, EvaluationConfig(episodes=7, n_envs=n_envs, backend="sync"))
    np.testing.assert_array_equal(other.lengths, reference.lengths)
    np.testing.assert_allclose(other.returns, reference.returns, rtol=1e-3)
    assert len(set(reference.returns)) == 7
    assert reference.seeds == list(range(100_000, 100_007))


def test_a_chaotic_robot_runs_the_same_episodes_alone(policy):
    """HalfCheetah multiplies the last bit of an action: a batch of one must not be computed differently."""
    torch.manual_seed(0)
    config = PolicyConfig(denoiser=DenoiserConfig(hidden_dim=32))
    cheetah = DiffusionPolicy(config, 17, 6, ["flat"], "halfcheetah").eval()
    task = TaskConfig(name="halfcheetah", suite="gymnasium", env_id="HalfCheetah-v5", max_episode_steps=200)
    one, three, five = (
        evaluate(cheetah, task, EvaluationConfig(episodes=5, n_envs=n, backend="sync")).returns for n in (1, 3, 5)
    )
    np.testing.assert_array_equal(one, five)
    np.testing.assert_array_equal(three, five)


@pytest.mark.parametrize(
    ("config", "torchs", "n_threads"),
    [
        (PolicyConfig(denoiser=DenoiserConfig(hidden_dim=64)), False, 1),
        (PolicyConfig(denoiser=DenoiserConfig(hidden_dim=64)), True, 1),
        (PolicyConfig(denoiser=DenoiserConfig(hidden_dim=64), sampler="ddim", ddim_steps=2), True, 2),
        (PolicyConfig(denoiser=DenoiserConfig(hidden_dim=40, activation="silu")), False, 1),
        (PolicyConfig(denoiser=DenoiserConfig(name="unet", channels=[16, 32]), horizon=6, sampler="ddim"), False, 1),
        (GaussianPolicyConfig(), False, 1),
        (GaussianPolicyConfig(hidden_sizes=[64, 64], activation="tanh", squash=True), False, 1),
    ],
    ids=["mlp", "mlp by torch", "two threads", "odd width", "unet", "gaussian", "squashed gaussian"],
)
def test_an_action_depends_on_its_row_alone(config, torchs, n_threads, monkeypatch):
    """Bit for bit, whatever the number of environments."""
    if torchs:
        monkeypatch.setattr(compiled_mlp, "_library", lambda: None)
    torch.manual_seed(0)
    if isinstance(config, PolicyConfig):
        policy = DiffusionPolicy(config, 23, 7, ["a"]).eval()
        policy.add_critic(CriticConfig(hidden_dim=64))
        counts = (1, 3)
    else:
        policy, counts = GaussianPolicy(config, 23, 7, ["a"]).eval(), (1,)
    obs = np.random.default_rng(0).normal(size=(37, 1, 23)).astype(np.float32)

    def actions(part: slice, candidates: int) -> np.ndarray:
        generators = [torch.Generator().manual_seed(seed) for seed in range(37)[part]]
        return act(policy, obs[part], generators, candidates)

    torch.set_num_threads(n_threads)
    try:
        for candidates in counts:
            everyone = actions(slice(None), candidates)
            for n in (1, 2, 3, 4, 7, 16, 21):
                np.testing.assert_array_equal(actions(slice(5, 5 + n), candidates), everyone[5 : 5 + n])
    finally:
        torch.set_num_threads(1)


def test_evaluation_leaves_the_global_generator_alone(policy):
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    evaluate(policy, HOPPER, EvaluationConfig(episodes=2, n_envs=2, backend="sync"))
    assert torch.equal(torch.rand(3), expected)


def test_returns_are_those_of_a_plain_loop(policy):
    """One episode by hand with Gymnasium itself."""
    import gymnasium

    evaluation = evaluate(policy, HOPPER, EvaluationConfig(episodes=1, seed=3, n_envs=1, backend="sync"))
    env = gymnasium.make("Hopper-v5").unwrapped
    obs, _ = env.reset(seed=3)
    generator = torch.Generator().manual_seed(3)
    history, total, steps, ended = [obs, obs], 0.0, 0, False
    while not ended:
        noise = torch.randn(21, 4, 3, generator=generator)[:, None]
        for action in policy.act(np.asarray(history[-2:], np.float32)[None], noise=noise)[0]:
            obs, reward, terminated, *_ = env.step(action)
            history.append(obs)
            total, steps = total + reward, steps + 1
            ended = terminated or steps == 50
            if ended:
                break
    assert evaluation.lengths.tolist() == [steps]
    assert float(evaluation.returns[0]) == pytest.approx(total, rel=1e-4)


def test_evaluation_file(policy, tmp_path):
    config = EvaluationConfig(episodes=3, n_envs=3, backend="sync")
    evaluation = evaluate(policy, HOPPER, config)
    policy.save(tmp_path / "policy")
    evaluation.save(tmp_path / "evaluation.json", about(str(tmp_path / "policy"), HOPPER, config))
    content = json.loads((tmp_path / "evaluation.json").read_text())
    assert content["seeds"] == [100_000, 100_001, 100_002]
    assert content["summary"]["return"] == pytest.approx(np.mean(content["return"]))
    assert content["task"]["env_id"] == "Hopper-v5" and content["policy"] == str(tmp_path / "policy")
    assert content["weights"] == hashlib.sha256((tmp_path / "policy" / "policy.safetensors").read_bytes()).hexdigest()
    assert about(None, HOPPER, config).policy == "untrained"


def test_policy_of_another_task_is_refused(policy):
    other = TaskConfig(name="reacher", suite="gymnasium", env_id="Reacher-v5", max_episode_steps=50)
    with pytest.raises(BurnishError, match="observation dimension 11"):
        evaluate(policy, other, EvaluationConfig(episodes=1, n_envs=1, backend="sync"))
    lift = TaskConfig(name="lift", suite="robosuite", env_id="Lift", max_episode_steps=50, obs_keys=["object"])
    with pytest.raises(BurnishError, match="has the observations"):
        evaluate(policy, lift, EvaluationConfig(episodes=1, n_envs=1, backend="sync"))
