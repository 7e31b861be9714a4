"""What algorithms share whose actor is a squashed Gaussian of maximum entropy (SAC: Haarnoja et al. 2018, 1812.05905).

    a = tanh(u),  u ~ N(mu(s), sigma(s)^2)          H = -E log pi(a | s)
    L_pi = E[alpha log pi(a | s) - Q(s, a)]         L_alpha = alpha (H - H_target)

mu is the Gaussian policy's own network, which is evaluated and saved; the head of sigma and the temperature alpha are
the stage's. The critic is any ensemble of `burnish.finetune.critics.QCritic`.

Symbols: those of `burnish.finetune.off_policy`, d = Ta Da.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from burnish.config import key
from burnish.errors import BurnishError
from burnish.finetune.critics import QCritic
from burnish.finetune.off_policy import OffPolicyConfig, OffPolicyStage
from burnish.finetune.stage import Setting
from burnish.finetune.storage.replay import Batch
from burnish.networks import CriticConfig
from burnish.networks.optimise import clipped_step
from burnish.networks.squashed import LOG_STD_RANGE, EntropyTemperature, squash
from burnish.policies.gaussian import GaussianPolicy


@dataclass(frozen=True)
class SoftActorConfig(OffPolicyConfig):
    """Settings of the actor and of its entropy, see `OffPolicyConfig`."""

    critic: CriticConfig = key(factory=CriticConfig)
    n_candidates: int = key(1, "chunks sampled for each that is executed; evaluations take the mean", least=1)
    n_step: int = 1
    update_every: int = 1
    actor_lr: float = key(3e-4, "of Adam; the temperature's too", above=0)
    alpha: float = key(1.0, "temperature of the entropy, at first, in units of Q", above=0)
    target_entropy: float | None = key(None, "of a chunk, by which alpha is learned (null: the paper's)")
    entropy_in_target: bool = key(False, "the critic's target has the entropy, -alpha log pi(a' | s')")
    target_candidates: int = key(1, "N', draws of the actor whose best is the critic's target", least=1)


class SoftActorStage(OffPolicyStage):
    """See the module's docstring; a subclass says which Q the actor climbs. It is evaluated by its mean."""

    kinds = ("gaussian",)
    config: SoftActorConfig
    policy: GaussianPolicy
    critic: QCritic
    STATEFUL = (*OffPolicyStage.STATEFUL, "log_std", "entropy", "actor_optimizer", "alpha_optimizer")
    ENTROPY: ClassVar[float] = -1.0  # target for each of the d numbers of a chunk
    LOG_STD_OFFSET: ClassVar[float] = 0.0  # what a fresh head's output is moved by

    def __init__(self, policy: GaussianPolicy, config: SoftActorConfig, setting: Setting):
        if not policy.config.squash:
            raise BurnishError(
                f"stage={config.name} needs a Gaussian policy with squash=true: network=gaussian, or burnish pretrain "
                "policy=gaussian policy.squash=true"
            )
        super().__init__(policy, config, setting)
        self.n_candidates = 1
        self.log_std = self._make_head(policy, setting).to(policy.device)
        d = policy.config.n_action_steps * policy.action_dim
        target = self.ENTROPY * d if config.target_entropy is None else config.target_entropy
        self.entropy = EntropyTemperature(config.alpha, target).to(policy.device)
        actor = [*policy.encoder.parameters(), *policy.network.parameters(), *self.log_std.parameters()]
        self.actor_optimizer = torch.optim.Adam(actor, lr=config.actor_lr, fused=True)
        self.alpha_optimizer = torch.optim.Adam(self.entropy.parameters(), lr=config.actor_lr, fused=True)

    def _make_head(self, policy: GaussianPolicy, setting: Setting) -> nn.Linear:
        """Of log sigma; of a cloned policy it begins with the spread of the demonstrations around its mean."""
        last: Any = policy.network[-1]  # a linear layer
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(setting.seed)
            head = nn.Linear(last.in_features, last.out_features)
        if setting.pretrained:
            nn.init.zeros_(head.weight)
            head.bias.data.copy_(policy.log_std.detach() - self.LOG_STD_OFFSET)
        return head

    @abstractmethod
    def agreed(self, q: Tensor) -> Tensor:
        """The Q that the actor climbs (B, N), of the members' (n, B, N)."""

    def draw(self, obs: Tensor, n: int) -> tuple[Tensor, Tensor]:
        """`n` chunks of the actor for each of `obs` (B, To * W), flat and normalised (B, n, d), and log pi (B, n)."""
        h = self.policy.network[:-1](self.policy.encoder(obs))
        mean, log_std = self.policy.network[-1](h), (self.log_std(h) + self.LOG_STD_OFFSET).clamp(*LOG_STD_RANGE)
        noise = torch.randn(len(obs), n, mean.shape[1], device=mean.device, generator=self.generator)
        return squash(mean[:, None], log_std[:, None], noise)

    def candidates(self, obs: Tensor, n: int) -> Tensor:
        return self.policy.chunks(self.draw(obs, n)[0])

    @torch.no_grad()
    def next_values(self, batch: Batch) -> Tensor:
        x, log_prob = self.draw(batch.next_obs, self.config.target_candidates)
        q = self.critic.target(batch.next_obs, x)  # (n, B, N')
        # y = r + gamma^h (1 - terminated) (min_j Qbar_j(s', a') - alpha log pi(a' | s'))
        return q - self.entropy.alpha * log_prob if self.config.entropy_in_target else q

    @property
    def actor_is_due(self) -> bool:
        """Once for each stored chunk: of its `utd_ratio` gradient steps in the last."""
        every = max(1, round(self.config.utd_ratio))
        past_warmup = self.gradient_steps >= self.config.critic_warmup_updates
        return past_warmup and (self.gradient_steps + 1) % every == 0

    def update_actor(self, batch: Batch) -> dict[str, Tensor]:
        if not self.actor_is_due:
            return {}
        x, log_prob = self.draw(batch.obs, 1)
        alpha = self.entropy.alpha
        q = self.agreed(self.critic.climbed(batch.obs, self.policy.chunks(x)))
        # L_pi = E[alpha log pi(a | s) - Q(s, a)]
        loss = (alpha * log_prob - q).mean()
        clipped_step(self.actor_optimizer, loss, self.config.max_grad_norm)
        clipped_step(self.alpha_optimizer, self.entropy.loss(log_prob, by_log=False), self.config.max_grad_norm)
        return {"actor_loss": loss.detach(), "alpha": alpha, "entropy": -log_prob.detach().mean()}
