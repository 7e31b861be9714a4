"""What off-policy algorithms share: acting with candidates, replay, the critic, the schedule of updates.

The critic is an ensemble of Q on (observation history, executed chunk), discounted by gamma per environment step:

    y = sum_{i<h} gamma^i r_i + gamma^h (1 - terminated) max_{n<=N'} min_j Qbar_j(s', a'_n),    a'_n ~ pi(. | s')

over a chunk, or `n_step` of them; min_j is over all members of the ensemble, or `target_critics` of them. Which a'_n
there are, and how the actor learns, is a subclass's.

Symbols: E environments, B batch, N candidates to act with, N' chunks in the target, Tp, Ta, Do, Da as in
`burnish.policies.diffusion`, h <= Ta executed steps of a chunk.
"""

from __future__ import annotations

import copy
import math
from abc import abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from burnish.config import key
from burnish.datasets.load import load
from burnish.datasets.sources import demonstrations_of
from burnish.envs.base import ChunkStep
from burnish.errors import BurnishError
from burnish.finetune.losses.rsm import paper_temperature, resample
from burnish.finetune.stage import Setting, Stage, StageConfig
from burnish.finetune.storage.monte_carlo import MonteCarlo
from burnish.finetune.storage.replay import (
    NSteps,
    Replay,
    Transitions,
    demonstration_transitions,
    online_transitions,
)
from burnish.networks import CriticConfig
from burnish.networks.averages import polyak
from burnish.networks.optimise import clipped_step
from burnish.policies.diffusion import DiffusionPolicy, choose
from burnish.runs.state import generator_state, restore_generator

MOST_GRADIENT_STEPS = 500  # in one `update`: a long warm-up can be watched, stopped and resumed
TAIL_CANDIDATES = 8  # chunks whose mean value stands for what comes after a time limit
DIVERGED = {
    "critic": "lower stage.critic_lr or stage.reward_scale, or keep stage.critic.layer_norm=true",
    "actor": "lower stage.actor_lr",
}


@dataclass(frozen=True)
class OffPolicyConfig(StageConfig):
    """Settings of acting, replay and the critic, which all have."""

    EXPLORATION: ClassVar[str] = "exploration_noise"
    FIRST_UPDATE: ClassVar[tuple[str, ...]] = ("learning_starts", "update_every")
    WITHOUT_DEMOS: ClassVar[str] = "stage.demo_ratio=0"  # what leaves demonstrations out

    critic: CriticConfig = key(factory=CriticConfig)
    target_critics: int | None = key(
        None,
        "members of the ensemble whose least value is the target, drawn anew for each gradient step (REDQ, RLPD: 2 of "
        "10; null: all)",
        least=1,
    )
    n_step: int = key(3, "chunks of rewards in the target before it bootstraps", least=1)
    n_candidates: int = key(8, "chunks sampled for each that is executed", least=1)
    selection: Literal["argmax", "softmax"] = key("argmax", "how Q chooses among them")
    selection_temperature: float = key(1.0, "of the softmax, in units of Q", above=0)
    exploration_noise: float = key(
        0.0, "standard deviation of Gaussian noise on the executed chunk, which is clipped again", least=0
    )
    noise_annealing: bool = key(False, "multiply both by the paper's lambda, which falls from 5 to 1")
    gamma: float = key(0.99, "discount per environment step", above=0, most=1)
    tau: float = key(0.005, "Polyak average of the critic, in its target", above=0, most=1)
    reward_scale: float = key(1.0, "factor on rewards", above=0)
    critic_lr: float = key(3e-4, "of Adam", above=0)
    max_grad_norm: float = key(10.0, "longer gradients are shortened to it", above=0)
    batch_size: int = key(256, "transitions", least=1)
    buffer_size: int = key(1_000_000, "chunks in the replay", least=1)
    utd_ratio: float = key(1.0, "gradient steps per stored chunk", above=0)
    update_every: int = key(4, "chunks in each environment between two rounds of gradient steps", least=1)
    random_steps: int = key(0, "environment steps of uniformly random actions at the start", least=0)
    learning_starts: int = key(2000, "environment steps before the first gradient step", least=1)
    critic_warmup_updates: int = key(
        500, "gradient steps of the critic alone before the first of the actor; due at once", least=0
    )
    demos: str | None = key(
        "task", "demonstrations for the replay: a file, or task (those the task names); null with demo_ratio=0"
    )
    demo_ratio: float = key(
        0.5, "share of each batch that is demonstrations (RLPD: one half; 0: none are read)", least=0, below=1
    )

    def check(self) -> None:
        if self.demo_ratio and not self.demos:
            raise BurnishError(
                f"stage.demos={self.demos or 'null'}, but stage.demo_ratio={self.demo_ratio}: give a file, or "
                f"{self.WITHOUT_DEMOS} to learn from the environment alone"
            )
        if self.demo_ratio and not 1 <= self.n_demos < self.batch_size:
            raise BurnishError(
                f"stage.demo_ratio={self.demo_ratio} of stage.batch_size={self.batch_size} is {self.n_demos}: expected "
                "at least one demonstration and one online transition"
            )
        if self.target_critics is not None and self.target_critics > self.critic.n_critics:
            raise BurnishError(
                f"stage.target_critics={self.target_critics}: expected at most stage.critic.n_critics="
                f"{self.critic.n_critics}"
            )

    @property
    def demonstrations(self) -> str | None:
        return self.demos if self.demo_ratio else None

    @property
    def n_demos(self) -> int:
        """Demonstrations in a batch."""
        return round(self.demo_ratio * self.batch_size)


