"""What truly followed: discounted sums of rewards to the end of an episode.

Symbols: C steps or chunks of an episode.
"""

from __future__ import annotations

import torch
from torch import Tensor


def returns_to_go(reward: Tensor, discount: Tensor, tail: Tensor) -> Tensor:
    """Of an episode's chunks (C,): G_c = r_c + g_c G_{c+1}, and `tail` after the last."""
    G, returns = tail, []
    for r, g in zip(reward.flip(0), discount.flip(0)):
        G = r + g * G
        returns.append(G)
    return torch.stack(returns).flip(0)


def endless(reward: Tensor, discount: Tensor) -> Tensor:
    """What is known of what comes after an episode's end (C,): nothing, 0; but where every step of it had one and the
    same reward, as where a sparse task was never solved, that reward for ever (Cal-QL's returns, arXiv 2303.05479).

    A reward r in each of h steps is r (1 - gamma^h) / (1 - gamma), so r / (1 - gamma) is that over 1 - discount.
    """
    for_ever = reward / (1 - discount)
    same = discount.lt(1).all() and torch.allclose(for_ever, for_ever[0], rtol=1e-4, atol=0)
    return for_ever[0] if same else torch.zeros_like(reward[0])
