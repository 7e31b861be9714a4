"""summary.json, evaluation*.json and metrics.jsonl: what is written is read again, and what is damaged is told."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from burnish.envs.task import TaskConfig, load_task, recorded_measure
from burnish.errors import BurnishError
from burnish.runs.evaluation_file import About, EvaluationFile, EvaluationSummary, weights_at_start
from burnish.runs.metrics import last_metrics, read_metrics
from burnish.runs.origin import Origin
from burnish.runs.summary import AtBestTemperature, Best, FinetuneSummary, PretrainSummary, converged

ORIGIN = Origin(commit="abc", versions={"burnish": "0.1"}, machine="a computer", compiled_networks=False)
EVALUATED = EvaluationSummary(4, 0.25, 0.05, 0.7, 2.5, 1.0, 4.0, 30.0, 0, 1.5)
FILE = EvaluationFile(
    about=About("runs/a", "0" * 64, {"name": "lift"}, {"episodes": 4, "candidates": 8}, ORIGIN),
    confidence=0.95,
    summary=EVALUATED,
    seeds=[7, 8, 9, 10],
    success=[True, False, False, False],
    returns=[4.0, 3.0, 2.0, 1.0],
    lengths=[30, 30, 30, 30],
)
SUMMARY = FinetuneSummary(
    policy="runs/b/checkpoints/step_00000100",
    env_steps=100,
    updates=5,
    before=EVALUATED,
    after=EVALUATED._replace(success_rate=0.5),
    after_selected=None,
    best=Best(60, 0.75, 3.0),
    n_parameters=10,
    peak_memory_mib=20.0,
    training_minutes=0.5,
)
AT_BEST = AtBestTemperature(0.5, EVALUATED, {1.0: 0.25, 0.5: 0.75})


def test_an_evaluation_is_read_as_it_was_written(tmp_path: Path) -> None:
    FILE.write(tmp_path / "new" / "evaluation.json")
    assert EvaluationFile.read(tmp_path / "new" / "evaluation.json") == FILE
    assert FILE.candidates == 8
    assert FILE.values("success_rate") == [1.0, 0.0, 0.0, 0.0] and FILE.values("return") == FILE.returns


def test_the_keys_of_the_files_stay() -> None:
    """Users' programs read them."""
    evaluated = [
        *("episodes", "success_rate", "success_rate_low", "success_rate_high", "return", "return_low", "return_high"),
        *("episode_length", "nonfinite_episodes", "time/latency_ms"),
    ]
    assert list(EVALUATED.to_json()) == evaluated
    metrics = [f"eval/{key}" for key in evaluated[:-1]]
    assert list(EVALUATED.metrics()) == [*metrics, "time/eval_latency_ms"]
    about = ["policy", "weights", "task", "evaluation", "commit", "versions", "machine", "compiled_networks"]
    assert list(FILE.about.to_json()) == about
    assert list(SUMMARY.to_json()) == [
        *("policy", "env_steps", "updates", "before", "after", "after_selected", "best"),
        *("n_parameters", "peak_memory_mib", "time/training_minutes"),
        *("after_best_temperature", "fell", "went_back_to", "imitation_converged", "offline_steps"),
    ]
    assert list(AT_BEST.to_json()) == ["temperature", "tried", *evaluated]
    assert SUMMARY.to_json()["best"] == {"env_steps": 60, "success_rate": 0.75, "return": 3.0}
    assert list(PretrainSummary("a", 3, 4, EVALUATED).to_json()) == ["policy", "steps", "parameters", *evaluated]
    told = PretrainSummary("a", 3, 4, EVALUATED, ["it rose"], {1.0: 0.5, 0.5: 0.75}).to_json()
    assert list(told) == ["policy", "steps", "parameters", "converged", "improving", "temperatures", *evaluated]
    assert (told["converged"], told["temperatures"]) == (False, {"1": 0.5, "0.5": 0.75})


def test_a_summary_is_read_as_it_was_written(tmp_path: Path) -> None:
    told = replace(SUMMARY, at_best_temperature=AT_BEST, fell="it did", went_back_to=60, imitation_converged=False)
    improving = PretrainSummary("runs/a", 3, 4, EVALUATED, ["it rose"], {1.0: 0.5, 0.5: 0.75})
    for summary in (SUMMARY, told, PretrainSummary("runs/a", 3, 4, EVALUATED), improving):
        (tmp_path / "summary.json").write_text(json.dumps(summary.to_json()))
        assert type(summary).read(tmp_path) == summary
    assert SUMMARY.after.value("success_rate") == 0.5 and SUMMARY.after.value("return") == 2.5


