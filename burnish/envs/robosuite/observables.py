"""robosuite's observables, visited only when they sample, and only those that a task's observation needs.

Their values stay robosuite's: what is left out is the visit of every observable after every physics substep, the
sensors whose values nobody reads, and the dict of all observations.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import numpy as np

from burnish.envs.base import Floats


def robosuite_name(key: str) -> str:
    """robosuite's name of robomimic's observation key."""
    return "object-state" if key == "object" else key


def read(observables: Sequence[Any]) -> Floats:
    """Their present values, one after the other (Do,)."""
    return np.concatenate([np.ravel(item.obs) for item in observables], dtype=np.float32)


def observables_of(env: Any, keys: Sequence[str]) -> list[Any]:
    """The observables whose values `env._get_observations()` has under these keys, in the keys' order: one by its name,
    or all of a modality, which robosuite concatenates ("object")."""
    observables = []
    for name in map(robosuite_name, keys):
        if name in env._observables:
            observables.append(env._observables[name])
        else:
            shown = [item for item in env._observables.values() if item.is_enabled() and item.is_active()]
            observables += [item for item in shown if f"{item.modality}-state" == name]
    return observables


def disable_unneeded(env: Any, keys: Sequence[str]) -> None:
    """Let the environment, after a reset, compute only the observables of these keys and those they are made from.

    Sensors read, and some write, one another's values in the environment's cache: what each one does there is seen by
    running it once.
    """
    reads: dict[str, set[str]] = {}
    writers: defaultdict[str, set[str]] = defaultdict(set)
    for name, item in env._observables.items():
        cache = _WatchedCache(env._obs_cache)
        item._sensor(cache)
        reads[name] = cache.read
        for written in {name, *cache.written}:
            writers[written].add(name)
    needed: set[str] = set()
    left = {item.name for item in observables_of(env, keys)}
    while left:
        name = left.pop()
        needed.add(name)
        left |= {writer for value in {name, *reads[name]} for writer in writers[value]} - needed
    for name in reads.keys() - needed:
        env.modify_observable(name, "enabled", False)


class _WatchedCache(dict[str, Any]):
    """A copy of a cache that remembers which values a sensor asks for and which it sets."""

    def __init__(self, cache: dict[str, Any]) -> None:
        super().__init__(cache)
        self.read: set[str] = set()
        self.written: set[str] = set()

    def __contains__(self, name: Any) -> bool:
        self.read.add(name)
        return super().__contains__(name)

    def __getitem__(self, name: str) -> Any:
        self.read.add(name)
        return super().__getitem__(name)

    def __setitem__(self, name: str, value: Any) -> None:
        self.written.add(name)
        super().__setitem__(name, value)


def advance_clocks(env: Any, most: int) -> tuple[int, bool]:
    """How many substeps, at most `most`, may run before the observables must be visited, and whether they must then.

    Their clocks are advanced by the substeps without a visit, as `Observable.update` does it. They are all ticked
    together, so one stands for all, as long as they show the same time; if they do not, each substep is a visit.
    """
    items = [item for item in env._observables.values() if item.is_enabled()]
    time, sampled, period = items[0]._time_since_last_sample, items[0]._sampled, items[0]._sampling_timestep
    for item in items:
        if (item._time_since_last_sample, item._sampled, item._sampling_timestep) != (time, sampled, period):
            return 1, True
    n = 0
    while sampled and n < most:
        n += 1
        time += env.model_timestep
        if time >= period:
            time %= period
            sampled = False
    for item in items:
        item._time_since_last_sample, item._sampled = time, sampled
    return (n, False) if n == most else (n + 1, True)
