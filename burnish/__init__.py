"""Burnish: pretrain diffusion policies on robot demonstrations, then improve them by RL."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

from burnish.errors import BurnishError

if TYPE_CHECKING:
    from burnish.policies.diffusion import DiffusionPolicy

__all__ = ["BurnishError", "DiffusionPolicy", "__version__"]

try:
    __version__ = version("burnish")
except PackageNotFoundError:  # a checkout on PYTHONPATH
    __version__ = "0+unknown"


def __getattr__(name: str) -> Any:
    """`burnish.DiffusionPolicy`, without importing torch before it is asked for."""
    if name == "DiffusionPolicy":
        from burnish.policies.diffusion import DiffusionPolicy

        return DiffusionPolicy
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
