"""Reweighted score matching (Ma et al. 2025, arXiv 2502.00361): one weighted denoising loss, and its weights.

    L = E_s sum_n w_n || f_theta(x_n, k_n, s) - target_n ||^2

The minimiser is the denoiser of the density that the draws' density times the weights is proportional to. DPMD draws
clean chunks from the old policy, so that w = exp(Q / lambda) gives pi_old exp(Q / lambda); SDAC draws them from the
posterior of a noisy chunk under a flat prior, so that it gives exp(Q / lambda).

Symbols: B states, N draws for each, Tp, Da as in `burnish.policies.diffusion`; lambda is the temperature.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from burnish.config import Checked, key
from burnish.errors import BurnishError

PAPER_CLIP = 3.0  # of the normalised Q
PAPER_SDAC_SCALE = 5.0  # the released SDAC weighs by softmax(5 Q / alpha)
PAPER_RATE = 0.001  # of the moving averages
PAPER_TEMPERATURE = 5.0  # where lambda starts
PAPER_TEMPERATURE_LR = 7e-3  # of Adam on log lambda, once in ...
PAPER_TEMPERATURE_EVERY = 250  # ... so many updates
SMALLEST, LARGEST = 1e-8, 1e3  # lambda in units of Q's spread, where a KL target is looked for
BISECTIONS = 25  # of log lambda in that interval: to one part in a million


@dataclass(frozen=True)
class RSMConfig(Checked):
    """How draws are weighted.

    "kl" is self-normalised for each state, with lambda such that the mean KL divergence of the weights from uniform is
    `kl_target`; "fixed" likewise, with lambda = `temperature`. "paper" anneals lambda: one draw for each state (DPMD,
    the best) is weighed by exp of Q normalised by moving averages and clipped, several (SDAC) are self-normalised.
    "constant" is the control.
    """

    weights: Literal["kl", "fixed", "paper", "constant"] = key(
        "kl", "kl (self-normalised, lambda from kl_target), fixed (lambda = temperature), paper, or constant (control)"
    )
    kl_target: float = key(
        0.7,
        "nats by which the weights of chunks that are weighed against each other differ from uniform, on average; less "
        "than the log of their number",
        above=0,
    )
    temperature: float = key(1.0, "lambda, in units of Q, for weights=fixed", above=0)

    def check_number(self, n: int, key: str) -> None:
        """Raise BurnishError where the weights of `n` chunks, as many as `stage.key` says, cannot reach the target."""
        if self.weights == "kl" and n < 2:
            raise BurnishError(f"stage.{key}={n}: expected at least 2 to weigh against each other")
        if self.weights == "kl" and self.kl_target >= math.log(n):
            raise BurnishError(
                f"stage.rsm.kl_target={self.kl_target} nats: expected less than log({key}) = {math.log(n):.3f}, "
                f"where one of {n} has all the weight"
            )


class Weights(NamedTuple):
    """Of N draws for each of B states."""

    weights: Tensor  # (B, N); they sum to 1 for each state, except the paper's
    temperature: Tensor  # (), lambda

    def metrics(self) -> dict[str, Tensor]:
        """Effective sample size (1 .. N) and entropy (nats) of a state's weights, means over states; lambda. With
        one draw for each state (the paper's DPMD) they are those of the batch's weights (1 .. B)."""
        weights = self.weights if self.weights.shape[1] > 1 else self.weights.T  # one draw each: among the states
        p = weights / weights.sum(1, keepdim=True)
        return {
            "ess": (1 / p.square().sum(1)).mean(),
            "weight_entropy": torch.special.entr(p).sum(1).mean(),
            "temperature": self.temperature,
        }


class Weighting:
    """Q of draws -> their weights; the paper's has moving averages, the others no state."""

    def __init__(self, config: RSMConfig, device: torch.device):
        self.config = config
        self.mean = torch.zeros((), device=device)  # moving averages of the paper's normalisation
        self.std = torch.zeros((), device=device)  # 0: not begun

    def __call__(self, q: Tensor, gradient_steps: int) -> Weights:
        """`q` (B, N) -> weights; `gradient_steps` so far anneal the paper's lambda."""
        if self.config.weights == "constant":
            return Weights(torch.full_like(q, 1 / q.shape[1]), q.new_full((), math.inf))
        if self.config.weights == "paper" and q.shape[1] == 1:
            return self._paper(q, paper_temperature(gradient_steps))
        if self.config.weights == "paper":
            temperature = q.new_full((), paper_temperature(gradient_steps) / PAPER_SDAC_SCALE)
        elif self.config.weights == "fixed":
            temperature = q.new_full((), self.config.temperature)
        else:
            temperature = temperature_for_kl(q, self.config.kl_target)
        q = q - q.amax(1, keepdim=True)  # before the division, which would round or overflow
        # w_n = exp(Q_n / lambda) / sum_m exp(Q_m / lambda)
        return Weights((q / temperature).softmax(1), temperature)

    def _paper(self, q: Tensor, temperature: float) -> Weights:
        # the averages begin at the first batch's; from 0 and 1 they would take thousands of updates to arrive
        rate = torch.where(self.std > 0, PAPER_RATE, 1.0)
        self.mean = torch.lerp(self.mean, q.mean(), rate)
        self.std = torch.lerp(self.std, q.std(correction=0).clamp(min=torch.finfo(q.dtype).tiny), rate)
        # w = exp(clip((Q - mu) / sigma, -3, 3) / lambda)
        normalized = ((q - self.mean) / self.std).clamp(-PAPER_CLIP, PAPER_CLIP)
        return Weights((normalized / temperature).exp(), q.new_full((), temperature))

    def state_dict(self) -> dict[str, Any]:
        return {"mean": self.mean, "std": self.std}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.mean, self.std = state["mean"].to(self.mean.device), state["std"].to(self.std.device)


def paper_temperature(gradient_steps: int) -> float:
    """lambda = alpha of the released code after `gradient_steps`: Adam on log alpha lowers the entropy of
    N(0, (0.1 alpha)^2) to -0.9 a dimension. Nothing else enters, so it is a schedule: from 5 to 0.984."""
    return _annealed(gradient_steps // PAPER_TEMPERATURE_EVERY)


@lru_cache
def _annealed(updates: int) -> float:
    log_alpha, m, v = math.log(PAPER_TEMPERATURE), 0.0, 0.0
    for t in range(1, updates + 1):
        gradient = 0.5 * math.log(2 * math.pi * math.e * 0.01) + log_alpha + 0.9
        m, v = 0.9 * m + 0.1 * gradient, 0.999 * v + 0.001 * gradient**2
        log_alpha -= PAPER_TEMPERATURE_LR * (m / (1 - 0.9**t)) / (math.sqrt(v / (1 - 0.999**t)) + 1e-8)
    return math.exp(log_alpha)


def kl_from_uniform(q: Tensor, temperature: Tensor) -> Tensor:
    """KL(softmax(q / lambda) || uniform) in nats, mean over states; `q` (B, N)."""
    log_p = (q / temperature).log_softmax(1)
    return (log_p.exp() * log_p).sum(1).mean() + math.log(q.shape[1])


def temperature_for_kl(q: Tensor, kl_target: float) -> Tensor:
    """The one lambda for all states at which `kl_from_uniform` is `kl_target`; `q` (B, N) -> ().

    The divergence falls with lambda, so bisection finds it. Where ties among the draws keep it below the target
    whatever lambda is, the smallest of the interval is taken.
    """
    q = q - q.amax(1, keepdim=True)
    spread = q.var(1, correction=0).mean().sqrt().clamp(min=1e-20)
    low, high = spread.log() + math.log(SMALLEST), spread.log() + math.log(LARGEST)
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        too_high = kl_from_uniform(q, middle.exp()) < kl_target  # lambda is: the weights are too even
        low, high = torch.where(too_high, low, middle), torch.where(too_high, middle, high)
    return ((low + high) / 2).exp()


def resample(weights: Tensor, n: int, generator: torch.Generator) -> Tensor:
    """Draw `n` of each state's draws by weight, with replacement; `weights` (B, N) -> indices (B, n).

    By the inverse distribution function: `torch.multinomial` waits for the device, and refuses what is not finite
    before it can be reported.
    """
    cumulative = weights.cumsum(1)
    u = torch.rand((len(weights), n), device=weights.device, generator=generator) * cumulative[:, -1:]
    return torch.searchsorted(cumulative, u).clamp(max=weights.shape[1] - 1)


def weighted_denoising_loss(output: Tensor, target: Tensor, weights: Tensor) -> Tensor:
    """mean_s sum_n w_n || output_n - target_n ||^2 / (Tp Da) -> a scalar.

    Args:
        output: f_theta of the noisy draws (B, N, Tp, Da), or (B, 1, Tp, Da) where they share one noisy chunk.
        target: what it shall be (B, N, Tp, Da)
        weights: (B, N)
    """
    errors = (output.float() - target).square().mean((-2, -1))  # (B, N)
    return (weights * errors).sum(1).mean()
