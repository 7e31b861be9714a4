"""The report of a comparison, on run folders with known numbers."""

from __future__ import annotations

import csv
import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from rliable import metrics
from scipy import stats

from burnish.compare.document import print_blocks, shown
from burnish.compare.figures import look
from burnish.compare.grouping import Method, TaskRuns, across_tasks, group_pretrained
from burnish.compare.plan import PlannedRun
from burnish.compare.report import headline, write_report
from burnish.compare.reproduce import evaluations
from burnish.compare.results import (
    RETURN,
    Evaluated,
    Point,
    at,
    mean_curve,
    paired_difference,
    read_run,
    with_minutes,
)
from burnish.compare.statistics import (
    Estimate,
    improvement,
    interquartile_mean,
    probability_of_improvement,
    profile,
    summarise,
)
from burnish.errors import BurnishError
from burnish.evaluation.evaluate import Evaluation
from burnish.evaluation.intervals import Interval
from burnish.runs.evaluation_file import About
from burnish.runs.metrics import read_metrics
from burnish.runs.origin import Origin, commit, without_names
from burnish.runs.summary import AtBestTemperature, Best, FinetuneSummary

EVERY, UPDATES = 100, 10  # environment steps an update, updates
N_EPISODES = 20


def evaluation(successes: int, first: int = 0, seed: int = 100_000, temperature: float = 1.0) -> Evaluation:
    """The episodes from number `first` on succeed; the return is 10 for a success, else 0."""
    success = np.zeros(N_EPISODES, bool)
    success[first : first + successes] = True
    seeds = [seed + i for i in range(N_EPISODES)]
    return Evaluation(seeds, success, 10.0 * success, np.full(N_EPISODES, 5), 1.5, 0, temperature, 1)


def made_by(candidates: int = 1, **versions: str) -> About:
    """About an evaluation of older weights: without their digest."""
    origin = Origin(commit="", versions=versions, machine="", compiled_networks=None)
    return About(policy="", weights=None, task={}, evaluation={"candidates": candidates}, origin=origin)


