"""DPPO written out in plain loops, from its settings alone: what a stage must do, number by number.

Nothing of `burnish.diffusion` or `burnish.finetune` is used here but the networks and the normalizers, so that a fault
in how they are put together cannot hide on both sides (arXiv 2409.00588; symbols as in `burnish...dppo`).
"""

from __future__ import annotations

import copy
import math

import numpy as np
import torch
from torch import Tensor

from burnish.envs.base import ChunkStep
from burnish.finetune.algorithms.dppo import DPPO


class Adam:
    """Adam (Kingma & Ba 2015) with the gradient's norm clipped, on the parameters of `module`."""

    def __init__(self, module: torch.nn.Module, lr: float, max_grad_norm: float):
        self.parameters = list(module.parameters())
        self.lr, self.max_grad_norm, self.t = lr, max_grad_norm, 0
        self.m = [torch.zeros_like(p) for p in self.parameters]
        self.v = [torch.zeros_like(p) for p in self.parameters]

    def step(self, loss: Tensor) -> None:
        gradients = torch.autograd.grad(loss, self.parameters)
        norm = math.sqrt(sum(float(g.double().square().sum()) for g in gradients))
        self.t += 1
        with torch.no_grad():
            for parameter, gradient, m, v in zip(self.parameters, gradients, self.m, self.v):
                clipped = gradient * min(1.0, self.max_grad_norm / (norm + 1e-6))
                m.mul_(0.9).add_(0.1 * clipped)
                v.mul_(0.999).add_(0.001 * clipped * clipped)
                parameter.sub_(self.lr * (m / (1 - 0.9**self.t)) / ((v / (1 - 0.999**self.t)).sqrt() + 1e-8))


def cosine_signal(K: int) -> np.ndarray:
    """abar_k of the cosine schedule (Nichol & Dhariwal 2021), betas at most 0.999."""
    f = [math.cos((k / K + 0.008) / 1.008 * math.pi / 2) ** 2 for k in range(K + 1)]
    return np.cumprod([1 - min(1 - f[k + 1] / f[k], 0.999) for k in range(K)])


