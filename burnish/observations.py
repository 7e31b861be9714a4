"""What an observation is made of: named parts, each with a shape and a type, kept together in one array.

Where there is a state alone, an observation is its numbers, (Do,) float32. Where a task has sensors beside it, an
observation is a record: an element of a NumPy structured array, `obs["state"]`, `obs["picture"]`, and in torch its W
bytes. So everything that stores, stacks, sends or draws observations handles one array, and only the simulator and the
policy's encoder know what is in it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from burnish.errors import BurnishError

if TYPE_CHECKING:  # processes of environments do without torch
    import torch
    from torch import Tensor

STATE = "state"
TYPES = ("float32", "uint8")


@dataclass(frozen=True)
class Part:
    """One part of an observation.

    Attributes:
        shape: of one of them, e.g. (Do,), (H, W, 3) of a picture, (P, 3) of a cloud of points.
        dtype: "float32" or "uint8".
    """

    shape: tuple[int, ...]
    dtype: str = "float32"

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * np.dtype(self.dtype).itemsize


class ObsSpec:
    """The parts of a task's observations, by name, in their order.

    Args:
        parts: name -> part. The low-dimensional keys of a task, joined, are `state`.
        state_sizes: those keys, in their order -> numbers; by default all are "flat".

    Raises:
        BurnishError: a part of another type than float32 or uint8, or no part.
    """

    def __init__(self, parts: Mapping[str, Part], state_sizes: Mapping[str, int] | None = None):
        self.parts = dict(parts)
        self.state_sizes = dict(state_sizes or {"flat": self.state_dim})
        if not self.parts:
            raise BurnishError("an observation without parts: expected a state, or a sensor")
        for name, part in self.parts.items():
            if part.dtype not in TYPES:
                raise BurnishError(f"observation {name!r} is of {part.dtype}: expected {' or '.join(TYPES)}")
        self.is_state = list(self.parts) == [STATE] and len(self.parts[STATE].shape) == 1
        fields = [(name, part.dtype, part.shape) for name, part in self.parts.items()]
        self._record = np.dtype(fields, align=True)

    @classmethod
    def of_state(cls, dim: int, state_sizes: Mapping[str, int] | None = None) -> ObsSpec:
        """A state of `dim` numbers, and nothing else."""
        return cls({STATE: Part((dim,))}, state_sizes)

    @property
    def state_dim(self) -> int:
        """Do, numbers of the state; 0 where there is none."""
        return math.prod(self.parts[STATE].shape) if STATE in self.parts else 0

    @property
    def sensors(self) -> dict[str, Part]:
        """The parts beside the state."""
        return {name: part for name, part in self.parts.items() if name != STATE}

    def zeros(self, *leading: int) -> NDArray[Any]:
        """An array of so many observations, to be filled: (*leading, Do) float32, or records (*leading)."""
        if self.is_state:
            return np.zeros((*leading, self.state_dim), np.float32)
        return np.zeros(leading, self._record)

    def record(self, parts: Mapping[str, Any]) -> NDArray[Any]:
        """Observations from their parts, (..., *shape) each -> (...,) records, or (..., Do) of a state alone."""
        if self.is_state:
            return np.asarray(parts[STATE], np.float32)
        first = next(iter(self.parts))
        values = np.asarray(parts[first])
        records = self.zeros(*values.shape[: values.ndim - len(self.parts[first].shape)])
        for name in self.parts:
            records[name] = parts[name]
        return records

    def of_keys(self, values: Mapping[str, Any], keys: Sequence[str], leading: int = 0) -> NDArray[Any]:
        """Observations from a task's own: those of `keys` joined in this order, and the sensors, each with so many
        leading dimensions -> as `record`."""
        state = [np.reshape(values[key], (*np.shape(values[key])[:leading], -1)) for key in keys]
        parts = {STATE: np.concatenate(state, axis=-1).astype(np.float32)} if keys else {}
        return self.record({**parts, **{name: values[name] for name in self.sensors}})

    def part(self, array: NDArray[Any], name: str) -> NDArray[Any]:
        """A view of the part `name` of observations."""
        return array if self.is_state else array[name]

    def by_key(self, array: NDArray[Any]) -> dict[str, NDArray[Any]]:
        """Observations as demonstrations keep them: the state's keys (..., d), and the sensors (..., *shape)."""
        found: dict[str, NDArray[Any]] = {}
        if STATE in self.parts:
            state = self.part(array, STATE)
            ends = np.cumsum([*self.state_sizes.values()])[:-1]
            found = dict(zip(self.state_sizes, np.split(state, ends, axis=-1)))
        return found | {name: array[name] for name in self.sensors}

    def is_finite(self, array: NDArray[Any]) -> bool:
        if self.is_state:
            return bool(np.isfinite(array).all())
        return all(np.isfinite(array[name]).all() for name, part in self.parts.items() if part.dtype == "float32")

    # in torch: (..., W), W = Do numbers of a state alone, else the record's bytes

    @property
    def width(self) -> int:
        """W"""
        return self.state_dim if self.is_state else self._record.itemsize

    @property
    def dtype(self) -> torch.dtype:
        import torch

        return torch.float32 if self.is_state else torch.uint8

    def tensor(self, array: NDArray[Any] | Tensor, device: torch.device | str = "cpu") -> Tensor:
        """Observations as an array -> (..., W); a tensor only moves."""
        import torch

        if isinstance(array, torch.Tensor):
            return array.to(device, self.dtype)
        if not self.is_state:
            array = np.ascontiguousarray(array).view(np.uint8).reshape(*array.shape, self.width)
        return torch.as_tensor(array, dtype=self.dtype, device=device)

    def split(self, obs: Tensor) -> dict[str, Tensor]:
        """(..., W) -> the parts (..., *shape)."""
        if self.is_state:
            return {STATE: obs}
        return {name: self._bytes_of(obs, name).view(*obs.shape[:-1], *p.shape) for name, p in self.parts.items()}

    def _bytes_of(self, obs: Tensor, name: str) -> Tensor:
        import torch

        start = self._record.fields[name][1]  # type: ignore[index]
        part = self.parts[name]
        return obs[..., start : start + part.nbytes].contiguous().view(getattr(torch, part.dtype))

    def with_state(self, obs: Tensor, state: Tensor) -> Tensor:
        """`obs` (..., W) with another state (..., Do)."""
        if self.is_state:
            return state
        if STATE not in self.parts:
            return obs
        import torch

        start = self._record.fields[STATE][1]  # type: ignore[index]
        obs = obs.clone()
        obs[..., start : start + self.parts[STATE].nbytes] = state.contiguous().view(torch.uint8)
        return obs

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ObsSpec) and list(self.parts.items()) == list(other.parts.items())

    def __hash__(self) -> int:
        return hash(tuple(self.parts.items()))

    def __str__(self) -> str:
        return ", ".join(f"{name} {list(part.shape)} {part.dtype}" for name, part in self.parts.items())

    def sensors_as_json(self) -> dict[str, Any]:
        return {name: {"shape": list(part.shape), "dtype": part.dtype} for name, part in self.sensors.items()}

    @classmethod
    def from_json(cls, state_dim: int, sensors: Mapping[str, Any] | None) -> ObsSpec:
        """What policy.json says: Do, and `sensors_as_json`."""
        state = {STATE: Part((state_dim,))} if state_dim or not sensors else {}
        others = {name: Part(tuple(said["shape"]), said["dtype"]) for name, said in (sensors or {}).items()}
        return cls(state | others)
