"""The diffusion policy: raw observations in, raw action chunks out; it evaluates alone.

Symbols: B batch, N candidate chunks for an observation, K denoising steps, S transitions of the sampler (DDPM:
S = K), K' fine-tuned transitions, To observation steps, Tp predicted and Ta executed action steps, Do and Da
dimensions.

    time          t-To+1 ...  t   t+1  ...  t+Ta-1  ...  t+Tp-1
    observed         x   ...  x
    predicted                 x    x   ...    x     ...    x
    executed                  x    x   ...    x
"""

from __future__ import annotations

import copy
from abc import abstractmethod
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Literal, TypeVar

import torch
from torch import Tensor
from torch.nn import functional as F

from burnish.config import WrongValue, key
from burnish.diffusion import (
    SCHEDULES,
    Chain,
    NoiseProcess,
    Process,
    Sampler,
    Spacing,
    StdBounds,
    StdHead,
    betas,
    make_sampler,
)
from burnish.diffusion.scheduler_file import SCHEDULER_FILE, betas_of, is_scheduler_file, scheduler_config
from burnish.errors import BurnishError
from burnish.networks import Denoiser, DenoiserConfig, DenoiserKeys, Encoded, build_denoiser
from burnish.observations import ObsSpec
from burnish.policies.base import MOST_STEPS, ChunkConfig, Policy
from burnish.registry import address

C = TypeVar("C", bound="ChainConfig")


@dataclass(frozen=True)
class ChainConfig(ChunkConfig):
    """What every policy has that samples by a chain of denoising steps."""

    denoiser: DenoiserKeys = key(factory=DenoiserConfig)
    horizon: int = key(4, "Tp, predicted action steps", least=1, most=MOST_STEPS)
    denoising_steps: int = key(20, "K, timesteps of the forward process", least=1, most=MOST_STEPS)
    clip_sample: float | None = key(1.0, "bound of the predicted clean, normalised action (null: none)", above=0)
    sampler: str = key("ddpm", "with which it acts (docs/samplers.md)")
    sampler_steps: int | None = key(
        None, "S, denoising steps with which it acts, of any sampler but ddpm (null: ddim_steps, euler_steps)", least=1
    )

    def check(self) -> None:
        if self.n_action_steps > self.horizon:
            raise WrongValue(
                f"n_action_steps={self.n_action_steps} (Ta) is larger than horizon={self.horizon} (Tp): a policy "
                "cannot execute more steps than it predicts"
            )
        if self.action_normalization == "mean_std" and self.clip_sample is not None:
            raise WrongValue(
                "action_normalization=mean_std does not bound actions: expected clip_sample=null with it, or min_max"
            )
        try:  # refuses what cannot be sampled
            self.chain_sampler()
        except BurnishError as error:
            raise WrongValue(str(error)) from error

    @abstractmethod
    def noise_process(self) -> Process:
        """The forward process that this configuration describes."""

    @abstractmethod
    def chain_sampler(self, process: Process | None = None, eta: float | None = None) -> Sampler:
        """With which the policy acts, or with another `eta`."""

    def _sampler_in(
        self, process: Process | None, steps: int, steps_key: str, eta: float, spacing: Spacing | None = None
    ) -> Sampler:
        """The policy's, in `sampler_steps`, or else in `steps`, a number that is called `steps_key`."""
        if self.sampler == "ddpm" and self.sampler_steps not in (None, self.denoising_steps):
            raise BurnishError(
                f"sampler_steps={self.sampler_steps}: expected null with sampler=ddpm, which takes all "
                f"{self.denoising_steps} steps; fewer: sampler=ddim, or one of diffusers"
            )
        if self.sampler_steps is not None:
            steps, steps_key = self.sampler_steps, "sampler_steps"
        process = process or self.noise_process()
        return make_sampler(process, self.sampler, steps, eta, self.temperature, steps_key, spacing)

    def standalone(self: C) -> C:
        """The same without files that it names."""
        return self

    def companions(self) -> dict[str, Any]:
        return {SCHEDULER_FILE: scheduler_config(self.chain_sampler())}