class DPPOByHand:
    """Does what `stage` (fresh, with a cosine schedule that predicts epsilon) shall do, beside it."""

    def __init__(self, stage: DPPO, n_envs: int, seed: int):
        self.config, self.policy = stage.config, copy.deepcopy(stage.policy)
        self.base, self.actor, self.critic = self.policy.denoiser, self.policy.finetuned, copy.deepcopy(stage.critic)
        config, chunks = self.config, self.policy.config
        self.generator = torch.Generator().manual_seed(seed)
        self.actor_adam = Adam(self.actor, config.actor_lr, config.max_grad_norm)
        self.critic_adam = Adam(self.critic, config.critic_lr, config.max_grad_norm)
        K = chunks.denoising_steps
        kind = chunks.sampler if config.sampler == "inherit" else config.sampler
        self.ks = list(range(K) if kind == "ddpm" else range(0, K, K // config.ddim_steps))[::-1]
        self.abar = cosine_signal(K)
        self.S, self.K_ft = len(self.ks), config.ft_denoising_steps
        self.ceiling = math.inf if config.max_sampling_denoising_std is None else config.max_sampling_denoising_std
        self.running, self.history = np.zeros(n_envs), []  # discounted returns, now and all so far
        self.iteration = 0
        self.forget()

    def forget(self) -> None:
        self.obs, self.chains, self.old_log_probs, self.steps = [], [], [], []

    def network(self, i: int, pretrained: bool = False) -> torch.nn.Module:
        return self.base if pretrained or i < self.S - self.K_ft else self.actor

    def transition(self, i: int, x: Tensor, obs: Tensor, network: torch.nn.Module) -> tuple[Tensor, float]:
        """Mean, and standard deviation before any bound, of transition i at x (B, Tp, Da): the posterior of the
        forward process between two of its steps, which DDIM's is for eta = 1."""
        k = self.ks[i]
        a, before = self.abar[k], self.abar[self.ks[i + 1]] if i + 1 < self.S else 1.0
        eps = network(x, torch.full((len(x),), k), network.encode(obs))
        x0 = ((x - math.sqrt(1 - a) * eps) / math.sqrt(a)).clamp(-1, 1)
        beta = 1 - a / before
        mean = math.sqrt(before) * beta / (1 - a) * x0 + math.sqrt(1 - beta) * (1 - before) / (1 - a) * x
        return mean, math.sqrt(beta * (1 - before) / (1 - a))

    def log_prob(self, x: Tensor, mean: Tensor, std: float) -> Tensor:
        """Of transitions to x (B, Tp, Da) -> (B,)"""
        std = min(max(std, self.config.min_logprob_denoising_std), self.ceiling)
        each = torch.distributions.Normal(mean, std).log_prob(x)[:, : self.policy.config.n_action_steps]
        if self.config.log_prob == "joint":
            return each.flatten(1).sum(1)
        return each.clamp(-5, 2).flatten(1).mean(1)

    def sample(self, obs: Tensor, pretrained: bool = False) -> tuple[Tensor, Tensor, Tensor]:
        """The chunk, the last K' + 1 states of its chain, and the log-probabilities of the transitions in between."""
        B, shape = len(obs), (self.policy.config.horizon, self.policy.action_dim)
        noise = torch.randn(self.S + 1, B, *shape, generator=self.generator)
        x, states, log_probs = noise[0], [noise[0]], []
        with torch.no_grad():
            for i in range(self.S):
                mean, std = self.transition(i, x, obs, self.network(i, pretrained))
                floored = min(max(std, self.config.min_sampling_denoising_std), self.ceiling)
                x = mean + floored * noise[i + 1].clamp(-self.config.randn_clip, self.config.randn_clip)
                states.append(x)
                log_probs.append(self.log_prob(x, mean, std))
        return x, torch.stack(states[-self.K_ft - 1 :], 1), torch.stack(log_probs[-self.K_ft :], 1)

    def normalised(self, obs: np.ndarray) -> Tensor:
        normalizer = self.policy.obs_normalizer
        return ((torch.from_numpy(obs) - normalizer.offset) / normalizer.scale).flatten(1)

    def act(self, obs: np.ndarray) -> np.ndarray:
        self.obs.append(self.normalised(obs))
        x, chain, log_prob = self.sample(self.obs[-1])
        self.chains.append(chain)
        self.old_log_probs.append(log_prob)
        normalizer = self.policy.action_normalizer
        executed = x[:, : self.policy.config.n_action_steps].clamp(-1, 1)
        return (executed * normalizer.scale + normalizer.offset).numpy()

    def observe(self, step: ChunkStep) -> None:
        self.steps.append(step)

    def targets(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Values, advantages and returns (T, E), each from its own definition."""
        gamma, lam = self.config.gamma, self.config.gae_lambda
        rewards = np.stack([step.reward for step in self.steps]).astype(float)
        terminated, truncated = (
            np.stack([getattr(s, name) for s in self.steps]) for name in ("terminated", "truncated")
        )
        ended = terminated | truncated
        if self.config.reward_scaling:
            for t in range(len(rewards)):
                self.running = gamma * self.running + rewards[t]
                self.history.append(self.running)
                self.running = np.where(ended[t], 0, self.running)
            rewards = rewards / np.std(self.history)
        with torch.no_grad():
            values = np.stack([self.critic(obs).numpy() for obs in self.obs]).astype(float)
            # what the chunk truly led to: of an ended episode its own last observation
            after = np.stack([self.critic(self.normalised(step.final_obs)).numpy() for step in self.steps])
        delta = rewards + gamma * np.where(terminated, 0, after) - values
        advantages = np.zeros_like(delta)
        T, E = delta.shape
        for e in range(E):
            for t in range(T):
                for later in range(t, T):
                    advantages[t, e] += (gamma * lam) ** (later - t) * delta[later, e]
                    if ended[later, e]:
                        break
        return values, advantages, advantages + values

    def update(self) -> dict[str, float]:
        config = self.config
        values, advantages, returns = self.targets()
        metrics = {
            "explained_variance": 1 - np.var(returns - values, ddof=1) / np.var(returns, ddof=1),
            "value_loss": self.update_critic(torch.from_numpy(returns).flatten().float()),
        }
        if self.iteration >= config.critic_warmup_iterations:
            normalised = (advantages - advantages.mean()) / np.std(advantages, ddof=1)
            low, high = np.quantile(normalised, [config.adv_quantile_low, config.adv_quantile_high])
            metrics |= self.update_actor(normalised.clip(low, high).flatten())
        self.iteration += 1
        self.forget()
        return metrics

    def update_critic(self, returns: Tensor) -> float:
        obs, losses = torch.cat(self.obs), []
        size = max(1, self.config.batch_size // self.K_ft)
        for _ in range(self.config.update_epochs):
            order = torch.randperm(len(obs), generator=self.generator)
            for start in range(0, len(obs), size):
                n = order[start : start + size]
                loss = ((self.critic(obs[n]) - returns[n]) ** 2).mean() / 2
                self.critic_adam.step(loss)
                losses.append(float(loss.detach()))
        return float(np.mean(losses))

    def new_log_prob(self, chain: Tensor, n: int, i: int, obs: Tensor) -> Tensor:
        """Of fine-tuned step i of sample n under the present actor."""
        mean, std = self.transition(self.S - self.K_ft + i, chain[n : n + 1, i], obs[n : n + 1], self.actor)
        return self.log_prob(chain[n : n + 1, i + 1], mean, std)[0]

    def update_actor(self, advantages: np.ndarray) -> dict[str, float]:
        config, K_ft = self.config, self.K_ft
        obs, chain, old = torch.cat(self.obs), torch.cat(self.chains), torch.cat(self.old_log_probs)
        teacher = self.sample(obs, pretrained=True)[1] if config.bc_coef else None
        epochs = 0
        for _ in range(config.update_epochs):
            epochs += 1
            order = torch.randperm(len(obs) * K_ft, generator=self.generator).tolist()
            results = []
            for start in range(0, len(order), config.batch_size):
                losses, kls, clipped, cloning = [], [], [], []
                for pair in order[start : start + config.batch_size]:
                    n, i = divmod(pair, K_ft)
                    log_ratio = self.new_log_prob(chain, n, i, obs) - old[n, i]
                    ratio = log_ratio.exp()
                    advantage = advantages[n] * config.gamma_denoising ** (K_ft - 1 - i)
                    eps = config.clip_coef
                    if K_ft > 1:
                        growth = math.expm1(config.clip_coef_rate * i / (K_ft - 1)) / math.expm1(config.clip_coef_rate)
                        eps = config.clip_coef_base + (config.clip_coef - config.clip_coef_base) * growth
                    losses.append(-torch.minimum(ratio * advantage, ratio.clamp(1 - eps, 1 + eps) * advantage))
                    kls.append((ratio - 1 - log_ratio).item())
                    clipped.append(abs(ratio.item() - 1) > eps)
                    if teacher is not None:
                        cloning.append(-self.new_log_prob(teacher, n, i, obs))
                loss = policy_loss = torch.stack(losses).mean()
                if teacher is not None:
                    loss = loss + config.bc_coef * torch.stack(cloning).mean()
                self.actor_adam.step(loss)
                results.append((float(policy_loss.detach()), np.mean(kls), np.mean(clipped)))
            policy_loss, approx_kl, clip_fraction = np.mean(results, axis=0)
            if approx_kl > config.target_kl:
                break
        return {"policy_loss": policy_loss, "approx_kl": approx_kl, "clip_fraction": clip_fraction, "epochs": epochs}
