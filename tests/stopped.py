"""What tests of stopped and resumed runs share."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file

from burnish.runs.metrics import read_metrics


class StopAfter:
    """Stands in for `StopRequest`: asks to stop when it was looked at `n` times."""

    n = 0

    def __init__(self) -> None:
        self.left = StopAfter.n

    def __enter__(self) -> StopAfter:
        return self

    def __exit__(self, *rest: object) -> None:
        pass

    @property
    def requested(self) -> bool:
        self.left -= 1
        return self.left == 0


def untimed_metrics(folder: Path) -> list[dict[str, float]]:
    lines = read_metrics(folder / "metrics.jsonl")
    return [{k: v for k, v in line.items() if not k.startswith("time/")} for line in lines]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "checkpoints" / "latest" / "policy.safetensors")


def assert_same_run(one: Path, other: Path) -> None:
    assert untimed_metrics(one) == untimed_metrics(other)
    ours, theirs = weights(one), weights(other)
    assert ours.keys() == theirs.keys()
    for name in ours:
        assert torch.equal(ours[name], theirs[name]), name
