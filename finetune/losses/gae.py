"""Generalised advantage estimation and reward scaling, on chunks.

Symbols: T chunks of a rollout, E environments. `gamma` discounts once per chunk (Ren et al. 2024).
"""

from __future__ import annotations

import torch
from torch import Tensor


def gae(
    rewards: Tensor,
    values: Tensor,
    next_values: Tensor,
    terminated: Tensor,
    truncated: Tensor,
    *,
    gamma: float,
    gae_lambda: float,
) -> tuple[Tensor, Tensor]:
    """Advantages and returns (Schulman et al. 2016, eq. 16) -> (T, E) each.

    Args:
        rewards: (T, E)
        values: V(s_t), (T, E)
        next_values: V of the observation that the chunk truly led to, (T, E): at an episode's end of its final
            observation, never of the next episode's first.
        terminated: (T, E) bool; nothing is bootstrapped.
        truncated: (T, E) bool; bootstrapped from `next_values`, but no advantage flows back over the cut.
    """
    # delta_t = r_t + gamma (1 - terminated_t) V(s_{t+1}) - V(s_t)
    delta = rewards + gamma * next_values * ~terminated - values
    # A_t = delta_t + gamma lambda (1 - ended_t) A_{t+1}
    decay = gamma * gae_lambda * ~(terminated | truncated)
    advantages = torch.empty_like(delta)
    following = torch.zeros_like(delta[0])
    for t in reversed(range(len(delta))):
        following = delta[t] + decay[t] * following
        advantages[t] = following
    return advantages, advantages + values


class RewardScaler:
    """Divides rewards by the running standard deviation of the discounted return (Engstrom et al. 2020, A.1)."""

    def __init__(self, n_envs: int, gamma: float, device: torch.device):
        self.gamma = gamma
        self.running_return = torch.zeros(n_envs, device=device)
        self.count = torch.zeros((), device=device)
        self.mean = torch.zeros((), device=device)
        self.m2 = torch.zeros((), device=device)  # sum of squared deviations

    def __call__(self, rewards: Tensor, ended: Tensor) -> Tensor:
        """Take the rollout's rewards (T, E) into the statistics, then scale them -> (T, E)."""
        returns = torch.empty_like(rewards)
        for t in range(len(rewards)):
            self.running_return = self.running_return * self.gamma + rewards[t]
            returns[t] = self.running_return
            self.running_return = self.running_return * ~ended[t]
        # merge the moments of the batch (Chan et al. 1982)
        n = returns.numel()
        delta = returns.mean() - self.mean
        total = self.count + n
        self.mean = self.mean + delta * n / total
        self.m2 = self.m2 + returns.var(correction=0) * n + delta**2 * self.count * n / total
        self.count = total
        std = (self.m2 / self.count).sqrt()
        return rewards / torch.where(std > 0, std, torch.ones_like(std))

    def state_dict(self) -> dict[str, Tensor]:
        return {key: getattr(self, key) for key in ("running_return", "count", "mean", "m2")}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        for key, value in state.items():
            setattr(self, key, value)
