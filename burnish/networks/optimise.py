"""One clipped gradient step, the same for all trainings, and what becomes of steps that are no numbers."""

from __future__ import annotations

from collections.abc import Iterator
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from burnish.errors import BurnishError

MOST_IN_A_ROW = 10  # steps of one optimizer that may be skipped before a training is given up
COUNT = "burnish_count"  # the attribute of an optimizer that holds its `_Count`; no part of its state
MOST_SHARE = 0.5  # of the steps between two looks, where there were at least MOST_IN_A_ROW


class _Count:
    """Steps of one optimizer since the last look: those skipped, and those skipped in a row, on its device."""

    def __init__(self, device: torch.device) -> None:
        self.steps = 0
        self.skipped = torch.zeros((), device=device)
        self.in_a_row = torch.zeros((), device=device)

    def add(self, bad: Tensor) -> None:
        self.steps += 1
        self.skipped += bad
        self.in_a_row.add_(bad).mul_(bad)


def clipped_step(optimizer: Optimizer, loss: Tensor, max_grad_norm: float) -> Tensor:
    """One clipped gradient step -> 1. where it was skipped, as the loss or its gradient is not finite, else 0.

    What it gives stays on the device, as does what is counted for `skipped_updates`: nothing waits for the other side.
    """
    optimizer.zero_grad(set_to_none=True)
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    # of nothing else: a critic that an actor learns through is spared its own
    loss.backward(inputs=[p for p in parameters if p.requires_grad])
    norm = torch.nn.utils.clip_grad_norm_(parameters, max_grad_norm)
    bad = (norm + loss.detach()).isfinite().logical_not().float()
    if not hasattr(optimizer, COUNT):
        setattr(optimizer, COUNT, _Count(bad.device))
    getattr(optimizer, COUNT).add(bad)
    if optimizer.defaults.get("fused"):  # the kernel looks at it, as at that of a GradScaler
        optimizer.found_inf = bad  # type: ignore[attr-defined]
        optimizer.step()
    elif not bad:
        optimizer.step()
    return bad


def optimizers_of(owner: Any) -> Iterator[Optimizer]:
    """`owner` where it is an optimizer; else those that it holds, such as a stage, and that what it holds has, such as
    its critic."""
    if isinstance(owner, Optimizer):
        yield owner
        return
    for held in vars(owner).values():
        if isinstance(held, Optimizer):
            yield held
        elif isinstance(held, (list, tuple)):
            yield from (one for one in held if isinstance(one, Optimizer))
        elif hasattr(held, "__dict__") and not isinstance(held, (nn.Module, Tensor, ModuleType)):
            yield from (one for one in vars(held).values() if isinstance(one, Optimizer))


def load_optimizer(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """`load_state_dict`, which itself takes averages of any shape, and fails at the next step.

    Raises:
        BurnishError: a parameter's averages are not of its shape, or its count of steps is no number.
    """
    optimizer.load_state_dict(state)
    check_averages(optimizer)


def check_averages(optimizer: torch.optim.Optimizer) -> None:
    """What `load_optimizer` raises."""
    for parameter, averages in optimizer.state.items():
        for name, value in averages.items():
            expected = () if name == "step" else parameter.shape
            if not isinstance(value, Tensor) or value.shape != expected or not value.is_floating_point():
                found = list(value.shape) if isinstance(value, Tensor) else type(value).__name__
                raise BurnishError(f"an optimizer's {name} is {found}, expected numbers of the shape {list(expected)}")


def skipped_updates(owner: Any) -> dict[str, int]:
    """Under the key of metrics.jsonl: steps that all optimizers of `owner` skipped since the last call; empty for none.

    Raises BurnishError where it was more than `MOST_IN_A_ROW` of one optimizer, or most of its steps.
    """
    found = [getattr(optimizer, COUNT, None) for optimizer in dict.fromkeys(optimizers_of(owner))]
    counts: list[_Count] = [count for count in found if count is not None and count.steps]
    if not counts:
        return {}
    numbers = torch.stack([torch.stack([count.skipped, count.in_a_row]) for count in counts]).tolist()
    for count, (skipped, in_a_row) in zip(counts, numbers, strict=True):
        mostly = count.steps > MOST_IN_A_ROW and skipped > MOST_SHARE * count.steps
        if in_a_row > MOST_IN_A_ROW or mostly:
            how = f"{in_a_row:.0f} in a row" if in_a_row > MOST_IN_A_ROW else f"{skipped:.0f} of {count.steps}"
            raise BurnishError(
                f"the loss or its gradient is not finite in too many updates ({how}): training stopped, the last "
                "checkpoint is as it was; lower the learning rate or max_grad_norm, and look for extreme values in the "
                "data or the rewards"
            )
        count.steps = 0
        count.skipped.zero_()
    total = int(sum(skipped for skipped, _ in numbers))
    return {"skipped_updates": total} if total else {}
