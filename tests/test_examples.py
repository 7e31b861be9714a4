"""The examples: each README's commands, shortened, from another folder, with the example's on PYTHONPATH."""

from __future__ import annotations

import copy
import os
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from bandit import DA, TA, TASK, E, chunk_step, make_policy, observations, play, tensors

from burnish.compare.local_runner import burnish_program
from burnish.config import parse, to_dict
from burnish.finetune.stage import Setting, StageConfig, stage_class
from burnish.networks.denoiser import DenoiserKeys
from burnish.policies.diffusion import DiffusionPolicy, PolicyConfig
from burnish.policies.load import load_policy

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"
EVALUATION = ["evaluation.episodes=4", "evaluation.n_envs=4", "evaluation.temperatures=[]"]
SHORT = {
    "pretrain": ["train.updates=20", *EVALUATION],
    "finetune": ["n_envs=2", "stage.n_steps=10", "total_env_steps=240", "backend=sync", *EVALUATION],
    "evaluate": ["episodes=4", "n_envs=4"],
    "compare": [
        "settings=[n_envs=2, evaluation.episodes=4, evaluation.n_envs=4, 'evaluation.temperatures=[]']",
        "methods.rwr=[stage=rwr, stage.n_steps=10]",
        *("total_env_steps=240", "memory_gb=8", "cell_memory_gb=2"),
    ],
}


def commands(example: str) -> list[list[str]]:
    """Those of the README, with the files of the repository where they are."""
    lines = (EXAMPLES / example / "README.md").read_text().splitlines()
    found = [
        shlex.split(line.replace("examples/", f"{EXAMPLES}/")) for line in lines if line.startswith("    burnish ")
    ]
    return [words[1:] for words in found]


def environment(example: str) -> dict[str, str]:
    before = os.environ.get("PYTHONPATH")
    return {**os.environ, "PYTHONPATH": os.pathsep.join([str(EXAMPLES / example), *([before] if before else [])])}


@pytest.mark.slow
@pytest.mark.parametrize("example", ["reward_weighted_regression", "transformer_denoiser"])
def test_the_commands_of_the_readme_run(example: str, tmp_path: Path) -> None:
    assert commands(example)
    for words in commands(example):
        done = subprocess.run(
            [*burnish_program(), *words, *SHORT[words[0]]],
            cwd=tmp_path,
            env=environment(example),
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, f"{words}: {done.stdout[-2000:]} {done.stderr[-2000:]}"


@pytest.fixture(autouse=True)
def as_if_not_imported():
    """What an example registers when it is imported is another test's to see."""
    yield
    for path in EXAMPLES.glob("*/*.py"):
        sys.modules.pop(path.stem, None)


@pytest.fixture
def make_rwr(monkeypatch):
    """Reward-weighted regression on the bandit."""
    monkeypatch.syspath_prepend(str(EXAMPLES / "reward_weighted_regression"))
    name = "reward_weighted_regression:RWR"

    def make(policy: DiffusionPolicy | None = None, **keys):
        config = parse(StageConfig, {"name": name, "n_steps": 16, "actor_lr": 1e-3, **keys})
        return stage_class(name)(policy or make_policy(), config, Setting(TASK, E, 0))

    return make


def test_rwr_learns_what_its_returns_say(make_rwr, pretrained_weights):
    def trained(sign: float) -> float:
        policy = make_policy()
        policy.load_state_dict(pretrained_weights)
        stage = make_rwr(policy)
        rng = np.random.default_rng(0)
        for _ in range(8 * 16):
            obs = observations(rng)
            earned = sign * stage.act(obs)[:, :, 0].mean(1)  # whatever the observation is
            stage.observe(chunk_step(obs, earned, terminated=True))
            if stage.ready():
                stage.update()
        actions = stage.policy.act(observations(rng, 500), generator=torch.Generator().manual_seed(0))
        return float(actions[:, :, 0].mean())

    assert trained(1.0) > 0.1 and trained(-1.0) < -0.1


def test_rwr_weighs_by_the_discounted_return_of_the_episode(make_rwr):
    stage = make_rwr(n_steps=3, gamma=0.5, beta=2.0)
    obs, rewards, ends = observations(np.random.default_rng(0)), [1.0, 2.0, 4.0], [False, True, False]
    for reward, end in zip(rewards, ends):
        stage.act(obs)
        stage.observe(chunk_step(obs, np.full(E, reward), terminated=end))
    metrics = stage.update()
    returns = np.repeat([1.0 + 0.5 * 2.0, 2.0, 4.0], E)  # the third chunk is of the next episode
    weights = np.exp(returns / (2.0 * returns.std(ddof=1)))
    assert metrics["mean_return"] == pytest.approx(returns.mean())
    assert metrics["largest_weight"] == pytest.approx(weights.max() / weights.mean(), rel=1e-5)


def test_rwr_goes_on_where_it_was_saved(make_rwr):
    first = make_rwr()
    play(first, np.random.default_rng(0), 20)  # an update, and a part of a rollout
    state = copy.deepcopy(first.state_dict())
    second = make_rwr()
    second.load_state_dict(state)
    for stage in (first, second):
        play(stage, np.random.default_rng(1), 20)
    pairs = list(zip(tensors(first.state_dict()), tensors(second.state_dict())))
    assert len(pairs) > 20 and all(torch.equal(a, b) for a, b in pairs)


@pytest.fixture
def transformer(monkeypatch) -> DiffusionPolicy:
    monkeypatch.syspath_prepend(str(EXAMPLES / "transformer_denoiser"))
    torch.manual_seed(0)
    keys = {"name": "transformer_denoiser:TransformerDenoiser", "width": 16, "n_blocks": 2, "n_heads": 2}
    config = PolicyConfig(parse(DenoiserKeys, keys), horizon=TA, n_action_steps=TA, denoising_steps=5)
    return DiffusionPolicy(config, 2, DA, ["flat"]).eval()


def test_the_transformer_sees_every_part_and_each_candidate_alone(transformer):
    network, generator = transformer.denoiser, torch.Generator().manual_seed(0)
    x, obs = torch.randn(3, 4, TA, DA, generator=generator), torch.randn(3, 2, generator=generator)
    k = torch.randint(5, (3, 4), generator=generator)

    def run(x, obs, k):
        encoded = network.encode(obs)
        return network(x, k, encoded._replace(obs=encoded.obs[:, None]))

    whole = run(x, obs, k)
    assert whole.shape == x.shape
    for n in range(4):
        torch.testing.assert_close(whole[:, n], network(x[:, n], k[:, n], network.encode(obs)))
    assert not torch.allclose(run(x.flip(2), obs, k).flip(2), whole)  # the order of the actions counts
    later = x.clone()
    later[:, 0, -1] += 1  # the last action of the first candidate
    changed = (run(later, obs, k) - whole).abs().amax((0, 3)) > 1e-6  # (N, Tp)
    assert changed[0].all() and not changed[1:].any()
    assert ((run(x, obs + 1, k) - whole).abs() > 1e-6).all() and ((run(x, obs, (k + 1) % 5) - whole).abs() > 1e-6).all()


def test_the_transformer_is_saved_and_loaded(transformer, tmp_path, monkeypatch):
    transformer.save(tmp_path)
    loaded = load_policy(tmp_path)
    assert to_dict(loaded.config) == to_dict(transformer.config)
    obs, noise = torch.randn(4, 1, 2), transformer.draw_noise(4)
    assert torch.equal(loaded.act(obs, noise=noise), transformer.act(obs, noise=noise))
