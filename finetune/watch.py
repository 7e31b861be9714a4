"""Whether a fine-tuning falls below where it began: no run may do so without a word.

Two signs are watched: the evaluations against the one before the first update, in the same episodes; and the training
episodes, with their exploration noise, against those that ended before the first update of the actor.
"""

from __future__ import annotations

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
    """Successes of the training episodes: those of the first reports against the latest."""

    def __init__(self) -> None:
        self.first = (0, 0)  # successes, episodes
        self.latest: list[tuple[int, int]] = []
        self.told = False

    def observe(self, report: dict[str, float]) -> str | None:
        """Take a report of `EpisodeStatistics` -> what to say, once, where success fell by more than chance."""
        if "train/success_rate" not in report:
            return None
        episodes = int(report["train/episodes"])
        found = round(report["train/success_rate"] * episodes), episodes
        if self.first[1] < FEW:
            self.first = self.first[0] + found[0], self.first[1] + found[1]
            return None
        self.latest.append(found)
        while sum(n for _, n in self.latest[1:]) >= FEW:
            self.latest.pop(0)
        successes, episodes = (sum(each) for each in zip(*self.latest))
        if self.told or episodes < FEW or wilson_interval(successes, episodes).high >= wilson_interval(*self.first).low:
            return None
        self.told = True
        return (
            f"the training episodes succeed in {successes / episodes:.0%} (the last {episodes}) where they began with "
            f"{self.first[0] / self.first[1]:.0%} (the first {self.first[1]})"
        )

    def state_dict(self) -> dict[str, Any]:
        return {**vars(self), "latest": list(self.latest)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
