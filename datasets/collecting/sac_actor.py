"""A medium-level behaviour for Gymnasium tasks: SAC stopped on the way to the expert.

D4RL's "medium" sets come from "a policy trained to approximately one third of the performance of the
expert" (Fu et al. 2020, arXiv:2004.07219, section 5). Stable-Baselines3 trains; what is kept is the
actor alone, a small torch module that needs no Stable-Baselines3 to act.

Symbols: Do, Da dimensions of observation and action.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import save
from torch import Tensor, nn

from burnish.config import WrongValue, key
from burnish.datasets.sources import resolve
from burnish.envs.task import TaskConfig
from burnish.errors import BurnishError
from burnish.foreign import told_as
from burnish.machine.allocation import AtMost
from burnish.machine.disk import require_writable, write_atomically
from burnish.networks.weights import load_weights
from burnish.plugins import PluginsConfig

if TYPE_CHECKING:
    import gymnasium
    from stable_baselines3 import SAC

ACTOR_FORMAT = "burnish-sac-actor-1"


@dataclass(frozen=True)
class BehaviourConfig(PluginsConfig):
    """What `train_behaviour` trains and when it stops."""

    task: TaskConfig = key()
    out: str = key(doc="file for the actor, NAME.safetensors; NAME.json is written beside it")
    target_return: float = key(doc="training stops where the mean return of an evaluation reaches this")
    max_steps: int = key(500_000, "environment steps after which training gives up", least=1)
    eval_every: int = key(5_000, "environment steps between evaluations", least=1)
    eval_episodes: int = key(10, "deterministic episodes in each evaluation", least=1)
    report_episodes: int = key(50, "fresh episodes, deterministic and sampled, measured for the metadata", least=1)
    hidden_sizes: tuple[int, ...] = key((64, 64), "the actor's hidden layers (the critics keep 256, 256)", least=1)
    seed: int = key(0, "of the networks, the training environment and the evaluation", least=0, most=2**31 - 1)
    device: str = key("cpu", "cpu or cuda; networks this small are faster on a CPU")

    def check(self) -> None:
        self.task.require_simulator()
        if self.task.suite != "gymnasium":
            raise BurnishError(
                f"task={self.task.name} is of suite {self.task.suite}: a SAC behaviour is trained on a gymnasium task"
            )
        if Path(self.out).suffix != ".safetensors":
            raise BurnishError(f"out={self.out}: expected a file name that ends in .safetensors")
        if not self.hidden_sizes:
            raise WrongValue("hidden_sizes=[]: expected one or more sizes")


class SACActor(nn.Module):
    """SAC's policy: a Gaussian squashed by tanh (Haarnoja et al. 2018, arXiv:1801.01290, appendix C).

    Modules are named as in Stable-Baselines3, so its state dict loads as it is. Actions are in [-1, 1]:
    the environment rescales them to its own range.
    """

    LOG_STD_RANGE = (-20.0, 2.0)  # Stable-Baselines3's LOG_STD_MIN, LOG_STD_MAX

    def __init__(self, obs_dim: int, action_dim: int, hidden_sizes: Sequence[int]) -> None:
        super().__init__()
        sizes = [obs_dim, *hidden_sizes]
        layers = [layer for i, o in pairwise(sizes) for layer in (nn.Linear(i, o), nn.ReLU())]
        self.latent_pi = nn.Sequential(*layers)
        self.mu = nn.Linear(sizes[-1], action_dim)
        self.log_std = nn.Linear(sizes[-1], action_dim)
        self.obs_dim, self.action_dim, self.hidden_sizes = obs_dim, action_dim, tuple(hidden_sizes)
        self.metadata: dict[str, Any] = {}

    def forward(self, obs: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation before tanh, each (..., Da), of observations (..., Do)."""
        latent = self.latent_pi(obs)
        return self.mu(latent), self.log_std(latent).clamp(*self.LOG_STD_RANGE).exp()

    @torch.no_grad()
    def act(
        self, obs: NDArray[np.floating], rng: np.random.Generator, deterministic: bool = False
    ) -> NDArray[np.float32]:
        """One action (Da,) in [-1, 1] for one observation (Do,): sampled with `rng`, or the mode's tanh."""
        if obs.shape != (self.obs_dim,):
            raise BurnishError(
                f"SAC actor of task {self.metadata.get('task', 'unknown')}: observation of shape "
                f"{obs.shape}, expected ({self.obs_dim},); use the task it was trained on"
            )
        mean, std = (x.numpy() for x in self(torch.from_numpy(obs.astype(np.float32))))
        if deterministic:
            return np.tanh(mean)
        return np.tanh(mean + std * rng.standard_normal(self.action_dim, dtype=np.float32))

    def save(self, path: str | Path, metadata: dict[str, Any]) -> Path:
        """Write NAME.safetensors and NAME.json (`metadata` and the architecture), each atomically."""
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        architecture = {
            "format": ACTOR_FORMAT,
            "obs_dim": self.obs_dim,
            "action_dim": self.action_dim,
            "hidden_sizes": list(self.hidden_sizes),
        }
        write_atomically(path, save(dict(self.state_dict())))
        write_atomically(path.with_suffix(".json"), json.dumps(architecture | metadata, indent=2) + "\n")
        return path

    @classmethod
    def load(cls, path: str | Path) -> SACActor:
        """The actor in a .safetensors file, or the package's "shipped:NAME"; its JSON is `metadata`.

        Raises BurnishError where the file or its JSON is missing, damaged or of another architecture.
        """
        file = resolve(path, ".safetensors")
        description = file.with_suffix(".json")
        for part in (file, description):
            if not part.is_file():
                raise BurnishError(f"{part}: no such file; a SAC actor is NAME.safetensors with NAME.json beside it")
        with told_as(f"{description}: not the description of a SAC actor"):
            metadata = json.loads(description.read_text(encoding="utf-8"))
            if metadata["format"] != ACTOR_FORMAT:
                raise BurnishError(f"{description}: format {metadata['format']!r}, expected {ACTOR_FORMAT!r}")
            with AtMost(4 * file.stat().st_size, f"{description}: {file.name} is too small"):
                actor = cls(metadata["obs_dim"], metadata["action_dim"], metadata["hidden_sizes"])
        load_weights(actor, file, description.name)
        actor.metadata = metadata
        return actor.eval()


