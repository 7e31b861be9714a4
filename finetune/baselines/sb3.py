"""Stable-Baselines3's algorithms as stages: the loop steps the environments, their code learns, as it is.

A model of Stable-Baselines3 sees normalised, flattened observations (To * Do) and whole chunks of actions in [-1, 1]
(Ta * Da) with their discounted reward; one chunk is one of its steps, and its gamma is ours to the power of Ta.

Symbols: E environments, To observation steps, Ta executed action steps, Do and Da dimensions, h <= Ta executed steps
of a chunk.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from operator import attrgetter
from types import TracebackType
from typing import Any, ClassVar, NamedTuple

import gymnasium
import numpy as np
import torch
from torch import Tensor, nn

from burnish.config import key
from burnish.datasets.fingerprint import fingerprint
from burnish.datasets.for_task import demonstrations_for
from burnish.datasets.sources import demonstrations_of
from burnish.envs.base import ChunkStep
from burnish.errors import BurnishError
from burnish.finetune.off_policy import MOST_GRADIENT_STEPS
from burnish.finetune.stage import Setting, Stage, StageConfig
from burnish.finetune.storage.replay import demonstration_transitions, discounted
from burnish.networks.optimise import check_averages
from burnish.policies.gaussian import GaussianPolicy
from burnish.runs.state import random_states, restore_random_states

REPLAY_ARRAYS = ("observations", "next_observations", "actions", "rewards", "dones", "timeouts")


class OwnRandomness:
    """Stable-Baselines3 draws from the global generators. Inside of `with` they are the stage's own: what else draws
    (evaluations, robosuite) neither changes its numbers nor is changed by it."""

    def __init__(self) -> None:
        self.states = random_states()

    def __enter__(self) -> None:
        self._others = random_states()
        restore_random_states(self.states)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.states = random_states()
        restore_random_states(self._others)


class SpacesOnly(gymnasium.Env):
    """Tells Stable-Baselines3 the sizes of observations and actions; nobody steps it."""

    def __init__(self, obs_dim: int, chunk_dim: int):
        self.observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (obs_dim,))
        self.action_space = gymnasium.spaces.Box(-1.0, 1.0, (chunk_dim,))


class SB3Stage(Stage):
    """What the three stages share.

    Args:
        policy: its layers become the model's actor's (of a pretrained policy with their weights): what is trained is
            what is evaluated and saved.
    """

    kinds: ClassVar[tuple[str, ...]] = ("gaussian",)
    package: ClassVar[str] = "stable-baselines3"
    extra: ClassVar[str] = "baselines"
    SQUASH: ClassVar[bool]  # whether the actor ends in a tanh
    config: StageConfig
    policy: GaussianPolicy
    COUNTERS: ClassVar[tuple[str, ...]]

    def __init__(self, policy: GaussianPolicy, config: StageConfig, setting: Setting):
        self.check_installed(config.name)
        if policy.config.squash != self.SQUASH:
            expected = str(self.SQUASH).lower()
            raise BurnishError(
                f"stage={config.name} needs a Gaussian policy with squash={expected}: network=gaussian"
                f"{'' if self.SQUASH else '_ppo'}, or burnish pretrain policy=gaussian policy.squash={expected}"
            )
        if not policy.obs_spec.is_state:
            raise BurnishError(
                f"stage={config.name} sees a state alone, but the policy has {policy.obs_spec}: expected another stage"
            )
        self.policy = policy
        self.random = OwnRandomness()
        with self.random:
            self.model = self.make_model(setting)
        layers = nn.Sequential(*self.actor_layers())
        if setting.pretrained:
            layers.load_state_dict(policy.network.state_dict())
        policy.network = layers

    @contextmanager
    def running(self) -> Iterator[None]:
        """Inside, Stable-Baselines3's code draws from the stage's generators, and a network of NaN is told as such."""
        try:
            with self.random:
                yield
        except ValueError as error:
            if "invalid values" not in str(error):  # a distribution's refusal of its parameters
                raise
            raise BurnishError(
                f"stage={self.config.name} diverged, its actor's output is no number: lower stage.learning_rate"
            ) from error

    @abstractmethod
    def make_model(self, setting: Setting) -> Any:
        """The model of Stable-Baselines3, by `sb3_model`."""

    @abstractmethod
    def actor_layers(self) -> list[nn.Module]:
        """Of the model, from the observation to the mean before any squashing."""

    def normalized(self, obs: np.ndarray) -> Tensor:
        """Raw (E, To, Do) -> what the model sees (E, To * Do)."""
        return self.policy.normalized_obs(obs)

    def executed(self, chunks: Tensor) -> np.ndarray:
        """Normalised (E, Ta * Da) -> raw actions (E, Ta, Da)."""
        return self.policy.executed_actions(self.policy.chunks(chunks)).cpu().numpy()

    def state_dict(self) -> dict[str, Any]:
        model = self.model
        variables = {name: getattr(model, name) for name in model._get_torch_save_params()[1]}  # SAC's temperature
        return {
            "parameters": model.get_parameters(),
            "variables": {name: variable.detach().clone() for name, variable in variables.items()},
            "n_updates": model._n_updates,
            "random": self.random.states,
            "counters": {name: getattr(self, name) for name in self.COUNTERS},
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.model.set_parameters(state["parameters"], device=self.policy.device)
        for part in map(attrgetter, self.model._get_torch_save_params()[0]):
            if isinstance(part(self.model), torch.optim.Optimizer):
                check_averages(part(self.model))
        for name, value in state["variables"].items():
            getattr(self.model, name).data.copy_(value)
        self.model._n_updates = state["n_updates"]
        self.random.states = state["random"]
        for name, value in state["counters"].items():
            setattr(self, name, value)


def sb3_model(
    algorithm: str, policy: GaussianPolicy, setting: Setting, critic: dict[str, list[int]], **settings: Any
) -> Any:
    """A model of Stable-Baselines3 for chunks of `policy`.

    Args:
        algorithm: the class's name in `stable_baselines3`.
        critic: sizes of the critic's hidden layers, by Stable-Baselines3's name for it ("qf" or "vf").
        settings: arguments of the class.
    """
    import stable_baselines3
    from stable_baselines3.common.logger import Logger
    from stable_baselines3.common.vec_env import DummyVecEnv

    config = policy.config
    sizes = config.n_obs_steps * policy.obs_dim, config.n_action_steps * policy.action_dim
    model = getattr(stable_baselines3, algorithm)(
        "MlpPolicy",
        DummyVecEnv([lambda: SpacesOnly(*sizes)] * setting.n_envs),
        policy_kwargs={
            "net_arch": {"pi": list(config.hidden_sizes), **critic},
            "activation_fn": type(policy.activation()),
        },
        seed=setting.seed,
        device=policy.device,
        **settings,
    )
    model.set_logger(Logger(folder=None, output_formats=[]))
    return model


def take_metrics(model: Any) -> dict[str, float]:
    """What the model logged since the last call."""
    metrics = {name.removeprefix("train/"): float(value) for name, value in model.logger.name_to_value.items()}
    model.logger.dump()
    return metrics


@dataclass(frozen=True)
class ReplayConfig(StageConfig):
    """What SAC and TD3 share, by Stable-Baselines3's names."""

    FIRST_UPDATE: ClassVar[tuple[str, ...]] = ("learning_starts", "train_freq")

    critic_hidden_sizes: list[int] = key([256, 256], "of both Q networks", least=1)
    learning_rate: float = key(3e-4, "of all networks, by Adam", above=0)
    batch_size: int = key(256, "transitions of a batch", least=1)
    buffer_size: int = key(1_000_000, "chunks", least=1)
    tau: float = key(0.005, "Polyak average of the critic (TD3: and of the actor)", above=0, most=1)
    gamma: float = key(0.99, "discount per environment step", above=0, most=1)
    learning_starts: int = key(
        100, "environment steps of uniformly random actions, before the first gradient step", least=0
    )
    train_freq: int = key(1, "chunks in each environment between two rounds of gradient steps", least=1)
    utd_ratio: float = key(1.0, "gradient steps per stored chunk", above=0)
    demos: str | None = key(
        None,
        "demonstrations that the replay starts with: a file, or task (those the task names; null: none)",
    )

    @property
    def demonstrations(self) -> str | None:
        return self.demos


