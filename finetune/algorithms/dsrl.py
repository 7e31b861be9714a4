"""DSRL: the pretrained policy stays as it is, an actor learns which noise it starts from (Wagenmaker et al. 2025, arXiv
2506.15799).

Sampled deterministically the base is a function a = F(s, w) of its noise, and w an action of an environment of its
own, in which soft actor-critic learns (`burnish.policies.steered`: u = w / magnitude, u = tanh(..) of a Gaussian).
Two forms, by what the critic judges (`critic_of`):

    noise      DSRL-SAC: Q(s, u) by temporal differences; the stored "chunks" are u.
    actions    DSRL-NA, noise-aliased: Q(s, a) by temporal differences on what was executed, demonstrations among it,
               and Q_W(s, u), distilled from it over the base's own noise: many w give one a, and this one learns of
               all of them.

Symbols: those of `burnish.finetune.off_policy`, alpha the temperature of the entropy.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
import torch
from torch import Tensor

from burnish.config import WrongValue, key
from burnish.errors import BurnishError
from burnish.finetune.off_policy import OffPolicyConfig, OffPolicyStage
from burnish.finetune.stage import Setting
from burnish.finetune.storage.replay import Batch
from burnish.networks import CriticConfig, QEnsemble
from burnish.networks.optimise import clipped_step
from burnish.networks.squashed import EntropyTemperature, SquashedConfig
from burnish.policies.base import Policy
from burnish.policies.diffusion import DiffusionPolicy
from burnish.policies.steered import SteeredConfig, SteeredPolicy


@dataclass(frozen=True)
class DSRLConfig(OffPolicyConfig):
    """Settings of DSRL, see `OffPolicyConfig`; docs/frozen_base.md says where the paper has other defaults."""

    name: Literal["dsrl"] = "dsrl"
    critic: CriticConfig = key(factory=CriticConfig)
    n_step: int = key(1, "chunks of rewards in the target before it bootstraps", least=1)
    n_candidates: int = key(1, "chunks sampled for each that is executed", least=1)
    demo_ratio: float = key(0.0, "share of each batch that is demonstrations; of critic_of=actions", least=0, below=1)
    critic_of: Literal["actions", "noise"] = key("actions", "actions (DSRL-NA) or noise (DSRL-SAC)")
    magnitude: float = key(1.5, "bound of each number of the noise (the base was trained with N(0, 1))", above=0)
    base_steps: int | None = key(
        None, "S, deterministic denoising steps of the base (null: its own number of DDIM or Euler steps)", least=1
    )
    actor: SquashedConfig = key(factory=SquashedConfig, doc="that gives the noise")
    actor_lr: float = key(3e-4, "of Adam", above=0)
    alpha: float = key(0.1, "temperature of the entropy, at first", above=0)
    alpha_lr: float = key(3e-4, "of Adam; 0: alpha stays", least=0)
    target_entropy: float = key(0.0, "nats of u = w / magnitude, to which alpha drives the actor's entropy")
    distill_every: int = key(
        2, "gradient steps for each distillation of the noise's critic, with critic_of=actions", least=1
    )

    def check(self) -> None:
        super().check()
        if self.critic_of == "noise" and self.demo_ratio:
            raise WrongValue(
                f"demo_ratio={self.demo_ratio}: expected 0 with critic_of=noise, no demonstration tells its noise"
            )


class DSRL(OffPolicyStage):
    """See the module's docstring.

    Args:
        policy: pretrained, which becomes the base of a steered one; or steered before, which goes on.
    """

    kinds = ("diffusion", "flow", "steered")
    Config = DSRLConfig
    config: DSRLConfig
    policy: SteeredPolicy
    PARTS: ClassVar[dict[str, str]] = {
        **OffPolicyStage.PARTS,
        "next_values": "target",
        "_actor_step": "actor and alpha",
        "_distill": "distillation",
    }
    STATEFUL = (
        *(*OffPolicyStage.STATEFUL, "actor_optimizer", "entropy", "alpha_optimizer"),
        *("noise_critic", "noise_optimizer"),
    )

    def __init__(self, policy: Policy, config: DSRLConfig, setting: Setting):
        if not setting.pretrained:
            raise BurnishError("stage=dsrl steers a pretrained policy: expected policy=FOLDER of burnish finetune")
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(setting.seed)
            steered = self._steered(policy, config)
            super().__init__(steered, config, setting)
            self.noise_critic = self.critic.network  # Q_W
            if config.critic_of == "actions":
                dim = steered.config.horizon * steered.action_dim
                noise_critic = QEnsemble(config.critic, steered.features, dim)
                self.noise_critic = steered.seeing(noise_critic).to(steered.device)
        self.noise_optimizer = torch.optim.Adam(self.noise_critic.parameters(), lr=config.critic_lr, fused=True)
        self.actor = steered.actor.requires_grad_(True)
        self.actor_optimizer = torch.optim.Adam(self.actor.parameters(), lr=config.actor_lr, fused=True)
        self.entropy = EntropyTemperature(config.alpha, config.target_entropy).to(steered.device)
        self.alpha_optimizer = torch.optim.Adam(self.entropy.parameters(), lr=config.alpha_lr, fused=True)

    @staticmethod
    def _steered(policy: Policy, config: DSRLConfig) -> SteeredPolicy:
        own = {name: getattr(config, name) for name in ("actor", "magnitude", "base_steps", "critic_of")}
        if isinstance(policy, SteeredPolicy):
            for name, value in own.items():
                if value != (found := getattr(policy.config, name)):
                    raise BurnishError(f"stage.{name}={value}, but the policy was steered with {found} before")
            return policy
        assert isinstance(policy, DiffusionPolicy)
        try:
            return SteeredPolicy(SteeredConfig.around(policy, **own), policy).eval()
        except BurnishError as error:
            raise BurnishError(f"stage=dsrl: {error}") from error

    def draw(self, obs: Tensor, n: int) -> tuple[Tensor, Tensor]:
        """Noise u (B, n, Tp, Da) of the present actor at `obs` (B, To * W), and its log-probability (B, n); of the
        base, N(0, I) and 0, until the actor has learned something."""
        z = self.normal(len(obs), n)
        if self.policy.steers:
            return self.policy.noise(obs, z)
        return z / self.policy.config.magnitude, z.new_zeros(z.shape[:2])

    def normal(self, *shape: int) -> Tensor:
        """Standard normal numbers (*shape, Tp, Da)."""
        return self.policy.base.draw_noise(*shape, generator=self.generator)[0]

    def judged(self, obs: Tensor, u: Tensor) -> Tensor:
        """Of noise `u` (B, n, Tp, Da) what the critic judges, and the replay stores, of the same shape."""
        return u.clamp(-1, 1) if self.config.critic_of == "noise" else self.policy.chunks_of(obs, u)

    def candidates(self, obs: Tensor, n: int) -> Tensor:
        """Chunks, or the noise in their place: what is stored."""
        return self.judged(obs, self.draw(obs, n)[0])

    def noised(self, x: Tensor, std: float) -> Tensor:
        """Of noise the bounds are its own."""
        if self.config.critic_of == "actions":
            return super().noised(x, std)
        return (x + std * self.normal(len(x))).clamp(-1, 1)

    def act(self, obs: np.ndarray) -> np.ndarray:
        actions = super().act(obs)
        if self.config.critic_of == "actions":
            return actions
        assert self.pending is not None
        normalized, u = self.pending
        return self.policy.executed_actions(self.policy.chunks_of(normalized, u[:, None])[:, 0]).cpu().numpy()

    @torch.no_grad()
    def next_values(self, batch: Batch) -> Tensor:
        # Qbar(s', a') - alpha log pi(u' | s'), a' = F(s', w'): y = r + gamma^h (1 - terminated) min_j of it
        u, log_prob = self.draw(batch.next_obs, 1)
        q = self.critic.target(batch.next_obs, self.policy.critic_input(self.judged(batch.next_obs, u)))
        return q - self.entropy.alpha * log_prob

    def update_actor(self, batch: Batch) -> dict[str, Tensor]:
        metrics: dict[str, Tensor] = {}
        if self.gradient_steps >= self.config.critic_warmup_updates:
            metrics |= self._actor_step(batch.obs)
        if self.config.critic_of == "actions" and self.gradient_steps % self.config.distill_every == 0:
            metrics["noise_critic_loss"] = self._distill(batch.obs)
        return metrics

    def _actor_step(self, obs: Tensor) -> dict[str, Tensor]:
        u, log_prob = self.policy.noise(obs, self.normal(len(obs), 1))
        alpha = self.entropy.alpha
        # L = E alpha log pi(u | s) - min_j Q_W,j(s, u)
        loss = (alpha * log_prob - self.noise_critic(obs, u.flatten(2)).amin(0)).mean()
        clipped_step(self.actor_optimizer, loss, self.config.max_grad_norm)
        clipped_step(self.alpha_optimizer, self.entropy.loss(log_prob), self.config.max_grad_norm)
        self.policy.steers.fill_(True)
        return {"actor_loss": loss.detach(), "alpha": alpha, "entropy": -log_prob.detach().mean()}

    def _distill(self, obs: Tensor) -> Tensor:
        # L = 1/2 sum_j E (Q_W,j(s, w / magnitude) - Q_j(s, F(s, w)))^2, w ~ N(0, I)
        u = self.normal(len(obs), 1) / self.policy.config.magnitude
        with torch.no_grad():
            q = self.critic.network(obs, self.policy.critic_input(self.policy.chunks_of(obs, u)))
        loss = 0.5 * (self.noise_critic(obs, u.flatten(2)) - q).square().mean((1, 2)).sum()
        clipped_step(self.noise_optimizer, loss, self.config.max_grad_norm)
        return loss.detach()