class Rollouts(NamedTuple):
    """Return and length of each episode of an evaluation."""

    returns: NDArray[np.float64]  # (episodes,)
    lengths: NDArray[np.int64]  # (episodes,)

    def summary(self) -> dict[str, float | int]:
        return {
            "episodes": len(self.returns),
            "mean_return": round(float(self.returns.mean()), 1),
            "std_return": round(float(self.returns.std()), 1),
            "mean_length": round(float(self.lengths.mean()), 1),
        }


def roll_out(actor: SACActor, task: TaskConfig, episodes: int, seed: int, deterministic: bool) -> Rollouts:
    """Episodes of `actor`; episode i starts from environment seed `seed` + i."""
    env = _make_env(task)
    rng = np.random.default_rng(seed)
    returns, lengths = np.zeros(episodes), np.zeros(episodes, np.int64)
    for i in range(episodes):
        obs, _ = env.reset(seed=seed + i)
        done = False
        while not done:
            obs, reward, terminated, truncated, _ = env.step(actor.act(obs, rng, deterministic))
            returns[i] += float(reward)
            lengths[i] += 1
            done = terminated or truncated
    env.close()
    return Rollouts(returns, lengths)


def train_behaviour(config: BehaviourConfig) -> Path:
    """Train SAC until a deterministic evaluation reaches `target_return`; save the actor -> its file.

    The evaluation that stops the training is chosen for being high, so the metadata's "deterministic" and
    "stochastic" figures come from fresh episodes.

    Raises BurnishError when Stable-Baselines3 is missing, the file cannot be written, or when `max_steps` pass
    below the target (nothing is written then).
    """
    require_writable(Path(config.out).parent)
    sac = _new_sac(config)
    best = -np.inf
    while sac.num_timesteps < config.max_steps:
        start, steps = time.perf_counter(), min(config.eval_every, config.max_steps - sac.num_timesteps)
        sac.learn(steps, reset_num_timesteps=False)
        rate = steps / (time.perf_counter() - start)
        actor = export_actor(sac)
        # The same starts at every evaluation, none of them a training episode's.
        scores = roll_out(actor, config.task, config.eval_episodes, config.seed + 10_000, deterministic=True)
        mean_return = float(scores.returns.mean())
        best = max(best, mean_return)
        print(
            f"{config.task.name} SAC  {sac.num_timesteps:>9,} / {config.max_steps:,} steps  {rate:5.0f} /s  "
            f"return {mean_return:7.1f} of {config.target_return:g}  length {scores.lengths.mean():5.1f}",
            flush=True,
        )
        if mean_return >= config.target_return:
            return actor.save(config.out, _metadata(config, actor, scores, sac.num_timesteps))
    raise BurnishError(
        f"{config.task.name}: best mean return {best:.1f} in max_steps={config.max_steps} steps, "
        f"below target_return={config.target_return:g}; raise max_steps, lower the target or change the seed"
    )


