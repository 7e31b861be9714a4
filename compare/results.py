"""Finished run folders as typed containers: what was evaluated, when, how long it took, what it cost.

Minutes are those of training: acting and updates, without evaluations, checkpoints and the start. Folders of older
runs, whose files lack newer keys, are read as well; what they do not tell is None.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from burnish.envs.task import recorded_measure
from burnish.errors import BurnishError
from burnish.evaluation.intervals import Difference
from burnish.finetune.stage import Stage, stage_class
from burnish.policies.folder import DESCRIPTION
from burnish.runs.checkpoint import Checkpoints
from burnish.runs.evaluation_file import (
    AT_BEST_TEMPERATURE,
    AT_TEMPERATURE,
    BEFORE,
    EVALUATION,
    SELECTED,
    EvaluationFile,
    EvaluationSummary,
)
from burnish.runs.folder import CONFIG, load_config
from burnish.runs.json_file import read_json
from burnish.runs.metrics import METRICS, read_metrics
from burnish.runs.summary import FinetuneSummary

Axis = Literal["env_steps", "minutes"]
SAME_STEP = 0.02  # evaluations of two seeds are of the same time where their steps differ by less of the whole run


class Measure(NamedTuple):
    """What is compared: its name (see `TaskConfig.measure`), how its numbers are written."""

    key: str
    form: str

    @property
    def label(self) -> str:
        return self.key.replace("_", " ")


SUCCESS = Measure("success_rate", "{:.1%}")
RETURN = Measure("return", "{:,.4g}")


class Point(NamedTuple):
    """One evaluation on the way: after so much training, the mean over its episodes."""

    env_steps: int
    minutes: float
    value: float


@dataclass(frozen=True)
class Evaluated:
    """One evaluation: its mean, its successes, and the value of each episode by the episode's seed where it was kept.

    `best` checkpoints have no `by_seed`: metrics.jsonl keeps means alone.
    """

    env_steps: int
    value: float
    successes: int
    episodes: int
    latency_ms: float | None
    by_seed: dict[int, float]


@dataclass(frozen=True)
class Cost:
    """What a run took; None where the run is older than the number.

    Attributes:
        env_steps_per_second: over all of the training; None where there was none.
        update_seconds, gradient_step_seconds: mean per `update` of the stage, and per gradient step in it.
        denoising_steps, transitions: K, and how many of them the sampler runs at an evaluation (no diffusion: None).
    """

    env_steps_per_second: float | None
    update_seconds: float | None
    gradient_step_seconds: float | None
    peak_memory_mib: float | None
    n_parameters: int | None
    denoising_steps: int | None
    transitions: int | None


@dataclass(frozen=True)
class RunResult:
    """One finished run. `selected`: with the best of `candidates` by Q instead of a single sample.

    Attributes:
        temperature: the policy's own; None: an older run does not tell.
        at_best: the last checkpoint at `best_temperature`, which was chosen in other episodes; None in older runs.
        by_temperature: of a run without learning, the evaluation at each temperature that was tried.
        fell, went_back_to, imitation_converged: see `FinetuneSummary`.
    """

    task: str
    stage: str
    measure: Measure
    seed: int
    env_steps: int
    minutes: float
    policy: str | None
    candidates: int
    before: Evaluated
    last: Evaluated
    last_selected: Evaluated | None
    best: Evaluated
    best_selected: Evaluated | None
    temperature: float | None
    best_temperature: float | None
    at_best: Evaluated | None
    by_temperature: dict[float, Evaluated]
    fell: str | None
    went_back_to: int | None
    imitation_converged: bool | None
    curve: tuple[Point, ...]
    curve_selected: tuple[Point, ...]
    curve_training: tuple[Point, ...]
    cost: Cost
    config: str
    commit: str
    versions: dict[str, str]
    machine: str

    @property
    def learns(self) -> bool:
        """Whether it is more than the policy it began with, evaluated."""
        return self.env_steps > 0 if (stage := installed_stage(self.stage)) is None else stage.learns

    @property
    def trains_policy(self) -> bool:
        """Whether the policy becomes another; taken for granted of a stage that is not installed here."""
        return self.learns if (stage := installed_stage(self.stage)) is None else stage.trains_policy

    @property
    def headline(self) -> Evaluated | None:
        """What a verdict is made of: the last checkpoint at its best temperature; of best of N, which leaves the
        policy as it was, by Q."""
        return self.at_best if self.trains_policy or not self.learns else self.last_selected

    def evaluated(self, checkpoint: str, selected: bool) -> Evaluated | None:
        """Of `checkpoint` "last" or "best"."""
        one = self.last if checkpoint == "last" else self.best
        of_n = self.last_selected if checkpoint == "last" else self.best_selected
        return of_n if selected else one


def installed_stage(name: str) -> type[Stage] | None:
    """The class of a stage by its name; None where it is not installed here."""
    try:
        return stage_class(name)
    except BurnishError:
        return None


def read_run(folder: Path) -> RunResult:
    """Read a finished run folder. Raises BurnishError where it is none, or where a file lacks what is needed."""
    config = load_config(folder)
    summary = FinetuneSummary.read(folder)
    lines = with_minutes(folder)
    try:
        return _result(folder, config, summary, lines)
    except (KeyError, TypeError, IndexError) as error:
        raise BurnishError(f"{folder} is damaged: its files lack {error}, expected what a training writes") from error


def _result(folder: Path, config: dict[str, Any], summary: FinetuneSummary, lines: list[dict[str, Any]]) -> RunResult:
    measure = SUCCESS if recorded_measure(config["task"]) == SUCCESS.key else RETURN
    before, last = EvaluationFile.read(folder / BEFORE), EvaluationFile.read(folder / EVALUATION)
    if set(before.seeds) != set(last.seeds):
        raise BurnishError(f"{folder}: before and after were evaluated on other episodes, and cannot be compared")
    selected = EvaluationFile.read(folder / SELECTED) if summary.after_selected else None
    at_best = EvaluationFile.read(folder / AT_BEST_TEMPERATURE) if summary.at_best_temperature else None
    best = _logged(lines, "eval", measure, summary.best.env_steps)
    if best is None:
        raise BurnishError(f"{folder / METRICS} has no evaluation after {summary.best.env_steps} steps, the best's")
    return RunResult(
        task=config["task"]["name"],
        stage=config.get("stage", {}).get("name", ""),
        measure=measure,
        seed=config["seed"],
        env_steps=summary.env_steps,
        minutes=lines[-1]["minutes"],
        policy=before.about.weights or config.get("policy"),
        candidates=selected.candidates if selected else 1,
        before=_evaluated(before, measure, 0),
        last=_evaluated(last, measure, summary.env_steps),
        last_selected=_evaluated(selected, measure, summary.env_steps) if selected else None,
        best=best,
        best_selected=_logged(lines, "eval_selected", measure, summary.best.env_steps),
        temperature=last.temperature,
        best_temperature=at_best.temperature if at_best else None,
        at_best=_evaluated(at_best, measure, summary.env_steps) if at_best else None,
        by_temperature={one: _evaluated(file, measure, 0) for one, file in at_temperatures(folder, summary).items()},
        fell=summary.fell,
        went_back_to=summary.went_back_to,
        imitation_converged=summary.imitation_converged,
        curve=curve(lines, f"eval/{measure.key}"),
        curve_selected=curve(lines, f"eval_selected/{measure.key}"),
        curve_training=curve(lines, f"train/{measure.key}"),
        cost=_cost(folder, summary, lines, last.sampler_steps),
        config=(folder / CONFIG).read_text(encoding="utf-8"),
        commit=last.about.origin.commit,
        versions=last.about.origin.versions,
        machine=last.about.origin.machine,
    )


def at_temperatures(folder: Path, summary: FinetuneSummary) -> dict[float, EvaluationFile]:
    """What a run without learning keeps: the evaluation at each temperature that it tried."""
    tried = summary.at_best_temperature.tried if summary.at_best_temperature else {}
    files = {temperature: folder / AT_TEMPERATURE.format(f"{temperature:g}") for temperature in tried}
    return {temperature: EvaluationFile.read(file) for temperature, file in files.items() if file.is_file()}


def with_minutes(folder: Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl, each with the `minutes` of training up to it; without learning they are 0. Their
    `step` is the environment's, also of a run with an offline phase."""
    lines = read_metrics(folder / METRICS)
    if not any(key in line for line in lines for key in ("time/training", "time/env_steps_per_second")):
        raise BurnishError(f"{folder} is no finished run: its metrics.jsonl tells no time of training")
    steps, seconds = 0, 0.0
    for line in lines:
        line["step"] = line.get("env_steps", line["step"])
        if "time/training" in line:
            seconds += line["time/training"]
        elif "time/env_steps_per_second" in line:  # runs of commits before ff38ebb log no more
            seconds += (line["step"] - steps) / line["time/env_steps_per_second"]
            steps = line["step"]
        line["minutes"] = seconds / 60
    return lines


