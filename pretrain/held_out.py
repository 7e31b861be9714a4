"""How far a policy's actions are from those of the held-out demonstrations: what is known without a simulator.

Symbols: N windows, To observation steps, Tp predicted and Ta executed action steps, Da dimensions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from burnish.datasets.episodes import Episode
from burnish.datasets.windows import Windows
from burnish.policies.base import Policy

MOST_WINDOWS = 4096  # more, evenly spaced ones of them are taken
ROWS = 1024  # windows that are sampled together


@dataclass(frozen=True)
class ActionError:
    """Of executed actions, in the demonstrations' units, and the loss on the same episodes.

    Attributes:
        absolute: mean absolute error of each dimension (Da).
        rms: root of the mean squared error of each dimension (Da).
    """

    loss: float
    absolute: list[float]
    rms: list[float]

    @property
    def mean_absolute(self) -> float:
        """Over all dimensions."""
        return sum(self.absolute) / len(self.absolute)

    @property
    def score(self) -> tuple[float, float]:
        """What "best" compares: the less, the better."""
        return -self.mean_absolute, -self.loss

    def to_json(self) -> dict[str, Any]:
        rms = (sum(each**2 for each in self.rms) / len(self.rms)) ** 0.5
        each = {"action_error_each": self.absolute, "action_rms_each": self.rms}
        return {"loss": self.loss, "action_error": self.mean_absolute, "action_rms": rms, **each}

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> ActionError:
        return cls(content["loss"], content["action_error_each"], content["action_rms_each"])

    def metrics(self) -> dict[str, float]:
        """Under the keys of metrics.jsonl: `held_out/action_error`, and `held_out/action_error/0` of dimension 0."""
        content = self.to_json()
        metrics = {f"held_out/{name}": content[name] for name in ("action_error", "action_rms")}
        for name in ("action_error", "action_rms"):
            metrics |= {f"held_out/{name}/{i}": value for i, value in enumerate(content[f"{name}_each"])}
        return metrics


class HeldOutActions:
    """The held-out windows and which of their actions are the demonstrations' own: after an episode's end none is.

    Args:
        episodes: those of `windows`, in their order.
    """

    def __init__(self, episodes: Sequence[Episode], windows: Windows):
        left = torch.cat([torch.arange(len(episode), 0, -1) for episode in episodes])  # (N,) steps to the end
        self.windows = windows
        self.left = left.to(windows.actions.device)
        self.rows = torch.linspace(0, len(left) - 1, min(len(left), MOST_WINDOWS)).round().long().to(self.left.device)

    def measure(self, policy: Policy, loss: float) -> ActionError:
        """Of the policy as it acts, always with the same noise; `loss` on the held-out episodes is passed on."""
        Ta = policy.config.n_action_steps
        generator = torch.Generator(policy.device).manual_seed(0)
        absolute, squared, count = torch.zeros(()), torch.zeros(()), 0
        for rows in self.rows.split(ROWS):
            batch = self.windows.batch(rows)
            error = torch.as_tensor(policy.act(batch.obs, generator=generator)) - batch.actions[:, :Ta]
            inside = torch.arange(Ta, device=rows.device) < self.left[rows][:, None]  # (B, Ta)
            chosen: Tensor = error[inside].cpu().double()  # (n, Da)
            absolute, squared = absolute + chosen.abs().sum(0), squared + chosen.square().sum(0)
            count += len(chosen)
        return ActionError(loss, (absolute / count).tolist(), (squared / count).sqrt().tolist())
