"""What the tests of stages share: a bandit, a small policy cloned from noise, and stages that learn on it.

The bandit's episodes last one chunk: the first action dimension shall follow the sign of the first observation.
"""

import copy
from dataclasses import fields

import numpy as np
import torch

from burnish.datasets.episodes import Demonstrations, Episode
from burnish.envs.base import ChunkStep
from burnish.envs.task import TaskConfig
from burnish.finetune import offline
from burnish.finetune.algorithms.best_of_n import BestOfN, BestOfNConfig
from burnish.finetune.algorithms.dacer import DACER, DACERConfig
from burnish.finetune.algorithms.dipo import DIPO, DIPOConfig
from burnish.finetune.algorithms.dpmd import DPMD, DPMDConfig
from burnish.finetune.algorithms.dql import DQL, DQLConfig
from burnish.finetune.algorithms.idql import IDQL, IDQLConfig
from burnish.finetune.algorithms.qc import QChunking, QChunkingConfig
from burnish.finetune.algorithms.qsm import QSM, QSMConfig
from burnish.finetune.algorithms.qvpo import QVPO, QVPOConfig
from burnish.finetune.algorithms.sdac import SDAC, SDACConfig
from burnish.finetune.critics import ExpectileCriticConfig
from burnish.finetune.losses.rsm import RSMConfig
from burnish.finetune.stage import Setting
from burnish.networks import CriticConfig, DenoiserConfig, GaussianCriticConfig
from burnish.policies.diffusion import DiffusionPolicy, PolicyConfig

E, TA, DA = 16, 2, 2
STAGES = {
    "best_of_n": (BestOfN, BestOfNConfig),
    "dpmd": (DPMD, DPMDConfig),
    "sdac": (SDAC, SDACConfig),
    "idql": (IDQL, IDQLConfig),
    "qsm": (QSM, QSMConfig),
    "qvpo": (QVPO, QVPOConfig),
    "dacer": (DACER, DACERConfig),
    "dipo": (DIPO, DIPOConfig),
    "dql": (DQL, DQLConfig),
    "qc": (QChunking, QChunkingConfig),
}
TASK = TaskConfig("bandit", "gymnasium", "Bandit-v0", 1)


def cloned_weights() -> dict[str, torch.Tensor]:
    """A small policy cloned from N(0, 0.3^2) actions."""
    torch.manual_seed(0)
    policy = make_policy()
    optimizer = torch.optim.Adam(policy.parameters(), 2e-3)
    for _ in range(600):
        obs, actions = torch.randn(256, 1, 2), (0.3 * torch.randn(256, TA, DA)).clamp(-1, 1)
        optimizer.zero_grad()
        policy.loss(obs, actions).backward()
        optimizer.step()
    return policy.state_dict()


def make_policy(**kwargs) -> DiffusionPolicy:
    settings = {"denoiser": DenoiserConfig(hidden_dim=64, n_layers=2), "horizon": TA, "n_action_steps": TA}
    return DiffusionPolicy(PolicyConfig(**(settings | {"denoising_steps": 10} | kwargs)), 2, DA, ["flat"]).eval()


LITTLE = {
    "critic": CriticConfig(hidden_dim=64, n_layers=2),
    "batch_size": 128,
    "buffer_size": 2000,
    "learning_starts": 2 * E * TA,
    "update_every": 1,
    "critic_lr": 1e-3,
    "demos": None,
    "utd_ratio": 0.5,
}
"""Settings of an off-policy stage that learns the bandit in seconds."""


def make_stage(name="dpmd", weights=None, policy=None, task=TASK, seed=0, **kwargs):
    policy = policy or make_policy()
    if weights is not None:
        policy.load_state_dict(weights)
    settings = {
        **LITTLE,
        "draws": 16,
        "critic_warmup_updates": 100,
        "old_policy_every": 50,
        "actor_tau": 0.02,
        "actor_lr": 1e-3,
        "actor_lr_final": 1e-3,
        "demo_ratio": 0.0,
        "bc_coef": 0.0,
        "rsm": RSMConfig(kl_target=0.7),
        "n_step": 1,
        "draw_at": "next",
    }
    make, config = STAGES[name]
    if name == "dpmd":
        settings["train_on"] = "all"
    if name == "idql":
        settings["critic"] = ExpectileCriticConfig(hidden_dim=64, n_layers=2)
    if name == "dacer":
        settings["critic"] = GaussianCriticConfig(hidden_dim=64, n_layers=2)
    if name == "sdac":
        settings["draw_at"] = "current"
    known = {field.name for field in fields(config)}
    settings = {key: value for key, value in settings.items() if key in known}
    return make(policy, config(**(settings | kwargs)), Setting(task, E, seed))