class Pending(NamedTuple):
    """What is being executed."""

    obs: Tensor  # (E, To * Do) normalised
    chunk: Tensor  # (E, Ta * Da) normalised


class ReplayStage(SB3Stage):
    """SAC and TD3: Stable-Baselines3's replay buffer and `train`."""

    SQUASH = True
    COUNTERS = ("env_steps", "chunks_since_update", "gradient_steps", "owed")
    config: ReplayConfig

    def __init__(self, policy: GaussianPolicy, config: ReplayConfig, setting: Setting):
        self.config = config
        if config.buffer_size < setting.n_envs:
            raise BurnishError(f"stage.buffer_size={config.buffer_size}: expected at least n_envs={setting.n_envs}")
        super().__init__(policy, config, setting)
        self.buffer = self.model.replay_buffer
        self._store_demonstrations(setting)
        per_chunk = setting.n_envs * policy.config.n_action_steps
        self.chunks_per_update = max(config.train_freq, -(-config.learning_starts // per_chunk))
        self.env_steps = 0
        self.chunks_since_update = 0  # in each environment
        self.gradient_steps = 0
        self.owed = 0.0  # gradient steps that are due
        self.pending: Pending | None = None

    def shared_settings(self) -> dict[str, Any]:
        """The arguments that SAC and TD3 both take."""
        config = self.config
        names = ("learning_rate", "batch_size", "buffer_size", "tau")
        return {name: getattr(config, name) for name in names} | {
            "gamma": config.gamma**self.policy.config.n_action_steps,
            "critic": {"qf": list(config.critic_hidden_sizes)},
        }

    def _store_demonstrations(self, setting: Setting) -> None:
        source = demonstrations_of(setting.task, self.config.demos)
        if source is None:
            if self.config.demos is None:
                return
            raise BurnishError(
                f"stage.demos=task, but task={setting.task.name} names no demonstrations: give stage.demos=FILE or null"
            )
        demos = demonstrations_for(setting.task, source, allow=setting.allow, rewards_matter=True)
        self.data = fingerprint(demos.episodes, [*setting.task.obs_keys, *setting.task.sensors])
        try:
            data = demonstration_transitions(
                self.policy, demos.episodes, self.config.gamma, ends_at_success=setting.ends_at_success
            ).expanded()
        except BurnishError as error:
            raise BurnishError(f"{demos.source or source}: {error}") from error
        n, E = len(data.reward), setting.n_envs
        rows = (np.arange(-(-n // E) * E) % n).reshape(-1, E)  # the last row is completed with the first ones again
        if len(rows) > self.buffer.buffer_size:
            raise BurnishError(f"stage.buffer_size={self.config.buffer_size} is too small for {n} demonstrated chunks")
        obs, chunk, reward, discount, next_obs = (tensor.cpu().numpy() for tensor in data)
        for row in rows:
            self.buffer.add(obs[row], next_obs[row], chunk[row], reward[row], discount[row] == 0, [{}] * E)

    @abstractmethod
    def explore(self, obs: Tensor) -> Tensor:
        """Normalised chunks (E, Ta * Da) to execute at normalised observations (E, To * Do)."""

    @torch.no_grad()
    def act(self, obs: np.ndarray) -> np.ndarray:
        normalized = self.normalized(obs)
        with self.running():
            if self.env_steps < self.config.learning_starts:
                shape = (len(obs), self.buffer.action_dim)
                chunk = 2 * torch.rand(shape, device=normalized.device) - 1
            else:
                chunk = self.explore(normalized)
        self.pending = Pending(normalized, chunk)
        return self.executed(chunk)

    def observe(self, step: ChunkStep) -> None:
        assert self.pending is not None
        # R = sum_{i<h} gamma^i r_i
        reward = discounted(step.step_rewards, step.steps, step.terminated, self.config.gamma)[0]
        self.buffer.add(
            self.pending.obs.cpu().numpy(),
            self.normalized(step.final_obs).cpu().numpy(),
            self.pending.chunk.cpu().numpy(),
            reward,
            step.terminated | step.truncated,
            [{"TimeLimit.truncated": bool(truncated)} for truncated in step.truncated],
        )
        self.env_steps += int(step.steps.sum())
        self.chunks_since_update += 1
        if self.env_steps >= self.config.learning_starts:  # what came before is not made up for
            self.owed += self.config.utd_ratio * len(step.steps)

    def ready(self) -> bool:
        return self.chunks_since_update >= self.config.train_freq and self.env_steps >= self.config.learning_starts

    def update(self) -> dict[str, float]:
        due = min(int(self.owed), MOST_GRADIENT_STEPS)
        if due:
            with self.running():
                self.model.train(due, self.config.batch_size)
        self.owed -= due
        self.gradient_steps += due
        if self.owed < 1:
            self.chunks_since_update = 0  # else the next update goes on
        metrics = take_metrics(self.model)
        if not np.isfinite(metrics.get("critic_loss", 0.0)):
            raise BurnishError(
                f"the critic diverged (critic_loss={metrics['critic_loss']} after {self.gradient_steps} steps): "
                "lower stage.learning_rate"
            )
        size = self.buffer.size() * self.buffer.n_envs
        return metrics | {"gradient_steps": self.gradient_steps, "replay_size": size}

    def cut_episodes(self) -> None:
        """Nothing to do: every stored chunk has its own end."""

    def state_dict(self) -> dict[str, Any]:
        rows = slice(self.buffer.size())  # a part would be saved with all of its memory
        arrays = {name: getattr(self.buffer, name)[rows] for name in REPLAY_ARRAYS}
        return super().state_dict() | {"replay": arrays, "position": self.buffer.pos, "full": self.buffer.full}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        for name, saved in state["replay"].items():
            getattr(self.buffer, name)[: len(saved)] = saved
        self.buffer.pos, self.buffer.full = state["position"], state["full"]
