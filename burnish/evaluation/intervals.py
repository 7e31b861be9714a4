"""Intervals of what was measured in n episodes: of a proportion, of a mean, of a paired difference."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

CONFIDENCE = 0.95
RESAMPLES = 10_000


class Interval(NamedTuple):
    low: float
    high: float


def wilson_interval(successes: int, n: int) -> Interval:
    """Wilson's score interval of a proportion (Wilson 1927)."""
    from scipy.stats import binomtest

    interval = binomtest(successes, n).proportion_ci(CONFIDENCE, method="wilson")
    return Interval(float(interval.low), float(interval.high))


def bootstrap_interval(values: np.ndarray) -> Interval:
    """Percentile bootstrap interval of the mean of `values` (n,); fixed resampling seed."""
    if np.ptp(values) == 0:
        return Interval(float(values[0]), float(values[0]))
    draws = np.random.default_rng(0).choice(values, size=(RESAMPLES, len(values))).mean(axis=1)
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(draws, [tail, 1 - tail])
    return Interval(float(low), float(high))


@dataclass(frozen=True)
class Difference:
    """Mean difference of two evaluations on the same seeds, with its paired bootstrap interval."""

    mean: float
    interval: Interval

    @classmethod
    def between(cls, before: np.ndarray, after: np.ndarray) -> Difference:
        """after - before, episode by episode (n,)."""
        difference = after.astype(float) - before.astype(float)
        return cls(float(difference.mean()), bootstrap_interval(difference))