def curve(lines: list[dict[str, Any]], key: str) -> tuple[Point, ...]:
    """A point for each line that has the key."""
    return tuple(Point(line["step"], line["minutes"], line[key]) for line in lines if line.get(key) is not None)


def mean_curve(curves: Sequence[Sequence[Point]]) -> tuple[Point, ...]:
    """Means over seeds, where each seed was evaluated at about the same step."""
    tolerance = SAME_STEP * max(points[-1].env_steps for points in curves)
    means = []
    for point in curves[0]:
        nearest = [min(points, key=lambda p: abs(p.env_steps - point.env_steps)) for points in curves]
        if all(abs(near.env_steps - point.env_steps) <= tolerance for near in nearest):
            steps, minutes, value = np.mean(nearest, axis=0).tolist()
            means.append(Point(round(steps), minutes, value))
    return tuple(means)


def at(points: Sequence[Point], budget: float, axis: Axis) -> Point | None:
    """Linear between the evaluations before and after; the last one afterwards, None before the first.

    Evaluations come at the ends of updates, so the last one within a budget would be half a run back for one seed, or
    one method, and not for the next, by chance.
    """
    if not points or budget < getattr(points[0], axis):
        return None
    reached = min(budget, getattr(points[-1], axis))
    steps, minutes, values = np.array(points, dtype=float).T
    along = {"env_steps": steps, "minutes": minutes}[axis]
    env_steps, minute, value = (float(np.interp(reached, along, numbers)) for numbers in (steps, minutes, values))
    return Point(round(env_steps), minute, value)