def make_run(
    folder: Path,
    seed: int,
    after: int,
    *,
    before: int = 10,
    selected: int | None = None,
    between: dict[int, int] | None = None,
    suite: str = "robosuite",
    task: str = "lift",
    seconds: float = 20.0,
    policy: str | None = "runs/pretrain-seed{}",
    old: bool = False,
    stage: str = "dpmd",
    at_best: Evaluation | None = None,
    by_temperature: dict[float, int] | None = None,
    **told: Any,
) -> Path:
    """A finished run: an update takes `seconds`, an evaluation 1000 seconds more; stage="frozen" has no update.

    `between`: successes of the evaluation after so many environment steps. `old`: without the newer keys.
    `at_best`: at the best temperature. `by_temperature`: successes at each that was tried, of what is frozen.
    `told`: what else summary.json tells.
    """
    updates = 0 if stage == "frozen" else UPDATES
    folder.mkdir(parents=True)
    config = {
        "seed": seed,
        "task": {"name": task, "suite": suite},
        "policy": policy and policy.format(seed),
        "stage": {"name": stage},
        "demos": "/home/somebody/data/demos.hdf5",
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    start, end = evaluation(before), evaluation(after)
    start.save(folder / "evaluation_before.json", made_by())
    end.save(folder / "evaluation.json", made_by(burnish="0.1", torch="2.0"))
    lines: list[dict[str, Any]] = [{"step": 0, **start.metrics()}]
    for step in range(EVERY, EVERY * updates + 1, EVERY):
        line: dict[str, Any] = {"step": step, "time/update": seconds / 2, "train/success_rate": 0.5}
        line |= {"time/env_steps_per_second": EVERY / seconds} if old else {"time/training": seconds}
        line |= {} if old else {"gradient_steps": step // 10}
        if successes := (between or {}).get(step):
            line |= evaluation(successes).metrics()
        lines.append(line)
    last = end.metrics() | (evaluation(selected).metrics("eval_selected") if selected else {})
    lines.append({"step": EVERY * updates, **({} if old else {"time/training": 0.0}), **last})
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    scores = {EVERY * updates: end.score, **{s: evaluation(n).score for s, n in (between or {}).items()}}
    best_step = max(scores, key=lambda step: scores[step])
    summary = FinetuneSummary(
        policy=str(folder / "checkpoints" / "step_00001000"),
        env_steps=EVERY * updates,
        updates=updates,
        before=start.summary(),
        after=end.summary(),
        after_selected=evaluation(selected).summary() if selected else None,
        best=Best(best_step, *scores[best_step]),
        n_parameters=1234,
        peak_memory_mib=567.0,
        training_minutes=updates * seconds / 60,
        at_best_temperature=at_best and AtBestTemperature(at_best.temperature, at_best.summary(), {1.0: 0.5, 0.0: 0.6}),
        **told,
    ).to_json()
    if old:
        for key in ("n_parameters", "peak_memory_mib", "time/training_minutes", "after_best_temperature", "fell"):
            del summary[key]
        for key in ("went_back_to", "imitation_converged"):
            del summary[key]
        about = json.loads((folder / "evaluation.json").read_text())
        for key in ("compiled_networks", "commit", "machine", "temperature", "mean_of"):
            del about[key]
        (folder / "evaluation.json").write_text(json.dumps(about | about.pop("versions")))
    else:
        checkpoint = folder / "checkpoints" / "step_00001000"
        checkpoint.mkdir(parents=True)
        sampler = {"denoising_steps": 20, "sampler": "ddim", "ddim_steps": 5}
        (checkpoint / "policy.json").write_text(json.dumps({"config": sampler}))
        (folder / "checkpoints" / "latest").symlink_to(checkpoint.name)
    if at_best:
        at_best.save(folder / "evaluation_best_temperature.json", made_by())
    for temperature, successes in (by_temperature or {}).items():
        one = evaluation(successes, temperature=temperature)
        one.save(folder / f"evaluation_temperature{temperature:g}.json", made_by())
    if selected:
        evaluation(selected).save(folder / "evaluation_selected.json", made_by(candidates=8))
    (folder / "summary.json").write_text(json.dumps(summary))
    return folder


def cell(method: str, seed: int, folder: Path, task: str = "lift", command: str = "finetune") -> PlannedRun:
    return PlannedRun(task, method, seed, command, folder, (f"task={task}", f"stage={method}", f"seed={seed}"))


def table(folder: Path, name: str) -> list[dict[str, str]]:
    with (folder / f"{name}.csv").open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture
def quick(monkeypatch):
    """Reports with few resamples and small images."""
    monkeypatch.setattr("burnish.compare.statistics.RESAMPLES", 100)
    monkeypatch.setattr("burnish.compare.figures.DPI", 30)


@pytest.fixture
def grid(tmp_path, quick) -> list[PlannedRun]:
    """Two methods, three seeds; the second ends with half of the minutes and was evaluated in between."""
    cells = []
    for seed, n in enumerate((14, 15, 18)):
        run = make_run(tmp_path / f"a{seed}", seed, n, selected=n + 1, between={500: 19})
        cells.append(cell("dpmd", seed, run))
    for seed in range(3):
        run = make_run(tmp_path / f"b{seed}", seed, 12, between={400: 11, 800: 13}, seconds=10.0)
        cells.append(cell("dppo", seed, run))
    return cells


# -- statistics -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(1, 1), (3, 1), (4, 2), (5, 3), (8, 1)])
def test_interquartile_mean_is_that_of_scipy_and_rliable(shape):
    scores = np.random.default_rng(0).normal(size=shape)
    assert interquartile_mean(scores) == pytest.approx(stats.trim_mean(scores, 0.25, axis=None))
    assert interquartile_mean(scores) == pytest.approx(metrics.aggregate_iqm(scores))


def test_interquartile_mean_by_hand():
    assert interquartile_mean(np.array([[0.0], [2.0], [3.0], [100.0]])) == 2.5


def test_probability_of_improvement_by_hand_and_by_rliable():
    ours, theirs = np.array([[3.0], [1.0]]), np.array([[1.0], [2.0]])
    assert probability_of_improvement(ours, theirs) == (1 + 1 + 0.5 + 0) / 4
    ours, theirs = (np.random.default_rng(1).integers(0, 5, size=(n, 2)).astype(float) for n in (4, 3))
    assert probability_of_improvement(ours, theirs) == pytest.approx(metrics.probability_of_improvement(ours, theirs))


def test_intervals_contain_the_number_are_repeated_exactly_and_leave_numpy_as_it_was():
    scores = np.array([[0.1], [0.5], [0.7], [0.9]])
    np.random.seed(3)  # noqa: NPY002
    expected = np.random.random()  # noqa: NPY002
    np.random.seed(3)  # noqa: NPY002
    first = summarise(scores)
    assert np.random.random() == expected  # noqa: NPY002
    assert first == summarise(scores)
    assert first.iqm.value == pytest.approx(0.6)
    assert first.mean.value == pytest.approx(0.55)
    low, high = first.mean.interval
    reference = stats.bootstrap((scores[:, 0],), np.mean, method="percentile", n_resamples=20_000, rng=0)
    assert (low, high) == pytest.approx(tuple(reference.confidence_interval), abs=0.03)


def test_one_run_has_no_interval():
    one, two = np.array([[0.4]]), np.array([[0.1], [0.2]])
    assert summarise(one).iqm == Estimate(0.4, None)
    assert improvement(one, two) == Estimate(1.0, None)
    assert improvement(two, two[::-1]).interval == pytest.approx((0.0, 1.0))


def test_performance_profile_by_hand():
    of = profile(np.array([[0.2], [0.6], [0.6], [1.0]]), np.array([0.0, 0.2, 0.5, 1.0]))
    assert of.share.tolist() == [1.0, 0.75, 0.75, 0.0]
    assert all(of.low <= of.share) and all(of.share <= of.high)
    assert of.low[1] < 0.75 < of.high[1]


# -- run folders ------------------------------------------------------------------------------------------------------


def test_minutes_of_training(tmp_path):
    """A critic's warm-up makes updates without environment steps; earlier runs logged environment steps per second."""
    lines = [{"step": 0}, {"step": 100, "time/training": 30.0}, {"step": 100, "time/training": 60.0}, {"step": 100}]
    old = [
        {"step": 0},
        {"step": 100, "time/env_steps_per_second": 2.0},
        {"step": 160, "time/env_steps_per_second": 1.0},
    ]
    for name, content, minutes in (("new", lines, [0, 0.5, 1.5, 1.5]), ("old", old, [0, 50 / 60, 110 / 60])):
        (tmp_path / name).mkdir()
        (tmp_path / name / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in content))
        assert [line["minutes"] for line in with_minutes(tmp_path / name)] == pytest.approx(minutes)


def test_numbers_of_a_run(tmp_path):
    run = read_run(make_run(tmp_path / "a", 2, 14, selected=16, between={500: 19}))
    assert (run.task, run.seed, run.env_steps, run.candidates) == ("lift", 2, 1000, 8)
    assert (run.before.value, run.last.value, run.best.value) == (0.5, 0.7, 0.95)
    assert (run.last.successes, run.last.episodes, run.best.env_steps) == (14, N_EPISODES, 500)
    assert run.last_selected is not None and run.last_selected.value == 0.8
    assert run.best_selected is None  # Q did not choose in the evaluation in between
    assert run.minutes == pytest.approx(10 * 20 / 60)
    assert [tuple(point) for point in run.curve] == [
        (0, 0.0, 0.5),
        (500, pytest.approx(100 / 60), 0.95),
        (1000, pytest.approx(200 / 60), 0.7),
    ]
    assert run.cost.env_steps_per_second == pytest.approx(5.0)
    assert run.cost.update_seconds == pytest.approx(10.0)
    assert run.cost.gradient_step_seconds == pytest.approx(10 * 10.0 / 100)
    assert (run.cost.n_parameters, run.cost.peak_memory_mib) == (1234, 567.0)
    assert (run.cost.denoising_steps, run.cost.transitions) == (20, 5)
    assert (run.before.env_steps, run.last.env_steps, run.best.successes, run.best.by_seed) == (0, 1000, 19, {})
    assert run.last.by_seed == {100_000 + i: float(i < 14) for i in range(N_EPISODES)} and run.last.latency_ms == 1.5
    assert [tuple(point) for point in run.curve_selected] == [(1000, pytest.approx(200 / 60), 0.8)]
    assert [tuple(point) for point in run.curve_training] == [
        (EVERY * i, pytest.approx(20 * i / 60), 0.5) for i in range(1, UPDATES + 1)
    ]
    assert (run.policy, run.versions) == ("runs/pretrain-seed2", {"burnish": "0.1", "torch": "2.0"})
    assert "demos.hdf5" in run.config
    assert run.evaluated("last", False) is run.last and run.evaluated("last", True) is run.last_selected
    assert run.evaluated("best", False) is run.best and run.evaluated("best", True) is run.best_selected


def test_a_task_without_success_is_measured_by_its_return(tmp_path):
    run = read_run(make_run(tmp_path / "a", 0, 14, suite="gymnasium", between={500: 19, 1000: 3}))
    assert run.measure == RETURN
    assert (run.before.value, run.last.value, run.best.value, run.last.successes) == (5.0, 7.0, 9.5, 14)
    assert run.candidates == 1 and run.last_selected is None
    assert [point.value for point in run.curve] == [5.0, 9.5, 1.5, 7.0]


def test_of_two_evaluations_at_a_step_the_later_counts(tmp_path):
    """The one after the last update, and the one at the end."""
    run = make_run(tmp_path / "a", 0, 19, between={1000: 3})
    summary = json.loads((run / "summary.json").read_text())
    summary["best"]["env_steps"] = 1000
    (run / "summary.json").write_text(json.dumps(summary))
    assert read_run(run).best.value == 0.95


def test_updates_take_their_mean_time_and_a_curve_may_be_zero(tmp_path):
    run = make_run(tmp_path / "a", 0, 14, between={500: 0})
    metrics = run / "metrics.jsonl"
    lines = [json.loads(line) for line in metrics.read_text().splitlines()]
    lines[3]["time/update"] += 50.0
    lines[5] |= evaluation(0).metrics()
    metrics.write_text("".join(json.dumps(line) + "\n" for line in lines))
    of = read_run(run)
    assert (of.cost.update_seconds, of.cost.gradient_step_seconds) == (pytest.approx(15.0), pytest.approx(1.5))
    assert [(point.env_steps, point.value) for point in of.curve] == [(0, 0.5), (500, 0.0), (1000, 0.7)]


def test_a_run_without_an_update_is_not_finished(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 0}\n')
    with pytest.raises(BurnishError, match=r"its metrics\.jsonl tells no time of training"):
        with_minutes(tmp_path)


def test_an_old_run_lacks_numbers_but_is_read(tmp_path):
    run = read_run(make_run(tmp_path / "a", 0, 14, old=True))
    assert run.minutes == pytest.approx(10 * 20 / 60)
    assert (run.cost.n_parameters, run.cost.peak_memory_mib, run.cost.gradient_step_seconds) == (None, None, None)
    assert (run.cost.denoising_steps, run.cost.transitions) == (None, None)


def test_a_run_at_its_best_temperature(tmp_path):
    at_best = evaluation(17, temperature=0.0)
    run = read_run(make_run(tmp_path / "a", 0, 14, at_best=at_best, fell="lower", went_back_to=500))
    assert run.headline is run.at_best is not None and run.at_best.value == 0.85
    assert (run.temperature, run.best_temperature, run.fell, run.went_back_to) == (1.0, 0.0, "lower", 500)
    assert run.by_temperature == {} and run.learns
    of_n = read_run(make_run(tmp_path / "b", 0, 14, at_best=at_best, selected=18, stage="best_of_n"))
    assert of_n.headline is of_n.last_selected is not None
    old = read_run(make_run(tmp_path / "c", 0, 14, old=True))
    assert (old.temperature, old.at_best, old.headline, old.imitation_converged) == (None, None, None, None)


def test_a_frozen_policy_is_a_run_without_training(tmp_path):
    path = make_run(
        tmp_path / "a",
        0,
        10,
        stage="frozen",
        at_best=evaluation(12, temperature=0.0),
        by_temperature={0.0: 12, 1.0: 10},
    )
    run = read_run(path)
    assert (run.learns, run.env_steps, run.minutes, run.cost.env_steps_per_second) == (False, 0, 0.0, None)
    assert {tau: one.value for tau, one in run.by_temperature.items()} == {0.0: 0.6, 1.0: 0.5}
    assert list(evaluations(path)) == ["before", "after", "after_best_temperature", "temperature1", "temperature0"]
    assert evaluations(path)["temperature0"].success_rate == 0.6


@pytest.mark.parametrize("missing", ["config.yaml", "metrics.jsonl", "summary.json", "evaluation.json"])
def test_a_folder_that_is_no_finished_run(tmp_path, missing):
    run = make_run(tmp_path / "a", 0, 14)
    (run / missing).unlink()
    with pytest.raises(BurnishError, match=str(run)):
        read_run(run)


def test_other_episodes_before_and_after_are_refused(tmp_path):
    run = make_run(tmp_path / "a", 0, 14)
    evaluation(14, seed=7).save(run / "evaluation.json", made_by())
    with pytest.raises(BurnishError, match="other episodes"):
        read_run(run)


def test_what_a_run_had_reached_within_a_budget():
    points = [Point(0, 0.0, 0.1), Point(500, 1.0, 0.2), Point(1000, 3.0, 0.3)]
    assert at(points, 1000, "env_steps") == points[2]
    assert at(points, 750, "env_steps") == (750, 2.0, pytest.approx(0.25))
    assert at(points, 2000, "env_steps") == points[2]
    assert at(points[1:], 499, "env_steps") is None and at(points[1:], 500, "env_steps") == points[1]
    assert at(points, 0.5, "minutes") == (250, 0.5, pytest.approx(0.15))
    assert at(points, 2.5, "minutes") == (875, 2.5, pytest.approx(0.275))
    assert at(points, 9.0, "minutes") == points[2]
    assert at(points[1:], 0.9, "minutes") is None


def test_mean_curve_joins_what_was_evaluated_at_about_the_same_step():
    first = [Point(0, 0.0, 0.2), Point(500, 1.0, 0.4), Point(1000, 2.0, 0.8)]
    second = [Point(0, 0.0, 0.4), Point(700, 3.0, 0.6), Point(1010, 4.0, 0.9)]
    joined = mean_curve([first, second])
    assert np.array(joined) == pytest.approx(np.array([[0, 0.0, 0.3], [1005, 3.0, 0.85]]))


def evaluated(values: list[float]) -> Evaluated:
    return Evaluated(0, float(np.mean(values)), 0, len(values), None, dict(enumerate(values)))


def test_paired_difference_draws_the_initial_state_in_all_runs_at_once():
    before = evaluated([0.0] * N_EPISODES)
    gains = np.zeros((2, N_EPISODES))
    gains[0, 10:13] = gains[1, 11:15] = 1
    found = paired_difference([(before, evaluated(row.tolist())) for row in gains])
    assert found is not None
    assert (found.runs, found.episodes) == (2, N_EPISODES)
    assert found.difference.mean == pytest.approx(7 / 40)
    expected = stats.bootstrap((gains.mean(axis=0),), np.mean, method="percentile", n_resamples=10_000, rng=0)
    assert tuple(found.difference.interval) == pytest.approx(tuple(expected.confidence_interval), abs=0.01)
    assert paired_difference([]) is None
    assert paired_difference([(before, Evaluated(0, 1.0, 0, 1, None, {7_000: 1.0}))]) is None


# -- groups -----------------------------------------------------------------------------------------------------------


def test_methods_that_start_from_other_policies_have_another_pretrained(tmp_path):
    def method(name: str, policy: str) -> Method:
        runs = [read_run(make_run(tmp_path / f"{name}{s}", s, 14, policy=policy)) for s in (0, 1)]
        return Method(name, look(0), tuple(runs), 2)

    groups = group_pretrained([method("a", "x{}"), method("b", "x{}"), method("c", "gaussian{}")])
    assert [(group.name, sorted(group.evaluations)) for group in groups] == [
        ("pretrained", ["x0", "x1"]),
        ("pretrained (c)", ["gaussian0", "gaussian1"]),
    ]


def test_pretrained_policies_are_not_mixed_where_other_seeds_have_finished(tmp_path):
    """Of one family only seed 0 has finished, of the other only seed 1."""
    first = read_run(make_run(tmp_path / "a", 0, 14, policy="pretrained-{}"))
    other = read_run(make_run(tmp_path / "b", 1, 14, policy="gaussian-{}"))
    methods = [Method("dppo", look(0), (first,), 2), Method("ppo", look(1), (other,), 2)]
    groups = group_pretrained(methods)
    assert [(group.name, list(group.evaluations)) for group in groups] == [
        ("pretrained", ["pretrained-0"]),
        ("pretrained (ppo)", ["gaussian-1"]),
    ]


def test_returns_are_normalised_between_pretrained_and_best(tmp_path):
    def method(name: str, after: int, policy: str = "pretrained-{}") -> Method:
        settings = {"suite": "gymnasium", "policy": policy, "before": 10 if policy == "pretrained-{}" else 4}
        runs = [read_run(make_run(tmp_path / f"{name}{s}", s, after + s, **settings)) for s in (0, 1)]
        return Method(name, look(0), tuple(runs), 2)

    methods = (method("a", 12), method("b", 15), method("other", 8, policy="gaussian-{}"))  # not its start
    task = TaskRuns("hopper", RETURN, methods, group_pretrained(methods))
    # returns: pretrained 5; a: 6, 6.5; b: 7.5, 8 (mean 7.75, the best)
    assert across_tasks([task], "a", False) == pytest.approx(np.array([[1 / 2.75], [1.5 / 2.75]]))
    assert across_tasks([task], "b", False).mean() == pytest.approx(1.0)
    assert across_tasks([task], "b", True) is None
    assert across_tasks([task], "nobody", False) is None


# -- the report -------------------------------------------------------------------------------------------------------


def test_tables_of_a_grid(grid, tmp_path):
    out = tmp_path / "report"
    assert write_report("Lift", grid, {}, out) == out / "report.html"
    rows = table(out, "lift-results")
    assert [(row["method"], row["checkpoint"], row["actions"]) for row in rows] == [
        ("pretrained", "pretrained", "one sample"),
        ("dpmd", "last (headline)", "one sample"),
        ("dpmd", "last (headline)", "best of 8 by Q"),
        ("dpmd", "best (optimistic)", "one sample"),
        ("dppo", "last (headline)", "one sample"),
        ("dppo", "best (optimistic)", "one sample"),
    ]
    key, pooled = "success rate: IQM [95 %]", "success, all episodes [Wilson]"
    last, best, of_n = rows[1], rows[3], rows[2]
    assert float(last[key]) == pytest.approx(stats.trim_mean([0.7, 0.75, 0.9], 0.25))
    assert float(last[f"{key} low"]) < float(last[key]) < float(last[f"{key} high"])
    assert float(last["mean [95 %]"]) == pytest.approx((0.7 + 0.75 + 0.9) / 3)
    assert float(of_n["mean [95 %]"]) == pytest.approx((0.75 + 0.8 + 0.95) / 3)
    assert float(best["mean [95 %]"]) == pytest.approx(0.95)
    # Wilson (1927) for 47 of 60, from its formula
    p, n, z = 47 / 60, 60, stats.norm.ppf(0.975)
    centre, half = p + z**2 / (2 * n), z * np.sqrt(p * (1 - p) / n + z**2 / (4 * n**2))
    ends = [(centre + sign * half) / (1 + z**2 / n) for sign in (-1, 1)]
    assert [float(last[f"{pooled} {end}"]) for end in ("low", "high")] == pytest.approx(ends)
    assert float(table(out, "lift-differences")[0]["difference [95 %]"]) == pytest.approx(47 / 60 - 0.5)
    found = table(out, "lift-improvement")
    improved = [(row["method"], row["actions"], row["over"], float(row["P [95 %]"])) for row in found]
    assert improved == [
        ("dpmd", "one sample", "pretrained", 1.0),
        ("dpmd", "best of N by Q", "pretrained", 1.0),
        ("dppo", "one sample", "dpmd, one sample", 0.0),
        ("dppo", "one sample", "pretrained", 1.0),
    ]


def test_equal_budgets(grid, tmp_path):
    """dppo ends after 100 s: dpmd's evaluation at 500 steps is after 100 s too, in time; that by Q is too late."""
    write_report("Lift", grid, {}, tmp_path / "report")
    steps, minutes = (table(tmp_path / "report", f"lift-equal-{budget}") for budget in ("env-steps", "minutes"))
    mean = "mean [95 %]"
    assert [float(row[mean]) for row in steps] == pytest.approx([47 / 60, 50 / 60, 0.6])
    assert [row["method"] for row in minutes] == ["dpmd", "dpmd", "dppo"]
    assert float(minutes[0][mean]) == pytest.approx(0.95)
    assert minutes[0]["seed: value (after env steps, minutes)"].startswith("0: 95.0% (500, 1.7); 1: ")
    assert (minutes[1][mean], minutes[1]["remark"]) == ("", "no such evaluation by then")
    assert float(minutes[2][mean]) == pytest.approx(0.6)
    pairs = table(tmp_path / "report", "lift-pairs")
    assert [(row["method"], row["actions"], row["at"]) for row in pairs] == [
        ("dppo", "one sample", "1,000 steps"),
        ("dppo", "one sample", "1.7 minutes"),
    ]
    assert {row["beside"] for row in pairs} == {"dpmd, one sample"}
    theirs = [float(row["its mean [95 %]"]) for row in pairs]
    assert theirs == pytest.approx([47 / 60, 0.95])
    assert [float(row["success rate: mean [95 %]"]) for row in pairs] == pytest.approx([0.6, 0.6])


def test_a_slow_method_is_shown_on_its_way(tmp_path, quick):
    slow = make_run(tmp_path / "a", 0, 14, seconds=100.0)
    fast = make_run(tmp_path / "b", 0, 12)
    write_report("Lift", [cell("slow", 0, slow), cell("fast", 0, fast)], {}, tmp_path / "report")
    row = table(tmp_path / "report", "lift-equal-minutes")[0]
    evaluations = [line for line in read_metrics(slow / "metrics.jsonl") if "eval/success_rate" in line]
    first = evaluations[1]["eval/success_rate"]
    assert row["method"] == "slow" and min(0.5, first) < float(row["mean [95 %]"]) < max(0.5, first)


def test_the_report_is_one_file_without_paths_and_the_same_twice(grid, tmp_path):
    pages = []
    for name in ("first", "second"):
        path = write_report("Lift & <co>", grid, {}, tmp_path / name)
        pages.append(path.read_text())
        for text in (pages[-1], (tmp_path / name / "report.md").read_text()):
            plain = re.sub(r"base64,[\w+/=]+", "", text)
            assert not re.search(r"https?:|file:|<link|<script|@import|url\(", plain)
            assert str(tmp_path) not in plain
            assert not re.search(r"(?<![\w.…<])/(?:home|tmp|root|usr|work)\b", plain)
    assert pages[0] == pages[1]
    sources = re.findall(r'<img src="(.{22})', pages[0])
    assert sources == ["data:image/png;base64,"] * len(sources) and len(sources) >= 4
    assert "Lift &amp; &lt;co&gt;" in pages[0]
    assert "…/demos.hdf5" in pages[0]  # the resolved configuration, its path cut
    assert "burnish finetune task=lift stage=dpmd seed=0" in pages[0]


def test_failed_and_missing_cells(grid, tmp_path):
    gone = cell("sdac", 0, tmp_path / "nowhere")
    other = cell("dpmd", 0, tmp_path / "nothing", task="can")
    failures = {grid[1]: "ended with status 1: /home/me/x.py broke", other: "killed"}
    path = write_report("Lift", [*grid, gone, other], failures, tmp_path / "report")
    for text in (path.read_text(), path.with_suffix(".md").read_text()):
        assert "lift, dpmd, seed 1: ended with status 1: …/x.py broke" in text
        assert "lift, sdac, seed 0: nowhere is not a run folder" in text
        assert "can, dpmd, seed 0: killed" in text
        assert "5 of 8 runs finished" in text
        assert "No run of this task has finished." in text
    seeds = {row["method"]: row["seeds"] for row in table(tmp_path / "report", "lift-results")}
    assert seeds == {"pretrained": "3", "dpmd": "2 of 3", "dppo": "3 of 3", "sdac": "0 of 1"}
    dpmd = table(tmp_path / "report", "lift-results")[1]
    assert float(dpmd["mean [95 %]"]) == pytest.approx((0.7 + 0.9) / 2)  # of seeds 0 and 2


def test_nothing_finished(tmp_path):
    path = write_report("Lift", [cell("dpmd", 0, tmp_path / "nowhere")], {}, tmp_path / "report")
    assert "0 of 1 runs finished" in path.read_text()
    assert "<img" not in path.read_text()


def test_one_seed_from_scratch_by_an_old_commit(tmp_path, quick):
    run = make_run(tmp_path / "a", 0, 14, suite="gymnasium", task="hopper", policy=None, old=True)
    path = write_report("Hopper", [cell("dpmd", 0, run, "hopper", "scratch")], {}, tmp_path / "report")
    text = path.read_text()
    assert "for a single run none is given" in text
    rows = table(tmp_path / "report", "hopper-results")
    assert [row["method"] for row in rows] == ["dpmd", "dpmd"]  # an untrained network is no pretrained policy
    assert rows[0]["return: IQM [95 %]"] == "7.0"
    assert "success, all episodes [Wilson]" not in rows[0]
    assert table(tmp_path / "report", "hopper-differences")[0]["minus"] == "untrained"
    assert table(tmp_path / "report", "cost")[0]["parameters"] == ""


def test_two_tasks_are_normalised_together(grid, tmp_path):
    hopper = [
        cell(
            name,
            seed,
            make_run(tmp_path / f"{name}{seed}", seed, n + seed, suite="gymnasium"),
            "hopper",
        )
        for name, n in (("dpmd", 15), ("dppo", 12))
        for seed in range(3)
    ]
    write_report("Both", [*grid, *hopper], {}, tmp_path / "report")
    rows = {(row["method"], row["actions"]): row for row in table(tmp_path / "report", "all-tasks")}
    assert rows.keys() == {("dpmd", "one sample"), ("dppo", "one sample")}
    # hopper's returns: pretrained 5, dpmd 7.5 8 8.5 (mean 8, the best): 2.5/3, 1, 3.5/3
    expected = stats.trim_mean([0.7, 0.75, 0.9, 2.5 / 3, 1.0, 3.5 / 3], 0.25)
    assert float(rows["dpmd", "one sample"]["normalised IQM [95 %]"]) == pytest.approx(expected)
    assert float(rows["dppo", "one sample"]["P of improvement [95 %]"]) == 0.0


def test_a_report_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(BurnishError, match="cannot be written"):
        write_report("Lift", [], {}, tmp_path / "file")


# -- verdicts ---------------------------------------------------------------------------------------------------------


def backwards(of: Evaluation) -> Evaluation:
    """The same episodes in another order."""
    arrays = {name: getattr(of, name)[::-1].copy() for name in ("success", "returns", "lengths")}
    return replace(of, seeds=of.seeds[::-1], **arrays)


@pytest.fixture
def with_baselines(tmp_path, quick) -> list[PlannedRun]:
    """dpmd, after it constant weights, best of N and frozen; of frozen seed 0 is missing, and seed 3 is one more."""
    cells = []
    for seed, n in enumerate((13, 14, 15)):
        at_best = backwards(evaluation(n, temperature=0.5))
        path = make_run(tmp_path / f"dpmd{seed}", seed, 11, at_best=at_best, fell="it fell" if seed == 1 else None)
        cells.append(cell("dpmd", seed, path))
    for seed in range(3):
        path = make_run(tmp_path / f"constant{seed}", seed, 18, at_best=evaluation(18), went_back_to=500)
        cells.append(cell("constant", seed, path))
    for seed in range(3):
        settings = {"selected": 12 + seed, "stage": "best_of_n", "at_best": evaluation(1), "policy": "another{}"}
        cells.append(cell("best_of_n", seed, make_run(tmp_path / f"best{seed}", seed, 10, **settings)))
    for seed, n in ((1, 10), (2, 11), (3, 0)):
        by = {1.0: 10, 0.0: n}
        path = make_run(
            tmp_path / f"frozen{seed}",
            seed,
            10,
            stage="frozen",
            at_best=evaluation(n, temperature=0.0),
            by_temperature=by,
            imitation_converged=seed != 2,
        )
        cells.append(cell("frozen", seed, path))
    return cells


def test_verdicts_are_paired_by_seed_and_by_initial_state(with_baselines, tmp_path):
    """dpmd - frozen over the seeds 1 and 2: 14 - 10 and 15 - 11 of the same 20 states."""
    write_report("Lift", with_baselines, {}, tmp_path / "report")
    rows = {(row["method"], row["minus"]): row for row in table(tmp_path / "report", "lift-verdicts")}
    at_best = ", best temperature"
    assert list(rows) == [
        (f"dpmd{at_best}", f"frozen{at_best}"),
        (f"dpmd{at_best}", f"constant{at_best}"),
        (f"dpmd{at_best}", "best_of_n, best of 8 by Q (of another policy)"),
        (f"constant{at_best}", f"frozen{at_best}"),
        (f"constant{at_best}", "best_of_n, best of 8 by Q (of another policy)"),
        ("best_of_n, best of 8 by Q", f"frozen{at_best} (of another policy)"),
        ("best_of_n, best of 8 by Q", f"constant{at_best} (of another policy)"),
    ]
    over_frozen, over_constant, over_best_of_n = list(rows.values())[:3]
    key = "difference [95 %]"
    gains = np.zeros(20)
    gains[10], gains[11:14], gains[14] = 0.5, 1.0, 0.5  # seed 1: states 10 to 13, seed 2: 11 to 14
    expected = stats.bootstrap((gains,), np.mean, method="percentile", n_resamples=10_000, rng=0)
    assert float(over_frozen[key]) == pytest.approx(0.2)
    ends = [float(over_frozen[f"{key} {end}"]) for end in ("low", "high")]
    assert ends == pytest.approx(tuple(expected.confidence_interval), abs=0.02)
    assert (over_frozen["it is"], over_frozen["seeds"], over_frozen["initial states"]) == ("above", "2", "20")
    assert float(over_constant[key]) == pytest.approx((13 + 14 + 15 - 3 * 18) / 60)
    assert (over_constant["it is"], over_constant["seeds"]) == ("below", "3")
    assert float(over_best_of_n[key]) == pytest.approx(0.05)  # one state in each seed: 12, 13, 14
    assert over_best_of_n["it is"] == "not to be told apart from"


def test_verdicts_and_remarks_in_words(with_baselines, tmp_path):
    path = write_report("Lift", with_baselines, {}, tmp_path / "report")
    text = path.with_suffix(".md").read_text()
    assert "- dpmd, best temperature: above frozen, best temperature (+20.0% [" in text
    assert "; below constant, best temperature (-20.0% [" in text and "). No gain that counts." in text
    assert re.search(r"- constant, best temperature: above frozen.*; above best_of_n.*\. A gain that counts\.", text)
    assert "- dpmd, seed 1 fell below its start: it fell" in text
    assert "- constant, seed 0 went back to its checkpoint after 500 environment steps" in text
    told = "Whether the imitation had converged, pretrained: had converged (seeds 1, 3), had not converged (seed 2)"
    assert f"{told}, is not told (seed 0)" in text


def test_the_headline_is_what_a_terminal_shows(with_baselines, grid, capsys):
    print_blocks(headline(with_baselines))
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert lines[0] == "lift"
    text = " ".join(lines)
    assert "frozen, tau = 0 3 of 3 0 35.0% [0.0%, 55.0%] – – –" in text
    assert re.search(r" dpmd 3 of 3 1,000 55\.0% \[55\.0%, 55\.0%\] 70\.0% \[.{12,14}\] 0: 1, 0\.5;", text)
    assert "- dpmd, seed 1 fell below its start: it fell" in text
    assert "- dpmd, best temperature: above frozen, best temperature (+20.0% [" in text
    assert headline(grid) == [] == headline([])  # of older runs nothing is known at their best temperature


def test_frozen_policies_come_first_and_have_no_budget(with_baselines, tmp_path):
    write_report("Lift", with_baselines, {}, tmp_path / "report")
    rows = table(tmp_path / "report", "lift-temperatures")
    assert [row["method"] for row in rows] == ["frozen", "frozen, tau = 0", "dpmd", "constant", "best_of_n"]
    own, best = "success rate at its own temperature: mean [95 %]", "at its best temperature [95 %]"
    assert [float(row[own]) for row in rows] == pytest.approx([0.5, 0.35, 0.55, 0.9, 0.5])
    assert rows[1][best] == ""
    assert [float(row[best] or 0) for row in rows] == pytest.approx([0.35, 0, 0.7, 0.9, 0.05])
    assert rows[0]["seed: own temperature, best one"] == "1: 1, 0; 2: 1, 0; 3: 1, 0"
    assert rows[2]["seed: own temperature, best one"] == "0: 1, 0.5; 1: 1, 0.5; 2: 1, 0.5"
    assert float(rows[4]["best of N by Q [95 %]"]) == pytest.approx(0.65)
    results = [row["method"] for row in table(tmp_path / "report", "lift-results")]
    assert results.index("frozen") < results.index("dpmd") and results.count("frozen") == 1
    for name in ("lift-equal-env-steps", "lift-equal-minutes", "lift-pairs", "lift-improvement", "lift-differences"):
        assert all("frozen" not in "".join(row.values()) for row in table(tmp_path / "report", name))
    assert table(tmp_path / "report", "lift-equal-env-steps")[0]["seed: value (after env steps, minutes)"] == (
        "0: 55.0% (1,000, 3.3); 1: 55.0% (1,000, 3.3); 2: 55.0% (1,000, 3.3)"
    )
    assert {row["method"]: row["minutes"] for row in table(tmp_path / "report", "cost")}["frozen"] == "0.0"


def test_only_a_frozen_policy(with_baselines, tmp_path):
    path = write_report("Lift", with_baselines[-3:], {}, tmp_path / "report")
    assert "No verdict: it takes a method with stage=frozen" in path.with_suffix(".md").read_text()
    assert not (tmp_path / "report" / "lift-equal-env-steps.csv").exists()


def test_older_runs_have_no_verdict(grid, tmp_path):
    path = write_report("Lift", grid, {}, tmp_path / "report")
    assert "No verdict: it takes a method with stage=frozen" in path.with_suffix(".md").read_text()
    assert not (tmp_path / "report" / "lift-temperatures.csv").exists()


# -- words ------------------------------------------------------------------------------------------------------------


def test_paths_and_names_are_cut(monkeypatch):
    monkeypatch.setattr("platform.node", lambda: "deepthought")
    assert without_names("policy=/srv/me/runs/a: 3/4 of 10 env steps/s") == "policy=…/a: 3/4 of 10 env steps/s"
    assert without_names("runs/a/b on deepthought") == "runs/a/b on (this computer)"
    assert without_names(f"{Path.cwd()}/runs/x") == "./runs/x"


def test_commit_is_not_that_of_a_repository_further_up(tmp_path):
    assert commit(tmp_path) == "unknown (not run from a git checkout)"


def test_numbers_as_they_are_read():
    assert shown(Estimate(0.5, Interval(0.25, 0.75)), "{:.0%}") == "50% [25%, 75%]"
    assert shown(Estimate(0.5), "{:.0%}") == "50%"
    assert (shown(None, "{:d}"), shown("seed", None), shown(3, None)) == ("–", "seed", "3")
