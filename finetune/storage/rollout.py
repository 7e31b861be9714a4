"""A rollout: T chunks in E environments, each with what its likelihood is of.

Symbols: E environments, T chunks in each, N = T E samples, L terms of the likelihood of a chunk (denoising steps; 1 of
a Gaussian policy), To, W as in `burnish.policies.base`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from burnish.envs.base import ChunkStep


class Rollout:
    """Filled by turns of `add_action` and `add_outcome`, from the start again after `clear`.

    Args:
        obs: a prepared observation, as an example.

    Attributes:
        obs: (T, E, To * W) prepared
        final_obs: (T, E, To * W) prepared; what the chunk truly led to
        sampled: (T, E, ...) what was sampled, as the stage keeps it
        log_prob: (T, E, L) of it, as sampled
        reward: (T, E)
        terminated, truncated: (T, E) bool
        t: chunks that are in it
    """

    TENSORS = ("obs", "final_obs", "sampled", "log_prob", "reward", "terminated", "truncated")

    def __init__(self, T: int, E: int, obs: Tensor, sampled: tuple[int, ...], L: int, device: torch.device):
        self.obs = obs.new_zeros(T, E, *obs.shape)
        self.final_obs = torch.zeros_like(self.obs)
        self.sampled = torch.zeros(T, E, *sampled, device=device)
        self.log_prob = torch.zeros(T, E, L, device=device)
        self.reward = torch.zeros(T, E, device=device)
        self.terminated = torch.zeros(T, E, dtype=torch.bool, device=device)
        self.truncated = torch.zeros(T, E, dtype=torch.bool, device=device)
        self.t = 0

    def add_action(self, obs: Tensor, sampled: Tensor, log_prob: Tensor) -> None:
        """What acts now, in each environment."""
        self.obs[self.t], self.sampled[self.t], self.log_prob[self.t] = obs, sampled, log_prob

    def add_outcome(self, step: ChunkStep, final_obs: Tensor) -> None:
        """What it led to; `final_obs` (E, To * W) prepared."""
        device = self.reward.device
        self.reward[self.t] = torch.as_tensor(step.reward, device=device)
        self.terminated[self.t] = torch.as_tensor(step.terminated, device=device)
        self.truncated[self.t] = torch.as_tensor(step.truncated, device=device)
        self.final_obs[self.t] = final_obs
        self.t += 1

    @property
    def full(self) -> bool:
        return self.t == len(self.reward)

    @property
    def ended(self) -> Tensor:
        """(T, E) bool"""
        return self.terminated | self.truncated

    @property
    def nbytes(self) -> int:
        return sum(getattr(self, name).nbytes for name in self.TENSORS)

    def clear(self) -> None:
        self.t = 0

    def cut(self) -> None:
        """What was added last is not followed by what comes next."""
        if self.t:
            self.truncated[self.t - 1] = ~self.terminated[self.t - 1]

    def state(self) -> list[Tensor]:
        """What is in it, of each tensor."""
        return [getattr(self, name)[: self.t].clone() for name in self.TENSORS]

    def load_state(self, t: int, state: list[Tensor]) -> None:
        self.t = t
        for name, saved in zip(self.TENSORS, state):
            getattr(self, name)[:t] = saved.to(self.reward.device)
