"""Advantages within groups: of episodes from the same initial state (GRPO, Shao et al. 2024, arXiv 2402.03300, eq. 3),
or of draws at one state.

Symbols: T chunks of a round, in which each of E environments plays one episode, G episodes or draws of a group.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor


class GroupAdvantages(NamedTuple):
    """Of the chunks of a round, and which of them count."""

    advantages: Tensor  # (T, E)
    counts: Tensor  # (T, E) bool: of an environment's first episode, in a group whose episodes differ
    spread: Tensor  # share of the groups whose episodes differ, a scalar


def group_advantages(reward: Tensor, ended: Tensor, group_size: int) -> GroupAdvantages:
    """A = (R - mean of the group) / its standard deviation, the same for all chunks of an episode.

    Args:
        reward: (T, E), of chunks; R is their sum, without discount. G neighbouring environments are a group.
        ended: (T, E) bool. What follows an environment's first end is another episode, which does not count.
    """
    before = torch.cat([torch.zeros_like(ended[:1]), ended[:-1]]).cumsum(0)
    first = before == 0  # (T, E)
    R = (reward * first).sum(0).view(-1, group_size)  # (E / G, G)
    std = R.std(1, correction=0, keepdim=True)
    differ = std > 1e-6 * R.abs().amax(1, keepdim=True).clamp(min=1)
    # where all did alike, no chunk was better than another
    A = torch.where(differ, (R - R.mean(1, keepdim=True)) / std.clamp(min=1e-12), torch.zeros_like(R))
    counts = first & differ.expand_as(R).flatten()
    return GroupAdvantages(A.flatten().expand_as(reward), counts, differ.float().mean())


def centred(values: Tensor, divided_by: Literal["nothing", "batch", "group"]) -> Tensor:
    """`values` (B, G) of G draws at each of B states, less the mean of their group.

    Args:
        divided_by: a standard deviation, of all of them once they are centred, or of each group; 1 where it is 0.
    """
    A = values - values.mean(1, keepdim=True)
    if divided_by == "nothing":
        return A
    std = A.square().mean(1, keepdim=True).sqrt() if divided_by == "group" else A.square().mean().sqrt()
    return A / torch.where(std > 0, std, torch.ones_like(std))
