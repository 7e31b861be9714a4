"""Faults in demonstrations that a reader accepts but training would suffer from."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from burnish.datasets.consistency import faults, signals
from burnish.datasets.episodes import Demonstrations, Episode

ERROR, WARNING = "error", "warning"


class Finding(NamedTuple):
    """One fault: an `error` makes training fail or wrong, a `warning` should be looked at."""

    level: str  # ERROR or WARNING
    episode: str  # its name, or "all"
    message: str

    def __str__(self) -> str:
        return f"{self.level}: episode {self.episode}: {self.message}"


def check(demos: Demonstrations, obs_keys: list[str] | None = None, horizon: int = 1) -> list[Finding]:
    """Look for faults in every episode, and for dimensions that are constant over all of them.

    Args:
        obs_keys: the keys a policy will use; None stands for those of the first episode.
        horizon: Tp, the predicted action steps; shorter episodes are reported.

    Errors: missing keys, no steps, and the `faults` that loading refuses. Warnings: actions outside
    [-1, 1], constant dimensions, short and duplicate episodes.
    """
    if not demos.episodes:
        return [Finding(ERROR, "all", "there are no episodes")]
    keys = list(demos.episodes[0].obs) if obs_keys is None else obs_keys
    findings: list[Finding] = []
    seen: dict[bytes, str] = {}
    for episode in demos.episodes:
        findings += _check_episode(episode, demos.episodes[0], keys, horizon)
        twin = seen.setdefault(episode.actions.tobytes(), episode.name)
        if twin != episode.name and len(episode):
            findings.append(Finding(WARNING, episode.name, f"the same actions as episode {twin}"))
    return findings + _constant_dimensions(demos.episodes, keys)


def _check_episode(episode: Episode, first: Episode, keys: list[str], horizon: int) -> list[Finding]:
    findings = [Finding(ERROR, episode.name, episode.without(key)) for key in keys if key not in episode.obs]
    if len(episode) == 0:
        return [*findings, Finding(ERROR, episode.name, "no steps")]
    if len(episode) < horizon:
        findings.append(Finding(WARNING, episode.name, f"{len(episode)} steps, fewer than the horizon {horizon}"))
    findings += [Finding(ERROR, episode.name, fault) for fault in faults(episode, first, keys)]
    outside = np.abs(episode.actions) > 1
    if outside.any():
        worst = float(np.abs(episode.actions[outside]).max())
        share = f"{outside.mean():.1%} of the action values"
        findings.append(Finding(WARNING, episode.name, f"{share} are outside [-1, 1], up to {worst:.4g}"))
    return findings


def _constant_dimensions(episodes: list[Episode], keys: list[str]) -> list[Finding]:
    recorded = [signals(episode, keys) for episode in episodes if len(episode)]
    findings = []
    for name in ("actions", *(f"observation {key!r}" for key in keys)):
        arrays = [signal[name] for signal in recorded if name in signal]
        if not arrays or len({array.shape[1:] for array in arrays}) > 1:
            continue
        values = np.concatenate(arrays)
        constant = np.flatnonzero((values == values[0]).all(axis=0))
        if len(constant) and len(values) > 1:
            listed = ", ".join(map(str, constant))
            findings.append(Finding(WARNING, "all", f"{name} is constant in dimension {listed}"))
    return findings