class OffPolicyStage(Stage):
    """See the module's docstring; a subclass gives the chunks to act with, the target's values, the actor's update."""

    config: OffPolicyConfig
    policy: DiffusionPolicy
    STATEFUL: ClassVar[tuple[str, ...]] = (
        "policy",
        "target_critic",
        "critic_optimizer",
        "replay",
        "joining",
        "monte_carlo",
    )
    PARTS: ClassVar[dict[str, str]] = {"_batch": "batches", "_update_critic": "critic, forward"}
    COUNTERS = ("env_steps", "chunks_since_update", "gradient_steps", "owed")

    def __init__(self, policy: DiffusionPolicy, config: OffPolicyConfig, setting: Setting):
        self.policy, self.config = policy, config
        demonstrations = self._demonstrations(setting)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(setting.seed)
            self.critic = policy.critic or policy.add_critic(config.critic)
        if policy.critic_config != config.critic:
            raise BurnishError(f"stage.critic={config.critic}, but the policy has a critic of {policy.critic_config}")
        self.target_critic = copy.deepcopy(self.critic).requires_grad_(False)
        self.critic_optimizer = torch.optim.Adam(self.critic.parameters(), lr=config.critic_lr, fused=True)
        self.generator = torch.Generator(policy.device).manual_seed(setting.seed)
        obs_dim, chunk_dim = policy.config.n_obs_steps * policy.obs_dim, policy.config.horizon * policy.action_dim
        self.replay = Replay(config.buffer_size, obs_dim, chunk_dim, policy.device)
        self.joining = NSteps(config.n_step, policy.device)
        self.monte_carlo = MonteCarlo(setting.n_envs, policy.device, self._value_of_chunks, self._value_of_policy)
        self.demos: Replay | None = None
        if demonstrations is not None:
            self.demos = Replay(len(demonstrations.reward), obs_dim, chunk_dim, policy.device)
            self.demos.add(demonstrations._replace(reward=demonstrations.reward * config.reward_scale))
        self.n_candidates, self.random_steps = config.n_candidates, config.random_steps
        if config.buffer_size < setting.n_envs:
            raise BurnishError(f"stage.buffer_size={config.buffer_size}: expected at least n_envs={setting.n_envs}")
        per_chunk = setting.n_envs * policy.config.n_action_steps
        self.chunks_per_update = max(config.update_every, -(-config.learning_starts // per_chunk))
        self.env_steps = 0
        self.chunks_since_update = 0  # in each environment
        self.gradient_steps = 0
        self.owed = float(config.critic_warmup_updates)  # gradient steps that are due
        self.pending: tuple[Tensor, Tensor] | None = None  # observation and chunk that are being executed

    @abstractmethod
    def candidates(self, obs: Tensor, n: int) -> Tensor:
        """`n` chunks of the acting policy for each of `obs` (B, To * Do), normalised -> (B, n, Tp, Da)."""

    @abstractmethod
    def next_values(self, batch: Transitions) -> Tensor:
        """Of the target critic, for the chunks of the target at the batch's next observations -> (members, B, N')."""

    @abstractmethod
    def update_actor(self, batch: Transitions) -> dict[str, Tensor]:
        """What is due of the actor's training in this gradient step -> metrics; nothing, where nothing is."""

    def _demonstrations(self, setting: Setting) -> Transitions | None:
        if not self.config.demo_ratio:
            return None
        source = demonstrations_of(setting.task, self.config.demos)
        if source is None:
            raise BurnishError(
                f"stage.demo_ratio={self.config.demo_ratio}, but task={setting.task.name} names no demonstrations: "
                f"give stage.demos=FILE, or {self.config.WITHOUT_DEMOS} to learn from the environment alone"
            )
        demos = load(source)
        try:
            return demonstration_transitions(
                self.policy, demos.episodes, self.config.gamma, self.config.n_step, setting.ends_at_success
            )
        except BurnishError as error:
            raise BurnishError(f"{demos.source or source}: {error}") from error

    @torch.no_grad()
    def act(self, obs: np.ndarray) -> np.ndarray:
        normalized = self.policy.normalized_obs(torch.as_tensor(obs, device=self.policy.device))
        if self.env_steps < self.random_steps:
            shape = (len(obs), self.policy.config.horizon, self.policy.action_dim)
            x = 2 * torch.rand(shape, device=self.policy.device, generator=self.generator) - 1
        else:
            trained = self.gradient_steps > 0  # before that, the critic's choice would be arbitrary
            x = self._select(normalized, self.config.n_candidates if trained else 1)
            x = self.noised(x, self.noise_scale * self.config.exploration_noise)
        self.pending = normalized, x
        return self.policy.executed_actions(x).cpu().numpy()

    def _select(self, obs: Tensor, n_candidates: int) -> Tensor:
        """The chunks to execute (E, Tp, Da), chosen by Q among `n_candidates` of the present policy."""
        x = self.candidates(obs, n_candidates)
        if n_candidates == 1:
            return x.squeeze(1)
        q = self.policy.values(obs, x)  # (E, N)
        if self.config.selection == "argmax":
            return choose(x, q.argmax(1))
        p = (q / self.config.selection_temperature).softmax(1)
        return choose(x, resample(p, 1, self.generator).squeeze(1))

    def noised(self, x: Tensor, std: float) -> Tensor:
        """`x` with noise on it, clipped to the range of actions: what is executed is what is learned from."""
        if std:
            x = x + std * torch.randn(x.shape, device=x.device, generator=self.generator)
        return self.policy.within_bounds(x)

    @property
    def noise_scale(self) -> float:
        """The paper's additive noise falls with its lambda."""
        return paper_temperature(self.gradient_steps) if self.config.noise_annealing else 1.0

    def observe(self, step: ChunkStep) -> None:
        assert self.pending is not None
        new = online_transitions(self.policy, *self.pending, step, self.config.gamma)
        new = new._replace(reward=new.reward * self.config.reward_scale)
        ended = torch.as_tensor(step.terminated | step.truncated, device=self.policy.device)
        self.replay.add(self.joining.add(new, ended))
        self.monte_carlo.observe(new, ended)
        self.env_steps += int(step.steps.sum())
        self.chunks_since_update += 1
        if self.env_steps >= self.config.learning_starts:  # what came before is not made up for
            self.owed += self.config.utd_ratio * len(step.steps)

    def ready(self) -> bool:
        return self.chunks_since_update >= self.config.update_every and self.env_steps >= self.config.learning_starts

    def update(self) -> dict[str, float]:
        results: dict[str, list[Tensor]] = {}
        for _ in range(min(int(self.owed), MOST_GRADIENT_STEPS)):
            for name, value in self._gradient_step().items():
                results.setdefault(name, []).append(value)
            self.owed -= 1
        if self.owed < 1:
            self.chunks_since_update = 0  # else the next update goes on
        metrics = {key: float(torch.stack(values).mean()) for key, values in results.items()}
        for name, advice in DIVERGED.items():
            if not math.isfinite(loss := metrics.get(f"{name}_loss", 0.0)):
                raise BurnishError(
                    f"the {name} diverged ({name}_loss={loss} after {self.gradient_steps} steps): {advice}"
                )
        metrics |= self.monte_carlo.report()
        return metrics | {"gradient_steps": self.gradient_steps, "replay_size": self.replay.size}

    @torch.no_grad()
    def _value_of_chunks(self, obs: Tensor, chunk: Tensor) -> Tensor:
        """Least Q of the ensemble; `chunk` (B, Tp * Da) -> (B,)."""
        return self.policy.values(obs, chunk.view(len(obs), 1, self.policy.config.horizon, -1))[:, 0]

    @torch.no_grad()
    def _value_of_policy(self, obs: Tensor) -> Tensor:
        """Least Q of chunks of the acting policy, their mean -> (B,)."""
        return self.policy.values(obs, self.candidates(obs, TAIL_CANDIDATES)).mean(1)

    def _gradient_step(self) -> dict[str, Tensor]:
        batch = self._batch()
        metrics = self._update_critic(batch, self.next_values(batch)) | self.update_actor(batch)
        self.gradient_steps += 1
        return metrics

    def _batch(self) -> Transitions:
        """Demonstrations first, then online transitions."""
        n_demos = self.config.n_demos
        online = self.replay.sample(self.config.batch_size - n_demos, self.generator)
        if self.demos is None:
            return online
        demos = self.demos.sample(n_demos, self.generator)
        return Transitions(*(torch.cat(pair) for pair in zip(demos, online)))

    def _update_critic(self, batch: Transitions, q_next: Tensor) -> dict[str, Tensor]:
        """`q_next` (members, B, N'), of the target critic."""
        if self.config.target_critics is not None:
            members = torch.randperm(len(q_next), device=q_next.device, generator=self.generator)
            q_next = q_next[members[: self.config.target_critics]]
        # y = r + gamma^h (1 - terminated) max_n min_j Qbar_j(s', a'_n)
        target = batch.reward + batch.discount * q_next.amin(0).amax(1)
        q = self.critic(batch.obs, self.executed(batch).flatten(2)).squeeze(2)  # (n, B)
        # L_Q = sum_j E (Q_j(s, a) - y)^2
        loss = F.mse_loss(q, target.expand_as(q)) * len(q)
        clipped_step(self.critic_optimizer, loss, self.config.max_grad_norm)
        polyak(self.target_critic, self.critic, self.config.tau)
        return {"critic_loss": loss.detach() / len(q), "q": q.detach().mean()}

    def chunks(self, batch: Transitions) -> Tensor:
        """The batch's chunks (B, 1, Tp, Da)."""
        return batch.chunk.view(-1, 1, self.policy.config.horizon, self.policy.action_dim)

    def executed(self, batch: Transitions) -> Tensor:
        """The executed part of the batch's chunks (B, 1, Ta, Da)."""
        return self.policy.executed(self.chunks(batch))

    def cut_episodes(self) -> None:
        if (waiting := self.joining.flush()) is not None:
            self.replay.add(waiting)
        self.monte_carlo.cut()

    def state_dict(self) -> dict[str, Any]:
        return {
            **{name: getattr(self, name).state_dict() for name in self.STATEFUL},
            **{name: getattr(self, name) for name in self.COUNTERS},
            "generator": generator_state(self.generator),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for name in self.STATEFUL:
            if name in state:  # the first checkpoints have no n-step returns and no returns of running episodes
                getattr(self, name).load_state_dict(state[name])
        for name in self.COUNTERS:
            setattr(self, name, state[name])
        restore_generator(self.generator, state["generator"])
