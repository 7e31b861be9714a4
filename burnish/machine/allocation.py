"""A bound on what networks take while they are made, before memory is taken."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from burnish.errors import BurnishError

FACTORIES = (torch.empty, torch.zeros, torch.ones, torch.full, torch.rand, torch.randn)
"""By which modules begin: they make a tensor of a size alone."""


class AtMost(TorchFunctionMode):
    """Inside, tensors that are made from a size alone have at most `n_bytes` together.

    Raises:
        BurnishError: beginning with `what`, before the tensor is made that is one too many.
    """

    def __init__(self, n_bytes: int, what: str):
        super().__init__()
        self._most, self._what, self._made = n_bytes, what, 0

    def __torch_function__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func in FACTORIES:
            size = kwargs["size"] if "size" in kwargs else args if isinstance(args[0], int) else args[0]
            dtype = kwargs.get("dtype") or torch.get_default_dtype()
            self._made += math.prod(size) * dtype.itemsize
            if self._made > self._most:
                raise BurnishError(f"{self._what}: its networks need more than {self._most:,} bytes")
        return func(*args, **kwargs)
