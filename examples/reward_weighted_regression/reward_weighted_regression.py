"""Reward-weighted regression (Peters and Schaal 2007): clone your own chunks, each weighed by what it earned.

    L = E_s w(s, a) || f_theta(x_k, k, s) - target ||^2,    w proportional to exp(R / (beta std R))

R is the discounted return from the chunk on; (s, a) are of one rollout of the present policy, x_k is the noised a.
Symbols: T chunks of a rollout in each of E environments.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch

from burnish.config import key
from burnish.envs.base import ChunkStep
from burnish.finetune.losses.gae import gae
from burnish.finetune.losses.rsm import weighted_denoising_loss
from burnish.finetune.stage import Setting, Stage, StageConfig
from burnish.finetune.storage.rollout import Rollout
from burnish.networks.optimise import clipped_step
from burnish.policies.diffusion import DiffusionPolicy
from burnish.registry import register
from burnish.runs.state import generator_state, restore_generator


@dataclass(frozen=True)
class RWRConfig(StageConfig):
    """The keys stage.beta, ..."""

    FIRST_UPDATE: ClassVar[tuple[str, ...]] = ("n_steps",)

    n_steps: int = key(80, "T, chunks in each environment between two updates", least=1)
    beta: float = key(0.5, "temperature of the weights, in standard deviations of the return", above=0)
    gamma: float = key(0.99, "discount per chunk", least=0, most=1)
    epochs: int = key(5, "passes over a rollout", least=1)
    batch_size: int = key(256, "chunks in a gradient step", least=1)
    actor_lr: float = key(1e-4, "of Adam", above=0)


class RWR(Stage):
    """See the module's docstring."""

    Config = RWRConfig

    def __init__(self, policy: DiffusionPolicy, config: RWRConfig, setting: Setting):
        if policy.finetuned is None:
            policy.start_finetuning(from_scratch=not setting.pretrained)
        self.policy, self.config = policy, config
        self.actor = policy.finetuned
        self.optimizer = torch.optim.Adam(self.actor.parameters(), lr=config.actor_lr)
        self.generator = torch.Generator(policy.device).manual_seed(setting.seed)
        self.chunks_per_update = config.n_steps
        chunk, obs = (policy.config.horizon, policy.action_dim), policy.blank_obs(1)[0]
        self.rollout = Rollout(config.n_steps, setting.n_envs, obs, chunk, 0, policy.device)

    @torch.no_grad()
    def act(self, obs: np.ndarray) -> np.ndarray:
        normalized = self.policy.normalized_obs(obs)
        x = self.policy.sample(normalized, self.policy.draw_noise(len(normalized), generator=self.generator))[0]
        self.rollout.add_action(normalized, x, x.new_empty(len(x), 0))
        return self.policy.executed_actions(x).cpu().numpy()

    def observe(self, step: ChunkStep) -> None:
        self.rollout.add_outcome(step, self.policy.normalized_obs(step.final_obs))

    def ready(self) -> bool:
        return self.rollout.full

    def update(self) -> dict[str, float]:
        rollout, nothing = self.rollout, torch.zeros_like(self.rollout.reward)
        ends = {"terminated": rollout.terminated, "truncated": rollout.truncated}
        # R_t = r_t + gamma R_{t+1} up to the end of the episode, or of the rollout
        _, returns = gae(rollout.reward, nothing, nothing, **ends, gamma=self.config.gamma, gae_lambda=1.0)
        returns, obs = returns.flatten(), rollout.obs.flatten(0, 1)  # (T E,), (T E, To * Do)
        x = self.policy.within_bounds(rollout.sampled.flatten(0, 1))[:, None]  # (T E, 1, Tp, Da)
        weights = (returns / (self.config.beta * returns.std().clamp(min=1e-6))).softmax(0) * len(returns)
        for _ in range(self.config.epochs):
            for n in torch.randperm(len(x), device=x.device, generator=self.generator).split(self.config.batch_size):
                output, target = self.policy.denoise_noised(self.actor, obs[n], x[n], self.generator)
                loss = weighted_denoising_loss(output, target, weights[n][:, None])
                clipped_step(self.optimizer, loss, max_grad_norm=1.0)
        rollout.clear()
        return {"actor_loss": loss.item(), "mean_return": float(returns.mean()), "largest_weight": float(weights.max())}

    def cut_episodes(self) -> None:
        self.rollout.cut()

    def state_dict(self) -> dict[str, Any]:
        learned = {"policy": self.policy.state_dict(), "optimizer": self.optimizer.state_dict()}
        stored = {"t": self.rollout.t, "rollout": self.rollout.state()}
        return learned | stored | {"generator": generator_state(self.generator)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.policy.load_state_dict(state["policy"])
        self.optimizer.load_state_dict(state["optimizer"])
        restore_generator(self.generator, state["generator"])
        self.rollout.load_state(state["t"], state["rollout"])


register("stage", "rwr", "reward_weighted_regression:RWR")  # with plugins=[reward_weighted_regression] also stage=rwr
