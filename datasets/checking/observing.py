"""Are recorded observations what today's simulator observes in the recorded states?

Symbols: n compared steps, d numbers of an observation.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from burnish.datasets.episodes import Episode

ABSOLUTE = 0.001  # metres or parts of a quaternion: in a step robosuite observes one of its substeps earlier
RELATIVE = 0.05  # of what a number varies by, for velocities
ALWAYS = 0.9  # share of the steps that tell a number's sign in which it is the other one, and its convention with it
ENOUGH = 3  # steps in which its sign can be told
MOST_DIFFERENT = 0.25  # share of the steps that may be further apart


class Compared(NamedTuple):
    """One step: what was recorded and what is observed in its state, by key."""

    recorded: dict[str, NDArray[np.float64]]
    observed: dict[str, NDArray[np.float64]]


def observe(env: Any) -> dict[str, Any]:
    """Everything that robosuite observes in the present state."""
    return dict(env._get_observations(force_update=True))


def compare_step(env: Any, episode: Episode, step: int) -> Compared:
    """Observe in the state that `env` is in; keys that it does not observe are left out."""
    from burnish.envs.robosuite.observables import robosuite_name  # there is no `env` without a simulator

    seen = observe(env)
    keys = [key for key in episode.obs if robosuite_name(key) in seen]
    recorded = {key: np.ravel(episode.obs[key][step]).astype(np.float64) for key in keys}
    return Compared(recorded, {key: np.ravel(seen[robosuite_name(key)]).astype(np.float64) for key in keys})


def conventions(steps: Sequence[Compared]) -> Iterator[tuple[str, str]]:
    """(key, what is wrong) of those that were recorded in another convention, or of something else."""
    for key in steps[0].observed if steps else ():
        recorded = [step.recorded[key] for step in steps]
        observed = np.stack([step.observed[key] for step in steps])  # (n, d)
        if recorded[0].shape != observed[0].shape:
            yield key, f"has {len(recorded[0])} numbers, {observed.shape[1]} are observed in the recorded states"
            continue
        there = np.stack(recorded)
        if _fits(there, observed):
            continue
        worst = np.unravel_index(np.abs(there - observed).argmax(), there.shape)
        how = _how(there, observed)
        yield (
            key,
            f"is not what is observed in the recorded states{how}: number {worst[1]} is {there[worst]:.3g} in the file "
            f"and {observed[worst]:.3g} there",
        )


def _fits(recorded: NDArray[np.float64], observed: NDArray[np.float64]) -> bool:
    """Whether they are the same in most steps. The sign of a turn by half a circle is that of a rounding error: signs
    count where a number always has the other one."""
    tolerance = ABSOLUTE + RELATIVE * observed.std(axis=0)
    telling = np.abs(observed) > tolerance
    opposite = telling & (recorded * observed < 0) & (np.abs(recorded) > tolerance)
    turned = (telling.sum(axis=0) >= ENOUGH) & (opposite.sum(axis=0) >= ALWAYS * telling.sum(axis=0))
    different = (np.abs(np.abs(recorded) - np.abs(observed)) > tolerance).any(axis=1)
    return bool(different.mean() <= MOST_DIFFERENT and not turned.any())


def _how(recorded: NDArray[np.float64], observed: NDArray[np.float64]) -> str:
    """What would make them the same, where that is simple."""
    d = observed.shape[1]
    turned = [shift for shift in range(1, d) if _fits(recorded, np.roll(observed, shift, axis=1))]
    if turned:
        return " (but they are in another order)"
    if _fits(np.abs(recorded), np.abs(observed)):
        return " (but of the other sign)"
    if _fits(recorded - recorded[0], observed - observed[0]):
        return " (but moved by a constant: another frame)"
    factor = float((recorded * observed).sum() / max((observed**2).sum(), 1e-12))
    if factor and _fits(recorded / factor, observed):
        return f" (but times {factor:.4g}: other units)"
    return ""
