"""PPO with a Gaussian policy (Schulman et al. 2017, arXiv 1707.06347) by Stable-Baselines3.

Symbols: T chunks of a rollout, E environments, the others as in `burnish.finetune.baselines.sb3`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from burnish.config import key
from burnish.envs.base import ChunkStep
from burnish.errors import BurnishError
from burnish.finetune.baselines.sb3 import SB3Stage, sb3_model, take_metrics
from burnish.finetune.losses.gae import RewardScaler
from burnish.finetune.stage import Setting, StageConfig
from burnish.finetune.storage.replay import discounted
from burnish.policies.gaussian import GaussianPolicy

ROLLOUT_ARRAYS = ("observations", "actions", "rewards", "episode_starts", "values", "log_probs")
SETTINGS = ("learning_rate", "n_steps", "batch_size", "n_epochs", "gae_lambda", "clip_range", "clip_range_vf") + (
    "normalize_advantage",
    "ent_coef",
    "vf_coef",
    "max_grad_norm",
    "target_kl",
)


@dataclass(frozen=True)
class PPOConfig(StageConfig):
    """Settings of PPO, by Stable-Baselines3's names; docs/baselines.md says where the defaults are not its own."""

    EXPLORATION: ClassVar[str] = "log_std_init"
    FIRST_UPDATE: ClassVar[tuple[str, ...]] = ("n_steps",)

    name: Literal["ppo"] = "ppo"
    critic_hidden_sizes: list[int] = key([64, 64], "of the value network", least=1)
    learning_rate: float = key(3e-5, "of actor and critic", above=0)
    n_steps: int = key(128, "T, chunks in each environment between two updates", least=1)
    batch_size: int = key(64, "chunks a minibatch", least=2)
    n_epochs: int = key(10, "passes over the rollout; fewer where target_kl is exceeded", least=1)
    gamma: float = key(0.99, "discount per environment step", least=0, most=1)
    gae_lambda: float = key(0.95, "per chunk", least=0, most=1)
    clip_range: float = key(0.2, "of the likelihood ratio", above=0)
    clip_range_vf: float | None = key(None, "of the values (null: not clipped)", above=0)
    normalize_advantage: bool = key(True, "in each minibatch")
    ent_coef: float = key(0.0, "weight of the entropy", least=0)
    vf_coef: float = key(0.5, "weight of the value loss", least=0)
    max_grad_norm: float = key(0.5, "longer gradients are shortened to it", above=0, most=math.inf)
    target_kl: float | None = key(
        None, "no further minibatch once 1.5 times this is exceeded (null: no limit)", above=0
    )
    reward_scaling: bool = key(True, "divide rewards by the running std of the discounted return")
    log_std_init: float | None = key(
        -1.6,
        "log std a pretrained policy explores with at first (null: as cloned; a fresh one: network.log_std_init)",
        least=-20,
        most=20,
    )
    critic_warmup_iterations: int = key(1, "first updates of a pretrained policy that train the critic only", least=0)


class SampledChunk(NamedTuple):
    """What is being executed, as sampled."""

    obs: Tensor  # (E, To * Do) normalised
    chunk: Tensor  # (E, Ta * Da) normalised, not yet clipped
    value: Tensor  # (E, 1)
    log_prob: Tensor  # (E,)