class PairedDifference(NamedTuple):
    """After - before over `episodes` initial states, each the mean over `runs`."""

    difference: Difference
    runs: int
    episodes: int


def paired_difference(pairs: Sequence[tuple[Evaluated, Evaluated]]) -> PairedDifference | None:
    """After - before over the episodes that all runs' (before, after) have; None where there are none.

    The runs of all seeds are evaluated from the same initial states, so what is drawn again is the initial state, in
    all runs at once. The seeds are taken as given: how another seed would do is not in the interval.
    """
    found = [set(evaluated.by_seed) for pair in pairs for evaluated in pair]
    states = sorted(set.intersection(*found)) if found else []
    if not states:
        return None
    before, after = (
        np.mean([[pair[which].by_seed[state] for state in states] for pair in pairs], axis=0) for which in (0, 1)
    )
    return PairedDifference(Difference.between(before, after), len(pairs), len(states))


def _evaluated(file: EvaluationFile, measure: Measure, env_steps: int) -> Evaluated:
    values = file.values(measure.key)
    return Evaluated(
        env_steps=env_steps,
        value=float(np.mean(values)),
        successes=sum(file.success),
        episodes=len(values),
        latency_ms=file.summary.latency_ms,
        by_seed=dict(zip(file.seeds, values)),
    )


def _logged(lines: list[dict[str, Any]], prefix: str, measure: Measure, env_steps: int) -> Evaluated | None:
    """The evaluation after `env_steps` as metrics.jsonl has it."""
    for line in reversed(lines):
        found = EvaluationSummary.from_metrics(line, prefix) if line["step"] == env_steps else None
        if found is not None:
            successes = round(found.success_rate * found.episodes)
            return Evaluated(env_steps, found.value(measure.key), successes, found.episodes, found.latency_ms, {})
    return None


def _cost(folder: Path, summary: FinetuneSummary, lines: list[dict[str, Any]], sampler_steps: int | None) -> Cost:
    """`sampler_steps`: of the evaluation; None: an older one does not tell, or there are none."""
    updates = [line["time/update"] for line in lines if "time/update" in line]
    gradient_steps = max((line.get("gradient_steps") or 0 for line in lines), default=0)
    policy = _policy_config(folder)
    K, minutes = policy.get("denoising_steps"), lines[-1]["minutes"]
    return Cost(
        env_steps_per_second=summary.env_steps / (60 * minutes) if minutes else None,
        update_seconds=float(np.mean(updates)) if updates else None,
        gradient_step_seconds=sum(updates) / gradient_steps if gradient_steps else None,
        peak_memory_mib=summary.peak_memory_mib,
        n_parameters=summary.n_parameters,
        denoising_steps=K,
        transitions=sampler_steps or (policy.get("ddim_steps") if policy.get("sampler") == "ddim" else K),
    )


def _policy_config(folder: Path) -> dict[str, Any]:
    """Of the last checkpoint; empty where checkpoints were deleted."""
    latest = Checkpoints(folder / "checkpoints").latest()
    if latest is None or not (latest / DESCRIPTION).is_file():
        return {}
    return dict(read_json(latest / DESCRIPTION).get("config", {}))