@dataclass(frozen=True)
class PolicyConfig(ChainConfig):
    """Everything that decides what a diffusion policy computes."""

    OPTION: ClassVar[str] = "mlp"

    kind: Literal["diffusion"] = field(default="diffusion", kw_only=True)
    schedule: str = key(
        "cosine",
        f"of the noise's variance over the timesteps: {', '.join(SCHEDULES)}, or the path of a {SCHEDULER_FILE}",
    )
    schedule_scale: float = key(1.0, "factor on every variance", above=0)
    beta_start: float = key(1e-4, "first noise variance of the linear and the sigmoid schedule", above=0, below=1)
    beta_end: float = key(0.999, "last noise variance of the linear and the sigmoid schedule", above=0, below=1)
    trained_betas: list[float] | None = key(
        None,
        "the variances themselves, K of them, for schedule=trained_betas (a file's become that)",
        above=0,
        below=1,
    )
    prediction_type: Literal["epsilon", "sample", "v_prediction"] = key("epsilon", "what the network predicts")
    sampler: str = key(
        "ddpm",
        "ddpm goes through all K steps, ddim through ddim_steps of them; diffusers:NAME of a scheduler, to evaluate "
        "with (docs/samplers.md)",
    )
    ddim_steps: int = key(5, "transitions of DDIM, a divisor of K unless timestep_spacing is given", least=1)
    eta: float = key(
        0.0, "DDIM's noise when the policy acts (0: deterministic given the initial noise)", least=0, most=1
    )
    timestep_spacing: Spacing | None = key(
        None,
        "DDIM's timesteps, as diffusers names them: leading (from 0 on), trailing (from K - 1 down) or linspace (both "
        "ends); null: leading, but a single step trailing",
    )

    def noise_process(self) -> NoiseProcess:
        return NoiseProcess(self._betas(), self.prediction_type, self.clip_sample)

    def _betas(self) -> Tensor:
        if (self.schedule == "trained_betas") != (self.trained_betas is not None):
            raise BurnishError(f"schedule={self.schedule}: expected trained_betas with schedule=trained_betas alone")
        if self.trained_betas is not None:
            if len(self.trained_betas) != self.denoising_steps:
                raise BurnishError(
                    f"trained_betas: {len(self.trained_betas)} of them, expected denoising_steps={self.denoising_steps}"
                )
            return torch.tensor(self.trained_betas, dtype=torch.float64)
        if is_scheduler_file(self.schedule):
            return betas_of(self.schedule, vars(self))
        return betas(
            self.schedule,
            self.denoising_steps,
            scale=self.schedule_scale,
            beta_start=self.beta_start,
            beta_end=self.beta_end,
        )

    def standalone(self) -> PolicyConfig:
        if not is_scheduler_file(self.schedule):
            return self
        return replace(self, schedule="trained_betas", trained_betas=self._betas().tolist())

    def chain_sampler(self, process: Process | None = None, eta: float | None = None) -> Sampler:
        eta = self.eta if eta is None else eta
        return self._sampler_in(process, self.ddim_steps, "ddim_steps", eta, self.timestep_spacing)


