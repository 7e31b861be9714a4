"""Whether a fine-tuning falls below where it began: no run may do so without a word.

Two signs are watched: the evaluations against the one before the first update, in the same episodes; and the training
episodes, with their exploration noise, against those that ended before the first update of the actor.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from burnish.evaluation.evaluate import Evaluation
from burnish.evaluation.intervals import Difference, wilson_interval

FEW = 20  # training episodes tell nothing below this


def fall(before: np.ndarray, after: np.ndarray, measure: str) -> str | None:
    """What to say where `after` is below `before`, paired by episode, by more than chance; None where it is not."""
    difference = Difference.between(before.astype(float), after.astype(float))
    if difference.interval.high >= 0:
        return None
    number = "{:.0%}".format if measure == "success_rate" else "{:.0f}".format
    low, high = (number(end) for end in difference.interval)
    return (
        f"{measure} is {number(after.mean())} where it began with {number(before.mean())} "
        f"(difference {number(difference.mean)}, 95 % interval {low} to {high})"
    )


def values(evaluation: Evaluation, measure: str) -> np.ndarray:
    """What each episode gave."""
    return evaluation.success if measure == "success_rate" else evaluation.returns


class TrainingEpisodes:
    """Successes of the training episodes: the first of each environment against the latest.

    The first that end are no fair sample where a success ends an episode: all environments begin together, and
    successes are short. So the first few of every environment count, however long they take.
    """

    def __init__(self, n_envs: int) -> None:
        self.counted = np.zeros(n_envs, np.int64)  # of the first episodes, in each environment
        self.each = math.ceil(FEW / n_envs)
        self.first = (0, 0)  # successes, episodes
        self.latest: list[bool] = []
        self.told = False

    @property
    def began_with(self) -> float | None:
        """Success rate of the first episodes; None until each environment had its own."""
        return self.first[0] / self.first[1] if self.counted.min() >= self.each else None

    def observe(self, ended: list[tuple[int, bool]]) -> str | None:
        """Take (environment, success) of what ended -> what to say, once, where success fell by more than chance."""
        for e, success in ended:
            if self.counted[e] < self.each:
                self.counted[e] += 1
                self.first = self.first[0] + success, self.first[1] + 1
            elif self.began_with is not None:
                self.latest.append(success)
        self.latest = self.latest[-FEW:]
        if self.told or len(self.latest) < FEW:
            return None
        if wilson_interval(sum(self.latest), FEW).high >= wilson_interval(*self.first).low:
            return None
        self.told = True
        return (
            f"the training episodes succeed in {np.mean(self.latest):.0%} (the last {FEW}) where they began with "
            f"{self.began_with:.0%} (the first {self.first[1]})"
        )

    def state_dict(self) -> dict[str, Any]:
        return {**vars(self), "counted": self.counted.copy(), "latest": list(self.latest)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if "counted" in state:  # older ones counted otherwise, and begin anew
            vars(self).update(state)
