"""The reverse process: S Gaussian transitions x_{i+1} ~ N(mean_i, std_i^2), i = 0 (noisiest) .. S-1.

This is the one place that knows a transition's mean and standard deviation. DDPM's posterior and DDIM's step
are both linear in the predicted x_0 and the present x, so one table of three numbers a step holds either:

    mean_i = coef_x0[i] * x0hat + coef_x[i] * x        std_i = std[i]

Both are written here for any process: of a flow, DDIM's step with eta = 0 is Euler's, x + (t' - t) v.

Symbols: B batch, S transitions (DDPM: S = K; DDIM: S <= K), k and j a transition's start and end, p = signal^2 and
v = noise^2 there (p_j = 1, v_j = 0 after the last); of diffusion p = abar and v = 1 - abar.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import Tensor, nn

from burnish.diffusion.process import Process
from burnish.errors import BurnishError
from burnish.networks.encoded import Encoded

SAMPLERS = ("ddpm", "ddim")


@dataclass(frozen=True)
class StdBounds:
    """Floor and ceiling of a transition's standard deviation; sampling and log-probability have their own."""

    floor: float = 0.0
    ceiling: float = math.inf

    def __post_init__(self) -> None:
        if not 0 <= self.floor <= self.ceiling:
            raise BurnishError(f"std floor {self.floor} and ceiling {self.ceiling}: expected 0 <= floor <= ceiling")


class Denoise(Protocol):
    """The network inside a chain: its output (B, ...) at `x` (B, ...) of transition `i`."""

    def __call__(self, x: Tensor, i: int) -> Tensor: ...


class Chain(NamedTuple):
    """A sampled chain's last `keep` transitions, noisiest first."""

    x: Tensor  # (B, keep + 1, ...)
    mean: Tensor  # (B, keep, ...)