def observations(rng: np.random.Generator, n: int = E) -> np.ndarray:
    """Raw (n, To, Do)"""
    return rng.normal(size=(n, 1, 2)).astype(np.float32)


def reward_of(actions: np.ndarray, obs: np.ndarray) -> np.ndarray:
    """The bandit's (E,)"""
    return actions[:, :, 0].mean(1) * np.sign(obs[:, 0, 0])


def chunk_step(obs, reward=0.0, terminated=False, truncated=False, final_obs=None, steps=TA) -> ChunkStep:
    """A chunk of the environments that gave `obs`. `reward` (E,) comes with its first step, or (E, Ta) as given."""
    none = np.zeros(len(obs), bool)
    step_rewards = np.zeros((len(obs), TA), np.float32)
    if np.ndim(reward) == 2:
        step_rewards[:] = reward
    else:
        step_rewards[:, 0] = reward
    return ChunkStep(
        obs=obs,
        reward=step_rewards.sum(1),
        terminated=none | terminated,
        truncated=none | truncated,
        final_obs=obs if final_obs is None else final_obs,
        success=none,
        steps=np.full(len(obs), TA) if np.isscalar(steps) else steps,
        step_rewards=step_rewards,
    )


def play(stage, rng: np.random.Generator, chunks: int, learn=True, shift=0.0, n=E) -> list[dict[str, float]]:
    """Chunks of the bandit in `n` environments -> the metrics of the updates."""
    metrics = []
    for _ in range(chunks):
        obs = observations(rng, n)
        reward = reward_of(stage.act(obs), obs) + shift
        stage.observe(chunk_step(obs, reward, terminated=True, final_obs=observations(rng, n)))
        if learn and stage.ready():
            metrics.append(stage.update())
    return metrics


def score(policy, candidates=1, n=2000) -> float:
    """Mean reward of what is evaluated and saved."""
    obs = observations(np.random.default_rng(1), n)
    actions = policy.act(obs, generator=torch.Generator().manual_seed(2), candidates=candidates)
    return float(reward_of(actions, obs).mean())


def learns_from(monkeypatch, demonstrations) -> None:
    """Stages learn from what `demonstrations` makes of a file's name, in place of the file's content."""
    monkeypatch.setattr(offline, "demonstrations_for", lambda task, source, **_: demonstrations(source))


def demonstrations(source, sensors=()) -> Demonstrations:
    """One episode of 30 steps whose observations are 9."""
    obs = {"flat": np.full((30, 2), 9, np.float32)}
    final = {"flat": np.full(2, 9, np.float32)}
    actions, rewards = np.full((30, DA), 0.5, np.float32), np.ones(30, np.float32)
    return Demonstrations([Episode("demo_0", obs, actions, rewards, np.zeros(30, bool), final)], source=str(source))


def assert_resumes_bitwise(name: str, weights, **settings) -> None:
    """A restored stage learns and acts as the one that was saved, in the middle of a round of chunks."""
    settings = {"update_every": 2, "critic_warmup_updates": 5, "exploration_noise": 0.1, "batch_size": 32} | settings
    assert_goes_on_bitwise(make_stage(name, weights, **settings), make_stage(name, **settings))


def assert_goes_on_bitwise(stage, again) -> None:
    """`again`, which is given the state of `stage` after some chunks, learns and acts as it does."""
    play(stage, np.random.default_rng(0), 5)
    again.load_state_dict(copy.deepcopy(stage.state_dict()))
    for one in (stage, again):
        play(one, np.random.default_rng(1), 3)
    ours, theirs = stage.state_dict(), again.state_dict()
    assert tensors(ours) and len(tensors(ours)) == len(tensors(theirs))
    assert all(torch.equal(a, b) for a, b in zip(tensors(ours), tensors(theirs)))
    assert all(ours[key] == theirs[key] for key in stage.COUNTERS)


def tensors(state) -> list[torch.Tensor]:
    """Every tensor of nested containers."""
    if isinstance(state, torch.Tensor):
        return [state]
    if isinstance(state, dict):
        return [tensor for key in sorted(state, key=str) for tensor in tensors(state[key])]
    return [tensor for value in state for tensor in tensors(value)] if isinstance(state, (list, tuple)) else []
