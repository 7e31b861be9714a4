"""Demonstrations: readers and writers, windows for training, checks, hub download."""

from __future__ import annotations

from importlib import import_module
from typing import Any

if __name__ == "datasets":
    raise ImportError(
        "this folder is the package burnish.datasets, not a package called datasets: "
        "import burnish.datasets, and keep Burnish's repository root off the import path of other projects"
    )

_FORMATS = ("d4rl", "dppo_npz", "minari_local", "robomimic")  # once modules of this package


def __getattr__(name: str) -> Any:
    if name in _FORMATS:
        return import_module(f"burnish.datasets.formats.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
