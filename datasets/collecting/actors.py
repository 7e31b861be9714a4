"""What acts while demonstrations are collected: scripted experts, SAC actors and policies alike.

Symbols: To observation steps, Do and Da dimensions of observation and action.
"""

from __future__ import annotations

from collections import deque
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from burnish.datasets.experts.faults import EpisodeFaults
from burnish.envs.base import Floats, Obs, Simulator
from burnish.envs.same_environment import of_task, require_same, require_trained_in
from burnish.registry import find

if TYPE_CHECKING:
    from burnish.datasets.collecting.config import CollectConfig
    from burnish.datasets.collecting.sac_actor import SACActor
    from burnish.policies.base import Policy


BEHAVIOURS = {
    "expert": "burnish.datasets.collecting.actors:scripted_expert",
    "sac": "burnish.datasets.collecting.actors:shipped_sac",
}
"""Name -> what gives an `Actor`, called with a `CollectConfig`. Others are registered by plugins, or named as
module:function."""


class Actor(Protocol):
    """A behaviour, one action at a time. One of your own is a subclass.

    Attributes:
        faults: what it does wrong on purpose in the present episode.
    """

    faults: EpisodeFaults = EpisodeFaults()

    def reset(self, simulator: Simulator, rng: np.random.Generator) -> None:
        """Begin an episode in `simulator`, just reset; `rng` is for all that is random in this episode."""

    def act(self, obs: Floats) -> Floats:
        """The action (Da,) for the observation (Do,). Called once in every step."""


class SampledActor:
    """A SAC actor that samples its actions."""

    faults = EpisodeFaults()

    def __init__(self, actor: SACActor) -> None:
        self._actor = actor

    def reset(self, simulator: Simulator, rng: np.random.Generator) -> None:
        self._rng = rng

    def act(self, obs: Floats) -> Floats:
        return self._actor.act(obs, self._rng)


class PolicyActor:
    """A saved policy: keeps the last To observations and works through each chunk before the next."""

    faults = EpisodeFaults()

    def __init__(self, policy: Policy) -> None:
        self._policy = policy
        self._history: deque[Obs] = deque(maxlen=policy.config.n_obs_steps)
        self._chunk: deque[Floats] = deque()

    def reset(self, simulator: Simulator, rng: np.random.Generator) -> None:
        import torch

        self._history.clear()
        self._chunk.clear()
        self._generator: Any = torch.Generator().manual_seed(int(rng.integers(2**63)))

    def act(self, obs: Obs) -> Floats:
        missing = self._policy.config.n_obs_steps - len(self._history)
        self._history.extend([obs] * max(missing, 1))  # an episode begins with its first observation To times
        if not self._chunk:
            history = np.stack(self._history)[None]  # (1, To, Do)
            self._chunk.extend(np.asarray(self._policy.act(history, generator=self._generator))[0])
        return self._chunk.popleft()


def scripted_expert(config: CollectConfig) -> Actor:
    from burnish.datasets.experts import make_expert

    return make_expert(config.task.env_id, config.grasp_bias, config.speed, config.faults)


def shipped_sac(config: CollectConfig) -> Actor:
    return _sac(f"shipped:{config.task.name}-medium", config)


def _sac(source: str, config: CollectConfig) -> Actor:
    from burnish.datasets.collecting.sac_actor import SACActor

    actor = SACActor.load(source)
    if (trained_in := actor.metadata.get("config", {}).get("task")) is not None:
        known = of_task(trained_in, f"what {source} was trained in", "the actor's", actor.metadata.get("versions"))
        require_same(known, of_task(config.task), config.allow)
    return SampledActor(actor)


def make_actor(config: CollectConfig, behaviour: str) -> Actor:
    """The behaviour of that name, file or folder. Raises BurnishError where there is none."""
    if behaviour.endswith(".safetensors"):
        return _sac(behaviour, config)
    if behaviour not in BEHAVIOURS and ("/" in behaviour or Path(behaviour).exists()):
        from burnish.policies.load import load_policy

        policy = load_policy(behaviour)
        require_trained_in(policy, config.task, config.allow)
        return PolicyActor(policy)
    return find("behaviour", behaviour, BEHAVIOURS, "behaviour")(config)