class DiffusionPolicy(Policy):
    """A denoiser, its noise process, its sampler and its normalizers.

    A fine-tuned policy holds two denoisers: the pretrained one runs the first S - K' transitions, the fine-tuned
    one the last K' (Ren et al. 2024). Which one runs is part of the policy folder, not of who evaluates it. It may
    hold a critic as well, to choose among several candidates.

    Args:
        config: see `PolicyConfig`.
        others: see `Policy`.
    """

    Config: ClassVar[type[ChainConfig]] = PolicyConfig
    config: ChainConfig

    def __init__(
        self, config: ChainConfig, obs_spec: ObsSpec | int, action_dim: int, obs_keys: list[str], task: str = ""
    ):
        config = config.standalone()
        super().__init__(config, obs_spec, action_dim, obs_keys, task)
        self.process = config.noise_process()
        self.sampler = config.chain_sampler(self.process)
        self.denoiser = self.seeing(
            build_denoiser(
                config.denoiser,
                features=self.features,
                horizon=config.horizon,
                action_dim=action_dim,
                denoising_steps=config.denoising_steps,
            )
        )
        self.finetuned: Denoiser | None = None
        self.ft_denoising_steps = 0
        self.finetuned_timesteps = 0  # the fine-tuned denoiser runs at the timesteps k below this, in any sampler

    def start_finetuning(self, ft_denoising_steps: int | None = None, *, from_scratch: bool = False) -> None:
        """Freeze the denoiser and add a copy of it for the last K' = `ft_denoising_steps` transitions (None: all S).

        Raises:
            BurnishError: K' is not in 1 .. S, or less than S `from_scratch`, or the policy is fine-tuned already.
        """
        S = len(self.sampler)
        ft_denoising_steps = S if ft_denoising_steps is None else ft_denoising_steps
        if from_scratch and ft_denoising_steps < S:
            raise BurnishError(
                f"ft_denoising_steps={ft_denoising_steps} (K'): from scratch expected {S}, all of the sampler's "
                "steps; the others would stay random"
            )
        if not 1 <= ft_denoising_steps <= S:
            raise BurnishError(
                f"ft_denoising_steps={ft_denoising_steps} (K'): expected 1 to {S}, "
                "the transitions of this policy's sampler"
            )
        if self.finetuned is not None:
            raise BurnishError("this policy is fine-tuned already: start from the pretrained one, or resume that run")
        self.finetuned = copy.deepcopy(self.denoiser)
        self.denoiser.requires_grad_(False)
        self.ft_denoising_steps = K_ft = ft_denoising_steps
        self.finetuned_timesteps = self.config.denoising_steps if K_ft == S else self.sampler.timestep(S - K_ft) + 1

    def set_sampler(self, sampler: Literal["ddpm", "ddim"], ddim_steps: int) -> None:
        """Sample in another way from now on (DDIM with eta = 0); the denoiser stays as it is.

        Raises:
            BurnishError: impossible sampler, or the policy is fine-tuned (its K' counts transitions of its sampler).
        """
        if self.finetuned is not None:
            raise BurnishError("the sampler of a fine-tuned policy cannot be changed")
        if not isinstance(self.config, PolicyConfig):
            raise BurnishError(f"sampler={sampler}: a {self.config.kind} policy has a sampler of its own: inherit")
        self.sample_as(replace(self.config, sampler=sampler, ddim_steps=ddim_steps, sampler_steps=None, eta=0.0))

    def sample_as(self, config: ChunkConfig) -> None:
        super().sample_as(config)
        self.sampler = self.config.chain_sampler(self.process).to(self.device)

    def loss(self, obs: Tensor, actions: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Denoising loss of the pretrained denoiser (Ho et al. 2020, eq. 14; Chi et al. 2023, eq. 5): a scalar.

        Args:
            obs: raw (B, To, W)
            actions: raw (B, Tp, Da)
            generator: of the timesteps and the noise.
        """
        x0 = self.action_normalizer.normalize(actions)
        output, target = self.denoise_noised(self.denoiser, self.normalized_obs(obs), x0, generator)
        return F.mse_loss(output.float(), target)

    def denoise_noised(
        self, network: Denoiser, obs: Tensor, x0: Tensor, generator: torch.Generator | None = None, n_timesteps: int = 0
    ) -> tuple[Tensor, Tensor]:
        """What `network` makes of `x0` noised at random, and what it shall -> output and target, shaped like `x0`.

        Args:
            obs: prepared (B, To * W)
            x0: normalised (B, Tp, Da) or, several for an observation, (B, N, Tp, Da)
            generator: of the timesteps (one for each chunk) and the noise.
            n_timesteps: timesteps are drawn below this; 0 for K.
        """
        n_timesteps = n_timesteps or self.config.denoising_steps
        k = torch.randint(n_timesteps, x0.shape[:-2], device=x0.device, generator=generator)
        eps = torch.randn(x0.shape, device=x0.device, generator=generator)
        # f_theta(sqrt(abar_k) x0 + sqrt(1 - abar_k) eps, k, s)
        output = network(self.process.add_noise(x0, eps, k), k, encode_for(network, obs, x0))
        return output, self.process.target(x0, eps, k)

    @torch.no_grad()
    def x0_errors(self, network: Denoiser, obs: Tensor, x0: Tensor, generator: torch.Generator) -> Tensor:
        """E||x0hat - x0||^2 / (Tp Da) at each timestep k -> (K,): what is left open about a chunk at that noise.

        Args:
            network: the fine-tuned denoiser; at the timesteps that it does not run at, the pretrained one is taken.
            obs: prepared (B, To * W)
            x0: normalised chunks (B, Tp, Da), drawn from the policy whose errors are asked for.
        """
        errors = []
        for k in range(self.config.denoising_steps):
            eps = torch.randn(x0.shape, device=x0.device, generator=generator)
            at = torch.full((len(x0),), k, device=x0.device)
            x = self.process.add_noise(x0, eps, at)
            runs = network if k < (self.finetuned_timesteps or self.config.denoising_steps) else self.denoiser
            errors.append((self.process.predict_x0(runs(x, at, runs.encode(obs)), x, k) - x0).square().mean())
        return torch.stack(errors)

    def draw_noise(
        self, *shape: int, generator: torch.Generator | None = None, sampler: Sampler | None = None
    ) -> Tensor:
        """Standard normal numbers for one chain of `shape` samples, e.g. B or B, N -> (S + 1, *shape, Tp, Da)."""
        full = (len(sampler or self.sampler) + 1, *shape, self.config.horizon, self.action_dim)
        return torch.randn(full, device=self.device, generator=generator)

    def sample(
        self,
        obs: Tensor,
        noise: Tensor,
        *,
        sampler: Sampler | None = None,
        bounds: StdBounds | None = None,
        noise_clip: float = float("inf"),
        keep: int = 0,
        std_head: StdHead | None = None,
        pretrained: bool = False,
        finetuned: Denoiser | None = None,
    ) -> tuple[Tensor, Chain]:
        """Run the denoising chain in normalised space.

        Args:
            obs: (B, To * W), as `normalized_obs` gives it.
            noise: (S + 1, B, Tp, Da) or, for N candidates each, (S + 1, B, N, Tp, Da)
            sampler: None for the policy's own; bounds, noise_clip, keep, std_head: see `Sampler.sample`.
            pretrained: run the pretrained denoiser in every transition.
            finetuned: runs in place of the policy's own fine-tuned denoiser.

        Returns:
            The normalised chunks (B, Tp, Da) or (B, N, Tp, Da), and the last `keep` transitions.
        """
        sampler = sampler or self.sampler
        finetuned = finetuned or self.finetuned
        S, below = len(sampler), 0 if pretrained or finetuned is None else self.finetuned_timesteps
        n_pretrained = sum(sampler.timestep(i) >= below for i in range(S))
        networks = ((self.denoiser, n_pretrained), (finetuned or self.denoiser, S - n_pretrained))
        parts = [(network, encode_for(network, obs, noise[0]), steps) for network, steps in networks if steps]

        def denoise(x: Tensor, i: int) -> Tensor:
            network, encoded, _ = parts[0] if i < n_pretrained else parts[-1]
            return network(x, sampler.timesteps[i], encoded)

        # a chunk without a batch goes step by step
        compiled = (
            sampler.gaussian and std_head is None and all(encoded.compiled is not None for _, encoded, _ in parts)
        )
        if noise.dim() > 3 and compiled:
            in_order = [(encoded, steps) for _, encoded, steps in parts]
            return sampler.sample_compiled(in_order, noise, bounds=bounds, noise_clip=noise_clip, keep=keep)
        return sampler.sample(denoise, noise, bounds=bounds, noise_clip=noise_clip, keep=keep, std_head=std_head)

    def within_bounds(self, x: Tensor) -> Tensor:
        """Normalised actions (..., Da) clamped to what can be sampled; without such bounds, to what environments do."""
        bound = self.config.clip_sample
        if bound is not None:
            return x.clamp(-bound, bound)
        low, high = (self.action_normalizer.normalize(raw * torch.ones_like(x[..., :1])) for raw in (-1, 1))
        return x.clamp(low, high)

    @property
    def sampler_steps(self) -> int:
        return len(self.sampler)

    @property
    def doubt(self) -> str | None:
        return self.sampler.doubt

    @property
    def least_rows(self) -> int:
        return self.denoiser.LEAST_ROWS

    def noise_shape(self, candidates: int = 1) -> tuple[int, ...]:
        """(S + 1, Tp, Da), or (S + 1, N, Tp, Da) for N > 1 candidates or chunks to take the mean of"""
        n, chunk = max(candidates, self.config.mean_of), (self.config.horizon, self.action_dim)
        return (len(self.sampler) + 1, *((n,) if n > 1 else ()), *chunk)

    def predict(
        self, obs: Tensor, noise: Tensor | None, generator: torch.Generator | None = None, candidates: int = 1
    ) -> Tensor:
        if noise is None:
            several = self.noise_shape(candidates)[1:-2]
            noise = self.draw_noise(len(obs), *several, generator=generator)
        x, _ = self.sample(obs, noise)
        if candidates > 1:
            return choose(x, self.values(obs, x).argmax(1))
        return self.within_bounds(x).mean(1) if self.config.mean_of > 1 else x

    def description(self) -> dict[str, Any]:
        described = super().description()
        described["config"]["denoiser"]["name"] = address("denoiser", self.config.denoiser.name)
        return {**described, "ft_denoising_steps": self.ft_denoising_steps}

    @classmethod
    def from_description(cls, description: dict[str, Any]) -> DiffusionPolicy:
        policy = super().from_description(description)
        if description.get("ft_denoising_steps") is None:
            raise BurnishError("ft_denoising_steps is missing: expected how many steps are fine-tuned, or 0")
        if description["ft_denoising_steps"]:
            policy.start_finetuning(description["ft_denoising_steps"])
        return policy


def encode_for(network: Denoiser, obs: Tensor, x: Tensor) -> Encoded:
    """`network.encode(obs)` for chunks `x` (B, Tp, Da), or (B, N, Tp, Da) of N for each observation."""
    encoded = network.encode(obs)
    return encoded._replace(obs=encoded.obs[:, None]) if x.dim() == 4 else encoded


def choose(x: Tensor, index: Tensor) -> Tensor:
    """Of candidates (B, N, Tp, Da) those at `index` (B,) -> (B, Tp, Da), or at `index` (B, n) -> (B, n, Tp, Da)."""
    rows = torch.arange(len(x), device=x.device)
    return x[rows, index] if index.dim() == 1 else x[rows[:, None], index]