class Sampler(nn.Module):
    """The transitions of DDPM (Ho et al. 2020, eq. 7) or DDIM (Song et al. 2021, eqs. 12 and 16), of any process.

    Args:
        process: the forward process that the network was trained with.
        kind: "ddpm" (all K steps) or "ddim".
        ddim_steps: S for DDIM; timesteps are spaced evenly from 0 (diffusers' "leading"), of a flow up to K - 1
            ("trailing"), which is t = 0.
        eta: DDIM's noise: 0 deterministic, 1 like DDPM's posterior. Ignored for DDPM.
        temperature: tau, factor on all noise of the chain, the initial one included.
    """

    timesteps: Tensor  # (S,) int64, decreasing
    coef_x0: Tensor  # (S,)
    coef_x: Tensor  # (S,)
    std: Tensor  # (S,) before floor and ceiling
    transitions: Tensor  # (S, 6), all of a transition's numbers as `CompiledMLP.chain` takes them

    def __init__(
        self,
        process: Process,
        kind: str = "ddpm",
        ddim_steps: int = 5,
        eta: float = 0.0,
        temperature: float = 1.0,
    ):
        super().__init__()
        K = process.denoising_steps
        if kind not in SAMPLERS:
            raise BurnishError(f"sampler={kind}: expected one of {', '.join(SAMPLERS)}")
        if kind == "ddim" and not 1 <= ddim_steps <= K:
            raise BurnishError(f"ddim_steps={ddim_steps}: expected 1 to denoising_steps={K}")
        if kind == "ddim" and K % ddim_steps:
            raise BurnishError(f"ddim_steps={ddim_steps}: expected a divisor of denoising_steps={K}")
        if not 0 <= eta <= 1:
            raise BurnishError(f"eta={eta}: expected 0 to 1")
        self.process, self.temperature = process, temperature
        between = 1 if kind == "ddpm" else K // ddim_steps
        timesteps = torch.arange(between - 1 if process.begins_with_noise else 0, K, between)
        p_k, v_k = process.power[timesteps], process.variance[timesteps]
        p_j, v_j = torch.cat([torch.ones_like(p_k[:1]), p_k[:-1]]), torch.cat([torch.zeros_like(v_k[:1]), v_k[:-1]])
        # variance of x_k given x_j: v_k - p_k / p_j v_j, written so that diffusion's is 1 - abar_k / abar_j
        added = (p_k + v_k) - p_k / p_j * (p_j + v_j)
        if kind == "ddpm":
            # mean = added sqrt(p_j) / v_k x0 + v_j sqrt(p_k / p_j) / v_k x
            coef_x0 = added * p_j.sqrt() / v_k
            coef_x = v_j * (p_k / p_j).sqrt() / v_k
            # var = added v_j / v_k
            std = (added * v_j / v_k).sqrt()
        else:
            # sigma = eta sqrt(v_j / v_k) sqrt(added)
            std = eta * (v_j / v_k).sqrt() * added.sqrt()
            # mean = sqrt(p_j) x0 + sqrt(v_j - sigma^2) eps', eps' = (x - sqrt(p_k) x0) / sqrt(v_k)
            coef_x = ((v_j - std**2).clamp(min=0) / v_k).sqrt()
            coef_x0 = p_j.sqrt() - coef_x * p_k.sqrt()
        self._variance = std.flip(0) ** 2  # (S,) float64, at temperature 1
        for name, table in (("coef_x0", coef_x0), ("coef_x", coef_x), ("std", temperature * std)):
            self.register_buffer(name, table.flip(0).float(), persistent=False)
        self.register_buffer("timesteps", timesteps.flip(0), persistent=False)
        clip = torch.full_like(self.std, math.inf if process.clip_sample is None else process.clip_sample)
        numbers = [*process.x0_coefs()[self.timesteps].unbind(1), clip, self.coef_x0, self.coef_x]
        self.register_buffer("transitions", torch.stack(numbers, 1), persistent=False)
        # the chain's loop must not wait for a device
        self._timesteps: list[int] = self.timesteps.tolist()
        self._coefs: list[tuple[float, float]] = list(zip(self.coef_x0.tolist(), self.coef_x.tolist()))

    def __len__(self) -> int:
        return len(self._timesteps)

    def timestep(self, i: int) -> int:
        """k at the start of transition `i`."""
        return self._timesteps[i]

    def mean(self, output: Tensor, x: Tensor, i: Tensor | int) -> Tensor:
        """Mean of transition `i` (a number, or (B,)) from the network's `output` at `x` -> (B, ...)."""
        k: Tensor | int
        coef_x0: Tensor | float
        coef_x: Tensor | float
        if isinstance(i, Tensor):
            shape = (-1,) + (1,) * (x.dim() - 1)
            k, coef_x0, coef_x = self.timesteps[i], self.coef_x0[i].reshape(shape), self.coef_x[i].reshape(shape)
        else:
            k, (coef_x0, coef_x) = self._timesteps[i], self._coefs[i]
        return coef_x0 * self.process.predict_x0(output, x, k) + coef_x * x

    def widen(self, x0_errors: Tensor) -> None:
        """Give each transition the variance of its Gaussian that fits best (Bao et al. 2022, arXiv 2201.06503):

            std_i^2 + coef_x0_i^2 E||x0hat - x0||^2 / d

        so that a chain of few steps draws from the whole width of the distribution.

        Args:
            x0_errors: E||x0hat - x0||^2 / d of the network at each timestep k, (K,); see `DiffusionPolicy.x0_errors`.
        """
        errors = x0_errors.double().cpu()[self._timesteps]
        variance = self._variance + self.coef_x0.double().cpu() ** 2 * errors
        self.std.copy_(self.temperature * variance.sqrt())

    def bounded_std(self, bounds: StdBounds) -> Tensor:
        """Standard deviation of every transition within `bounds` -> (S,)."""
        return self.std.clamp(bounds.floor, bounds.ceiling)

    def sample(
        self,
        denoise: Denoise,
        noise: Tensor,
        *,
        bounds: StdBounds | None = None,
        noise_clip: float = math.inf,
        keep: int = 0,
    ) -> tuple[Tensor, Chain]:
        """Run the chain from x = tau noise[0] -> clean sample (B, ...), and its last `keep` transitions.

        Args:
            noise: standard normal (S + 1, B, ...): the start, then one draw for each transition.
            bounds: of the sampling std; None leaves the table as it is (no noise at the last transition).
            noise_clip: draws of the transitions are truncated to +-noise_clip (DPPO: 3).
        """
        scaled, x = self._scaled(noise, bounds, noise_clip), self.temperature * noise[0]
        first_kept = len(self) - keep
        xs, means = [x] if first_kept == 0 else [], []
        for i in range(len(self)):
            mean = self.mean(denoise(x, i), x, i)
            x = mean + scaled[i]
            if i >= first_kept - 1 and keep:
                xs.append(x)
            if i >= first_kept:
                means.append(mean)
        empty = x.new_empty(x.shape[0], 0, *x.shape[1:])
        return x, Chain(torch.stack(xs, 1) if xs else empty, torch.stack(means, 1) if means else empty)

    def sample_compiled(
        self,
        parts: Sequence[tuple[Encoded, int]],
        noise: Tensor,
        *,
        bounds: StdBounds | None = None,
        noise_clip: float = math.inf,
        keep: int = 0,
    ) -> tuple[Tensor, Chain]:
        """What `sample` gives, bit for bit, from compiled networks; without gradients.

        Args:
            parts: a network with its observations, and the number of transitions that it runs, in their order.
            noise: (S + 1, B, Tp, Da) or, for N candidates each, (S + 1, B, N, Tp, Da); the rest as in `sample`.
        """
        S, shape = len(self), noise.shape[1:]
        scaled = self._scaled(noise, bounds, noise_clip).flatten(1, -3).flatten(2).contiguous()
        x = scaled.new_empty(S + 1 if keep else 1, *scaled.shape[1:])
        torch.mul(noise[0].reshape(x[0].shape), self.temperature, out=x[0])
        mean = torch.empty_like(scaled) if keep else None
        done = 0
        for encoded, steps in parts:
            part = slice(done, done + steps)
            assert encoded.compiled is not None
            encoded.compiled.chain(
                self.transitions[part],
                scaled[part],
                x[done : done + steps + 1] if keep else x,
                None if mean is None else mean[part],
                encoded.obs.expand(shape[0], *encoded.obs.shape[1:]).flatten(0, -2),
                encoded.times[self.timesteps[part]],
            )
            done += steps
        xs, means = (x[:0], scaled[:0]) if mean is None else (x[S - keep :], mean[S - keep :])
        kept = Chain(*(each.view(len(each), *shape).transpose(0, 1).contiguous() for each in (xs, means)))
        return (x[-1].clone() if keep else x[0]).view(shape), kept

    def _scaled(self, noise: Tensor, bounds: StdBounds | None, noise_clip: float) -> Tensor:
        """What is added to each transition's mean (S, B, ...)."""
        std = self.bounded_std(bounds or StdBounds())
        draws = noise[1:] if noise_clip == math.inf else noise[1:].clamp(-noise_clip, noise_clip)
        return std.reshape(-1, *(1,) * (noise.dim() - 1)) * draws


def gaussian_log_prob(x: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """log N(x; mean, std^2), element by element (broadcasting)."""
    return -0.5 * ((x - mean) / std) ** 2 - std.log() - 0.5 * math.log(2 * math.pi)
