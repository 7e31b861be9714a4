"""Whether an imitation was still improving, and whether a fine-tuning fell."""

import numpy as np
import pytest

from burnish.evaluation.evaluate import Evaluation
from burnish.finetune.watch import TrainingEpisodes, fall
from burnish.pretrain.convergence import still_improving


def line(step, successes=None, loss=None, mean_return=0.0, n=100):
    found = {"step": step}
    if successes is not None:
        success, returns = np.arange(n) < successes, np.full(n, mean_return) + np.arange(n) % 2
        found |= Evaluation(list(range(n)), success, returns, np.full(n, 7), 1.0, 0, 1.0, 1).metrics()
    return found | ({"validation_loss": loss} if loss is not None else {})


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        ([line(500, 40), line(750, 50), line(1000, 62)], ["still rose, from 50% to 62%"]),
        ([line(500, 40), line(750, 50), line(1000, 52)], []),
        ([line(500, 40), line(800, 40), line(1000, 60)], ["still rose, from 40% to 60%"]),
        ([line(500, 40), line(800, 60), line(1000, 60)], ["still rose, from 40% to 60%"]),
        ([line(1000, 60)], ["evaluated at the end alone"]),
        ([line(500, 0), line(1000, 0)], ["never succeeded"]),
        ([line(500, 50, 0.30), line(750, loss=0.25), line(1000, 50, 0.24)], ["held-out loss still fell, from 0.25"]),
        ([line(500, 50, 0.30), line(750, loss=0.25), line(1000, 50, 0.249)], []),
        ([line(500, 50, 0.20), line(750, loss=0.25), line(1000, 50, 0.24)], []),
    ],
)
def test_what_still_improved_at_the_end_is_said(lines, said):
    found = still_improving(lines, "success_rate")
    assert len(found) == len(said) and all(text in each for text, each in zip(said, found))


def test_returns_are_judged_by_their_own_intervals():
    assert still_improving([line(500, 0, mean_return=100), line(1000, 0, mean_return=130)], "return") == [
        "return still rose, from 100 to 130"
    ]
    assert still_improving([line(500, 0, mean_return=100), line(1000, 0, mean_return=100.05)], "return") == []


def test_a_fall_is_paired_and_beyond_chance():
    before = np.arange(100) < 60
    assert fall(before, np.arange(100) < 58, "success_rate") is None
    said = fall(before, np.arange(100) < 50, "success_rate")
    assert said is not None and "50% where it began with 60%" in said and "difference -10%" in said
    assert fall(before, np.arange(100) >= 40, "success_rate") is None  # as many, others
    assert fall(np.full(20, 500.0), np.full(20, 300.0), "return") is not None
    assert fall(np.full(20, 300.0), np.full(20, 500.0), "return") is None


def ended(successes: int, failures: int, e: int = 0) -> list[tuple[int, bool]]:
    return [(e, True)] * successes + [(e, False)] * failures


def test_training_episodes_that_fail_more_and_more_are_said_once():
    watch = TrainingEpisodes(1)
    assert watch.observe([]) is None and watch.began_with is None
    assert [watch.observe(ended(8, 2)), watch.observe(ended(6, 4))] == [None, None]  # the first 20
    assert watch.began_with == 0.7
    assert watch.observe(ended(0, 19)) is None  # too few
    copy = TrainingEpisodes(1)
    copy.load_state_dict(watch.state_dict())
    for each in (watch, copy):
        said = each.observe(ended(1, 0))
        assert said is not None and "5% (the last 20)" in said and "70% (the first 20)" in said
        assert each.observe(ended(0, 10)) is None
    watch = TrainingEpisodes(1)
    watch.observe(ended(14, 6))
    assert watch.observe(ended(10, 10)) is None  # by chance


def test_where_successes_are_short_the_first_episodes_are_those_of_every_environment():
    """Half of 10 environments fail, ten times as slowly: the first 20 that end are successes, and the rate is 50 %."""
    watch = TrainingEpisodes(10)
    for _ in range(10):
        assert watch.observe([(e, True) for e in range(5)]) is None
    assert watch.began_with is None  # not all had their two
    for _ in range(2):
        watch.observe([(e, False) for e in range(5, 10)])
    assert watch.began_with == 0.5 and watch.first == (10, 20)
    assert watch.observe(ended(8, 12)) is None
    assert watch.observe(ended(0, 20)) is not None