def export_actor(sac: SAC) -> SACActor:
    """The actor of a Stable-Baselines3 SAC model with an MLP policy, on the CPU."""
    weights = {name: weight.detach().cpu().clone() for name, weight in sac.actor.state_dict().items()}
    sizes = [w.shape for name, w in weights.items() if name.startswith("latent_pi") and w.ndim == 2]
    actor = SACActor(sizes[0][1], len(weights["mu.bias"]), [out_size for out_size, _ in sizes])
    actor.load_state_dict(weights)
    return actor.eval()


def _new_sac(config: BehaviourConfig) -> SAC:
    try:
        from stable_baselines3 import SAC
    except ImportError as error:
        raise BurnishError(
            "training a SAC behaviour needs stable-baselines3: pip install 'burnish[baselines]'"
        ) from error
    return SAC(
        "MlpPolicy",
        _make_env(config.task),
        policy_kwargs={"net_arch": {"pi": list(config.hidden_sizes), "qf": [256, 256]}},
        learning_starts=min(5_000, config.max_steps // 10),
        buffer_size=config.max_steps,
        seed=config.seed,
        device=config.device,
    )


def _make_env(task: TaskConfig) -> gymnasium.Env[NDArray[np.float64], NDArray[np.float32]]:
    import gymnasium
    from gymnasium.wrappers import RescaleAction

    with told_as(f"task.env_id={task.env_id} cannot be made"):
        env = gymnasium.make(task.env_id, max_episode_steps=task.max_episode_steps, **task.env_kwargs)
    return RescaleAction(env, np.float32(-1), np.float32(1))


def _metadata(config: BehaviourConfig, actor: SACActor, stopped_at: Rollouts, steps: int) -> dict[str, Any]:
    fresh = config.seed + 20_000
    measured = {
        name: roll_out(actor, config.task, config.report_episodes, fresh, name == "deterministic").summary()
        for name in ("deterministic", "stochastic")
    }
    packages = ("stable-baselines3", "torch", "gymnasium", "mujoco", "numpy")
    return {
        "task": config.task.name,
        "env_id": config.task.env_id,
        "algorithm": "SAC",
        "steps": steps,
        "stopped_at": stopped_at.summary(),
        **measured,
        "versions": {name: version(name) for name in packages},
        "config": {name: value for name, value in asdict(config).items() if name != "out"},
    }
