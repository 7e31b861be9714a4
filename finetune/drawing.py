"""What algorithms share that draw chunks from an old policy, weigh them by Q and train the denoiser with them.

Three denoisers: `actor` is trained; `averaged`, its Polyak average, is the policy's own `finetuned` one, which acts and
is saved; `old` is the actor as it was at the last refresh, from which the draws come. Where the actor learns at next
observations (`draw_at=next`), the draws of the critic's target serve it too; at the batch's own it has others.

Symbols: those of `burnish.finetune.off_policy`, N draws of the old policy for each state, N' those of them in the
target, K' (`K_ft`) fine-tuned steps.
"""

from __future__ import annotations

import copy
from abc import abstractmethod
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal, NamedTuple

import torch
from torch import Tensor

from burnish.config import key
from burnish.diffusion import Sampler
from burnish.errors import BurnishError, warn
from burnish.finetune.losses.rsm import RSMConfig, Weighting, weighted_denoising_loss
from burnish.finetune.off_policy import OffPolicyConfig, OffPolicyStage
from burnish.finetune.stage import Setting
from burnish.finetune.storage.replay import Batch
from burnish.networks import Denoiser
from burnish.networks.averages import polyak
from burnish.networks.compiled.mlp import why_not
from burnish.networks.optimise import clipped_step
from burnish.policies.diffusion import DiffusionPolicy

LEAST_BETWEEN_WIDTHS = 250  # gradient steps, where the old policy is refreshed more often


@dataclass(frozen=True)
class DrawingConfig(OffPolicyConfig):
    """Settings of the draws, see `OffPolicyConfig` for the others."""

    sampler: Literal["inherit", "ddpm", "ddim"] = key(
        "ddim", "of draws and acting candidates: inherit (the policy's), ddpm or ddim; evaluation keeps the policy's"
    )
    ddim_steps: int = key(5, "with sampler=ddim", least=1)
    eta: float = key(1.0, "of DDIM", least=0, most=1)
    draw_width: Literal["corrected", "narrow"] = key(
        "corrected",
        "a chain of few steps draws from less than the distribution's width (narrow), which sharpens the policy at "
        "each refresh whatever the critic says; corrected adds the variance that is missing (arXiv 2201.06503)",
    )
    draw_temperature: float = key(
        1.0, "factor on all noise of the draws; less than 1 sharpens the policy on purpose", least=0
    )
    acting_temperature: float = key(1.0, "factor on all noise of the chunks that act", least=0)
    draw_precision: Literal["float32", "float16"] = key(
        "float32",
        "of the denoiser in draws and acting candidates (float16: a GPU, or a CPU with AVX-512 FP16); gradients and "
        "evaluations are in float32",
    )
    draw_noise: float = key(0.0, "standard deviation of Gaussian noise on the draws, which are clipped again", least=0)
    target_candidates: int = key(
        1, "N', draws whose best is the critic's target; of more than one the maximum overestimates", least=1
    )


@dataclass(frozen=True)
class ReweightingConfig(DrawingConfig):
    """And those of the actor's training."""

    WITHOUT_DEMOS: ClassVar[str] = "stage.demo_ratio=0 stage.bc_coef=0"

    rsm: RSMConfig = key(factory=RSMConfig)
    freeze_actor: bool = key(
        False,
        "learn the critic alone (control: selection by Q on the pretrained policy); what concerns the actor has no "
        "effect then",
    )
    ft_denoising_steps: int | None = key(
        None, "K', how many of the policy's last denoising steps are fine-tuned (null: all)", least=1
    )
    draws: int = key(8, "chunks drawn for each state (N), weighed against each other", least=1)
    draw_at: Literal["next", "current"] = key(
        "next",
        "where the actor learns: next observations, whose draws the target has too, or the batch's own (current), for "
        "which is drawn anew; SDAC's noisy_from=replay has its own",
    )
    actor_tau: float = key(0.005, "Polyak average of the actor, which acts and is saved", above=0, most=1)
    actor_lr: float = key(3e-4, "of Adam", above=0)
    actor_lr_final: float = key(3e-4, "reached linearly, from lr_decay_start on", above=0)
    lr_decay_start: int = key(25_000, "updates of the actor", least=0)
    lr_decay_updates: int = key(50_000, "updates of the actor", least=1)
    policy_delay: int = key(2, "the actor is trained in every so many-th gradient step", least=1)
    actor_steps: int = key(
        1,
        "gradient steps it then makes on the same draws, which are what costs time, each with noise of its own",
        least=1,
    )
    old_policy_every: int = key(1000, "gradient steps between refreshes of the policy that is drawn from", least=1)
    bc_coef: float = key(0.0, "weight of the plain denoising loss on the batch's demonstrations", least=0)

    def check(self) -> None:
        super().check()
        if self.bc_coef and not self.demo_ratio:
            raise BurnishError(
                f"stage.bc_coef={self.bc_coef} needs demonstrations, but stage.demo_ratio is 0 (else: stage.bc_coef=0)"
            )
        if not self.freeze_actor:
            self.rsm.check_number(getattr(self, self.weighed), self.weighed)

    @property
    def weighed(self) -> str:
        """The key that says how many chunks are weighed against each other."""
        return "draws"


