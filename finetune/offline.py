"""What learns from batches that are handed in: no environment is stepped for it.

A stage of this kind can learn from demonstrations alone, the offline phase of a run; one that can do nothing else has
no online phase (`online = False`). Off-policy stages are of this kind too: they hand in batches of their own replay.

Symbols: B batch, To, Tp, Ta, Do, Da as in `burnish.policies.diffusion`.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from burnish.config import key
from burnish.datasets.load import load
from burnish.datasets.sources import demonstrations_of
from burnish.envs.base import ChunkStep
from burnish.envs.task import TaskConfig
from burnish.errors import BurnishError
from burnish.finetune.critics import CRITICS, AnyCriticConfig, Critic, Learning
from burnish.finetune.stage import Setting, Stage, StageConfig
from burnish.finetune.storage.replay import (
    Batch,
    Demonstrated,
    Replay,
    demonstration_transitions,
    example_transition,
)
from burnish.networks import CriticConfig
from burnish.policies.base import Policy
from burnish.runs.state import generator_state, restore_generator

DIVERGED = {
    "critic": "lower stage.critic_lr or stage.reward_scale, or keep stage.critic.layer_norm=true",
    "actor": "lower stage.actor_lr",
}


@dataclass(frozen=True)
class OfflineConfig(StageConfig):
    """Settings of the data and of the critic, which all have."""

    critic: AnyCriticConfig = key(factory=CriticConfig)
    target_critics: int | None = key(
        None,
        "members of the ensemble whose least value is the target, drawn anew for each gradient step (REDQ, RLPD: 2 of "
        "10; null: all)",
        least=1,
    )
    n_step: int = key(3, "chunks of rewards in the target before it bootstraps", least=1)
    gamma: float = key(0.99, "discount per environment step", above=0, most=1)
    tau: float = key(0.005, "Polyak average of the critic, in its target", above=0, most=1)
    reward_scale: float = key(1.0, "factor on rewards", above=0)
    critic_lr: float = key(3e-4, "of Adam", above=0)
    max_grad_norm: float = key(10.0, "longer gradients are shortened to it", above=0)
    batch_size: int = key(256, "transitions", least=1)
    demos: str | None = key("task", "demonstrations to learn from: a file, or task (those the task names)")

    def check(self) -> None:
        if self.target_critics is not None and self.target_critics > self.critic.n_critics:
            raise BurnishError(
                f"stage.target_critics={self.target_critics}: expected at most stage.critic.n_critics="
                f"{self.critic.n_critics}"
            )

    @property
    def demonstrations(self) -> str | None:
        return self.demos

    @property
    def learning(self) -> Learning:
        """Of the critic."""
        return Learning(self.critic_lr, self.tau, self.max_grad_norm, self.target_critics)


class OfflineStage(Stage):
    """See the module's docstring; a subclass says what a gradient step on a batch is.

    Attributes:
        critic: see `burnish.finetune.critics`.
        demos: the transitions of the demonstrations; None where a subclass leaves them out.
        generator: of all that is random in learning.
        gradient_steps: done so far, in all phases.
    """

    online: ClassVar[bool] = False
    keeps_returns: ClassVar[bool] = False  # batches have `extra["return_to_go"]`, of demonstrations and ended episodes
    config: OfflineConfig
    policy: Policy
    chunks_per_update = 0
    STATEFUL: ClassVar[tuple[str, ...]] = ("policy",)
    COUNTERS: ClassVar[tuple[str, ...]] = ("gradient_steps",)

    def __init__(self, policy: Policy, config: OfflineConfig, setting: Setting):
        self.policy, self.config = policy, config
        demonstrations = self.demonstrations(setting)
        self.generator = torch.Generator(policy.device).manual_seed(setting.seed)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(setting.seed)
            self.critic: Critic[Any] = CRITICS[config.critic.kind](
                policy, config.critic, config.learning, self.generator
            )
        self.demos: Replay | None = None
        if demonstrations is not None:
            frames, data, returns = demonstrations
            self.demos = self.make_replay(len(data.reward), n_frames=len(frames))
            self.demos.frames.put(frames)
            rows = self.demos.add(data._replace(reward=data.reward * config.reward_scale))
            if self.keeps_returns:
                self.demos.write(rows, return_to_go=returns * config.reward_scale)
        self.gradient_steps = 0

    @abstractmethod
    def learn(self, batch: Batch) -> dict[str, Tensor]:
        """One gradient step of everything that learns, on the batch -> metrics, which stay on the device."""

    def make_replay(self, capacity: int, *, n_frames: int | None = None, spare: int = 0) -> Replay:
        """An empty one for the policy's observations and chunks; for the arguments see `Replay`."""
        example, To = example_transition(self.policy), self.policy.config.n_obs_steps
        extra = {"return_to_go": example.reward[0]} if self.keeps_returns else None
        return Replay(capacity, example, To, n_frames=n_frames, spare=spare, extra=extra)

    def demonstrations(self, setting: Setting) -> Demonstrated | None:
        """What it learns from, as the file has it; None where it shall do without. Raises BurnishError for a file that
        cannot be read or is not of the policy's sizes."""
        source = demonstrations_of(setting.task, self.config.demos)
        if source is None:
            raise BurnishError(self.no_demonstrations(setting.task))
        demos = load(source, sensors=setting.task.sensors)
        try:
            return demonstration_transitions(
                self.policy, demos.episodes, self.config.gamma, self.config.n_step, setting.ends_at_success
            )
        except BurnishError as error:
            raise BurnishError(f"{demos.source or source}: {error}") from error

    def no_demonstrations(self, task: TaskConfig) -> str:
        """What to say where there is no file."""
        name = self.config.name
        return f"stage={name} learns from demonstrations, but task={task.name} names none: give stage.demos=FILE"

    def why_not_offline(self) -> str | None:
        return None

    def update_offline(self, gradient_steps: int) -> dict[str, float]:
        assert self.demos is not None
        batches = (self.demos.sample(self.config.batch_size, self.generator) for _ in range(gradient_steps))
        return self.means([self.learn(batch) for batch in batches])

    def means(self, each: list[dict[str, Tensor]]) -> dict[str, float]:
        """Of the metrics of gradient steps, not all of which have every one. Raises BurnishError for a loss that is
        not finite."""
        results: dict[str, list[Tensor]] = {}
        for metrics in each:
            for name, value in metrics.items():
                results.setdefault(name, []).append(value)
        means = {name: float(torch.stack(values).mean()) for name, values in results.items()}
        for name, advice in DIVERGED.items():
            if not math.isfinite(loss := means.get(f"{name}_loss", 0.0)):
                raise BurnishError(
                    f"the {name} diverged ({name}_loss={loss} after {self.gradient_steps} steps): {advice}"
                )
        return means | {"gradient_steps": self.gradient_steps}

    def chunks(self, batch: Batch) -> Tensor:
        """The batch's chunks (B, 1, Tp, Da)."""
        return batch.chunk.view(-1, 1, self.policy.config.horizon, self.policy.action_dim)

    def act(self, obs: np.ndarray) -> np.ndarray:
        return np.asarray(self.policy.act(obs, generator=self.generator))

    def observe(self, step: ChunkStep) -> None:
        """Nothing of it is learned from."""

    def ready(self) -> bool:
        return False

    def update(self) -> dict[str, float]:
        return {}

    def cut_episodes(self) -> None:
        """None is remembered."""

    def state_dict(self) -> dict[str, Any]:
        stateful = {name: getattr(self, name).state_dict() for name in self.STATEFUL}
        return {
            "policy": stateful.pop("policy"),
            **self.critic.state_dict(),
            **stateful,
            **{name: getattr(self, name) for name in self.COUNTERS},
            "generator": generator_state(self.generator),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.critic.load_state_dict(state)
        for name in self.STATEFUL:
            if name in state:  # the first checkpoints have no n-step returns and no returns of running episodes
                getattr(self, name).load_state_dict(state[name])
        for name in self.COUNTERS:
            setattr(self, name, state[name])
        restore_generator(self.generator, state["generator"])
