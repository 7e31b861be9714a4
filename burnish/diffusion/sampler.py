"""The reverse process: S Gaussian transitions x_{i+1} ~ N(mean_i, std_i^2), i = 0 (noisiest) .. S-1.

Every kind's step is linear in the predicted x_0 and the present x, so one table of three numbers a step holds it:

    mean_i = coef_x0[i] * x0hat + coef_x[i] * x        std_i = std[i]

Each is written for any process (its own file has the equations). In place of the table's, the standard deviation may
be a head's, which depends on x, on what it sees of the state, and on the step (ReinFlow's noise network).

Symbols: B batch, S transitions (DDPM: S = K; the others: S <= K).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from burnish.diffusion.process import FlowProcess, Process
from burnish.diffusion.transition import Equations, Gaussian, Levels, StdBounds
from burnish.errors import BurnishError
from burnish.networks.encoded import Encoded
from burnish.registry import load

SAMPLERS = {
    "ddpm": "burnish.diffusion.ddpm:DDPM",
    "ddim": "burnish.diffusion.ddim:DDIM",
    "euler": "burnish.diffusion.euler:Euler",
    "flow_sde": "burnish.diffusion.flow_sde:FlowSDE",
}
"""Name -> module:class of its equations (`Equations`)."""
DIFFUSERS = "diffusers:"
"""What the name of a scheduler of diffusers begins with, which is a sampler too (`SchedulerSampler`)."""
Spacing = Literal["leading", "trailing", "linspace"]


def spaced(spacing: Spacing, K: int, steps: int) -> Tensor:
    """`steps` of the timesteps 0 .. K-1 as diffusers spaces them, decreasing (S,) int64 (Lin et al. 2024, arXiv
    2305.08891, table 2): leading from 0 on, trailing from K - 1 down, linspace with both ends."""
    if spacing == "leading":
        return torch.arange(0, steps * (K // steps), K // steps).flip(0)
    if spacing == "trailing":
        return torch.from_numpy(np.round(np.arange(K, 0, -K / steps)[:steps]).astype(np.int64) - 1)
    return torch.from_numpy(np.linspace(0, K - 1, steps).round()[::-1].astype(np.int64))


class Denoise(Protocol):
    """The network inside a chain: its output (B, ...) at `x` (B, ...) of transition `i`."""

    def __call__(self, x: Tensor, i: int) -> Tensor: ...


class StdHead(Protocol):
    """Standard deviation of transition `i` at `x` (B, ...), before floor and ceiling; broadcasts against `x`."""

    def __call__(self, x: Tensor, i: int) -> Tensor: ...


class Chain(NamedTuple):
    """A sampled chain's last `keep` transitions, noisiest first."""

    x: Tensor  # (B, keep + 1, ...)
    mean: Tensor  # (B, keep, ...)
    std: Tensor  # before floor and ceiling; (keep, 1, ...) of the table, (B, keep, ...) of a head


