"""Statistics over few runs (Agarwal et al. 2021, arXiv 2108.13264): rliable's bootstrap with a seed.

Scores are (runs, tasks). What is drawn again is the run, within each task; the episodes of a run are not.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

from burnish.evaluation.intervals import CONFIDENCE, Interval

RESAMPLES = 2000
FEWEST = 2  # runs for any interval
FEW = 5  # runs below which an interval says little


class Estimate(NamedTuple):
    """A number with its interval; None where there are too few runs for one."""

    value: float
    interval: Interval | None = None


class Aggregates(NamedTuple):
    """Of scores: the interquartile mean and the mean."""

    iqm: Estimate
    mean: Estimate


class Profile(NamedTuple):
    """Share of runs above each of `thresholds`, with the ends of its interval (all (n,))."""

    thresholds: np.ndarray
    share: np.ndarray
    low: np.ndarray
    high: np.ndarray


def interquartile_mean(scores: np.ndarray) -> float:
    """Mean without the lowest and the highest quarter; what rliable's aggregate_iqm gives, 20 times as fast."""
    cut = int(0.25 * scores.size)
    return float(np.sort(scores, axis=None)[cut : scores.size - cut].mean())


def probability_of_improvement(ours: np.ndarray, theirs: np.ndarray) -> float:
    """P(ours > theirs) + P(ours = theirs) / 2 over pairs of runs, mean over tasks; rliable's number, faster.

    Args:
        ours, theirs: (runs, tasks), the same tasks.
    """
    above = np.sign(ours[:, None] - theirs[None])  # (runs, their runs, tasks)
    return float(np.mean((above + 1) / 2))


def summarise(scores: np.ndarray) -> Aggregates:
    """IQM and mean of scores (runs, tasks), with stratified bootstrap intervals."""
    both = _bootstrap((scores,), lambda s: np.array([interquartile_mean(s), s.mean()]))
    return Aggregates(*both)


def improvement(ours: np.ndarray, theirs: np.ndarray) -> Estimate:
    """`probability_of_improvement` with its interval."""
    return _bootstrap((ours, theirs), lambda x, y: np.array([probability_of_improvement(x, y)]))[0]


def profile(scores: np.ndarray, thresholds: np.ndarray) -> Profile:
    """Performance profile of scores (runs, tasks)."""
    shares = _bootstrap((scores,), lambda s: (s[..., None] > thresholds).mean(axis=(0, 1)))
    ends = np.array([share.interval or (share.value, share.value) for share in shares])
    return Profile(thresholds, np.array([share.value for share in shares]), ends[:, 0], ends[:, 1])


def _bootstrap(scores: Sequence[np.ndarray], function: Callable[..., np.ndarray]) -> list[Estimate]:
    """Each number that `function` gives, with rliable's stratified percentile interval."""
    if min(len(matrix) for matrix in scores) < FEWEST:
        return [Estimate(float(value)) for value in function(*scores)]
    from rliable.library import get_interval_estimates

    given = scores[0] if len(scores) == 1 else list(scores)
    with _seeded():
        points, intervals = get_interval_estimates(
            {"": given}, function, reps=RESAMPLES, confidence_interval_size=CONFIDENCE
        )
    ends = intervals[""].T.tolist()
    return [Estimate(float(value), Interval(*pair)) for value, pair in zip(points[""], ends)]


@contextlib.contextmanager
def _seeded() -> Iterator[None]:
    """rliable draws from numpy's global generator, whatever it is given: seed it, and put it back afterwards."""
    before = np.random.get_state()  # noqa: NPY002
    np.random.seed(0)  # noqa: NPY002
    try:
        yield
    finally:
        np.random.set_state(before)  # noqa: NPY002
