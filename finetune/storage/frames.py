"""Single observations, each stored once, and which of them an environment sees.

A chunk's observation is the last To frames, and what it led to is the next chunk's: kept as numbers of frames, both
cost no copy.

Symbols: E environments, B batch, To observation steps, W as in `burnish.policies.base`, h executed steps of a chunk.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor


class Frames:
    """A ring of prepared frames (W,). Their numbers count up for ever; of old ones the memory is used again.

    Args:
        capacity: frames.
        example: a frame, for its size, type and device.
    """

    def __init__(self, capacity: int, example: Tensor):
        self.data = example.new_empty(capacity, *example.shape)
        self.count = 0  # frames ever put in

    def put(self, frames: Tensor) -> Tensor:
        """Frames (n, W) -> their numbers (n,) int64."""
        numbers = torch.arange(self.count, self.count + len(frames), device=self.data.device)
        self.data[numbers % len(self.data)] = frames
        self.count += len(frames)
        return numbers

    def windows(self, numbers: Tensor) -> Tensor:
        """Observations of the frames `numbers` (B, To) -> (B, To * W)."""
        rows = (numbers % len(self.data)).flatten()
        return self.data.index_select(0, rows).view(len(numbers), -1)

    def state_dict(self) -> dict[str, Any]:
        # through numpy, or a part would be saved with all of its memory; without a copy, which would double it
        kept = self.data[: min(self.count, len(self.data))].cpu().numpy()
        return {"count": self.count, "data": torch.from_numpy(kept)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.count = state["count"]
        self.data[: len(state["data"])] = state["data"].to(self.data.device)


class Histories:
    """The numbers of the To frames that each of E environments sees, oldest first."""

    def __init__(self, frames: Frames, n_obs_steps: int):
        self.frames, self.n_obs_steps = frames, n_obs_steps
        self.numbers: Tensor | None = None  # (E, To)

    def see(self, obs: Tensor) -> Tensor:
        """The observations (E, To * W) that are acted on now -> (E, To): what is not what was seen last is put in."""
        if self.numbers is None:
            self.numbers = self.frames.put(self._split(obs).flatten(0, 1)).view(len(obs), -1)
            return self.numbers
        rows = (self.frames.windows(self.numbers) != obs).any(1).nonzero().flatten()
        if len(rows):
            new = self.frames.put(self._split(obs)[rows].flatten(0, 1)).view(len(rows), -1)
            self.numbers = self.numbers.index_copy(0, rows, new)
        return self.numbers

    def follow(self, obs: Tensor, steps: np.ndarray) -> Tensor:
        """Observations (E, To * W), `steps` (E,) after the last ones -> (E, To): the frames that are new are put in."""
        assert self.numbers is not None
        To = self.n_obs_steps
        column, h = np.arange(To), np.minimum(steps, To)[:, None]
        is_new = column >= To - h
        rows, columns = (torch.from_numpy(index).to(obs.device) for index in np.nonzero(is_new))
        old = torch.from_numpy(np.minimum(column + h, To - 1)).to(obs.device)
        self.numbers = self.numbers.gather(1, old)
        self.numbers[rows, columns] = self.frames.put(self._split(obs)[rows, columns])
        return self.numbers

    def _split(self, obs: Tensor) -> Tensor:
        """(E, To * W) -> (E, To, W)"""
        return obs.unflatten(1, (self.n_obs_steps, -1))
