"""What algorithms of PPO's kind share: rollout, advantages, critic, epochs, the stop at a divergence, the first ratio.

A chunk's likelihood may have several terms: those of its denoising steps in DPPO, one of a Gaussian policy. PPO runs on
pairs (sample, term). A subclass says how to explore, and what the log-probability of a pair is under the present actor.

Symbols: E environments, T chunks of a rollout, N = T E samples, L terms of a chunk's likelihood, i = 0 .. L - 1 among
them, M pairs of a minibatch, To, Tp, Ta, Do, Da as in `burnish.policies.base`.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from burnish.config import WrongValue, key
from burnish.envs.base import ChunkStep
from burnish.errors import BurnishError, warn
from burnish.finetune.losses.gae import RewardScaler, gae
from burnish.finetune.losses.group import group_advantages
from burnish.finetune.losses.ppo import RATIO_TOLERANCE, check_first_ratio, clipped_surrogate, normalize_advantages
from burnish.finetune.stage import Setting, Stage, StageConfig
from burnish.finetune.storage.rollout import Rollout
from burnish.networks import ValueNetwork
from burnish.networks.optimise import clipped_step, load_optimizer
from burnish.policies.base import Policy
from burnish.runs.state import generator_state, restore_generator

LR_FACTOR, LR_RANGE = 1.5, (1e-6, 1e-2)  # by which the learning rate is adapted, and within which
FEW_EPISODES = 16  # in a rollout; with a sparse reward the advantages of fewer are noise


@dataclass(frozen=True)
class OnPolicyConfig(StageConfig):
    """Settings that all have."""

    FIRST_UPDATE: ClassVar[tuple[str, ...]] = ("n_steps", "rollout_episodes")

    n_steps: int | None = key(
        None, "T, chunks in each environment between two updates (null: what rollout_episodes take)", least=1
    )
    rollout_episodes: int = key(
        32,
        "whole episodes between two updates, of all environments together: the advantages of a sparse reward need them",
        least=1,
    )
    advantages: Literal["gae", "group"] = key(
        "gae",
        "gae, of a critic; or group (GRPO): episodes are played in groups from the same initial state, and each is "
        "held against its group's mean and standard deviation, without a critic",
    )
    group_size: int = key(8, "environments of a group, with advantages=group", least=2)
    gamma: float = key(0.99, "discount per chunk", least=0, most=1)
    gae_lambda: float = key(0.95, "per chunk", least=0, most=1)
    actor_lr: float = key(3e-5, "of Adam", above=0)
    desired_kl: float | None = key(
        0.5,
        "nats a chunk by which an update shall move the policy: the learning rate is raised or lowered after each "
        "(null: it stays)",
        above=0,
    )
    critic_lr: float = key(1e-3, "of Adam", above=0)
    max_grad_norm: float = key(1.0, "longer gradients are shortened to it", above=0, most=math.inf)
    update_epochs: int = key(5, "passes over the rollout; fewer where target_kl is exceeded", least=1)
    batch_size: int = key(
        4000, "(sample, term of its likelihood) pairs a minibatch; the terms are the denoising steps", least=1
    )
    clip_coef: float = key(0.02, "clip range of the likelihood ratio, at the last denoising step", above=0)
    adv_quantile_low: float = key(0.0, "advantages are clipped at this quantile", least=0, most=1)
    adv_quantile_high: float = key(1.0, "and at this", least=0, most=1)
    target_kl: float = key(1.0, "no further epoch once the approximate KL of one exceeds it", above=0, most=math.inf)
    critic_warmup_iterations: int = key(1, "first updates that train the critic only", least=0)
    reward_scaling: bool = key(True, "divide rewards by the running std of the discounted return")

    def check(self) -> None:
        if self.adv_quantile_low >= self.adv_quantile_high:
            raise WrongValue(
                f"adv_quantile_low={self.adv_quantile_low} must be less than adv_quantile_high={self.adv_quantile_high}"
            )
        if self.advantages == "group" and self.n_steps is not None:
            raise WrongValue(
                f"n_steps={self.n_steps} with advantages=group: expected null, whole episodes are played "
                "(stage.rollout_episodes says how many)"
            )


class Explored(NamedTuple):
    """Chunks to execute, and what is kept of how they came about."""

    x: Tensor  # (E, Tp, Da) normalised
    sampled: Tensor  # (E, ...), see `Rollout`
    log_prob: Tensor  # (E, L)


class OnPolicyStage(Stage):
    """See the module's docstring.

    Args:
        actor: the network that is trained.
        n_terms: L.
        sampled: shape of what is kept of one chunk.
    """

    config: OnPolicyConfig
    PARTS: ClassVar[dict[str, str]] = {
        "update_critic": "critic, forward",
        "update_actor": "actor, surrogate",
        "new_log_prob": "actor, forward",
    }

    def __init__(
        self,
        policy: Policy,
        config: OnPolicyConfig,
        setting: Setting,
        *,
        actor: nn.Module,
        n_terms: int,
        sampled: tuple[int, ...],
    ):
        self.policy, self.config, self.n_terms = policy, config, n_terms
        device = policy.device
        self.discount = torch.ones(n_terms, device=device)  # of the advantage, for each term
        self.eps = torch.full((n_terms,), config.clip_coef, device=device)  # clip range, likewise
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(setting.seed)
            self.critic = policy.seeing(ValueNetwork(policy.features)).to(device)
        self.actor_optimizer = torch.optim.Adam(actor.parameters(), lr=config.actor_lr, fused=True)
        self.critic_optimizer = torch.optim.Adam(self.critic.parameters(), lr=config.critic_lr, fused=True)
        self.reward_scaler = RewardScaler(setting.n_envs, config.gamma, device)
        self.generator = torch.Generator(device).manual_seed(setting.seed)
        self.round = 0  # chunks of a round of whole episodes, with groups
        self.chunks_per_update = self._rollout_length(setting)
        self.iteration = 0
        self.rollout = Rollout(self.chunks_per_update, setting.n_envs, policy.blank_obs(1)[0], sampled, n_terms, device)

    def _rollout_length(self, setting: Setting) -> int:
        """T: `n_steps`, or as many as hold `rollout_episodes` of the longest episodes. Few of them are told of."""
        longest = math.ceil(setting.task.max_episode_steps / self.policy.config.n_action_steps)
        if self.config.advantages == "group":
            return self._rounds_length(longest, setting.n_envs)
        T = self.config.n_steps or math.ceil(self.config.rollout_episodes * longest / setting.n_envs)
        held = T * setting.n_envs / longest
        if setting.task.measure == "success_rate" and held < FEW_EPISODES:
            warn(
                f"a rollout of {T} chunks in {setting.n_envs} environments holds {held:.1f} of the longest episodes: "
                f"expected at least {FEW_EPISODES}, as a success is rare news "
                f"(stage.n_steps={FEW_EPISODES * T / held:.0f}, or null with stage.rollout_episodes)"
            )
        return T

    def _rounds_length(self, longest: int, n_envs: int) -> int:
        """T of whole rounds, in each of which every environment plays one episode of at most `longest` chunks."""
        if n_envs % self.config.group_size:
            raise BurnishError(
                f"n_envs={n_envs} with stage.group_size={self.config.group_size}: expected a multiple of it"
            )
        self.round = longest
        return longest * math.ceil(self.config.rollout_episodes / n_envs)

    def reset_seeds(self) -> list[int] | None:
        """With groups: one seed a group, drawn when a round begins."""
        if self.config.advantages != "group" or self.rollout.t % self.round:
            return None
        G, E = self.config.group_size, self.rollout.reward.shape[1]
        seeds = torch.randint(2**31, (E // G,), device=self.policy.device, generator=self.generator)
        return seeds.repeat_interleave(G).tolist()

    @abstractmethod
    def explore(self, obs: Tensor) -> Explored:
        """Chunks for normalised `obs` (E, To * W), with exploration."""

    @abstractmethod
    def new_log_prob(self, n: Tensor, i: Tensor) -> Tensor:
        """Log-probability under the present actor of terms `i` (M,) of the samples `n` (M,) of the rollout -> (M,)."""

    @abstractmethod
    def divergence(self, log_ratio: Tensor) -> Tensor:
        """KL divergence of the old policy from the new one for a chunk, in nats, of the log ratios (M,) of pairs."""

    @property
    def ratio_tolerance(self) -> float:
        """By how much the first ratio may differ from 1."""
        return RATIO_TOLERANCE

    def before_actor_update(self) -> None:
        """For what a subclass needs once an update."""

    def extra_loss(self, n: Tensor, i: Tensor) -> Tensor | float:
        """What a subclass adds to the surrogate of the pairs (`n`, `i`)."""
        return 0.0

    @torch.no_grad()
    def act(self, obs: np.ndarray) -> np.ndarray:
        normalized = self.policy.normalized_obs(obs)
        explored = self.explore(normalized)
        self.rollout.add_action(normalized, explored.sampled, explored.log_prob)
        return self.policy.executed_actions(explored.x).cpu().numpy()

    def observe(self, step: ChunkStep) -> None:
        self.rollout.add_outcome(step, self.policy.normalized_obs(step.final_obs))

    def ready(self) -> bool:
        return self.rollout.full

    def update(self) -> dict[str, float]:
        metrics = self._update_by_group() if self.config.advantages == "group" else self._update_by_gae()
        self.iteration += 1
        self.rollout.clear()
        metrics["actor_lr"] = torch.tensor(self.actor_optimizer.param_groups[0]["lr"])
        return {key: float(value) for key, value in metrics.items()}

    def _update_by_gae(self) -> dict[str, Tensor]:
        rollout = self.rollout
        rewards = rollout.reward
        if self.config.reward_scaling:
            rewards = self.reward_scaler(rewards, rollout.ended)
        with torch.no_grad():
            values = self.critic(rollout.obs.flatten(0, 1)).view_as(rewards)
            next_values = self.critic(rollout.final_obs.flatten(0, 1)).view_as(rewards)
        advantages, returns = gae(
            rewards,
            values,
            next_values,
            rollout.terminated,
            rollout.truncated,
            gamma=self.config.gamma,
            gae_lambda=self.config.gae_lambda,
        )
        metrics = {
            "explained_variance": 1 - (returns - values).var() / returns.var().clamp(min=1e-12),
            "value_loss": self.update_critic(returns.flatten()),
        }
        if self.iteration >= self.config.critic_warmup_iterations:
            quantiles = (self.config.adv_quantile_low, self.config.adv_quantile_high)
            metrics |= self.update_actor(normalize_advantages(advantages.flatten(), quantiles))
            self.adapt_learning_rate(float(metrics["kl"]))
        return metrics

    def _update_by_group(self) -> dict[str, Tensor]:
        """There is no critic that would have to be warm first. Rounds whose groups all did alike teach nothing."""
        rollout = self.rollout
        rounds = [
            group_advantages(reward, ended, self.config.group_size)
            for reward, ended in zip(rollout.reward.split(self.round), rollout.ended.split(self.round))
        ]
        metrics = {"groups_that_differ": torch.stack([each.spread for each in rounds]).mean()}
        samples = torch.cat([each.counts for each in rounds]).flatten().nonzero()[:, 0]
        if len(samples):
            metrics |= self.update_actor(torch.cat([each.advantages for each in rounds]).flatten(), samples)
            self.adapt_learning_rate(float(metrics["kl"]))
        return metrics

    def update_critic(self, returns: Tensor) -> Tensor:
        """Value regression on `returns` (N,), with as many minibatches as the actor has: each of batch_size / L."""
        obs = self.rollout.obs.flatten(0, 1)
        size = max(1, self.config.batch_size // self.n_terms)
        losses = []
        for _ in range(self.config.update_epochs):
            for n in self._permutation(len(obs)).split(size):
                # L_V = 1/2 E (V(s) - R)^2
                loss = 0.5 * (self.critic(obs[n]) - returns[n]).square().mean()
                clipped_step(self.critic_optimizer, loss, self.config.max_grad_norm)
                losses.append(loss.detach())
        return torch.stack(losses).mean()

    def update_actor(self, advantages: Tensor, samples: Tensor | None = None) -> dict[str, Tensor]:
        """PPO on (sample, term) pairs; `advantages` (N,) are normalised. `samples`: those that count; None: all."""
        L, count = self.n_terms, len(advantages if samples is None else samples)
        self.before_actor_update()
        metrics: dict[str, Tensor] = {}
        for epoch in range(self.config.update_epochs):
            results = []
            for pairs in self._permutation(count * L).split(self.config.batch_size):
                n, i = pairs // L, pairs % L
                n = n if samples is None else samples[n]
                log_prob = self.new_log_prob(n, i)
                old_log_prob = self.rollout.log_prob.flatten(0, 1)[n, i]
                result = clipped_surrogate(log_prob, old_log_prob, advantages[n] * self.discount[i], self.eps[i])
                if not metrics:
                    metrics["first_ratio_error"] = self.check_first_ratio(result.ratio)
                clipped_step(self.actor_optimizer, result.loss + self.extra_loss(n, i), self.config.max_grad_norm)
                kl = self.divergence(result.ratio.log())
                results.append(torch.stack([result.loss.detach(), result.approx_kl, result.clip_fraction, kl]))
            policy_loss, approx_kl, clip_fraction, kl = torch.stack(results).mean(0)
            metrics |= {"policy_loss": policy_loss, "approx_kl": approx_kl, "clip_fraction": clip_fraction, "kl": kl}
            metrics["epochs"] = torch.tensor(epoch + 1)
            if approx_kl > self.config.target_kl:  # the one wait for the device in an epoch
                break
        return metrics

    def adapt_learning_rate(self, kl: float) -> None:
        """Towards a movement of `desired_kl` an update; half and twice of it will do (Schulman et al. 2017, sec. 4)."""
        desired = self.config.desired_kl
        if desired is None:
            return
        factor = LR_FACTOR if kl < desired / 2 else 1 / LR_FACTOR if kl > 2 * desired else 1
        for group in self.actor_optimizer.param_groups:
            group["lr"] = min(max(group["lr"] * factor, LR_RANGE[0]), LR_RANGE[1])

    def check_first_ratio(self, ratio: Tensor) -> Tensor:
        """See `burnish.finetune.losses.ppo.check_first_ratio`."""
        return check_first_ratio(ratio, self.ratio_tolerance, self.config.name)

    def _permutation(self, n: int) -> Tensor:
        return torch.randperm(n, device=self.policy.device, generator=self.generator)

    def cut_episodes(self) -> None:
        if self.config.advantages == "group":  # half an episode cannot be held against whole ones
            self.rollout.clear()
        self.rollout.cut()
        self.reward_scaler.running_return = torch.zeros_like(self.reward_scaler.running_return)

    def state_dict(self) -> dict[str, Any]:
        return {
            "policy": self.policy.state_dict(),
            "critic": self.critic.state_dict(),
            "actor_optimizer": self.actor_optimizer.state_dict(),
            "critic_optimizer": self.critic_optimizer.state_dict(),
            "reward_scaler": self.reward_scaler.state_dict(),
            "generator": generator_state(self.generator),
            "iteration": self.iteration,
            "t": self.rollout.t,
            "rollout": self.rollout.state(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.policy.load_state_dict(state["policy"])
        self.critic.load_state_dict(state["critic"])
        load_optimizer(self.actor_optimizer, state["actor_optimizer"])
        load_optimizer(self.critic_optimizer, state["critic_optimizer"])
        device = self.policy.device
        self.reward_scaler.load_state_dict({k: v.to(device) for k, v in state["reward_scaler"].items()})
        restore_generator(self.generator, state["generator"])
        self.iteration = state["iteration"]
        self.rollout.load_state(state["t"], state["rollout"])