class Sampler(nn.Module):
    """The transitions of one kind of samplers for a process.

    Args:
        process: the forward process that the network was trained with.
        kind: one of `SAMPLERS`.
        steps: S, of kinds that do not take all K.
        eta: how much noise; 0: deterministic. See the kind's class.
        temperature: tau, factor on all noise of the chain, the initial one included.
        steps_key: what the setting of `steps` is called, for messages.
        spacing: of the timesteps, see `spaced`. None: leading, but trailing of a flow, whose K - 1 is t = 0, and of a
            single step, which begins with noise and so at the noisiest level.
    """

    gaussian = True  # its steps have a likelihood
    timesteps: Tensor  # (S,) int64, decreasing
    coef_x0: Tensor  # (S,)
    coef_x: Tensor  # (S,)
    std: Tensor  # (S,) before floor and ceiling
    transitions: Tensor  # (S, 6), all of a transition's numbers as `CompiledMLP.chain` takes them

    def __init__(
        self,
        process: Process,
        kind: str = "ddpm",
        steps: int = 5,
        eta: float = 0.0,
        temperature: float = 1.0,
        *,
        steps_key: str = "ddim_steps",
        spacing: Spacing | None = None,
    ):
        super().__init__()
        K = process.denoising_steps
        if kind not in SAMPLERS:
            raise BurnishError(
                f"sampler={kind}: expected one of {', '.join(SAMPLERS)}, or {DIFFUSERS}NAME of a scheduler"
            )
        equations: Equations = load(SAMPLERS[kind])
        if equations.flow_only and not isinstance(process, FlowProcess):
            raise BurnishError(f"sampler={kind}: only a flow is sampled so; expected ddpm or ddim for a diffusion")
        if not equations.every_step and not 1 <= steps <= K:
            raise BurnishError(f"{steps_key}={steps}: expected 1 to denoising_steps={K}")
        if spacing is None:
            spacing = "trailing" if process.begins_with_noise or steps == 1 else "leading"
            if not equations.every_step and K % steps:
                raise BurnishError(f"{steps_key}={steps}: expected a divisor of denoising_steps={K}")
        if not 0 <= eta <= 1:
            raise BurnishError(f"eta={eta}: expected 0 to 1")
        self.process, self.kind, self.temperature = process, kind, temperature
        self.spacing, self._said = spacing, f"{steps_key}={steps}"
        timesteps = spaced(spacing, K, K if equations.every_step else steps).flip(0)
        p_k, v_k = process.power[timesteps], process.variance[timesteps]
        p_j, v_j = torch.cat([torch.ones_like(p_k[:1]), p_k[:-1]]), torch.cat([torch.zeros_like(v_k[:1]), v_k[:-1]])
        coef_x0, coef_x, std = equations.coefficients(Levels(p_k, v_k, p_j, v_j), eta)
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

    @property
    def doubt(self) -> str | None:
        """Why no good action is to be expected of a single step, in a line; None where there are more, or it is fit."""
        if len(self) > 1 or not self.gaussian:
            return None
        k, (signal, noise) = self.timestep(0), self.process.level(self.timestep(0))
        if k < self.process.denoising_steps - 1:
            return (
                f"{self._said}, timestep_spacing={self.spacing}: its only step is at timestep {k}, for nearly clean "
                "actions, but begins with noise; expected timestep_spacing=trailing"
            )
        if self.process.prediction_type == "epsilon" and signal < noise:
            return (
                f"{self._said} with prediction_type=epsilon: at timestep {k} the noise is {noise / signal:.0f} times "
                "the signal, and so is the network's error; expected more steps, or prediction_type=sample"
            )
        return None

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

    def transition(self, output: Tensor, x: Tensor, i: Tensor | int, std: Tensor | None = None) -> Gaussian:
        """Transition `i` (a number, or (B,)) at `x` (B, ...) from the network's `output` there.

        Args:
            std: a head's at `x`, in place of the table's; the temperature is a factor on it.
        """
        if std is not None:
            std = self.temperature * std
        elif isinstance(i, Tensor):
            std = self.std[i].reshape((-1,) + (1,) * (x.dim() - 1))
        else:
            std = self.std[i]
        return Gaussian(self.mean(output, x, i), std)

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
        return bounds.of(self.std)

    def sample(
        self,
        denoise: Denoise,
        noise: Tensor,
        *,
        bounds: StdBounds | None = None,
        noise_clip: float = math.inf,
        keep: int = 0,
        std_head: StdHead | None = None,
    ) -> tuple[Tensor, Chain]:
        """Run the chain from x = tau noise[0] -> clean sample (B, ...), and its last `keep` transitions.

        Args:
            noise: standard normal (S + 1, B, ...): the start, then one draw for each transition.
            bounds: of the sampling std; None leaves the table as it is (no noise at the last transition).
            noise_clip: draws of the transitions are truncated to +-noise_clip (DPPO: 3).
            std_head: gives the transitions' standard deviations, in place of the table.
        """
        if std_head is None:
            added, x = self._scaled(noise, bounds, noise_clip), self.temperature * noise[0]
        else:
            added, x = _clipped(noise[1:], noise_clip), self.temperature * noise[0]
        first_kept = len(self) - keep
        xs, means, stds = [x] if first_kept == 0 else [], [], []
        for i in range(len(self)):
            std = None if std_head is None else std_head(x, i)
            step = self.transition(denoise(x, i), x, i, std)
            if i >= first_kept:
                means.append(step.mean)
                stds.append(step.std.expand_as(x) if std_head else step.std)
            x = step.mean + (added[i] if std_head is None else (bounds or StdBounds()).of(step.std) * added[i])
            if i >= first_kept - 1 and keep:
                xs.append(x)
        empty = x.new_empty(x.shape[0], 0, *x.shape[1:])
        kept_std = torch.stack(stds, 1) if std_head and stds else self._kept_std(keep, noise)
        return x, Chain(torch.stack(xs, 1) if xs else empty, torch.stack(means, 1) if means else empty, kept_std)

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
        xs, means = (each.view(len(each), *shape).transpose(0, 1).contiguous() for each in (xs, means))
        return (x[-1].clone() if keep else x[0]).view(shape), Chain(xs, means, self._kept_std(keep, noise))

    def scheduler_config(self) -> dict[str, Any]:
        """What a scheduler of diffusers has to be told beside the process; see `burnish.diffusion.scheduler_file`."""
        return {}

    def _kept_std(self, keep: int, noise: Tensor) -> Tensor:
        """Of the table, for chains of `noise` (S + 1, B, ...) -> (keep, 1, ...)."""
        return self.std[len(self) - keep :].reshape(-1, *(1,) * (noise.dim() - 2))

    def _scaled(self, noise: Tensor, bounds: StdBounds | None, noise_clip: float) -> Tensor:
        """What is added to each transition's mean (S, B, ...)."""
        std = self.bounded_std(bounds or StdBounds())
        return std.reshape(-1, *(1,) * (noise.dim() - 1)) * _clipped(noise[1:], noise_clip)


def _clipped(noise: Tensor, noise_clip: float) -> Tensor:
    return noise if noise_clip == math.inf else noise.clamp(-noise_clip, noise_clip)


def make_sampler(
    process: Process,
    kind: str,
    steps: int,
    eta: float,
    temperature: float,
    steps_key: str = "ddim_steps",
    spacing: Spacing | None = None,
) -> Sampler:
    """The sampler called `kind`, one of `SAMPLERS` or "diffusers:NAME"; the rest as in `Sampler`."""
    if kind.startswith(DIFFUSERS):
        found: Sampler = load("burnish.diffusion.scheduler:SchedulerSampler")(
            process, kind.removeprefix(DIFFUSERS), steps, temperature, steps_key=steps_key
        )
        return found
    return Sampler(process, kind, steps, eta, temperature, steps_key=steps_key, spacing=spacing)