class Draws(NamedTuple):
    """Chunks of the old policy, n for each observation."""

    obs: Tensor  # (B, To * W)
    x: Tensor  # (B, n, Tp, Da), noised and clipped
    q_each: Tensor  # (members, B, n) of the target critic
    outputs: Tensor  # the same, or the distributions whose means they are: see `QEnsemble.outputs`

    @property
    def q(self) -> Tensor:
        """The least of them (B, n)"""
        return self.q_each.amin(0)


class DrawingStage(OffPolicyStage):
    """Acts by the policy's averaged denoiser; the target is of draws of the old one."""

    config: DrawingConfig
    policy: DiffusionPolicy
    PARTS: ClassVar[dict[str, str]] = {**OffPolicyStage.PARTS, "_sample": "draws (denoising steps)"}
    refresh_every = 1000  # gradient steps between refreshes of the old policy

    def __init__(self, policy: DiffusionPolicy, config: DrawingConfig, setting: Setting, K_ft: int | None = None):
        self.policy, self.config = policy, config
        if policy.finetuned is None:
            policy.start_finetuning(K_ft, from_scratch=not setting.pretrained)
        elif K_ft not in (None, policy.ft_denoising_steps):
            raise BurnishError(
                f"stage.ft_denoising_steps={K_ft}, but the policy was fine-tuned with "
                f"{policy.ft_denoising_steps} before"
            )
        self.sampler = self._make_sampler(config.draw_temperature)
        self.acting_sampler = self._make_sampler(config.acting_temperature)
        if config.sampler != "inherit" and self.sampler.doubt:
            warn(f"stage.{self.sampler.doubt}")
        self.x0_errors = torch.zeros(policy.config.denoising_steps, device=policy.device)  # of `old`, (K,)
        self._check_precision()
        super().__init__(policy, config, setting)
        assert policy.finetuned is not None
        self.averaged: Denoiser = policy.finetuned.requires_grad_(False)
        self.old = copy.deepcopy(self.averaged)

    def _make_sampler(self, temperature: float) -> Sampler:
        policy, config = self.policy, self.config
        own = policy.config
        kind, steps, eta = config.sampler, config.ddim_steps, config.eta
        try:
            if kind == "inherit":
                if not policy.sampler.gaussian:
                    raise BurnishError(
                        f"sampler=inherit: the policy's own, sampler={policy.sampler.kind}, is for evaluation; "
                        "expected ddpm or ddim (burnish policy set sets the policy's)"
                    )
                return replace(own, temperature=temperature).chain_sampler(policy.process).to(policy.device)
            return Sampler(policy.process, kind, steps, eta, temperature).to(policy.device)
        except BurnishError as error:
            raise BurnishError(f"stage.{error}") from error

    def _precision(self) -> torch.autocast:
        """While this is on, networks run in `draw_precision`; for draws alone."""
        half = self.config.draw_precision == "float16"
        return torch.autocast(self.policy.device.type, torch.float16, enabled=half)

    @torch.no_grad()
    def _check_precision(self) -> None:
        if self.config.draw_precision == "float32" or self.policy.device.type != "cpu":
            return
        with self._precision():
            if self.policy.denoiser.encode(self.policy.blank_obs(1)).compiled is None:
                raise BurnishError(
                    "stage.draw_precision=float16: expected float32 here; on a CPU, float16 takes a processor with "
                    "AVX-512 FP16, a C++ compiler that knows it (GCC 12), and an MLP whose hidden_dim is a multiple of "
                    f"32, with mish or relu{f' ({reason})' if (reason := why_not()) else ''}"
                )

    def candidates(self, obs: Tensor, n: int) -> Tensor:
        return self._sample(obs, n, self.averaged, self.acting_sampler)

    def _sample(self, obs: Tensor, n: int, network: Denoiser, sampler: Sampler) -> Tensor:
        """`n` chunks of `network`'s policy for each of `obs` (B, To * W), normalised -> (B, n, Tp, Da)."""
        noise = self.policy.draw_noise(len(obs), n, generator=self.generator, sampler=sampler)
        with self._precision():
            return self.policy.sample(obs, noise, sampler=sampler, finetuned=network)[0]

    @property
    def needs_width(self) -> bool:
        """Whether it must be known how much the old policy's denoiser leaves open."""
        return self.config.draw_width == "corrected"

    @torch.no_grad()
    def _measure_width(self, obs: Tensor) -> None:
        """What the old policy's denoiser leaves open, at `obs` (B, To * W), and so the width of its draws.

        Its chunks come from all of the process's steps, whose own narrowing is small.
        """
        whole = Sampler(self.policy.process).to(self.policy.device)
        noise = self.policy.draw_noise(len(obs), generator=self.generator, sampler=whole)
        x0 = self.policy.within_bounds(self.policy.sample(obs, noise, sampler=whole, finetuned=self.old)[0])
        self.x0_errors = self.policy.x0_errors(self.old, obs, x0, self.generator)
        self._set_width()

    def _set_width(self) -> None:
        if self.config.draw_width == "corrected":
            for sampler in (self.sampler, self.acting_sampler):
                sampler.widen(self.x0_errors)

    @property
    def target_draws(self) -> int:
        """How many draws the critic's target needs."""
        return self.config.target_candidates if self.critic.bootstraps_from_chunks else 0

    def next_values(self, batch: Batch) -> Tensor | None:
        draws = self._draw_next(batch, self.target_draws)
        return draws and draws.outputs

    def _draw_next(self, batch: Batch, n: int) -> Draws | None:
        """`n` draws at the batch's next observations, of the width that is due; None where none are asked for."""
        if self.needs_width and self.gradient_steps % max(self.refresh_every, LEAST_BETWEEN_WIDTHS) == 0:
            self._measure_width(batch.next_obs)
        return self._draw(batch.next_obs, n) if n else None

    @torch.no_grad()
    def _draw(self, obs: Tensor, n: int) -> Draws:
        x = self.noised(self._sample(obs, n, self.old, self.sampler), self.noise_scale * self.config.draw_noise)
        outputs = self.critic.target.outputs(obs, self.policy.executed(x).flatten(2))
        return Draws(obs, x, self.critic.target.mean(outputs), outputs)

    def state_dict(self) -> dict[str, Any]:
        return super().state_dict() | {"x0_errors": self.x0_errors}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        if "x0_errors" in state:
            self.x0_errors = state["x0_errors"].to(self.policy.device)
            self._set_width()


