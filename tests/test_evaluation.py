"""Evaluation: intervals against closed forms, episodes that do not depend on how they are run."""

import contextlib
import hashlib
import json
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from fake_simulator import Counter
from scipy import stats

from burnish.envs.task import TaskConfig
from burnish.envs.vector.sync import SyncVectorEnv
from burnish.errors import BurnishError
from burnish.evaluation import video
from burnish.evaluation.evaluate import Evaluation, EvaluationConfig, about, act, evaluate
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


# -- episodes of a counter, against a plain loop -----------------------------------------------------------------------

COUNTER = TaskConfig(name="counter", suite="gymnasium", env_id="Counter", max_episode_steps=7)
SIMULATORS = [{"success_at": 3}, {"terminate_at": 3}, {}, {"success_at": 1}, {"success_at": 6, "terminate_at": 6}]


class Guess:
    """A policy whose actions, two a chunk, are of its noise and of the observation."""

    device, least_rows, config = torch.device("cpu"), 4, SimpleNamespace(n_obs_steps=1, temperature=0.5, mean_of=3)
    sampler_steps = None

    def typical_obs(self):
        return np.zeros((1, 1, 3), np.float32)

    def __init__(self):
        self.timed, self.candidates = [], set()

    def check_candidates(self, candidates):
        pass

    def sampling(self, *how):
        return contextlib.nullcontext()

    def noise_shape(self, candidates):
        return (2, candidates)

    def act(self, obs, *, noise=None, generator=None, candidates=1):
        self.candidates.add(candidates)
        if noise is None:
            self.timed.append(obs.shape)
            return np.zeros((len(obs), 2, 1), np.float32)
        assert noise.shape == (2, len(obs), candidates)
        return (0.1 * noise[:, :, -1].T.numpy() + obs[:, 0, 2:])[..., None].astype(np.float32)


def counters() -> SyncVectorEnv:
    simulators = iter(SIMULATORS)
    sizes = {"n_envs": 5, "n_obs_steps": 1, "n_action_steps": 2, "max_episode_steps": 7, "seed": 0}
    return SyncVectorEnv(lambda: Counter(**next(simulators)), autoreset=False, **sizes)


def plain_episode(number: int, seed: int, candidates: int) -> tuple[bool, float, int]:
    """Success, return and length; an episode goes on to the end of the chunk that it first succeeded in."""
    simulator, generator = Counter(**SIMULATORS[number % 5]), torch.Generator().manual_seed(seed)
    obs, total, steps, success = simulator.reset(seed), 0.0, 0, False
    while not success:
        noise = torch.randn(2, candidates, generator=generator)[:, -1]
        start = obs[2]
        for i in range(2):
            obs, reward, terminated, succeeded, _ = simulator.step(np.array([0.1 * float(noise[i]) + start]))
            total, steps, success = total + reward, steps + 1, success or succeeded
            if terminated or steps == 7:
                return success, total, steps
    return success, total, steps


@pytest.mark.parametrize("candidates", [1, 3])
def test_episodes_are_those_of_a_plain_loop(candidates):
    """Seven of them in five environments: they end by success, termination and time limit; none counts what the
    environments do after its end, nor those that only fill a round."""
    policy, told = Guess(), []
    progress = SimpleNamespace(update=lambda n, success_rate: told.append((n, success_rate)))
    config = EvaluationConfig(episodes=7, seed=40, n_envs=5, candidates=candidates)
    envs, steps = counters(), []
    step = envs.step
    envs.step = lambda actions, mask: steps.append(step(actions, mask)) or steps[-1]
    ours = evaluate(policy, COUNTER, config, envs=envs, progress=progress)
    success, returns, lengths = zip(*(plain_episode(i, 40 + i, candidates) for i in range(7)))
    assert ours.seeds == list(range(40, 47))
    assert ours.success.tolist() == list(success) == [True, False, False, True, True, True, False]
    assert ours.lengths.tolist() == list(lengths) == [4, 3, 7, 2, 6, 4, 3]
    np.testing.assert_allclose(ours.returns, returns, rtol=1e-5)
    assert sum(int(each.steps.sum()) for each in steps) == sum(lengths)  # nobody else moved
    assert told == [(5, 3 / 5), (2, 4 / 7)]
    assert policy.timed == [(1, 1, 3)] * 20 and ours.latency_ms >= 0 and policy.candidates == {candidates}
    assert ours.score == (4 / 7, pytest.approx(np.mean(returns)))


def test_episodes_that_stopped_being_finite_are_those_of_this_evaluation(monkeypatch):
    monkeypatch.setitem(SIMULATORS[1], "nan_at", 2)
    envs, config = counters(), EvaluationConfig(episodes=5, n_envs=5)
    assert [evaluate(Guess(), COUNTER, config, envs=envs).nonfinite_episodes for _ in range(2)] == [1, 1]
    assert envs.nonfinite_episodes == 2


def test_a_summary_by_hand():
    evaluation = Evaluation(
        [3, 4, 5, 6], np.array([1, 1, 1, 0], bool), np.array([1.0, 2, 3, 10]), np.arange(4), 2.5, 1, 1.0, 1
    )
    low, high = wilson_interval(3, 4)
    ends = bootstrap_interval(np.array([1.0, 2, 3, 10]))
    assert tuple(evaluation.summary()) == (4, 0.75, low, high, 4.0, *ends, 1.5, 1, 2.5)
    assert 0.75 - low != pytest.approx(high - 0.75) and 4.0 - ends[0] != pytest.approx(ends[1] - 4.0)
    assert evaluation.metrics("x")["x/return_high"] == ends[1]


def test_bootstrap_of_successes_is_the_binomial_distribution():
    """Of 6 successes in 20 the resampled means are binomial; 95 % lie between their 2.5 and 97.5 % quantiles."""
    values = np.array([1.0] * 6 + [0.0] * 14)
    expected = stats.binom.ppf([0.025, 0.975], 20, 0.3) / 20
    assert bootstrap_interval(values) == pytest.approx(tuple(expected))
    difference = Difference.between(np.zeros(20), values)
    assert difference.mean == pytest.approx(0.3) and difference.interval == pytest.approx(tuple(expected))


def test_videos_are_of_the_episodes_that_count(monkeypatch, tmp_path):
    """A picture before the first step and one after each; the name says how it ended."""
    written = []
    simulators = iter([Counter(success_at=3)])
    monkeypatch.setattr(video, "make_simulator", lambda task: next(simulators))
    monkeypatch.setattr(video, "_write", lambda path, frames: written.append((path, len(frames), frames[0].shape)))
    policy = Guess()
    policy.config = SimpleNamespace(n_obs_steps=1, n_action_steps=2)
    assert video.record(policy, COUNTER, [], tmp_path) == []
    paths = video.record(policy, COUNTER, [40, 41], tmp_path, candidates=3)
    assert paths == [tmp_path / "seed40_success.mp4", tmp_path / "seed41_success.mp4"]
    assert written == [(path, 5, (480, 480, 3)) for path in paths] and policy.candidates == {3}
    simulators = iter([Counter()])
    (path,) = video.record(policy, COUNTER, [42], tmp_path)
    assert path.name == "seed42_end.mp4" and written[-1][1] == 8
