"""The flow-matching policy: a diffusion policy whose noising is the straight line from noise to the action.

The network gives the velocity v = x_1 - x_0 at x_t = (1 - t) x_0 + t x_1, trained by E ||v_theta(x_t, t, s) - v||^2
(Lipman et al. 2023, arXiv 2210.02747, eq. 23 with sigma_min = 0), and acts by Euler's steps from t = 0. The times are a
grid of K, t = 0, 1 / K .. 1 - 1 / K, in training as in acting, where S of them are taken; so everything that is made
for the timesteps of diffusion (fine-tuned steps, noise floors, draws, compiled chains) holds for a flow.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar, Literal

from burnish.config import key
from burnish.diffusion import FlowProcess, Process, Sampler, flow_times
from burnish.policies.base import MOST_STEPS
from burnish.policies.diffusion import ChainConfig, DiffusionPolicy


@dataclass(frozen=True)
class FlowPolicyConfig(ChainConfig):
    """Everything that decides what a flow policy computes."""

    OPTION: ClassVar[str] = "flow"

    kind: Literal["flow"] = field(default="flow", kw_only=True)
    denoising_steps: int = key(100, "K, times that it is trained at", least=1, most=MOST_STEPS)
    euler_steps: int = key(10, "S, steps with which it acts, a divisor of denoising_steps", least=1)
    sampler: str = key(
        "euler",
        "euler, flow_sde (Flow-GRPO's), or diffusers:NAME of a scheduler of flow matching, to evaluate with "
        "(docs/samplers.md)",
    )
    eta: float = key(
        0.0,
        "noise with which it acts: 0 Euler's (deterministic given the initial noise), 1 that of the posterior in each "
        "step; of flow_sde the level a",
        least=0,
        most=1,
    )

    def noise_process(self) -> FlowProcess:
        return FlowProcess(flow_times(self.denoising_steps), self.clip_sample)

    def chain_sampler(self, process: Process | None = None, eta: float | None = None) -> Sampler:
        eta = self.eta if eta is None or self.sampler == "flow_sde" else eta  # which is no Euler's without its noise
        return self._sampler_in(process, self.euler_steps, "euler_steps", eta)


class FlowPolicy(DiffusionPolicy):
    """See the module's docstring."""

    Config: ClassVar[type[ChainConfig]] = FlowPolicyConfig