class ReweightingStage(DrawingStage):
    """Trains the denoiser by a weighted denoising loss; a subclass gives it."""

    config: ReweightingConfig
    PARTS: ClassVar[dict[str, str]] = {**DrawingStage.PARTS, "_actor_step": "actor, forward"}
    STATEFUL = (*DrawingStage.STATEFUL, "actor", "old", "actor_optimizer", "weighting")

    def __init__(self, policy: DiffusionPolicy, config: ReweightingConfig, setting: Setting):
        super().__init__(policy, config, setting, config.ft_denoising_steps)
        self.refresh_every = config.old_policy_every
        self.actor = copy.deepcopy(self.averaged).requires_grad_(True)
        self.actor_optimizer = torch.optim.Adam(self.actor.parameters(), lr=config.actor_lr, fused=True)
        self.weighting = Weighting(config.rsm, policy.device)
        self._next_draws: Draws | None = None  # of the present gradient step, where the actor learns from them

    @property
    @abstractmethod
    def draws_for_actor(self) -> int:
        """How many draws of the old policy `actor_loss` needs."""

    @abstractmethod
    def actor_loss(self, batch: Batch, draws: Draws) -> tuple[Tensor, dict[str, Tensor]]:
        """The weighted denoising loss at the observations of `draws`, and metrics."""

    @property
    def actor_is_due(self) -> bool:
        past_warmup = self.gradient_steps >= self.config.critic_warmup_updates and not self.config.freeze_actor
        return past_warmup and self.gradient_steps % self.config.policy_delay == 0

    def next_values(self, batch: Batch) -> Tensor | None:
        n, shared = self.target_draws, self.actor_is_due and self.config.draw_at == "next"
        draws = self._draw_next(batch, max(n, self.draws_for_actor if shared else 0))
        self._next_draws = draws if shared else None
        return draws.outputs[:, :, :n] if draws and n else None

    def update_actor(self, batch: Batch) -> dict[str, Tensor]:
        metrics: dict[str, Tensor] = {}
        if self.actor_is_due:
            draws = self._next_draws or self._draw(batch.obs, self.draws_for_actor)
            for _ in range(self.config.actor_steps):
                metrics = self._actor_step(batch, draws)
        if (self.gradient_steps + 1) % self.config.old_policy_every == 0:
            self.old.load_state_dict(self.actor.state_dict())
        return metrics

    def _actor_step(self, batch: Batch, draws: Draws) -> dict[str, Tensor]:
        loss, metrics = self.actor_loss(batch, draws)
        if self.config.bc_coef:
            loss = loss + self.config.bc_coef * self._bc_loss(batch)
        self._decay_actor_lr()
        clipped_step(self.actor_optimizer, loss, self.config.max_grad_norm)
        polyak(self.averaged, self.actor, self.config.actor_tau)
        return {"actor_loss": loss.detach()} | metrics

    def _bc_loss(self, batch: Batch) -> Tensor:
        """Plain denoising loss on the batch's demonstrations."""
        n = self.config.n_demos
        x0 = self.chunks(batch)[:n]
        output, target = self.policy.denoise_noised(
            self.actor, batch.obs[:n], x0, self.generator, self.policy.finetuned_timesteps
        )
        return weighted_denoising_loss(output, target, x0.new_ones(n, 1))

    def _decay_actor_lr(self) -> None:
        config = self.config
        steps = max(0, self.gradient_steps - config.critic_warmup_updates) // config.policy_delay
        done = (steps * config.actor_steps - config.lr_decay_start) / config.lr_decay_updates
        done = min(max(done, 0.0), 1.0)
        for group in self.actor_optimizer.param_groups:
            group["lr"] = config.actor_lr + done * (config.actor_lr_final - config.actor_lr)
