"""What off-policy algorithms share: acting with candidates, replay, the schedule of updates.

The critic is an ensemble of Q on (observation history, executed chunk), discounted by gamma per environment step
(`burnish.finetune.critics`). Of which chunks its target is, and how the actor learns, is a subclass's.

Symbols: E environments, B batch, N candidates to act with, N' chunks in the target, Tp, Ta, Do, Da as in
`burnish.policies.diffusion`, h <= Ta executed steps of a chunk.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
import torch
from torch import Tensor

from burnish.config import key
from burnish.envs.base import ChunkStep
from burnish.envs.task import TaskConfig
from burnish.errors import BurnishError
from burnish.finetune.losses.rsm import paper_temperature, resample
from burnish.finetune.offline import OfflineConfig, OfflineStage
from burnish.finetune.stage import Setting
from burnish.finetune.storage.monte_carlo import MonteCarlo
from burnish.finetune.storage.own_episodes import OwnEpisodes
from burnish.finetune.storage.replay import Batch, Demonstrated, NSteps, Transitions, online_transitions
from burnish.policies.base import Policy
from burnish.policies.diffusion import choose

MOST_GRADIENT_STEPS = 500  # in one `update`: a long warm-up can be watched, stopped and resumed
TAIL_CANDIDATES = 8  # chunks whose mean value stands for what comes after a time limit


@dataclass(frozen=True)
class OffPolicyConfig(OfflineConfig):
    """Settings of acting and replay, see `OfflineConfig` for those of the critic."""

    EXPLORATION: ClassVar[str] = "exploration_noise"
    FIRST_UPDATE: ClassVar[tuple[str, ...]] = ("learning_starts", "update_every")
    WITHOUT_DEMOS: ClassVar[str] = "stage.demo_ratio=0"  # what leaves demonstrations out

    n_candidates: int = key(8, "chunks sampled for each that is executed", least=1)
    selection: Literal["argmax", "softmax"] = key("argmax", "how Q chooses among them")
    selection_temperature: float = key(1.0, "of the softmax, in units of Q", above=0)
    exploration_noise: float = key(
        0.0, "standard deviation of Gaussian noise on the executed chunk, which is clipped again", least=0
    )
    noise_annealing: bool = key(False, "multiply both by the paper's lambda, which falls from 5 to 1")
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
    success_ratio: float = key(
        0.0, "share of each batch that is of own episodes with a success, once there are any", least=0, below=1
    )

    def check(self) -> None:
        super().check()
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
        if self.n_demos + self.n_successes >= self.batch_size:
            raise BurnishError(
                f"stage.demo_ratio={self.demo_ratio} and stage.success_ratio={self.success_ratio}: expected less than "
                "1 together, something of a batch must be online"
            )

    @property
    def demonstrations(self) -> str | None:
        return self.demos if self.demo_ratio else None

    @property
    def n_demos(self) -> int:
        """Demonstrations in a batch."""
        return round(self.demo_ratio * self.batch_size)

    @property
    def n_successes(self) -> int:
        """Transitions of own successes in a batch."""
        return round(self.success_ratio * self.batch_size)


class OffPolicyStage(OfflineStage):
    """See the module's docstring; a subclass gives the chunks to act with, the target's values, the actor's update."""

    online = True
    config: OffPolicyConfig
    STATEFUL: ClassVar[tuple[str, ...]] = ("policy", "replay", "joining", "monte_carlo", "own_episodes")
    PARTS: ClassVar[dict[str, str]] = {"_batch": "batches"}
    COUNTERS = ("env_steps", "chunks_since_update", "gradient_steps", "owed")

    def __init__(self, policy: Policy, config: OffPolicyConfig, setting: Setting):
        super().__init__(policy, config, setting)
        self.replay = self.make_replay(config.buffer_size, spare=(config.n_step + 2) * setting.n_envs)
        self.own_episodes = OwnEpisodes(self.replay, setting.n_envs)
        self.joining = NSteps(config.n_step, policy.device)
        self.monte_carlo = MonteCarlo(setting.n_envs, policy.device, self._value_of_chunks, self._value_of_policy)
        self.n_candidates, self.random_steps = config.n_candidates, config.random_steps
        if config.buffer_size < setting.n_envs:
            raise BurnishError(f"stage.buffer_size={config.buffer_size}: expected at least n_envs={setting.n_envs}")
        per_chunk = setting.n_envs * policy.config.n_action_steps
        self.chunks_per_update = max(config.update_every, -(-config.learning_starts // per_chunk))
        self.env_steps = 0
        self.chunks_since_update = 0  # in each environment
        self.owed = float(config.critic_warmup_updates)  # gradient steps that are due
        self.pending: tuple[Tensor, Tensor] | None = None  # observation and chunk that are being executed

    @abstractmethod
    def candidates(self, obs: Tensor, n: int) -> Tensor:
        """`n` chunks of the acting policy for each of `obs` (B, To * W), normalised -> (B, n, Tp, Da)."""

    @abstractmethod
    def next_values(self, batch: Batch) -> Tensor | None:
        """What the target critic says of the target's chunks at the batch's next observations: see `Critic.update`."""

    @abstractmethod
    def update_actor(self, batch: Batch) -> dict[str, Tensor]:
        """What is due of the actor's training in this gradient step -> metrics; nothing, where nothing is."""

    def demonstrations(self, setting: Setting) -> Demonstrated | None:
        return super().demonstrations(setting) if self.config.demo_ratio else None

    def no_demonstrations(self, task: TaskConfig) -> str:
        return (
            f"stage.demo_ratio={self.config.demo_ratio}, but task={task.name} names no demonstrations: "
            f"give stage.demos=FILE, or {self.config.WITHOUT_DEMOS} to learn from the environment alone"
        )

    def why_not_offline(self) -> str | None:
        return None if self.demos is not None else "stage.demo_ratio=0 leaves the demonstrations out"

    @torch.no_grad()
    def act(self, obs: np.ndarray) -> np.ndarray:
        normalized = self.policy.normalized_obs(obs)
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
        if x.shape[1] == 1:
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
        has_ended = step.terminated | step.truncated
        ended = torch.as_tensor(has_ended, device=self.policy.device)
        whole = self._store(new, step, has_ended, ended)
        returns = self.monte_carlo.observe(new, ended)
        if self.keeps_returns:
            for e, rows in whole.items():
                self.replay.write(rows, return_to_go=returns[e][-len(rows) :])
        self.env_steps += int(step.steps.sum())
        self.chunks_since_update += 1
        if self.env_steps >= self.config.learning_starts:  # what came before is not made up for
            self.owed += self.config.utd_ratio * len(step.steps)

    def _store(self, new: Transitions, step: ChunkStep, has_ended: np.ndarray, ended: Tensor) -> dict[int, Tensor]:
        """Put what came of the pending chunks into the replay -> the rows of episodes that ended, where it matters."""
        histories = self.replay.histories
        before = histories.see(new.obs)
        after = histories.follow(new.next_obs, step.steps)
        joined = self.joining.add(new._replace(obs=before, next_obs=after), ended)
        self.replay.add(joined.transitions)
        if self.config.success_ratio or self.keeps_returns:
            return self.own_episodes.add(joined.envs, step.success, has_ended)
        return {}

    def ready(self) -> bool:
        return self.chunks_since_update >= self.config.update_every and self.env_steps >= self.config.learning_starts

    def update(self) -> dict[str, float]:
        each = []
        for _ in range(min(int(self.owed), MOST_GRADIENT_STEPS)):
            each.append(self._gradient_step())
            self.owed -= 1
        if self.owed < 1:
            self.chunks_since_update = 0  # else the next update goes on
        return self.means(each) | self.monte_carlo.report() | {"replay_size": self.replay.size}

    def update_offline(self, gradient_steps: int) -> dict[str, float]:
        self.owed = max(0.0, self.owed - gradient_steps)  # the critic's warm-up counts wherever it is made
        return super().update_offline(gradient_steps)

    @torch.no_grad()
    def _value_of_chunks(self, obs: Tensor, chunk: Tensor) -> Tensor:
        """Least Q of the ensemble; `chunk` (B, Tp * Da) -> (B,)."""
        return self.policy.values(obs, chunk.view(len(obs), 1, self.policy.config.horizon, -1))[:, 0]

    @torch.no_grad()
    def _value_of_policy(self, obs: Tensor) -> Tensor:
        """Least Q of chunks of the acting policy, their mean -> (B,)."""
        return self.policy.values(obs, self.candidates(obs, TAIL_CANDIDATES)).mean(1)

    def learn(self, batch: Batch) -> dict[str, Tensor]:
        metrics = self.critic.update(batch, self.next_values(batch)) | self.update_actor(batch)
        self.gradient_steps += 1
        return metrics

    def _gradient_step(self) -> dict[str, Tensor]:
        return self.learn(self._batch())

    @property
    def n_demos(self) -> int:
        """Demonstrations in the next batch."""
        return self.config.n_demos

    def _batch(self) -> Batch:
        """Demonstrations first, then online transitions, then those of own successes, once there are any."""
        n_demos, n_successes = self.n_demos, self.config.n_successes
        own = self.own_episodes.sample(n_successes, self.generator) if n_successes else None
        n_online = self.config.batch_size - n_demos - (n_successes if own is not None else 0)
        parts = [self.replay.sample(n_online, self.generator), *([] if own is None else [own])]
        if self.demos is not None and n_demos:
            parts.insert(0, self.demos.sample(n_demos, self.generator))
        return Batch.joined(parts)

    def cut_episodes(self) -> None:
        if (waiting := self.joining.flush()) is not None:
            self.replay.add(waiting.transitions)
        self.own_episodes.cut()
        self.monte_carlo.cut()
