"""Stages written out in plain loops, from their settings alone: what an update must do, number by number.

DPPO (arXiv 2409.00588) beside a stage with the same seed; a gradient step of DPMD and SDAC (arXiv 2502.00361) from what
the stage drew. Of the package only networks and normalizers are used, so that a fault in how the rest is put together
cannot hide on both sides. Symbols as in `burnish.finetune.algorithms`.
"""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import torch
from torch import Tensor

from burnish.envs.base import ChunkStep
from burnish.finetune.algorithms import dpmd, sdac
from burnish.finetune.algorithms.dppo import DPPO
from burnish.finetune.algorithms.sdac import SDACConfig
from burnish.finetune.drawing import ReweightingStage
from burnish.finetune.storage.replay import Transitions


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
            self.adapt(metrics["kl"])
        self.iteration += 1
        self.forget()
        return metrics | {"actor_lr": self.actor_adam.lr}

    def adapt(self, kl: float) -> None:
        desired = self.config.desired_kl
        if desired is not None and kl < desired / 2:
            self.actor_adam.lr *= 1.5
        elif desired is not None and kl > desired * 2:
            self.actor_adam.lr /= 1.5

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
                losses, kls, clipped, cloning, of_chunks = [], [], [], [], []
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
                    numbers = self.policy.config.n_action_steps * self.policy.action_dim
                    joint = log_ratio.item() * (1 if config.log_prob == "joint" else numbers)
                    of_chunks.append(K_ft * joint**2 / 2)
                    clipped.append(abs(ratio.item() - 1) > eps)
                    if teacher is not None:
                        cloning.append(-self.new_log_prob(teacher, n, i, obs))
                loss = policy_loss = torch.stack(losses).mean()
                if teacher is not None:
                    loss = loss + config.bc_coef * torch.stack(cloning).mean()
                self.actor_adam.step(loss)
                results.append((float(policy_loss.detach()), np.mean(kls), np.mean(clipped), np.mean(of_chunks)))
            policy_loss, approx_kl, clip_fraction, kl = np.mean(results, axis=0)
            if approx_kl > config.target_kl:
                break
        metrics = {"policy_loss": policy_loss, "approx_kl": approx_kl, "clip_fraction": clip_fraction, "kl": kl}
        return metrics | {"epochs": epochs}


