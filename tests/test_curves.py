"""results/curves.py on run folders with known numbers."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from scipy import stats

from burnish.evaluation import Evaluation

SCRIPT = Path(__file__).resolve().parents[1] / "results" / "curves.py"
ABOUT = ["--commit", "abc", "--machine", "a machine", "--command", "a command"]
EVERY, UPDATES = 100, 10  # environment steps an update, updates
N_EPISODES = 20


@pytest.fixture
def curves(tmp_path, monkeypatch):
    spec = importlib.util.spec_from_file_location("curves", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "curves", module)  # dataclasses look their module up
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "FOLDER", tmp_path)
    return module


def evaluation(successes: int, first: int = 0, seed: int = 100_000) -> Evaluation:
    """The episodes from number `first` on succeed; the return is 10 for a success, else 0."""
    success = np.zeros(N_EPISODES, bool)
    success[first : first + successes] = True
    seeds = [seed + i for i in range(N_EPISODES)]
    return Evaluation(seeds, success, 10.0 * success, np.full(N_EPISODES, 5), 1.0, 0)


def make_run(
    folder: Path,
    seed: int,
    before: Evaluation,
    after: Evaluation,
    *,
    selected: Evaluation | None = None,
    between: dict[int, int] | None = None,
    suite: str = "robosuite",
    task: str = "lift",
    steps_per_second: float = 5.0,
) -> Path:
    """A finished run: an update takes EVERY / steps_per_second seconds, an evaluation 1000 seconds more.

    `between`: successes of the evaluation after so many environment steps.
    """
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(yaml.safe_dump({"seed": seed, "task": {"name": task, "suite": suite}}))
    before.save(folder / "evaluation_before.json")
    after.save(folder / "evaluation.json")
    elapsed = 1000.0
    lines: list[dict[str, Any]] = [{"step": 0, **before.metrics(), "time/elapsed": elapsed}]
    for step in range(EVERY, EVERY * UPDATES + 1, EVERY):
        line = {"step": step, "time/training": EVERY / steps_per_second, "train/success_rate": 0.5}
        elapsed += EVERY / steps_per_second
        if successes := (between or {}).get(step):
            line |= evaluation(successes).metrics()
            elapsed += 1000.0
        lines.append({**line, "time/elapsed": elapsed})
    last = after.metrics() | (selected.metrics("eval_selected") if selected else {})
    lines.append({"step": EVERY * UPDATES, **last, "time/elapsed": elapsed + 1000.0})
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    scores = {EVERY * UPDATES: after.score, **{s: evaluation(n).score for s, n in (between or {}).items()}}
    best_step = max(scores, key=lambda step: scores[step])
    summary = {
        "env_steps": EVERY * UPDATES,
        "before": before.summary(),
        "after": after.summary(),
        "after_selected": selected and selected.summary(),
        "best": {"env_steps": best_step, "success_rate": scores[best_step][0], "return": scores[best_step][1]},
    }
    if selected:
        selected.save(folder / "evaluation_selected.json")
    (folder / "summary.json").write_text(json.dumps(summary))
    return folder


def run_script(curves, *arguments: str) -> int:
    return curves.main(["out", *arguments, *ABOUT])


def method(name: str, *runs: Path) -> list[str]:
    return ["--method", f"{name}={','.join(map(str, runs))}"]


def methods_of(tmp_path: Path) -> dict[str, Any]:
    return {entry["method"]: entry for entry in json.loads((tmp_path / "out.json").read_text())["methods"]}


def test_minutes_of_training(curves, tmp_path):
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
        assert [line["minutes"] for line in curves.with_minutes(tmp_path / name)] == pytest.approx(minutes)


def test_numbers_of_the_json(curves, tmp_path, capsys):
    ours = [
        make_run(
            tmp_path / f"a{seed}", seed, evaluation(10), evaluation(n), selected=evaluation(n + 1), between={500: 19}
        )
        for seed, n in enumerate((14, 15, 18))
    ]
    theirs = [make_run(tmp_path / f"b{seed}", seed, evaluation(10), evaluation(12)) for seed in range(3)]
    assert run_script(curves, *method("DPMD", *ours), *method("DPPO", *theirs)) == 0
    content = json.loads((tmp_path / "out.json").read_text())
    assert (content["commit"], content["machine"], content["command"]) == ("abc", "a machine", "a command")
    assert (tmp_path / "out.png").read_bytes().startswith(b"\x89PNG")

    dpmd, dppo = content["methods"]
    run = dpmd["runs"][0]
    assert (run["seed"], run["env_steps"]) == (0, 1000)
    assert (run["before"]["success_rate"], run["after"]["success_rate"]) == (0.5, 0.7)
    assert run["after_selected"]["success_rate"] == 0.75
    wilson = stats.binomtest(14, N_EPISODES).proportion_ci(0.95, method="wilson")
    assert (run["after"]["success_rate_low"], run["after"]["success_rate_high"]) == pytest.approx(tuple(wilson))
    assert run["difference"]["mean"] == pytest.approx(0.2)  # 4 of 20 episodes were gained, none lost
    assert 0 < run["difference"]["low"] < 0.2 < run["difference"]["high"] < 0.45
    assert (run["best"]["env_steps"], run["best"]["success_rate"]) == (500, 0.95)
    assert run["best"]["success_rate_low"] < 0.95 < run["best"]["success_rate_high"]
    assert run["minutes"] == pytest.approx(10 * 20 / 60)  # 10 updates of 20 s
    assert run["elapsed_minutes"] == pytest.approx((10 * 20 + 3 * 1000) / 60)
    assert run["curves"]["eval"] == [
        [0, 0.0, 0.5],
        [500, pytest.approx(100 / 60), 0.95],
        [1000, pytest.approx(200 / 60), 0.7],
    ]
    assert "after_selected" not in dppo["runs"][0]
    assert dpmd["mean"]["after"]["mean"] == pytest.approx((0.7 + 0.75 + 0.9) / 3)
    assert "after_selected" not in dppo["mean"]

    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in capsys.readouterr().out.splitlines()]
    assert rows[0] == [
        "method",
        "seeds",
        "before",
        "after, one sample",
        "after, best of N by Q",
        "env steps",
        "minutes",
    ]
    assert rows[2][:3] == ["DPMD", "0, 1, 2", "50.0% [50.0%, 50.0%]"]
    assert rows[2][5:] == ["1,000", "3.3"]
    assert rows[3][4] == ""
    assert len(rows) == 2 + 2 + 6


def test_t_interval_over_seeds(curves):
    values = [0.3, 0.45, 0.5]
    low, high = stats.t.interval(0.95, 2, loc=np.mean(values), scale=stats.sem(values))
    mean = curves.seed_mean(values, curves.SUCCESS)
    assert (mean["low"], mean["high"]) == pytest.approx((low, high))
    assert mean["mean"] == pytest.approx(np.mean(values))
    wide = stats.ttest_1samp([0.0, 0.5, 1.0], 0).confidence_interval(0.95)
    assert wide.low < 0 and wide.high > 1
    cut = curves.seed_mean([0.0, 0.5, 1.0], curves.SUCCESS)
    assert (cut["low"], cut["high"]) == (0.0, 1.0)  # a success rate is never beyond
    uncut = curves.seed_mean([0.0, 0.5, 1.0], curves.RETURN)
    assert (uncut["low"], uncut["high"]) == pytest.approx((wide.low, wide.high))
    assert curves.seed_mean([0.5], curves.SUCCESS) == {"mean": 0.5, "low": None, "high": None}


def test_methods_are_paired_by_seed_and_episode(curves, tmp_path):
    """The same episodes succeed but for two, whatever the seed: the interval is far narrower than an unpaired one."""
    start = evaluation(5)
    first = [make_run(tmp_path / f"a{seed}", seed, start, evaluation(10, first=seed)) for seed in (0, 1, 2)]
    other = [make_run(tmp_path / f"b{seed}", seed, start, evaluation(12, first=seed)) for seed in (0, 1, 2, 3)]
    assert run_script(curves, *method("A", *first), *method("B", *reversed(other))) == 0
    found = methods_of(tmp_path)["B"]["from_first"]
    assert found["after_selected"] is None
    assert (found["after"]["seeds"], found["after"]["episodes"]) == ([0, 1, 2], N_EPISODES)
    assert found["after"]["mean"] == pytest.approx(0.1)
    # Episodes 10 to 13 gain in 1, 2, 2, 1 of the three seeds: the bootstrap of their means, by scipy.
    gains = np.zeros(N_EPISODES)
    gains[10:14] = np.array([1, 2, 2, 1]) / 3
    expected = stats.bootstrap((gains,), np.mean, method="percentile", n_resamples=10_000, rng=0).confidence_interval
    assert (found["after"]["low"], found["after"]["high"]) == pytest.approx(tuple(expected), abs=0.01)
    assert "from_first" not in methods_of(tmp_path)["A"]


def test_methods_without_a_common_seed_have_no_difference(curves, tmp_path):
    runs = [make_run(tmp_path / str(seed), seed, evaluation(5), evaluation(9)) for seed in (0, 1)]
    assert run_script(curves, *method("A", runs[0]), *method("B", runs[1])) == 0
    assert methods_of(tmp_path)["B"]["from_first"]["after"] is None


def test_sac_beside_a_run(curves, tmp_path):
    run = make_run(tmp_path / "a", 0, evaluation(5), evaluation(10), suite="gymnasium", task="hopper")
    evaluations = [
        {"step": 100, "minutes": 1.0, "return": [8.0] * 5},
        {"step": 200, "minutes": 2.0, "return": [7.0, 7.0, 7.0, 7.0, 2.0]},
    ]
    file = tmp_path / "sac.json"
    file.write_text(json.dumps({"task": "hopper", "seed": 0, "evaluations": evaluations}))
    assert run_script(curves, *method("DPMD", run), "--sac", f"SAC={file}") == 0
    assert json.loads((tmp_path / "out.json").read_text())["measure"] == "return"
    sac = methods_of(tmp_path)["SAC"]
    assert (sac["runs"][0]["env_steps"], sac["runs"][0]["minutes"]) == (200, 2.0)
    assert sac["runs"][0]["after"]["return"] == 6.0
    assert (sac["runs"][0]["best"]["env_steps"], sac["runs"][0]["best"]["return"]) == (100, 8.0)
    assert sac["from_first"]["after"]["mean"] == pytest.approx(6.0 - 10.0)  # over the five episodes that SAC has
    assert sac["from_first"]["after"]["episodes"] == 5


def test_mean_curve_joins_what_was_evaluated_at_about_the_same_step(curves):
    first = np.array([[0, 0.0, 0.2], [500, 1.0, 0.4], [1000, 2.0, 0.8]])
    second = np.array([[0, 0.0, 0.4], [700, 3.0, 0.6], [1010, 4.0, 0.9]])
    assert curves.mean_curve([first, second]) == pytest.approx(np.array([[0, 0.0, 0.3], [1005, 3.0, 0.85]]))


@pytest.mark.parametrize("missing", ["config.yaml", "metrics.jsonl", "summary.json", "evaluation.json"])
def test_a_folder_that_is_no_finished_run(curves, tmp_path, capsys, missing):
    run = make_run(tmp_path / "a", 0, evaluation(5), evaluation(10))
    (run / missing).unlink()
    assert run_script(curves, *method("DPMD", run)) != 0
    printed = capsys.readouterr()
    assert printed.out == ""
    assert len(printed.err.splitlines()) == 1
    assert str(run) in printed.err
    assert not (tmp_path / "out.json").exists()


def test_runs_that_do_not_belong_together(curves, tmp_path, capsys):
    lift = make_run(tmp_path / "a", 0, evaluation(5), evaluation(10))
    can = make_run(tmp_path / "b", 0, evaluation(5), evaluation(10), task="can")
    moved = make_run(tmp_path / "c", 0, evaluation(5), evaluation(10, seed=7))
    for arguments, said in (
        ([], "nothing to compare"),
        (["--method", "DPMD"], "expected NAME=PATH"),
        ([*method("A", lift), *method("B", can)], "can, lift"),
        (method("A", lift, lift), "same seed"),
        ([*method("A", lift), *method("A", lift)], "different names"),
        (method("A", moved), "other episodes"),
    ):
        assert run_script(curves, *arguments) == 2
        assert said in capsys.readouterr().err


def test_runs_of_different_length_are_not_averaged(curves):
    runs = [{"env_steps": steps, "minutes": minutes} for steps, minutes in ((1000, 1.0), (1010, 2.0))]
    assert curves.amounts(runs) == ["1,005", "1.5"]
    assert curves.amounts([*runs, {"env_steps": 2000, "minutes": 6.0}]) == ["1,000 to 2,000", "3.0"]
