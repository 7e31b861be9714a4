"""What demonstrations are told apart by: a resumed run must go on with those that it began with."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from burnish.datasets.episodes import Episode

DIGITS = 16  # of SHA-256, as hexadecimal


def fingerprint(episodes: Iterable[Episode], obs_keys: Sequence[str]) -> dict[str, Any]:
    """Numbers of `episodes` and `steps`, and a checksum of each of what is learned from: `actions`, `rewards`,
    `terminated`, and of `obs_keys` as `obs/KEY` and `final_obs/KEY`.

    Of the values as they were read, so a file that was copied, compressed or renamed gives the same; neither the names
    of the episodes nor what is not learned from matters, their order does.
    """
    found: dict[str, Any] = {}
    n_episodes = n_steps = 0
    for episode in episodes:
        n_episodes, n_steps = n_episodes + 1, n_steps + len(episode)
        arrays = {"actions": episode.actions, "rewards": episode.rewards, "terminated": episode.terminated}
        arrays |= {f"obs/{key}": episode.obs[key] for key in obs_keys if key in episode.obs}
        final = episode.final_obs or {}
        arrays |= {f"final_obs/{key}": final[key] for key in obs_keys if key in final}
        for name, values in arrays.items():
            of_name = found.setdefault(name, hashlib.sha256())
            of_name.update(f"{n_episodes} {values.dtype.str} {values.shape}".encode())
            of_name.update(np.ascontiguousarray(values).data.cast("B") if values.size else b"")
    sums = {name: of_name.hexdigest()[:DIGITS] for name, of_name in found.items()}
    return {"episodes": n_episodes, "steps": n_steps, **sums}
