"""Which episodes are trained on and which are held out."""

from __future__ import annotations

import numpy as np

from burnish.datasets.episodes import Demonstrations, Episode, listed
from burnish.errors import BurnishError, warn


def split_episodes(demos: Demonstrations, validation_fraction: float, seed: int) -> tuple[list[Episode], list[Episode]]:
    """Whole episodes for training and for validation, disjoint, each in file order.

    With a fraction of 0 everything is for training. Otherwise the file's own masks `train` and `valid` are
    used, where it has both; else `validation_fraction` of the episodes is drawn by `seed`, at least one and
    never all. Where the masks leave episodes unused, a warning says so.

    Raises BurnishError for a fraction outside [0, 1), no episodes, or overlapping masks.
    """
    if not 0 <= validation_fraction < 1:
        raise BurnishError(f"validation_fraction={validation_fraction}: expected at least 0 and less than 1")
    if not demos.episodes:
        raise BurnishError(f"{demos.source}: no episodes")
    if validation_fraction == 0:
        return list(demos.episodes), []
    train, valid = set(demos.masks.get("train", [])), set(demos.masks.get("valid", []))
    if train & valid:
        raise BurnishError(f"{demos.source}: {min(train & valid)} is in both masks, train and valid")
    if not (train and valid):
        names = [episode.name for episode in demos.episodes]
        count = min(max(1, round(validation_fraction * len(names))), len(names) - 1)
        drawn = np.random.default_rng(seed).permutation(len(names))[:count]
        valid = {names[index] for index in drawn}
        train = set(names) - valid
    elif len(train | valid) < len(demos.episodes):
        unused = [episode.name for episode in demos.episodes if episode.name not in train | valid]
        warn(
            f"{demos.source}: mask/train and mask/valid name {len(train)} and {len(valid)} of {len(demos.episodes)} "
            f"episodes, so these are not used: {listed(unused)} (validation_fraction={validation_fraction:g} does not "
            "count where a file has both masks; to use all, delete them)"
        )
    return (
        [episode for episode in demos.episodes if episode.name in train],
        [episode for episode in demos.episodes if episode.name in valid],
    )