def test_whether_an_imitation_had_converged_is_read_beside_the_policy(tmp_path: Path) -> None:
    run = tmp_path / "run"
    checkpoint = run / "checkpoints" / "step_00000003"
    checkpoint.mkdir(parents=True)
    assert converged(None) is None and converged(str(run)) is None
    for improving, expected in ((None, None), ([], True), (["it rose"], False)):
        (run / "summary.json").write_text(json.dumps(PretrainSummary("a", 3, 4, EVALUATED, improving).to_json()))
        assert converged(str(run)) is expected and converged(str(checkpoint)) is expected


def test_an_evaluation_in_a_line_of_metrics() -> None:
    line = {"step": 7, "loss": 1.0, "episodes": 3} | EVALUATED.metrics() | EVALUATED._replace(episodes=9).metrics("x")
    assert EvaluationSummary.from_metrics(line) == EVALUATED
    assert EvaluationSummary.from_metrics(line, "eval_selected") is None


def test_older_files_lack_numbers(tmp_path: Path) -> None:
    content = SUMMARY.to_json()
    for key in ("n_parameters", "peak_memory_mib", "time/training_minutes", "after_selected"):
        del content[key]
    (tmp_path / "summary.json").write_text(json.dumps(content))
    summary = FinetuneSummary.read(tmp_path)
    assert (summary.n_parameters, summary.peak_memory_mib, summary.training_minutes) == (None, None, None)
    FILE.write(tmp_path / "evaluation_before.json")
    old = json.loads((tmp_path / "evaluation_before.json").read_text())
    for key in FILE.about.to_json():
        del old[key]
    del old["summary"]["time/latency_ms"]
    (tmp_path / "evaluation_before.json").write_text(json.dumps(old | {"burnish": "0.1", "torch": "2.0"}))
    file = EvaluationFile.read(tmp_path / "evaluation_before.json")
    assert file.about.origin == Origin("", {"burnish": "0.1", "torch": "2.0"}, "", None)
    assert (file.about.weights, file.candidates, file.summary.latency_ms) == (None, 1, None)
    assert weights_at_start(tmp_path) is None


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (None, r"{run} is no finished run: it has no summary\.json"),
        ("{", r"{run}/summary\.json cannot be read"),
        ("[]", r"{run}/summary\.json is damaged: expected keys and values"),
        ("{}", r"{run}/summary\.json is damaged: it lacks 'best'"),
        ('{"best": 3}', r"{run}/summary\.json is damaged"),
    ],
)
def test_a_damaged_file_is_told(tmp_path: Path, content: str | None, told: str) -> None:
    if content is not None:
        (tmp_path / "summary.json").write_text(content)
    with pytest.raises(BurnishError, match=told.format(run=tmp_path)) as caught:
        FinetuneSummary.read(tmp_path)
    assert "\n" not in str(caught.value)


def test_a_file_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(BurnishError, match=r"evaluation\.json: cannot be written"):
        FILE.write(tmp_path / "file" / "evaluation.json")


def test_the_weights_that_a_run_began_from(tmp_path: Path) -> None:
    assert weights_at_start(tmp_path) is None
    for content, weights in (("{", None), ("[]", None), ("{}", None), ('{"weights": "abc"}', "abc")):
        (tmp_path / "evaluation_before.json").write_text(content)
        assert weights_at_start(tmp_path) == weights


def test_metrics_end_with_the_last_whole_line(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    assert (read_metrics(path), last_metrics(path)) == ([], {})
    path.write_text('{"step": 1}\n{"step": 2}\n{"ste')
    assert read_metrics(path) == [{"step": 1}, {"step": 2}]
    assert last_metrics(path) == {"step": 2}


def test_what_a_task_is_judged_by() -> None:
    assert load_task("lift").measure == "success_rate" and load_task("hopper").measure == "return"
    task = TaskConfig(name="mine", suite="gymnasium", env_id="Hopper-v5", max_episode_steps=5)
    assert task.measure == "return"
    assert recorded_measure({"suite": "robosuite", "a_key": "of another version"}) == "success_rate"


def test_damaged_metrics_are_told(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"step": 1}\n{"step": \x9f}\n')
    with pytest.raises(BurnishError, match=r"metrics.jsonl is damaged: byte 21 is no text"):
        read_metrics(path)
    path.write_text('{"step": 1}\n3\n')
    assert read_metrics(path) == [{"step": 1}]
