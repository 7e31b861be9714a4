"""OGPO: PPO over the denoising steps with an off-policy critic as reward (Patil et al. 2026, arXiv 2605.03065).

The chain of denoising steps is an MDP of its own, as in two-level PPO, but it ends with Q(s, a) in place of what the
environment pays: any state of the replay will do, and G chains from one state are each other's baseline.

    A_g = Q(s, a_g) - 1/G sum_g' Q(s, a_g')                              centred in the group, over one scale for all
    L   = E max(-A r, -A clip(r, 1 - eps_i, 1 + eps_i)) + bc_coef L_BC   r of denoising step i

L_BC is the denoising loss on demonstrations and on own episodes that succeeded.

Symbols: those of `burnish.finetune.off_policy`; B states, G draws of each (a group), K' (`K_ft`) fine-tuned
transitions, the last of S; i = 0 (noisiest) .. K'-1 among them, M triples (state, step, draw) of a minibatch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from burnish.config import WrongValue, key
from burnish.diffusion import Chain
from burnish.finetune.denoising_steps import DenoisingSteps, DenoisingStepsConfig
from burnish.finetune.losses.group import centred
from burnish.finetune.losses.ppo import check_first_ratio, clipped_surrogate
from burnish.finetune.off_policy import OffPolicyConfig, OffPolicyStage
from burnish.finetune.stage import Setting
from burnish.finetune.storage.replay import Batch
from burnish.networks import Denoiser
from burnish.networks.optimise import clipped_step
from burnish.policies.diffusion import DiffusionPolicy


@dataclass(frozen=True)
class OGPOConfig(DenoisingStepsConfig, OffPolicyConfig):
    """Settings of OGPO, see `DenoisingStepsConfig`, and `OffPolicyConfig` for those of critic and replay."""

    name: Literal["ogpo"] = "ogpo"
    n_candidates: int = key(1, "chunks sampled for each that is executed", least=1)
    demo_ratio: float = key(0.0, "share of each batch that is demonstrations", least=0, below=1)
    success_ratio: float = key(
        0.25, "share of each batch that is of own episodes with a success, once there are any", least=0, below=1
    )
    target_candidates: int = key(1, "N', draws whose best is the critic's target", least=1)
    actor_every: int = key(10, "gradient steps of the critic for each round of the actor's", least=1)
    states: int = key(32, "B, states of a round, of the batch", least=1)
    group_size: int = key(32, "G, draws of each", least=2)
    advantage_scale: Literal["nothing", "batch", "group"] = key(
        "batch", "by which standard deviation of Q centred advantages are divided: none, of the round, of each group"
    )
    update_epochs: int = key(2, "passes over a round; fewer where target_kl is exceeded", least=1)
    actor_batch_size: int = key(2560, "(state, step, draw) triples of a minibatch", least=1)
    actor_lr: float = key(3e-5, "of Adam", above=0)
    target_kl: float = key(1.0, "no further epoch once the approximate KL of one exceeds it", above=0)
    bc_coef: float = key(0.1, "weight of the denoising loss on demonstrations and own successes", least=0)

    def check(self) -> None:
        super().check()
        if self.states > self.batch_size:
            raise WrongValue(f"states={self.states}: expected at most batch_size={self.batch_size}")
        if self.bc_coef and not (self.demo_ratio or self.success_ratio):
            raise WrongValue(f"bc_coef={self.bc_coef}: expected 0, or a demo_ratio or success_ratio to clone from")


class OGPO(OffPolicyStage):
    """See the module's docstring.

    Args:
        policy: pretrained, or fine-tuned before (then its fine-tuned denoiser goes on).
    """

    Config = OGPOConfig
    config: OGPOConfig
    policy: DiffusionPolicy
    PARTS: ClassVar[dict[str, str]] = {**OffPolicyStage.PARTS, "next_values": "target", "_improve": "actor's rounds"}
    STATEFUL = (*OffPolicyStage.STATEFUL, "actor_optimizer")

    def __init__(self, policy: DiffusionPolicy, config: OGPOConfig, setting: Setting):
        self.inner = DenoisingSteps(policy, config, setting)
        super().__init__(policy, config, setting)
        self.actor: Denoiser = self.inner.actor.requires_grad_(True)
        self.actor_optimizer = torch.optim.Adam(self.actor.parameters(), lr=config.actor_lr, fused=True)

    @torch.no_grad()
    def draw(self, obs: Tensor, n: int) -> tuple[Tensor, Chain]:
        """`n` chunks (B, n, Tp, Da) of the present policy at `obs` (B, To * W), with the noise that it explores with,
        and their last transitions."""
        return self.inner.sample(obs, self.policy.draw_noise(len(obs), n, generator=self.generator))

    def candidates(self, obs: Tensor, n: int) -> Tensor:
        return self.draw(obs, n)[0]

    @torch.no_grad()
    def next_values(self, batch: Batch) -> Tensor | None:
        if not self.critic.bootstraps_from_chunks:
            return None
        x = self.draw(batch.next_obs, self.config.target_candidates)[0]
        return self.critic.target.outputs(batch.next_obs, self.policy.critic_input(x))

    def update_actor(self, batch: Batch) -> dict[str, Tensor]:
        waits = self.gradient_steps < self.config.critic_warmup_updates
        return {} if waits or self.gradient_steps % self.config.actor_every else self._improve(batch)

    def _improve(self, batch: Batch) -> dict[str, Tensor]:
        """A round of PPO: groups at states of the batch, and minibatches of their denoising steps."""
        config, G, K_ft = self.config, self.config.group_size, self.config.ft_denoising_steps
        obs = batch.obs[self._permutation(len(batch.obs))[: config.states]]
        x, chain = self.draw(obs, G)  # chain.x (B, K' + 1, G, Tp, Da)
        with torch.no_grad():
            q = self.critic.values(obs, x)  # (B, G)
            old = self.inner.log_prob_of(chain)  # (B, K', G)
        # A_g = Q(s, a_g) - mean of the group
        advantages = centred(q, config.advantage_scale)
        cloned = self._imitated(batch)
        metrics: dict[str, Tensor] = {"q_spread": q.std(1).mean()}
        for _ in range(config.update_epochs):
            results = []
            for triples in self._permutation(old.numel()).split(config.actor_batch_size):
                b, i, g = triples // (K_ft * G), triples // G % K_ft, triples % G
                log_prob = self.inner.new_log_prob(obs[b], chain.x[b, i, g], chain.x[b, i + 1, g], i)
                advantage = advantages[b, g] * self.inner.discount[i]
                result = clipped_surrogate(log_prob, old[b, i, g], advantage, self.inner.eps[i])
                if "first_ratio_error" not in metrics:
                    metrics["first_ratio_error"] = check_first_ratio(
                        result.ratio, self.inner.ratio_tolerance, config.name
                    )
                loss = result.loss + config.bc_coef * self._bc_loss(batch, cloned)
                clipped_step(self.actor_optimizer, loss, config.max_grad_norm)
                results.append(torch.stack([loss.detach(), result.approx_kl, result.clip_fraction]))
            actor_loss, approx_kl, clip_fraction = torch.stack(results).mean(0)
            metrics |= {"actor_loss": actor_loss, "approx_kl": approx_kl, "clip_fraction": clip_fraction}
            if approx_kl > config.target_kl:  # the one wait for the device in an epoch
                break
        return metrics

    def _imitated(self, batch: Batch) -> Tensor:
        """Which rows of the batch are demonstrations, or of own episodes that succeeded: what follows online ones."""
        rows: list[int] = []
        start, online = 0, False
        for replay, found in batch.sources:
            if replay is self.demos or online:
                rows += range(start, start + len(found))
            online, start = online or replay is self.replay, start + len(found)
        return torch.tensor(rows, dtype=torch.int64, device=self.policy.device)

    def _bc_loss(self, batch: Batch, rows: Tensor) -> Tensor | float:
        if not self.config.bc_coef or not len(rows):
            return 0.0
        x0 = self.chunks(batch)[rows]
        output, target = self.policy.denoise_noised(
            self.actor, batch.obs[rows], x0, self.generator, self.policy.finetuned_timesteps
        )
        return F.mse_loss(output.float(), target)

    def _permutation(self, n: int) -> Tensor:
        return torch.randperm(n, device=self.policy.device, generator=self.generator)
