"""The two environment contracts: one simulator (`Simulator`) and many of them in chunks (`VectorEnv`).

Symbols: E environments, To observation steps, Ta executed action steps, Do and Da dimensions.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from burnish.observations import ObsSpec

Floats = NDArray[np.float32]
Bools = NDArray[np.bool_]
Obs = NDArray[Any]  # (..., Do) float32 of a state alone, records (...) with sensors (`burnish.observations`)


class Step(NamedTuple):
    """One primitive step of one simulator."""

    obs: Obs  # (Do,), or one record
    reward: float
    terminated: bool
    success: bool
    truncated: bool = False  # by the environment itself, beside the task's time limit


class Simulator(Protocol):
    """One environment, without time limit, chunks, history or autoreset: `VectorEnv` adds those."""

    obs_spec: ObsSpec
    action_dim: int

    def reset(self, seed: int | None) -> Obs:
        """Start an episode -> observation (Do,), or one record. With a seed, the initial state depends on the seed
        alone (not on what was run before, nor on which instance this is); None goes on with the generator."""

    def step(self, action: Floats) -> Step:
        """One control step; `action` (Da,) in [-1, 1] (clipped, then rescaled to the simulator's range)."""

    def get_state(self) -> dict[str, Any]:
        """Everything that decides the future, bitwise: simulator state and random generator. Only numpy
        arrays, int, float, str, bool, None, and dict or list of them (for `torch.save`/`weights_only`).
        Raises NotImplementedError where the simulator cannot do this."""

    def set_state(self, state: dict[str, Any]) -> None: ...

    def render(self, width: int, height: int) -> NDArray[np.uint8]:
        """RGB image (height, width, 3) of the present state, offscreen."""

    def close(self) -> None: ...


class ChunkStep(NamedTuple):
    """One chunk of Ta actions in E environments, with SAME_STEP autoreset.

    A chunk is cut where its episode ends: `steps` tells how many actions were executed. Where
    `terminated | truncated`, `obs` is the first observation of the next episode (with autoreset) and
    `final_obs` the true last one; elsewhere both are the same.
    """

    obs: Obs  # (E, To, Do) what to act on next; with sensors, records (E, To)
    reward: Floats  # (E,) sum over the executed steps
    terminated: Bools  # (E,)
    truncated: Bools  # (E,) time limit, or non-finite simulation; never together with terminated
    final_obs: Obs  # likewise
    success: Bools  # (E,) success in any executed step of the chunk
    steps: NDArray[np.int64]  # (E,) executed steps, 0 where masked
    step_rewards: Floats  # (E, Ta) reward of each executed step, 0 after the cut (for discounting inside a chunk)


class VectorEnv(ABC):
    """E environments that execute chunks of actions (Gymnasium's vector semantics, SAME_STEP autoreset)."""

    n_envs: int
    obs_spec: ObsSpec
    action_dim: int  # Da
    n_obs_steps: int  # To
    n_action_steps: int  # Ta
    nonfinite_episodes: int  # episodes ended because of a non-finite observation or reward

    @abstractmethod
    def reset(self, seeds: Sequence[int] | None = None) -> Obs:
        """Start an episode everywhere -> (E, To, Do) or records (E, To), the first observation repeated To times.
        `seeds`: one per environment; None goes on with each environment's own generator."""

    @abstractmethod
    def step(self, actions: Floats, mask: Bools | None = None) -> ChunkStep:
        """Execute chunks (E, Ta, Da) in [-1, 1]. Environments where `mask` is False stand still."""

    @abstractmethod
    def state_dict(self) -> dict[str, Any]:
        """The state of every environment (simulator, generator, history, elapsed steps), resumable bitwise."""

    @abstractmethod
    def load_state_dict(self, state: dict[str, Any]) -> None: ...

    @abstractmethod
    def close(self) -> None: ...