class OffPolicyByHand:
    """A gradient step of DPMD or SDAC on copies of a stage's networks, from what the stage drew meanwhile.

    The stage's random numbers are taken as they come: its batch, its samples of the old policy, and what was noised.
    Weights are those of `rsm.weights` "fixed" or "constant"; resampling takes the heaviest draws (see `heaviest`).
    """

    NETWORKS = ("critic", "target_critic", "actor", "averaged", "old")

    def of_stage(self, name: str) -> torch.nn.Module:
        """The stage's network of that name."""
        critic = self.stage.critic
        return {"critic": critic.network, "target_critic": critic.target}.get(name) or getattr(self.stage, name)

    def __init__(self, stage: ReweightingStage, monkeypatch: pytest.MonkeyPatch):
        self.stage, self.config, self.policy = stage, stage.config, stage.policy
        for name in self.NETWORKS:
            setattr(self, name, copy.deepcopy(self.of_stage(name)).requires_grad_(name in ("critic", "actor")))
        self.critic_adam = Adam(self.critic, self.config.critic_lr, self.config.max_grad_norm)
        self.actor_adam = Adam(self.actor, self.config.actor_lr, self.config.max_grad_norm)
        self.steps = self.actor_updates = 0
        self.timesteps: set[int] = set()  # that SDAC noised chunks to
        self.batches, self.samples, self.noised, self.added, self.reversed = [], [], [], [], []
        batch, sample = stage._batch, stage.policy.sample
        add_noise, reverse_noise = stage.policy.process.add_noise, sdac.reverse_noise
        denoised = stage.policy.denoise_noised

        def denoise_noised(*given):
            already = len(self.added)
            result = denoised(*given)
            del self.added[already:]  # what it noises itself is not SDAC's
            return result

        def watched_batch():
            self.batches.append(batch())
            return self.batches[-1]

        def watched_sample(obs, noise, **settings):
            result = sample(obs, noise, **settings)
            assert settings["finetuned"] is stage.old and settings["sampler"] is stage.sampler
            self.samples.append((obs, result[0]))
            return result

        def watched_denoise_noised(network, obs, x0, generator, n_timesteps):
            assert network is stage.actor and n_timesteps == stage.policy.finetuned_timesteps
            self.noised.append((obs, x0, torch.Generator().set_state(generator.get_state())))
            return denoise_noised(network, obs, x0, generator, n_timesteps)

        def watched_add_noise(x0, eps, k):
            self.added.append((x0, eps, k))
            return add_noise(x0, eps, k)

        def watched_reverse_noise(*given):
            self.reversed.append(reverse_noise(*given))
            return self.reversed[-1]

        self.denoise_noised = denoise_noised
        monkeypatch.setattr(stage, "_batch", watched_batch)
        monkeypatch.setattr(stage.policy, "sample", watched_sample)
        monkeypatch.setattr(stage.policy, "denoise_noised", watched_denoise_noised)
        monkeypatch.setattr(stage.policy.process, "add_noise", watched_add_noise)
        monkeypatch.setattr(sdac, "reverse_noise", watched_reverse_noise)
        monkeypatch.setattr(dpmd, "resample", lambda weights, n, generator: heaviest(weights, n))

    def values(self, obs: Tensor, x: Tensor) -> Tensor:
        """Least of the target's members for chunks (B, n, Tp, Da) -> (B, n)"""
        executed = x[:, :, : self.policy.config.n_action_steps].clamp(-1, 1).flatten(2)
        with torch.no_grad():
            return self.target_critic(obs, executed).min(0).values

    def weights(self, q: Tensor) -> Tensor:
        """(B, n)"""
        if self.config.rsm.weights == "constant":
            return torch.full_like(q, 1 / q.shape[1])
        e = ((q - q.max(1, keepdim=True).values) / self.config.rsm.temperature).exp()
        return e / e.sum(1, keepdim=True)

    def step(self) -> dict[str, float]:
        """One gradient step of both -> the metrics that are expected of the stage's, which are checked."""
        config = self.config
        for seen in (self.batches, self.samples, self.noised, self.added, self.reversed):
            seen.clear()
        metrics = self.stage._gradient_step()
        (batch,) = self.batches
        obs, x = self.samples.pop(0)
        assert torch.equal(obs, batch.next_obs)
        waits = self.steps < config.critic_warmup_updates or self.steps % config.policy_delay > 0 or config.freeze_actor
        shared = config.draw_at == "next" and not waits
        assert x.shape[1] == max(config.target_candidates, self.draws_for_actor() if shared else 0)
        x = x.clamp(-1, 1)
        q = self.values(obs, x)
        expected = self.update_critic(batch, q[:, : config.target_candidates])
        if not waits:
            if config.draw_at == "current":
                obs, x = self.samples.pop(0)
                assert torch.equal(obs, batch.obs) and x.shape[1] == self.draws_for_actor()
                x = x.clamp(-1, 1)
                q = self.values(obs, x)
            done = min(max((self.actor_updates - config.lr_decay_start) / config.lr_decay_updates, 0), 1)
            self.actor_adam.lr = (1 - done) * config.actor_lr + done * config.actor_lr_final
            for _ in range(config.actor_steps):
                expected["actor_loss"] = self.update_actor(batch, obs, x, q)
        assert not self.samples and not self.noised and not self.reversed, "more than was expected of the stage"
        self.steps += 1
        if self.steps % config.old_policy_every == 0:
            self.old.load_state_dict(self.actor.state_dict())
        assert {name: float(metrics[name]) for name in expected} == pytest.approx(expected, rel=1e-3, abs=1e-6)
        assert ("actor_loss" in metrics) == ("actor_loss" in expected)
        return expected

    def draws_for_actor(self) -> int:
        """SDAC noises the best of the target's candidates, and draws clean chunks of its own."""
        if isinstance(self.config, SDACConfig):
            return 0 if self.config.noisy_from == "replay" else self.config.target_candidates
        return self.config.draws

    def update_critic(self, batch: Transitions, q_next: Tensor) -> dict[str, float]:
        target = batch.reward + batch.discount * q_next.max(1).values
        numbers = self.policy.config.n_action_steps * self.policy.action_dim  # that were executed, of Tp * Da
        q = self.critic(batch.obs, batch.chunk[:, None, :numbers])[:, :, 0]
        errors = torch.stack([(member - target).square().mean() for member in q])
        self.critic_adam.step(errors.sum())
        average(self.target_critic, self.critic, self.config.tau)
        return {"critic_loss": errors.mean().item(), "q": q.mean().item()}

    def update_actor(self, batch: Transitions, obs: Tensor, x: Tensor, q: Tensor) -> float:
        config = self.config
        of_policy = self.sdac_loss(batch, obs, x, q) if isinstance(config, SDACConfig) else self.dpmd_loss(obs, x, q)
        loss = of_policy
        if config.bc_coef:
            n = round(config.demo_ratio * config.batch_size)
            output, target = self.denoised_again(batch.obs[:n], batch.chunk[:n].view(n, 1, *x.shape[2:]))
            loss = loss + config.bc_coef * (output - target).square().mean()
        self.actor_adam.step(loss)
        self.actor_updates += 1
        average(self.averaged, self.actor, config.actor_tau)
        return loss.item()

    def denoised_again(self, obs: Tensor, x0: Tensor) -> tuple[Tensor, Tensor]:
        """What the copy of the actor makes of what the stage noised, which must be `x0` at `obs`."""
        seen_obs, seen_x0, generator = self.noised.pop(0)
        torch.testing.assert_close(seen_obs, obs)
        torch.testing.assert_close(seen_x0, x0)
        return self.denoise_noised(self.actor, obs, x0, generator, self.policy.finetuned_timesteps)

    def dpmd_loss(self, obs: Tensor, x: Tensor, q: Tensor) -> Tensor:
        config = self.config
        x, q = x[:, : config.draws], q[:, : config.draws]
        rows = torch.arange(len(x))[:, None]
        if config.train_on == "best":
            best = q.argmax(1)[:, None]
            x, q = x[rows, best], q[rows, best]
        weights = self.weights(q)
        if 0 < config.resample < x.shape[1]:
            x, weights = x[rows, heaviest(weights, config.resample)], torch.tensor(1 / config.resample)
        output, target = self.denoised_again(obs, x)
        return (weights * (output - target).square().mean((2, 3))).sum(1).mean()

    def sdac_loss(self, batch: Transitions, obs: Tensor, x: Tensor, q: Tensor) -> Tensor:
        clean, noise, k = self.added.pop(0)
        if self.config.noisy_from == "replay":
            obs, expected = batch.obs, batch.chunk.view(clean.shape)
        else:
            expected = x[torch.arange(len(x)), q.argmax(1)][:, None]
        torch.testing.assert_close(clean, expected)
        assert k.shape == (len(clean), 1)
        self.timesteps |= set(k.flatten().tolist())
        abar = torch.from_numpy(cosine_signal(self.policy.config.denoising_steps)).float()[k][:, :, None, None]
        noisy = abar.sqrt() * clean + (1 - abar).sqrt() * noise
        eps = self.reversed.pop(0)
        assert eps.shape[1] == self.config.draws
        weights = self.weights(self.values(obs, (noisy - (1 - abar).sqrt() * eps) / abar.sqrt()))
        encoded = self.actor.encode(obs)
        output = self.actor(noisy, k, encoded._replace(obs=encoded.obs[:, None]))
        return (weights * (output - eps).square().mean((2, 3))).sum(1).mean()


def heaviest(weights: Tensor, n: int) -> Tensor:
    """In place of `resample`: each state's `n` draws of the largest weights."""
    return weights.topk(n, 1).indices


@torch.no_grad()
def average(mean: torch.nn.Module, module: torch.nn.Module, tau: float) -> None:
    for old, new in zip(mean.parameters(), module.parameters()):
        old.copy_((1 - tau) * old + tau * new)