class PPO(SB3Stage):
    """See the module's docstring."""

    Config = PPOConfig
    SQUASH = False
    COUNTERS = ("iteration",)
    config: PPOConfig

    def __init__(self, policy: GaussianPolicy, config: PPOConfig, setting: Setting):
        self.config = config
        if config.n_steps * setting.n_envs < 2:
            raise BurnishError(
                f"stage.n_steps={config.n_steps} and n_envs={setting.n_envs}: expected at least 2 chunks"
            )
        super().__init__(policy, config, setting)
        log_std = self.model.policy.log_std
        with torch.no_grad():
            log_std.copy_(policy.log_std)
            if setting.pretrained and config.log_std_init is not None:
                log_std.fill_(config.log_std_init)
        policy.log_std = log_std
        self.buffer = self.model.rollout_buffer
        self.chunks_per_update = config.n_steps
        self.critic_alone = config.critic_warmup_iterations if setting.pretrained else 0
        self.reward_scaler = RewardScaler(setting.n_envs, self.model.gamma, torch.device("cpu"))
        self.bootstrap = np.zeros(
            (config.n_steps, setting.n_envs), np.float32
        )  # what is added to rewards at time limits
        self.ended = np.ones(setting.n_envs, bool)  # the next chunk begins an episode
        self.final_values = np.zeros(setting.n_envs, np.float32)  # V of what the last chunks truly led to
        self.iteration = 0
        self.pending: SampledChunk | None = None

    def make_model(self, setting: Setting) -> Any:
        settings = {name: getattr(self.config, name) for name in SETTINGS}
        gamma = self.config.gamma**self.policy.config.n_action_steps
        critic = {"vf": list(self.config.critic_hidden_sizes)}
        return sb3_model("PPO", self.policy, setting, critic, gamma=gamma, **settings)

    def actor_layers(self) -> list[nn.Module]:
        return [*self.model.policy.mlp_extractor.policy_net, self.model.policy.action_net]

    @torch.no_grad()
    def act(self, obs: np.ndarray) -> np.ndarray:
        normalized = self.normalized(obs)
        with self.running():
            chunk, value, log_prob = self.model.policy(normalized)
        self.pending = SampledChunk(normalized, chunk, value, log_prob)
        return self.executed(chunk)  # clipped; the likelihood is that of the unclipped, as in Stable-Baselines3

    @torch.no_grad()
    def observe(self, step: ChunkStep) -> None:
        assert self.pending is not None
        t, config = self.buffer.pos, self.config
        obs, chunk, value, log_prob = self.pending
        self.final_values = self.model.policy.predict_values(self.normalized(step.final_obs)).flatten().cpu().numpy()
        # R = sum_{i<h} gamma^i r_i;  at a time limit, gamma^h V(s') is added to it before the advantages
        reward = discounted(step.step_rewards, step.steps, step.terminated, config.gamma)[0]
        self.bootstrap[t] = np.where(step.truncated, config.gamma**step.steps * self.final_values, 0)
        self.buffer.add(obs.cpu().numpy(), chunk.cpu().numpy(), reward, self.ended, value, log_prob)
        self.ended = step.terminated | step.truncated

    def ready(self) -> bool:
        return self.buffer.full

    def update(self) -> dict[str, float]:
        buffer = self.buffer
        if self.config.reward_scaling:
            ended = np.concatenate([buffer.episode_starts[1:] > 0, self.ended[None]])  # (T, E)
            buffer.rewards = self.reward_scaler(torch.from_numpy(buffer.rewards), torch.from_numpy(ended)).numpy()
        buffer.rewards = buffer.rewards + self.bootstrap
        buffer.compute_returns_and_advantage(torch.from_numpy(self.final_values), self.ended)
        metrics = {"first_ratio_error": self._ratio_error()}
        actor = [*self.policy.network.parameters(), self.policy.log_std]
        for parameter in actor:
            parameter.requires_grad_(self.iteration >= self.critic_alone)
        with self.running():
            self.model.train()
        for parameter in actor:
            parameter.requires_grad_(True)
        buffer.reset()
        self.bootstrap.fill(0)
        self.iteration += 1
        return metrics | take_metrics(self.model)

    @torch.no_grad()
    def _ratio_error(self) -> float:
        """Largest |ratio - 1| of the rollout before any update: what was sampled from is what is trained."""
        obs, chunk, log_prob = (
            torch.as_tensor(array, device=self.policy.device).flatten(0, 1)
            for array in (self.buffer.observations, self.buffer.actions, self.buffer.log_probs)
        )
        new = self.model.policy.evaluate_actions(obs, chunk)[1]
        return float(((new - log_prob).exp() - 1).abs().amax())

    def cut_episodes(self) -> None:
        """As if the last chunk had ended at a time limit."""
        if t := self.buffer.pos:
            self.bootstrap[t - 1, ~self.ended] = self.model.gamma * self.final_values[~self.ended]
        self.ended[:] = True

    def state_dict(self) -> dict[str, Any]:
        return super().state_dict() | {
            "rollout": {name: getattr(self.buffer, name) for name in ROLLOUT_ARRAYS},
            "position": self.buffer.pos,
            "bootstrap": self.bootstrap,
            "ended": self.ended,
            "final_values": self.final_values,
            "reward_scaler": self.reward_scaler.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        for name, saved in state["rollout"].items():
            getattr(self.buffer, name)[:] = saved
        self.buffer.pos = state["position"]
        self.buffer.full = self.buffer.pos == self.config.n_steps
        self.bootstrap[:] = state["bootstrap"]
        self.ended, self.final_values = state["ended"], state["final_values"]
        self.reward_scaler.load_state_dict(state["reward_scaler"])
