"""One clipped gradient step, the same for all trainings, and what becomes of steps that are no numbers."""

from __future__ import annotations

from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from burnish.errors import BurnishError

MOST_IN_A_ROW = 10  # steps of one optimizer that may be skipped before a training is given up
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


_counts: WeakKeyDictionary[torch.optim.Optimizer, _Count] = WeakKeyDictionary()


def clipped_step(optimizer: torch.optim.Optimizer, loss: Tensor, max_grad_norm: float) -> Tensor:
    """One clipped gradient step -> 1. where it was skipped, as the loss or its gradient is not finite, else 0.

    What it gives stays on the device, as does what is counted for `skipped_updates`: nothing waits for the other side.
    """
    optimizer.zero_grad(set_to_none=True)
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    # of nothing else: a critic that an actor learns through is spared its own
    loss.backward(inputs=[p for p in parameters if p.requires_grad])
    norm = torch.nn.utils.clip_grad_norm_(parameters, max_grad_norm)
    bad = (norm + loss.detach()).isfinite().logical_not().float()
    if optimizer not in _counts:
        _counts[optimizer] = _Count(bad.device)
    _counts[optimizer].add(bad)
    if optimizer.defaults.get("fused"):  # the kernel looks at it, as at that of a GradScaler
        optimizer.found_inf = bad  # type: ignore[attr-defined]
        optimizer.step()
    elif not bad:
        optimizer.step()
    return bad


def forget_updates() -> None:
    """What was counted before is another training's."""
    _counts.clear()


def skipped_updates() -> dict[str, int]:
    """Under the key of metrics.jsonl: steps of all optimizers that were skipped since the last call; empty for none.

    Raises BurnishError where it was more than `MOST_IN_A_ROW` of one optimizer, or most of its steps.
    """
    counts = [count for count in _counts.values() if count.steps]
    if not counts:
        return {}
    found = torch.stack([torch.stack([count.skipped, count.in_a_row]) for count in counts]).tolist()
    for count, (skipped, in_a_row) in zip(counts, found, strict=True):
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
    total = int(sum(skipped for skipped, _ in found))
    return {"skipped_updates": total} if total else {}
