"""DPPO: PPO in the two-level MDP of denoising (Ren et al. 2024, arXiv 2409.00588).

Each of the last K' denoising transitions is a step of an inner MDP with the Gaussian policy
N(mean_i(x_i, s), std_i^2); the environment's reward enters after the last. The advantage of an environment step is
shared by its K' denoising steps, discounted by gamma_denoising^(K'-1-i).

Symbols: E environments, T chunks of a rollout, N = T E samples, M pairs of a minibatch, S transitions of the
sampler, K' (`K_ft`) fine-tuned transitions (the last), i = 0 (noisiest) .. K'-1 among them, To, Tp, Ta, Do, Da as in
`burnish.policies.diffusion`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from burnish.config import WrongValue, key
from burnish.diffusion import Chain, Sampler, StdBounds, gaussian_log_prob
from burnish.envs.base import ChunkStep
from burnish.errors import BurnishError, warn
from burnish.finetune.losses.gae import RewardScaler, gae
from burnish.finetune.losses.ppo import (
    chain_kl,
    chunk_log_prob,
    clip_range,
    clipped_surrogate,
    denoising_discount,
    normalize_advantages,
)
from burnish.finetune.stage import Setting, Stage, StageConfig
from burnish.networks import Denoiser, ValueNetwork
from burnish.networks.optimise import clipped_step
from burnish.policies.diffusion import DiffusionPolicy
from burnish.runs.state import generator_state, restore_generator

RATIO_TOLERANCE = 1e-5  # of |ratio - 1| before any update, for an averaged log-probability
FEW_EPISODES = 16  # in a rollout; with a sparse reward the advantages of fewer are noise
LR_FACTOR, LR_RANGE = 1.5, (1e-6, 1e-2)  # by which the learning rate is adapted, and within which


@dataclass(frozen=True)
class DPPOConfig(StageConfig):
    """Settings of DPPO; docs/dppo.md says where the paper has other defaults."""

    EXPLORATION: ClassVar[str] = "min_sampling_denoising_std"
    FIRST_UPDATE: ClassVar[tuple[str, ...]] = ("n_steps", "rollout_episodes")

    name: Literal["dppo"] = "dppo"
    ft_denoising_steps: int = key(10, "K', the last denoising steps, which are fine-tuned", least=1)
    sampler: Literal["inherit", "ddpm", "ddim"] = key(
        "inherit", "inherit (the policy's), ddpm, or ddim (trained with eta 1, evaluated with eta 0)"
    )
    ddim_steps: int = key(5, "with sampler=ddim", least=1)
    n_steps: int | None = key(
        None, "T, chunks in each environment between two updates (null: what rollout_episodes take)", least=1
    )
    rollout_episodes: int = key(
        32,
        "whole episodes between two updates, of all environments together: the advantages of a sparse reward need them",
        least=1,
    )
    gamma: float = key(0.99, "discount per chunk", least=0, most=1)
    gae_lambda: float = key(0.95, "per chunk", least=0, most=1)
    gamma_denoising: float = key(0.99, "discount per denoising step", least=0, most=1)
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
    batch_size: int = key(4000, "(sample, denoising step) pairs a minibatch", least=1)
    clip_coef: float = key(0.02, "clip range at the last denoising step", above=0)
    clip_coef_base: float = key(0.02, "and at the first that is fine-tuned", least=0)
    clip_coef_rate: float = key(3.0, "how fast it grows in between", least=0)
    min_sampling_denoising_std: float = key(0.05, "floor of the exploration noise", least=0)
    max_sampling_denoising_std: float | None = key(None, "ceiling of it (null: none)", least=0)
    min_logprob_denoising_std: float = key(0.05, "floor of std in log-probabilities", above=0)
    randn_clip: float = key(
        3.0, "bound that a denoising step's noise is clipped to, in standard deviations", above=0, most=math.inf
    )
    log_prob: Literal["mean", "joint"] = key(
        "mean", "mean of clamped elements (the authors' code), or joint (then raise clip_coef about Ta * Da times)"
    )
    adv_quantile_low: float = key(0.0, "advantages are clipped at this quantile", least=0, most=1)
    adv_quantile_high: float = key(1.0, "and at this", least=0, most=1)
    target_kl: float = key(1.0, "no further epoch once the approximate KL of one exceeds it", above=0, most=math.inf)
    critic_warmup_iterations: int = key(1, "first updates that train the critic only", least=0)
    reward_scaling: bool = key(True, "divide rewards by the running std of the discounted return")
    bc_coef: float = key(0.0, "weight of - log-probability of the pretrained policy's chains", least=0)

    def check(self) -> None:
        if self.adv_quantile_low >= self.adv_quantile_high:
            raise WrongValue(
                f"adv_quantile_low={self.adv_quantile_low} must be less than adv_quantile_high={self.adv_quantile_high}"
            )
        if self.min_sampling_denoising_std < self.min_logprob_denoising_std:
            raise WrongValue(
                f"min_sampling_denoising_std={self.min_sampling_denoising_std} is less than "
                f"min_logprob_denoising_std={self.min_logprob_denoising_std}: the likelihood ratios would be biased"
            )
        self.sampling_bounds()

    def sampling_bounds(self) -> StdBounds:
        """Floor and ceiling of the standard deviation when acting."""
        ceiling = self.max_sampling_denoising_std
        return StdBounds(self.min_sampling_denoising_std, float("inf") if ceiling is None else ceiling)

    def logprob_bounds(self) -> StdBounds:
        """Floor and ceiling of the standard deviation in log-probabilities."""
        return replace(self.sampling_bounds(), floor=self.min_logprob_denoising_std)


class Rollout(NamedTuple):
    """T chunks in E environments; (N, ...) once flattened."""

    obs: Tensor  # (T, E, To * Do) normalised
    final_obs: Tensor  # (T, E, To * Do) normalised; what the chunk truly led to
    chain: Tensor  # (T, E, K' + 1, Tp, Da)
    log_prob: Tensor  # (T, E, K') of the chain, as sampled
    reward: Tensor  # (T, E)
    terminated: Tensor  # (T, E) bool
    truncated: Tensor  # (T, E) bool


class DPPO(Stage):
    """See the module's docstring.

    Args:
        policy: pretrained, or fine-tuned before (then its fine-tuned denoiser goes on).
    """

    Config = DPPOConfig
    policy: DiffusionPolicy

    def __init__(self, policy: DiffusionPolicy, config: DPPOConfig, setting: Setting):
        self.policy, self.config = policy, config
        if policy.finetuned is None:
            if config.sampler != "inherit":
                policy.set_sampler(config.sampler, config.ddim_steps)
            policy.start_finetuning(config.ft_denoising_steps, from_scratch=not setting.pretrained)
        elif policy.ft_denoising_steps != config.ft_denoising_steps:
            raise BurnishError(
                f"stage.ft_denoising_steps={config.ft_denoising_steps}, but the policy was fine-tuned with "
                f"{policy.ft_denoising_steps} before"
            )
        elif config.sampler not in ("inherit", policy.config.sampler):
            raise BurnishError(
                f"stage.sampler={config.sampler}, but the policy was fine-tuned with {policy.config.sampler} before"
            )
        assert policy.finetuned is not None
        self.actor: Denoiser = policy.finetuned
        # DDIM: eta = 1 to train, so that every transition has noise; the policy's own sampler evaluates
        own = policy.config
        self.sampler = Sampler(policy.process, own.sampler, own.ddim_steps, eta=1.0, temperature=own.temperature)
        self.sampler.to(policy.device)
        self.logprob_std = self.sampler.bounded_std(config.logprob_bounds())  # (S,)
        K_ft = config.ft_denoising_steps
        self.first = len(self.sampler) - K_ft  # transition of i = 0
        device = policy.device
        self.discount = denoising_discount(K_ft, config.gamma_denoising, device)
        self.eps = clip_range(K_ft, config.clip_coef, config.clip_coef_base, config.clip_coef_rate, device)
        obs_dim = policy.config.n_obs_steps * policy.obs_dim
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(setting.seed)
            self.critic = ValueNetwork(obs_dim).to(device)
        self.actor_optimizer = torch.optim.Adam(self.actor.parameters(), lr=config.actor_lr, fused=True)
        self.critic_optimizer = torch.optim.Adam(self.critic.parameters(), lr=config.critic_lr, fused=True)
        self.reward_scaler = RewardScaler(setting.n_envs, config.gamma, device)
        self.generator = torch.Generator(device).manual_seed(setting.seed)
        self.chunks_per_update = self.n_steps = config.n_steps or self._enough_steps(setting)
        held = self.n_steps * setting.n_envs / self._longest_episode(setting)
        if setting.task.measure == "success_rate" and held < FEW_EPISODES:
            warn(
                f"a rollout of {self.n_steps} chunks in {setting.n_envs} environments holds {held:.1f} of the longest "
                f"episodes: expected at least {FEW_EPISODES}, as a success is rare news "
                f"(stage.n_steps={FEW_EPISODES * self.n_steps / held:.0f}, or null with stage.rollout_episodes)"
            )
        self.iteration = 0
        self.t = 0  # chunks in the rollout
        self.rollout = self._empty_rollout(setting.n_envs, obs_dim)

    def _enough_steps(self, setting: Setting) -> int:
        """Chunks in each environment that hold `rollout_episodes` of the longest episodes."""
        return math.ceil(self.config.rollout_episodes * self._longest_episode(setting) / setting.n_envs)

    def _longest_episode(self, setting: Setting) -> int:
        """In chunks."""
        return math.ceil(setting.task.max_episode_steps / self.policy.config.n_action_steps)

    def _empty_rollout(self, n_envs: int, obs_dim: int) -> Rollout:
        T, K_ft, config, device = (
            self.n_steps,
            self.config.ft_denoising_steps,
            self.policy.config,
            self.policy.device,
        )
        shape = (T, n_envs)
        return Rollout(
            obs=torch.zeros(*shape, obs_dim, device=device),
            final_obs=torch.zeros(*shape, obs_dim, device=device),
            chain=torch.zeros(*shape, K_ft + 1, config.horizon, self.policy.action_dim, device=device),
            log_prob=torch.zeros(*shape, K_ft, device=device),
            reward=torch.zeros(shape, device=device),
            terminated=torch.zeros(shape, dtype=torch.bool, device=device),
            truncated=torch.zeros(shape, dtype=torch.bool, device=device),
        )

    @torch.no_grad()
    def act(self, obs: np.ndarray) -> np.ndarray:
        normalized = self.policy.normalized_obs(torch.as_tensor(obs, device=self.policy.device))
        x, chain = self._sample(normalized)
        self.rollout.obs[self.t] = normalized
        self.rollout.chain[self.t] = chain.x
        self.rollout.log_prob[self.t] = self._log_prob(chain.x[:, 1:], chain.mean, self.logprob_std[self.first :])
        return self.policy.executed_actions(x).cpu().numpy()

    def _sample(self, obs: Tensor, *, pretrained: bool = False) -> tuple[Tensor, Chain]:
        noise = self.policy.draw_noise(len(obs), generator=self.generator)
        return self.policy.sample(
            obs,
            noise,
            sampler=self.sampler,
            bounds=self.config.sampling_bounds(),
            noise_clip=self.config.randn_clip,
            keep=self.config.ft_denoising_steps,
            pretrained=pretrained,
        )

    def _log_prob(self, x: Tensor, mean: Tensor, std: Tensor) -> Tensor:
        """Of transitions to `x` (..., Tp, Da) with `std` broadcast over the leading dimensions -> (...)."""
        elements = gaussian_log_prob(x, mean, std[..., None, None])
        return chunk_log_prob(elements, self.policy.config.n_action_steps, self.config.log_prob)

    def observe(self, step: ChunkStep) -> None:
        device, rollout, t = self.policy.device, self.rollout, self.t
        rollout.reward[t] = torch.as_tensor(step.reward, device=device)
        rollout.terminated[t] = torch.as_tensor(step.terminated, device=device)
        rollout.truncated[t] = torch.as_tensor(step.truncated, device=device)
        final_obs = torch.as_tensor(step.final_obs, device=device)
        rollout.final_obs[t] = self.policy.normalized_obs(final_obs)
        self.t += 1

    def ready(self) -> bool:
        return self.t == self.n_steps

    def update(self) -> dict[str, float]:
        rollout = self.rollout
        rewards = rollout.reward
        if self.config.reward_scaling:
            rewards = self.reward_scaler(rewards, rollout.terminated | rollout.truncated)
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
            "value_loss": self._update_critic(returns.flatten()),
        }
        if self.iteration >= self.config.critic_warmup_iterations:
            quantiles = (self.config.adv_quantile_low, self.config.adv_quantile_high)
            metrics |= self._update_actor(normalize_advantages(advantages.flatten(), quantiles))
            self._adapt_learning_rate(float(metrics["kl"]))
        self.iteration += 1
        self.t = 0
        metrics["actor_lr"] = torch.tensor(self.actor_optimizer.param_groups[0]["lr"])
        return {key: float(value) for key, value in metrics.items()}

    def _update_critic(self, returns: Tensor) -> Tensor:
        """Value regression, with as many minibatches as the actor has: each has batch_size / K' samples."""
        obs = self.rollout.obs.flatten(0, 1)
        size = max(1, self.config.batch_size // self.config.ft_denoising_steps)
        losses = []
        for _ in range(self.config.update_epochs):
            for n in self._permutation(len(obs)).split(size):
                # L_V = 1/2 E (V(s) - R)^2
                loss = 0.5 * (self.critic(obs[n]) - returns[n]).square().mean()
                clipped_step(self.critic_optimizer, loss, self.config.max_grad_norm)
                losses.append(loss.detach())
        return torch.stack(losses).mean()

    def _update_actor(self, advantages: Tensor) -> dict[str, Tensor]:
        """PPO on (sample, denoising step) pairs; `advantages` (N,) are normalised."""
        K_ft = self.config.ft_denoising_steps
        teacher = self._teacher_chains() if self.config.bc_coef else None
        metrics: dict[str, Tensor] = {}
        for epoch in range(self.config.update_epochs):
            results = []
            for pairs in self._permutation(len(advantages) * K_ft).split(self.config.batch_size):
                n, i = pairs // K_ft, pairs % K_ft
                log_prob = self._new_log_prob(self.rollout.chain.flatten(0, 1), n, i)
                old_log_prob = self.rollout.log_prob.flatten(0, 1)[n, i]
                result = clipped_surrogate(log_prob, old_log_prob, advantages[n] * self.discount[i], self.eps[i])
                if not metrics:
                    metrics["first_ratio_error"] = self._check_first_ratio(result.ratio)
                loss = result.loss
                if teacher is not None:
                    # eq. 2 of arXiv 2403.03949: the likelihood of the pretrained policy's chains
                    loss = loss - self.config.bc_coef * self._new_log_prob(teacher, n, i).mean()
                clipped_step(self.actor_optimizer, loss, self.config.max_grad_norm)
                kl = chain_kl(result.ratio.log(), K_ft, self.elements, self.config.log_prob)
                results.append(torch.stack([result.loss.detach(), result.approx_kl, result.clip_fraction, kl]))
            policy_loss, approx_kl, clip_fraction, kl = torch.stack(results).mean(0)
            metrics |= {"policy_loss": policy_loss, "approx_kl": approx_kl, "clip_fraction": clip_fraction, "kl": kl}
            metrics["epochs"] = torch.tensor(epoch + 1)
            if approx_kl > self.config.target_kl:  # the one wait for the device in an epoch
                break
        return metrics

    def _adapt_learning_rate(self, kl: float) -> None:
        """Towards a movement of `desired_kl` an update; half and twice of it will do (Schulman et al. 2017, sec. 4)."""
        if self.config.desired_kl is None:
            return
        factor = (
            LR_FACTOR if kl < self.config.desired_kl / 2 else 1 / LR_FACTOR if kl > 2 * self.config.desired_kl else 1
        )
        for group in self.actor_optimizer.param_groups:
            group["lr"] = min(max(group["lr"] * factor, LR_RANGE[0]), LR_RANGE[1])

    @property
    def elements(self) -> int:
        """Executed numbers of a chunk."""
        return self.policy.config.n_action_steps * self.policy.action_dim

    def _new_log_prob(self, chain: Tensor, n: Tensor, i: Tensor) -> Tensor:
        """Log-probability under the present actor of step `i` (M,) of samples `n` (M,) of `chain` -> (M,)."""
        x, x_next = chain[n, i], chain[n, i + 1]  # (M, Tp, Da)
        transition = self.first + i
        encoded = self.actor.encode(self.rollout.obs.flatten(0, 1)[n])
        output = self.actor(x, self.sampler.timesteps[transition], encoded)
        return self._log_prob(x_next, self.sampler.mean(output, x, transition), self.logprob_std[transition])

    @torch.no_grad()
    def _teacher_chains(self) -> Tensor:
        """Chains of the pretrained policy at the rollout's observations -> (N, K' + 1, Tp, Da)."""
        return self._sample(self.rollout.obs.flatten(0, 1), pretrained=True)[1].x

    def _check_first_ratio(self, ratio: Tensor) -> Tensor:
        """Before any update the likelihood ratio is 1, or something is broken and no result can be trusted."""
        error = (ratio - 1).abs().max()
        tolerance = RATIO_TOLERANCE * (self.elements if self.config.log_prob == "joint" else 1)
        if not error <= tolerance:
            raise RuntimeError(
                f"DPPO: before the update the likelihood ratio differs from 1 by {float(error):.2e} "
                f"(allowed: {tolerance:.0e}): sampling and update disagree about the policy"
            )
        return error

    def _permutation(self, n: int) -> Tensor:
        return torch.randperm(n, device=self.policy.device, generator=self.generator)

    def cut_episodes(self) -> None:
        if self.t:
            self.rollout.truncated[self.t - 1] = ~self.rollout.terminated[self.t - 1]
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
            "t": self.t,
            "rollout": [tensor[: self.t].clone() for tensor in self.rollout],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.policy.load_state_dict(state["policy"])
        self.critic.load_state_dict(state["critic"])
        self.actor_optimizer.load_state_dict(state["actor_optimizer"])
        self.critic_optimizer.load_state_dict(state["critic_optimizer"])
        device = self.policy.device
        self.reward_scaler.load_state_dict({k: v.to(device) for k, v in state["reward_scaler"].items()})
        restore_generator(self.generator, state["generator"])
        self.iteration, self.t = state["iteration"], state["t"]
        for ours, saved in zip(self.rollout, state["rollout"]):
            ours[: self.t] = saved.to(device)
