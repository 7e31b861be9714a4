"""Residual: the pretrained policy stays as it is, a small Gaussian edits its chunks within a bound.

The edit learns by soft actor-critic at chunks x of the base (`burnish.policies.edited`):

    L = E alpha log pi(e | s, x) - min_j Q_j(s, x + scale e) + bc_coef E |e|^2 / d

Acting and the critic's target take whichever of the base's chunks and their edits has the largest Q (EXPO, Dong et al.
2025, arXiv 2507.07986). What holds the edit near the base, where it does no better than it, and demonstrations whose
share of a batch falls, are those of DICE-RL (Sun and Song 2026, arXiv 2603.10263).

Symbols: those of `burnish.finetune.off_policy`, N candidates and N' of them in the target, each with its edit; e in
[-1, 1]^d the edit, d = Ta * Da, alpha the temperature of the entropy.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from burnish.config import WrongValue, key
from burnish.errors import BurnishError
from burnish.finetune.off_policy import OffPolicyConfig, OffPolicyStage
from burnish.finetune.stage import Setting
from burnish.finetune.storage.replay import Batch
from burnish.networks import CriticConfig
from burnish.networks.optimise import clipped_step
from burnish.networks.squashed import EntropyTemperature, SquashedConfig
from burnish.policies.base import Policy
from burnish.policies.diffusion import DiffusionPolicy
from burnish.policies.edited import EditedConfig, EditedPolicy


@dataclass(frozen=True)
class ResidualConfig(OffPolicyConfig):
    """Settings of the edit, see `OffPolicyConfig` for the others."""

    name: Literal["residual"] = "residual"
    critic: CriticConfig = key(factory=CriticConfig)
    executes: Literal["best", "edited"] = key(
        "best",
        "best (by Q, of the base's chunks and their edits: EXPO) or edited (always an edit, the critic is "
        "needed for training alone)",
    )
    scale: float = key(0.1, "bound of the edit of each normalised number (actions are in -1 .. 1)", above=0)
    per_step: bool = key(
        False, "each executed step is edited for itself, by the same network, which is told which it is"
    )
    n_candidates: int = key(8, "chunks of the base for each that is executed (N)", least=1)
    target_candidates: int = key(1, "N', chunks of the base at s' in the critic's target", least=1)
    actor: SquashedConfig = key(factory=SquashedConfig, doc="that edits")
    actor_lr: float = key(3e-4, "of Adam", above=0)
    alpha: float = key(0.01, "temperature of the entropy, at first", above=0)
    alpha_lr: float = key(3e-4, "of Adam; 0: alpha stays", least=0)
    target_entropy: float | None = key(None, "nats of e, to which alpha drives the edit's entropy (null: - Ta * Da)")
    bc_coef: float = key(0.0, "weight of the mean square of e, which holds the edit near the base", least=0)
    bc_where: Literal["always", "no_better"] = key(
        "no_better", "where that counts: always, or at chunks whose edit has no larger Q than they have"
    )
    demo_ratio_final: float | None = key(
        None, "share of demonstrations at the end of demo_ratio_decay (null: it stays)", least=0, below=1
    )
    demo_ratio_decay: int = key(20_000, "gradient steps over which the share changes, linearly", least=1)

    def check(self) -> None:
        super().check()
        if self.demo_ratio_final is not None and self.demo_ratio_final > self.demo_ratio:
            raise WrongValue(
                f"demo_ratio_final={self.demo_ratio_final}: expected at most demo_ratio={self.demo_ratio}, from which "
                "it falls"
            )


class Residual(OffPolicyStage):
    """See the module's docstring.

    Args:
        policy: pretrained, which becomes the base of a residual one; or residual before, which goes on.
    """

    kinds = ("diffusion", "flow", "edited")
    Config = ResidualConfig
    config: ResidualConfig
    policy: EditedPolicy
    PARTS: ClassVar[dict[str, str]] = {**OffPolicyStage.PARTS, "next_values": "target", "update_actor": "actor, alpha"}
    STATEFUL = (*OffPolicyStage.STATEFUL, "actor_optimizer", "entropy", "alpha_optimizer")

    def __init__(self, policy: Policy, config: ResidualConfig, setting: Setting):
        if not setting.pretrained:
            raise BurnishError("stage=residual edits a pretrained policy: expected policy=FOLDER of burnish finetune")
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(setting.seed)
            residual = self._residual(policy, config)
        super().__init__(residual, config, setting)
        dim = residual.config.n_action_steps * residual.action_dim
        target = -float(dim) if config.target_entropy is None else config.target_entropy
        self.actor = residual.actor.requires_grad_(True)
        self.actor_optimizer = torch.optim.Adam(self.actor.parameters(), lr=config.actor_lr, fused=True)
        self.entropy = EntropyTemperature(config.alpha, target).to(residual.device)
        self.alpha_optimizer = torch.optim.Adam(self.entropy.parameters(), lr=config.alpha_lr, fused=True)

    @staticmethod
    def _residual(policy: Policy, config: ResidualConfig) -> EditedPolicy:
        own = {name: getattr(config, name) for name in ("actor", "scale", "per_step", "executes")}
        if isinstance(policy, EditedPolicy):
            for name, value in own.items():
                if value != (found := getattr(policy.config, name)):
                    raise BurnishError(f"stage.{name}={value}, but the policy was edited with {found} before")
            return policy
        assert isinstance(policy, DiffusionPolicy)
        try:
            made = EditedConfig.around(policy, temperature=policy.config.temperature, **own)
        except BurnishError as error:
            raise BurnishError(f"stage=residual: {error}") from error
        return EditedPolicy(made, policy).eval()

    @property
    def edits(self) -> bool:
        """Whether the edit has begun to learn; until then the base acts alone."""
        return self.gradient_steps > self.config.critic_warmup_updates

    @torch.no_grad()
    def of_base(self, obs: Tensor, n: int) -> Tensor:
        """`n` chunks (B, n, Tp, Da) of the base at `obs` (B, To * W)."""
        base = self.policy.base
        return base.sample(obs, base.draw_noise(len(obs), n, generator=self.generator))[0]

    def normal(self, x: Tensor) -> Tensor:
        """Standard normal numbers (B, n, Ta, Da) for the edits of `x` (B, n, Tp, Da)."""
        shape = (*x.shape[:2], self.policy.config.n_action_steps, self.policy.action_dim)
        return torch.randn(shape, device=x.device, generator=self.generator)

    def candidates(self, obs: Tensor, n: int) -> Tensor:
        """`n` chunks of the base and an edit of each, or the edits alone."""
        x = self.of_base(obs, n)
        if not self.edits:
            return x
        edited = self.policy.edit(obs, x, self.normal(x)).x
        return torch.cat([x, edited], 1) if self.config.executes == "best" else edited

    @torch.no_grad()
    def next_values(self, batch: Batch) -> Tensor:
        # y = r + gamma^h (1 - terminated) max over base and edited of min_j Qbar_j(s', x')
        x = self.candidates(batch.next_obs, self.config.target_candidates)
        return self.critic.target(batch.next_obs, self.policy.critic_input(x))

    def update_actor(self, batch: Batch) -> dict[str, Tensor]:
        if self.gradient_steps < self.config.critic_warmup_updates:
            return {}
        x, alpha = self.of_base(batch.obs, 1), self.entropy.alpha
        edits = self.policy.edit(batch.obs, x, self.normal(x))
        q = self.critic.network(batch.obs, self.policy.critic_input(edits.x)).amin(0)  # (B, 1)
        # L = E alpha log pi(e | s, x) - min_j Q_j(s, x + scale e) + bc_coef |e|^2 / d
        loss = (alpha * edits.log_prob - q).mean()
        if self.config.bc_coef:
            loss = loss + self.config.bc_coef * self._distance(batch.obs, x, edits.e, q.detach())
        clipped_step(self.actor_optimizer, loss, self.config.max_grad_norm)
        clipped_step(self.alpha_optimizer, self.entropy.loss(edits.log_prob), self.config.max_grad_norm)
        size = edits.e.detach().abs().mean()
        return {"actor_loss": loss.detach(), "alpha": alpha, "edit": size, "entropy": -edits.log_prob.detach().mean()}

    def _distance(self, obs: Tensor, x: Tensor, e: Tensor, q: Tensor) -> Tensor:
        """Mean square of the edits `e` (B, 1, d), whose Q is `q` (B, 1): of all, or of those no better than `x`."""
        size = e.square().mean(2)
        if self.config.bc_where == "no_better":
            size = size * (q <= self.critic.network(obs, self.policy.critic_input(x)).amin(0))
        return size.mean()

    @property
    def n_demos(self) -> int:
        """Of this gradient step's batch."""
        first, last = self.config.demo_ratio, self.config.demo_ratio_final
        if last is None:
            return super().n_demos
        done = min(1.0, self.gradient_steps / self.config.demo_ratio_decay)
        return round((first + done * (last - first)) * self.config.batch_size)
