"""Parts that are named by a string: looked up when they are needed, so that nothing is imported for its name alone."""

from __future__ import annotations

from importlib import import_module
from typing import Any


def load(target: str) -> Any:
    """What "module:name" stands for."""
    module, name = target.split(":")
    return getattr(import_module(module), name)
